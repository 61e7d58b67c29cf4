"""What runs at the same time in a worker, on which thread, on which loop, and what cannot hold up what."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import gworker as gw
from tests.conftest import Gate, Ledger, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("module_app")]

app = gw.App("contract-concurrency")


class Meter:
    """Counts what is inside it, and the most there ever was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = 0
        self.peak = 0

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.peak = max(self.peak, self.now)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.now -= 1


@app.cls(max_workers=1, cpu=0.1)
class Strict:
    """No `@gw.concurrent`: one invocation at a time."""

    @gw.on_enter()
    def setup(self) -> None:
        self.meter = Meter()
        self.thread = threading.get_ident()

    @gw.on_enter()
    def setup_more(self) -> None:
        assert threading.get_ident() == self.thread

    @gw.on_enter()
    async def setup_async(self) -> None:
        self.loop = asyncio.get_running_loop()

    @gw.method()
    def sync(self, x: int) -> int:
        with self.meter:
            time.sleep(0.002)
            return x

    @gw.method()
    async def asynchronous(self, x: int) -> int:
        with self.meter:
            await asyncio.sleep(0.002)
            return x

    @gw.method()
    def stream(self, x: int) -> Any:
        with self.meter:
            time.sleep(0.002)
            yield x

    @gw.method()
    @gw.batched(max_batch_size=2)
    def batch(self, xs: list[int]) -> list[int]:
        with self.meter:
            time.sleep(0.002)
            return xs

    @gw.method()
    def peak(self) -> int:
        return self.meter.peak

    @gw.method()
    def is_on_the_thread_of_the_hooks(self) -> bool:
        return threading.get_ident() == self.thread

    @gw.method()
    def items_on_the_thread_of_the_hooks(self) -> Any:
        for _ in range(40):
            yield threading.get_ident() == self.thread

    @gw.method()
    async def is_on_the_loop_of_the_hooks(self) -> bool:
        return asyncio.get_running_loop() is self.loop and threading.get_ident() != self.thread


@app.cls(max_workers=1, cpu=0.1)
@gw.concurrent(max_inputs=4)
class Four:
    @gw.on_enter()
    def setup(self) -> None:
        self.meter = Meter()
        self.barrier = threading.Barrier(4)

    @gw.method()
    def sync(self, x: int) -> int:
        with self.meter:
            time.sleep(0.005)
            return x

    @gw.method()
    async def asynchronous(self, x: int) -> int:
        with self.meter:
            await asyncio.sleep(0.005)
            return x

    @gw.method()
    def meet(self) -> int:
        """Returns only when four are in here at once."""
        self.barrier.wait(10)
        return threading.get_ident()

    @gw.method()
    async def meet_async(self, gates: list[Gate], mine: int) -> None:
        """Returns only when all gates have been opened, each by one of us."""
        gates[mine].open()
        for gate in gates:
            await gate.wait_async(10)

    @gw.method()
    def take_peak(self) -> int:
        peak, self.meter.peak = self.meter.peak, 0
        return peak


@app.cls(max_workers=2, min_workers=2, cpu=0.1)
class Caller:
    """Calls from other processes."""

    @gw.method()
    def flood(self, method: Any, count: int, gate: Gate) -> list[int]:
        gate.wait()
        return list(method.map(range(count)))


def flood(*methods: Any, callers: int = 8, each: int = 10) -> None:
    """Call the methods from many threads at once."""

    def calls(_: int) -> None:
        for x in range(each):
            for method in methods:
                if hasattr(method, "_submitter"):
                    assert list(method.stream(x)) == [x]
                else:
                    assert method.remote(x) == x

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(calls, range(callers)))


# --- how many --------------------------------------------------------------------------------------------------------


def test_one_input_runs_at_a_time_by_default_whatever_the_number_of_callers_and_the_kinds_of_methods() -> None:
    strict = Strict()
    flood(strict.sync, strict.asynchronous, strict.stream, strict.batch)
    assert strict.peak.remote() == 1


@pytest.mark.parametrize("method", ["sync", "asynchronous"])
def test_as_many_as_max_inputs_run_and_never_one_more(method: str) -> None:
    Four().take_peak.remote()
    flood(getattr(Four(), method), callers=12)
    assert Four().take_peak.remote() == 4


def test_two_callers_in_two_processes_never_overfill_a_worker(gate: Gate) -> None:
    Four().take_peak.remote()
    floods = [Caller().flood.spawn(method, 60, gate) for method in (Four().asynchronous, Four().sync)]
    eventually(lambda: gate.arrivals == 2, 20)
    gate.open()
    ours = list(Four().sync.map(range(60)))
    assert [ours, *gw.gather(*floods)] == [list(range(60))] * 3
    assert Four().take_peak.remote() == 4
    floods = [Caller().flood.spawn(method, 30, gate) for method in (Strict().asynchronous, Strict().batch)]
    ours = list(Strict().sync.map(range(30)))
    assert [ours, *gw.gather(*floods)] == [list(range(30))] * 3
    assert Strict().peak.remote() == 1


def test_a_caller_with_much_to_send_does_not_starve_another(gate: Gate) -> None:
    flood = Caller().flood.spawn(Four().asynchronous, 400, gate)
    eventually(lambda: gate.arrivals == 1, 20)
    gate.open()
    ours = [Four().asynchronous.remote(x) for x in range(3)]
    assert ours == [0, 1, 2]
    assert not flood.done()
    assert flood.get() == list(range(400))


def test_sync_inputs_run_on_threads_of_their_own() -> None:
    calls = [Four().meet.spawn() for _ in range(4)]
    assert len(set(gw.gather(*calls))) == 4


