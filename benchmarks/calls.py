"""No-op calls: gworker beside a bare Ray actor, interleaved in one run.

    python benchmarks/calls.py [--rounds 5] [--json FILE]

Reports the p50 of one blocking call, and calls per second with many in flight to one worker (max_inputs=256 on both
sides), as medians over the rounds, and their ratios.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import ray

import gworker as gw

app = gw.App("bench-calls")
BLOCKING_CALLS = 500


@app.cls(max_workers=1, cpu=0)
@gw.concurrent(max_inputs=256)
class Echo:
    """Returns what it is given."""

    @gw.method()
    async def echo(self, x: int) -> int:
        return x


@ray.remote(num_cpus=0, max_concurrency=256)
class BareEcho:
    """The peer: an asynchronous Ray actor without anything around it."""

    async def echo(self, x: int) -> int:
        return x


def p50_ms(call: Callable[[], object]) -> float:
    """Median time of one blocking call, in milliseconds."""
    times = []
    for _ in range(BLOCKING_CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def rate(send_all: Callable[[], object], count: int) -> float:
    """Calls per second when `count` are sent at once."""
    start = time.perf_counter()
    send_all()
    return count / (time.perf_counter() - start)


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    count = given.in_flight

    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.WARNING)
    with app.run():
        ours = Echo().echo
        bare = BareEcho.remote()
        ours.remote(0)
        ray.get(bare.echo.remote(0))
        results: dict[str, list[float]] = {"p50_ms": [], "bare_p50_ms": [], "calls_s": [], "bare_calls_s": []}
        for _ in range(given.rounds):
            results["p50_ms"].append(p50_ms(lambda: ours.remote(1)))
            results["bare_p50_ms"].append(p50_ms(lambda: ray.get(bare.echo.remote(1))))
            results["calls_s"].append(rate(lambda: gw.gather(*[ours.spawn(i) for i in range(count)]), count))
            results["bare_calls_s"].append(rate(lambda: ray.get([bare.echo.remote(i) for i in range(count)]), count))
    medians = {name: statistics.median(values) for name, values in results.items()}
    ratios = {
        "p50": medians["p50_ms"] / medians["bare_p50_ms"],
        "calls_s": medians["calls_s"] / medians["bare_calls_s"],
    }
    print(f"{'':28}{'gworker':>12}{'bare actor':>12}{'ratio':>8}")
    print(
        f"{'one blocking call, p50 (ms)':28}{medians['p50_ms']:12.2f}{medians['bare_p50_ms']:12.2f}{ratios['p50']:8.2f}"
    )
    print(
        f"{f'calls/s, {count} in flight':28}{medians['calls_s']:12.0f}{medians['bare_calls_s']:12.0f}"
        f"{ratios['calls_s']:8.2f}"
    )
    if given.json:
        machine = {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "ray": ray.__version__,
            "gworker": gw.__version__,
        }
        report = {"machine": machine, "rounds": results, "medians": medians, "ratios": ratios}
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
