"""Many callers of one pool: they share its workers fairly and within limits, and what a dead one asked for stops."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import psutil
import pytest

import gworker as gw

pytestmark = pytest.mark.cluster


def test_two_callers_in_two_processes_never_overfill_a_worker(
    shared_app: Any, ledger: Any, gate: Any, eventually: Any
) -> None:
    @shared_app.cls(cpu=0.1, max_workers=1)
    @gw.concurrent(max_inputs=4)
    class Narrow:
        @gw.on_enter()
        def load(self) -> None:
            self.inside = self.most = 0
            self.callers: list[str] = []

        @gw.method()
        async def enter(self, caller: str) -> int:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.callers.append(caller)
            await asyncio.sleep(0.02)
            self.inside -= 1
            return self.inside

        @gw.method()
        async def account(self) -> tuple[int, list[str]]:
            return self.most, self.callers

    @shared_app.cls(cpu=0.1, min_workers=2, max_workers=2)
    class Caller:
        @gw.method()
        def call(self, name: str, count: int) -> tuple[int, int]:
            Narrow().account.remote()
            ledger.write(name)
            gate.wait()
            results = list(Narrow().enter.map([name] * count))
            return os.getpid(), len(results)

    calls = [Caller().call.spawn(name, 60) for name in ("a", "b")]
    eventually(lambda: len(ledger.lines()) == 2, 20.0)
    gate.open()
    (first, some), (second, others) = gw.gather(*calls)
    assert first != second
    assert some == others == 60
    most, callers = Narrow().account.remote()
    assert most == 4
    assert callers.count("a") == callers.count("b") == 60
    # Both were served from the start: neither waited until the other was done.
    assert {"a", "b"} == set(callers[:40])


def test_one_call_at_a_time_does_not_wait_behind_all_that_another_process_sends(
    shared_app: Any, ledger: Any, gate: Any, eventually: Any
) -> None:
    service_s = 0.04

    @shared_app.cls(cpu=0.1, max_workers=1)
    class Shared:
        """Takes in 16 inputs, because of its batches, and runs one of the others at a time."""

        @gw.method()
        def work(self) -> None:
            time.sleep(service_s)

        @gw.method()
        @gw.batched(max_batch_size=8)
        def embed(self, texts: list[str]) -> list[str]:
            return texts

    @shared_app.cls(cpu=0.1, max_workers=1)
    class Hot:
        @gw.method()
        def flood(self) -> int:
            calls = [Shared().work.spawn() for _ in range(1000)]
            calls[20].get()
            ledger.write("all places are taken")
            gate.wait()
            done = sum(call.done() for call in calls)
            for call in calls:
                call.cancel()
            return done

    flood = Hot().flood.spawn()
    eventually(ledger.lines, 20.0)
    times_s: list[float] = []
    for _ in range(30):
        began = time.perf_counter()
        Shared().work.remote()
        times_s.append(time.perf_counter() - began)
    gate.open()
    done = flood.get(20)
    # The one that runs when it comes, perhaps one that was let in before, and its own.
    assert sorted(times_s)[28] < 6 * service_s, times_s
    assert done > 30, "the other went on meanwhile"


@pytest.mark.slow
def test_the_calls_of_a_caller_that_is_killed_are_cancelled(
    shared_app: Any, ledger: Any, gate: Any, eventually: Any
) -> None:
    @shared_app.cls(cpu=0.1, max_workers=1)
    @gw.concurrent(max_inputs=4)
    class Called:
        @gw.method()
        async def wait_async(self) -> None:
            ledger.write("async begins")
            try:
                await gate.wait_async(60)
            except asyncio.CancelledError:
                ledger.write("async cancelled")
                raise

        @gw.method()
        def wait_sync(self) -> None:
            ledger.write("sync begins")
            call = gw.current_call()
            while not call.cancelled and not gate.is_open:
                pass
            ledger.write("sync cancelled" if call.cancelled else "sync let through")

        @gw.method()
        async def mine(self) -> str:
            ledger.write("mine begins")
            await gate.wait_async(60)
            return "mine goes on"

    @shared_app.cls(cpu=0.1, max_workers=1)
    class Mortal:
        @gw.method()
        def call(self) -> None:
            ledger.write(f"caller {os.getpid()}")
            gw.gather(Called().wait_async.spawn(), Called().wait_sync.spawn())

    mine = Called().mine.spawn()
    caller = Mortal().call.spawn()
    begun = eventually(lambda: len(lines := ledger.lines()) == 4 and lines)
    (pid,) = [int(line.split()[1]) for line in begun if line.startswith("caller")]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(gw.WorkerLost):
        caller.get(10)
    ended = eventually(lambda: len(lines := ledger.lines()) == 6 and lines[4:], 20.0)
    assert sorted(ended) == ["async cancelled", "sync cancelled"]
    assert not mine.done(), "the calls of other callers go on"
    gate.open()
    assert mine.get(10) == "mine goes on"


def test_a_driver_that_is_killed_leaves_no_controller_and_no_worker_behind(
    script: Any, address: str, gone: Any, eventually: Any
) -> None:
    driver = script(
        """
        import os, time
        import gworker as gw

        app = gw.App("short-lived")

        @app.cls(cpu=0.1, min_workers=2)
        class Orphan:
            @gw.method()
            def pid(self) -> int:
                return os.getpid()

            @gw.method()
            def block(self) -> None:
                time.sleep(60)

        with app.run():
            import ray
            controller = ray.get(app.client().controller.__ray_call__.remote(lambda self: os.getpid()))
            workers = [worker.pid for worker in app.status().pool("Orphan").workers]
            Orphan().block.spawn()
            print(controller, *workers, flush=True)
            time.sleep(60)
        """,
        address=address,
    )
    processes = [int(pid) for pid in eventually(lambda: driver.out.endswith("\n") and driver.out, 40.0).split()]
    assert len(processes) == 3, driver.err
    assert all(psutil.pid_exists(pid) for pid in processes)
    driver.process.kill()
    assert eventually(lambda: gone(*processes), 15.0)
