"""Workers that live and are not well: taken out of traffic, or replaced, and never at the cost of a call."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import pytest

import gworker as gw
from tests.chaos.account import Book, Burst, Receipt, Traffic, audit
from tests.chaos.conftest import events_of, serving, states, watched

pytestmark = [pytest.mark.cluster, pytest.mark.chaos]


@pytest.mark.parametrize("symptom", ["says no", "raises", "hangs"])
def test_a_worker_whose_liveness_fails_is_replaced_and_finishes_what_it_runs(
    symptom: str, app: Any, book: Book, ledger: Any, gate: Any, make_fault: Any, gone: Any, pids: Any, eventually: Any
) -> None:
    sick = make_fault("sick")

    @app.cls(
        cpu=0.1,
        min_workers=1,
        max_workers=1,
        probes=[gw.Probe.on("health", period_s=0.1, timeout_s=0.3, failures=2)],
    )
    @gw.concurrent(max_inputs=2)
    class Ailing:
        @gw.on_exit()
        def unload(self) -> None:
            ledger.write(f"exit {os.getpid()}")

        @gw.method()
        def health(self) -> bool:
            if sick.active and symptom == "raises":
                raise RuntimeError("out of order")
            if sick.active and symptom == "hangs":
                threading.Event().wait(60)
            return not sick.active

        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                gate.wait()
            return receipt

    calls = Burst(Ailing().work.spawn, 8)
    eventually(lambda: gate.arrivals == 2)
    (first,) = pids(app, "Ailing")
    sick.begin(first)
    eventually(lambda: gate.arrivals == 4)
    (second,) = serving(app, "Ailing", 1, without=[first])
    assert calls.done == 0
    assert not gone(first), "its two inputs are still running"
    gate.open()
    outcomes = calls.outcomes()
    audit(book, outcomes)
    assert sum(outcome.result.pid == first for outcome in outcomes) == 2
    assert {outcome.result.pid for outcome in outcomes} == {first, second}
    assert eventually(lambda: gone(first))
    assert ledger.lines() == [f"exit {first}"]
    pool = app.status().pool("Ailing")
    assert pool.restarts == 1
    told = {"says no": "returned False", "raises": "out of order", "hangs": "no answer within"}[symptom]
    assert any("liveness probe health failed" in e.reason and told in e.reason for e in events_of(app, "Ailing"))


def test_readiness_takes_a_worker_out_of_traffic_and_back_without_an_error_or_a_restart(
    app: Any, book: Book, make_fault: Any, eventually: Any
) -> None:
    unready = make_fault("unready")

    @app.cls(
        cpu=0.1,
        min_workers=2,
        max_workers=2,
        probes=[gw.Probe.on("ready", kind="readiness", period_s=0.1, timeout_s=5, failures=2)],
    )
    @gw.concurrent(max_inputs=2)
    class Moody:
        @gw.method()
        def ready(self) -> bool:
            return not unready.active

        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                time.sleep(0.01)
            return receipt

    def wait_for_starts(pid: int, count: int) -> None:
        eventually(lambda: book.starts()[pid] >= count)

    with Traffic(Moody().work.spawn, callers=6) as traffic:
        for pid in serving(app, "Moody", 2):
            wait_for_starts(pid, 5)
            unready.begin(pid)
            (ready,) = serving(app, "Moody", 1)
            assert ready != pid
            (worker,) = [worker for worker in app.status().pool("Moody").workers if worker.pid == pid]
            assert worker.state == "UNREADY"
            assert "readiness probe ready failed" in worker.reason
            traffic.flow(10)  # by now the callers know
            begun = book.starts()[pid]
            traffic.flow(50)
            assert book.starts()[pid] == begun, "no new inputs"
            unready.end(pid)
            wait_for_starts(pid, begun + 1)
        pool = app.status().pool("Moody")
    audit(book, traffic.outcomes)
    assert (pool.restarts, pool.ready) == (0, 2)


def test_a_pool_that_fails_its_liveness_all_at_once_is_replaced_one_at_a_time(
    app: Any, book: Book, make_fault: Any, pids: Any, gone: Any, eventually: Any
) -> None:
    sick = make_fault("sick")

    @app.cls(
        cpu=0.1,
        min_workers=4,
        max_workers=4,
        probes=[gw.Probe.on("health", period_s=0.2, timeout_s=5, failures=2)],
    )
    @gw.concurrent(max_inputs=2)
    class AllAtOnce:
        @gw.on_enter()
        def load(self) -> None:
            self.immune = sick.active

        @gw.method()
        def health(self) -> bool:
            return self.immune or not sick.active

        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                time.sleep(0.02)
            return receipt

    with Traffic(AllAtOnce().work.spawn, callers=4) as traffic:
        old = serving(app, "AllAtOnce", 4)
        traffic.flow(20)
        with watched(app, "AllAtOnce") as seen:
            sick.begin()
            new = serving(app, "AllAtOnce", 4, without=old, timeout_s=60.0)
        traffic.flow(20)
    audit(book, traffic.outcomes)
    assert eventually(lambda: gone(*old))
    assert app.status().pool("AllAtOnce").restarts == 4
    away = [4 - sum(state in ("READY", "UNREADY") for state in states(pool)) for pool in seen]
    assert max(away) == 1, f"never more than one was on its way out or in: {away}"
    assert max(pool.draining for pool in seen) <= 1
    assert set(pids(app, "AllAtOnce")) == set(new), "there it ends"


def test_an_async_probe_finds_a_user_loop_that_is_blocked(
    app: Any, book: Book, gate: Any, gone: Any, pids: Any, eventually: Any
) -> None:
    @app.cls(
        cpu=0.1, min_workers=1, max_workers=1, probes=[gw.Probe.on("health", period_s=0.1, timeout_s=0.3, failures=2)]
    )
    class BlocksItsLoop:
        @gw.method()
        async def health(self) -> bool:
            return True

        @gw.method()
        async def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                if number == 0:
                    gate.wait()
            return receipt

    calls = Burst(BlocksItsLoop().work.spawn, 4)
    eventually(lambda: calls.done == 3, 30.0)  # those behind the one that blocks are served by the next worker
    (second,) = pids(app, "BlocksItsLoop")
    gate.open()
    outcomes = calls.outcomes()
    audit(book, outcomes)
    first = outcomes[0].result.pid
    assert [outcome.result.pid for outcome in outcomes[1:]] == [second] * 3
    assert eventually(lambda: gone(first))
    assert app.status().pool("BlocksItsLoop").restarts == 1


def test_a_blocked_user_loop_stops_neither_sync_probes_nor_status_nor_cancelling_nor_draining(
    app: Any, ledger: Any, gone: Any, eventually: Any
) -> None:
    @app.cls(
        cpu=0.1,
        max_workers=1,
        drain_timeout_s=0.5,
        probes=[gw.Probe.on("health", period_s=0.1, timeout_s=0.5, failures=2)],
    )
    @gw.concurrent(max_inputs=2)
    class StillControlled:
        @gw.method()
        def health(self) -> bool:
            ledger.write("probe")
            return True

        @gw.method()
        async def block(self) -> None:
            ledger.write(f"block {os.getpid()}")
            time.sleep(60)  # noqa: ASYNC251  # what must not be done in a coroutine, and is done

    running, behind, queued = (StillControlled().block.spawn() for _ in range(3))
    (blocked,) = eventually(lambda: [line for line in ledger.lines() if line.startswith("block")])
    probed = len(ledger.lines())
    eventually(lambda: len(ledger.lines()) >= probed + 6)
    pool = eventually(lambda: (pool := app.status().pool("StillControlled")).running == 2 and pool)
    (worker,) = pool.workers
    assert (pool.state, pool.queued, pool.restarts) == ("READY", 1, 0)
    assert (worker.state, worker.inflight, worker.probes[0].verdict) == ("READY", 2, "PASSED")
    for call in (queued, behind, running):
        began = time.monotonic()
        call.cancel()
        with pytest.raises(gw.CallCancelled):
            call.get(5)
        assert time.monotonic() - began < 2.0
    began = time.monotonic()
    app.stop()
    assert time.monotonic() - began < 8.0, "half a second of grace, no hooks, and the kill"
    assert eventually(lambda: gone(int(blocked.split()[1])))


def test_five_time_outs_in_a_row_take_a_worker_out_of_traffic_for_a_while(
    app: Any, book: Book, make_fault: Any, pids: Any, eventually: Any
) -> None:
    slow = make_fault("slow")

    @app.cls(cpu=0.1, min_workers=2, max_workers=2, timeout_s=0.2)
    @gw.concurrent(max_inputs=2)
    class OneIsSlow:
        @gw.method()
        async def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                await asyncio.sleep(10 if slow.active else 0.01)
            return receipt

    with Traffic(OneIsSlow().work.spawn, callers=6) as traffic:
        first, second = serving(app, "OneIsSlow", 2)
        traffic.flow(20)
        slow.begin(first)
        eventually(lambda: pids(app, "OneIsSlow", "UNREADY") == [first])
        (worker,) = [worker for worker in app.status().pool("OneIsSlow").workers if worker.pid == first]
        assert worker.reason
        slow.end(first)
        traffic.flow(10)
        begun = book.starts()[first]
        traffic.flow(100)
        assert book.starts()[first] == begun, "out of routing for 30 s"
        pool = app.status().pool("OneIsSlow")
    audit(book, traffic.outcomes, errors=(gw.DeadlineExceeded,))
    timed_out = [outcome for outcome in traffic.outcomes if outcome.error is not None]
    assert 5 <= len(timed_out) <= 20, "five in a row, and those that were on their way"
    assert (pool.restarts, pids(app, "OneIsSlow")) == (0, [second])
    assert any(event.worker == worker.id and event.reason for event in events_of(app, "OneIsSlow"))


def test_user_exceptions_never_take_a_worker_out_of_traffic(app: Any, book: Book) -> None:
    @app.cls(cpu=0.1, min_workers=2, max_workers=2)
    @gw.concurrent(max_inputs=4)
    class Raising:
        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number):
                raise ConnectionError(f"{number}: the data base is down")

    outcomes = Burst(Raising().work.spawn, 1).outcomes()
    both = serving(app, "Raising", 2)
    with watched(app, "Raising") as seen:
        outcomes += Burst(Raising().work.spawn, 400, 1).outcomes()
    audit(book, outcomes, errors=(ConnectionError,))
    assert all(outcome.error is not None for outcome in outcomes)
    assert set(book.starts()) == {*both}
    assert min(book.starts().values()) > 50
    assert all(states(pool) == ["READY", "READY"] for pool in seen)
    assert app.status().pool("Raising").restarts == 0


def test_the_last_worker_is_used_however_many_of_its_calls_time_out(
    app: Any, book: Book, make_fault: Any, eventually: Any
) -> None:
    slow = make_fault("slow")

    @app.cls(cpu=0.1, min_workers=1, max_workers=1, timeout_s=0.1)
    class Only:
        @gw.method()
        async def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                await asyncio.sleep(10 if slow.active else 0)
            return receipt

    slow.begin()
    lost = Burst(Only().work.spawn, 10).outcomes()
    slow.end()
    began = time.monotonic()
    served = Burst(Only().work.spawn, 1).outcomes()
    assert time.monotonic() - began < 5.0, "nobody waits until the 30 s are over"
    assert [outcome.error for outcome in served] == [None]
    assert all(isinstance(outcome.error, gw.DeadlineExceeded) for outcome in lost)
    audit(book, lost + served, errors=(gw.DeadlineExceeded,))
    assert app.status().pool("Only").restarts == 0


def test_a_sync_method_that_does_not_come_back_from_its_time_out_costs_the_worker(
    app: Any, book: Book, make_fault: Any, gone: Any, eventually: Any
) -> None:
    @app.cls(cpu=0.1, max_workers=1, timeout_s=0.3, drain_timeout_s=0.2)
    class Wedged:
        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                if number == 0:
                    threading.Event().wait(120)
                if number == 1:
                    time.sleep(0.6)  # late, and no more than that
            return receipt

    late, *_ = Burst(lambda _: Wedged().work.spawn(1), 1).outcomes()
    assert isinstance(late.error, gw.DeadlineExceeded)
    began = time.time()
    wedged, *waiting = Burst(lambda n: Wedged().work.spawn(n and n + 1), 4).outcomes()
    assert isinstance(wedged.error, gw.DeadlineExceeded)
    assert wedged.error.limit == "timeout_s"
    assert [outcome.error for outcome in waiting] == [None] * 3
    executions = {execution.number: execution for execution in book.all()}
    assert executions[0].pid == executions[1].pid, "late is not wedged"
    (second,) = {outcome.result.pid for outcome in waiting}
    assert second != executions[0].pid
    (replaced,) = [event for event in events_of(app, "Wedged") if event.action == "replaced"]
    assert "timeout_s" in replaced.reason
    assert 5.0 < replaced.time.timestamp() - began < 8.0, "5 s at least, so that what is only late is let be"
    assert eventually(lambda: gone(executions[0].pid))
    assert app.status().pool("Wedged").restarts == 1
