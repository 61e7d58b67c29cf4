"""Controllers and drivers that die: every call ends, and nothing of an ephemeral app stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray

import gworker as gw
from tests.chaos.account import Book, Receipt, Traffic, audit
from tests.chaos.conftest import serving

pytestmark = [pytest.mark.cluster, pytest.mark.chaos]


def test_a_killed_controller_ends_its_calls_and_workers_and_the_next_call_starts_afresh(
    app: Any, book: Book, gone: Any, eventually: Any
) -> None:
    @app.cls(cpu=0.1, min_workers=2, max_workers=2)
    @gw.concurrent(max_inputs=2)
    class Orphaned:
        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                time.sleep(0.02)
            return receipt

    with Traffic(Orphaned().work.spawn, callers=8) as traffic:
        workers = serving(app, "Orphaned", 2)
        traffic.flow(20)
        # No status tells the controller's own process.
        controller = ray.get(app.client().controller.__ray_call__.remote(lambda self: os.getpid()))
        os.kill(controller, signal.SIGKILL)
        killed = time.monotonic()
        assert eventually(lambda: gone(controller, *workers))
        traffic.flow(20)
    audit(book, traffic.outcomes, errors=(gw.PoolUnavailable, gw.WorkerLost))
    under_way = [outcome for outcome in traffic.outcomes if outcome.began < killed < outcome.ended]
    assert all(outcome.ended - killed < 5.0 for outcome in under_way), "they were told"
    assert not {outcome.result.pid for outcome in traffic.outcomes[-8:] if outcome.result} & {*workers}
    assert app.status().pool("Orphaned").restarts == 0


def test_a_driver_killed_under_load_leaves_no_process_behind(
    script: Any, address: str, tmp_path: Path, gone: Any, eventually: Any
) -> None:
    driver = script(
        """
        import os, time
        import ray
        import gworker as gw

        app = gw.App("killed-under-load")

        @app.cls(cpu=0.1, min_workers=2, max_workers=2)
        class Working:
            @gw.method()
            def work(self, seconds: float) -> int:
                time.sleep(seconds)
                return os.getpid()

        @app.cls(cpu=0.1, max_workers=1)
        class Loading:
            @gw.on_enter()
            def load(self) -> None:
                with open(os.path.join(FOLDER, "loading"), "w") as file:
                    file.write(str(os.getpid()))
                time.sleep(60)

            @gw.method()
            def work(self) -> None: ...

        FOLDER = os.environ["FOLDER"]
        with app.run():
            Loading().work.spawn()
            calls = [Working().work.spawn(0.01) for _ in range(1000)] + [Working().work.spawn(60) for _ in range(2)]
            while not os.path.exists(os.path.join(FOLDER, "loading")):
                time.sleep(0.01)
            controller = ray.get(app.client().controller.__ray_call__.remote(lambda self: os.getpid()))
            loading = int(open(os.path.join(FOLDER, "loading")).read())
            workers = [w.pid for w in app.status().pool("Working").workers]
            with open(os.path.join(FOLDER, "telling"), "w") as file:
                print(controller, loading, *workers, file=file)
            os.rename(file.name, os.path.join(FOLDER, "processes"))
            gw.gather(*calls)
        """,
        address=address,
    )
    told = tmp_path / "processes"
    with contextlib.suppress(AssertionError):
        eventually(lambda: told.exists() or driver.process.poll() is not None, 60.0)
    assert told.exists(), f"{driver.out}\n{driver.err}"
    processes = [int(pid) for pid in told.read_text().split()]
    assert len(processes) == 4
    assert not any(gone(pid) for pid in processes)
    driver.process.kill()
    assert eventually(lambda: gone(*processes))
