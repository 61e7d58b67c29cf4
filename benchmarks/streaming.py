"""Streams of tokens: items/s out of a generator method, and the time to the first.

Items per second of one stream, and of 32 at once, from one worker to one process; each side's generator is the same
asynchronous one, which yields as fast as it can. And the time from a call to its first item, the median of short
streams one after the other. The peers are an asynchronous Ray actor whose method is called with
`num_returns="streaming"`, and a Ray Serve deployment called through its handle with `stream=True`. gworker's
generators stop when their consumer does not keep up (16 items ahead); the peers' run ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import ray
from apart import Measure
from figures import Row
from harness import Benchmark, Contender, start_ray

import gworker as gw

FIRST_ITEMS = 20
STREAMS = 32
ROWS = [
    Row("first_ms", "the first item", "ms"),
    Row("one_s", "items/s, 1 stream", "", more_is_better=True),
    Row("many_s", f"items/s, {STREAMS} streams", "", more_is_better=True),
]

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


def measured(source: Source, tokens: int) -> Measure:
    """Measures one side."""
    loop = asyncio.new_event_loop()

    def measure(case: str) -> Mapping[str, float]:
        if case == "first":
            return {"first_ms": loop.run_until_complete(first_item_ms(source))}
        streams = STREAMS if case == "many" else 1
        return {f"{case}_s": loop.run_until_complete(items_a_second(source, streams, tokens))}

    loop.run_until_complete(items_a_second(source, STREAMS, 4))
    return measure


@contextlib.contextmanager
def ours(tokens: int) -> Iterator[Measure]:
    """Streams of gworker."""
    start_ray(4)
    with app.run():
        yield measured(Model().tokens.stream.aio, tokens)


@contextlib.contextmanager
def bare_actor(tokens: int) -> Iterator[Measure]:
    """Streams of a bare actor."""
    start_ray(4)
    actor = BareModel.remote()

    async def stream(count: int) -> AsyncIterator[str]:
        async for reference in actor.tokens.options(num_returns="streaming").remote(count):
            yield await reference

    yield measured(stream, tokens)
    ray.kill(actor)


@contextlib.contextmanager
def ray_serve(tokens: int) -> Iterator[Measure]:
    """Streams of a Serve deployment, through its handle: no HTTP on the way."""
    from ray import serve

    start_ray(4)

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

    yield measured(stream, tokens)
    serve.shutdown()


def main() -> None:
    """Run the benchmark."""
    bench = Benchmark(__doc__, ROWS, rounds=3, quick_rounds=1)
    tokens = 500 if bench.quick else 2000
    contenders = [
        Contender("gworker", lambda: ours(tokens)),
        Contender("Ray actor", lambda: bare_actor(tokens)),
        Contender("Ray Serve", lambda: ray_serve(tokens), apart=True),
    ]
    bench.run(contenders, ["first", "one", "many"])
    bench.finish()


if __name__ == "__main__":
    main()
