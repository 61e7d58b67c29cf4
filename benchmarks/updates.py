"""Rolling updates under load: how many calls fail, and how long the slowest takes.

Two workers, 8 callers that call without a pause, and one update after another: new workers come up, the calls change
over, the old workers drain. Then the same on a cluster that has room for one version only.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Mapping
from typing import Any

from figures import Row, value
from harness import Benchmark

import gworker as gw

CALLERS = 8
ROOMS: dict[str, dict[str, Any]] = {"room for both": {}, "room for one": {"gpu": gw.Gpu(count=1)}}
ROWS = [
    row
    for room in ROOMS
    for row in (
        Row(f"failed {room}", f"{room}: calls that failed", "", (value(0),)),
        Row(f"calls {room}", f"{room}: calls", "", more_is_better=True),
        Row(f"slowest {room}", f"{room}: the slowest call", "s"),
        Row(f"update {room}", f"{room}: an update", "s"),
    )
]


def define(app: gw.App, version: int, options: Mapping[str, Any]) -> None:
    """Define the class anew: it says which version it is."""
    app.classes.clear()

    @app.cls(name="Echo", cpu=0, min_workers=2, max_workers=2, **options)
    @gw.concurrent(max_inputs=8)
    class Echo:
        @gw.method()
        def echo(self, x: int) -> tuple[int, int]:
            time.sleep(0.002)
            return version, x


class Callers:
    """Threads that call until they are told to stop."""

    def __init__(self, app_name: str) -> None:
        self.calls = 0
        self.failed: list[str] = []
        self.slowest_s = 0.0
        self._echo = gw.Cls.from_name(app_name, "Echo")
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(CALLERS)]

    def _run(self) -> None:
        while not self._over.is_set():
            start = time.perf_counter()
            try:
                self._echo().echo.remote(1)
            except Exception as error:
                with self._lock:
                    self.failed.append(f"{type(error).__name__}: {error}")
                continue
            with self._lock:
                self.calls += 1
                self.slowest_s = max(self.slowest_s, time.perf_counter() - start)

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def updates(name: str, count: int, options: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Deploy, then update so many times under load: the figures, and the errors that callers got."""
    app = gw.App(name)
    define(app, 0, options)
    app.deploy()
    taken = []
    with Callers(name) as load:
        for version in range(1, count + 1):
            define(app, version, options)
            start = time.perf_counter()
            app.deploy()
            taken.append(time.perf_counter() - start)
    app.stop(drain=False)
    figures = {
        "failed": len(load.failed),
        "calls": load.calls,
        "slowest": load.slowest_s,
        "update": statistics.fmean(taken),
    }
    return figures, sorted(set(load.failed))[:3]


def main() -> None:
    """Run the benchmark."""
    import ray

    bench = Benchmark(__doc__, ROWS)
    logging.disable(logging.WARNING)  # that this Ray ends with the benchmark is known
    ray.init(
        address="local",
        num_cpus=8,
        num_gpus=2,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    for n, (room, options) in enumerate(ROOMS.items()):
        figures, errors = updates(f"bench-updates-{n}", 2 if bench.quick else 5, options)
        for key, measured in figures.items():
            bench.record(f"{key} {room}", measured)
        for error in errors:
            bench.note(f"{room}: {error}")
    bench.finish()


if __name__ == "__main__":
    main()
