"""Coroutines on the user loop: told of once, whatever becomes of them, and nothing ends the loop."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import queue
import threading
import types
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from gworker.worker.threads import Launched, UserLoop

pytestmark = pytest.mark.timeout(20)


class Runner:
    """A user loop, and what it told."""

    def __init__(self) -> None:
        self.loop = UserLoop()
        self.told: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def launch(self, coroutine: Coroutine[Any, Any, Any]) -> Launched:
        return self.loop.launch(coroutine, lambda result, error: self.told.put((result, error)))

    def next(self) -> tuple[Any, BaseException | None]:
        return self.told.get(timeout=10)

    def rest(self) -> None:
        """Return when the loop has done all that was handed to it."""
        self.loop.spawn(asyncio.sleep(0)).result(10)
        self.loop.spawn(asyncio.sleep(0)).result(10)

    def is_silent(self) -> bool:
        self.rest()
        return self.told.empty()


@pytest.fixture
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.loop.stop()


class Blocked:
    """Keeps the loop busy, so that nothing else of it runs, until told otherwise."""

    def __init__(self, runner: Runner) -> None:
        self.release = threading.Event()
        began = threading.Event()

        async def block() -> None:
            began.set()
            self.release.wait(10)

        runner.launch(block())
        assert began.wait(10)


async def echo(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


async def raises(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


def test_what_a_coroutine_returns_or_raises_is_told(runner: Runner) -> None:
    runner.launch(echo(7))
    assert runner.next() == (7, None)
    error = ValueError("x")
    runner.launch(raises(error))
    assert runner.next() == (None, error)
    assert runner.is_silent()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
def test_what_would_end_the_process_is_told_and_the_loop_goes_on(
    runner: Runner, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    for launched in (raises(error), echo(1), echo(2)):
        runner.launch(launched)
    told = [runner.next() for _ in range(3)]
    assert sorted(told, key=lambda each: each[0] or 0) == [(None, error), (1, None), (2, None)]
    assert runner.is_silent()
    gc.collect()
    assert not caplog.records


def test_one_that_is_stopped_before_it_began_never_runs_and_is_told_of_once(runner: Runner) -> None:
    ran = threading.Event()

    async def run() -> None:
        ran.set()

    blocked = Blocked(runner)
    launched = runner.launch(run())
    launched.cancel()
    launched.cancel()
    assert not launched.asked_to_stop, "the loop is blocked"
    blocked.release.set()
    told = {type(runner.next()[1]) for _ in range(2)}
    assert told == {type(None), asyncio.CancelledError}
    assert runner.is_silent()
    assert launched.asked_to_stop and not ran.is_set()


def test_one_that_is_stopped_while_it_runs_is_told_of_when_it_has_ended(runner: Runner) -> None:
    began, cleaned = threading.Event(), threading.Event()

    async def run() -> None:
        try:
            began.set()
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.01)
            cleaned.set()

    launched = runner.launch(run())
    assert began.wait(10)
    launched.cancel()
    _, error = runner.next()
    assert isinstance(error, asyncio.CancelledError) and cleaned.is_set() and launched.asked_to_stop
    assert runner.is_silent()


def test_one_that_will_not_stop_is_told_of_by_what_it_returns(runner: Runner) -> None:
    began = threading.Event()

    async def run() -> str:
        try:
            began.set()
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            return "not yet"
        return "never"

    launched = runner.launch(run())
    assert began.wait(10)
    launched.cancel()
    assert runner.next() == ("not yet", None)
    assert runner.is_silent()


def test_to_stop_what_has_ended_changes_nothing(runner: Runner) -> None:
    launched = runner.launch(echo(1))
    assert runner.next() == (1, None)
    launched.cancel()
    assert runner.is_silent()


def test_it_runs_in_an_empty_context(runner: Runner) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")
    variable.set("the caller's")

    async def look() -> str:
        return variable.get()

    runner.launch(look())
    assert runner.next() == ("nothing", None)


@pytest.mark.parametrize("begun", [True, False])
def test_a_future_that_is_cancelled_ends_when_its_task_has(runner: Runner, begun: bool) -> None:
    blocked = None if begun else Blocked(runner)
    future = runner.loop.spawn(asyncio.sleep(30))
    if begun:
        runner.rest()
    assert future.cancel() and not future.done()
    if blocked is not None:
        blocked.release.set()
    runner.rest()
    assert future.cancelled()


def test_one_that_is_thrown_away_with_its_loop_is_not_told_of(runner: Runner) -> None:
    @types.coroutine
    def pause() -> Any:
        yield

    launched = Launched(pause(), lambda *about: runner.told.put(about), runner.loop._mailbox)
    running = launched._run()
    running.send(None)
    running.close()
    assert runner.told.empty()


def test_a_task_factory_that_fails_is_told_of(runner: Runner) -> None:
    """As one of two arguments does since Python 3.11, set by the user's code on its loop."""

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> Any:
        raise TypeError("unexpected")

    loop = runner.loop.loop
    loop.call_soon_threadsafe(loop.set_task_factory, factory)
    runner.launch(asyncio.sleep(0, 7))
    result, error = runner.next()
    assert result is None and isinstance(error, TypeError)
    loop.call_soon_threadsafe(loop.set_task_factory, None)
    runner.launch(asyncio.sleep(0, 8))
    assert runner.next() == (8, None)
