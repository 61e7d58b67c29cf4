"""The express way: a thread that makes one call and waits for it needs no other thread for that.

While nothing else of this process is under way to a pool, such a thread sends its input and reads the result by itself,
over a connection of its own to one of the workers: at the worker's end a session like any other. That spares the hops
to the router's loop and back. Whatever is out of the ordinary is handed over to the router: refusals, errors, retries.
A call whose connection broke is asked after by a lane that takes the session up, so that nothing runs twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gworker import clock
from gworker.connection import give_to_children, keep_from_children
from gworker.frames import FrameReader, encode_frame
from gworker.router.calls import VERDICT_S, RoutedCall
from gworker.router.direct import TakenUp
from gworker.wire import Cancel, Down, Packed, Payload, Returned, Submit, Up, from_plain, to_plain

if TYPE_CHECKING:
    from gworker.router.links import Link
    from gworker.router.router import Router

log = logging.getLogger("gworker.router")

# So many workers of a pool have such a connection to one process, each for one thread at a time.
MOST_WAYS = 8
# What is larger goes by the lane: writing less never waits, and large buffers want the lane's own means.
LARGEST_BYTES = 32 * 1024
# A worker that could not be connected to is tried again after this long.
TRY_AGAIN_S = 5.0
# The least that a socket is given to wait: none would mean that it does not wait at all.
_SHORTEST_S = 0.0001


class Express:
    """A connection to one worker. It belongs to the line of idle ones, or to the thread that took it from there."""

    def __init__(self, ways: ExpressWays, link: Link, connected: socket.socket, session: str) -> None:
        self.link = link
        self.session = session
        self.call: RoutedCall | None = None
        self.closed = False
        self._ways = ways
        self._socket = connected
        self._lock = threading.Lock()
        # The numbers of bundles: the next of ours, the last of the worker's.
        self._sequence = 0
        self._received = -1
        self._sent: list[Up] = []
        self._contents: list[Any] = []
        self._reader = FrameReader(self._contents.append)
        self._tcp = None if connected.family == socket.AF_UNIX else connected.getpeername()[:2]
        keep_from_children(connected)

    def run(self, call: RoutedCall) -> Packed | None:
        """Send the call and wait: the result. None where the router sees to it from here on, and tells the call's sink.

        Raises what interrupts the wait, and DeadlineExceeded; the call is cancelled then.
        """
        self.call = call
        try:
            self._ways.busy.add(self)
            return self._run(call)
        finally:
            self.call = None
            self._ways.busy.discard(self)  # after the router was given the call, if it was: it counts as unfinished
            self._ways.give_back(self)

    def _run(self, call: RoutedCall) -> Packed | None:
        router = self._ways.router
        last = None
        try:
            if self._send(call):
                router.on_express()
                last = self._receive(call)
        except Exception as error:
            if isinstance(error, TimeoutError) and error.errno is None:  # ours, not that of a host that is silent
                self._give_up(call)
                router.account_queued(call)
                raise call.past_deadline(None) from None
            self.retire()
            if not call.started:  # no worker could tell what became of it
                raise
            router.find_out(call, self.link, self.session, self._taken_up(), error)
            return None
        except BaseException:
            self._give_up(call)
            raise
        if last is None:
            router.submit(call)
            return None
        if type(last) is not Returned:
            router.take_over(call, self.link, last)
            return None
        call.over = True
        router.account(call, last)
        result = last.result
        if _is_large(result):
            self._ways.large.add(call.plan.method)
        return result

    # --- the thread's side ------------------------------------------------------------------------------------------

    def _send(self, call: RoutedCall) -> bool:
        """Send the call; False where it cannot have started, as the way is closed."""
        if call.deadline is not None:
            self._socket.settimeout(max(_SHORTEST_S, call.deadline - clock.now()) + VERDICT_S)
        with self._lock:
            if self.closed or not self._write([call.message()], 0):
                self.closed = True
                return False
        call.link = self.link
        call.sent_at = clock.now()
        call.reached_worker = call.started = True
        return True

    def _write(self, messages: Sequence[Submit | Cancel], flags: int) -> bool:
        """Write a bundle, the lock held. False where the connection has ended: of a part of a frame nothing is done."""
        bundle = Up(self.session, self._sequence, self._received, 0, False, messages)
        try:
            self._socket.sendall(b"".join(encode_frame(to_plain(bundle))), flags)
        except OSError:
            return False
        self._sequence += 1
        self._sent = [bundle]
        return True

    def _receive(self, call: RoutedCall) -> Any:
        """The last word on the call."""
        while True:
            count = self._socket.recv_into(self._reader.get_buffer())
            if not count:
                raise ConnectionResetError("the worker closed the connection")
            self._reader.filled(count)
            last = None
            for content in self._contents:
                down = from_plain(Down, content)
                self._received = down.sequence
                for message in down.messages:
                    if message.call_id == call.number:
                        last = message
            self._contents.clear()
            if call.deadline is not None:
                self._socket.settimeout(None if last else max(_SHORTEST_S, call.deadline + VERDICT_S - clock.now()))
            if last is not None:
                return last

    def _give_up(self, call: RoutedCall) -> None:
        """Nobody waits for the call any more. What an interruption left of the connection is not used again."""
        call.over = True
        with self._lock:
            if not self.closed:
                self._write([Cancel(call.number)], socket.MSG_DONTWAIT)
            self.closed = True

    def _taken_up(self) -> TakenUp:
        return TakenUp(self._sequence, self._received, self._sent, self._tcp)

    # --- any thread -------------------------------------------------------------------------------------------------

    def retire(self) -> None:
        """Send no more calls this way; one that is under way comes to its end."""
        with self._lock:
            self.closed = True

    def hang_up(self) -> None:
        """Cancel what is under way, and wake the thread that waits for it."""
        with self._lock:
            if (call := self.call) is not None and not self.closed:
                self._write([Cancel(call.number)], socket.MSG_DONTWAIT)
            self.closed = True
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let the connection go, saying what has arrived; for whom it belongs to."""
        with self._lock:
            self.closed = True
            self._write([], socket.MSG_DONTWAIT)
            give_to_children(self._socket)
            self._socket.close()


