"""Which waiting inputs form the next batch, and when it may leave. Pure: it is told the time.

The engine takes the permit to run first and calls `close` as late as it can, so what arrives while a batch runs forms
one full batch. The window starts at the first waiting input and never moves.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Generic, TypeVar

from gworker.decorators import BatchSpec

T = TypeVar("T")


@dataclass(frozen=True)
class _Entry(Generic[T]):
    item: T
    arrived: float
    weight: float
    cap: int
    place: tuple[int, int]


class BatchQueue(Generic[T]):
    """Inputs of one method and one set of parameter values that wait to be run together, each caller's as they came."""

    def __init__(self, spec: BatchSpec) -> None:
        self._max_size = spec.max_batch_size
        self._max_weight = spec.max_weight
        self._wait_s = spec.wait_s
        self._entries: dict[int, _Entry[T]] = {}
        self._arrivals = itertools.count()
        # In the order in which they leave. Places differ, so that entries themselves are never compared.
        self._line: list[tuple[tuple[int, int], _Entry[T]]] = []
        self._weight = 0.0
        self._capped = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, item: T, now: float, *, weight: float = 1.0, cap: int = 0, turn: int = 0) -> None:
        """Queue `item`. `weight` counts against `max_weight`; `cap` > 0 bounds the size of any batch it is part of.

        The lower `turn` goes first; equal ones go as they came.
        """
        place = (turn, next(self._arrivals))
        entry = _Entry(item, now, weight, min(cap, self._max_size) if cap > 0 else self._max_size, place)
        self._entries[id(item)] = entry
        insort(self._line, (place, entry))
        self._weight += weight
        self._capped += entry.cap < self._max_size

    def remove(self, item: T) -> bool:
        """Forget `item`; False if it does not wait here."""
        entry = self._entries.pop(id(item), None)
        if entry is None:
            return False
        self._account_for_leaving(entry)
        return True

    @property
    def oldest(self) -> float:
        """When the first of the waiting inputs arrived; infinity when none waits."""
        for entry in self._entries.values():
            return entry.arrived
        return float("inf")

    @property
    def turn(self) -> float:
        """The turn of the input that is the first to leave; infinity when none waits."""
        return self._line[0][0][0] if self._line else float("inf")

    def ready_at(self) -> float:
        """The moment from which a batch may be closed: minus infinity for a full one, infinity for none."""
        if not self._entries:
            return float("inf")
        if self._is_full():
            return float("-inf")
        return self.oldest + self._wait_s

    def close(self) -> list[T]:
        """Take the next batch: by turns, as many as fit in size and weight, at least one."""
        batch = self._head()
        for entry in batch:
            del self._entries[id(entry.item)]
            self._account_for_leaving(entry)
        return [entry.item for entry in batch]

    def _is_full(self) -> bool:
        if len(self._entries) >= self._max_size:
            return True
        if self._max_weight is not None and self._weight >= self._max_weight:
            return True
        if self._capped:
            head = self._head()
            return len(head) < len(self._entries) or len(head) >= min(e.cap for e in head)
        return False

    def _head(self) -> list[_Entry[T]]:
        head: list[_Entry[T]] = []
        weight = 0.0
        cap = self._max_size
        for _, entry in self._line:
            cap = min(cap, entry.cap)
            if len(head) >= cap:
                break
            if head and self._max_weight is not None and weight + entry.weight > self._max_weight:
                break
            head.append(entry)
            weight += entry.weight
        return head

    def _account_for_leaving(self, entry: _Entry[T]) -> None:
        del self._line[bisect_left(self._line, (entry.place,))]
        self._capped -= entry.cap < self._max_size
        # An exact zero when empty: sums of floats drift.
        self._weight = self._weight - entry.weight if self._entries else 0.0
