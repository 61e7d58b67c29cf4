"""Where the time of calls goes: histograms for many of them, words for one that took too long.

- *Queue time*: from the submit until a worker holds the input, and what the transport takes both ways.
- *Batch wait*: from then until the invocation begins: the window of a batch, a batch that runs, a thread or a loop.
- *Run time*: the invocation itself; of a stream until its last item, the waits for its consumer among it.

The worker measures the latter two with its own clock, where they happen, and sends them with its last word on an input.
The router, which knows the whole, has the first as the rest. Each attempt of a call counts by itself, from when it was
queued, so that no backoff is in it, whatever came of it; one that was cancelled, or was lost with its worker, does not
count. Of one whose limit passed counts what it had spent until then.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Literal, NamedTuple, TypeAlias

from gworker.errors import DeadlineExceeded

# The upper bounds of the buckets; one more holds what is longer.
BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0,
    100.0, 250.0, 500.0,
)  # fmt: skip
# Of more times than this in one report a sample stands for all in the buckets; number and sum are exact.
_MOST_SORTED = 1024


class Histogram:
    """Times in seconds: how many were in each bucket of `BUCKETS_S`, and above them, and their sum."""

    __slots__ = ("counts", "sum_s")

    def __init__(self, times_s: Sequence[float] = ()) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = sum(times_s)
        each = len(times_s) // _MOST_SORTED + 1
        sample = times_s[::each]
        for bucket, count in Counter(map(bisect_left, repeat(BUCKETS_S), sample)).items():
            self.counts[bucket] = each * count
        if sample:  # the last stands for those that are left
            self.counts[bisect_left(BUCKETS_S, sample[-1])] -= each * len(sample) - len(times_s)

    def add(self, other: Histogram) -> None:
        """Count the times of another as well."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum_s += other.sum_s

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.counts)

    @property
    def mean_s(self) -> float:
        """Their mean; 0.0 where there are none."""
        return self.sum_s / self.count if self.count else 0.0

    def quantile_s(self, share: float) -> float:
        """About the time that this share of them does not exceed, as if those of a bucket lay evenly in it.

        >>> Histogram([0.3, 0.4, 0.45, 0.5]).quantile_s(0.5)
        0.375
        """
        left = share * self.count
        for bucket, count in enumerate(self.counts):
            if count and count >= left:
                lower = BUCKETS_S[bucket - 1] if bucket else 0.0
                upper = BUCKETS_S[bucket] if bucket < len(BUCKETS_S) else lower
                return lower + (upper - lower) * left / count
            left -= count
        return 0.0


class Times(NamedTuple):
    """The three of one method."""

    queue: Histogram
    batch_wait: Histogram
    run: Histogram

    def add(self, other: Times) -> None:
        """Count those of another as well."""
        for mine, more in zip(self, other, strict=True):
            mine.add(more)


# Queue time, batch wait and run time of one attempt; None where it did not come so far.
Spent: TypeAlias = "tuple[float | None, float | None, float | None]"


class Tally(dict[str, list[Spent]]):
    """What attempts have spent, by method, until it is taken. To count one is on the path of each call: an `append`.

    Threads that make their calls themselves count, too. One that is just about to while all is taken may be left out.
    """

    def __missing__(self, method: str) -> list[Spent]:
        return self.setdefault(method, [])

    def take(self) -> dict[str, Times]:
        """What was counted since the last time, by method."""
        return {method: Times(*map(_histogram, zip(*self.pop(method), strict=True))) for method in list(self)}


def _histogram(column: tuple[float | None, ...]) -> Histogram:
    return Histogram([time_s for time_s in column if time_s is not None])


def add_all(times: dict[str, Times], more: Mapping[str, Times]) -> None:
    """Count those of `more` in `times` as well, by method."""
    for method, counted in more.items():
        known = times.get(method)
        if known is None:
            known = times[method] = Times(Histogram(), Histogram(), Histogram())
        known.add(counted)


def past_limit(
    label: str,
    limit: Literal["timeout_s", "deadline_s"],
    *,
    timeout_s: float | None,
    wait_s: float | None,
    run_s: float | None,
    queue_s: float | None = None,
    total_s: float | None = None,
    about: str = "",
) -> DeadlineExceeded:
    """The error of a call whose limit passed in a worker, saying where the time went, as far as it is known here."""
    if limit == "timeout_s":
        passed = f"ran longer than its timeout_s of {timeout_s:g} s"
    else:
        passed = "passed its deadline_s" if total_s is None else f"passed its deadline_s after {seconds(total_s)}"
    parts = [
        f"{seconds(spent_s)} {how}"
        for spent_s, how in ((queue_s, "queued"), (wait_s, "batch wait"), (run_s, "running"))
        if spent_s is not None
    ]
    where = "worker queue" if run_s is None and limit == "deadline_s" else "running"
    return DeadlineExceeded(f"{label} {passed}: {', '.join(parts)}{about}", limit=limit, where=where)


def seconds(time_s: float) -> str:
    """A time in words: three digits, and none of what nobody would miss.

    >>> [seconds(x) for x in (1.2345, 0.0123456, 0.0000123, 0.0, 123.4567)]
    ['1.23 s', '0.0123 s', '0 s', '0 s', '123 s']
    """
    return f"{time_s:.3g} s" if abs(time_s) >= 0.0005 else "0 s"