def test_async_inputs_overlap_on_one_loop(gate: Gate) -> None:
    gates = [Gate(f"{gate.path}-{i}") for i in range(4)]
    gw.gather(*(Four().meet_async.spawn(gates, i) for i in range(4)))


# --- where -----------------------------------------------------------------------------------------------------------


def test_sync_methods_that_run_one_at_a_time_run_on_the_thread_of_the_sync_hooks() -> None:
    strict = Strict()
    assert [strict.is_on_the_thread_of_the_hooks.remote() for _ in range(5)] == [True] * 5
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: strict.is_on_the_thread_of_the_hooks.remote(), range(32))) == {True}
    assert all(strict.items_on_the_thread_of_the_hooks.stream())


def test_async_methods_and_async_hooks_share_one_loop() -> None:
    assert [Strict().is_on_the_loop_of_the_hooks.remote() for _ in range(3)] == [True] * 3


@app.cls(max_workers=1, cpu=0.1)
@gw.concurrent(max_inputs=1)
class Single:
    @gw.on_enter()
    def setup(self) -> None:
        self.thread = threading.get_ident()

    @gw.method()
    def is_on_the_thread_of_the_hooks(self) -> bool:
        return threading.get_ident() == self.thread


def test_max_inputs_of_one_also_keeps_to_the_thread_of_the_hooks() -> None:
    assert [Single().is_on_the_thread_of_the_hooks.remote() for _ in range(5)] == [True] * 5


# --- what cannot hold up what ----------------------------------------------------------------------------------------


@app.cls(
    max_workers=1,
    cpu=0.1,
    drain_timeout_s=2,
    probes=[gw.Probe.on("alive", period_s=0.2, timeout_s=1, failures=2)],
)
@gw.concurrent(max_inputs=16)
class Blockable:
    @gw.on_enter()
    def setup(self) -> None:
        self.probed = 0

    @gw.on_exit()
    def leave(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.write("left")

    @gw.method()
    def alive(self) -> None:
        self.probed += 1

    @gw.method()
    async def block(self, gate: Gate) -> str:
        gate.wait()  # blocks the loop, as a careless library would
        return "through"

    @gw.method()
    async def idle(self, gate: Gate) -> None:
        await gate.wait_async()

    @gw.method()
    def add(self, a: int, b: int) -> int:
        return a + b

    @gw.method()
    def how_often_probed(self) -> int:
        return self.probed

    @gw.method()
    def remember(self, ledger: Ledger) -> None:
        self.ledger = ledger

    @gw.method()
    def hold(self, gate: Gate, x: int) -> tuple[int, bool]:
        """Until the gate opens, or nobody waits any more."""
        call = gw.current_call()
        gate._arrivals.write("hold")
        eventually(lambda: gate.is_open or call.cancelled, 20)
        return x, call.cancelled


def test_an_async_method_that_blocks_its_loop_holds_up_neither_traffic_nor_probes_nor_cancellation(gate: Gate) -> None:
    blockable = Blockable()
    assert blockable.add.remote(1, 1) == 2
    closed = Gate(gate.path + "-closed")
    blocked = blockable.block.spawn(gate)
    eventually(lambda: gate.arrivals == 1)
    # Sync methods run and answer.
    assert blockable.add.spawn(1, 2).get(timeout_s=5) == 3
    # Probes go on.
    probed = blockable.how_often_probed.remote()
    eventually(lambda: blockable.how_often_probed.remote() > probed + 2, 5)
    # Cancelling and deadlines work, for what is blocked itself too.
    idle = blockable.idle.spawn(closed)
    idle.cancel()
    with pytest.raises(gw.CallCancelled):
        idle.get(timeout_s=5)
    with pytest.raises(gw.DeadlineExceeded):
        blockable.idle.with_options(deadline_s=0.3).spawn(closed).get(timeout_s=5)
    with pytest.raises(gw.DeadlineExceeded):
        blockable.idle.with_options(timeout_s=0.3).spawn(closed).get(timeout_s=5)
    # The controller sees the worker.
    assert app.status().pool("Blockable").ready == 1
    gate.open()
    assert blocked.get(timeout_s=5) == "through"
    assert app.status().pool("Blockable").restarts == 0


def test_a_blocked_loop_does_not_hold_up_a_drain_beyond_its_grace(make_app: Any, ledger: Ledger, gate: Gate) -> None:
    own = make_app()
    own_cls = own.cls(max_workers=1, drain_timeout_s=1)(Blockable.user_cls)  # type: ignore[attr-defined]
    own_cls().remember.remote(ledger)
    blocked = own_cls().block.spawn(gate)
    eventually(lambda: gate.arrivals == 1)
    begun = time.monotonic()
    own.stop(drain=True)
    assert time.monotonic() - begun < 8
    assert ledger.lines() == ["left"]  # the sync on_exit hook ran beside the blocked loop
    with pytest.raises(gw.GWorkerError):
        blocked.get(timeout_s=5)


def test_cancelling_one_sync_input_among_sixteen_leaves_fifteen(gate: Gate) -> None:
    calls = [Blockable().hold.spawn(gate, x) for x in range(16)]
    eventually(lambda: gate.arrivals == 16)
    calls[7].cancel()
    with pytest.raises(gw.CallCancelled):
        calls[7].get(timeout_s=5)
    # Its place is free again once it has seen that it was cancelled.
    assert Blockable().add.spawn(2, 2).get(timeout_s=5) == 4
    assert sum(call.done() for call in calls) == 1
    gate.open()
    assert gw.gather(*calls[:7], *calls[8:]) == [(x, False) for x in range(16) if x != 7]
