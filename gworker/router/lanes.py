"""How calls travel from a router to one worker. A lane carries messages both ways; nothing above it knows Ray tasks.

The `ray` lane: the router hands bundles to the worker's `exchange` method and keeps at least one exchange open while
it has inputs there; the worker answers one whenever it has something to say. Under load many messages share a bundle,
and no result waits for another input.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from gworker import clock
from gworker.mailbox import turn_of
from gworker.wire import Busy, Cancel, Credit, Down, InOrder, Item, Started, Submit, Up, decode, encode

# With this many exchanges open the next bundle waits until one is answered, growing meanwhile.
MAX_OPEN_EXCHANGES = 4
# The most inputs in one bundle: enough to make its cost disappear, not so many that the worker's loop stalls.
MAX_BUNDLE = 512
# A lane that has been idle for this long begins a new session: the worker forgets the old one, some time later.
RENEW_S = 30.0
_sessions = itertools.count(2)


class LaneListener(Protocol):
    """What a lane calls, on the router's loop."""

    def on_message(self, message: Any) -> None:
        """A message from the worker, in the order it was sent."""

    def on_progress(self) -> None:
        """A bundle has been handled: there may be room for more."""

    def on_broken(self, error: BaseException) -> None:
        """The lane has ended for good: the worker died or cannot be reached."""


class Lane(Protocol):
    """A two-way stream of messages with one worker; used on the router's loop only.

    `vouches_for_starts` says that a start report reaches the router before the input can start. Where it is False,
    whatever was sent and not refused counts as started.
    """

    vouches_for_starts: bool

    def send(self, message: Submit | Cancel | Credit) -> None:
        """Send soon, together with what else is sent in this turn of the loop."""

    def available(self) -> int:
        """How many inputs the worker would take from us now."""
        ...

    def want(self, count: int) -> None:
        """`count` more inputs wait for room in this worker."""

    async def connect_another(self, session: str) -> socket.socket | None:
        """Another connection to the worker, on which this session has just begun; None where none is to be had.

        It blocks. Raises what connecting raises.
        """
        ...

    def close(self) -> None:
        """Send nothing more and report nothing more."""


