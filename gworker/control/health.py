"""What is known of the health of one worker, and whether it is to serve. Pure: it is told verdicts, errors and time.

Three things take a worker out of the routing: a readiness probe, a liveness probe (which also condemns it), and passive
health: system errors in a row, as routers meet them. A worker that *said* that it is not well is never used; one that
only did not answer, or whose calls failed, is doubtful, and better than none.
"""

from __future__ import annotations

from collections.abc import Iterable

from gworker.observe.status import ProbeStatus
from gworker.probe import Probe, ProbeState, Verdict

# System errors in a row that take a worker out of the routing.
ERRORS_IN_A_ROW = 5
# For so long the first time, twice as long the second, ... and never longer than LONGEST_EJECTION_S.
EJECTION_S = 30.0
LONGEST_EJECTION_S = 300.0
# Without an ejection for this long the record is clean again.
FORGET_EJECTIONS_S = 600.0


class Health:
    """The probes and the passive health of one worker."""

    def __init__(self, probes: Iterable[Probe]) -> None:
        self.latest: dict[Probe, ProbeStatus] = {}
        self.condemned_at: float | None = None
        self._states = {probe: ProbeState(probe) for probe in probes}
        self._errors: dict[str, int] = {}
        self._ejected_until = float("-inf")
        self._ejections = 0
        self._ejection_s = 0.0

    @classmethod
    def restored(cls, probes: Iterable[Probe], failing: Iterable[tuple[Probe, Verdict]], now: float) -> Health:
        """The health of a worker of which was written down what is `failing`."""
        health = cls(probes)
        for probe, last in failing:
            if (state := health._states.get(probe)) is not None:
                state.healthy, state.last = False, last
                state.consecutive_failures = probe.failures
        health.condemned_at = now if health._failing("liveness") else None
        return health

    @property
    def failing(self) -> tuple[tuple[Probe, Verdict], ...]:
        """The probes that have failed as often as they may, and what each said last."""
        return tuple((probe, state.last) for probe, state in self._states.items() if not state.healthy)

    def record(self, probe: Probe, verdict: Verdict, latency_s: float, reason: str, now: float) -> bool | None:
        """Count a verdict. False if it made the probe fail for good, True if it passes again, None if neither."""
        self.latest[probe] = ProbeStatus(probe.method, probe.kind, verdict.name, latency_s * 1000.0, reason)
        change = self._states[probe].record(verdict)
        if not self._failing("liveness"):
            self.condemned_at = None
        elif self.condemned_at is None:
            self.condemned_at = now
        return change

    def count_errors(self, router: str, in_a_row: int, now: float) -> bool:
        """A router has met so many system errors in a row. True if that takes the worker out of the routing."""
        if in_a_row:
            self._errors[router] = in_a_row
        else:
            self._errors.pop(router, None)
        if self.ejected(now) or sum(self._errors.values()) < ERRORS_IN_A_ROW:
            return False
        if now - self._ejected_until >= FORGET_EJECTIONS_S:
            self._ejections = 0
        self._ejections += 1
        self._ejection_s = min(EJECTION_S * self._ejections, LONGEST_EJECTION_S)
        self._ejected_until = now + self._ejection_s
        self._errors.clear()
        return True

    def ejected(self, now: float) -> bool:
        """Whether passive health keeps it out of the routing."""
        return now < self._ejected_until

    def serves(self, now: float) -> bool:
        """Whether it is to be sent inputs."""
        return not self.ejected(now) and all(state.healthy for state in self._states.values())

    @property
    def said_no(self) -> bool:
        """Whether a probe of it failed by an answer, not by silence."""
        return any(not s.healthy and s.last is Verdict.FAILED for s in self._states.values())

    @property
    def condemned(self) -> bool:
        """Whether a liveness probe has failed as often as it may: the worker is to be replaced."""
        return self.condemned_at is not None

    @property
    def condemning(self) -> Probe | None:
        """The liveness probe that failed."""
        return next(iter(self._failing("liveness")), None)

    def why(self, now: float) -> str:
        """Why it does not serve, in words; empty if it does."""
        for kind in ("liveness", "readiness"):
            for probe in self._failing(kind):
                seen = self.latest.get(probe)
                detail = f": {seen.reason}" if seen is not None and seen.reason else ""
                return f"{kind} probe {probe.method} failed {probe.failures} times{detail}"
        if self.ejected(now):
            return f"{ERRORS_IN_A_ROW} system errors in a row: out of the routing for {self._ejection_s:g} s"
        return ""

    def _failing(self, kind: str) -> list[Probe]:
        return [probe for probe, state in self._states.items() if probe.kind == kind and not state.healthy]
