"""Callers in several processes share workers, and take nothing with them or leave nothing behind when they die."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest

import gworker as gw

pytestmark = pytest.mark.cluster


def test_callers_in_two_processes_never_overfill_a_worker(app: Any, ledger: Any) -> None:
    @app.cls(cpu=0.1, max_workers=1)
    @gw.concurrent(max_inputs=3)
    class Target:
        @gw.on_enter()
        def begin(self) -> None:
            self.lock = threading.Lock()
            self.inside = 0

        @gw.method()
        def work(self, caller: int) -> int:
            with self.lock:
                self.inside += 1
                most = self.inside
            time.sleep(0.005)
            with self.lock:
                self.inside -= 1
            ledger.write(f"{caller}")
            return most

    @app.cls(cpu=0.1, min_workers=2, max_workers=2)
    class Caller:
        @gw.method()
        def call(self, count: int) -> tuple[int, list[int]]:
            return os.getpid(), list(Target().work.map([os.getpid()] * count))

    with app.run():
        # Each of the two callers gets one of the two calls: a worker takes one at a time.
        answers = [call.get() for call in [Caller().call.spawn(60), Caller().call.spawn(60)]]
    assert len({pid for pid, _ in answers}) == 2
    assert max(max(seen) for _, seen in answers) == 3, "it was full, and never more than that"
    lines = ledger.lines()
    assert len(lines) == 120
    first_half = lines[:60]
    assert min(first_half.count(str(pid)) for pid, _ in answers) >= 10, "neither caller starves the other"


@pytest.mark.slow
def test_the_calls_of_a_caller_that_was_killed_are_cancelled(app: Any, ledger: Any, eventually: Any) -> None:
    @app.cls(cpu=0.1, max_workers=1)
    @gw.concurrent(max_inputs=2)
    class Target:
        @gw.method()
        async def work(self) -> None:
            import asyncio

            ledger.write("started")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ledger.write("cancelled")
                raise

        @gw.method()
        def seen_cancelled(self) -> bool:
            ledger.write("sync started")
            end = time.monotonic() + 60
            while not gw.current_call().cancelled and time.monotonic() < end:
                time.sleep(0.02)
            ledger.write(f"sync cancelled {gw.current_call().cancelled}")
            return True

    @app.cls(cpu=0.1, max_workers=1)
    class Caller:
        @gw.method()
        def call(self) -> None:
            ledger.write(f"caller {os.getpid()}")
            gw.gather(Target().work.spawn(), Target().seen_cancelled.spawn())

    call = Caller().call.spawn()
    assert eventually(lambda: {"started", "sync started"} <= set(ledger.lines()))
    (pid,) = [int(line.split()[1]) for line in ledger.lines() if line.startswith("caller")]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(gw.WorkerLost):
        call.get(timeout_s=10)
    assert eventually(lambda: {"cancelled", "sync cancelled True"} <= set(ledger.lines()), 25.0)


def test_an_ephemeral_app_dies_with_a_driver_that_was_killed(
    script: Any, address: str, gone: Any, eventually: Any
) -> None:
    driver = script(
        """
        import os, time
        import gworker as gw

        app = gw.App("dies-with-its-driver")

        @app.cls(cpu=0.1, min_workers=2)
        class Kept:
            @gw.method()
            def pid(self):
                return os.getpid()

        with app.run():
            print(*[w.pid for w in app.status().pool("Kept").workers], flush=True)
            print("up", flush=True)
            time.sleep(60)
        """,
        address,
    )
    assert eventually(lambda: "up" in driver.out, 30.0), driver.err
    workers = [int(pid) for pid in driver.out.split()[:2]]
    assert not gone(*workers)
    driver.process.kill()
    assert eventually(lambda: gone(*workers), 15.0)
