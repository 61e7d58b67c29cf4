"""What a measurement found, in figures: computed from records, written to JSON as it stands."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gworker.cli.benchmark.plan import Load, Open
from gworker.cli.benchmark.pools import Pools
from gworker.cli.benchmark.recorder import Recorder

# From here on a process that sends calls has hardly a moment left: Python runs on one core.
BUSY_CORES = 0.9


@dataclass(frozen=True)
class Distribution:
    """Times in ms. A percentile that so few values cannot tell from the greatest is None."""

    count: int
    mean_ms: float
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    max_ms: float

    @classmethod
    def of(cls, times_s: Iterable[float]) -> Distribution | None:
        """The distribution of times in seconds; None where there are none."""
        ordered = sorted(times_s)
        if not ordered:
            return None
        return cls(
            count=len(ordered),
            mean_ms=math.fsum(ordered) / len(ordered) * 1000,
            p50_ms=_percentile(ordered, 500),
            p90_ms=_percentile(ordered, 900),
            p95_ms=_percentile(ordered, 950),
            p99_ms=_percentile(ordered, 990),
            p999_ms=_percentile(ordered, 999),
            max_ms=ordered[-1] * 1000,
        )


def _percentile(ordered: list[float], per_mille: int) -> float | None:
    """The least value, in ms, that so many per mille of the values do not exceed.

    >>> _percentile([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0], 900), _percentile([1.0, 2.0], 900)
    (9000.0, None)
    """
    rank = -(-len(ordered) * per_mille // 1000)
    return ordered[rank - 1] * 1000 if rank < len(ordered) else None


@dataclass(frozen=True)
class Problem:
    """Calls that failed in one way."""

    type: str
    count: int
    example: str


@dataclass(frozen=True)
class Generator:
    """How hard the process that sent the calls worked for them, and how late it was, in an open loop with each call."""

    cores: float
    late: Distribution | None

    @property
    def is_the_limit(self) -> bool:
        """Whether more could not have been sent."""
        return self.cores >= BUSY_CORES


@dataclass(frozen=True)
class StepFigures:
    """One step. `latency` is that of the calls that ended well, of an open loop from the moment they were due.

    `queue_time`, `batch_wait` and `run_time` are where it went once they had been sent: `gworker.observe.times`.

    `calls_per_s` ended well, `ended_per_s` at all, `due_per_s` is what an open loop asked for. `good_share` is the part
    of all calls that ended well within the SLO. `dropped` ones were due and not sent.
    """

    load: Load
    seconds: float
    interrupted: bool
    calls: int
    failed: int
    dropped: int
    unfinished: int
    calls_per_s: float
    ended_per_s: float
    due_per_s: float | None
    good_per_s: float | None
    good_share: float | None
    latency: Distribution | None
    queue_time: Distribution | None
    batch_wait: Distribution | None
    run_time: Distribution | None
    first_item: Distribution | None
    between_items: Distribution | None
    items_per_s: float | None
    problems: tuple[Problem, ...]
    generator: Generator
    pools: Pools

    @property
    def is_empty(self) -> bool:
        """Whether no call counted."""
        return self.calls + self.failed + self.dropped == 0

    @classmethod
    def of(
        cls,
        load: Load,
        record: Recorder,
        seconds: float,
        *,
        interrupted: bool,
        streams: bool,
        cores: float,
        pools: Pools,
    ) -> StepFigures:
        """The figures of a step whose record is complete."""
        calls = len(record.latencies)
        total = calls + record.failed + record.dropped + record.unfinished
        per_s = 1 / seconds if seconds else 0.0
        with_slo = record.slo_s is not None
        return cls(
            load=load,
            seconds=seconds,
            interrupted=interrupted,
            calls=calls,
            failed=record.failed,
            dropped=record.dropped,
            unfinished=record.unfinished,
            calls_per_s=(calls if record.is_full else record.answered) * per_s,
            ended_per_s=(calls + record.failed if record.is_full else record.ended) * per_s,
            due_per_s=record.due * per_s if isinstance(load, Open) else None,
            good_per_s=record.good * per_s if with_slo else None,
            good_share=record.good / total if with_slo and total else None,
            latency=Distribution.of(record.latencies),
            queue_time=Distribution.of(record.queued),
            batch_wait=Distribution.of(record.waited),
            run_time=Distribution.of(record.ran),
            first_item=Distribution.of(record.first_items),
            between_items=Distribution.of(record.gaps),
            items_per_s=record.items * per_s if streams else None,
            problems=tuple(Problem(name, f.count, f.example) for name, f in sorted(record.failures.items())),
            generator=Generator(cores, Distribution.of(record.lags)),
            pools=pools,
        )


# A loop is late when that shows in its figures: beyond this, and this share of the median.
_LATE_MS = 1.0
_LATE_SHARE = 0.1
# A pool that ends less than this share of what is due falls behind.
_KEPT_UP = 0.95


def remarks(step: StepFigures) -> list[str]:
    """What a reader of the figures has to know about them."""
    found = []
    if step.interrupted:
        found.append(f"interrupted after {step.seconds:.1f} s")
    elif step.is_empty:
        found.append("no call ended in the time that counts: give a longer --duration, or --requests")
    late = step.generator.late
    if step.generator.is_the_limit:
        found.append(
            f"the load generator was the limit, it used {step.generator.cores:.2f} of a core: the pool may serve more, "
            "and sooner. Spread the load over several `gworker bench` of one deployed app"
        )
    elif late is not None and step.latency is not None and _is_late(late, step.latency):
        found.append(
            f"this process was late by {late.p95_ms:.1f} ms (p95) with what it had to do next: the latencies hold that"
        )
    if step.due_per_s is not None and step.ended_per_s < _KEPT_UP * step.due_per_s and not step.interrupted:
        found.append(
            f"{step.ended_per_s:,.0f} of {step.due_per_s:,.0f} calls/s ended: the pool fell behind, so the latency "
            "grows with the time that is measured and says nothing else"
        )
    if step.dropped:
        found.append(
            f"{step.dropped:,} calls were due while --max-in-flight others were under way: they were not sent, and "
            "count as failed"
        )
    if step.unfinished and not step.interrupted:
        found.append(f"{step.unfinished:,} calls had not ended when the measurement did")
    pools = step.pools
    if pools.workers_before != pools.workers_after:
        found.append(
            f"the workers went from {pools.workers_before} to {pools.workers_after} meanwhile: give a longer --warmup, "
            "or fix their number with min_workers and max_workers"
        )
    return found


def _is_late(late: Distribution, latency: Distribution) -> bool:
    return late.p95_ms is not None and late.p95_ms > max(_LATE_MS, _LATE_SHARE * (latency.p50_ms or latency.mean_ms))
