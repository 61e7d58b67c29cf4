"""What is to be measured: loads, times, limits, read from the options of `gworker bench`."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gworker.cli.exits import Failed

T = TypeVar("T", int, float)

# What a first look needs: a lone caller, a few, many.
CALLERS = (1, 8, 64)
DURATION_S = 5.0
WARMUP_S = 1.0
MAX_IN_FLIGHT = 10_000
SEED = 0


class Arrival(enum.Enum):
    """How calls come at a rate: at random, as from many users, or evenly."""

    POISSON = "poisson"
    CONSTANT = "constant"


@dataclass(frozen=True)
class Closed:
    """So many callers, each of which sends its next call when the one before has ended."""

    callers: int

    def __str__(self) -> str:
        return f"{self.callers:,} caller{'s' if self.callers > 1 else ''}"


@dataclass(frozen=True)
class Open:
    """Calls that come at a rate, whatever became of those before; at most `max_in_flight` are under way at a time."""

    rate_per_s: float
    arrival: Arrival = Arrival.POISSON
    seed: int = SEED
    max_in_flight: int = MAX_IN_FLIGHT

    def __str__(self) -> str:
        return f"{self.rate_per_s:,g} calls/s"


Load = Closed | Open


@dataclass(frozen=True)
class Plan:
    """One step for each load: warm-up, then what counts. It ends after `duration_s` or `requests`, what comes first."""

    loads: tuple[Load, ...]
    duration_s: float | None = DURATION_S
    warmup_s: float = WARMUP_S
    requests: int | None = None
    slo_ms: float | None = None
    deadline_s: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls come at a rate."""
        return isinstance(self.loads[0], Open)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Plan:
        """The plan that the options stand for; those that were not given are None. Raises Failed."""
        requests = given.get("requests")
        duration_s = given.get("duration_s")
        warmup_s = given.get("warmup_s")
        return cls(
            loads=_loads(given),
            duration_s=DURATION_S if duration_s is None and requests is None else duration_s,
            warmup_s=WARMUP_S if warmup_s is None else warmup_s,
            requests=requests,
            slo_ms=given.get("slo_ms"),
            deadline_s=given.get("deadline_s"),
        )


def _loads(given: Mapping[str, Any]) -> tuple[Load, ...]:
    if given.get("rate") is None:
        for name in ("arrival", "seed", "max_in_flight"):
            if given.get(name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise Failed(f"{option} was given without --rate: it says how calls come at a rate. Add --rate 100")
        if given.get("concurrency") is None:
            return tuple(map(Closed, CALLERS))
        return tuple(map(Closed, _numbers("--concurrency", given["concurrency"], int, "1,8,64")))
    if given.get("concurrency") is not None:
        raise Failed(
            "--concurrency and --rate were both given: --concurrency 8 has 8 callers that wait for their results, "
            "--rate 100 sends 100 calls a second whatever comes back. Give one of them"
        )
    seed, most = given.get("seed"), given.get("max_in_flight")
    return tuple(
        Open(
            rate,
            arrival=given.get("arrival") or Arrival.POISSON,
            seed=SEED if seed is None else seed,
            max_in_flight=MAX_IN_FLIGHT if most is None else most,
        )
        for rate in _numbers("--rate", given["rate"], float, "100,200")
    )


def _numbers(option: str, text: str, number: Callable[[str], T], example: str) -> list[T]:
    """Numbers with commas between them. Raises Failed."""
    try:
        found = [number(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < n < float("inf") for n in found):
        kind = "whole numbers" if number is int else "numbers"
        raise Failed(f"{option} {text}: expected {kind} greater than zero: write for example {option} {example}")
    return found
