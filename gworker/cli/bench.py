"""`gworker bench`: what a method of a class of the user's own does under load."""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime as dt
import itertools
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gworker import clock
from gworker.cli import output
from gworker.cli.arguments import arguments_of
from gworker.cli.benchmark.bar import bar
from gworker.cli.benchmark.load import Input
from gworker.cli.benchmark.options import OWN
from gworker.cli.benchmark.plan import Plan
from gworker.cli.benchmark.pools import Counters
from gworker.cli.benchmark.report import Cluster, Report, remarks_of, show
from gworker.cli.benchmark.session import FirstResult, Session, Subject
from gworker.cli.cluster import deployed_class, drain, is_deployed
from gworker.cli.exits import Code, Failed
from gworker.cli.inputs import call_arguments, read_lines
from gworker.cli.invoke import about
from gworker.cli.machine import Machine, packages
from gworker.cli.options import Given, parse
from gworker.cli.target import Target, choices, load_method, method_of

if TYPE_CHECKING:
    from gworker.app import App
    from gworker.functions import MethodSpec
    from gworker.handle import Cls


@dataclass(frozen=True)
class _Named:
    """What the target names. `app` is None for a class of a deployed app, known by name alone."""

    app_name: str
    cls: Cls
    method: MethodSpec
    app: App | None


def bench(target: str, rest: Sequence[str], before: Mapping[str, Any]) -> Code:
    """Measure a method and print what was found. An app that this started is drained at the end."""
    output.reserve_stdout()
    named = _found(target)
    cls, method = named.cls, named.method
    given = parse(
        arguments_of(cls, method),
        rest,
        prog=f"gworker bench {target}",
        about=about(cls, method),
        method=method,
        before=before,
        own=OWN,
    )
    if given.stdin:
        raise Failed("- was given as an argument: calls are read from standard input with --inputs -")
    plan = Plan.read(given.own)
    calls = _calls(cls, method, given)
    handle = cls(**given.parameters)
    bound = getattr(handle, method.name).with_options(deadline_s=plan.deadline_s)
    for args, kwargs in calls:
        method.bind(cls.name, args, kwargs)  # a call that cannot be is found before anything starts

    json_file = given.own.get("json_file")
    _check_writable(json_file)

    began = clock.now()
    ray = _have_ray()
    ray_s = clock.now() - began

    def floor() -> concurrent.futures.Future[None] | None:
        known = named.app is not None and not is_deployed(named.app)
        return handle._router().when_ready(cls.spec.options.min_workers) if known else None

    subject = Subject(bound, streams=method.is_generator, counters=lambda: _counters(named), floor=floor)
    try:
        with bar() as tell:
            session = Session(subject, plan, itertools.cycle(calls), tell)
            session.run(began, ray_s, ray)
        if session.first is None:
            raise KeyboardInterrupt
        report = _report(target, named, given, plan, session, session.first, len(calls))
        _print(report, json_file)
    finally:
        if named.app is not None:
            drain(named.app)
    if session.interrupted:
        return Code.INTERRUPTED
    return Code.OK if report.worked else Code.FAILED


# --- what is measured --------------------------------------------------------------------------------------------


def _found(target: str) -> _Named:
    if "::" in target or Target.parse(target).is_file:
        app, cls, method = load_method(target)
        return _Named(app.name, cls, method, app)
    parts = target.rsplit(".", 2)
    if len(parts) < 3:
        raise Failed(
            f"{target!r} names no method: write app.py::Embedder.embed for a file, inference-server.Embedder.embed for "
            "a class of a deployed app"
        )
    app_name, class_name, method_name = parts
    cls = deployed_class(app_name, class_name)
    found = method_of(cls, method_name)
    if found is None:
        raise Failed(f"{target} names no method; say which one:\n{choices(app_name, '.', [cls])}")
    return _Named(app_name, cls, found, None)


