"""`gworker bench`: what a method of a class of the user's own does under load."""

from __future__ import annotations

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
from gworker.cli.benchmark.session import Session, Subject
from gworker.cli.exits import Code, Failed, say
from gworker.cli.inputs import call_arguments, read_lines
from gworker.cli.machine import Machine, packages
from gworker.cli.options import Given, parse
from gworker.cli.target import load, method_of

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
    named = _deployed(target) if "::" not in target and not target.endswith(".py") else _in_a_file(target)
    cls, method = named.cls, named.method
    given = parse(
        arguments_of(cls, method), rest, prog=f"gworker bench {target}", about="", method=method, before=before, own=OWN
    )
    if given.stdin:
        raise Failed("- was given as an argument: calls are read from standard input with --inputs -")
    plan = Plan.read(given.own)
    calls = _calls(cls, method, given)
    handle = cls(**given.parameters)
    bound = getattr(handle, method.name).with_options(deadline_s=plan.deadline_s)
    for args, kwargs in calls:
        method.bind(cls.name, args, kwargs)  # a call that cannot be is found before anything starts

    began = clock.now()
    ray = _have_ray()
    ray_s = clock.now() - began
    ours = named.app is not None and not _is_deployed(named.app)
    floor = cls.spec.options.min_workers
    subject = Subject(
        bound,
        streams=method.is_generator,
        counters=lambda: _counters(named),
        floor=(lambda: handle._router().when_ready(floor)) if ours and floor > 1 else None,
    )
    try:
        with bar() as tell:
            session = Session(subject, plan, itertools.cycle(calls), tell)
            session.run(began, ray_s, ray)
        report = _report(target, named, given, plan, session, len(calls))
        _print(report, given.own.get("json_file"))
    finally:
        if ours and named.app is not None:
            say(f"draining {named.app_name} ...")
            named.app.stop()
    if session.interrupted:
        return Code.INTERRUPTED
    return Code.OK if report.worked else Code.FAILED


# --- what is measured --------------------------------------------------------------------------------------------


def _in_a_file(target: str) -> _Named:
    from gworker.cli.invoke import choices

    loaded = load(target)
    if loaded.cls is None or loaded.method is None:
        classes = [loaded.cls] if loaded.cls is not None else loaded.app.classes.values()
        raise Failed(f"{target} names no method; say which one:\n{choices(loaded.target.source, '::', classes)}")
    return _Named(loaded.app.name, loaded.cls, loaded.method, loaded.app)


def _deployed(target: str) -> _Named:
    from gworker.cli.cluster import deployed_class
    from gworker.cli.invoke import choices

    parts = target.rsplit(".", 2)
    if len(parts) < 3:
        raise Failed(
            f"{target!r} names no method: write app.py::Embedder.embed for a file, inference-server.Embedder.embed for "
            "a class of a deployed app"
        )
    app_name, class_name, method_name = parts
    cls = deployed_class(app_name, class_name)
    method = method_of(cls, method_name)
    if method is None:
        raise Failed(f"{target} names no method; say which one:\n{choices(app_name, '.', [cls])}")
    return _Named(app_name, cls, method, None)


def _is_deployed(app: App) -> bool:
    """Whether calls to this app reach one of its name that is deployed: it is not ours to stop."""
    from gworker.router import deployment

    return deployment.find_controller(app.name) is not None


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
        raise Failed(f'{where} has no line: expected one call for each, as in {{"{next(iter(takes), "text")}": ...}}')
    return calls


def _lines(source: str) -> Any:
    if source == "-":
        return contextlib.nullcontext(sys.stdin)
    try:
        return Path(source).open()
    except OSError as error:
        raise Failed(f"--inputs {source}: {error.strerror}") from None


# --- what was found ----------------------------------------------------------------------------------------------


def _report(target: str, named: _Named, given: Given, plan: Plan, session: Session, inputs: int) -> Report:
    from gworker import __version__

    steps = tuple(session.steps)
    parameters = {name: repr(value) for name, value in given.parameters.items()}
    return Report(
        target=target,
        app=named.app_name,
        deployed=named.app is None or _is_deployed(named.app),
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
        first_result=session.first,
        steps=steps,
        interrupted=session.interrupted,
        remarks=remarks_of(steps),
    )


def _settings(named: _Named) -> str:
    """What decides how the class behaves under load."""
    spec, batch = named.cls.spec, named.method.batch
    options = spec.options
    parts = [f"{options.min_workers} to {options.max_workers} workers"]
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
    if report.first_result is not None:
        show(report, console)
    if json_file is not None:
        json_file.write_text(output.data(report) + "\n")
