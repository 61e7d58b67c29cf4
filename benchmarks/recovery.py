"""How soon a pool serves: from nothing, after a crash, and after a worker that hangs; and what supervision costs.

    python benchmarks/recovery.py [--rounds 7] [--json FILE]

1. From zero workers to the first result, beside the peer: create a bare Ray actor, run the same `on_enter`, one call;
   and its phases, as the app's events tell them. Before that the first call of the app.
2. From `kill -9` of the only worker to the next result, beside that cold start.
3. How long a probe that hangs goes unnoticed, beside the worst case that `describe()` prints.
4. How long several workers take to come up at once, beside as many bare actors.
5. The share of a core that the controller takes with 20 workers, each probed every second.

Medians over the rounds; the two sides of a row are measured in turns.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray

import gworker as gw
from gworker.probe import worst_case_detection_s

ENTER_S = 0.2
AT_ONCE = 8
PHASES = ("until a worker was asked for", "its process up", "class loaded", "on_enter", "ready to the result")
app = gw.App("bench-recovery")
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


@app.cls(cpu=0, max_workers=AT_ONCE)
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


def cold_start(handle: Any) -> float:
    """From no worker to a result."""
    return seconds(handle.pid.remote)


def phases(handle: Any, began: float) -> list[float]:
    """Seconds of each phase of a cold start that began at this time of day and has just ended."""
    ended = time.time()
    pool = str(handle._router().key)
    found = {e.action: e for e in app.status().events if e.pool == pool and e.worker}
    asked, ready = found["starting"].time.timestamp(), found["ready"]
    inside = [float(s) for s in re.findall(r"([\d.]+) s (?:until|to load|in on_enter)", ready.reason)]
    return [asked - began, *inside, ended - ready.time.timestamp()]


def bare_at_once(count: int) -> None:
    """So many bare actors, each called once."""
    actors = [BareTrivial.remote() for _ in range(count)]
    ray.get([actor.pid.remote() for actor in actors])
    for actor in actors:
        ray.kill(actor)


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


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    ray.init(num_cpus=8, include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    results: dict[str, list[float]] = {"bare_cold_s": [], "cold_s": [], "recovery_s": [], "detection_s": []}
    results |= {"bare_at_once_s": [], "at_once_s": []}
    time.sleep(2.0)
    first_call_s = seconds(Model().pid.remote)
    phase_rows: list[list[float]] = []
    for round_number in range(given.rounds):
        results["bare_cold_s"].append(bare_cold_start())
        # A variant has a pool of its own, without workers and without a record.
        handle = Model.with_options(max_pending=9_000 + round_number)()
        began = time.time()
        results["cold_s"].append(cold_start(handle))
        phase_rows.append(phases(handle, began))
        time.sleep(1.0)  # let Ray prestart the processes that replace those it gave away
        results["recovery_s"].append(recovery(handle))
        time.sleep(1.0)
    for round_number in range(min(3, given.rounds)):
        results["bare_at_once_s"].append(seconds(lambda: bare_at_once(AT_ONCE)))
        time.sleep(1.0)
        many = Trivial.with_options(min_workers=AT_ONCE, max_pending=9_000 + round_number)()
        results["at_once_s"].append(seconds(lambda: many._router().when_ready(AT_ONCE).result()))  # noqa: B023
        time.sleep(1.0)
    for _ in range(min(3, given.rounds)):
        results["detection_s"].append(detection())
    app.stop(drain=False)
    with app.run():
        share = controller_share(10.0)
    app.stop(drain=False)
    medians = {name: statistics.median(values) for name, values in results.items()}
    worst_s = worst_case_detection_s(HUNG)
    rows = [
        ("cold start, bare Ray actor (s)", medians["bare_cold_s"], None),
        ("cold start, gworker (s)", medians["cold_s"], medians["cold_s"] - medians["bare_cold_s"]),
        ("kill -9 to the next result (s)", medians["recovery_s"], medians["recovery_s"] - medians["cold_s"]),
        ("first call of an app, gworker (s)", first_call_s, None),
        (f"{AT_ONCE} bare actors at once (s)", medians["bare_at_once_s"], None),
        (f"{AT_ONCE} workers at once (s)", medians["at_once_s"], medians["at_once_s"] - medians["bare_at_once_s"]),
        (f"hanging probe noticed (s; worst case {worst_s:g})", medians["detection_s"], None),
        ("controller, 20 workers probed every s (cores)", share, None),
    ]
    print(f"{'':48}{'median':>10}{'more by':>10}")
    for name, value, more in rows:
        print(f"{name:48}{value:10.3f}{'' if more is None else f'{more:+10.3f}'}")
    print(f"recovery over cold start: {medians['recovery_s'] / medians['cold_s']:.2f} x")
    phase_medians = dict(zip(PHASES, map(statistics.median, zip(*phase_rows, strict=True)), strict=True))
    print("phases of the cold start: " + ", ".join(f"{name} {s:.3f} s" for name, s in phase_medians.items()))
    if given.json:
        machine = {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "ray": ray.__version__,
            "gworker": gw.__version__,
        }
        report = {"machine": machine, "rounds": results, "medians": medians, "controller_cores": share}
        report |= {"first_call_s": first_call_s, "phases_s": phase_medians}
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
