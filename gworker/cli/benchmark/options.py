"""The options of `gworker bench`, as typer reads them before the target and behind it. None: not given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gworker.cli.benchmark import plan
from gworker.cli.options import Own

Concurrency = Annotated[
    str | None,
    typer.Option(
        "--concurrency",
        "-c",
        metavar="N[,N...]",
        help="Closed loop: N callers, each of which waits for its result before it calls again; several are measured "
        f"one after the other. Without it and --rate: {','.join(map(str, plan.CALLERS))}.",
    ),
]
Rate = Annotated[
    str | None,
    typer.Option(
        "--rate",
        "-r",
        metavar="R[,R...]",
        help="Open loop: R calls per second, whatever became of those before. Latency counts from when a call was due.",
    ),
]
Arriving = Annotated[
    plan.Arrival | None,
    typer.Option("--arrival", help="With --rate: at random as from many users (poisson, the default), or evenly."),
]
Seed = Annotated[int | None, typer.Option("--seed", help=f"With --rate: which random arrivals ({plan.SEED}).")]
MaxInFlight = Annotated[
    int | None,
    typer.Option(
        "--max-in-flight",
        min=1,
        help=f"With --rate: calls under way at a time ({plan.MAX_IN_FLIGHT:,}); those due beyond count as failed.",
    ),
]
Duration = Annotated[
    float | None,
    typer.Option(
        "--duration",
        "-d",
        min=0.01,
        help=f"Seconds that are measured of each load ({plan.DURATION_S:g}; without limit with --requests).",
    ),
]
Warmup = Annotated[
    float | None,
    typer.Option("--warmup", min=0.0, help=f"Seconds of the same load before, not counted ({plan.WARMUP_S:g})."),
]
Requests = Annotated[int | None, typer.Option("--requests", "-n", min=1, help="End a load after so many calls.")]
Slo = Annotated[
    float | None,
    typer.Option(
        "--slo-ms",
        min=0.001,
        help="Count what ends well within so many ms (goodput); of a generator, what has its first item within them.",
    ),
]
Inputs = Annotated[
    str | None,
    typer.Option(
        "--inputs",
        metavar="FILE",
        help="Calls, one for each line of JSON as `gworker run --stdin` reads them, used in turn, again and again; - "
        "reads standard input.",
    ),
]
Deadline = Annotated[float | None, typer.Option("--deadline-s", min=0.001, help="Seconds for the whole of each call.")]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="Write figures, machine, versions and options as JSON; - prints them instead."
    ),
]

OWN = (
    Own("concurrency", "--concurrency", Concurrency),
    Own("rate", "--rate", Rate),
    Own("arrival", "--arrival", Arriving),
    Own("seed", "--seed", Seed),
    Own("max_in_flight", "--max-in-flight", MaxInFlight),
    Own("duration_s", "--duration", Duration),
    Own("warmup_s", "--warmup", Warmup),
    Own("requests", "--requests", Requests),
    Own("slo_ms", "--slo-ms", Slo),
    Own("inputs", "--inputs", Inputs, brings_inputs=True),
    Own("deadline_s", "--deadline-s", Deadline),
    Own("json_file", "--json", JsonFile),
)
