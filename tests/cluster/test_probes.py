"""Probes run beside the inputs; liveness replaces a worker, readiness takes it out of traffic and back."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest

import gworker as gw

pytestmark = pytest.mark.cluster


def probe_of(app: Any, class_name: str) -> Any:
    """The status of the one probe of the one worker of a class."""
    workers = app.status().pool(class_name).workers
    return workers[0].probes[0] if len(workers) == 1 and workers[0].probes else None


def test_liveness_replaces_the_worker_and_lets_its_running_input_finish(
    shared_app: Any, ledger: Any, make_gate: Any, gone: Any, eventually: Any
) -> None:
    sick, gate = make_gate("sick"), make_gate("work")

    @shared_app.cls(
        cpu=0.1, max_workers=1, probes=[gw.Probe.on("health", kind="liveness", period_s=0.1, timeout_s=2, failures=2)]
    )
    class Alive:
        @gw.on_exit()
        def unload(self) -> None:
            ledger.write(f"exit {os.getpid()}")

        @gw.method()
        def health(self) -> dict[str, bool]:
            return {"ok": not os.path.exists(f"{sick.path}-{os.getpid()}")}

        @gw.method()
        def pid(self) -> int:
            return os.getpid()

        @gw.method()
        def wait(self) -> int:
            ledger.write("running")
            gate.wait()
            return os.getpid()

    first = Alive().pid.remote()
    running = Alive().wait.spawn()
    eventually(ledger.lines)
    open(f"{sick.path}-{first}", "w").close()
    eventually(lambda: shared_app.status().pool("Alive").restarts == 1)
    second = Alive().pid.remote()
    assert second != first, "no new input goes to the worker that failed"
    gate.open()
    assert running.get(10) == first
    assert eventually(lambda: gone(first))
    assert ledger.lines() == ["running", f"exit {first}"]
    assert shared_app.status().pool("Alive").restarts == 1


def test_readiness_takes_a_worker_out_of_routing_and_back(
    shared_app: Any, make_gate: Any, pids: Any, eventually: Any
) -> None:
    unready = make_gate("unready")

    @shared_app.cls(
        cpu=0.1,
        min_workers=2,
        max_workers=2,
        probes=[gw.Probe.on("ready", kind="readiness", period_s=0.1, failures=2, successes=2)],
    )
    class Ready:
        @gw.method()
        def ready(self) -> bool:
            return not os.path.exists(f"{unready.path}-{os.getpid()}")

        @gw.method()
        def pid(self) -> int:
            return os.getpid()

    Ready().pid.remote()
    first, second = eventually(lambda: len(found := pids(shared_app, "Ready")) == 2 and found)
    for pid in (first, second):
        open(f"{unready.path}-{pid}", "w").close()
        eventually(lambda pid=pid: pid in pids(shared_app, "Ready", "UNREADY"))
        if pid == first:
            assert {Ready().pid.remote() for _ in range(20)} == {second}
    # Neither is ready: calls wait, say for what, and are served when one is back.
    call = Ready().pid.spawn()
    eventually(lambda: "not ready: readiness probe ready" in shared_app.status().pool("Ready").waiting_for)
    assert not call.done()
    os.unlink(f"{unready.path}-{first}")
    assert call.get(10) == first
    assert shared_app.status().pool("Ready").restarts == 0


def test_a_probe_runs_beside_a_busy_worker_and_only_after_on_enter(
    shared_app: Any, ledger: Any, gate: Any, eventually: Any
) -> None:
    @shared_app.cls(cpu=0.1, max_workers=1, probes=[gw.Probe.on("health", period_s=0.05, timeout_s=1, failures=1)])
    class Busy:
        @gw.on_enter()
        def load(self) -> None:
            time.sleep(0.3)
            ledger.write("entered")

        @gw.method()
        def health(self) -> bool:
            ledger.write("probe")
            return True

        @gw.method()
        def block(self) -> int:
            before = len(ledger.lines())
            gate.wait()
            return len(ledger.lines()) - before

        @gw.method()
        async def block_the_loop(self) -> int:
            return self.block()

    assert ledger.lines() == []
    for block in (Busy().block, Busy().block_the_loop):
        gate.shut()
        call = block.spawn()
        before = eventually(ledger.lines)
        eventually(lambda before=before: len(ledger.lines()) >= len(before) + 5)
        gate.open()
        assert call.get(10) >= 3
    assert ledger.lines()[0] == "entered"
    assert shared_app.status().pool("Busy").restarts == 0


def test_a_probe_that_hangs_counts_as_failed_unless_inputs_succeed_meanwhile(
    shared_app: Any, ledger: Any, make_gate: Any, eventually: Any
) -> None:
    stuck = make_gate("stuck")

    @shared_app.cls(cpu=0.1, max_workers=1, probes=[gw.Probe.on("health", period_s=0.1, timeout_s=0.2, failures=3)])
    @gw.concurrent(max_inputs=2)
    class Hangs:
        @gw.method()
        def health(self) -> None:
            if stuck.is_open:
                ledger.write(f"stuck {os.getpid()}")
                threading.Event().wait(60)

        @gw.method()
        def pid(self) -> int:
            return os.getpid()

    first = Hangs().pid.remote()
    stuck.open()
    eventually(ledger.lines)
    end = time.monotonic() + 2.0
    while time.monotonic() < end:  # longer than three periods
        assert Hangs().pid.remote() == first
        time.sleep(0.02)
    assert probe_of(shared_app, "Hangs").verdict in ("TIMED_OUT", "UNKNOWN")
    stuck.shut()
    # No input succeeds from now on: the same hanging probe is the end of its worker.
    eventually(lambda: shared_app.status().pool("Hangs").restarts == 1)
    assert Hangs().pid.remote() != first
    assert ledger.lines() == [f"stuck {first}"], "there is never more than one of a probe in flight"


def test_an_explicit_failure_counts_however_many_inputs_succeed(
    shared_app: Any, make_gate: Any, eventually: Any
) -> None:
    sick = make_gate("sick")

    @shared_app.cls(cpu=0.1, max_workers=1, probes=[gw.Probe.on("health", period_s=0.1, failures=2)])
    class Fails:
        @gw.on_enter()
        def load(self) -> None:
            self.sick_from_birth = sick.is_open

        @gw.method()
        async def health(self) -> None:
            if sick.is_open and not self.sick_from_birth:
                raise RuntimeError("the model has lost its mind")

        @gw.method()
        async def pid(self) -> int:
            return os.getpid()

    first = Fails().pid.remote()
    eventually(lambda: (probe := probe_of(shared_app, "Fails")) and probe.verdict == "PASSED")
    sick.open()
    replaced = eventually(lambda: (pid := Fails().pid.remote()) != first and pid)
    pool = shared_app.status().pool("Fails")
    assert pool.restarts == 1
    old = [worker for worker in pool.workers if worker.pid == first]
    assert not old or "the model has lost its mind" in old[0].reason
    assert Fails().pid.remote() == replaced


def test_an_async_probe_runs_on_the_loop_of_the_async_methods(shared_app: Any, gate: Any, eventually: Any) -> None:
    @shared_app.cls(cpu=0.1, max_workers=1, probes=[gw.Probe.on("health", period_s=0.1, timeout_s=0.3, failures=2)])
    @gw.concurrent(max_inputs=2)
    class OnTheLoop:
        @gw.method()
        async def health(self) -> bool:
            self.probed_on = threading.get_ident()
            return True

        @gw.method()
        async def threads(self) -> tuple[int, int]:
            return threading.get_ident(), self.probed_on

        @gw.method()
        async def block_the_loop(self) -> None:
            gate.wait()

    OnTheLoop().health.remote()
    mine, probed = OnTheLoop().threads.remote()
    eventually(lambda: (probe := probe_of(shared_app, "OnTheLoop")) and probe.verdict == "PASSED")
    mine, probed = OnTheLoop().threads.remote()
    assert mine == probed
    # A loop that is blocked for good fails it, and the worker is replaced.
    blocked = OnTheLoop().block_the_loop.spawn()
    eventually(lambda: shared_app.status().pool("OnTheLoop").restarts == 1)
    gate.open()
    blocked.get(10)
