"""The outcome of a call in its caller's hands: unpickled there, and never before it is asked for."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from gworker import streaming
from gworker.call import Call, SpawnedCall
from gworker.mapping import MapRun
from gworker.observe.progress import Ticker
from gworker.retries import Retries
from gworker.router.calls import Plan, Problem
from gworker.wire import pack, pack_exception


class MarkedError(Exception):
    """Notes on which thread it is unpickled."""

    made_on: ClassVar[list[int]] = []

    def __reduce__(self) -> Any:
        return (_marked, (str(self),))


def _marked(text: str) -> MarkedError:
    MarkedError.made_on.append(threading.get_ident())
    return MarkedError(text)


def sent_call() -> SpawnedCall[Any]:
    """A call that a router has."""
    plan = Plan("Embedder.embed", "embed", None, "", None, Retries.of(0))
    return SpawnedCall(SimpleNamespace(cancel=None), plan, pack(0))  # type: ignore[arg-type]


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


def test_an_error_is_unpickled_by_each_thread_that_gets_it(problem: Problem, elsewhere: ThreadPoolExecutor) -> None:
    call: SpawnedCall[int] = sent_call()
    elsewhere.submit(call.raised, problem).result()
    assert call.done()
    assert "raised MarkedError" in repr(call)
    assert MarkedError.made_on == []
    with pytest.raises(MarkedError):
        call.get()
    assert MarkedError.made_on == [threading.get_ident()]
    with ThreadPoolExecutor(1) as other, pytest.raises(MarkedError) as elsewhere_too:
        other.submit(call.get, timeout_s=1).result()
    assert len(set(MarkedError.made_on)) == 2
    with pytest.raises(MarkedError) as again:
        call.get()
    assert again.value is not elsewhere_too.value, "the traceback of each is its own"


async def test_an_error_is_unpickled_by_the_task_that_awaits_it(
    problem: Problem, elsewhere: ThreadPoolExecutor
) -> None:
    call: SpawnedCall[int] = sent_call()
    elsewhere.submit(call.raised, problem)
    with pytest.raises(MarkedError):
        await call
    assert MarkedError.made_on == [threading.get_ident()]


def test_an_error_of_a_stream_is_unpickled_by_its_consumer(problem: Problem, elsewhere: ThreadPoolExecutor) -> None:
    class Ended:
        over = True

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
        call: SpawnedCall[int] = sent_call()
        elsewhere.submit(call.raised, problem)
        return call

    run = MapRun([(1,)], send, lambda: None, 8, ordered=True, keep_errors=True)
    assert [type(error) async for error in run.results_async(Ticker())] == [MarkedError]
    run = MapRun([(1,)], send, lambda: None, 8, ordered=False, keep_errors=True)
    assert [type(error) for error in await asyncio.to_thread(list, run.results(Ticker()))] == [MarkedError]
    consumer, other = MarkedError.made_on
    assert consumer == threading.get_ident() != other
    assert other != elsewhere.submit(threading.get_ident).result()


# --- waiting -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("switching")
@pytest.mark.timeout(30)
def test_all_that_wait_are_told_however_they_meet_with_the_outcome(elsewhere: ThreadPoolExecutor) -> None:
    calls = [sent_call() for _ in range(300)]
    together = threading.Barrier(4)

    def settle() -> None:
        for number, call in enumerate(calls):
            together.wait()
            call.returned(pack(number))

    def wait(timeout_s: float | None) -> list[int]:
        got = []
        for call in calls:
            together.wait()
            got.append(call.get(timeout_s))
        return got

    async def wait_async() -> list[int]:
        got = []
        for call in calls:
            together.wait()
            got.append(await call)
        return got

    settling = elsewhere.submit(settle)
    with ThreadPoolExecutor(3) as waiters:
        waits = [waiters.submit(wait, None), waiters.submit(wait, 20), waiters.submit(asyncio.run, wait_async())]
    settling.result()
    assert [wait.result() for wait in waits] == [list(range(300))] * 3
    assert not any(call._waiting for call in calls)


def test_who_waits_for_so_long_is_told_and_leaves_nothing_behind(elsewhere: ThreadPoolExecutor) -> None:
    call = sent_call()
    for _ in range(3000):  # as one that looks again and again does
        with pytest.raises(TimeoutError, match=rf"Embedder\.embed \(call {call.id}\) has no result after 0 s"):
            call.get(timeout_s=0)
    with pytest.raises(TimeoutError):
        call.get(timeout_s=0.01)
    assert call._waiting == []
    elsewhere.submit(call.returned, pack(7)).result()
    assert call.get(timeout_s=0) == call.get(timeout_s=0.01) == call.get() == 7


async def test_who_stops_awaiting_leaves_nothing_behind_and_the_call_goes_on(elsewhere: ThreadPoolExecutor) -> None:
    call = sent_call()
    for _ in range(10):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(call, 0.001)
    assert call._waiting == [] and not call.done()
    elsewhere.submit(call.returned, pack(7))
    assert await call == 7


def test_any_number_may_wait_for_one_call(elsewhere: ThreadPoolExecutor) -> None:
    call = sent_call()

    async def wait_for_it() -> list[int]:
        tasks = [asyncio.ensure_future(wait_once()) for _ in range(3000)]
        await asyncio.sleep(0)
        elsewhere.submit(call.returned, pack(7))
        return await asyncio.gather(*tasks)

    async def wait_once() -> int:
        value: int = await call
        return value

    assert asyncio.run(wait_for_it()) == [7] * 3000


def test_one_whose_loop_is_closed_keeps_nobody_else_waiting(
    elsewhere: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    call = sent_call()
    loops = [asyncio.new_event_loop() for _ in range(2)]
    gone = [loop.create_task(call._settled()) for loop in loops]
    for loop in loops:
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
    with ThreadPoolExecutor(2) as waiters:
        waits = [waiters.submit(call.get), waiters.submit(asyncio.run, _await(call))]
        while len(call._waiting) < 4:
            time.sleep(0.001)
        elsewhere.submit(call.returned, pack(7)).result()
    assert [wait.result() for wait in waits] == [7, 7]
    assert ["is gone" in record.message for record in caplog.records] == [True, True]
    assert f"Call Embedder.embed {call.id}: returned" in caplog.text
    for task in gone:
        task.get_coro().close()  # type: ignore[union-attr]
        task._log_destroy_pending = False  # type: ignore[attr-defined]


async def _await(call: Call[Any]) -> Any:
    return await call


def test_ctrl_c_ends_the_wait_and_not_the_call(elsewhere: ThreadPoolExecutor) -> None:
    call = sent_call()
    main = threading.get_ident()

    def interrupt() -> None:
        while not call._waiting:
            time.sleep(0.001)
        signal.pthread_kill(main, signal.SIGINT)

    for timeout_s in (None, 20.0):
        interrupting = elsewhere.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            call.get(timeout_s)
        interrupting.result()
        assert call._waiting == [] and not call.done()
    elsewhere.submit(call.returned, pack(7)).result()
    assert call.get() == 7


def test_who_asks_to_be_told_of_what_has_come_is_told_at_once_and_alone() -> None:
    call = sent_call()
    seen: list[str] = []
    call._when_done(lambda: seen.append("first"))
    call.returned(pack(7))
    assert seen == ["first"]
    call._when_done(lambda: seen.append("second"))
    assert seen == ["first", "second"]


def test_who_completes_names_is_shown_what_callers_use() -> None:
    assert [name for name in dir(sent_call()) if not name.startswith("_")] == ["cancel", "done", "get", "id"]
