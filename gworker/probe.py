"""Health probes: which method is asked how often, what its answers mean, and when they amount to a change.

Deciding is pure: `ProbeState` is told verdicts and knows no time; the worker asks, the supervisor acts.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gworker import checks
from gworker.errors import InvalidDefinition

ProbeKind = Literal["liveness", "readiness"]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One probe of a class. Make it with `Probe.on`."""

    method: str
    kind: ProbeKind = "liveness"
    period_s: float = 10.0
    timeout_s: float = 5.0
    failures: int = 3
    successes: int = 1
    initial_delay_s: float = 0.0

    def __post_init__(self) -> None:
        method: Any = self.method
        if not (isinstance(method, str) and method):
            name = getattr(method, "__name__", "health")
            raise InvalidDefinition(
                f"gw.Probe.on({checks.shown(method)}) was given; expected the name of a method: "
                f'write gw.Probe.on("{name}")'
            )
        where = f'gw.Probe.on("{self.method}")'

        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        checks.choice(where, "kind", self.kind, ("liveness", "readiness"))
        for name, example in (("period_s", 10), ("timeout_s", 5)):
            value = getattr(self, name)
            put(name, checks.number(where, name, value, above=True, example=example, unit="seconds"))
        put("failures", checks.whole(where, "failures", self.failures, least=1, example=3))
        put("successes", checks.whole(where, "successes", self.successes, least=1))
        put("initial_delay_s", checks.number(where, "initial_delay_s", self.initial_delay_s, unit="seconds"))

    @classmethod
    def on(
        cls,
        method: str,
        *,
        kind: ProbeKind = "liveness",
        period_s: float = 10,
        timeout_s: float = 5,
        failures: int = 3,
        successes: int = 1,
        initial_delay_s: float = 0,
    ) -> Probe:
        """Ask `method` for the worker's health every `period_s` seconds, first `initial_delay_s` after the start.

        The method takes no arguments. False, `{"ok": False}`, an exception, and no answer within `timeout_s` seconds
        are failures; anything else, None included, passes. After `failures` of them in a row a "liveness" probe has
        the worker replaced and a "readiness" probe takes it out of traffic, until `successes` answers in a row pass.

        >>> Probe.on("health", kind="readiness", period_s=2).failures
        3
        """
        return cls(
            method=method,
            kind=kind,
            period_s=period_s,
            timeout_s=timeout_s,
            failures=failures,
            successes=successes,
            initial_delay_s=initial_delay_s,
        )


class Verdict(enum.Enum):
    """What one run of a probe says."""

    PASSED = "passed"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    UNKNOWN = "unknown"


def verdict_of(result: Any) -> Verdict:
    """The verdict on what a probe returned: False and `{"ok": <falsy>}` failed, everything else passed."""
    try:
        failed = not result["ok"] if isinstance(result, Mapping) and "ok" in result else _is_false(result)
    except Exception:  # a value without a truth value, such as an array, vouches for nothing
        return Verdict.FAILED
    return Verdict.FAILED if failed else Verdict.PASSED


def _is_false(value: Any) -> bool:
    if value is False:
        return True
    # What comparing arrays and tensors yields: a bool of numpy or of torch.
    is_array_bool = getattr(value, "shape", None) == () and "bool" in str(getattr(value, "dtype", ""))
    return is_array_bool and not value


# How much longer than its time-out a probe may keep the supervisor waiting: a process that is frozen says nothing.
ANSWER_GRACE_S = 2.0


def worst_case_detection_s(probe: Probe, *, frozen: bool = False) -> float:
    """Seconds until a fault that begins right after a passed run has been told `failures` times.

    The runs are a period apart, or a time-out where that is longer, because there is one in flight at a time. A hanging
    probe may be excused once, by an input that finished just before the hang. `frozen` is about a process that
    does not answer at all: nobody can excuse it, and each run costs `ANSWER_GRACE_S` more.
    """
    timeout_s = probe.timeout_s + ANSWER_GRACE_S if frozen else probe.timeout_s
    apart_s = max(probe.period_s, timeout_s)
    runs = probe.failures if frozen else probe.failures + 1
    first_s = probe.initial_delay_s + probe.period_s
    return first_s + (runs - 1) * apart_s + timeout_s


class ProbeState:
    """What the verdicts of one probe on one worker amount to. Starts healthy: `on_enter` was the start-up gate."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.healthy = True
        self.consecutive_failures = 0
        self._consecutive_successes = 0

    def record(self, verdict: Verdict) -> bool | None:
        """Count a verdict: False if it made the worker unhealthy, True if healthy again, None if nothing changed."""
        if verdict is Verdict.UNKNOWN:
            return None
        if verdict is Verdict.PASSED:
            self.consecutive_failures = 0
            self._consecutive_successes += 1
            if self.healthy or self._consecutive_successes < self.probe.successes:
                return None
            self.healthy = True
            return True
        self._consecutive_successes = 0
        self.consecutive_failures += 1
        if self.healthy and self.consecutive_failures >= self.probe.failures:
            self.healthy = False
            return False
        return None
