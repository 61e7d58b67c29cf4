"""Starts that fail, hang, or find no place: callers wait while there is hope, and are told why when there is none."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

import gworker as gw
from tests.chaos.account import Book, Burst, Receipt, audit
from tests.chaos.conftest import events_of

pytestmark = [pytest.mark.cluster, pytest.mark.chaos]


def test_a_pool_whose_first_starts_all_fail_tells_every_caller_at_once_with_the_traceback(
    app: Any, book: Book, ledger: Any
) -> None:
    @app.cls(cpu=0.1, min_workers=2, max_workers=2)
    class Hopeless:
        @gw.on_enter()
        def load(self) -> None:
            ledger.write(repr(time.time()))
            raise FileNotFoundError("/models/llama-3 is not there")

        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                return receipt

    outcomes = Burst(Hopeless().work.spawn, 20).outcomes()
    told = time.time()
    audit(book, outcomes, errors=(gw.StartupFailed,))
    for outcome in outcomes:
        assert "FileNotFoundError: /models/llama-3 is not there" in str(outcome.error)
        assert "in load" in str(outcome.error)
    tries = [float(line) for line in ledger.lines()]
    assert len(tries) in (6, 7), "3 x the floor; another may have been on its way"
    assert told - tries[5] < 5.0
    assert app.status().pool("Hopeless").state == "FAILED"
    (later,) = Burst(Hopeless().work.spawn, 1).outcomes()
    assert isinstance(later.error, gw.StartupFailed)
    assert later.took_s < 2.0
    assert any("/models/llama-3 is not there" in event.reason for event in events_of(app, "Hopeless"))


def test_calls_that_wait_for_starts_that_fail_are_served_by_the_one_that_works(
    app: Any, book: Book, ledger: Any
) -> None:
    @app.cls(cpu=0.1, max_workers=1)
    class ThirdTimeLucky:
        @gw.on_enter()
        def load(self) -> None:
            ledger.write("enter")
            if len(ledger.lines()) < 3:
                raise ConnectionError("the model store is not there yet")

        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                return receipt

    outcomes = Burst(ThirdTimeLucky().work.spawn, 20).outcomes()
    audit(book, outcomes)
    assert ledger.lines() == ["enter"] * 3
    pool = app.status().pool("ThirdTimeLucky")
    assert (pool.state, pool.ready) == ("READY", 1)


def test_a_start_that_hangs_with_the_interpreter_lock_ends_after_startup_timeout_s_and_leaves_no_process(
    app: Any, book: Book, ledger: Any, gone: Any, eventually: Any
) -> None:
    @app.cls(cpu=0.1, max_workers=1, startup_timeout_s=1)
    class Stuck:
        @gw.on_enter()
        def load(self) -> None:
            import os

            ledger.write(str(os.getpid()))
            sum(itertools.repeat(0))  # never returns, and lets no other thread of the process run

        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                return receipt

    outcomes = Burst(Stuck().work.spawn, 5).outcomes()
    audit(book, outcomes, errors=(gw.StartupFailed,))
    assert all("startup_timeout_s=1" in str(outcome.error) for outcome in outcomes)
    tries = ledger.lines()
    assert len(tries) == 3
    assert eventually(lambda: gone(*map(int, tries)))


def test_a_gpu_that_is_not_there_is_named_to_callers_and_in_the_status(app: Any, book: Book) -> None:
    @app.cls(cpu=0.1, gpu=gw.Gpu("B200"), max_workers=2)
    class OnB200:
        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                return receipt

    outcomes = Burst(OnB200().work.spawn, 10).outcomes()
    audit(book, outcomes, errors=(gw.Unschedulable,))
    assert all("OnB200 needs GPU B200 x1; this cluster has none" in str(outcome.error) for outcome in outcomes)
    assert max(outcome.took_s for outcome in outcomes) < 5.0
    pool = app.status().pool("OnB200")
    assert "needs GPU B200 x1" in pool.waiting_for
    assert pool.ready == 0
    assert pool.pending >= 1
    assert any("needs GPU B200 x1" in worker.reason for worker in pool.workers)
    (later,) = Burst(OnB200().work.spawn, 1).outcomes()
    assert isinstance(later.error, gw.Unschedulable)


def test_where_the_cluster_may_grow_a_gpu_that_is_not_there_is_waited_for_visibly(script: Any, address: str) -> None:
    attached = script(
        """
        import gworker as gw

        app = gw.App("waits-for-b200")

        @app.cls(cpu=0.1, gpu=gw.Gpu("B200"))
        class OnB200:
            @gw.method()
            def work(self) -> None: ...

        patient = OnB200().work.spawn()
        while not (pools := app.status().pools) or "B200" not in pools[0].waiting_for:
            pass
        try:
            OnB200().work.with_options(deadline_s=2).remote()
        except gw.PoolUnavailable as error:
            print(error)
        pool = app.status().pool("OnB200")
        print(patient.done(), pool.state, pool.ready, pool.pending >= 1, pool.waiting_for)
        app.stop()
        try:
            patient.get(10)
        except gw.PoolUnavailable as error:
            print(error)
        """,
        address=address,
        RAY_SCHEDULER_EVENTS="0",  # Ray's cluster autoscaler would say on stdout what it misses
    )
    assert attached.wait(60) == 0, attached.err
    deadline, status, stopped = attached.out.splitlines()
    assert "deadline_s" in deadline
    assert "needs GPU B200 x1; this cluster has none" in deadline
    assert status.startswith("False SCALING 0 True ")
    assert "needs GPU B200 x1" in status
    assert "was stopped" in stopped or "being stopped" in stopped
