"""The commands and their help. Each imports what it needs when it runs: `gworker --help` does not wait for Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gworker.cli.benchmark import options as bench_options
from gworker.cli.exits import Code, command

_EXITS = (
    "Exit codes: 0 it worked, 1 the call or the command failed, 2 the command line or the definition is wrong, "
    "3 there is no such app or no cluster, 130 interrupted."
)
cli = typer.Typer(
    name="gworker",
    help="Turn a Python class into a pool of GPU workers on Ray: run it, serve it, operate it.",
    epilog=f"{_EXITS} TARGET is a file (app.py) or a module (package.module); :app picks one of several apps, and "
    "::Class.method a method, as in app.py:app::Embedder.embed. Every command explains itself with --help.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
# What stands behind the target belongs to the target: its own command line is made from its signature.
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}

_Json = Annotated[bool, typer.Option("--json", help="JSON, for a program.")]
_App = Annotated[str, typer.Argument(metavar="APP", help="The name of a deployed app: see `gworker status`.")]


def _example(*lines: str) -> str:
    return "Example: " + ", ".join(f"`{line}`" for line in lines)


def _ended(code: Code) -> None:
    if code is not Code.OK:
        raise typer.Exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        from gworker import __version__

        typer.echo(f"gworker {__version__}")
        raise typer.Exit


@cli.callback()
def _root(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    pass


_Stdin = Annotated[bool, typer.Option("--stdin", help="One call for each line of standard input; also behind TARGET.")]
_Deadline = Annotated[
    float | None, typer.Option("--deadline-s", min=0.001, help="Seconds for the whole call, cold start included.")
]


@cli.command(
    context_settings=_PASS_ON,
    epilog=_example(
        """gworker run app.py::Embedder.embed --texts '["a", "b"]'""", "gworker run app.py::Embedder.embed --help"
    ),
)
@command
def run(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="app.py::Class.method")],
    as_json: _Json = False,
    stdin: _Stdin = False,
    deadline_s: _Deadline = None,
) -> None:
    """Call a method once: the app starts, serves the call, and is drained.

    What follows TARGET are the method's arguments and the class's parameters, as options made from the signature: a
    text stays text, bool is a flag, lists and objects are JSON, @file reads one from a file. The result is printed as
    JSON; a generator prints a line for each item.

    With - or --stdin each line of standard input is one call: a JSON object of arguments, or the bare value where there
    is one argument. A line of JSON comes out for each, in order.
    """
    from gworker.cli import invoke

    _ended(invoke.run(target, context.args, {"as_json": as_json, "stdin": stdin, "deadline_s": deadline_s}))


@cli.command(
    context_settings=_PASS_ON,
    epilog=_example("""gworker call inference-server Embedder.embed --texts '["a", "b"]'"""),
)
@command
def call(
    context: typer.Context,
    app: _App,
    method: Annotated[str, typer.Argument(metavar="CLASS.METHOD", help="What to call.")],
    as_json: _Json = False,
    stdin: _Stdin = False,
    deadline_s: _Deadline = None,
) -> None:
    """Call a method of a deployed app; arguments and output are those of `gworker run`."""
    from gworker.cli import invoke

    _ended(invoke.call(app, method, context.args, {"as_json": as_json, "stdin": stdin, "deadline_s": deadline_s}))


@cli.command(
    context_settings=_PASS_ON,
    epilog=_example(
        "gworker bench app.py::Embedder.embed --text hello",
        "gworker bench --rate 200 --slo-ms 50 app.py::Embedder.embed --inputs texts.jsonl",
    ),
)
@command
def bench(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="app.py::Class.method, or APP.Class.method.")],
    concurrency: bench_options.Concurrency = None,
    rate: bench_options.Rate = None,
    arrival: bench_options.Arriving = None,
    seed: bench_options.Seed = None,
    max_in_flight: bench_options.MaxInFlight = None,
    duration_s: bench_options.Duration = None,
    warmup_s: bench_options.Warmup = None,
    requests: bench_options.Requests = None,
    slo_ms: bench_options.Slo = None,
    inputs: bench_options.Inputs = None,
    deadline_s: bench_options.Deadline = None,
    json_file: bench_options.JsonFile = None,
) -> None:
    """Measure a method under load: calls per second, latency percentiles, goodput, errors, cold start.

    The method is one of a file, whose app starts and is drained at the end, or one of a deployed app. What follows
    TARGET are its arguments, as `gworker run` reads them, and these options as well. Ctrl-C shows what was measured so
    far.
    """
    from gworker.cli import bench as _bench

    given = {
        "concurrency": concurrency,
        "rate": rate,
        "arrival": arrival,
        "seed": seed,
        "max_in_flight": max_in_flight,
        "duration_s": duration_s,
        "warmup_s": warmup_s,
        "requests": requests,
        "slo_ms": slo_ms,
        "inputs": inputs,
        "deadline_s": deadline_s,
        "json_file": json_file,
    }
    _ended(_bench.bench(target, context.args, given))


@cli.command(epilog=_example("gworker serve app.py --reload"))
@command
def serve(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="app.py, or package.module, with :app if need be.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token that requests must carry.", show_default="none")
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Take edits over; the old version serves until the new one is ready.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks in HTTP answers.")] = False,
    gateways: Annotated[
        int, typer.Option(min=1, help="HTTP servers. More than one deploys the app and runs them on the cluster.")
    ] = 1,
) -> None:
    """Serve the app over HTTP until Ctrl-C, which drains; a second Ctrl-C stops at once."""
    from gworker.cli import serving

    _ended(
        serving.serve(
            serving.Serving(target, host, port, token_file=token_file, debug=debug), reload=reload, gateways=gateways
        )
    )


@cli.command(epilog=_example("gworker deploy app.py --name inference-server"))
@command
def deploy(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="app.py, or package.module, with :app if need be.")],
    name: Annotated[str | None, typer.Option(help="Name to deploy under.", show_default="the app's own")] = None,
    http: Annotated[bool, typer.Option("--http", help="Run an HTTP server for it on the cluster, too.")] = False,
    host: Annotated[str, typer.Option(help="With --http: address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --http: port.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="With --http: file with the bearer token.", show_default="none")
    ] = None,
    gateways: Annotated[int, typer.Option(min=1, help="With --http: how many servers, spread over the nodes.")] = 1,
    as_json: _Json = False,
) -> None:
    """Run the app on the cluster, apart from any program; deploying again replaces it without a failed call.

    Other programs reach it with gw.Cls.from_name(APP, CLASS), and `gworker call`.
    """
    from gworker.cli import operate, serving

    servers = (serving.Serving(target, host, port, token_file=token_file), gateways) if http else None
    operate.deploy(target, name, servers, as_json=as_json)


@cli.command(epilog=_example("gworker status inference-server --watch"))
@command
def status(
    app: Annotated[
        str | None, typer.Argument(metavar="[APP]", help="One app; without it, all that are deployed.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew every second, until Ctrl-C.")] = False,
    as_json: _Json = False,
) -> None:
    """Show the deployed apps, or the pools, workers and latest events of one."""
    from gworker.cli import operate

    operate.status(app, watch=watch, as_json=as_json)


@cli.command(epilog=_example("gworker logs inference-server Embedder -f"))
@command
def logs(
    app: Annotated[
        str, typer.Argument(metavar="APP", help="The app, deployed or not, on the cluster that is attached.")
    ],
    cls: Annotated[str | None, typer.Argument(metavar="[CLASS]", help="Only the workers of this class.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the latest lines.")] = 200,
    as_json: _Json = False,
) -> None:
    """Show what workers printed and logged, each line with its worker and the call it came from."""
    from gworker.cli import logs as _logs

    _logs.logs(app, cls, follow=follow, lines=lines, as_json=as_json)


@cli.command(epilog=_example("gworker scale inference-server Embedder --min 2 --max 8"))
@command
def scale(
    app: _App,
    cls: Annotated[str, typer.Argument(metavar="CLASS", help="The class whose pool to change.")],
    min_workers: Annotated[
        int | None, typer.Option("--min", min=0, help="Workers kept ready.", show_default="as is")
    ] = None,
    max_workers: Annotated[
        int | None, typer.Option("--max", min=1, help="The most workers.", show_default="as is")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Change how many workers a deployed class may have. Lasts until the app is deployed again."""
    from gworker.cli import operate

    operate.scale(app, cls, min_workers, max_workers, as_json=as_json)


@cli.command(epilog=_example("gworker stop inference-server"))
@command
def stop(
    app: _App,
    now: Annotated[bool, typer.Option("--now", help="Kill the workers instead of draining them.")] = False,
) -> None:
    """Stop a deployed app for everybody: running calls finish, on_exit hooks run, workers end."""
    from gworker.cli import operate

    operate.stop(app, drain=not now)


@cli.command(epilog=_example("gworker init my-service"))
@command
def init(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to; it is made if need be.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace an app.py that is there.")] = False,
) -> None:
    """Write a small app.py to start from: a class with batching and a probe that runs as it stands."""
    from gworker.cli import init as _init

    _init.init(folder, force=force)


@cli.command(epilog=_example("gworker doctor"))
@command
def doctor(as_json: _Json = False) -> None:
    """Check the set-up: versions, the Ray cluster, its GPUs, and whether its ports are open to others.

    Exit code 1 when something is wrong.
    """
    from gworker.cli import diagnose

    _ended(diagnose.doctor(as_json=as_json))


def main(args: list[str] | None = None) -> Any:
    """The `gworker` command."""
    cli(args=args, prog_name="gworker")
