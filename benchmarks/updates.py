"""Rolling updates under load: how many calls fail, and how long the slowest takes.

    python benchmarks/updates.py [--updates 5] [--callers 8] [--json FILE]

Two workers, callers that call without a pause, and one update after another: new workers come up, the calls change
over, the old workers drain. Then the same on a cluster that has room for one version only.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

import gworker as gw


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

    def __init__(self, app_name: str, count: int) -> None:
        self.calls = 0
        self.failed: list[str] = []
        self.slowest_s = 0.0
        self.versions: set[int] = set()
        self._echo = gw.Cls.from_name(app_name, "Echo")
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def _run(self) -> None:
        while not self._over.is_set():
            start = time.perf_counter()
            try:
                version, _ = self._echo().echo.remote(1)
            except Exception as error:
                with self._lock:
                    self.failed.append(f"{type(error).__name__}: {error}")
                continue
            with self._lock:
                self.calls += 1
                self.slowest_s = max(self.slowest_s, time.perf_counter() - start)
                self.versions.add(version)

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def updates(name: str, count: int, callers: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Deploy, then update so many times under load."""
    app = gw.App(name)
    define(app, 0, options)
    app.deploy()
    taken = []
    with Callers(name, callers) as load:
        for version in range(1, count + 1):
            define(app, version, options)
            start = time.perf_counter()
            app.deploy()
            taken.append(time.perf_counter() - start)
    app.stop(drain=False)
    return {
        "calls": load.calls,
        "failed": len(load.failed),
        "errors": sorted(set(load.failed))[:3],
        "slowest_s": load.slowest_s,
        "versions": len(load.versions),
        "update_s": sum(taken) / len(taken),
    }


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # that this Ray ends with the benchmark is known
    ray.init(num_cpus=8, num_gpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    results = {
        "room for both": updates("bench-updates", given.updates, given.callers, {}),
        "room for one": updates("bench-updates-full", given.updates, given.callers, {"gpu": gw.Gpu(count=1)}),
    }
    print(f"{'':16}{'calls':>10}{'failed':>8}{'slowest (s)':>13}{'an update (s)':>15}{'versions':>10}")
    for name, row in results.items():
        print(
            f"{name:16}{row['calls']:10}{row['failed']:8}{row['slowest_s']:13.2f}{row['update_s']:15.2f}"
            f"{row['versions']:10}"
        )
        for error in row["errors"]:
            print("   ", error)
    if given.json:
        machine = {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "ray": ray.__version__,
            "gworker": gw.__version__,
        }
        given.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
