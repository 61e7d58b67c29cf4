"""The worker's end of the direct lane: listens on a Unix socket, and on TCP once another node asks for it.

A connection that has proved itself carries the bundles of one session. One that breaks may be taken up again for a
moment, by the same router: each side sends again what the other has not got. Then the session is over and its inputs
are cancelled, as those of a caller that has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import shutil
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import ray

from gworker.connection import HIGH_WATER_BYTES, Connection, give_to_children, keep_from_children
from gworker.frames import Hello, ProtocolError, Welcome, WorkerHandshake, new_secret
from gworker.mailbox import turn_of
from gworker.router.membership import DirectAddress
from gworker.wire import Down, Up, from_plain
from gworker.worker.engine import Engine
from gworker.worker.session import Session

log = logging.getLogger("gworker.worker")

# How long a peer may take to prove itself.
HANDSHAKE_S = 5.0
# So many peers may be about to prove themselves at once. One more takes the place of the one that takes longest.
MAX_STRANGERS = 256
# How long a router may take to come back.
RECONNECT_S = 3.0
# A worker that has nothing to say acknowledges after this long, so that the router need not keep what it sent.
ACKNOWLEDGE_S = 0.05
# The most connections that wait to be accepted: all routers of an app may come at once.
BACKLOG = 1024
# Peers that fail to prove themselves are reported this often at most.
REPORT_S = 10.0


def socket_folder() -> str:
    """A name for the folder of one worker's socket; `DirectListener.open` makes it."""
    return str(Path(tempfile.gettempdir(), f"gworker-{os.getpid()}-{os.urandom(4).hex()}"))


class DirectLine:
    """A session and its connection, while it has one."""

    def __init__(self, name: str, engine: Engine, listener: DirectListener) -> None:
        self.session = Session(name, engine, self._schedule)
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._turn = turn_of(self._loop)
        self._connection: Connection | None = None
        self._unacknowledged: deque[Down] = deque()
        self._scheduled = False
        self._closed = False
        self._over: asyncio.TimerHandle | None = None
        self._acknowledging: asyncio.TimerHandle | None = None
        self._told_received = -1

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
            if not self._closed:
                self._over = self._loop.call_later(RECONNECT_S, self.close)

    def receive(self, bundle: Up) -> None:
        """Handle a bundle of the router. Raises ProtocolError where one is missing before it."""
        if bundle.sequence > self.session.last_received + 1:
            raise ProtocolError(f"bundle {bundle.sequence} follows on {self.session.last_received}")
        self._forget(bundle.acknowledged)
        self.session.receive(bundle)
        if bundle.messages and self._acknowledging is None and not self._closed:
            self._acknowledging = self._loop.call_later(ACKNOWLEDGE_S, self._acknowledge)

    def close(self) -> None:
        """The router is gone, or cannot be understood; it will be told if it comes back."""
        if self._closed:
            return
        self._closed = True
        if self.session.inputs:
            log.warning("caller %s has gone: its %d calls are cancelled", self.session.name, len(self.session.inputs))
        for timer in (self._over, self._acknowledging):
            if timer is not None:
                timer.cancel()
        self.session.close()
        self._unacknowledged.clear()
        self._listener.forget(self)

    @property
    def settled(self) -> bool:
        """Whether the router has all that was sent; one that has closed its connection waits for results alone."""
        if self._connection is None and not self.session.owes_answers:
            return not any(bundle.messages for bundle in self._unacknowledged)
        return self.session.settled

    def flush(self) -> None:
        """Send what there is to send, as far as the router takes it."""
        self._scheduled = False
        connection = self._connection
        while connection is not None and connection.writable and self.session.has_news and not self._closed:
            bundle = self.session.take(HIGH_WATER_BYTES)
            self._told_received = bundle.acknowledged
            self._unacknowledged.append(bundle)
            connection.write(bundle)

    def _schedule(self) -> None:
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._turn.at_end(self.flush)

    def _acknowledge(self) -> None:
        self._acknowledging = None
        if self._told_received < self.session.last_received:
            self.session.nudge()

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
        self._listener.admit(self)
        self._patience = asyncio.get_running_loop().call_later(HANDSHAKE_S, self.abort)
        self.write_raw(self._handshaking.greeting())

    def on_handshake(self, data: bytes) -> None:
        found = self._handshaking.feed(data)
        if found is None:
            return
        hello, rest = found
        self._end_of_patience()
        self._line, answer = self._listener.line_of(hello)
        answer = dataclasses.replace(answer, memory=self.memory, reads=self.try_to_read(hello.memory))
        self.write_raw(self._handshaking.welcome(answer))
        if self._line is None:
            if self.transport is not None:
                self.transport.close()
            return
        self._line.attach(self, hello.last)
        self.open_frames(rest)

    def on_frame(self, content: Any) -> None:
        bundle = from_plain(Up, content)
        if type(bundle.sequence) is not int or type(bundle.waiting) is not int:
            raise ProtocolError("no bundle of a router")
        assert self._line is not None
        self._line.receive(bundle)

    def on_failed(self, error: Exception) -> None:
        if self._line is None:
            self._listener.report_stranger(error)
            return
        # What was sent again would fail again, and half of it may have been handled: the router must be told.
        log.error("caller %s sent what could not be handled", self._line.session.name, exc_info=error)
        self._line.close()

    def pause_writing(self) -> None:
        # One that does not take its results need not bring more inputs: they would become results, too. The router's
        # end always reads, so that the two cannot wait for each other.
        super().pause_writing()
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()
        super().resume_writing()

    def on_writable(self) -> None:
        if self._line is not None:
            self._line.flush()

    def on_lost(self, error: BaseException | None) -> None:
        self._end_of_patience()
        if self._line is not None:
            self._line.detach(self)

    def _end_of_patience(self) -> None:
        self._listener.dismiss(self)
        if self._patience is not None:
            self._patience.cancel()


