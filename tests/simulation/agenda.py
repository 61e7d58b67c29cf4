"""Time in a simulation: what is to happen when. Nothing waits; time jumps from one event to the next."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class Entry:
    """Something that is to happen, unless it is cancelled."""

    __slots__ = ("_action", "_args", "when")

    def __init__(self, when: float, action: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.when = when
        self._action: Callable[..., object] | None = action
        self._args = args

    def cancel(self) -> None:
        """It will not happen."""
        self._action, self._args = None, ()

    def happen(self) -> None:
        """It happens now."""
        action, self._action = self._action, None
        if action is not None:
            action(*self._args)


class Agenda:
    """A clock, and a heap of entries. What is due at the same instant happens in the order in which it was put down."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._heap: list[tuple[float, int, Entry]] = []
        self._numbers = itertools.count()

    def at(self, when: float, action: Callable[..., object], *args: Any) -> Entry:
        """Put something down for an instant; one that has passed is now."""
        entry = Entry(max(when, self.now), action, args)
        heapq.heappush(self._heap, (entry.when, next(self._numbers), entry))
        return entry

    def after(self, delay_s: float, action: Callable[..., object], *args: Any) -> Entry:
        """Put something down for so many seconds from now."""
        return self.at(self.now + delay_s, action, *args)

    def run(self, seconds: float, *, until: Callable[[], bool] | None = None) -> bool:
        """Let so much time pass, or less: until a condition holds after something happened. True if it does."""
        end = self.now + seconds
        if until is not None and until():
            return True
        while self._heap and self._heap[0][0] <= end:
            self.now, _, entry = heapq.heappop(self._heap)
            entry.happen()
            if until is not None and until():
                return True
        self.now = end
        return False
