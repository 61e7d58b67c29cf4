"""The status of an app as typed, frozen data that shows itself well in a terminal and in a notebook."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any

from gworker.observe.events import Event
from gworker.observe.times import Histogram, Times


@dataclass(frozen=True)
class ProbeStatus:
    """The last run of a probe: what it found, and how long it took."""

    method: str
    kind: str
    verdict: str
    latency_ms: float
    reason: str = ""


@dataclass(frozen=True)
class WorkerStatus:
    """One worker, or a place in the pool whose next worker has to wait (state BACKOFF, no pid).

    `age_s` counts from its creation; `inflight` are the inputs that routers have in it; `restarts` counts the workers
    that its place has lost before. `inputs`, and by batched method `batches` and `batch_sizes` (their number and mean
    size), are its own counters.
    """

    id: str
    state: str
    pid: int | None
    node_id: str | None
    age_s: float
    reason: str = ""
    inflight: int = 0
    restarts: int = 0
    inputs: int = 0
    batches: dict[str, int] = field(default_factory=dict)
    batch_sizes: dict[str, float] = field(default_factory=dict)
    probes: tuple[ProbeStatus, ...] = ()


@dataclass(frozen=True)
class Durations:
    """How long something took, in seconds: how often it was seen, mean, sum, and percentiles to about a bucket's width.

    `buckets` are the numbers in each bucket of `gworker.observe.times.BUCKETS_S`, and above them.
    """

    count: int
    mean_s: float
    p50_s: float
    p99_s: float
    sum_s: float
    buckets: tuple[int, ...]

    @classmethod
    def of(cls, seen: Histogram) -> Durations:
        """What a histogram says."""
        return cls(seen.count, seen.mean_s, seen.quantile_s(0.5), seen.quantile_s(0.99), seen.sum_s, tuple(seen.counts))


@dataclass(frozen=True)
class MethodTimes:
    """Where the time of the calls of a method went since the pool began, or its controller took it over.

    The queue time lies between the submit and the worker's holding the input, and the transport both ways is counted
    with it; the batch wait lies before the invocation begins; the run time is the invocation's own. Each attempt
    counts by itself; cancelled ones do not.
    """

    method: str
    queue: Durations
    batch_wait: Durations
    run: Durations

    @classmethod
    def of(cls, method: str, times: Times) -> MethodTimes:
        """What the histograms of a method say."""
        return cls(method, *map(Durations.of, times))


@dataclass(frozen=True)
class PoolStatus:
    """One pool: how many workers it wants and has, and the inputs that routers report as queued and running.

    `pending` of the `starting` workers have no node yet; `waiting_for` says why, and what calls wait for. `times` has
    the methods that were called.
    """

    name: str
    class_name: str
    state: str
    desired: int
    ready: int
    starting: int
    pending: int
    draining: int
    queued: int
    running: int
    restarts: int
    waiting_for: str = ""
    workers: tuple[WorkerStatus, ...] = ()
    times: tuple[MethodTimes, ...] = ()


_POOL_COLUMNS = (
    "pool", "state", "desired", "ready", "starting", "pending", "draining", "queued", "running", "restarts",
    "waiting for",
)  # fmt: skip
_WORKER_COLUMNS = ("worker", "state", "pid", "age", "inflight", "restarts", "last probes", "reason")
_TIMES_COLUMNS = ("pool", "method", "calls", "queue time p50 / p99", "batch wait p50 / p99", "run time p50 / p99")
# How many of the workers and of the events a table shows.
_SHOWN_WORKERS = 20
_SHOWN_EVENTS = 8


@dataclass(frozen=True)
class AppStatus:
    """An app at one moment. `running` is False for one that has not been started, or was stopped."""

    name: str
    running: bool
    pools: tuple[PoolStatus, ...] = ()
    events: tuple[Event, ...] = ()

    def pool(self, class_name: str) -> PoolStatus:
        """The first pool of a class. Raises KeyError, naming the classes there are."""
        for pool in self.pools:
            if class_name in (pool.class_name, pool.name):
                return pool
        known = ", ".join(sorted({p.class_name for p in self.pools})) or "none"
        raise KeyError(f"no pool of a class {class_name!r} in app {self.name!r}; there are: {known}")

    def _tables(self) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
        """Columns and rows: the pools, where the time of their calls went, and their workers, where there are some."""
        pools = [
            tuple(
                str(value)
                for value in (
                    p.name, p.state, p.desired, p.ready, p.starting, p.pending, p.draining, p.queued, p.running,
                    p.restarts, p.waiting_for,
                )
            )
            for p in self.pools
        ]  # fmt: skip
        workers = [_worker_row(w) for p in self.pools for w in p.workers]
        more = len(workers) - _SHOWN_WORKERS
        if more > 0:
            workers = [*workers[:_SHOWN_WORKERS], (f"… {more} more", *[""] * (len(_WORKER_COLUMNS) - 1))]
        times = [_times_row(p.name, t) for p in self.pools for t in p.times]
        more_tables = [(_TIMES_COLUMNS, times), (_WORKER_COLUMNS, workers)]
        return [(_POOL_COLUMNS, pools), *((columns, rows) for columns, rows in more_tables if rows)]

    @property
    def _title(self) -> str:
        return f"{self.name} ({'running' if self.running else 'not running'})"

    def _latest(self) -> list[str]:
        return [str(event) for event in self.events[-_SHOWN_EVENTS:]]

    def __str__(self) -> str:
        lines = [f"app {self._title}"]
        for columns, rows in self._tables():
            table = [columns, *rows]
            widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
            lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
            lines.append("")
        return "\n".join([*lines, *self._latest()]).rstrip()

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        # As Text, because names and reasons may hold brackets, which rich would take for markup.
        tables: list[Table] = []
        for columns, rows in self._tables():
            title = None if tables else Text(self._title)
            table = Table(*columns, title=title, title_justify="left")
            for row in rows:
                table.add_row(*map(Text, row))
            tables.append(table)
        return Group(*tables, *map(Text, self._latest()))

    def _repr_html_(self) -> str:
        state = "running" if self.running else "not running"
        shown = [f"<b>gworker app {html.escape(self.name)}</b>: {state}"]
        for columns, rows in self._tables():
            head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
            body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
            shown.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        if latest := self._latest():
            shown.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in latest) + "</ul>")
        return "<div>" + "".join(shown) + "</div>"


def _times_row(pool: str, times: MethodTimes) -> tuple[str, ...]:
    spans = (times.queue, times.batch_wait, times.run)
    cells = [f"{_span(t.p50_s)} / {_span(t.p99_s)}" if t.count else "" for t in spans]
    return (pool, times.method, f"{times.queue.count:,}", *cells)


def _span(time_s: float) -> str:
    """A time as people say it.

    >>> [_span(x) for x in (0.00012, 0.0123, 0.5, 12.34, 250.0)]
    ['0.12 ms', '12 ms', '500 ms', '12 s', '250 s']
    """
    if time_s >= 1:
        return f"{time_s:.0f} s" if time_s >= 10 else f"{time_s:.1f} s"
    ms = time_s * 1000
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms" if ms >= 1 else f"{ms:.2f} ms"


def _worker_row(worker: WorkerStatus) -> tuple[str, ...]:
    probes = ", ".join(f"{p.method} {p.verdict} {p.latency_ms:.0f} ms" for p in worker.probes)
    pid = "" if worker.pid is None else str(worker.pid)
    age = f"{worker.age_s:.0f} s"
    return (worker.id, worker.state, pid, age, str(worker.inflight), str(worker.restarts), probes, worker.reason)
