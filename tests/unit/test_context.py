"""Which pools wait for a call, and which waits could never end: only what is certain is refused."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import gworker as gw
from gworker import context
from gworker.context import CallContext, WaitingPool, WorkerProcess, waiting_pools, why_for_ever
from gworker.router.membership import PoolKey

FRONT = WaitingPool("app/Front", alone=True)
ROOMY = WaitingPool("app/Roomy", alone=False)
HERE = WaitingPool("app/Here", alone=True)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> WorkerProcess:
    """This process is the only worker of app/Here."""
    here = WorkerProcess("app", PoolKey("Here"), None, serves_one_call_at_a_time=True, max_workers=1)
    monkeypatch.setattr(context, "_worker", here)
    return here


@pytest.fixture
def call(worker: WorkerProcess) -> Iterator[CallContext]:
    """The call that runs, for which two pools wait."""
    running = CallContext("id", 1, None, "method", _waiting=(FRONT, ROOMY))
    token = context.enter_call(running)
    yield running
    context.exit_call(token)


def test_nobody_waits_outside_a_call(worker: WorkerProcess) -> None:
    assert waiting_pools() == ()


def test_nobody_waits_in_a_driver() -> None:
    token = context.enter_call(CallContext("local", 1, None, "method"))
    assert waiting_pools() == ()
    context.exit_call(token)


def test_who_waits_for_the_running_call_and_its_own_worker_wait_for_what_it_calls(call: CallContext) -> None:
    assert waiting_pools() == (FRONT, ROOMY, HERE)


def test_a_pool_that_is_met_again_is_named_once(worker: WorkerProcess) -> None:
    token = context.enter_call(CallContext("id", 1, None, "method", _waiting=(HERE, ROOMY)))
    assert waiting_pools() == (HERE, ROOMY)
    context.exit_call(token)


def test_a_call_that_nobody_waits_for_any_more_keeps_nobody_waiting(call: CallContext) -> None:
    call._cancelled.set()
    assert waiting_pools() == ()


def test_a_thread_with_a_copy_of_the_context_is_still_the_call(call: CallContext) -> None:
    # The feeder of .map is one.
    seen: list[Any] = []
    copied = contextvars.copy_context()
    thread = threading.Thread(target=copied.run, args=(lambda: seen.append(waiting_pools()),))
    thread.start()
    thread.join()
    assert seen == [(FRONT, ROOMY, HERE)]


async def test_a_task_that_the_call_made_may_outlive_it(worker: WorkerProcess) -> None:
    async def ask() -> tuple[WaitingPool, ...]:
        return waiting_pools()

    async def method() -> tuple[Any, Any]:
        context.enter_call(CallContext("id", 1, None, "method", _waiting=(FRONT,)))
        return await ask(), await asyncio.create_task(ask())

    assert await asyncio.create_task(method()) == ((FRONT, HERE), ())


@pytest.mark.parametrize(("max_workers", "one_at_a_time"), [(2, True), (1, False)])
def test_a_pool_with_room_is_not_alone(max_workers: int, one_at_a_time: bool) -> None:
    worker = WorkerProcess("app", PoolKey("Here"), None, one_at_a_time, max_workers)
    assert worker.as_waiting == WaitingPool("app/Here", alone=False)


def test_only_a_pool_whose_one_worker_waits_could_never_serve_the_call() -> None:
    waiting = (FRONT, ROOMY, HERE)
    assert why_for_ever("app/Other", waiting) is None
    assert why_for_ever("app/Roomy", waiting) is None
    assert "app/Front -> app/Roomy -> app/Here -> app/Front" in (why_for_ever("app/Front", waiting) or "")
    assert "busy with the caller" in (why_for_ever("app/Here", waiting) or "")


def test_the_chain_begins_where_the_cycle_does() -> None:
    assert "(app/Front -> app/Here -> app/Front)" in (why_for_ever("app/Front", (ROOMY, FRONT, HERE)) or "")


def test_a_class_of_another_app_is_another_class_whatever_its_name(call: CallContext) -> None:
    @gw.App("another-app").cls(max_workers=1)
    class Here:
        @gw.method()
        def method(self) -> None: ...

    assert Here().method._refuse_deadlock("remote", blocks=True) == ()