def _is_large(packed: Packed | None) -> bool:
    return type(packed) is Payload or (type(packed) is bytes and len(packed) > LARGEST_BYTES)


class ExpressWays:
    """The express ways of one router. `take` and `give_back` are for any thread, the rest for the router's loop."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.busy: set[Express] = set()
        # Methods whose results are large: those go by the lane.
        self.large: set[str] = set()
        self._idle: deque[Express] = deque()
        self._ways: dict[Link, Express] = {}
        self._opening: dict[Link, asyncio.Task[None]] = {}
        self._wanted = False
        self._closed = False

    def take(self, call: RoutedCall) -> Express | None:
        """A way for this call, whose caller will wait; None where it is to go by the router. Ways are used in turn.

        Beside other calls none is given: they share bundles, and the router knows which worker has the least to do.
        """
        if (
            not self.router.is_quiet
            or _is_large(call.arguments)
            or _is_large(call.plan.parameters)
            or call.plan.method in self.large
        ):
            return None
        try:
            return self._idle.popleft()
        except IndexError:
            if not self._wanted:
                self._wanted = True
                self.router.post(self._open)
            return None

    def give_back(self, way: Express) -> None:
        """A thread has done with it."""
        if not way.closed:
            self._idle.append(way)
            if way.closed:  # meanwhile
                self._close_idle(way)
        else:
            way.close()
            self.router.post(self._replace, way)

    def _close_idle(self, way: Express) -> None:
        with contextlib.suppress(ValueError):
            self._idle.remove(way)  # so it is ours, and nobody else closes it
            way.close()

    # --- on the router's loop ---------------------------------------------------------------------------------------

    def enter(self, link: Link) -> None:
        """A worker may be used: it gets a way, too, where threads have asked for ways."""
        room = len(self._ways) + len(self._opening) < MOST_WAYS
        if self._wanted and room and not self._closed and link not in self._ways and link not in self._opening:
            self._opening[link] = asyncio.get_running_loop().create_task(self._connect(link))

    def _replace(self, way: Express) -> None:
        if self._ways.get(way.link) is way:
            del self._ways[way.link]
            self.enter(way.link)

    def leave(self, link: Link) -> None:
        """A worker may not be used any more; a call that is under way there goes on."""
        if (opening := self._opening.pop(link, None)) is not None:
            opening.cancel()
        if (way := self._ways.pop(link, None)) is not None:
            way.retire()
            self._close_idle(way)
            self._open()  # there is room for another worker's

    def close(self) -> None:
        """End all ways; whoever waits for a call on one is woken."""
        self._closed = True
        for link in [*self._ways, *self._opening]:
            self.leave(link)
        for way in list(self.busy):
            way.hang_up()

    def _open(self) -> None:
        for link in self.router.ready_links():
            self.enter(link)

    async def _connect(self, link: Link) -> None:
        session = self.router.new_session()
        connected = None
        try:
            connected = await link.lane.connect_another(session)
        except Exception as error:  # it may be too busy, or frozen
            log.debug("no express way to a worker: %r", error)
            asyncio.get_running_loop().call_later(TRY_AGAIN_S, self._open)
        # Unless it was to be given up while it came to pass: `wait_for` may not pass a cancellation on.
        wanted = self._opening.get(link) is asyncio.current_task()
        if wanted:
            del self._opening[link]
        if connected is None:
            return
        if not wanted:
            connected.close()
            return
        try:
            way = self._ways[link] = Express(self, link, connected, session)
        except OSError:  # it was reset meanwhile
            connected.close()
            asyncio.get_running_loop().call_later(TRY_AGAIN_S, self._open)
            return
        self._idle.append(way)
