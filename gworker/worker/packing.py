"""Waiting inputs in order of their weight, and which of them share a batch with a given one. Pure.

A model pads the inputs of a batch to the largest, so a batch costs about its size times its heaviest input. Those
that go with a given input are its neighbours in weight, nearest first: each time the one that adds less padding, a
lighter one or a heavier one, and the older of two equals.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

# The heaviest input of a batch weighs at most so many times as much as the lightest: no input is padded to more.
LIKE = 1.5
# A batch that is lighter than this part of `max_weight`, padding included, takes unlike inputs, too: what a batch costs
# beyond its inputs (starting kernels, hops) would make several small ones dearer.
LIGHT = 1 / 16


@dataclass(frozen=True, eq=False)
class Entry(Generic[T]):
    """An input that waits. `number` counts arrivals, `turn` is its caller's, `cap` bounds its batch.

    It goes first from the instant `urgent` on.
    """

    item: T
    number: int
    turn: int
    arrived: float
    weight: float
    cap: int
    urgent: float


class Packing(Generic[T]):
    """The inputs that wait for one batched method with a weight. Adding and removing one costs O(log n) comparisons."""

    def __init__(self, max_weight: float) -> None:
        self._max_weight = max_weight
        # Numbers differ, so that entries themselves are never compared.
        self._sorted: list[tuple[float, int, Entry[T]]] = []

    def add(self, entry: Entry[T]) -> None:
        """Put it in its place."""
        insort(self._sorted, (entry.weight, entry.number, entry))

    def remove(self, entry: Entry[T]) -> None:
        """Take it out; it must be there."""
        del self._sorted[self._place(entry)]

    def around(self, anchor: Entry[T]) -> list[Entry[T]]:
        """The batch of `anchor`: as many neighbours as are like it and fit in size and weight. Nothing is taken out."""
        batch = [anchor]
        weight = heaviest = lightest = anchor.weight
        cap = anchor.cap
        lighter, heavier = self._lighter(self._place(anchor)), self._heavier(self._place(anchor) + 1)
        below, above = next(lighter, None), next(heavier, None)
        while len(batch) < cap and (below is not None or above is not None):
            padding_below = math.inf if below is None else heaviest - below.weight
            padding_above = math.inf if above is None else (above.weight - heaviest) * len(batch)
            chosen = below if padding_below <= padding_above else above
            assert chosen is not None
            top, bottom = max(heaviest, chosen.weight), min(lightest, chosen.weight)
            unlike = top > LIKE * bottom and top * (len(batch) + 1) > LIGHT * self._max_weight
            too_heavy = weight + chosen.weight > self._max_weight
            if not unlike and not too_heavy and len(batch) < chosen.cap:
                batch.append(chosen)
                weight, heaviest, lightest, cap = weight + chosen.weight, top, bottom, min(cap, chosen.cap)
            if chosen is above:
                above = None if unlike or too_heavy else next(heavier, None)
            elif unlike:
                below = None
            else:
                if too_heavy:
                    lighter = self._lighter(self._up_to(self._max_weight - weight, chosen))
                below = next(lighter, None)
        return batch

    def _place(self, entry: Entry[T]) -> int:
        return bisect_left(self._sorted, (entry.weight, entry.number))

    def _up_to(self, weight: float, passed: Entry[T]) -> int:
        """How many weigh at most `weight` and less than `passed`, which did not fit."""
        fitting = bisect_right(self._sorted, (weight, math.inf))
        return min(fitting, bisect_left(self._sorted, (passed.weight,)))

    def _heavier(self, start: int) -> Iterator[Entry[T]]:
        """Those from a place on, lightest first, of equals the oldest first."""
        for index in range(start, len(self._sorted)):
            yield self._sorted[index][2]

    def _lighter(self, end: int) -> Iterator[Entry[T]]:
        """Those before a place, heaviest first, of equals the oldest first."""
        while end:
            start = bisect_left(self._sorted, (self._sorted[end - 1][0],), 0, end)
            for index in range(start, end):
                yield self._sorted[index][2]
            end = start
