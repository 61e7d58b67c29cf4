"""The worker's end of the ray lane: when an exchange is answered, and when a caller counts as gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gworker.wire import Down, Ended, Submit, Up, decode
from gworker.worker.actor import EXCHANGE_S, FORGET_S, LEASE_S, MAX_OPEN_EXCHANGES, WorkerActor, WorkerBoot, _Line


class FakeEngine:
    """Takes every input in and ends none."""

    def __init__(self) -> None:
        self.draining = False
        self.sessions: dict[str, Any] = {}
        self.waiting: dict[str, int] = {}
        self.cancelled: list[int] = []

    def submit(self, session: Any, call: Submit) -> None:
        session.inputs[call.call_id] = call

    def cancel(self, session: Any, call_id: int) -> None:
        self.cancelled.append(call_id)
        del session.inputs[call_id]

    def caller_waits(self, session: str, count: int) -> None:
        self.waiting[session] = count

    def caller_left(self, session: str) -> None:
        self.waiting[session] = 0

    def room_for(self, session: str) -> int:
        return 1


class Router:
    """The caller's end: opens exchanges and notes the answers."""

    def __init__(self, timeline: Any) -> None:
        self.timeline = timeline
        self.engine = FakeEngine()
        boot = WorkerBoot("app", "pool", "worker-1", b"", b"", None)
        self.actor = WorkerActor(boot)
        self.actor._engine = self.engine  # type: ignore[assignment]
        self.line = _Line("me", self.engine)  # type: ignore[arg-type]
        self.actor._lines["me"] = self.line
        self.engine.sessions["me"] = self.line.session
        self.exchanges: list[asyncio.Task[Any]] = []

    async def open(self, *messages: Any, waiting: int = 0) -> asyncio.Task[Any]:
        up = Up("me", len(self.exchanges), -1, waiting, False, messages)
        task = asyncio.ensure_future(self.line.exchange(up))
        self.exchanges.append(task)
        await self.timeline.settle()
        return task

    @property
    def answered(self) -> list[bool]:
        return [task.done() for task in self.exchanges]

    def answer(self, exchange: int) -> Down:
        down = decode(self.exchanges[exchange].result(), Down)
        assert down is not None
        return down


@pytest.fixture
async def router(timeline: Any) -> AsyncIterator[Router]:
    router = Router(timeline)
    keeper = asyncio.ensure_future(router.actor._keep_leases())
    yield router
    keeper.cancel()
    for exchange in router.exchanges:
        exchange.cancel()
    await asyncio.gather(keeper, *router.exchanges, return_exceptions=True)


def submit(number: int) -> Submit:
    return Submit(number, "name", "embed", b"", None, "", 1, None, None, 0, 0)


async def test_an_exchange_is_open_until_there_is_something_to_say(router: Router) -> None:
    await router.open(submit(1))
    assert router.answered == [False]
    router.line.session.send(Ended(1))
    await router.timeline.settle()
    assert router.answer(0).messages == [Ended(1)]


async def test_what_is_said_in_one_turn_leaves_in_one_answer(router: Router) -> None:
    await router.open(submit(1), submit(2))
    await router.open()
    router.line.session.send(Ended(1))
    router.line.session.send(Ended(2))
    await router.timeline.settle()
    assert router.answered == [True, False]
    assert router.answer(0).messages == [Ended(1), Ended(2)]


async def test_what_is_said_while_no_exchange_is_open_is_said_at_the_next(router: Router) -> None:
    router.line.session.send(Ended(7))
    await router.timeline.settle()
    await router.open()
    assert router.answer(0).messages == [Ended(7)]


async def test_the_oldest_is_answered_when_many_are_open_so_that_the_router_can_always_send(router: Router) -> None:
    for number in range(MAX_OPEN_EXCHANGES):
        await router.open(submit(number))
    assert router.answered == [True] + [False] * (MAX_OPEN_EXCHANGES - 1)
    assert router.answer(0).acknowledged == MAX_OPEN_EXCHANGES - 1


async def test_an_exchange_is_answered_after_a_while_even_without_news(router: Router) -> None:
    await router.open(submit(1))
    await router.timeline.advance(EXCHANGE_S - 0.01)
    assert router.answered == [False]
    await router.timeline.advance(0.01)
    assert router.answer(0).messages == []


async def test_the_inputs_of_a_caller_that_fell_silent_are_cancelled(
    router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    await router.open(submit(1), submit(2), waiting=5)
    with caplog.at_level(logging.WARNING):
        await router.timeline.advance(EXCHANGE_S + LEASE_S * 1.5)
    assert router.engine.cancelled == [1, 2]
    assert router.engine.waiting == {"me": 0}
    assert ["its 2 calls are cancelled" in r.message for r in caplog.records] == [True]


async def test_a_caller_that_fell_silent_while_it_waited_for_room_waits_no_more(
    router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    await router.open(waiting=5)
    with caplog.at_level(logging.WARNING):
        await router.timeline.advance(EXCHANGE_S + LEASE_S * 1.5)
    assert router.engine.waiting == {"me": 0}
    assert not caplog.records


async def test_a_caller_that_keeps_an_exchange_open_is_there(router: Router) -> None:
    await router.open(submit(1))
    for _ in range(10):
        await router.timeline.advance(EXCHANGE_S)
        await router.open()
    assert router.engine.cancelled == []


async def test_a_caller_that_has_nothing_here_is_forgotten_in_the_end(router: Router) -> None:
    await router.open()
    await router.timeline.advance(EXCHANGE_S + FORGET_S - LEASE_S)
    assert "me" in router.engine.sessions
    await router.timeline.advance(2 * LEASE_S)
    assert router.engine.sessions == {} and router.actor._lines == {}