class DirectListener:
    """All direct connections of one worker. Lives on the loop that carries traffic. `folder` will hold the socket."""

    def __init__(self, engine: Engine, folder: str) -> None:
        self.secret = new_secret()
        self._strangers: dict[_Peer, None] = {}
        self._failed_strangers = 0
        self._reporting: asyncio.TimerHandle | None = None
        self._engine = engine
        self._lines: dict[str, DirectLine] = {}
        self._folder = folder
        self._servers: list[asyncio.Server] = []
        self._tcp: tuple[str, int] | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    async def open(self) -> DirectAddress:
        """Listen on a Unix socket; without a path where this machine will not have it."""
        loop = asyncio.get_running_loop()
        path = str(Path(self._folder, "direct"))
        try:
            os.mkdir(self._folder, 0o700)  # for this user alone
            self._serve(await loop.create_unix_server(lambda: _Peer(self), path, backlog=BACKLOG))
        except OSError as error:
            log.warning("no direct lane by Unix socket: %s", error)
            self._remove_folder()
            path = ""
        node_id = ray.get_runtime_context().get_node_id()
        return DirectAddress(node_id=node_id, path=path, pid=os.getpid(), secret=self.secret)

    async def open_tcp(self) -> tuple[str, int] | None:
        """Listen on the node's address, for routers of other nodes; None where that cannot be."""
        async with self._opening:
            if self._tcp is None and not self._closed:
                host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
                try:
                    loop = asyncio.get_running_loop()
                    server = await loop.create_server(lambda: _Peer(self), host, 0, backlog=BACKLOG)
                except OSError as error:
                    log.warning("no direct lane to other nodes: %s", error)
                    return None
                self._serve(server)
                self._tcp = (host, server.sockets[0].getsockname()[1])
            return self._tcp

    def _serve(self, server: asyncio.Server) -> None:
        self._servers.append(server)
        for listening in server.sockets:
            keep_from_children(listening)

    def close(self) -> None:
        """Listen no more; the connections go on."""
        self._closed = True
        for server in self._servers:
            for listening in server.sockets:
                give_to_children(listening)
            server.close()
        self._remove_folder()

    def _remove_folder(self) -> None:
        with contextlib.suppress(OSError):
            shutil.rmtree(self._folder)

    def admit(self, peer: _Peer) -> None:
        """One more peer begins to prove itself."""
        while len(self._strangers) >= MAX_STRANGERS:
            slowest = next(iter(self._strangers))
            del self._strangers[slowest]
            slowest.abort()
        self._strangers[peer] = None

    def dismiss(self, peer: _Peer) -> None:
        """It has proved itself, or is gone."""
        self._strangers.pop(peer, None)

    def report_stranger(self, error: Exception) -> None:
        """A peer failed to prove itself: say so, but do not let it fill the log."""
        self._failed_strangers += 1
        if self._reporting is None:
            log.warning("a peer was turned away from the direct lane: %s", error)
            self._reporting = asyncio.get_running_loop().call_later(REPORT_S, self._report_more)

    def _report_more(self) -> None:
        self._reporting = None
        if self._failed_strangers > 1:
            log.warning("%d more peers were turned away from the direct lane", self._failed_strangers - 1)
        self._failed_strangers = 0

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
        return all(line.settled for line in self._lines.values())
