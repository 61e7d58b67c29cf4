"""Which waiting inputs form the next batch, and when it may leave. Pure: it is told the time.

The engine takes the permit to run first and calls `close` as late as it can, so what arrives while a batch runs forms
one full batch. The window starts at the first waiting input and never moves.

Without a weight, inputs go first come, first served. With one, like weights go together: a batch is made of the input
that has waited longest, or one whose deadline comes near, and of those that are most like it (`packing`). None
starves: once more than `OVERTAKEN` times as many younger ones have left before an input as ever waited together,
batches are first come, first served until it has left. So no more than that many, and one batch, go before it out of
turn.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Generic, TypeVar

from gworker.decorators import BatchSpec
from gworker.worker.packing import Entry, Packing

T = TypeVar("T")

# Callers that send again when they are answered, their weights spread like the lengths of texts, come to about two.
OVERTAKEN = 4
# The deadline of an input comes near when it has waited for this part of the time that it had.
URGENT = 0.5


class BatchQueue(Generic[T]):
    """Inputs of one method and one set of parameter values that wait to be run together, each caller's as they came."""

    def __init__(self, spec: BatchSpec) -> None:
        self._max_size = spec.max_batch_size
        self._max_weight = spec.max_weight
        self._wait_s = spec.wait_s
        self._entries: dict[int, Entry[T]] = {}
        # In the order in which they leave where weights do not matter. Numbers differ: entries are never compared.
        self._line: list[tuple[int, int, Entry[T]]] = []
        self._packing: Packing[T] | None = None if spec.max_weight is None else Packing(spec.max_weight)
        self._weight = 0.0
        self._capped = 0
        self._hurried = 0
        self._arrivals = 0
        self._most = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(
        self, item: T, now: float, *, weight: float = 1.0, cap: int = 0, turn: int = 0, deadline: float | None = None
    ) -> None:
        """Queue `item`. `weight` counts against `max_weight`; `cap` > 0 bounds the size of any batch it is part of.

        The lower `turn` goes first; equal ones go as they came. One that has a `deadline` is not passed over any more
        when half of its time is over.
        """
        cap = min(cap, self._max_size) if cap > 0 else self._max_size
        urgent = float("inf") if deadline is None else now + URGENT * (deadline - now)
        entry = Entry(item, self._arrivals, turn, now, weight, cap, urgent)
        self._entries[id(item)] = entry
        insort(self._line, (turn, entry.number, entry))
        self._arrivals += 1
        self._most = max(self._most, len(self._entries))
        self._weight += weight
        self._capped += cap < self._max_size
        self._hurried += deadline is not None
        if self._packing is not None:
            self._packing.add(entry)

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
        return self._line[0][0] if self._line else float("inf")

    def ready_at(self) -> float:
        """The moment from which a batch may be closed: minus infinity for a full one, infinity for none."""
        if not self._entries:
            return float("inf")
        if self._is_full():
            return float("-inf")
        return self.oldest + self._wait_s

    def close(self, now: float) -> list[T]:
        """Take the next batch: as many as fit in size and weight, at least one, in order of arrival.

        By turns, and with a weight those that are like the one whose turn it is.
        """
        if self._packing is None or self._is_overtaken():
            batch = self._head()
        else:
            batch = self._packing.around(self._anchor(now))
        for entry in batch:
            del self._entries[id(entry.item)]
            self._account_for_leaving(entry)
        return [entry.item for entry in sorted(batch, key=lambda entry: entry.number)]

    def _is_full(self) -> bool:
        if len(self._entries) >= self._max_size:
            return True
        if self._max_weight is not None and self._weight >= self._max_weight:
            return True
        if self._capped:
            head = self._head()
            return len(head) < len(self._entries) or len(head) >= min(e.cap for e in head)
        return False

    def _is_overtaken(self) -> bool:
        """Whether too many younger ones have left before the first of the waiting inputs."""
        if not self._entries:
            return True
        left = self._arrivals - len(self._entries)
        # All that came before the first one have left; what has left besides is younger.
        return left - next(iter(self._entries.values())).number > OVERTAKEN * self._most

    def _anchor(self, now: float) -> Entry[T]:
        if self._hurried:
            hurried = min(self._entries.values(), key=lambda entry: entry.urgent)
            if hurried.urgent <= now:
                return hurried
        return self._line[0][2]

    def _head(self) -> list[Entry[T]]:
        head: list[Entry[T]] = []
        weight = 0.0
        cap = self._max_size
        for _, _, entry in self._line:
            cap = min(cap, entry.cap)
            if len(head) >= cap:
                break
            if head and self._max_weight is not None and weight + entry.weight > self._max_weight:
                break
            head.append(entry)
            weight += entry.weight
        return head

    def _account_for_leaving(self, entry: Entry[T]) -> None:
        del self._line[bisect_left(self._line, (entry.turn, entry.number))]
        self._capped -= entry.cap < self._max_size
        self._hurried -= entry.urgent < float("inf")
        if self._packing is not None:
            self._packing.remove(entry)
        # An exact zero when empty: sums of floats drift.
        self._weight = self._weight - entry.weight if self._entries else 0.0
