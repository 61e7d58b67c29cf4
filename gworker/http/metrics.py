"""What the gateway counts, for Prometheus and for the lines of the status page."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from gworker.observe.status import AppStatus, Durations
from gworker.observe.times import BUCKETS_S

# Two minutes in steps of two seconds: what fits on a phone.
STEP_S = 2.0
STEPS = 60
# Enough for a median; more requests of one step are counted and not kept.
_KEPT_TIMES = 256

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass
class _Step:
    number: int
    requests: int = 0
    errors: int = 0
    times_s: list[float] = field(default_factory=list)


class History:
    """Requests of the last two minutes, by steps. Told the time, as all that decides something here."""

    def __init__(self) -> None:
        self._steps: deque[_Step] = deque(maxlen=STEPS)

    def add(self, now: float, took_s: float, failed: bool) -> None:
        """One request ended."""
        number = int(now / STEP_S)
        if not self._steps or self._steps[-1].number != number:
            self._steps.append(_Step(number))
        step = self._steps[-1]
        step.requests += 1
        step.errors += failed
        if len(step.times_s) < _KEPT_TIMES:
            step.times_s.append(took_s)

    def lines(self, now: float) -> dict[str, Any]:
        """Requests and errors per second and the median time in ms of each whole step, oldest first."""
        current = int(now / STEP_S)
        known = {step.number: step for step in self._steps}
        steps = [known.get(number) for number in range(current - STEPS + 1, current)]
        return {
            "step_s": STEP_S,
            "requests_per_s": [0.0 if s is None else s.requests / STEP_S for s in steps],
            "errors_per_s": [0.0 if s is None else s.errors / STEP_S for s in steps],
            "p50_ms": [None if s is None else round(statistics.median(s.times_s) * 1000, 3) for s in steps],
        }


class Metrics:
    """Counters of one gateway. `route` is a method's name, or a path of the gateway's own: few in any case."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.history = History()
        self._requests = Counter(
            "gworker_http_requests", "Requests that were answered.", ["route", "status"], registry=self.registry
        )
        self._times = Histogram(
            "gworker_http_request_duration_seconds",
            "Time from the request's headers to the end of its answer.",
            ["route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._in_flight = Gauge("gworker_http_requests_in_flight", "Requests under way.", registry=self.registry)
        self.in_flight = 0
        self._in_flight.set_function(lambda: self.in_flight)
        self._children: dict[tuple[str, int], tuple[Any, Any]] = {}

    def count(self, route: str, status: int, started: float) -> None:
        """A request that came at `started` (time.perf_counter) was answered just now."""
        now = time.perf_counter()
        key = (route, status)
        children = self._children.get(key)
        if children is None:
            children = self._requests.labels(route, str(status)), self._times.labels(route)
            self._children[key] = children
        children[0].inc()
        children[1].observe(now - started)
        if route[0] != "/":  # the lines show calls, not who looks at them
            self.history.add(now, now - started, status >= 500)

    def page(self, status: AppStatus | None) -> bytes:
        """Everything in Prometheus's text format; of the pools what `status` knows."""
        pools = CollectorRegistry()
        if status is not None:
            pools.register(_Pools(status))
        return generate_latest(self.registry) + generate_latest(pools)


_TIMES = (
    ("gworker_queue_time_seconds", "From a call's submit until a worker holds it, and its transport.", "queue"),
    ("gworker_batch_wait_seconds", "From then until its invocation begins: a window, a batch, a thread.", "batch_wait"),
    ("gworker_run_time_seconds", "The invocation itself.", "run"),
)


class _Pools:
    """The pools of an app as metrics."""

    def __init__(self, status: AppStatus) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client's Collector."""
        desired = GaugeMetricFamily("gworker_workers_desired", "Workers a pool wants.", labels=["app", "pool"])
        workers = GaugeMetricFamily("gworker_workers", "Workers of a pool.", labels=["app", "pool", "state"])
        inputs = GaugeMetricFamily("gworker_inputs", "Inputs of a pool.", labels=["app", "pool", "state"])
        restarts = CounterMetricFamily("gworker_restarts", "Workers that were replaced.", labels=["app", "pool"])
        state = GaugeMetricFamily("gworker_pool_state", "1 for the state of a pool.", labels=["app", "pool", "state"])
        for pool in self._status.pools:
            name = [self._status.name, pool.name]
            desired.add_metric(name, pool.desired)
            for kind in ("ready", "starting", "pending", "draining"):
                workers.add_metric([*name, kind], getattr(pool, kind))
            for kind in ("queued", "running"):
                inputs.add_metric([*name, kind], getattr(pool, kind))
            restarts.add_metric(name, pool.restarts)
            state.add_metric([*name, pool.state], 1)
        return [desired, workers, inputs, restarts, state, *self._times()]

    def _times(self) -> Iterable[Metric]:
        """Where the time of calls went, by method; pools of one name, of which an update has two, as one."""
        for name, about, kind in _TIMES:
            merged: dict[tuple[str, str], list[Durations]] = {}
            for pool in self._status.pools:
                for times in pool.times:
                    merged.setdefault((pool.name, times.method), []).append(getattr(times, kind))
            family = HistogramMetricFamily(name, about, labels=["app", "pool", "method"])
            for labels, parts in merged.items():
                counts = itertools.accumulate(map(sum, zip(*(part.buckets for part in parts), strict=True)))
                buckets = list(zip((*map(str, BUCKETS_S), "+Inf"), map(float, counts), strict=True))
                family.add_metric([self._status.name, *labels], buckets, sum(part.sum_s for part in parts))
            yield family
