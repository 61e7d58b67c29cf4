"""The direct lane: one connection between a router and a worker, beside Ray. See `frames` for what travels on it.

Tried as a Unix socket, then as TCP, then given up for the ray lane. A connection that breaks is made again at once, the
way it was made before: if the worker lives, both sides send what the other has not got, and nothing runs twice; if
nobody listens there any more, the worker is dead.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from gworker.connection import HIGH_WATER_BYTES, Connection, tune
from gworker.frames import GREETING_BYTES, WELCOME_BYTES, Hello, RouterHandshake
from gworker.mailbox import turn_of
from gworker.router.lanes import MAX_BUNDLE, Lane, LaneListener, Room
from gworker.router.membership import DirectAddress
from gworker.wire import Busy, Cancel, Credit, Down, Item, Started, Submit, Up, count_within, from_plain

log = logging.getLogger("gworker.router")

# How long a connection may take to come about, each way.
CONNECT_S = 5.0
# A worker that is there and has no time for us now is asked again after this long.
AGAIN_S = 0.02
# A router that has nothing to say acknowledges after this long, so that the worker need not keep what it sent.
ACKNOWLEDGE_S = 0.05
# What is not worth a word of its own is said once in a process.
_said: set[str] = set()


_Way = Callable[[], Awaitable[bool]]


class GivenUpError(ConnectionError):
    """The worker lives, but has cancelled what this router had there."""


class TakenUp(NamedTuple):
    """A session as another connection left it: our next bundle's number, the worker's last one, and what was sent.

    `tcp` is where the worker listens, unless that was a Unix socket.
    """

    sequence: int
    received: int
    unacknowledged: list[Up]
    tcp: tuple[str, int] | None


# Somebody listens, and did not come to the point of welcoming us.
_BUSY = (BlockingIOError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
# Nobody listens.
_GONE = (ConnectionRefusedError, FileNotFoundError)


class _Wire(Connection):
    """The connection of a lane; after the handshake bundles go to the lane. `way` is how it is made."""

    def __init__(self, lane: DirectLane, way: _Way, secret: bytes, mine: Hello) -> None:
        super().__init__()
        self.way = way
        self.welcome = asyncio.get_running_loop().create_future()
        self._lane = lane
        self._handshaking = RouterHandshake(secret)
        self._mine = mine
        self._received = b""
        self._greeted = False

    def on_handshake(self, data: bytes) -> None:
        self._received += data
        if not self._greeted and len(self._received) >= GREETING_BYTES:
            greeting, self._received = self._received[:GREETING_BYTES], self._received[GREETING_BYTES:]
            self.write_raw(self._handshaking.hello(greeting, dataclasses.replace(self._mine, memory=self.memory)))
            self._greeted = True
        if self._greeted and len(self._received) >= WELCOME_BYTES:
            welcome = self._handshaking.welcomed(self._received[:WELCOME_BYTES])
            if self.welcome.done():
                self.abort()  # too late
                return
            if not welcome.known:
                raise GivenUpError("the worker had not heard of this process for too long, and has given its calls up")
            self.welcome.set_result(welcome)
            if self.try_to_read(welcome.memory):
                self.say_it_reads()
            if welcome.reads:
                self.begin_to_lend()
            self._lane.on_open(self, welcome.last)
            self.open_frames(self._received[WELCOME_BYTES:])

    def on_frame(self, content: Any) -> None:
        self._lane.on_bundle(from_plain(Down, content))

    def on_writable(self) -> None:
        self._lane.on_writable()

    def on_failed(self, error: Exception) -> None:
        if self.welcome.done():
            self._lane.on_failed(error)
        else:
            self._fail(error)

    def on_lost(self, error: BaseException | None) -> None:
        self._fail(error or ConnectionResetError("the worker closed the connection"))
        self._lane.on_lost(self)

    def _fail(self, error: BaseException) -> None:
        if not self.welcome.done():
            self.welcome.set_exception(error)
            self.welcome.exception()  # nobody may wait for it any more; then it is no news


class DirectLane:
    """The lane over a connection of its own.

    `same_node` says whether the Unix socket can be reached; `ask_tcp` asks the worker, by way of Ray, for its TCP
    address. `fall_back` makes the ray lane where there is no other way: not to a worker that does not answer there,
    either. `taken_up` is for a session that was begun over a connection of somebody else's.
    """

    vouches_for_starts = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: DirectAddress,
        session: str,
        capacity: int,
        listener: LaneListener,
        *,
        same_node: bool,
        ask_tcp: Callable[[], Awaitable[tuple[str, int] | None]],
        fall_back: Callable[[], Lane],
        taken_up: TakenUp | None = None,
    ) -> None:
        self._loop = loop
        self._turn = turn_of(loop)
        self._address = address
        self._session = session
        self._listener = listener
        self._same_node = same_node
        self._ask_tcp = ask_tcp
        self._fall_back = fall_back
        self._other: Lane | None = None
        self._wire: _Wire | None = None
        self._closed = False
        self._scheduled = False
        self._way: _Way | None = None
        self._tcp: tuple[str, int] | None = None
        self._unanswered = False
        self._room = Room(capacity)
        self._inputs: set[int] = set()
        self._outgoing: deque[Any] = deque()
        self._unacknowledged: deque[Up] = deque()
        self._sequence = 0
        self._received = -1
        self._told_received = -1
        self._wanted = 0
        self._told_wanted = 0
        self._acknowledging: asyncio.TimerHandle | None = None
        if taken_up is not None:
            self._sequence, self._received, unacknowledged, self._tcp = taken_up
            self._way = self._by_unix_socket if self._tcp is None else self._by_tcp
            self._told_received = self._received
            self._unacknowledged.extend(unacknowledged)
        self._connecting: asyncio.Task[None] | None = loop.create_task(self._connect())

    # --- the router's side ------------------------------------------------------------------------------------------

    def send(self, message: Submit | Cancel | Credit) -> None:
        if self._other is not None:
            self._other.send(message)
            return
        if type(message) is Submit:
            self._inputs.add(message.call_id)
            self._room.queue()
        elif type(message) is Cancel:
            self._inputs.discard(message.call_id)
        self._outgoing.append(message)
        self.schedule()

    def available(self) -> int:
        if self._other is not None:
            return self._other.available()
        if self._wire is None or not self._wire.writable:
            return 0  # what was never sent cannot have started: it stays in the router
        return self._room.left(idle=not self._inputs and not self._outgoing)

    def want(self, count: int) -> None:
        if self._other is not None:
            self._other.want(count)
            return
        self._wanted = count
        if count and not self._told_wanted:
            self.schedule()

    def close(self) -> None:
        self._flush()  # cancellations
        self._closed = True
        self._outgoing.clear()
        self._unacknowledged.clear()
        for timer in (self._acknowledging, self._connecting):
            if timer is not None:
                timer.cancel()
        if self._wire is not None and self._wire.transport is not None:
            self._wire.transport.close()
        if self._other is not None:
            self._other.close()

    # --- sending ----------------------------------------------------------------------------------------------------

    def schedule(self) -> None:
        """Send what there is at the end of this turn of the loop."""
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._turn.at_end(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        wire = self._wire
        if wire is None or self._closed:
            return
        while wire.writable and self._outgoing:
            self._send_bundle(wire)
        if self._wanted and not self._told_wanted:
            self._send_bundle(wire)

    def _send_bundle(self, wire: _Wire) -> None:
        outgoing = self._outgoing
        if not outgoing or not wire.writable:
            messages = []
        elif len(outgoing) == 1:
            messages = [outgoing.popleft()]
        else:
            messages = [outgoing.popleft() for _ in range(count_within(outgoing, MAX_BUNDLE, HIGH_WATER_BYTES))]
        if messages:
            self._room.sent(self._sequence, [type(message) for message in messages].count(Submit))
        bundle = Up(
            self._session,
            self._sequence,
            self._received,
            self._wanted or int(self._room.in_line),
            self.vouches_for_starts,
            messages,
        )
        self._sequence += 1
        self._told_wanted = self._wanted
        self._told_received = self._received
        self._unacknowledged.append(bundle)
        wire.write(bundle)

    def _acknowledge(self) -> None:
        self._acknowledging = None
        if self._wire is not None and not self._closed and self._told_received < self._received:
            self._send_bundle(self._wire)

    # --- receiving --------------------------------------------------------------------------------------------------

    def on_bundle(self, bundle: Down) -> None:
        """The next bundle of the worker."""
        if self._closed or bundle.sequence <= self._received:
            return
        self._received = bundle.sequence
        offered = bundle.room > 0 and (self._told_wanted > 0 or self._room.in_line)
        self._room.heard(bundle)
        while self._unacknowledged and self._unacknowledged[0].sequence <= bundle.acknowledged:
            self._unacknowledged.popleft()
        for message in bundle.messages:
            kind = type(message)
            if kind is not Item and kind is not Started:
                self._inputs.discard(message.call_id)
                if kind is Busy:
                    self._room.refused()
            self._listener.on_message(message)
        if bundle.room > 0:
            self._told_wanted = 0
        self._listener.on_progress()
        if self._closed:
            return
        if bundle.draining and self._wire is not None:
            self._send_bundle(self._wire)  # a worker that drains waits to hear that its last words have arrived
        elif offered and not self._wanted and not self._outgoing and self._wire is not None:
            self._send_bundle(self._wire)  # a place is kept for us that we do not need: it is for others
        elif self._acknowledging is None:
            self._acknowledging = self._loop.call_later(ACKNOWLEDGE_S, self._acknowledge)
        if self._wanted and not self._told_wanted:
            self.schedule()

    # --- the connection ---------------------------------------------------------------------------------------------

    def on_open(self, wire: _Wire, last: int) -> None:
        """The worker knows us, and has our bundles up to `last`; it gets the others again."""
        if self._closed or self._other is not None:
            wire.abort()
            return
        self._wire = wire
        self._way = wire.way
        while self._unacknowledged and self._unacknowledged[0].sequence <= last:
            self._unacknowledged.popleft()
        for bundle in self._unacknowledged:
            wire.write(bundle)
        self.on_writable()

    def on_writable(self) -> None:
        """The worker takes more."""
        self.schedule()
        if not self._closed:
            self._listener.on_progress()

    def on_failed(self, error: Exception) -> None:
        """What the worker sent could not be handled; it would be no better the second time."""
        log.error("a direct connection was given up: what the worker sent could not be handled", exc_info=error)
        self._break(ConnectionError(f"what it sent could not be handled: {type(error).__name__}: {error}"))

    def on_lost(self, wire: _Wire) -> None:
        """The connection has ended: the worker is dead, or it is to be made again."""
        if wire is self._wire and not self._closed:
            self._wire = None
            self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        error: Exception = ConnectionError("it cannot be reached")
        for way in (self._by_unix_socket, self._by_tcp) if self._way is None else (self._way,):
            try:
                if await self._dial(way):
                    return
            except Exception as failed:  # of the socket, or Ray's of a worker that is dead
                log.debug("a direct connection to a worker failed: %r", failed)
                error = failed
            if self._wire is not None or self._connecting is not asyncio.current_task():
                return  # it came to pass at the last moment
        if self._closed:
            return
        if self._way is None and self._unanswered:
            self._break(ConnectionError(f"it answers neither on a connection of its own nor by way of Ray: {error!r}"))
        elif self._way is None:
            self._give_up(error)
        elif isinstance(error, GivenUpError):
            self._break(error)
        elif isinstance(error, _GONE):
            self._break(ConnectionError(f"its process is gone: nobody listens at its end of the connection ({error})"))
        else:
            self._break(ConnectionError(f"its direct connection broke and could not be made again: {error!r}"))

    async def _dial(self, way: _Way) -> bool:
        """Connect this way, again while the worker is there but busy; False where the way does not exist."""
        end = self._loop.time() + CONNECT_S
        while True:
            try:
                return await asyncio.wait_for(way(), end - self._loop.time())
            except _BUSY:
                if self._loop.time() + AGAIN_S >= end:
                    raise
            await asyncio.sleep(AGAIN_S)

    async def _by_unix_socket(self) -> bool:
        if not self._same_node or not self._address.path:
            return False
        wire = self._new_wire(self._by_unix_socket)
        return await self._welcomed(wire, self._loop.create_unix_connection(lambda: wire, self._address.path))

    async def _by_tcp(self) -> bool:
        if self._tcp is None:
            self._unanswered = True
            self._tcp = await self._ask_tcp()
            self._unanswered = False
        if self._tcp is None:
            return False
        wire = self._new_wire(self._by_tcp)
        return await self._welcomed(wire, self._loop.create_connection(lambda: wire, *self._tcp))

    async def connect_another(self, session: str) -> socket.socket | None:
        if self._connecting is not None:
            await asyncio.wait([self._connecting])
        if self._wire is None or self._wire.transport is None:
            return None
        family = self._wire.transport.get_extra_info("socket").family
        by_unix_socket = family == socket.AF_UNIX
        there = self._address.path if by_unix_socket else self._wire.transport.get_extra_info("peername")
        other = socket.socket(family)
        try:
            other.setblocking(False)
            await asyncio.wait_for(self._begin_session(other, there, session), CONNECT_S)
            other.setblocking(True)
        except BaseException:
            other.close()
            raise
        return other

    async def _begin_session(self, other: socket.socket, there: Any, session: str) -> None:
        await self._loop.sock_connect(other, there)
        tune(other)
        handshake = RouterHandshake(self._address.secret)
        greeting = await self._read(other, GREETING_BYTES)
        await self._loop.sock_sendall(other, handshake.hello(greeting, Hello(session, -1, is_new=True)))
        handshake.welcomed(await self._read(other, WELCOME_BYTES))

    async def _read(self, other: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = await self._loop.sock_recv(other, count - len(data))
            if not more:
                raise ConnectionResetError("the worker closed the connection")
            data += more
        return data

    def _new_wire(self, way: _Way) -> _Wire:
        mine = Hello(self._session, self._received, is_new=self._way is None)
        return _Wire(self, way, self._address.secret, mine)

    async def _welcomed(self, wire: _Wire, connecting: Awaitable[Any]) -> bool:
        try:
            await connecting
            await wire.welcome
        finally:
            if wire is not self._wire:
                wire.abort()
        return True

    def _give_up(self, error: BaseException) -> None:
        """No direct connection can be had: everything goes by actor calls from now on."""
        if "fallback" not in _said:
            _said.add("fallback")
            log.warning("calls go by Ray actor calls, which are slower: no direct connection to a worker: %s", error)
        self._other = self._fall_back()
        for message in self._outgoing:
            self._other.send(message)
        self._outgoing.clear()
        self._unacknowledged.clear()
        self._other.want(self._wanted)
        self._listener.on_progress()

    def _break(self, error: BaseException) -> None:
        if not self._closed:
            self.close()
            self._listener.on_broken(error)