class Room:
    """How many inputs a worker would take from us now: what it said last, less what we have sent since.

    `in_line`: the worker has refused us and will say when it has room; until then there is no use in trying.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._said = capacity
        self.in_line = False
        self._unsent = 0
        self._unconfirmed: deque[tuple[int, int]] = deque()
        self._on_its_way = 0

    def left(self, *, idle: bool) -> int:
        """The room. Where we have been `idle`, what we knew is old: try, the worker may refuse."""
        if idle and not self.in_line:
            return self._capacity
        return self._said - self._unsent - self._on_its_way

    def queue(self) -> None:
        """An input waits to be sent."""
        self._unsent += 1

    def sent(self, sequence: int, count: int) -> None:
        """So many inputs have left with this bundle."""
        if count:
            self._unsent -= count
            self._on_its_way += count
            self._unconfirmed.append((sequence, count))

    def heard(self, bundle: Down) -> None:
        """A bundle of the worker says how much room there is, counting ours up to the one it acknowledges."""
        self._said = bundle.room
        if bundle.room > 0:
            self.in_line = False
        while self._unconfirmed and self._unconfirmed[0][0] <= bundle.acknowledged:
            self._on_its_way -= self._unconfirmed.popleft()[1]

    def refused(self) -> None:
        """The worker was full: from now on we wait in line, rather than try our luck."""
        self.in_line = self._said <= 0

    def begin_anew(self) -> None:
        """The numbers of bundles begin anew, and nothing is on its way."""
        self._unconfirmed.clear()
        self._on_its_way = 0


class RayLane:
    """The lane over actor calls.

    `connected` tells whether Ray is up: where it is not, an actor call would start another one, from this thread.
    """

    vouches_for_starts = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        actor: Any,
        session: str,
        capacity: int,
        listener: LaneListener,
        connected: Callable[[], bool] = lambda: True,
    ) -> None:
        self._loop = loop
        self._turn = turn_of(loop)
        self._exchange = actor.exchange
        self._connected = connected
        self._name = session
        self._session = session
        self._last_heard = clock.now()
        self._room = Room(capacity)
        self._listener = listener
        self._arrivals = InOrder()
        self._outgoing: deque[Any] = deque()
        self._sequence = 0
        self._open = 0
        self._scheduled = False
        self._closed = False
        self._inputs: set[int] = set()
        self._wanted = 0
        self._told_wanted = 0

    def send(self, message: Submit | Cancel | Credit) -> None:
        if isinstance(message, Submit):
            self._inputs.add(message.call_id)
            self._room.queue()
        elif isinstance(message, Cancel):
            self._inputs.discard(message.call_id)
        self._outgoing.append(message)
        self._schedule()

    def available(self) -> int:
        return self._room.left(idle=not self._inputs and not self._open and not self._outgoing)

    def want(self, count: int) -> None:
        self._wanted = count
        if count and (not self._told_wanted or not self._open):
            self._schedule()

    async def connect_another(self, session: str) -> socket.socket | None:
        return None

    def close(self) -> None:
        self._closed = True
        self._outgoing.clear()

    def _schedule(self) -> None:
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._turn.at_end(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        while self._open < MAX_OPEN_EXCHANGES and self._outgoing and not self._closed:
            self._send_bundle()
        if self._closed:
            return
        nothing_open = self._open == 0 and (self._inputs or self._wanted or self._room.in_line)
        untold = self._wanted and not self._told_wanted and self._open < MAX_OPEN_EXCHANGES
        if nothing_open or untold:
            self._send_bundle()

    def _renew(self) -> None:
        """Begin a new session; nothing of the old one is on its way in either direction."""
        self._session = f"{self._name}.{next(_sessions)}"
        self._arrivals = InOrder()
        self._sequence = 0
        self._room.begin_anew()

    def _send_bundle(self) -> None:
        if self._sequence and self._open == 0 and clock.now() - self._last_heard > RENEW_S:
            self._renew()
        count = min(len(self._outgoing), MAX_BUNDLE)
        messages = [self._outgoing.popleft() for _ in range(count)]
        self._room.sent(self._sequence, sum(isinstance(m, Submit) for m in messages))
        up = Up(
            session=self._session,
            sequence=self._sequence,
            acknowledged=self._arrivals.last,
            waiting=self._wanted or int(self._room.in_line),
            stages=self.vouches_for_starts,
            messages=messages,
        )
        self._sequence += 1
        self._told_wanted = self._wanted
        self._open += 1
        try:
            if not self._connected():
                raise ConnectionError("Ray was shut down")
            answer = self._exchange.remote(encode(up)).future()
        except Exception as error:
            self._break(error)
            return
        answer.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._on_answer, done))

    def _on_answer(self, done: Any) -> None:
        self._open -= 1
        if self._closed:
            return
        error = done.exception()
        if error is not None:
            self._break(error)
            return
        down = decode(done.result(), Down)
        if down is None:
            self._break(ConnectionError("it had not heard of this process for too long, and has given its calls up"))
            return
        self._last_heard = clock.now()
        reply_wanted = False
        in_line = self._told_wanted > 0 or self._room.in_line
        for bundle in self._arrivals.feed(down.sequence, down):
            self._room.heard(bundle)
            for message in bundle.messages:
                if not isinstance(message, (Started, Item)):
                    self._inputs.discard(message.call_id)
                if isinstance(message, Busy):
                    self._room.refused()
                self._listener.on_message(message)
            reply_wanted = reply_wanted or bundle.draining
        if down.room > 0:
            self._told_wanted = 0
        self._listener.on_progress()
        declines = in_line and down.room > 0 and not self._wanted and not self._outgoing
        if (declines or (reply_wanted and self._open == 0)) and not self._closed:
            self._send_bundle()  # a place that is kept for us, and that we do not need, is for others
        self._schedule()

    def _break(self, error: BaseException) -> None:
        if not self._closed:
            self.close()
            self._listener.on_broken(error)
