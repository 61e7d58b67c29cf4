"""Faults that were found by reading and by use, each with the case that showed it."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from gworker.call import SpawnedCall
from gworker.control import controller as controller_module
from gworker.control import keeper as keeper_module
from gworker.control.controller import Controller, ControllerBoot
from gworker.mapping import MapRun
from gworker.observe.progress import Ticker
from gworker.retries import Retries
from gworker.router.calls import Plan, Problem
from gworker.router.lanes import RENEW_S
from gworker.router.membership import PoolDefinition, PoolKey
from gworker.router.router import RELINK_AFTER_S
from gworker.spec import Options
from gworker.wire import Down, Up, decode, encode, pack
from gworker.worker.actor import EXCHANGE_S, FORGET_S, LEASE_S
from tests.unit.test_exchange import Router
from tests.unit.test_exchange import router as router  # noqa: PLC0414  # a fixture
from tests.unit.test_exchange import submit as input_of
from tests.unit.test_ray_lane import Worker, returned, submit, turn
from tests.unit.test_ray_lane import worker as worker  # noqa: PLC0414  # a fixture
from tests.unit.test_router import Bench, error_of, told
from tests.unit.test_router import bench as bench  # noqa: PLC0414  # a fixture

# --- a caller that was idle or stopped for long -----------------------------------------------------------------


async def test_a_lane_that_was_idle_for_long_begins_a_session_the_worker_can_have_forgotten(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.lane.send(submit(1))
    await turn()
    worker.actor.owed[0].set_result(encode(Down(0, 0, 5, False, (returned(1),))))
    await turn()
    monkeypatch.setattr("gworker.router.lanes.clock.now", lambda: time.monotonic() + RENEW_S + 1)
    worker.lane.send(submit(2))
    await turn()
    first, second = worker.actor.bundles
    assert (second.sequence, second.acknowledged) == (0, -1)
    assert second.session != first.session
    worker.actor.owed[1].set_result(encode(Down(0, 0, 5, False, (returned(2),))))
    await turn()
    assert [m.call_id for m in worker.listener.messages] == [1, 2]


async def test_a_lane_in_use_keeps_its_session(worker: Worker) -> None:
    worker.lane.send(submit(1))
    await turn()
    worker.actor.owed[0].set_result(encode(Down(0, 0, 5, False, (returned(1),))))
    await turn()
    worker.lane.send(submit(2))
    await turn()
    assert [(b.session, b.sequence) for b in worker.actor.bundles] == [("me", 0), ("me", 1)]


async def test_a_lane_whose_session_is_over_breaks_instead_of_waiting_for_ever(worker: Worker) -> None:
    worker.lane.send(submit(1))
    await turn()
    worker.actor.owed[0].set_result(encode(None))
    await turn()
    assert ["has given its calls up" in str(error) for error in worker.listener.broken] == [True]


async def test_a_caller_that_was_given_up_is_told_so_when_it_comes_back(router: Router) -> None:
    await router.open(input_of(1))
    await router.timeline.advance(EXCHANGE_S + LEASE_S * 1.5)
    assert router.engine.sessions == {}
    assert decode(await router.actor.exchange(encode(Up("me", 1, 0, 0, False, ()))), Down) is None


async def test_a_caller_whose_results_were_thrown_away_is_told_so(router: Router) -> None:
    await router.open()
    await router.timeline.advance(EXCHANGE_S)
    router.line.session.send(returned(1))
    await router.timeline.advance(LEASE_S * 1.5)
    assert decode(await router.actor.exchange(encode(Up("me", 1, 0, 0, False, ()))), Down) is None


async def test_a_caller_that_was_only_idle_is_not_given_up_before_its_lane_begins_anew(router: Router) -> None:
    assert EXCHANGE_S + RENEW_S < FORGET_S
    await router.open()
    await router.timeline.advance(EXCHANGE_S + RENEW_S + LEASE_S)
    assert "me" in router.engine.sessions


async def test_a_view_that_still_names_a_worker_that_died_sends_no_call_there(bench: Bench) -> None:
    await bench.show("a")
    bench.lane().dies()
    await bench.show("a")
    call = await bench.call()
    assert len(bench.pool.made) == 1 and told(call) == []
    await bench.show("b")
    assert bench.lane("b").submits()


async def test_a_worker_that_cannot_be_reached_counts_as_one_system_error_however_often_it_is_tried(
    bench: Bench,
) -> None:
    await bench.show("a", "b")
    bench.lane("a").link.on_progress()
    for _ in range(5):
        bench.lane("a").dies()
        await bench.timeline.advance(RELINK_AFTER_S + 0.1)
        await bench.show("a", "b")
    assert len(bench.pool.made) == 7
    assert bench.router._errors == {"a": 1}


async def test_a_call_that_waits_for_a_worker_that_cannot_be_reached_is_told_so(bench: Bench) -> None:
    await bench.show("a")
    bench.lane().dies()
    call = await bench.call(deadline_s=1.0)
    await bench.timeline.advance(1.5)
    assert "its workers cannot be reached from here" in str(error_of(call))


@pytest.mark.parametrize("left", ["broke", "was not named"])
async def test_a_worker_that_lives_is_linked_again_under_another_name(bench: Bench, left: str) -> None:
    # What the worker knows of the session before counts its bundles: a new link begins them anew.
    await bench.show("a")
    if left == "broke":
        bench.lane().dies()
        await bench.timeline.advance(RELINK_AFTER_S + 0.1)
    else:
        await bench.show()  # as by a controller that has yet to take the worker over
    await bench.show("a")
    call = await bench.call()
    first, second = bench.pool.made
    assert first.session != second.session
    second.returns(call, "result")
    assert told(call) == [("returned", "result")]


# --- .map ---------------------------------------------------------------------------------------------------------


class Sent(SpawnedCall[Any]):
    """A call without a router; notes whether it was cancelled."""

    cancelled = False

    def __init__(self) -> None:
        super().__init__(None, Plan("", "", None, "", None, Retries.of(0)), pack(0))  # type: ignore[arg-type]

    def cancel(self) -> None:
        self.cancelled = True


def run_of(inputs: Any, send: Any, **given: Any) -> MapRun:
    return MapRun(inputs, send, lambda: None, given.pop("window", 4), given.pop("ordered", True), keep_errors=True)


def test_a_call_that_was_being_sent_when_map_was_closed_is_cancelled() -> None:
    run = run_of([], None)
    run._close()
    call = Sent()
    run._admit(call, lambda _: None)
    assert call.cancelled


async def test_errors_that_map_hands_over_are_not_logged_as_never_retrieved(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()

    def send(arguments: tuple[Any, ...]) -> Sent:
        call = Sent()
        loop.call_soon_threadsafe(loop.call_later, 0.02, call.raised, Problem(ValueError(arguments)))
        return call

    with caplog.at_level(logging.ERROR, logger="asyncio"):
        got = [value async for value in run_of([(1,), (2,)], send).results_async(Ticker())]
        await asyncio.sleep(0)
        gc.collect()
    assert [type(value) for value in got] == [ValueError, ValueError]
    assert not caplog.records


async def test_an_asynchronous_input_iterator_that_raises_cancelled_error_ends_the_map() -> None:
    def send(_: tuple[Any, ...]) -> Sent:
        call = Sent()
        call.returned(pack("result"))
        return call

    async def inputs() -> AsyncIterator[tuple[Any, ...]]:
        yield (1,)
        raise asyncio.CancelledError

    got: list[Any] = []

    async def consume() -> None:
        async for value in run_of(inputs(), send).results_async(Ticker()):
            got.append(value)  # noqa: PERF401  # what came before the error counts

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(consume(), 5)
    assert got == ["result"]


# --- the controller -----------------------------------------------------------------------------------------------


async def test_a_worker_that_is_stopped_before_it_began_is_not_created(monkeypatch: pytest.MonkeyPatch) -> None:
    created: list[Any] = []
    monkeypatch.setattr(keeper_module, "create_worker", lambda *given: created.append(given))
    monkeypatch.setattr(controller_module.deployment, "this_actor", lambda: None)
    controller = Controller(ControllerBoot("app", False, False))
    key = PoolKey("A")
    pool = controller._add_pool(PoolDefinition(key, b"", b"", Options(min_workers=1), 1, 1))
    (start,) = pool.plan(0.0)
    keeper = controller._keep(pool, pool.add(start.slot, "A-1", 1, 0.0))
    stopping = asyncio.ensure_future(controller.stop(drain=False))
    living = asyncio.ensure_future(keeper.live())
    await asyncio.wait_for(asyncio.gather(stopping, living), 5)
    assert created == [] and pool.workers == {}


# --- probes -------------------------------------------------------------------------------------------------------


class _UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def _probed(actor: Any, method: Any) -> Any:
    from gworker.probe import Probe

    actor._engine = SimpleNamespace(counters=SimpleNamespace(succeeded=0))
    actor._instance = SimpleNamespace(
        target=lambda _: SimpleNamespace(health=method),
        spec=SimpleNamespace(methods={"health": SimpleNamespace(is_async=False)}),
    )
    actor._loop, actor._troubled = asyncio.get_running_loop(), asyncio.Event()
    report = await type(actor).probe(actor, Probe.on("health"))
    await asyncio.sleep(0)
    return report


def _actor() -> Any:
    from gworker.worker.actor import WorkerActor, WorkerBoot

    return WorkerActor(WorkerBoot("app", "pool", "worker-1", b"", b"", None))


async def test_fatal_in_a_probe_replaces_the_worker_at_once() -> None:
    import gworker as gw

    def health() -> None:
        raise gw.Fatal("the card is gone")

    actor = _actor()
    report = await _probed(actor, health)
    assert report.reason == "raised Fatal: the card is gone"
    assert [(t.kind, t.reason) for t in actor._troubles] == [("fatal", "Fatal: the card is gone")]


async def test_a_probe_whose_exception_has_no_words_has_failed() -> None:
    def health() -> None:
        raise _UnspeakableError

    report = await _probed(_actor(), health)
    assert report.verdict.name == "FAILED" and "_UnspeakableError" in report.reason
