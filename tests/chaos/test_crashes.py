"""Workers that die or freeze under load: what ran in them is lost or retried, the rest goes on, they are replaced."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

import gworker as gw
from tests.chaos.account import Book, Receipt, Traffic, audit
from tests.chaos.conftest import events_of, pool_when, serving

pytestmark = [pytest.mark.cluster, pytest.mark.chaos]


@pytest.mark.usefixtures("each_lane")
def test_workers_killed_under_load_cost_no_call_that_may_be_retried(app: Any, book: Book) -> None:
    @app.cls(cpu=0.1, min_workers=2, max_workers=2, retries=3)
    @gw.concurrent(max_inputs=2)
    class Retried:
        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                time.sleep(0.01)
            return receipt

    with Traffic(Retried().work.spawn, callers=6) as traffic:
        workers = serving(app, "Retried", 2)
        for _ in range(2):
            victim, other = workers
            traffic.flow(20)
            os.kill(victim, signal.SIGKILL)
            workers = serving(app, "Retried", 2, without=[victim])
            assert other in workers
        traffic.flow(20)
        pool = app.status().pool("Retried")
    audit(book, traffic.outcomes, attempts=4)
    assert pool.restarts == 2
    assert pool.state == "READY"


@pytest.mark.usefixtures("each_lane")
def test_workers_killed_under_load_cost_only_the_calls_they_were_running(app: Any, book: Book) -> None:
    @app.cls(cpu=0.1, min_workers=2, max_workers=2)
    @gw.concurrent(max_inputs=2)
    class Unretried:
        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                time.sleep(0.03)
            return receipt

    killed: list[int] = []
    with Traffic(Unretried().work.spawn, callers=8) as traffic:
        for _ in range(2):
            victim, _ = serving(app, "Unretried", 2, without=killed)
            traffic.flow(20)
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)
        serving(app, "Unretried", 2, without=killed)
        traffic.flow(20)
    audit(book, traffic.outcomes, errors=(gw.WorkerLost,))
    lost = [outcome for outcome in traffic.outcomes if outcome.error is not None]
    assert 1 <= len(lost) <= 2 * len(killed), (
        "at most what each held; four callers at least waited for room all the time"
    )
    executions = book.executions()
    ran = {execution.pid for outcome in lost for found in executions[outcome.call].values() for execution in found}
    assert ran <= set(killed)


@pytest.mark.usefixtures("each_lane")
def test_a_worker_killed_in_the_middle_of_a_batch_costs_no_input_that_may_be_retried(
    app: Any, book: Book, eventually: Any
) -> None:
    @app.cls(cpu=0.1, min_workers=2, max_workers=2, retries=1)
    class Batching:
        @gw.method()
        @gw.batched(max_batch_size=4, wait_ms=20)
        def work(self, numbers: list[int]) -> list[Receipt]:
            with book.batch(numbers) as receipts:
                time.sleep(0.05)
            return receipts

    with Traffic(Batching().work.spawn, callers=16) as traffic:
        victim, _ = serving(app, "Batching", 2)
        traffic.flow(40)
        seen = book.starts()[victim]
        eventually(lambda: book.starts()[victim] > seen, every_s=0.001)  # a batch has just begun
        os.kill(victim, signal.SIGKILL)
        serving(app, "Batching", 2, without=[victim])
        traffic.flow(40)
    audit(book, traffic.outcomes, attempts=2)
    assert any(outcome.result.attempt == 2 for outcome in traffic.outcomes), "the batch was run again"
    assert app.status().pool("Batching").restarts == 1


def test_a_worker_that_was_killed_is_replaced_at_once_and_the_reason_is_kept(app: Any) -> None:
    @app.cls(cpu=0.1, min_workers=1, max_workers=1)
    class Mortal:
        @gw.method()
        def pid(self) -> int:
            return os.getpid()

    first = Mortal().pid.remote()
    os.kill(first, signal.SIGKILL)
    assert Mortal().pid.with_options(retries=1).remote() != first
    events = events_of(app, "Mortal")
    (crash,) = [event for event in events if event.action == "crashed"]
    *_, start = [event for event in events if event.action == "starting"]
    assert "worker process has died" in crash.reason
    assert (start.time - crash.time).total_seconds() < 1.0
    pool = pool_when(app, "Mortal", lambda pool: pool.ready == 1)
    (worker,) = pool.workers
    assert worker.restarts == pool.restarts == 1
    assert crash.worker != start.worker == worker.id


def test_a_worker_that_crashes_at_every_call_is_held_back_and_the_others_serve_on(
    app: Any, book: Book, ledger: Any
) -> None:
    @app.cls(cpu=0.1, min_workers=2, max_workers=2, retries=20)
    class HalfBroken:
        @gw.on_enter()
        def load(self) -> None:
            # Of the two, one gets the good GPU and keeps it; the other one, and whoever replaces it, the bad one.
            try:
                os.close(os.open(f"{ledger.path}-good", os.O_CREAT | os.O_EXCL))
                self.good = True
            except FileExistsError:
                self.good = False
            ledger.write(f"{os.getpid()} {self.good}")

        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                if not self.good:
                    os._exit(1)
                time.sleep(0.01)
            return receipt

    with Traffic(HalfBroken().work.spawn, callers=4) as traffic:
        pool = pool_when(app, "HalfBroken", lambda pool: pool.state == "DEGRADED", timeout_s=60.0)
        assert sorted(worker.state for worker in pool.workers) == ["BACKOFF", "READY"]
        (held,) = [worker for worker in pool.workers if worker.state == "BACKOFF"]
        assert held.restarts == pool.restarts
        assert held.restarts in (5, 6)
        assert held.pid is None
        assert held.reason
        started = ledger.lines()
        traffic.flow(100)
        assert ledger.lines() == started, "it is held at the longest backoff"
    audit(book, traffic.outcomes, attempts=21)
    (good,) = [line.split()[0] for line in started if line.endswith("True")]
    assert {str(outcome.result.pid) for outcome in traffic.outcomes} == {good}
    assert [w.pid for w in app.status().pool("HalfBroken").workers if w.state == "READY"] == [int(good)]


def test_fatal_replaces_the_worker_and_reaches_its_caller_and_nobody_else(
    app: Any, book: Book, gone: Any, eventually: Any
) -> None:
    @app.cls(cpu=0.1, min_workers=1, max_workers=1)
    @gw.concurrent(max_inputs=4)
    class Doomed:
        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                time.sleep(0.02)
            return receipt

        @gw.method()
        def lose_the_gpu(self) -> None:
            raise gw.Fatal("the GPU has fallen off the bus")

    with Traffic(Doomed().work.spawn, callers=6) as traffic:
        (first,) = serving(app, "Doomed", 1)
        traffic.flow(20)
        with pytest.raises(gw.Fatal, match="fallen off the bus"):
            Doomed().lose_the_gpu.remote()
        (second,) = serving(app, "Doomed", 1, without=[first])
        traffic.flow(20)
    audit(book, traffic.outcomes)
    assert second != first
    assert {outcome.result.pid for outcome in traffic.outcomes} == {first, second}
    assert eventually(lambda: gone(first))
    assert app.status().pool("Doomed").restarts == 1
    assert any("fallen off the bus" in event.reason for event in events_of(app, "Doomed"))


def test_a_worker_that_is_stopped_in_its_tracks_is_found_by_its_liveness_probe_and_replaced(
    app: Any, book: Book, gone: Any, eventually: Any
) -> None:
    @app.cls(
        cpu=0.1,
        min_workers=1,
        max_workers=1,
        retries=1,
        drain_timeout_s=0.5,
        probes=[gw.Probe.on("health", period_s=0.2, timeout_s=0.3, failures=2)],
    )
    class Frozen:
        @gw.method()
        def health(self) -> bool:
            return True

        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                time.sleep(0.01)
            return receipt

    frozen = 0
    try:
        with Traffic(Frozen().work.spawn, callers=3) as traffic:
            (first,) = serving(app, "Frozen", 1)
            traffic.flow(20)
            frozen = first
            os.kill(first, signal.SIGSTOP)
            # Neither its process nor its connections end: nobody but the probe can tell.
            (second,) = serving(app, "Frozen", 1, without=[first], timeout_s=40.0)
            traffic.flow(20)
            if not gone(first):
                os.kill(first, signal.SIGCONT)
            assert eventually(lambda: gone(first))
        audit(book, traffic.outcomes, attempts=2)
    finally:
        if frozen and not gone(frozen):
            os.kill(frozen, signal.SIGKILL)
    assert second != first
    assert app.status().pool("Frozen").restarts == 1
