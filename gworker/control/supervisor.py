"""When a pool is without hope, and how many of its workers may be killed at once. Pure.

What follows from the failures of one place in the pool is decided by its `Slot`.
"""

from __future__ import annotations

from collections.abc import Iterable

# A pool without hope is tried again this often.
RETRY_FAILED_S = 60.0


def patience(workers: int) -> int:
    """How many failures are borne with while so many workers are to come up."""
    return max(3, min(3 * workers, 20))


class Hope:
    """Whether a pool whose starts fail is worth waiting for: not after the first `patience(floor)` have all failed."""

    def __init__(self, floor: int) -> None:
        self._patience = patience(floor)
        self.failed_starts = 0
        self.has_served = False
        self.next_try_at = float("-inf")
        self.last_error: str | None = None

    @property
    def lost(self) -> bool:
        """Whether no start has ever succeeded, and enough have failed."""
        return not self.has_served and self.failed_starts >= self._patience

    def start_succeeded(self) -> None:
        """A worker is ready."""
        self.has_served = True
        self.failed_starts = 0
        self.last_error = None

    def start_failed(self, error: str, now: float) -> None:
        """A start failed; `error` is the traceback."""
        self.failed_starts += 1
        self.last_error = error
        self.next_try_at = now + RETRY_FAILED_S

    def begin_anew(self) -> None:
        """Nobody wants the pool any more: whoever does next is not to pay for what failed before."""
        self.failed_starts = 0
        self.has_served = False
        self.last_error = None


class KillBudget:
    """How many workers of a pool may be killed by probes at once: max(1, 10 %), and one if more than half fail.

    A kill is over when the old process is gone and its place has a worker that is ready again. Where the place was
    given up, because another stands in for it, it is over when the pool is whole.
    """

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._failed_at: dict[str, float] = {}
        self._correlated = False

    def failed(self, worker_id: str, now: float) -> None:
        """A liveness probe of this worker has failed for good."""
        self._failed_at[worker_id] = now

    def allowance(self, pool_size: int, period_s: float, now: float, *, condemned: int = 0) -> int:
        """How many more may be killed now, of a pool of so many workers, probed every `period_s`.

        `condemned` have failed and are not dealt with. While there are any, what they failed together is not forgotten:
        a replacement may well take longer than a period.
        """
        self._failed_at = {w: at for w, at in self._failed_at.items() if now - at <= period_s}
        self._correlated = 2 * len(self._failed_at) > pool_size or (self._correlated and condemned > 0)
        allowed = 1 if self._correlated else max(1, pool_size // 10)
        return max(0, allowed - len(self._open))

    def kill(self, worker_id: str, slot: int) -> None:
        """This worker is killed."""
        self._open[worker_id] = slot

    def settle(
        self, present: Iterable[str], ready_slots: Iterable[int], slots: Iterable[int], *, whole: bool = True
    ) -> None:
        """Close the kills whose worker is not `present` any more and whose slot is ready, or is no more and not missed.

        The pool is `whole` when as many workers are ready as it wants.
        """
        if self._open:
            present, made_good = set(present), set(ready_slots)
            if whole:
                made_good |= set(self._open.values()).difference(slots)
            self._open = {w: s for w, s in self._open.items() if w in present or s not in made_good}

    @property
    def open(self) -> dict[str, int]:
        """The kills under way: the worker and its slot."""
        return dict(self._open)
