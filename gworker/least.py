"""Who has the least of something, found in O(log n). Pure: for routers choosing workers, and workers sharing places.

What is measured may grow unseen: that is found out when somebody looks. Where it may have fallen, `put` has to be told.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

# Entries that are out of date are swept out once there are so many more of them than of others.
_SWEEP = 16


class Least(Generic[T]):
    """Those that compete. `measure` says how much one has; `tie` puts equals in order, as it was when measured last."""

    def __init__(self, measure: Callable[[T], float], tie: Callable[[T], float]) -> None:
        self._measure = measure
        self._tie = tie
        self._numbers = itertools.count()
        self._entries: dict[T, tuple[float, float, int, T]] = {}
        # Holds every entry of `_entries`, none above what it measures now, and some that are out of date.
        self._heap: list[tuple[float, float, int, T]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: T) -> bool:
        return item in self._entries

    def __iter__(self) -> Iterator[T]:
        return iter(self._entries)

    def put(self, item: T, tie: float | None = None) -> None:
        """It competes from now on, or has to be measured again, as it may have less. `tie` is one for this time."""
        measured = self._measure(item)
        known = self._entries.get(item)
        if known is not None and len(self._entries) == 1 and known[0] <= measured:
            return  # alone, the order does not matter
        entry = self._entries[item] = (measured, self._tie(item) if tie is None else tie, next(self._numbers), item)
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._entries) + _SWEEP:
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)

    def drop(self, item: T) -> bool:
        """It does not compete any more; False if it did not."""
        return self._entries.pop(item, None) is not None

    def first(self) -> T | None:
        """The one that has the least, which goes on competing; None where nobody competes."""
        heap = self._heap
        while heap:
            entry = heap[0]
            item = entry[3]
            if self._entries.get(item) is not entry:
                heapq.heappop(heap)
                continue
            if len(heap) == 1:
                return item
            measured = self._measure(item)
            if measured <= entry[0]:
                return item
            fresh = self._entries[item] = (measured, self._tie(item), next(self._numbers), item)
            heapq.heapreplace(heap, fresh)
        return None
