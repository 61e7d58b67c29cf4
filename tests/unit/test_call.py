"""The outcome of a call in its caller's hands: unpickled there, once, and never before it is asked for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from gworker import streaming
from gworker.call import Call
from gworker.mapping import MapRun
from gworker.observe.progress import Ticker
from gworker.router.calls import Problem
from gworker.wire import pack, pack_exception


class MarkedError(Exception):
    """Notes on which thread it is unpickled."""

    made_on: ClassVar[list[int]] = []

    def __reduce__(self) -> Any:
        return (_marked, (str(self),))


def _marked(text: str) -> MarkedError:
    MarkedError.made_on.append(threading.get_ident())
    return MarkedError(text)


@pytest.fixture
def problem() -> Problem:
    failed = Problem(pack_exception(MarkedError("x")))
    MarkedError.made_on.clear()
    return failed


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    """The thread of a router's loop, which ends calls."""
    with ThreadPoolExecutor(1) as thread:
        yield thread


def test_an_error_is_unpickled_by_the_thread_that_gets_it_and_once(
    problem: Problem, elsewhere: ThreadPoolExecutor
) -> None:
    call: Call[int] = Call()
    elsewhere.submit(call.raised, problem).result()
    assert call.done()
    assert "raised MarkedError" in repr(call)
    assert MarkedError.made_on == []
    with pytest.raises(MarkedError) as first:
        call.get()
    with pytest.raises(MarkedError) as second:
        call.get(timeout_s=1)
    assert first.value is second.value
    assert MarkedError.made_on == [threading.get_ident()]


async def test_an_error_is_unpickled_by_the_task_that_awaits_it(
    problem: Problem, elsewhere: ThreadPoolExecutor
) -> None:
    call: Call[int] = Call()
    elsewhere.submit(call.raised, problem)
    with pytest.raises(MarkedError):
        await call
    assert MarkedError.made_on == [threading.get_ident()]


def test_an_error_of_a_stream_is_unpickled_by_its_consumer(problem: Problem, elsewhere: ThreadPoolExecutor) -> None:
    class Ended:
        done = True

    def submit(sink: Any) -> Any:
        elsewhere.submit(sink.item, pack(1))
        elsewhere.submit(sink.raised, problem)
        return None, Ended()

    items = streaming.iterate(submit)
    assert next(items) == 1
    with pytest.raises(MarkedError):
        next(items)
    assert MarkedError.made_on == [threading.get_ident()]


async def test_an_error_of_a_map_is_unpickled_by_its_consumer(problem: Problem, elsewhere: ThreadPoolExecutor) -> None:
    def send(_: tuple[Any, ...]) -> Call[int]:
        call: Call[int] = Call()
        elsewhere.submit(call.raised, problem)
        return call

    run = MapRun([(1,)], send, lambda: None, 8, ordered=True, keep_errors=True)
    assert [type(error) async for error in run.results_async(Ticker())] == [MarkedError]
    run = MapRun([(1,)], send, lambda: None, 8, ordered=False, keep_errors=True)
    assert [type(error) for error in await asyncio.to_thread(list, run.results(Ticker()))] == [MarkedError]
    consumer, other = MarkedError.made_on
    assert consumer == threading.get_ident() != other
    assert other != elsewhere.submit(threading.get_ident).result()
