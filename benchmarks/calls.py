"""No-op calls: gworker, a bare Ray actor and Ray Serve's handle.

The p50 of one blocking call, and calls per second with 10,000 in flight to one worker (2,000 to Ray Serve, which would
take a quarter of a minute for more). gworker's class has `max_inputs=256`, and so have its peers: an actor with
`max_concurrency=256`, an asynchronous one, and a deployment with `max_ongoing_requests=256`; the first peer is an actor
as people write it, without any option. Ray Serve runs in a Ray of its own, once as it is and once with
`RAY_SERVE_THROUGHPUT_OPTIMIZED=1`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from apart import Measure
from figures import Row, times
from harness import Benchmark, Contender, start_ray

import gworker as gw

BLOCKING_CALLS = 500
IN_FLIGHT = 10_000
SERVE_IN_FLIGHT = 2_000
MATCHED = ("Ray actor (threads)", "Ray actor (async)")

ROWS = [
    Row("p50_ms", "one blocking call, p50", "ms", (times(0.2, "Ray actor", *MATCHED),)),
    Row("calls_s", "calls/s, 10,000 in flight", "", (times(12, *MATCHED, at_least=True),), more_is_better=True),
]

app = gw.App("bench-calls")


@app.cls(max_workers=1, cpu=0)
@gw.concurrent(max_inputs=256)
class Echo:
    """Returns what it is given."""

    @gw.method()
    async def echo(self, x: int) -> int:
        return x


class Plain:
    """The same for a synchronous actor."""

    def echo(self, x: int) -> int:
        return x


class Async:
    """The same for an asynchronous actor, and for Ray Serve."""

    async def echo(self, x: int) -> int:
        return x


def measured(one: Callable[[int], object], send: Callable[[int], object], in_flight: int = IN_FLIGHT) -> Measure:
    """Measures `one`, a blocking call, and `send`, which makes so many calls and waits for all."""

    def measure(case: str) -> Mapping[str, float]:
        start = time.perf_counter()
        if case == "many":
            send(in_flight)
            return {"calls_s": in_flight / (time.perf_counter() - start)}
        taken = []
        for i in range(BLOCKING_CALLS):
            start = time.perf_counter()
            one(i)
            taken.append(time.perf_counter() - start)
        return {"p50_ms": statistics.median(taken) * 1000}

    one(0)
    send(in_flight // 10)
    return measure


@contextlib.contextmanager
def ours() -> Iterator[Measure]:
    """One worker of a running app."""
    start_ray()
    with app.run():
        echo = Echo().echo
        yield measured(echo.remote, lambda n: gw.gather(*[echo.spawn(i) for i in range(n)]))


@contextlib.contextmanager
def actor(cls: type, **options: Any) -> Iterator[Measure]:
    """A bare Ray actor."""
    start_ray()
    bare = ray.remote(num_cpus=0, **options)(cls).remote()
    yield measured(lambda i: ray.get(bare.echo.remote(i)), lambda n: ray.get([bare.echo.remote(i) for i in range(n)]))
    ray.kill(bare)


@contextlib.contextmanager
def serve() -> Iterator[Measure]:
    """A deployment of one replica, called by its handle, which works in an event loop only in the throughput mode."""
    from ray import serve

    start_ray(4)
    deployment = serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})(Async)
    handle: Any = serve.run(deployment.bind(), route_prefix=None)
    loop = asyncio.new_event_loop()

    async def call(x: int) -> int:
        return await handle.echo.remote(x)

    async def call_all(count: int) -> None:
        await asyncio.gather(*[call(i) for i in range(count)])

    def send(count: int) -> None:
        for response in [handle.echo.remote(i) for i in range(count)]:
            response.result()

    if os.environ.get("RAY_SERVE_THROUGHPUT_OPTIMIZED") == "1":
        in_loop = loop.run_until_complete
        yield measured(lambda i: in_loop(call(i)), lambda n: in_loop(call_all(n)), SERVE_IN_FLIGHT)
    else:
        yield measured(lambda i: handle.echo.remote(i).result(), send, SERVE_IN_FLIGHT)
    serve.shutdown()


def main() -> None:
    """Run the benchmark."""
    bench = Benchmark(__doc__, ROWS)
    contenders = [
        Contender("gworker", ours),
        Contender("Ray actor", lambda: actor(Plain)),
        Contender("Ray actor (threads)", lambda: actor(Plain, max_concurrency=256)),
        Contender("Ray actor (async)", lambda: actor(Async, max_concurrency=256)),
        Contender("Ray Serve", serve, apart=True),
        Contender("Ray Serve (throughput)", serve, apart=True, env={"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}),
    ]
    bench.run(contenders, ["one", "many"])
    bench.finish()


if __name__ == "__main__":
    main()
