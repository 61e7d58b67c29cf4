"""Fairness: a light caller, one call at a time, beside a hot one that keeps 2,000 calls in flight.

Three cases: the light caller alone; beside a hot caller in another process, both calling the same worker, which takes 8
calls of 5 ms at a time; and beside a hot caller in the same process that calls another class. Peers are an
asynchronous Ray actor with `max_concurrency=8` and Ray Serve with `max_ongoing_requests=8`. The rate of the hot caller
shows what fairness costs. (Ray Serve's router finds out that a full replica has room again by trying anew, after up to
half a second: that is why its hot caller is so slow.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import ray
from apart import Measure, answer, apart
from figures import Row
from harness import Benchmark, Contender, start_ray

import gworker as gw

CALL_S = 0.005
PLACES = 8
IN_FLIGHT = 2_000
ALONE, PROCESS, CLASS = "alone", "beside a hot process", "beside a hot class"
ROWS = [
    Row(f"{figure} {case}", f"light caller {case}, {figure}", "ms")
    for case in (ALONE, PROCESS, CLASS)
    for figure in ("p50", "p99")
] + [
    Row(f"rate {case}", f"hot caller {case.removeprefix('beside a hot ')}, calls/s", "", more_is_better=True)
    for case in (PROCESS, CLASS)
]
NAMESPACE = "bench-fairness"

Call = Callable[[], Awaitable[Any]]
app = gw.App("bench-fairness")


@app.cls(max_workers=1, cpu=0, min_workers=1, scaledown_window_s=3600)
@gw.concurrent(max_inputs=PLACES)
class Shared:
    @gw.method()
    async def work(self) -> None:
        await asyncio.sleep(CALL_S)


@app.cls(max_workers=1, cpu=0, min_workers=1, scaledown_window_s=3600)
@gw.concurrent(max_inputs=PLACES)
class Other:
    @gw.method()
    async def work(self) -> None:
        await asyncio.sleep(CALL_S)


class Work:
    """The same for an actor, and for Ray Serve."""

    async def work(self) -> None:
        await asyncio.sleep(CALL_S)


# --- callers -----------------------------------------------------------------------------------------------------


class Hot:
    """Keeps calls in flight, from an event loop on a thread, until it is stopped."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._done = 0
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._all())
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        time.sleep(1.0)  # until the first calls of all have been sent

    def mark(self) -> tuple[int, float]:
        """How many calls have come back until when."""
        return self._done, time.perf_counter()

    def rate(self, since: tuple[int, float]) -> float:
        """Calls per second since a mark."""
        done, at = self.mark()
        return (done - since[0]) / (at - since[1])

    def stop(self) -> None:
        """Make no more calls, and cancel those in flight."""
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)

    async def _all(self) -> None:
        async def one() -> None:
            while True:
                await self._call()
                self._done += 1

        await asyncio.gather(*[one() for _ in range(IN_FLIGHT)])


def light(call: Callable[[], object], for_s: float) -> dict[str, float]:
    """One call after another, three at least."""
    taken = []
    until = time.perf_counter() + for_s
    while len(taken) < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    taken.sort()
    return {"p50": statistics.median(taken) * 1000, "p99": taken[int(len(taken) * 0.99)] * 1000}


def measured(call: Callable[[], object], other: Call, hot_process: Measure, for_s: float) -> Measure:
    """Measures `call` alone, beside a hot process, and beside a hot caller of `other` in this process."""

    def measure(case: str) -> Mapping[str, float]:
        if case == PROCESS:
            hot_process("start")
            found = light(call, for_s)
            found["rate"] = hot_process("stop")["rate"]
            call()  # an actor still has what it was sent to do
        elif case == CLASS:
            hot = Hot(other)
            since = hot.mark()
            found = light(call, for_s)
            found["rate"] = hot.rate(since)
            hot.stop()
        else:
            found = light(call, for_s)
        return {f"{figure} {case}": value for figure, value in found.items()}

    call()
    return measure


# --- contenders --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hot_process(kind: str) -> Iterator[Measure]:
    """This file once more, as the hot caller of what is in this process's Ray."""
    address = ray.get_runtime_context().gcs_address
    with apart(sys.argv[0], f"hot {kind}", env={"RAY_ADDRESS": address}) as ask:
        yield ask


@contextlib.contextmanager
def as_hot(kind: str) -> Iterator[Measure]:
    """The hot caller's side: "start", and "stop", which tells the rate in between."""
    ray.init(address=os.environ["RAY_ADDRESS"], namespace=NAMESPACE, log_to_driver=False)
    call: Call
    if kind == "gworker":
        call = gw.Cls.from_name(app.name, "Shared")().work.remote.aio
    elif kind == "actor":
        call = ray.get_actor("shared").work.remote
    else:
        from ray import serve

        call = serve.get_app_handle("shared").work.remote
    running: list[tuple[Hot, tuple[int, float]]] = []

    def measure(case: str) -> Mapping[str, float]:
        if case == "start":
            hot = Hot(call)
            running.append((hot, hot.mark()))
            return {}
        hot, since = running.pop()
        rate = hot.rate(since)
        hot.stop()
        return {"rate": rate}

    yield measure


@contextlib.contextmanager
def ours(for_s: float) -> Iterator[Measure]:
    """Two classes of an app that is deployed, so that other processes can call it."""
    start_ray()
    app.deploy()
    with hot_process("gworker") as hot:
        yield measured(Shared().work.remote, Other().work.remote.aio, hot, for_s)
    app.stop(drain=False)


@contextlib.contextmanager
def actors(for_s: float) -> Iterator[Measure]:
    """Two asynchronous Ray actors."""
    start_ray()
    make = ray.remote(num_cpus=0, max_concurrency=PLACES, namespace=NAMESPACE)(Work)
    shared, other = make.options(name="shared").remote(), make.options(name="other").remote()
    with hot_process("actor") as hot:
        yield measured(lambda: ray.get(shared.work.remote()), other.work.remote, hot, for_s)
    for each in (shared, other):
        ray.kill(each)


@contextlib.contextmanager
def served(for_s: float) -> Iterator[Measure]:
    """Two deployments."""
    from ray import serve

    start_ray(4)
    deployment = serve.deployment(max_ongoing_requests=PLACES, ray_actor_options={"num_cpus": 0})(Work)
    shared: Any = serve.run(deployment.bind(), name="shared", route_prefix=None)
    other: Any = serve.run(deployment.bind(), name="other", route_prefix=None)

    async def call_other() -> None:
        await other.work.remote()

    with hot_process("serve") as hot:
        yield measured(lambda: shared.work.remote().result(), call_other, hot, for_s)
    serve.shutdown()


def main() -> None:
    """Run the benchmark, or be the hot caller of one."""
    hot = [arg.removeprefix("hot ") for arg in sys.argv if arg.startswith("hot ")]
    if hot:
        answer(as_hot(hot[0]))
        return
    bench = Benchmark(__doc__, ROWS, rounds=3, quick_rounds=1)
    for_s = 2.0 if bench.quick else 4.0
    contenders = [
        Contender("gworker", lambda: ours(for_s)),
        Contender("Ray actor (async)", lambda: actors(for_s)),
        Contender("Ray Serve", lambda: served(for_s), apart=True),
    ]
    bench.run(contenders, [ALONE, PROCESS, CLASS])
    bench.finish()


if __name__ == "__main__":
    main()
