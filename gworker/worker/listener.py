"""The worker's end of the direct lane: listens on a Unix socket, and on TCP once another node asks for it.

A connection that has proved itself carries the bundles of one session. One that breaks may be taken up again for a
moment, by the same router: each side sends again what the other has not got. Then the session is over and its inputs
are cancelled, as those of a caller that has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
from collections import deque
from pathlib import Path

import ray

from gworker.connection import Connection
from gworker.frames import Hello, ProtocolError, Welcome, WorkerHandshake, new_secret
from gworker.router.membership import DirectAddress
from gworker.wire import Down, Up
from gworker.worker.engine import Engine
from gworker.worker.session import Session

log = logging.getLogger("gworker.worker")

# How long a peer may take to prove itself.
HANDSHAKE_S = 5.0
# So many peers may be about to prove themselves at once.
MAX_STRANGERS = 256
# How long a router may take to come back.
RECONNECT_S = 3.0


class DirectLine:
    """A session and its connection, while it has one."""

    def __init__(self, name: str, engine: Engine, on_over: DirectListener) -> None:
        self.session = Session(name, engine, self._schedule)
        self._listener = on_over
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._unacknowledged: deque[Down] = deque()
        self._scheduled = False
        self._over: asyncio.TimerHandle | None = None

    def attach(self, connection: Connection, last: int) -> None:
        """Go on over this connection with a router that has the bundles up to `last`."""
        if self._over is not None:
            self._over.cancel()
            self._over = None
        if self._connection is not None and self._connection is not connection:
            self._connection.abort()
        self._connection = connection
        self._forget(last)
        for bundle in self._unacknowledged:
            connection.write(bundle)
        self._schedule()

    def detach(self, connection: Connection) -> None:
        """The connection has ended; the router has a moment to come back."""
        if connection is self._connection:
            self._connection = None
            self._over = self._loop.call_later(RECONNECT_S, self.close)

    def receive(self, bundle: Up) -> None:
        """Handle a bundle of the router."""
        self._forget(bundle.acknowledged)
        self.session.receive(bundle)

    def close(self) -> None:
        """The router is gone."""
        if self.session.inputs:
            log.warning("caller %s has gone: its %d calls are cancelled", self.session.name, len(self.session.inputs))
        self.session.close()
        self._listener.forget(self)

    def flush(self) -> None:
        """Send what there is to send, if the router takes it."""
        self._scheduled = False
        connection = self._connection
        if connection is not None and connection.writable and self.session.has_news:
            bundle = self.session.take()
            self._unacknowledged.append(bundle)
            connection.write(bundle)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def _forget(self, acknowledged: int) -> None:
        while self._unacknowledged and self._unacknowledged[0].sequence <= acknowledged:
            self._unacknowledged.popleft()


class _Peer(Connection):
    """A router that connects."""

    def __init__(self, listener: DirectListener) -> None:
        super().__init__()
        self._listener = listener
        self._handshaking = WorkerHandshake(listener.secret)
        self._line: DirectLine | None = None
        self._patience: asyncio.TimerHandle | None = None

    def on_connected(self) -> None:
        if not self._listener.admit(self):
            self.abort()
            return
        self._patience = asyncio.get_running_loop().call_later(HANDSHAKE_S, self.abort)
        self.write_raw(self._handshaking.greeting())

    def on_handshake(self, data: bytes) -> None:
        found = self._handshaking.feed(data)
        if found is None:
            return
        hello, rest = found
        self._end_of_patience()
        self._line, answer = self._listener.line_of(hello)
        self.write_raw(self._handshaking.welcome(answer))
        if self._line is None:
            if self.transport is not None:
                self.transport.close()
            return
        self._line.attach(self, hello.last)
        self.open_frames(rest)

    def on_bundle(self, bundle: Up) -> None:
        if not isinstance(bundle, Up):
            raise ProtocolError(f"a bundle of type {type(bundle).__name__}")
        assert self._line is not None
        self._line.receive(bundle)

    def on_writable(self) -> None:
        if self._line is not None:
            self._line.flush()

    def on_lost(self, error: BaseException | None) -> None:
        self._end_of_patience()
        if self._line is not None:
            self._line.detach(self)

    def _end_of_patience(self) -> None:
        self._listener.strangers.discard(self)
        if self._patience is not None:
            self._patience.cancel()


class DirectListener:
    """All direct connections of one worker. Lives on the loop that carries traffic."""

    def __init__(self, engine: Engine) -> None:
        self.secret = new_secret()
        self.strangers: set[_Peer] = set()
        self._engine = engine
        self._lines: dict[str, DirectLine] = {}
        self._folder = ""
        self._servers: list[asyncio.Server] = []
        self._tcp: tuple[str, int] | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> DirectAddress | None:
        """Listen on a Unix socket; None where this machine will not have it."""
        loop = asyncio.get_running_loop()
        try:
            self._folder = tempfile.mkdtemp(prefix="gworker-")  # readable by this user alone
            path = str(Path(self._folder, "direct"))
            self._servers.append(await loop.create_unix_server(lambda: _Peer(self), path))
        except OSError as error:
            log.warning("no direct lane: a Unix socket could not be had: %s", error)
            self.close()
            return None
        return DirectAddress(
            node_id=ray.get_runtime_context().get_node_id(), path=path, pid=os.getpid(), secret=self.secret
        )

    async def open_tcp(self) -> tuple[str, int] | None:
        """Listen on the node's address, for routers of other nodes; None where that cannot be."""
        async with self._opening:
            if self._tcp is None:
                host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
                try:
                    server = await asyncio.get_running_loop().create_server(lambda: _Peer(self), host, 0)
                except OSError as error:
                    log.warning("no direct lane to other nodes: %s", error)
                    return None
                self._servers.append(server)
                self._tcp = (host, server.sockets[0].getsockname()[1])
            return self._tcp

    def close(self) -> None:
        """Listen no more; the connections go on."""
        for server in self._servers:
            server.close()
        with contextlib.suppress(OSError):
            shutil.rmtree(self._folder)

    def admit(self, peer: _Peer) -> bool:
        """Whether one more peer may begin to prove itself."""
        if len(self.strangers) >= MAX_STRANGERS:
            return False
        self.strangers.add(peer)
        return True

    def line_of(self, hello: Hello) -> tuple[DirectLine | None, Welcome]:
        """The line of a router that has proved itself; None for a session that is over."""
        line = self._lines.get(hello.session)
        if line is None:
            if not hello.is_new:
                return None, Welcome(False, -1)
            line = self._lines[hello.session] = DirectLine(hello.session, self._engine, self)
            self._engine.sessions[hello.session] = line.session
        return line, Welcome(True, line.session.last_received)

    def forget(self, line: DirectLine) -> None:
        """A session is over."""
        self._lines.pop(line.session.name, None)
        self._engine.sessions.pop(line.session.name, None)

    @property
    def settled(self) -> bool:
        """Whether the routers have all that was sent to them."""
        return all(line.session.settled for line in self._lines.values())
