"""A measurement as people read it: tables, and beneath them what is to be known about the figures."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gworker.cli.benchmark.figures import Distribution, StepFigures, remarks
from gworker.cli.benchmark.plan import Closed, Open, Plan
from gworker.cli.benchmark.session import FirstResult
from gworker.cli.machine import Machine


@dataclass(frozen=True)
class Cluster:
    """The Ray that the pools ran on."""

    nodes: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Report:
    """Everything there is to say. `steps` may be fewer than the plan's loads, when it was interrupted.

    `inputs` is the number of different calls, `source` the file, or the name that the app is deployed under.
    """

    target: str
    app: str
    deployed: bool
    method: str
    settings: str
    inputs: int
    inputs_from: str
    parameters: dict[str, str]
    at: dt.datetime
    plan: Plan
    machine: Machine
    cluster: Cluster | None
    versions: dict[str, str]
    first_result: FirstResult
    steps: tuple[StepFigures, ...]
    interrupted: bool
    remarks: tuple[str, ...] = field(default=())

    @property
    def worked(self) -> bool:
        """Whether each step had calls that ended well."""
        return bool(self.steps) and all(step.calls for step in self.steps)


def remarks_of(steps: tuple[StepFigures, ...]) -> tuple[str, ...]:
    """The remarks on all steps, each with its load where there are several."""
    return tuple(f"{step.load}: {remark}" if len(steps) > 1 else remark for step in steps for remark in remarks(step))


def show(report: Report, console: Console) -> None:
    """Print it."""
    console.print(*_head(report), sep="\n")
    if report.steps:
        console.print("", _throughput(report), "", Text("latency in ms", style="bold"), _latency(report), sep="\n")
    else:
        console.print("", "interrupted before a load was measured", sep="\n")
    errors = list(_errors(report))
    if errors:
        console.print("", *errors, sep="\n")
    if report.remarks:
        console.print("", *(Text.assemble(("! ", "yellow"), remark) for remark in report.remarks), sep="\n")
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    console.print("", Text(f"{versions}; {report.machine}{_on(report.cluster)}", style="dim"), sep="\n")


def _on(cluster: Cluster | None) -> str:
    if cluster is None or cluster.nodes == 1:
        return ""
    return f"; a cluster of {cluster.nodes} nodes, {cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs"


def _head(report: Report) -> Iterator[Text]:
    where = f"of {report.app}, {'deployed' if report.deployed else report.target.partition('::')[0]}"
    given = ", ".join(f"{name}={value}" for name, value in report.parameters.items())
    yield Text.assemble((report.method, "bold"), f"  {where}{', with ' if given else ''}{given}")
    if report.settings:
        yield Text(report.settings)
    plan = report.plan
    first = plan.loads[0]
    if isinstance(first, Open):
        how = "at random (Poisson)" if first.arrival.value == "poisson" else "evenly spaced"
        kind = f"open loop, calls due {how}, latency from when they were due"
    else:
        kind = "closed loop, callers that wait for their results"
    wanted = " or ".join(
        part
        for part in (
            "" if plan.duration_s is None else f"{plan.duration_s:g} s",
            "" if plan.requests is None else f"{plan.requests:,} calls",
        )
        if part
    )
    each = "" if report.inputs == 1 else f", {report.inputs:,} inputs from {report.inputs_from} in turn"
    yield Text(f"{kind}; {wanted} after {plan.warmup_s:g} s of warm-up{each}")
    yield Text()
    yield _first(report.first_result)


def _first(first: FirstResult) -> Text:
    if first.workers_before:
        workers = f"{first.workers_before} worker{'s were' if first.workers_before > 1 else ' was'} ready"
        detail = f"{workers}; not in the figures below"
    else:
        rest = first.seconds - first.ray_s
        detail = f"Ray {first.ray} in {first.ray_s:.2f} s, worker and call {rest:.2f} s; not in the figures below"
    return Text.assemble(("first result ", "bold"), f"after {first.seconds:.2f} s  ", (f"({detail})", "dim"))


# --- tables ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    head: str
    cell: Callable[[StepFigures], str]
    style: str = ""


def _throughput(report: Report) -> Table:
    columns = [_load_column(report.plan), _Column("calls/s", lambda s: _rate(s.calls_per_s), "bold")]
    if report.plan.slo_ms is not None:
        columns += [
            _Column("goodput/s", lambda s: _rate(s.good_per_s)),
            _Column(f"within {report.plan.slo_ms:g} ms", lambda s: _share(s.good_share)),
        ]
    if any(s.items_per_s is not None for s in report.steps):
        columns.append(_Column("items/s", lambda s: _rate(s.items_per_s)))
    columns.append(_Column("calls", lambda s: f"{s.calls:,}"))
    columns.append(_Column("failed", lambda s: f"{s.failed + s.dropped:,}"))
    if any(s.unfinished for s in report.steps):
        columns.append(_Column("unfinished", lambda s: f"{s.unfinished:,}"))
    if any(s.pools.mean_batch is not None for s in report.steps):
        columns.append(_Column("batch", lambda s: _number(s.pools.mean_batch)))
    columns.append(_Column("workers", lambda s: f"{s.pools.workers_after}"))
    columns.append(_Column("caller's cores", lambda s: f"{s.generator.cores:.2f}"))
    table = _table([column.head for column in columns])
    for step in report.steps:
        table.add_row(*(Text(column.cell(step), style=column.style) for column in columns))
    return table


def _latency(report: Report) -> Table:
    load = _load_column(report.plan)
    streams = any(s.items_per_s is not None for s in report.steps)
    table = _table([load.head, "of", "mean", "p50", "p90", "p95", "p99", "p99.9", "max"])
    table.columns[1].justify = "left"
    for step in report.steps:
        rows = [("whole stream" if streams else "call", step.latency)]
        if streams:
            rows = [("first item", step.first_item), ("between items", step.between_items), *rows]
        parts = [("queue time", step.queue_time), ("batch wait", step.batch_wait), ("run time", step.run_time)]
        if report.plan.is_open:
            parts.insert(0, ("sent late by", step.generator.late))
        for number, (what, times) in enumerate([*rows, *parts]):
            quiet = "dim" if number >= len(rows) else ""
            cells = [load.cell(step) if number == 0 else "", what, *_times(times)]
            table.add_row(*(Text(cell, style=quiet) for cell in cells))
    return table


def _load_column(plan: Plan) -> _Column:
    if plan.is_open:
        return _Column("due/s", lambda s: _rate(s.load.rate_per_s) if isinstance(s.load, Open) else "")
    return _Column("callers", lambda s: f"{s.load.callers:,}" if isinstance(s.load, Closed) else "")


def _table(heads: list[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _times(times: Distribution | None) -> list[str]:
    if times is None:
        return ["-"] * 7
    t = times
    return [_number(ms) for ms in (t.mean_ms, t.p50_ms, t.p90_ms, t.p95_ms, t.p99_ms, t.p999_ms, t.max_ms)]


def _number(value: float | None) -> str:
    """Three digits that say something.

    >>> [_number(x) for x in (0.01234, 1.234, 12.34, 123.4, 12345.6, None)]
    ['0.012', '1.23', '12.3', '123', '12,346', '-']
    """
    if value is None:
        return "-"
    for least, digits in ((100, 0), (10, 1), (1, 2)):
        if value >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.3f}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.1f} %"


def _errors(report: Report) -> Iterator[Text]:
    for step in report.steps:
        for problem in step.problems:
            where = f"{step.load}: " if len(report.steps) > 1 else ""
            example = problem.example.strip().partition("\n")[0]
            yield Text.assemble(
                ("✗ ", "red"), f"{where}{problem.count:,} x {problem.type}: {example or '(no message)'}"
            )
