"""What `current_call()` shows is made when it is asked for, which may be at any moment, and on any thread."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

import gworker as gw
from gworker.spec import compile_class
from gworker.wire import Submit, pack, pack_arguments, unpack
from gworker.worker.execution import Failed, Work, run_batch, run_call
from gworker.worker.lifecycle import Instance
from gworker.worker.threads import UserThreads


class Given:
    """An input of the test's own."""

    def __init__(self, method: str, *args: Any, deadline: float | None = None, **kwargs: Any) -> None:
        arguments = pack_arguments(args, kwargs)
        self.call = Submit(1, "7-1", method, arguments, pack({"threshold": 0.7}), "", 2, None, None, 0, 0)
        self.deadline = deadline


class Asks:
    threshold: float = gw.parameter(default=0.5)

    def __init__(self) -> None:
        self.seen: list[gw.CallContext] = []

    @gw.method()
    def look(self, value: Any = None) -> dict[str, Any]:
        self.seen.append(gw.current_call())
        assert gw.current_call() is self.seen[-1]
        return dict(gw.current_call().parameters)

    @gw.method()
    def empties(self, **options: Any) -> dict[str, Any]:
        found = dict(options)
        options.clear()
        return found

    @gw.method()
    @gw.batched(max_batch_size=4)
    def batch(self, xs: list[Any]) -> list[Any]:
        self.seen.append(gw.current_call())
        xs.clear()
        return [dict(each.parameters) for each in gw.current_call().inputs]


@pytest.fixture
async def instance() -> AsyncIterator[Instance]:
    threads = UserThreads(1)
    instance = Instance(compile_class(Asks, {}), {}, threads)
    await instance.enter()
    yield instance
    threads.main.stop()


def work_of(instance: Any, method: str, *given: Given) -> Work:
    return Work(instance, instance.spec.methods[method], given or (Given(method),))


def result_of(outcome: Any) -> Any:
    assert not isinstance(outcome, Failed), outcome.failure
    return unpack(outcome)


def _curious() -> gw.CallContext:
    return gw.current_call()


class Curious:
    """Asks which call it is in while it is unpickled."""

    def __reduce__(self) -> Any:
        return _curious, ()


def test_a_call_that_does_not_ask_costs_no_context(instance: Any) -> None:
    work = work_of(instance, "empties", Given("empties", a=1))
    assert result_of(run_call(work)[0]) == {"a": 1}
    assert work._context is None


@pytest.mark.parametrize("argument", [None, Curious()])
def test_a_call_is_shown_the_values_of_its_parameters_whenever_it_asks(instance: Any, argument: Any) -> None:
    work = work_of(instance, "look", Given("look", argument, deadline=12.5))
    assert result_of(run_call(work)[0]) == {"threshold": 0.7}
    (call,) = instance._object.seen
    assert (call.id, call.attempt, call.method, call.deadline) == ("7-1", 2, "look", 12.5)
    assert call.inputs == () and not call.cancelled


@pytest.mark.parametrize("argument", [None, Curious()])
def test_so_is_each_input_of_a_batch(instance: Any, argument: Any) -> None:
    givens = [Given("batch", xs=argument) for _ in range(3)]
    outcomes = run_batch(work_of(instance, "batch", *givens))
    assert [result_of(outcome) for outcome in outcomes] == [{"threshold": 0.7}] * 3
    (call,) = instance._object.seen
    assert [each.id for each in call.inputs] == ["7-1"] * 3
    assert call.id.startswith("batch-") and dict(call.parameters) == {"threshold": 0.7}


def test_what_a_method_does_to_its_arguments_another_attempt_does_not_see(instance: Any) -> None:
    given = Given("empties", a=1, b="text")
    assert type(given.call.arguments) is tuple, "it travels as it is"
    for _ in range(2):
        assert result_of(run_call(work_of(instance, "empties", given))[0]) == {"a": 1, "b": "text"}
    given = Given("batch", xs=1)
    for _ in range(2):
        assert result_of(run_batch(work_of(instance, "batch", given))[0]) == {"threshold": 0.7}


# --- from other threads ------------------------------------------------------------------------------------------


@pytest.fixture
def bare() -> Any:
    """An instance as far as a context needs one."""
    return SimpleNamespace(spec=compile_class(Asks, {}))


def test_one_that_asks_after_it_was_stopped_is_told_so(bare: Any) -> None:
    for method in ("look", "batch"):
        work = work_of(bare, method)
        work.stop()
        assert work.context.cancelled and all(each.cancelled for each in work.context.inputs)


def test_one_that_asked_before_it_was_stopped_sees_it_too(bare: Any) -> None:
    for method in ("look", "batch"):
        work = work_of(bare, method)
        call = work.context
        assert not call.cancelled
        work.stop()
        assert call.cancelled and all(each.cancelled for each in call.inputs)


@pytest.mark.usefixtures("switching")
@pytest.mark.timeout(30)
@pytest.mark.parametrize("method", ["look", "batch"])
def test_one_that_asks_while_it_is_stopped_is_told_so_on_whatever_threads(bare: Any, method: str) -> None:
    works = [work_of(bare, method) for _ in range(1000)]
    together = threading.Barrier(3)

    def ask() -> list[gw.CallContext]:
        seen = []
        for work in works:
            together.wait()
            seen.append(work.context)
        return seen

    def stop() -> None:
        for work in works:
            together.wait()
            work.stop()

    with ThreadPoolExecutor(3) as threads:
        one, other, _ = threads.submit(ask), threads.submit(ask), threads.submit(stop)
    for first, second in zip(one.result(), other.result(), strict=True):
        assert first is second, "they are shown the same"
        assert first.cancelled and all(each.cancelled for each in first.inputs)
