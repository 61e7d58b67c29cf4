"""Cold start and recovery: how soon a pool serves, and what supervision costs.

From zero workers to the first result, beside the peer: create a bare Ray actor, run the same `on_enter` (0.2 s), one
call. From `kill -9` of the only worker to the next result, beside that cold start. How long several workers take to
come up at once, beside as many bare actors. How long a probe that hangs goes unnoticed, beside the worst case that
`describe()` prints. And the share of a core that the controller takes with 20 workers, each probed every second.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
import ray
from apart import Measure
from figures import Row, more, value
from harness import Benchmark, Contender, start_ray

import gworker as gw
from gworker.probe import worst_case_detection_s

ENTER_S = 0.2
# Ray prestarts processes in place of those that it has given away: neither side shall find more of them than the other.
SETTLE_S = 1.0
app = gw.App("bench-recovery")
AT_ONCE = 8
HUNG = gw.Probe.on("health", period_s=0.5, timeout_s=0.5, failures=3)


@app.cls(cpu=0, max_workers=1, scaledown_window_s=3600)
class Model:
    """Takes a moment to load, and says which process it is."""

    @gw.on_enter()
    def load(self) -> None:
        time.sleep(ENTER_S)

    @gw.method()
    def pid(self) -> int:
        return os.getpid()


@app.cls(cpu=0, max_workers=1, probes=[HUNG])
class Hanging:
    """Its probe hangs once a file says so."""

    @gw.on_enter()
    def load(self) -> None:
        self.hangs_at = ""

    @gw.method()
    def health(self) -> None:
        if self.hangs_at and time.time() >= float(self.hangs_at):
            time.sleep(3600)

    @gw.method()
    def hang_from(self, at: float) -> int:
        self.hangs_at = str(at)
        return os.getpid()

    @gw.method()
    def pid(self) -> int:
        return os.getpid()


@app.cls(cpu=0, min_workers=20, max_workers=20, probes=[gw.Probe.on("health", period_s=1)])
class Probed:
    """One of many that are asked every second."""

    @gw.method()
    def health(self) -> bool:
        return True


@app.cls(cpu=0, max_workers=AT_ONCE, scaledown_window_s=1)
class Trivial:
    """Has nothing to load."""

    @gw.method()
    def pid(self) -> int:
        return os.getpid()


@ray.remote(num_cpus=0)
class BareTrivial:
    """The peer of Trivial."""

    def pid(self) -> int:
        return os.getpid()


@ray.remote(num_cpus=0)
class BareModel:
    """The peer: the same start, without anything around it."""

    def __init__(self) -> None:
        time.sleep(ENTER_S)

    def pid(self) -> int:
        return os.getpid()


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def bare_cold_start() -> float:
    """Create a bare actor, start it, call it."""
    actors = []

    def start() -> None:
        actors.append(BareModel.remote())
        ray.get(actors[0].pid.remote())

    taken_s = seconds(start)
    ray.kill(actors[0])
    return taken_s


def bare_at_once() -> float:
    """Several bare actors, each called once."""
    actors = []

    def start() -> None:
        actors.extend(BareTrivial.remote() for _ in range(AT_ONCE))
        ray.get([actor.pid.remote() for actor in actors])

    taken_s = seconds(start)
    for actor in actors:
        ray.kill(actor)
    return taken_s


def at_once(variant: Any) -> float:
    """Several workers of a variant, which have gone again when this returns."""
    taken_s = seconds(lambda: variant()._router().when_ready(AT_ONCE).result())
    variant.scale(min_workers=0)
    while any(pool.workers for pool in app.status().pools if pool.class_name == "Trivial"):
        time.sleep(0.1)
    return taken_s


def cold_start(handle: Any) -> float:
    """From no worker to a result."""
    return seconds(handle.pid.remote)


def recovery(handle: Any) -> float:
    """From kill -9 of the only worker to the next result."""
    os.kill(handle.pid.remote(), signal.SIGKILL)
    return seconds(handle.pid.with_options(retries=3).remote)


def detection() -> float:
    """From the moment at which a probe begins to hang to the decision to replace the worker."""
    at = time.time() + 1.0
    Hanging().hang_from.remote(at)
    for event in app.events():
        if event.action == "replaced" and event.pool == "Hanging" and event.time.timestamp() > at:
            return event.time.timestamp() - at
    raise RuntimeError("the app stopped")


def controller_share(for_s: float) -> float:
    """CPU seconds a second that the controller takes, with 20 workers that are probed every second."""
    report: Callable[[object], int] = lambda self: os.getpid()  # noqa: E731  # travels by value
    pid = ray.get(app.client().controller.__ray_call__.remote(report))
    process = psutil.Process(pid)

    def cpu_s() -> float:
        times = process.cpu_times()
        return times.user + times.system

    before = cpu_s()
    time.sleep(for_s)
    return (cpu_s() - before) / for_s


@contextlib.contextmanager
def bare() -> Iterator[Measure]:
    """The peer."""

    def measure(case: str) -> Mapping[str, float]:
        if case == "recovery":
            return {}
        time.sleep(SETTLE_S)
        return {"at_once_s": bare_at_once()} if case == "at once" else {"cold_s": bare_cold_start()}

    yield measure


@contextlib.contextmanager
def ours() -> Iterator[Measure]:
    """A variant for each cold start: it has a pool of its own, without workers and without a record."""
    Model().pid.remote()
    rounds = itertools.count()
    latest: list[Any] = []

    def measure(case: str) -> Mapping[str, float]:
        time.sleep(SETTLE_S)
        if case == "recovery":
            return {"recovery_s": recovery(latest[-1])}
        number = 9_000 + next(rounds)
        if case == "at once":
            return {"at_once_s": at_once(Trivial.with_options(min_workers=AT_ONCE, max_pending=number))}
        latest.append(Model.with_options(max_pending=number)())
        return {"cold_s": cold_start(latest[-1])}

    yield measure


def main() -> None:
    """Run the benchmark."""
    worst_s = worst_case_detection_s(HUNG)
    rows = [
        Row("cold_s", "from zero workers to the first result", "s", (more(0.15, "Ray actor"),)),
        Row("recovery_s", "kill -9 of the only worker to the next result", "s", (more(0.15, "gworker", row="cold_s"),)),
        Row("at_once_s", f"{AT_ONCE} workers at once, nothing to load", "s"),
        Row("detection_s", "a hanging probe is noticed", "s", (value(worst_s),)),
        Row("controller", "controller with 20 workers probed every second", "cores"),
    ]
    bench = Benchmark(__doc__, rows, rounds=7, quick_rounds=2)
    start_ray(8)
    bench.run([Contender("gworker", ours), Contender("Ray actor", bare)], ["cold", "recovery", "at once"])
    for _ in range(1 if bench.quick else 3):
        bench.record("detection_s", detection())
    app.stop(drain=False)
    with app.run():
        bench.record("controller", controller_share(5.0 if bench.quick else 10.0))
    app.stop(drain=False)
    bench.finish()


if __name__ == "__main__":
    main()
