"""What became of the calls of one step. It is told the times and has no clock of its own.

Which calls count differs, because what would be left out differs:

- In a closed loop for a time, those that *ended* within the window. Were those counted that started in it, the last
  ones would either be cut off, the slow ones first, or run with fewer callers beside them.
- In an open loop, those that were *due* within the window, however late they ended. Latency is counted from the moment
  a call was due, not from the moment it was sent: else a stall of the server, or of this process, would hide all the
  calls that users would have made meanwhile ("coordinated omission": Gil Tene, "How NOT to Measure Latency", and his
  wrk2; "Open Versus Closed: A Cautionary Tale", Schroeder, Wierman and Harchol-Balter, NSDI 2006).
- Where a number of requests is wanted, the first so many that were due after the warm-up.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from gworker.observe.times import Spent

# As much of a message as is kept as an example.
_SHOWN = 300


@dataclass(frozen=True)
class Window:
    """When calls count. `most`: the first so many that are due; `by_end`: those that ended within, not those due."""

    begin: float
    end: float = math.inf
    most: int | None = None
    by_end: bool = False

    @classmethod
    def opening(cls, begin: float, duration_s: float | None, requests: int | None, *, is_open: bool) -> Window:
        """The window of one step."""
        end = math.inf if duration_s is None else begin + duration_s
        return cls(begin, end, requests, by_end=not is_open and requests is None)


@dataclass
class Failures:
    """Calls that ended with one type of error, and what the first of them said."""

    count: int
    example: str


@dataclass
class Recorder:
    """The calls of one step. `latencies`, `first_items`, `gaps`, `lags`, `queued`, `waited` and `ran` are in seconds.

    The latter three are where the time of calls that ended well went, of the last attempt of each.

    `good`: calls that ended well within `slo_s`; of a stream, whose first item came within it. `answered` ended well
    within the window and `ended` at all, whether they count or not.
    """

    window: Window
    slo_s: float | None = None
    latencies: array[float] = field(default_factory=lambda: array("d"))
    first_items: array[float] = field(default_factory=lambda: array("d"))
    gaps: array[float] = field(default_factory=lambda: array("d"))
    lags: array[float] = field(default_factory=lambda: array("d"))
    queued: array[float] = field(default_factory=lambda: array("d"))
    waited: array[float] = field(default_factory=lambda: array("d"))
    ran: array[float] = field(default_factory=lambda: array("d"))
    failures: dict[str, Failures] = field(default_factory=dict)
    due: int = 0
    dropped: int = 0
    good: int = 0
    answered: int = 0
    ended: int = 0
    items: int = 0
    last_end: float = 0.0

    @property
    def is_full(self) -> bool:
        """Whether as many calls as were wanted are under way or have ended."""
        return self.window.most is not None and self.due >= self.window.most

    @property
    def failed(self) -> int:
        """Calls that count and ended with an error."""
        return sum(failures.count for failures in self.failures.values())

    @property
    def unfinished(self) -> int:
        """Calls that were due and have not ended."""
        return 0 if self.window.by_end else self.due - self.dropped - self.failed - len(self.latencies)

    def start(self, due: float) -> bool:
        """A call is due: whether it counts, as far as its start decides that."""
        window = self.window
        if window.by_end or not window.begin <= due < window.end or self.is_full:
            return False
        self.due += 1
        return True

    def drop(self, due: float) -> None:
        """A call was due and not sent, because too many were under way."""
        if self.start(due):
            self.dropped += 1

    def late(self, now: float, lag_s: float) -> None:
        """How late a call was sent, or this process did something else that it had meant to do by now."""
        if self.window.begin <= now <= self.window.end:
            self.lags.append(lag_s)

    def item(self, now: float) -> None:
        """An item of a stream came; those of streams that outlast the window count for the rate of items, too."""
        self.items += self.window.begin <= now <= self.window.end

    def returned(self, counts: bool, due: float, ended: float, spent: Spent | None = None) -> None:
        """A call ended well, whose time was `spent` like this."""
        self._answered(ended)
        if self._counts(counts, ended):
            self._well(due, ended, ended - due, spent)

    def streamed(
        self, counts: bool, due: float, items: Sequence[float], ended: float, spent: Spent | None = None
    ) -> None:
        """A stream ended well, whose items came at these times."""
        self._answered(ended)
        if self._counts(counts, ended):
            first = (items[0] if items else ended) - due
            self._well(due, ended, first, spent)
            self.first_items.append(first)
            self.gaps.extend(after - before for before, after in itertools.pairwise(items))

    def raised(self, counts: bool, ended: float, error: BaseException) -> None:
        """A call ended with an error."""
        self.ended += self.window.begin <= ended <= self.window.end
        if self._counts(counts, ended):
            self.last_end = max(self.last_end, ended)
            name = type(error).__name__
            known = self.failures.get(name)
            if known is None:
                self.failures[name] = Failures(1, str(error)[:_SHOWN])
            else:
                known.count += 1

    def close(self, now: float) -> float:
        """Nothing more will be told: the seconds that rates are over.

        A step that was interrupted ends now, one that ends with a number of requests with the last of them.
        """
        end = min(self.window.end, now)
        if self.is_full:
            end = now if self.unfinished else self.last_end
        return max(0.0, end - self.window.begin)

    def _counts(self, counts: bool, ended: float) -> bool:
        return self.window.begin <= ended <= self.window.end if self.window.by_end else counts

    def _answered(self, ended: float) -> None:
        if self.window.begin <= ended <= self.window.end:
            self.answered += 1
            self.ended += 1

    def _well(self, due: float, ended: float, promised_s: float, spent: Spent | None) -> None:
        self.latencies.append(ended - due)
        for times, time_s in zip((self.queued, self.waited, self.ran), spent or (), strict=False):
            if time_s is not None:
                times.append(time_s)
        self.last_end = max(self.last_end, ended)
        if self.slo_s is not None and promised_s <= self.slo_s:
            self.good += 1
