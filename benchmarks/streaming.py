"""Small tokens out of a generator method: gworker beside a bare Ray actor and Ray Serve, in turns in one run.

    python benchmarks/streaming.py [--rounds 3] [--tokens 2000] [--streams 32] [--no-serve] [--quick] [--json FILE]

1. Items per second of one stream, and of many at once, from one worker to one process; each side's generator is the
   same asynchronous one, which yields as fast as it can.
2. Time from the call to the first item, the median of short streams one after the other.

The peers: an asynchronous Ray actor whose method is called with `num_returns="streaming"`, and a Ray Serve deployment
called through its handle with `stream=True`. gworker's generators stop when their consumer does not keep up (16 items
ahead); the peers' run ahead. Medians over the rounds; a ratio above one is more items, or more milliseconds, here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import ray

import gworker as gw

FIRST_ITEMS = 20
app = gw.App("bench-streaming")


async def produce(count: int) -> AsyncIterator[str]:
    """What every side runs."""
    for number in range(count):
        yield f" token{number}"


@app.cls(max_workers=1, cpu=0)
@gw.concurrent(max_inputs=64)
class Model:
    """Yields tokens."""

    @gw.method()
    async def tokens(self, count: int) -> AsyncIterator[str]:
        async for token in produce(count):
            yield token


@ray.remote(num_cpus=0, max_concurrency=64)
class BareModel:
    """The peer: an asynchronous Ray actor with a streaming generator."""

    async def tokens(self, count: int) -> AsyncIterator[str]:
        async for token in produce(count):
            yield token


# Makes a stream of so many tokens.
Source = Callable[[int], AsyncIterator[str]]


def ours() -> Source:
    """Streams of gworker."""
    return Model().tokens.stream.aio


def bare_actor() -> Source:
    """Streams of a bare actor."""
    actor = BareModel.remote()

    async def stream(count: int) -> AsyncIterator[str]:
        async for reference in actor.tokens.options(num_returns="streaming").remote(count):
            yield await reference

    return stream


def ray_serve() -> Source:
    """Streams of a Serve deployment, through its handle: no HTTP on the way."""
    from ray import serve

    @serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
    class ServedModel:
        async def tokens(self, count: int) -> AsyncIterator[str]:
            async for token in produce(count):
                yield token

    serve.start(proxy_location="Disabled")
    handle = serve.run(ServedModel.bind(), name="bench-streaming", route_prefix=None)

    async def stream(count: int) -> AsyncIterator[str]:
        async for token in handle.options(stream=True).tokens.remote(count):
            yield token

    return stream


async def consume(source: Source, count: int) -> None:
    """Read a stream to its end."""
    seen = 0
    async for _ in source(count):
        seen += 1
    if seen != count:
        raise RuntimeError(f"{seen} of {count} tokens came")


async def items_a_second(source: Source, streams: int, count: int) -> float:
    """Items per second of so many streams at once."""
    start = time.perf_counter()
    await asyncio.gather(*(consume(source, count) for _ in range(streams)))
    return streams * count / (time.perf_counter() - start)


async def first_item_ms(source: Source) -> float:
    """The median time from a call to its first item."""
    times = []
    for _ in range(FIRST_ITEMS):
        start = time.perf_counter()
        stream = source(4)
        await anext(stream)
        times.append(time.perf_counter() - start)
        async for _ in stream:
            pass
    return statistics.median(times) * 1000


async def measure(sides: dict[str, Source], rounds: int, tokens: int, streams: int) -> dict[str, list[float]]:
    """All rows of all sides, in turns."""
    for source in sides.values():
        await items_a_second(source, streams, 4)
    results: dict[str, list[float]] = {}
    for _ in range(rounds):
        for side, source in sides.items():
            results.setdefault(f"{side}: first item (ms)", []).append(await first_item_ms(source))
        for side, source in sides.items():
            results.setdefault(f"{side}: 1 stream (items/s)", []).append(await items_a_second(source, 1, tokens))
        for side, source in sides.items():
            rate = await items_a_second(source, streams, tokens)
            results.setdefault(f"{side}: {streams} streams (items/s)", []).append(rate)
    return results


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2000, help="items of each stream")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--no-serve", action="store_true", help="leave Ray Serve out")
    parser.add_argument("--quick", action="store_true", help="one round of a quarter as many items")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    ray.init(num_cpus=4, include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    sides = {"gworker": ours(), "bare actor": bare_actor()}
    if not given.no_serve:
        sides["Ray Serve"] = ray_serve()
    rounds, tokens = (1, max(1, given.tokens // 4)) if given.quick else (given.rounds, given.tokens)
    results = asyncio.run(measure(sides, rounds, tokens, given.streams))
    app.stop(drain=False)
    medians = {name: statistics.median(values) for name, values in results.items()}
    rows = [name.partition(": ")[2] for name in medians if name.startswith("gworker")]
    ratios = {
        f"{row}, gworker / {side}": medians[f"gworker: {row}"] / medians[f"{side}: {row}"]
        for row in rows
        for side in sides
        if side != "gworker"
    }
    print(f"{'':28}" + "".join(f"{side:>14}" for side in sides))
    for row in rows:
        print(f"{row:28}" + "".join(f"{medians[f'{side}: {row}']:14.2f}" for side in sides))
    for name, ratio in ratios.items():
        print(f"{name:56}{ratio:8.2f} x")
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
