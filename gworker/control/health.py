"""What is known of the health of one worker, and whether it is to serve. Pure: it is told verdicts, errors and time.

Three things take a worker out of the routing: a readiness probe, a liveness probe (which also condemns it), and passive
health: system errors in a row, as routers meet them. A worker that *said* that it is not well is never used; one that
only did not answer, or whose calls failed, is doubtful, and better than none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from gworker.observe.status import ProbeStatus
from gworker.probe import Probe, ProbeState, Verdict

# System errors in a row that take a worker out of the routing.
ERRORS_IN_A_ROW = 5
# For so long the first time, twice as long the second, ... and never longer than LONGEST_EJECTION_S.
EJECTION_S = 30.0
LONGEST_EJECTION_S = 300.0
# Without an ejection for this long the record is clean again.
FORGET_EJECTIONS_S = 600.0


@dataclass(frozen=True)
class _Row:
    """System errors in a row as one router counts them; `spent` of them have taken the worker out already."""

    count: int
    spent: int
    heard_at: float


class Health:
    """The probes and the passive health of one worker."""

    def __init__(self, probes: Iterable[Probe]) -> None:
        self.latest: dict[Probe, ProbeStatus] = {}
        self.condemned_at: float | None = None
        self._states = {probe: ProbeState(probe) for probe in probes}
        self._failing: dict[Probe, None] = {}
        self._denied: set[Probe] = set()
        self._rows: dict[str, _Row] = {}
        self._ejected_until = float("-inf")
        self._ejections = 0
        self._ejection_s = 0.0

    @classmethod
    def restored(cls, probes: Iterable[Probe], failing: Iterable[tuple[Probe, bool]], now: float) -> Health:
        """The health of a worker of which was written down what is `failing`."""
        health = cls(probes)
        for probe, denied in failing:
            if (state := health._states.get(probe)) is not None:
                state.healthy, state.consecutive_failures = False, probe.failures
                health._failing[probe] = None
                if denied:
                    health._denied.add(probe)
        health.condemned_at = now if health.condemning is not None else None
        return health

    @property
    def failing(self) -> tuple[tuple[Probe, bool], ...]:
        """The probes that have failed as often as they may, and whether an answer has said so, not only silence."""
        return tuple((probe, probe in self._denied) for probe in self._failing)

    def record(self, probe: Probe, verdict: Verdict, latency_s: float, reason: str, now: float) -> bool | None:
        """Count a verdict. False if it made the probe fail for good, True if it passes again, None if neither."""
        self.latest[probe] = ProbeStatus(probe.method, probe.kind, verdict.name, latency_s * 1000.0, reason)
        change = self._states[probe].record(verdict)
        if change is False:
            self._failing[probe] = None
        elif change is True:
            del self._failing[probe]
        if verdict is Verdict.FAILED:
            self._denied.add(probe)
        elif verdict is Verdict.PASSED and probe not in self._failing:
            self._denied.discard(probe)
        if self.condemning is None:
            self.condemned_at = None
        elif self.condemned_at is None:
            self.condemned_at = now
        return change

    def count_errors(self, router: str, in_a_row: int, now: float) -> bool:
        """A router has met so many system errors in a row. True if that takes the worker out of the routing.

        Routers that have met some say so again and again: what one has not repeated for long is of one that is gone.
        Each error counts once: the row of a worker that is used although it is out, because there are too few others,
        goes on, and takes it out again when it has grown by as much.
        """
        rows = {r: row for r, row in self._rows.items() if now - row.heard_at < EJECTION_S}
        before = rows.pop(router, None)
        if in_a_row:
            spent = before.spent if before is not None and in_a_row >= before.count else 0
            rows[router] = _Row(in_a_row, spent, now)
        self._rows = rows
        if self.ejected(now) or sum(row.count - row.spent for row in rows.values()) < ERRORS_IN_A_ROW:
            return False
        if now - self._ejected_until >= FORGET_EJECTIONS_S:
            self._ejections = 0
        self._ejections += 1
        self._ejection_s = min(EJECTION_S * self._ejections, LONGEST_EJECTION_S)
        self._ejected_until = now + self._ejection_s
        self._rows = {r: replace(row, spent=row.count) for r, row in rows.items()}
        return True

    def ejected(self, now: float) -> bool:
        """Whether passive health keeps it out of the routing."""
        return now < self._ejected_until

    def serves(self, now: float) -> bool:
        """Whether it is to be sent inputs."""
        return not self._failing and not self.ejected(now)

    @property
    def said_no(self) -> bool:
        """Whether a probe that fails has answered so, and not only with silence, since it last was well."""
        return any(probe in self._denied for probe in self._failing)

    @property
    def condemned(self) -> bool:
        """Whether a liveness probe has failed as often as it may: the worker is to be replaced."""
        return self.condemned_at is not None

    @property
    def condemning(self) -> Probe | None:
        """The liveness probe that failed."""
        return next((probe for probe in self._failing if probe.kind == "liveness"), None)

    def why(self, now: float) -> str:
        """Why it does not serve, in words; empty if it does."""
        if self._failing:
            probe = self.condemning or next(iter(self._failing))
            seen = self.latest.get(probe)
            detail = f": {seen.reason}" if seen is not None and seen.reason else ""
            return f"{probe.kind} probe {probe.method} failed {probe.failures} times{detail}"
        return self.why_ejected if self.ejected(now) else ""

    @property
    def why_ejected(self) -> str:
        """Why passive health took it out of the routing, and for how long."""
        return f"{ERRORS_IN_A_ROW} system errors in a row: out of the routing for {self._ejection_s:g} s"
