"""Work for an event loop: handed over from other threads, or put off to the end of the turn it is in.

What threads hand over together wakes the loop once, and is done in turns of some letters at a time, so that what a turn
brings about leaves the process before the next turn begins.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

# The most letters in one turn: enough to make the cost of a turn disappear, few enough that the other side of a
# connection has something to do meanwhile.
TURN = 64
# How long a thread that is far ahead of a loop waits for it at most: as long as Python lets a thread keep its lock.
AHEAD_S = 0.005


class Turn:
    """What is due once this turn of a loop ends, in the order it was asked for; used on that loop only.

    `with turn:` surrounds a turn. Outside of one the loop begins one soon.
    """

    __slots__ = ("_due", "_loop", "_open")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._due: deque[Callable[[], object]] = deque()
        self._open = False

    def at_end(self, action: Callable[[], object]) -> None:
        """Have `action()` called when the turn ends; whoever asks sees to it that it asks once."""
        self._due.append(action)
        if not self._open and len(self._due) == 1 and (loop := self._loop()) is not None:
            loop.call_soon(self._end)

    def _end(self) -> None:
        self._open = True
        due = self._due
        try:
            while due:
                action = due.popleft()
                try:
                    action()
                except Exception as error:  # at the cost neither of what else is due, nor of whoever's turn it was
                    self._report(action, error)
        finally:
            self._open = False
            if due and (loop := self._loop()) is not None:  # something would end the process
                loop.call_soon(self._end)

    def _report(self, action: Callable[[], object], error: Exception) -> None:
        if (loop := self._loop()) is not None:
            loop.call_exception_handler({"message": f"{action!r} failed inside gworker", "exception": error})

    def __enter__(self) -> None:
        self._open = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


class Mailbox:
    """The way into one loop. `post` is for any thread, the loop's own among them.

    `paced`: a thread that has posted more than a turn's worth, and left the loop no chance to run, waits for its next
    turn. For a loop takes the interpreter's lock several times in each turn, and waits 5 ms for it each time, while the
    other end of its connections has nothing to do. Not for two loops that post to each other.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, paced: bool = False) -> None:
        self._loop = weakref.ref(loop)
        self._turn = turn_of(loop)
        self._letters: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._woken = False
        self._paced = paced
        self._ahead = 0
        self._waiting: list[threading.Lock] = []

    def __len__(self) -> int:
        return len(self._letters)

    def post(self, action: Callable[..., object], *args: Any) -> None:
        """Have `action(*args)` called on the loop soon, in the order of posting. It must not raise.

        Raises RuntimeError when the loop is closed.
        """
        self._letters.append((action, args))
        # Without a lock: at worst two threads both wake the loop. `_deliver` takes the flag down before it looks.
        if not self._woken:
            self._woken = True
            self._ahead = 0
            self._wake()
        elif self._paced:
            self._ahead += 1
            if self._ahead >= TURN:
                self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        self._ahead = 0
        if asyncio._get_running_loop() is self._loop():
            return
        turn = threading.Lock()
        turn.acquire()
        self._waiting.append(turn)
        if self._letters:  # or the turn is over already
            turn.acquire(timeout=AHEAD_S)

    def _wake(self) -> None:
        loop = self._loop()
        try:
            if loop is None:
                raise RuntimeError("Event loop is closed")
            if loop is asyncio._get_running_loop():
                loop.call_soon(self._deliver)
            else:
                loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # nothing will ever be delivered: nor is it kept, and whoever posts the next is told, too
            self._letters.clear()
            self._woken = False
            raise

    def _deliver(self) -> None:
        self._woken = False
        letters = self._letters
        try:
            with self._turn:
                for _ in range(min(len(letters), TURN)):
                    action, args = letters.popleft()
                    action(*args)
        finally:
            while self._waiting:
                self._waiting.pop().release()
            if letters and not self._woken and (loop := self._loop()) is not None:
                self._woken = True
                loop.call_soon(self._deliver)


_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Turn] = weakref.WeakKeyDictionary()
_mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = weakref.WeakKeyDictionary()


def turn_of(loop: asyncio.AbstractEventLoop) -> Turn:
    """The turns of a loop, the same for all who ask."""
    return _of(loop, _turns, Turn)


def mailbox_of(loop: asyncio.AbstractEventLoop) -> Mailbox:
    """A loop's mailbox, the same for all who ask."""
    return _of(loop, _mailboxes, Mailbox)


def _of(
    loop: asyncio.AbstractEventLoop,
    known: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, T],
    make: Callable[[asyncio.AbstractEventLoop], T],
) -> T:
    found = known.get(loop)
    if found is None:
        # What was posted just before a loop was closed may hold the loop, which would hold what was posted for ever.
        for reference in known.keyrefs():
            if (other := reference()) is not None and other.is_closed():
                known.pop(other, None)
        found = known.setdefault(loop, make(loop))
    return found