def _counters(named: _Named) -> Counters:
    status = named.app.status() if named.app is not None else named.cls.app.client().ask("status")
    return Counters.of(status, named.cls.name, named.method.name)


def _have_ray() -> str:
    """Connect to Ray, or start one; how it was had."""
    import ray

    from gworker.router import cluster

    there = ray.is_initialized()
    cluster.have_ray()
    return "was attached already" if there else "started" if cluster.started_here() else "attached"


def _calls(cls: Cls, method: MethodSpec, given: Given) -> list[Input]:
    """The different calls: one from the options, or one for each line of the inputs."""
    source = given.own.get("inputs")
    if source is None:
        return [call_arguments(method, given.values)]
    takes = {a.name: a for a in arguments_of(cls, method) if a.kind == "argument" and not a.star}
    where = "standard input" if source == "-" else source
    with _lines(source) as lines:
        calls = [call_arguments(method, values) for _, values in read_lines(lines, where, takes, given.values)]
    if not calls:
        example = ", ".join(f'"{name}": ...' for name in takes if name not in given.values)
        raise Failed(f"{where} holds no call: write one on each line, as in {{{example}}}")
    return calls


def _check_writable(path: Path | None) -> None:
    """That the figures can be written is known before they are there."""
    try:
        if path is not None and str(path) != "-":
            path.open("a").close()
    except OSError as error:
        raise Failed(f"--json {path}: {error.strerror}") from None


def _lines(source: str) -> Any:
    if source == "-":
        return contextlib.nullcontext(sys.stdin)
    try:
        return Path(source).open()
    except OSError as error:
        raise Failed(f"--inputs {source}: {error.strerror}") from None


# --- what was found ----------------------------------------------------------------------------------------------


def _report(
    target: str, named: _Named, given: Given, plan: Plan, session: Session, first: FirstResult, inputs: int
) -> Report:
    from gworker import __version__

    steps = tuple(session.steps)
    parameters = {name: repr(value) for name, value in given.parameters.items()}
    return Report(
        target=target,
        app=named.app_name,
        deployed=named.app is None or is_deployed(named.app),
        method=f"{named.cls.name}.{named.method}",
        settings=_settings(named),
        parameters=parameters,
        inputs=inputs,
        inputs_from=given.own.get("inputs") or "the command line",
        at=dt.datetime.now(dt.timezone.utc),
        plan=plan,
        machine=Machine.here(),
        cluster=_cluster(),
        versions={"gworker": __version__, "Python": platform.python_version(), **packages("ray", "torch", "numpy")},
        first_result=first,
        steps=steps,
        interrupted=session.interrupted,
        remarks=remarks_of(steps),
    )


def _settings(named: _Named) -> str:
    """What decides how the class behaves under load."""
    spec, batch = named.cls.spec, named.method.batch
    options = spec.options
    least, most = options.min_workers, options.max_workers
    parts = [f"{least} to {most} workers" if least < most else f"{most} worker{'s' if most > 1 else ''}"]
    parts.append(f"up to {spec.max_inputs} input{'s' if spec.max_inputs > 1 else ''} in each")
    if batch is not None:
        parts.append(f"batches of up to {batch.max_batch_size}, gathered for {batch.wait_s * 1000:g} ms")
    return ", ".join(parts)


def _cluster() -> Cluster | None:
    import ray

    if not ray.is_initialized():
        return None
    whole = ray.cluster_resources()  # type: ignore[no-untyped-call]
    nodes = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    return Cluster(nodes, whole.get("CPU", 0.0), whole.get("GPU", 0.0))


def _print(report: Report, json_file: Path | None) -> None:
    from rich.console import Console

    if json_file is not None and str(json_file) == "-":
        output.emit(output.data(report))
        return
    # Tables need their width wherever they go; at a terminal its own counts.
    console = Console(
        file=output.stream(), highlight=False, soft_wrap=True, width=None if output.at_terminal() else 120
    )
    show(report, console)
    if json_file is not None:
        json_file.write_text(output.data(report) + "\n")
