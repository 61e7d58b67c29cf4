"""How calls end before their time: cancelled, out of time, or without a caller."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

import gworker as gw
from tests.conftest import Gate, Ledger, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("module_app")]

app = gw.App("contract-cancel")


@app.cls(max_workers=1, cpu=0.1)
class One:
    """One input at a time: what comes second waits in the queue."""

    @gw.method()
    def hold(self, gate: Gate, ledger: Ledger, name: str) -> str:
        """Until the gate opens, or nobody waits any more."""
        call = gw.current_call()
        ledger.write(f"started {name}")
        gate._arrivals.write(name)
        eventually(lambda: gate.is_open or call.cancelled, 20)
        ledger.write(f"{'cancelled' if call.cancelled else 'finished'} {name}")
        return name

    @gw.method()
    async def hold_async(self, gate: Gate, ledger: Ledger, name: str) -> str:
        ledger.write(f"started {name}")
        try:
            await gate.wait_async(20)
        except asyncio.CancelledError:
            ledger.write(f"cancelled {name}")
            raise
        ledger.write(f"finished {name}")
        return name

    @gw.method()
    def time_left(self) -> tuple[float | None, bool]:
        call = gw.current_call()
        return call.deadline_left_s, call.deadline is None or call.deadline > time.monotonic()

    @gw.method()
    def ping(self) -> str:
        return "pong"

    @gw.method()
    def pid(self) -> int:
        return os.getpid()


@app.cls(max_workers=1, cpu=0.1, timeout_s=0.4)
@gw.concurrent(max_inputs=8)
class Limited:
    """A limit of the class."""

    @gw.method()
    def hold(self, gate: Gate, ledger: Ledger, name: str) -> str:
        call = gw.current_call()
        eventually(lambda: gate.is_open or call.cancelled, 20)
        ledger.write(f"{'cancelled' if call.cancelled else 'finished'} {name}")
        return name

    @gw.method()
    async def hold_async(self, gate: Gate, ledger: Ledger, name: str) -> str:
        try:
            await gate.wait_async(20)
        except asyncio.CancelledError:
            ledger.write(f"cancelled {name}")
            raise
        return name

    @gw.method()
    async def stubborn(self, gate: Gate) -> str:
        """Takes no notice of being cancelled."""
        while not gate.is_open:
            try:
                await gate.wait_async(20)
            except asyncio.CancelledError:
                continue
        return "done"

    @gw.method()
    def quick(self) -> str:
        return "quick"

    @gw.method()
    @gw.batched(max_batch_size=4, wait_ms=200)
    async def batch(self, gates: list[Gate]) -> list[bool]:
        await gates[0].wait_async(20)
        return [True] * len(gates)


# --- cancelling ------------------------------------------------------------------------------------------------------


def test_a_queued_input_that_is_cancelled_never_runs(gate: Gate, ledger: Ledger) -> None:
    running = One().hold.spawn(gate, ledger, "first")
    eventually(lambda: gate.arrivals == 1)
    queued = [One().hold.spawn(gate, ledger, name) for name in ("second", "third")]
    queued[0].cancel()
    with pytest.raises(gw.CallCancelled, match=r"One\.hold"):
        queued[0].get(timeout_s=5)
    gate.open()
    assert [running.get(), queued[1].get()] == ["first", "third"]
    assert ledger.lines() == ["started first", "finished first", "started third", "finished third"]


def test_a_running_sync_input_sees_that_it_was_cancelled(gate: Gate, ledger: Ledger) -> None:
    call = One().hold.spawn(gate, ledger, "it")
    eventually(lambda: gate.arrivals == 1)
    call.cancel()
    with pytest.raises(gw.CallCancelled):
        call.get(timeout_s=5)
    eventually(lambda: ledger.lines() == ["started it", "cancelled it"])
    assert One().ping.spawn().get(timeout_s=5) == "pong"


def test_a_running_async_input_gets_cancelled_error(gate: Gate, ledger: Ledger) -> None:
    call = One().hold_async.spawn(gate, ledger, "it")
    eventually(lambda: gate.arrivals == 1)
    call.cancel()
    with pytest.raises(gw.CallCancelled):
        call.get(timeout_s=5)
    eventually(lambda: ledger.lines() == ["started it", "cancelled it"])
    assert One().ping.spawn().get(timeout_s=5) == "pong"


@pytest.mark.parametrize("method", ["hold", "hold_async"])
def test_cancelling_touches_only_that_input(method: str, gate: Gate, ledger: Ledger) -> None:
    bound = getattr(Limited(), method).with_options(timeout_s=30)
    calls = [bound.spawn(gate, ledger, str(i)) for i in range(4)]
    calls[1].cancel()
    with pytest.raises(gw.CallCancelled):
        calls[1].get(timeout_s=5)
    assert not any(calls[i].done() for i in (0, 2, 3))
    gate.open()
    assert gw.gather(calls[0], calls[2], calls[3]) == ["0", "2", "3"]


def test_cancelling_what_has_ended_changes_nothing() -> None:
    call = One().ping.spawn()
    assert call.get() == "pong"
    call.cancel()
    call.cancel()
    assert call.get() == "pong"


def test_a_call_that_is_cancelled_before_there_is_a_worker_ends_at_once(make_app: Any, gate: Gate) -> None:
    own = make_app()

    @own.cls(max_workers=1, cpu=0.1)
    class SlowStart:
        @gw.on_enter()
        def load(self) -> None:
            gate.wait()

        @gw.method()
        def ping(self) -> str:
            return "pong"

    call, other = SlowStart().ping.spawn(), SlowStart().ping.spawn()
    call.cancel()
    with pytest.raises(gw.CallCancelled):
        call.get(timeout_s=2)
    gate.open()
    assert other.get(timeout_s=20) == "pong"


async def test_cancelling_the_task_that_awaits_a_call_cancels_the_call(gate: Gate, ledger: Ledger) -> None:
    task = asyncio.create_task(One().hold_async.remote.aio(gate, ledger, "it"))
    await asyncio.to_thread(eventually, lambda: gate.arrivals == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(eventually, lambda: "cancelled it" in ledger.lines())
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(One().hold_async.remote.aio(Gate(gate.path + "-other"), ledger, "late"), 0.2)
    await asyncio.to_thread(eventually, lambda: "cancelled late" in ledger.lines())


async def test_giving_up_waiting_for_a_spawned_call_does_not_cancel_it(gate: Gate, ledger: Ledger) -> None:
    call = One().hold_async.spawn(gate, ledger, "it")
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(call, 0.2)
    with pytest.raises(TimeoutError, match=r"no result after 0\.1 s"):
        call.get(timeout_s=0.1)
    assert not call.done()
    gate.open()
    assert await call == "it"
    assert ledger.lines() == ["started it", "finished it"]


def test_an_interrupt_during_a_blocking_call_cancels_it(gate: Gate, ledger: Ledger) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        main = threading.main_thread().ident
        assert main is not None

        def when_it_runs() -> None:
            eventually(lambda: gate.arrivals == 1)
            signal.pthread_kill(main, signal.SIGUSR1)

        helper = threading.Thread(target=when_it_runs)
        helper.start()
        with pytest.raises(KeyboardInterrupt):
            One().hold_async.remote(gate, ledger, "it")
        helper.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    eventually(lambda: "cancelled it" in ledger.lines())


# --- timeout_s -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["hold", "hold_async"])
def test_timeout_s_of_the_class_bounds_one_execution_and_stops_it(method: str, gate: Gate, ledger: Ledger) -> None:
    with pytest.raises(gw.DeadlineExceeded, match=rf"Limited\.{method}.*timeout_s of 0\.4 s") as caught:
        getattr(Limited(), method).remote(gate, ledger, "it")
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.limit, caught.value.where) == ("timeout_s", "running")
    eventually(lambda: ledger.lines() == ["cancelled it"])


def test_timeout_s_of_a_call_takes_the_place_of_the_class_s(gate: Gate, ledger: Ledger) -> None:
    call = Limited().hold_async.with_options(timeout_s=30).spawn(gate, ledger, "it")
    with pytest.raises(TimeoutError):
        call.get(timeout_s=0.8)
    gate.open()
    assert call.get() == "it"
    with pytest.raises(gw.DeadlineExceeded, match=r"timeout_s of 0\.1 s"):
        One().hold.with_options(timeout_s=0.1).remote(Gate(gate.path + "-closed"), ledger, "it")


def test_timeout_s_does_not_count_the_time_in_the_queue(gate: Gate, ledger: Ledger) -> None:
    first = One().hold.spawn(gate, ledger, "first")
    eventually(lambda: gate.arrivals == 1)
    second = One().ping.with_options(timeout_s=0.5).spawn()
    with pytest.raises(TimeoutError, match="no result"):
        second.get(timeout_s=0.8)
    gate.open()
    assert [first.get(), second.get()] == ["first", "pong"]


def test_an_async_method_that_refuses_to_stop_still_lets_its_caller_go(gate: Gate) -> None:
    begun = time.monotonic()
    with pytest.raises(gw.DeadlineExceeded):
        Limited().stubborn.remote(gate)
    assert time.monotonic() - begun < 5
    assert Limited().quick.remote() == "quick"
    gate.open()


def test_timeout_s_in_a_batch_ends_all_of_it(gate: Gate) -> None:
    outcomes = list(Limited().batch.map([gate] * 3, return_exceptions=True))
    assert [(type(o), o.limit) for o in outcomes] == [(gw.DeadlineExceeded, "timeout_s")] * 3


# --- deadline_s ------------------------------------------------------------------------------------------------------


def test_deadline_s_counts_the_time_in_the_queue_and_says_so(gate: Gate, ledger: Ledger) -> None:
    first = One().hold.spawn(gate, ledger, "first")
    eventually(lambda: gate.arrivals == 1)
    begun = time.monotonic()
    with pytest.raises(gw.DeadlineExceeded, match=r"One\.hold.*deadline_s.*queue") as caught:
        One().hold.with_options(deadline_s=0.3).remote(gate, ledger, "second")
    assert 0.299 <= time.monotonic() - begun < 5  # timers count in milliseconds
    assert (caught.value.limit, caught.value.where) == ("deadline_s", "queue")
    gate.open()
    assert first.get() == "first"
    assert One().ping.remote() == "pong"
    assert "started second" not in ledger.lines()


@pytest.mark.parametrize("method", ["hold", "hold_async"])
def test_deadline_s_also_stops_what_is_running(method: str, gate: Gate, ledger: Ledger) -> None:
    with pytest.raises(gw.DeadlineExceeded, match="deadline_s") as caught:
        getattr(One(), method).with_options(deadline_s=0.5).remote(gate, ledger, "it")
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.limit == "deadline_s"
    assert caught.value.where in {"running", "worker"}
    eventually(lambda: ledger.lines() == ["started it", "cancelled it"])


def test_the_method_knows_how_much_time_is_left() -> None:
    assert One().time_left.remote() == (None, True)
    left, ahead = One().time_left.with_options(deadline_s=20).remote()
    assert left is not None and 10 < left <= 20 and ahead


def test_a_deadline_that_has_passed_when_it_starts_still_ends_the_call() -> None:
    with pytest.raises(gw.DeadlineExceeded):
        One().ping.with_options(deadline_s=1e-9).remote()


def test_a_call_that_no_worker_was_ready_for_ends_in_pool_unavailable_with_the_reason(
    make_app: Any, gate: Gate
) -> None:
    own = make_app()

    @own.cls(max_workers=1, cpu=0.1)
    class SlowStart:
        @gw.on_enter()
        def load(self) -> None:
            gate.wait()

        @gw.method()
        def ping(self) -> str:
            return "pong"

    call = SlowStart().ping.with_options(deadline_s=30).spawn()
    eventually(lambda: gate.arrivals == 1, 20)
    with pytest.raises(gw.PoolUnavailable, match=r"SlowStart\.ping.*0\.\d+ s.*on_enter is running"):
        SlowStart().ping.with_options(deadline_s=0.3).remote()
    assert own.status().pool("SlowStart").waiting_for == "1 starting (on_enter is running)"
    gate.open()
    assert call.get() == "pong"


@pytest.mark.parametrize("limit", [{"deadline_s": 0}, {"timeout_s": -1}, {"deadline_s": True}, {"timeout_s": "3"}])
def test_a_limit_that_is_no_duration_is_refused_and_named(limit: dict[str, Any]) -> None:
    (name,) = limit
    with pytest.raises(ValueError, match=rf"{name}=.*positive number of seconds.*{name}=30"):
        One().ping.with_options(**limit)


# --- what takes its time ---------------------------------------------------------------------------------------------


@app.cls(max_workers=1, cpu=0.1, drain_timeout_s=0)
class Wedged:
    @gw.method()
    def hang(self, gate: Gate) -> None:
        gate.wait(60)

    @gw.method()
    def pid(self) -> int:
        return os.getpid()


@app.cls(max_workers=1, cpu=0.1)
class Mortal:
    """Calls, and dies before it has the answer."""

    @gw.method()
    def call_and_die(self, gate: Gate, ledger: Ledger) -> None:
        Orphanage().hold.spawn(gate, ledger)
        eventually(lambda: gate.arrivals == 1)
        os._exit(1)


@app.cls(max_workers=1, cpu=0.1)
class Orphanage:
    @gw.method()
    def hold(self, gate: Gate, ledger: Ledger) -> None:
        call = gw.current_call()
        gate._arrivals.write("orphan")
        eventually(lambda: gate.is_open or call.cancelled, 60)
        ledger.write("cancelled" if call.cancelled else "finished")

    @gw.method()
    def ping(self) -> str:
        return "pong"


class Slow(NamedTuple):
    """What was begun before the first test, for the last ones to see the end of."""

    hung: gw.Call[None]
    hung_pid: int
    orphaned: gw.Call[None]
    orphan_ledger: Ledger


@pytest.fixture(scope="module", autouse=True)
def slow(module_app: gw.App, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slow]:
    """A wedged worker and a caller that dies, both of which take seconds to be noticed."""
    folder = tmp_path_factory.mktemp("slow")
    gate, ledger = Gate(folder / "gate"), Ledger(folder / "ledger")
    orphaned = Mortal().call_and_die.spawn(gate, ledger)
    pid = Wedged().pid.remote()
    yield Slow(Wedged().hang.with_options(timeout_s=0.2).spawn(Gate(folder / "closed")), pid, orphaned, ledger)
    gate.open()


def test_a_sync_execution_that_long_overruns_its_limit_has_its_worker_replaced(slow: Slow) -> None:
    with pytest.raises(gw.DeadlineExceeded):
        slow.hung.get(timeout_s=10)
    assert Wedged().pid.spawn().get(timeout_s=25) != slow.hung_pid  # it waited for the replacement


def test_a_caller_that_dies_cancels_its_calls(slow: Slow) -> None:
    with pytest.raises(gw.WorkerLost):
        slow.orphaned.get(timeout_s=20)
    eventually(lambda: slow.orphan_ledger.lines() == ["cancelled"], 20)
    assert Orphanage().ping.spawn().get(timeout_s=5) == "pong"
