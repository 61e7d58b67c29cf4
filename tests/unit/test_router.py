"""The router with a pool, workers and a clock of the test's own: every call ends, once, with the right thing."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, ClassVar

import pytest

from gworker import clock
from gworker.deaths import death_reason
from gworker.errors import (
    CallCancelled,
    DeadlineExceeded,
    NotFound,
    PoolUnavailable,
    QueueFull,
    RemoteError,
    StartupFailed,
    WorkerLost,
)
from gworker.mailbox import turn_of
from gworker.observe.times import Times, add_all
from gworker.options import Options
from gworker.retries import Retries
from gworker.router import router as router_module
from gworker.router.calls import VERDICT_S, Plan, Problem, RoutedCall
from gworker.router.links import Link
from gworker.router.membership import Demand, PoolKey, PoolState, PoolView, WorkerView
from gworker.router.router import DEMAND_PERIOD_S, EXPLAIN_AFTER_S, Router
from gworker.wire import (
    Busy,
    Cancel,
    Credit,
    Ended,
    Item,
    Packed,
    Raised,
    Returned,
    Started,
    Submit,
    pack,
    pack_exception,
    unpack,
)

KEY = PoolKey("Embedder")


class FakeLane:
    """A worker as far as a router can tell: what it was sent, and the room it says it has."""

    def __init__(self, worker: WorkerView, session: str, link: Link, vouches: bool) -> None:
        self.session = session
        self.vouches_for_starts = vouches
        self.link = link
        self.sent: list[Any] = []
        self.room = worker.capacity
        self.wanted = 0
        self.closed = False

    def send(self, message: Any) -> None:
        assert not self.closed
        self.sent.append(message)
        if isinstance(message, Submit):
            self.room -= 1

    def available(self) -> int:
        return self.room

    def want(self, count: int) -> None:
        self.wanted = count

    def close(self) -> None:
        self.closed = True

    def submits(self) -> list[Submit]:
        return [m for m in self.sent if isinstance(m, Submit)]

    def of(self, call: RoutedCall) -> list[Any]:
        """What was sent about a call."""
        return [m for m in self.sent if m.call_id == call.number]

    # what the worker says

    def says(self, *messages: Any) -> None:
        """A bundle from the worker: handled in one turn of the loop, as a connection does."""
        with turn_of(asyncio.get_running_loop()):
            for message in messages:
                self.room += isinstance(message, (Returned, Raised, Ended))
                self.link.on_message(message)
            self.link.on_progress()

    def returns(self, call: RoutedCall, value: Any = None) -> None:
        self.says(Returned(call.number, pack(value)))

    def raises(self, call: RoutedCall, error: BaseException, batch_size: int = 1) -> None:
        self.says(Raised(call.number, pack_exception(error), batch_size))

    def dies(self, reason: str = "exit code 137") -> None:
        self.link.on_broken(ConnectionError(reason))


class FakePool:
    """The controller, seen from a router."""

    def __init__(self) -> None:
        self.vouches = False
        self.lanes: dict[str, FakeLane] = {}
        self.made: list[FakeLane] = []
        self.reports: list[Demand] = []
        self.reported_at: list[float] = []
        self.times: dict[str, Times] = {}
        self.gone: Exception | None = None
        self.again: PoolView | None = None  # what is said of a pool that is asked for again
        self.known: list[tuple[str, int] | None] = []
        self._view: PoolView | None = None
        self._changed = asyncio.Event()
        self._versions = itertools.count(1)

    def show(self, *workers: str | WorkerView, capacity: int = 1, **about: Any) -> None:
        """Publish a view: workers that are ready, by name, or as they are given."""
        views = tuple(w if isinstance(w, WorkerView) else WorkerView(w, None, capacity, True) for w in workers)
        version = about.pop("version", None) or next(self._versions)
        self._view = PoolView(version, PoolState.READY, views, **about)
        self._changed.set()

    def disappear(self, error: Exception) -> None:
        self.gone = error
        self._changed.set()

    async def watch(self, router: str, key: PoolKey, known: tuple[str, int] | None) -> PoolView:
        assert key == KEY
        self.known.append(known)
        if known is None and self.again is not None and self._view is not None:
            return self.again
        if known is None and self._view is not None and self._view.forgotten:
            self._view = PoolView(next(self._versions), PoolState.SCALING, ())  # it is defined again
        while self._view is None or (self._view.epoch, self._view.version) == known:
            if self.gone is not None:
                raise self.gone
            await self._changed.wait()
            self._changed.clear()
        return self._view

    def report(self, router: str, key: PoolKey, demand: Demand, times: Mapping[str, Times]) -> None:
        add_all(self.times, times)
        self.reports.append(demand)
        self.reported_at.append(clock.now())

    def make_lane(self, worker: WorkerView, session: str, link: Link) -> FakeLane:
        lane = self.lanes[worker.id] = FakeLane(worker, session, link, self.vouches)
        self.made.append(lane)
        return lane


class Outcome:
    """Whoever waits for a call: everything it was told, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def returned(self, result: Packed) -> None:
        self.told.append(("returned", unpack(result)))

    def raised(self, problem: Problem) -> None:
        self.told.append(problem.exception())

    def item(self, item: Packed) -> None:
        self.told.append(("item", unpack(item)))

    def ended(self) -> None:
        self.told.append("ended")

    @property
    def error(self) -> Any:
        """The one thing it was told, an error."""
        (error,) = self.told
        assert isinstance(error, BaseException)
        return error


class Bench:
    """A router, its pool, and calls to make."""

    def __init__(self, timeline: Any) -> None:
        self.timeline = timeline
        self.pool = FakePool()
        self.routers: list[Router] = []
        self.router = self.make()

    def make(self, **options: Any) -> Router:
        router = Router(
            KEY,
            "app/Embedder",
            Options.build(options, where="test"),
            self.pool,
            asyncio.get_running_loop(),
            chance=lambda: 0.0,  # of equal workers the one that came first
        )
        self.routers.append(router)
        self.router = router
        return router

    def new(
        self,
        *,
        deadline_s: float | None = None,
        retries: Any = 0,
        size: int = 1,
        sink: Any = None,
        credit: int = 0,
        timeout_s: float | None = None,
    ) -> RoutedCall:
        return RoutedCall(
            Plan("Embedder.embed", "embed", None, "", timeout_s, Retries.of(retries)),
            b"x" * size,
            sink or Outcome(),
            deadline=None if deadline_s is None else clock.now() + deadline_s,
            credit=credit,
        )

    async def call(self, **about: Any) -> RoutedCall:
        call = self.new(**about)
        self.router.submit(call)
        await self.timeline.settle()
        return call

    async def at_once(self, count: int) -> list[RoutedCall]:
        """So many calls in one turn of the loop."""
        calls = [self.new() for _ in range(count)]
        for call in calls:
            self.router.submit(call)
        await self.timeline.settle()
        return calls

    async def calls(self, count: int, **about: Any) -> list[RoutedCall]:
        return [await self.call(**about) for _ in range(count)]

    async def show(self, *workers: str | WorkerView, **about: Any) -> None:
        self.pool.show(*workers, **about)
        await self.timeline.settle()

    def lane(self, worker: str = "a") -> FakeLane:
        return self.pool.lanes[worker]


@pytest.fixture
async def bench(timeline: Any) -> AsyncIterator[Bench]:
    bench = Bench(timeline)
    yield bench
    for router in bench.routers:
        router.close(PoolUnavailable("the test is over"))
    await timeline.settle()


def told(call: RoutedCall) -> list[Any]:
    return call.sink.told  # type: ignore[attr-defined, no-any-return]


def error_of(call: RoutedCall) -> Any:
    return call.sink.error  # type: ignore[attr-defined]


def sent_to(lane: FakeLane, calls: Iterable[RoutedCall]) -> list[int]:
    """Which of `calls` were sent there, by their place among them, in the order they were sent."""
    numbers = [c.number for c in calls]
    return [numbers.index(m.call_id) for m in lane.submits()]


# --- queue and choice --------------------------------------------------------------------------------------------


async def test_calls_wait_for_a_worker_and_then_go_in_the_order_they_were_made(bench: Bench) -> None:
    calls = await bench.calls(3)
    await bench.show("a", capacity=8)
    assert sent_to(bench.lane(), calls) == [0, 1, 2]
    for call in calls:
        bench.lane().returns(call, call.number)
    assert [told(c) for c in calls] == [[("returned", c.number)] for c in calls]


async def test_a_worker_is_sent_no_more_than_it_has_room_for_and_told_how_many_wait(bench: Bench) -> None:
    await bench.show("a", capacity=2)
    calls = await bench.at_once(5)
    assert sent_to(bench.lane(), calls) == [0, 1]
    assert bench.lane().wanted == 3
    bench.lane().returns(calls[1])
    assert sent_to(bench.lane(), calls) == [0, 1, 2]
    assert bench.lane().wanted == 2
    for call in calls[2:]:
        bench.lane().returns(call)
    assert bench.lane().wanted == 0


async def test_each_call_goes_to_the_least_loaded_worker(bench: Bench) -> None:
    await bench.show(WorkerView("small", None, 2, True), WorkerView("large", None, 8, True))
    calls = await bench.calls(5)
    assert len(bench.lane("small").submits()) == 1
    assert len(bench.lane("large").submits()) == 4
    bench.lane("large").says(*(Returned(m.call_id, pack(None)) for m in bench.lane("large").submits()))
    more = await bench.call()
    assert bench.lane("large").of(more)
    assert not any(told(c) for c in calls if bench.lane("small").of(c))


async def test_a_full_worker_is_passed_over_though_it_is_the_least_loaded_by_us(bench: Bench) -> None:
    await bench.show("a", "b", capacity=4)
    bench.lane("a").room = 0  # another router's inputs
    (one, two) = await bench.calls(2)
    assert bench.lane("b").of(one) and bench.lane("b").of(two)


async def test_a_worker_that_is_not_ready_is_sent_nothing_and_what_runs_there_goes_on(bench: Bench) -> None:
    await bench.show("a", capacity=8)
    running = await bench.call()
    await bench.show(WorkerView("a", None, 8, False))
    waiting = await bench.call()
    assert not bench.lane().of(waiting)
    bench.lane().returns(running, 1)
    assert told(running) == [("returned", 1)]
    await bench.show("a", capacity=8)
    assert bench.lane().of(waiting)


async def test_a_worker_that_is_not_ready_any_more_is_not_asked_for_room(bench: Bench) -> None:
    # It would offer its room, and be asked again, to and fro for as long as calls wait.
    await bench.show("a", capacity=1)
    await bench.at_once(3)
    assert bench.lane().wanted == 2
    await bench.show(WorkerView("a", None, 1, False))
    assert bench.lane().wanted == 0


async def test_a_worker_that_left_the_pool_is_forgotten_when_our_last_call_there_has_ended(bench: Bench) -> None:
    await bench.show("a", "b")
    call = await bench.call()
    await bench.show("b")
    lane = bench.lane("a")
    assert not lane.closed
    lane.returns(call)
    await bench.show("b")
    assert lane.closed


async def test_a_class_that_is_deployed_no_more_is_asked_for_again_by_each_call(bench: Bench) -> None:
    gone = NotFound("the app has no class 'Embedder'")
    bench.pool.again = PoolView(0, PoolState.READY, (), failure=gone, forgotten=True)
    await bench.show(forgotten=True)
    for _ in range(2):
        assert isinstance(error_of(await bench.call()), NotFound)
    bench.pool.again = None
    call = await bench.call()
    assert told(call) == []
    await bench.show("a")
    assert bench.lane().of(call)


async def test_a_message_about_a_call_that_is_no_longer_there_is_ignored(bench: Bench) -> None:
    await bench.show("a", "b")
    call = await bench.call()
    lane = bench.lane("a")
    lane.says(Busy(call.number))
    bench.lane("b").returns(call, 1)
    lane.says(Returned(call.number, pack(2)), Started(call.number), Ended(call.number + 1000))
    assert told(call) == [("returned", 1)]


# --- bounds ------------------------------------------------------------------------------------------------------


async def test_the_queue_is_bounded_in_number(bench: Bench) -> None:
    bench.make(max_pending=3)
    await bench.calls(3)
    with pytest.raises(QueueFull, match=r"app/Embedder: 3 calls already wait .*max_pending=3"):
        await bench.call()


async def test_calls_that_are_with_workers_take_no_room_in_the_queue(bench: Bench) -> None:
    bench.make(max_pending=2)
    await bench.show("a", capacity=100)
    assert len(await bench.calls(50)) == 50


async def test_the_queue_is_bounded_in_bytes(bench: Bench) -> None:
    bench.make(max_pending_mb=1)
    await bench.call(size=700_000)
    with pytest.raises(QueueFull, match=r"max_pending_mb=1"):
        await bench.call(size=700_000)
    await bench.call(size=100_000)


async def test_one_call_larger_than_the_bound_is_accepted_when_nothing_else_waits(bench: Bench) -> None:
    bench.make(max_pending_mb=1)
    await bench.call(size=5_000_000)


async def test_a_call_that_was_refused_leaves_no_trace(bench: Bench) -> None:
    router = bench.make(max_pending=1)
    first = await bench.call()
    with pytest.raises(QueueFull):
        await bench.call()
    assert router.unfinished == 1
    router.cancel(first)
    await bench.timeline.settle()
    await bench.call()


@pytest.mark.parametrize("how", ["sent", "cancelled", "expired"])
async def test_whoever_waits_for_space_is_told_when_a_call_has_left_the_queue(bench: Bench, how: str) -> None:
    router = bench.make(max_pending=1)
    call = await bench.call(deadline_s=5)
    space = router.when_space()
    assert not space.done()
    if how == "sent":
        await bench.show("a")
    elif how == "cancelled":
        router.cancel(call)
    await bench.timeline.advance(6)
    assert space.done()


async def test_with_nothing_in_the_queue_there_is_space(bench: Bench) -> None:
    assert bench.router.when_space().done()


async def test_whoever_gave_up_waiting_for_space_or_for_a_worker_harms_nobody(bench: Bench) -> None:
    call = await bench.call()
    for waiter in (bench.router.when_space(), bench.router.when_ready()):
        asyncio.wrap_future(waiter).cancel()
    await bench.show("a")
    assert bench.lane().of(call)
    bench.lane().returns(call, 1)
    assert told(call) == [("returned", 1)]


async def test_threads_may_submit_while_the_loop_runs(bench: Bench) -> None:
    await bench.show("a", capacity=1000)
    calls = [bench.new() for _ in range(200)]

    def submit_some(part: int) -> None:
        for call in calls[part::4]:
            bench.router.submit(call)

    threads = [threading.Thread(target=submit_some, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    await bench.timeline.settle()
    assert sorted(sent_to(bench.lane(), calls)) == list(range(200))


# --- busy --------------------------------------------------------------------------------------------------------


async def test_calls_that_a_worker_refuses_go_back_to_the_head_of_the_queue_in_their_order(bench: Bench) -> None:
    await bench.show("a", capacity=3)
    calls = await bench.calls(5)
    lane = bench.lane()
    lane.room = 0
    lane.says(*(Busy(c.number) for c in calls[:3]))
    lane.room = 5
    lane.says()
    assert sent_to(lane, calls) == [0, 1, 2, 0, 1, 2, 3, 4]


async def test_refused_calls_keep_their_order_when_the_refusals_come_one_by_one_and_mixed_up(bench: Bench) -> None:
    await bench.show("a", capacity=4)
    calls = await bench.calls(6)
    lane = bench.lane()
    lane.room = 0
    for n in (2, 0, 3, 1):
        lane.says(Busy(calls[n].number))
    lane.room = 6
    lane.says()
    assert sent_to(lane, calls)[4:] == [0, 1, 2, 3, 4, 5]


async def test_a_refused_call_is_no_attempt_and_goes_elsewhere(bench: Bench) -> None:
    await bench.show("a", "b")
    call = await bench.call()
    bench.lane("a").room = 0
    bench.lane("a").says(Busy(call.number))
    assert [m.attempt for m in bench.lane("b").of(call)] == [1]


async def test_a_refused_call_counts_against_the_bound_again(bench: Bench) -> None:
    bench.make(max_pending=1)
    await bench.show("a")
    call = await bench.call()
    bench.lane().room = 0
    bench.lane().says(Busy(call.number))
    with pytest.raises(QueueFull):
        await bench.call()


# --- workers that die --------------------------------------------------------------------------------------------


async def test_without_a_vouching_lane_what_was_sent_counts_as_started(bench: Bench) -> None:
    await bench.show("a", "b", capacity=4)
    call = await bench.call()
    bench.lane("a").dies("exit code 137")
    error = error_of(call)
    assert isinstance(error, WorkerLost)
    for words in ("worker a", "Embedder.embed", "attempt 1", "exit code 137", "retries"):
        assert words in str(error)
    assert not bench.lane("b").sent


async def test_with_a_vouching_lane_what_never_started_is_sent_elsewhere_silently(bench: Bench) -> None:
    bench.pool.vouches = True
    await bench.show("a", capacity=4)
    started, staged = await bench.calls(2)
    bench.lane("a").says(Started(started.number))
    await bench.show("a", "b", capacity=4)
    bench.lane("a").dies()
    assert isinstance(error_of(started), WorkerLost)
    assert [m.attempt for m in bench.lane("b").of(staged)] == [1]
    bench.lane("b").returns(staged, 1)
    assert told(staged) == [("returned", 1)]


async def test_a_call_that_started_elsewhere_before_it_was_refused_here_has_not_started_here(bench: Bench) -> None:
    bench.pool.vouches = True
    await bench.show("a", "b", "c", capacity=1)
    call = await bench.call(retries=1)
    bench.lane("a").says(Started(call.number))
    bench.lane("a").dies()
    assert [m.attempt for m in bench.lane("b").of(call)] == [2]
    bench.lane("b").dies()  # it had not started there
    assert [m.attempt for m in bench.lane("c").of(call)] == [2]


async def test_calls_of_a_dead_worker_go_to_the_head_in_their_order(bench: Bench) -> None:
    bench.pool.vouches = True
    await bench.show("a", capacity=3)
    calls = await bench.calls(5)
    bench.lane("a").dies()
    await bench.show("b", capacity=8)
    assert sent_to(bench.lane("b"), calls) == [0, 1, 2, 3, 4]


async def test_a_lost_worker_is_retried_at_once_whatever_retry_on_says(bench: Bench) -> None:
    await bench.show("a", "b")
    call = await bench.call(retries=Retries(max_retries=1, initial_delay_s=60, retry_on=(KeyError,)))
    bench.lane("a").dies()
    assert [m.attempt for m in bench.lane("b").of(call)] == [2]
    bench.lane("b").dies()
    assert isinstance(error_of(call), WorkerLost)
    assert "attempt 2" in str(error_of(call))


async def test_a_stream_is_not_retried_after_its_first_item(bench: Bench) -> None:
    await bench.show("a", capacity=4)
    fresh, flowing = await bench.calls(2, retries=5)
    bench.lane().says(Item(flowing.number, pack(1)))
    bench.lane().dies()
    assert [type(t) for t in told(flowing)] == [tuple, WorkerLost]
    await bench.show("b", capacity=4)
    assert [m.attempt for m in bench.lane("b").of(fresh)] == [2]
    assert not bench.lane("b").of(flowing)


async def test_a_stream_that_raises_after_its_first_item_is_not_retried_either(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call(retries=5)
    bench.lane().says(Item(call.number, pack(1)))
    bench.lane().raises(call, ValueError("x"))
    assert [type(t) for t in told(call)] == [tuple, ValueError]


# --- retries -----------------------------------------------------------------------------------------------------


async def test_what_a_method_raises_is_raised(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call()
    bench.lane().raises(call, KeyError("k"))
    assert isinstance(error_of(call), KeyError)
    assert "KeyError" in str(error_of(call).__cause__)


async def test_a_raised_exception_is_retried_after_backoff_as_often_as_allowed(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call(retries=Retries(max_retries=2, initial_delay_s=1, backoff_coefficient=3))
    lane = bench.lane()
    for delay_s, attempts in ((1.0, 2), (3.0, 3)):
        lane.raises(call, ValueError("x"))
        await bench.timeline.advance(delay_s - 0.01)
        assert len(lane.of(call)) == attempts - 1
        await bench.timeline.advance(0.01)
        assert [m.attempt for m in lane.of(call)] == list(range(1, attempts + 1))
        assert told(call) == []
    lane.raises(call, ValueError("the last"))
    assert str(error_of(call)) == "the last"
    await bench.timeline.advance(100)
    assert len(lane.of(call)) == 3


async def test_only_what_retry_on_names_is_retried(bench: Bench) -> None:
    await bench.show("a")
    retries = Retries(max_retries=3, initial_delay_s=0, retry_on=(OSError,))
    other, same = await bench.call(retries=retries), None
    bench.lane().raises(other, ValueError("x"))
    assert isinstance(error_of(other), ValueError)
    same = await bench.call(retries=retries)
    bench.lane().raises(same, FileNotFoundError("x"))
    await bench.timeline.settle()
    assert len(bench.lane().of(same)) == 2


async def test_a_remote_error_counts_as_what_was_raised_in_the_worker(bench: Bench) -> None:
    class UnpicklableError(ConnectionError):
        def __reduce__(self) -> Any:
            raise TypeError("no")

    await bench.show("a")
    call = await bench.call(retries=Retries(max_retries=1, initial_delay_s=0, retry_on=(ConnectionError,)))
    bench.lane().raises(call, UnpicklableError("x"))
    await bench.timeline.settle()
    assert len(bench.lane().of(call)) == 2
    bench.lane().raises(call, UnpicklableError("x"))
    assert isinstance(error_of(call), RemoteError)


class Kept(Outcome):
    """A caller that has not looked at its outcome yet."""

    def raised(self, problem: Problem) -> None:
        self.told.append(problem)


class MarkedError(Exception):
    """Leaves a mark where it is unpickled."""

    made: ClassVar[list[str]] = []

    def __reduce__(self) -> Any:
        return (_marked, ())


def _marked() -> MarkedError:
    MarkedError.made.append(threading.current_thread().name)
    return MarkedError("unpickled")


async def test_what_a_method_raised_is_unpickled_by_who_asks_for_it_and_never_by_the_router(bench: Bench) -> None:
    # Unpickling runs the user's code, which may block: here it would keep back every call of the process.
    await bench.show("a", capacity=3)
    once = Retries(max_retries=1, initial_delay_s=1, retry_on=(MarkedError,))
    raised, retried = await bench.call(sink=Kept()), await bench.call(sink=Kept(), retries=once)
    late = await bench.call(sink=Kept(), retries=once, deadline_s=2)
    messages = [Raised(call.number, pack_exception(MarkedError("x")), 1) for call in (raised, retried, late, retried)]
    MarkedError.made.clear()
    bench.lane().says(*messages[:3])
    await bench.timeline.advance(1)
    bench.lane().says(messages[3])
    await bench.timeline.advance(1 + VERDICT_S)
    problems = [told(call)[0] for call in (raised, retried, late)]
    assert MarkedError.made == []
    errors = [problem.exception() for problem in problems]
    assert [type(error) for error in errors] == [MarkedError, MarkedError, DeadlineExceeded]
    assert isinstance(errors[2].__cause__, MarkedError)
    assert len(MarkedError.made) == 3


async def test_an_execution_that_took_too_long_may_be_retried_a_call_that_did_may_not(bench: Bench) -> None:
    await bench.show("a")
    execution, call = await bench.call(retries=Retries(max_retries=1, initial_delay_s=0)), None
    bench.lane().raises(execution, DeadlineExceeded("slow", limit="timeout_s"))
    await bench.timeline.settle()
    assert [m.attempt for m in bench.lane().of(execution)] == [1, 2]
    bench.lane().returns(execution)
    call = await bench.call(retries=1)
    bench.lane().raises(call, DeadlineExceeded("late", limit="deadline_s"))
    assert isinstance(error_of(call), DeadlineExceeded)


async def test_inputs_of_a_failed_batch_are_retried_in_halves_until_each_is_alone(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call(retries=Retries(max_retries=9, initial_delay_s=0))
    for size in (7, 4, 2, 1):
        bench.lane().raises(call, ValueError("poisoned"), batch_size=size)
        await bench.timeline.settle()
    assert [m.batch_cap for m in bench.lane().of(call)] == [0, 4, 2, 1, 1]


async def test_a_cap_never_grows_again(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call(retries=Retries(max_retries=9, initial_delay_s=0))
    for size in (2, 64):
        bench.lane().raises(call, ValueError("poisoned"), batch_size=size)
        await bench.timeline.settle()
    assert [m.batch_cap for m in bench.lane().of(call)] == [0, 1, 1]


async def test_a_plain_call_that_is_retried_has_no_cap(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call(retries=Retries(max_retries=1, initial_delay_s=0))
    bench.lane().raises(call, ValueError("x"))
    await bench.timeline.settle()
    assert [m.batch_cap for m in bench.lane().of(call)] == [0, 0]


async def test_while_a_call_backs_off_it_can_be_cancelled(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call(retries=3)
    bench.lane().raises(call, ValueError("x"))
    bench.router.cancel(call)
    await bench.timeline.advance(100)
    assert isinstance(error_of(call), CallCancelled)
    assert len(bench.lane().of(call)) == 1


# --- deadlines ---------------------------------------------------------------------------------------------------


async def test_the_time_that_is_left_travels_with_the_call(bench: Bench) -> None:
    call = await bench.call(deadline_s=10)
    await bench.timeline.advance(4)
    await bench.show("a")
    (submit,) = bench.lane().of(call)
    assert submit.deadline_left_s == pytest.approx(6)


async def test_a_call_without_a_deadline_waits(bench: Bench) -> None:
    call = await bench.call()
    await bench.timeline.advance(300)
    assert told(call) == []
    assert call.message().deadline_left_s is None


async def test_a_call_that_never_reached_a_worker_because_none_was_ready_is_pool_unavailable(bench: Bench) -> None:
    await bench.show(waiting_for="2 starting (on_enter is running)")
    call = await bench.call(deadline_s=5)
    await bench.timeline.advance(5)
    error = error_of(call)
    assert isinstance(error, PoolUnavailable)
    assert str(error) == (
        "Embedder.embed passed its deadline_s after 5 s without a worker: 2 starting (on_enter is running)"
    )


async def test_before_the_controller_has_answered_that_is_what_calls_wait_for(bench: Bench) -> None:
    call = await bench.call(deadline_s=5)
    await bench.timeline.advance(5)
    assert isinstance(error_of(call), PoolUnavailable)
    assert "the controller's first answer" in str(error_of(call))


async def test_a_call_that_found_every_worker_busy_says_so(bench: Bench) -> None:
    await bench.show("a")
    first, second = await bench.calls(2, deadline_s=5)
    await bench.timeline.advance(5)
    error = error_of(second)
    await bench.timeline.advance(VERDICT_S)
    assert isinstance(error, DeadlineExceeded)
    assert (error.limit, error.where) == ("deadline_s", "queue")
    assert "5 s in the queue" in str(error) and "busy" in str(error)
    assert error_of(first).where == "worker"


def late(call: RoutedCall, limit: Any, **times: float | None) -> Raised:
    """What a worker says of a call whose limit has passed there."""
    error = DeadlineExceeded("in the worker's words", limit=limit)
    return Raised(call.number, pack_exception(error), 1, "nobody", limit=limit, **times)


async def test_a_call_that_ran_too_long_says_where_the_time_went_as_its_worker_tells_it(bench: Bench) -> None:
    call = await bench.call(deadline_s=5)
    await bench.timeline.advance(2)
    await bench.show("a")
    await bench.timeline.advance(3)
    assert told(call) == [], "its worker's timer passes at the same time, and the worker knows more"
    bench.lane().says(late(call, "deadline_s", wait_s=0.5, run_s=2.25))
    error = error_of(call)
    assert isinstance(error, DeadlineExceeded) and isinstance(error, TimeoutError)
    assert (error.limit, error.where) == ("deadline_s", "running")
    assert str(error) == (
        "Embedder.embed passed its deadline_s after 5 s: 2.25 s queued, 0.5 s batch wait, 2.25 s running"
    )
    await bench.timeline.advance(10)
    assert bench.lane().of(call) == bench.lane().submits()
    assert len(told(call)) == 1


async def test_a_call_that_had_not_begun_when_its_deadline_passed_says_so(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call(deadline_s=5)
    await bench.timeline.advance(5)
    bench.lane().says(late(call, "deadline_s", wait_s=4.5))
    assert str(error_of(call)).endswith("after 5 s: 0.5 s queued, 4.5 s batch wait")
    assert error_of(call).where == "worker queue"


async def test_a_worker_that_says_nothing_at_a_deadline_is_not_waited_for_and_is_told(bench: Bench) -> None:
    call = await bench.call(deadline_s=5)
    await bench.timeline.advance(2)
    await bench.show("a")
    await bench.timeline.advance(3 + VERDICT_S)
    error = error_of(call)
    assert (error.limit, error.where) == ("deadline_s", "worker")
    assert "after 5.1 s: 2 s queued, 3.1 s in a worker, which did not say what it does" in str(error)
    assert Cancel(call.number) in bench.lane().sent
    assert bench.timeline.timers() <= 1, "its timer is gone: what is left reports the demand"


async def test_a_result_that_was_on_its_way_when_the_deadline_passed_arrives(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call(deadline_s=5)
    await bench.timeline.advance(5)
    bench.lane().returns(call, 3)
    await bench.timeline.advance(1)
    assert told(call) == [("returned", 3)]


async def test_an_overdue_call_that_comes_back_to_the_queue_ends_there(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call(deadline_s=5)
    await bench.timeline.advance(5)
    bench.lane().room = 0
    bench.lane().says(Busy(call.number))
    await bench.timeline.advance(VERDICT_S)
    assert error_of(call).where == "queue"


async def test_an_execution_that_passed_its_limit_says_what_came_before_it_too(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call(retries=Retries(max_retries=1, initial_delay_s=2), timeout_s=4)
    await bench.timeline.advance(1)
    bench.lane().raises(call, ValueError("x"))
    await bench.timeline.advance(2 + 5)
    bench.lane().says(late(call, "timeout_s", wait_s=0.5, run_s=4.0))
    error = error_of(call)
    assert (error.limit, error.where) == ("timeout_s", "running")
    assert str(error) == (
        "Embedder.embed ran longer than its timeout_s of 4 s: 0.5 s queued, 0.5 s batch wait, 4 s running "
        "(attempt 2, 3 s after the first began)"
    )
    assert isinstance(error.__cause__, ValueError)


# --- where the time goes -----------------------------------------------------------------------------------------


def means(bench: Bench, method: str = "embed") -> list[tuple[int, float]]:
    """Of queue time, batch wait and run time as they were reported: how many, and their mean."""
    return [(times.count, round(times.mean_s, 6)) for times in bench.pool.times[method]]


async def test_queue_time_is_what_the_worker_s_own_times_leave_of_the_whole(bench: Bench) -> None:
    call = await bench.call()
    await bench.timeline.advance(2)
    await bench.show("a")
    await bench.timeline.advance(1.5)
    bench.lane().says(Returned(call.number, pack(1), 0.25, 1.0))
    await bench.timeline.advance(1)
    assert means(bench) == [(1, 2.25), (1, 0.25), (1, 1.0)]
    stream = await bench.call(credit=9)
    bench.lane().says(Item(stream.number, pack(1)))
    await bench.timeline.advance(4)
    bench.lane().says(Ended(stream.number, 1.0, 2.0))
    await bench.timeline.advance(1)
    assert means(bench) == [(2, 1.625), (2, 0.625), (2, 1.5)]


async def test_each_attempt_counts_from_when_it_was_queued_and_no_backoff_does(bench: Bench) -> None:
    await bench.show("a", "b")
    call = await bench.call(retries=Retries(max_retries=2, initial_delay_s=7))
    await bench.timeline.advance(1)
    failure = pack_exception(ValueError("x"))
    bench.lane().says(Raised(call.number, failure, 1, wait_s=0.0, run_s=1.0))
    await bench.timeline.advance(7 + 2)
    bench.lane("b").dies()  # what it did, nobody knows
    await bench.timeline.advance(3)
    bench.lane().says(Returned(call.number, pack(1), 1.0, 1.5))
    await bench.timeline.advance(1)
    assert means(bench) == [(2, 0.25), (2, 0.5), (2, 1.25)]


async def test_a_refused_call_goes_on_queueing(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call()
    await bench.timeline.advance(1)
    bench.lane().room = 0
    bench.lane().says(Busy(call.number))
    await bench.timeline.advance(1)
    bench.lane().room = 1
    bench.lane().says()
    bench.lane().says(Returned(call.number, pack(1), 0.0, 0.0))
    await bench.timeline.advance(1)
    assert means(bench) == [(1, 2.0), (1, 0.0), (1, 0.0)]


async def test_a_cancelled_call_does_not_count_and_one_whose_deadline_passed_counts_as_far_as_it_came(
    bench: Bench,
) -> None:
    await bench.show("a", capacity=3)
    cancelled, waited, ran = await bench.calls(3, timeout_s=1.5)
    waits = await bench.call(deadline_s=3)
    bench.router.cancel(cancelled)
    await bench.timeline.settle()
    await bench.timeline.advance(3)
    assert error_of(waits).where == "queue"
    bench.lane().says(Returned(cancelled.number, pack(1), 1.0, 1.0))
    bench.lane().says(late(waited, "deadline_s", wait_s=2.5), late(ran, "timeout_s", wait_s=1.5, run_s=1.5))
    await bench.timeline.advance(1)
    assert means(bench) == [(3, pytest.approx((3 + 0.5 + 0) / 3, abs=1e-5)), (2, 2.0), (1, 1.5)]


async def test_times_are_reported_once(bench: Bench) -> None:
    await bench.show("a")
    for _ in range(3):
        call = await bench.call()
        bench.lane().says(Returned(call.number, pack(1), 0.5, 0.5))
        await bench.timeline.advance(10)
    assert means(bench)[1:] == [(3, 0.5), (3, 0.5)]


async def test_the_deadline_covers_retries_and_their_backoff(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call(deadline_s=5, retries=Retries(max_retries=99, initial_delay_s=2))
    bench.lane().raises(call, ValueError("x"))
    await bench.timeline.advance(2)
    bench.lane().raises(call, ValueError("x"))
    await bench.timeline.advance(3)
    assert isinstance(error_of(call), DeadlineExceeded)
    await bench.timeline.advance(100)
    assert len(bench.lane().of(call)) == 2


async def test_a_call_whose_deadline_has_passed_already_is_not_sent(bench: Bench) -> None:
    # A nested call inherits the deadline of a call that has run out of time.
    await bench.show("a")
    call = await bench.call(deadline_s=-1)
    assert isinstance(error_of(call), DeadlineExceeded)
    assert not bench.lane().sent


async def test_a_call_that_has_ended_leaves_no_timer_behind(bench: Bench) -> None:
    await bench.show("a")
    await bench.timeline.advance(10)
    before = bench.timeline.timers()
    call = await bench.call(deadline_s=1000)
    bench.lane().returns(call)
    await bench.timeline.advance(10)
    assert bench.timeline.timers() == before


# --- cancel ------------------------------------------------------------------------------------------------------


async def test_a_queued_call_that_is_cancelled_is_never_sent(bench: Bench) -> None:
    first, second, third = await bench.calls(3)
    bench.router.cancel(second)
    await bench.show("a", capacity=8)
    assert isinstance(error_of(second), CallCancelled)
    assert sent_to(bench.lane(), [first, second, third]) == [0, 2]


async def test_a_running_call_that_is_cancelled_is_cancelled_in_its_worker(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call()
    bench.router.cancel(call)
    await bench.timeline.settle()
    assert isinstance(error_of(call), CallCancelled)
    assert "Embedder.embed" in str(error_of(call))
    assert bench.lane().sent[-1] == Cancel(call.number)
    bench.lane().says(Returned(call.number, pack(1)))
    assert len(told(call)) == 1


async def test_cancelling_touches_nobody_else(bench: Bench) -> None:
    await bench.show("a", capacity=16)
    calls = await bench.calls(16)
    bench.router.cancel(calls[5])
    await bench.timeline.settle()
    for call in calls:
        bench.lane().returns(call, call.number)
    assert [told(c) for n, c in enumerate(calls) if n != 5] == [
        [("returned", c.number)] for n, c in enumerate(calls) if n != 5
    ]


async def test_cancelling_what_has_ended_changes_nothing(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call()
    bench.lane().returns(call, 1)
    sent = len(bench.lane().sent)
    bench.router.cancel(call)
    await bench.timeline.settle()
    assert told(call) == [("returned", 1)]
    assert len(bench.lane().sent) == sent


async def test_a_dead_worker_is_told_nothing(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call(retries=1)
    bench.lane().dies()
    sent = len(bench.lane().sent)
    bench.router.cancel(call)
    await bench.timeline.settle()
    assert len(bench.lane().sent) == sent


async def test_calls_that_are_cancelled_while_another_waits_at_the_head_are_not_kept(bench: Bench) -> None:
    await bench.call()
    for _ in range(1000):
        call = await bench.call()
        bench.router.cancel(call)
        await bench.timeline.settle()
    assert len(bench.router._queue._line) < 200
    assert bench.router.unfinished == 1


# --- streams -----------------------------------------------------------------------------------------------------


async def test_the_items_of_a_stream_come_in_order_and_then_its_end(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call(credit=16)
    assert bench.lane().submits()[0].credit == 16
    bench.lane().says(Item(call.number, pack(1)), Item(call.number, pack(2)))
    bench.lane().says(Item(call.number, pack(3)), Ended(call.number))
    assert told(call) == [("item", 1), ("item", 2), ("item", 3), "ended"]


async def test_room_that_a_consumer_makes_is_granted_to_the_worker(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call()
    bench.router.grant(call, 8)
    await bench.timeline.settle()
    assert bench.lane().sent[-1] == Credit(call.number, 8)


async def test_nothing_is_granted_to_a_stream_that_has_ended_or_waits(bench: Bench) -> None:
    waiting = await bench.call()
    bench.router.grant(waiting, 8)
    await bench.show("a")
    bench.lane().says(Ended(waiting.number))
    bench.router.grant(waiting, 8)
    await bench.timeline.settle()
    assert not any(isinstance(m, Credit) for m in bench.lane().sent)


# --- the pool ----------------------------------------------------------------------------------------------------


async def test_when_the_pool_has_failed_those_that_wait_are_told_and_those_that_come_too(bench: Bench) -> None:
    waiting = await bench.call()
    await bench.show(failure=StartupFailed("Embedder: ValueError: no model"))
    late = await bench.call()
    for call in (waiting, late):
        assert isinstance(error_of(call), StartupFailed)
    assert bench.router.unfinished == 0


@pytest.mark.parametrize("closed", [False, True])
async def test_each_call_that_the_same_error_ends_raises_one_of_its_own(bench: Bench, closed: bool) -> None:
    waiting = await bench.calls(3)
    ready = [bench.router.when_ready() for _ in range(3)]
    reason, cause = StartupFailed("Embedder: ValueError: no model"), ValueError("no model")
    reason.__cause__ = cause
    if closed:
        bench.router.close(reason)
        await bench.timeline.settle()
    else:
        await bench.show(failure=reason)
    told_to = [error_of(call) for call in waiting] + [future.exception() for future in ready]
    for _ in range(3 if closed else 0):
        with pytest.raises(StartupFailed) as refused:
            bench.router.submit(bench.new())
        told_to.append(refused.value)
    assert len({id(error) for error in [*told_to, reason]}) == len(told_to) + 1
    for error in told_to:
        assert (type(error), str(error), error.__cause__) == (StartupFailed, str(reason), cause)
    assert reason.__traceback__ is None


async def test_a_call_that_a_failed_pool_turns_away_is_demand(bench: Bench) -> None:
    await bench.show(failure=StartupFailed("no"))
    assert bench.pool.reports == []
    assert isinstance(error_of(await bench.call()), StartupFailed)
    await bench.timeline.advance(DEMAND_PERIOD_S)
    assert [report.running for report in bench.pool.reports] == [1]
    await bench.timeline.advance(DEMAND_PERIOD_S)
    assert bench.pool.reports[-1] == Demand(0, 0)
    assert bench.timeline.timers() == 0


async def test_a_failed_scale_up_fails_no_call_while_a_worker_serves(bench: Bench) -> None:
    await bench.show("a", failure=StartupFailed("no"))
    running, waiting = await bench.calls(2)
    assert told(running) == told(waiting) == []
    bench.lane().returns(running)
    assert bench.lane().of(waiting)


async def test_a_pool_that_recovers_serves_again(bench: Bench) -> None:
    await bench.show(failure=StartupFailed("no"))
    await bench.call()
    await bench.show("a")
    call = await bench.call()
    assert bench.lane().of(call)


async def test_a_controller_that_is_gone_ends_every_call_with_its_reason(bench: Bench) -> None:
    await bench.show("a")
    running, waiting = await bench.calls(2)
    bench.pool.disappear(ConnectionError("The actor is dead because its owner has died. Some common causes include"))
    await bench.timeline.settle()
    for call in (running, waiting):
        assert isinstance(error_of(call), PoolUnavailable)
        assert "app/Embedder" in str(error_of(call)) and "its owner has died" in str(error_of(call))
    with pytest.raises(PoolUnavailable):
        await bench.call()


async def test_the_controllers_own_words_are_passed_on(bench: Bench) -> None:
    call = await bench.call()
    bench.pool.disappear(PoolUnavailable("the app 'x' is being stopped"))
    await bench.timeline.settle()
    assert str(error_of(call)) == "the app 'x' is being stopped"


async def test_whoever_waits_for_a_worker_is_told_of_the_first_or_of_the_failure(bench: Bench) -> None:
    ready = bench.router.when_ready()
    await bench.show()
    assert not ready.done()
    await bench.show("a")
    assert ready.done() and ready.exception() is None
    await bench.show(failure=StartupFailed("no"))
    late = bench.router.when_ready()
    await bench.timeline.settle()
    assert isinstance(late.exception(0), StartupFailed)


async def test_what_the_user_should_be_told_is_told_once(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_module, "_noticed", set())
    await bench.show("a", notice="it runs without a GPU")
    await bench.show("a", "b", notice="it runs without a GPU")
    assert [r.message for r in caplog.records] == ["it runs without a GPU"]


async def test_while_calls_wait_the_log_says_for_what(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.show(waiting_for="waiting for GPU A100 x1")
    await bench.calls(2)
    with caplog.at_level(logging.WARNING, "gworker.router"):
        await bench.timeline.advance(EXPLAIN_AFTER_S + 0.1)
        assert ["2 calls wait" in r.message and "GPU A100 x1" in r.message for r in caplog.records] == [True]
        await bench.timeline.advance(6 * EXPLAIN_AFTER_S)
        assert len(caplog.records) == 2
        await bench.show("a", capacity=8)
        caplog.clear()
        await bench.timeline.advance(100)
        assert not caplog.records


# --- demand ------------------------------------------------------------------------------------------------------


async def test_the_first_call_without_a_worker_is_reported_at_once(bench: Bench) -> None:
    await bench.show()
    await bench.call()
    assert bench.pool.reports == [Demand(1, 0)]


async def test_demand_is_repeated_while_there_is_any_and_withdrawn_once(bench: Bench) -> None:
    await bench.show("a")
    running, waiting = await bench.calls(2)
    await bench.timeline.advance(1.0)
    assert bench.pool.reports[-1] == Demand(1, 1, inflight=(("a", 1),))
    assert len(bench.pool.reports) == round(1.0 / DEMAND_PERIOD_S)
    bench.lane().returns(running)
    bench.lane().returns(waiting)
    await bench.timeline.advance(10.0)
    assert bench.pool.reports[-1] == Demand(0, 0)
    assert bench.pool.reports.count(Demand(0, 0)) == 1


async def test_a_burst_shorter_than_a_period_is_seen(bench: Bench) -> None:
    await bench.show("a")
    bench.lane().returns(await bench.call())
    await bench.timeline.advance(DEMAND_PERIOD_S)
    assert bench.pool.reports == [Demand(0, 1)]


async def test_calls_that_were_cancelled_are_no_demand(bench: Bench) -> None:
    await bench.show("a")
    calls = await bench.calls(6)
    for call in calls[2:]:
        bench.router.cancel(call)
    await bench.timeline.advance(1.0)
    assert bench.pool.reports[-1] == Demand(1, 1, inflight=(("a", 1),))
    assert bench.lane().wanted == 1


async def test_a_call_that_backs_off_is_demand_until_it_has_ended(bench: Bench) -> None:
    await bench.show("a")
    call = await bench.call(retries=Retries(max_retries=1, initial_delay_s=50))
    bench.lane().raises(call, ValueError("x"))
    await bench.timeline.advance(1.0)
    assert bench.pool.reports[-1] == Demand(1, 0)
    bench.router.cancel(call)
    await bench.timeline.advance(1.0)
    assert bench.pool.reports[-1] == Demand(0, 0)


# --- whoever waits -----------------------------------------------------------------------------------------------


class Gone(Outcome):
    """A consumer whose event loop has been closed: whatever it is told raises."""

    def returned(self, result: Packed) -> None:
        raise RuntimeError("Event loop is closed")

    def raised(self, problem: Problem) -> None:
        raise RuntimeError("Event loop is closed")

    item = returned

    def ended(self) -> None:
        raise RuntimeError("Event loop is closed")


@pytest.mark.parametrize(
    "word",
    [
        lambda n: Returned(n, pack(1)),
        lambda n: Raised(n, pack_exception(ValueError("x")), 1),
        lambda n: Item(n, pack(1)),
        Ended,
    ],
    ids=["returned", "raised", "item", "ended"],
)
async def test_a_consumer_that_is_gone_keeps_nobody_elses_result_back(bench: Bench, word: Any) -> None:
    await bench.show("a", capacity=4)
    gone, other = await bench.call(sink=Gone()), await bench.call()
    bench.lane().says(word(gone.number), Returned(other.number, pack(1)))
    assert told(other) == [("returned", 1)]


async def test_a_consumer_that_is_gone_does_not_keep_a_dead_workers_other_calls_waiting(bench: Bench) -> None:
    await bench.show("a", capacity=4)
    await bench.call(sink=Gone())
    other = await bench.call()
    bench.lane().dies()
    assert isinstance(error_of(other), WorkerLost)


# --- closing -----------------------------------------------------------------------------------------------------


async def test_closing_ends_every_call_there_is_and_every_later_one(bench: Bench) -> None:
    await bench.show("a")
    running, waiting = await bench.calls(2)
    backing_off = await bench.call(retries=1)
    bench.router.close(PoolUnavailable("the app 'x' was stopped"))
    await bench.timeline.settle()
    for call in (running, waiting, backing_off):
        assert isinstance(error_of(call), PoolUnavailable)
        assert str(error_of(call)) == "the app 'x' was stopped"
    assert Cancel(running.number) in bench.lane().sent
    assert bench.lane().closed
    with pytest.raises(PoolUnavailable):
        await bench.call()
    assert bench.router.unfinished == 0


async def test_a_call_that_was_accepted_while_the_router_closes_ends_too(bench: Bench) -> None:
    call = bench.new()
    bench.router.submit(call)
    bench.router.close(PoolUnavailable("stopped"))
    await bench.timeline.settle()
    assert isinstance(error_of(call), PoolUnavailable)


async def test_closing_lets_go_whoever_waits_for_space_or_a_worker(bench: Bench) -> None:
    await bench.call()
    space, ready = bench.router.when_space(), bench.router.when_ready()
    bench.router.close(PoolUnavailable("stopped"))
    await bench.timeline.settle()
    assert space.done()
    assert isinstance(ready.exception(0), PoolUnavailable)
    assert bench.router.when_space().done()


async def test_a_closed_router_reports_nothing_and_leaves_no_timer(bench: Bench) -> None:
    await bench.show()
    await bench.calls(3, deadline_s=100)
    await bench.timeline.advance(1.0)
    bench.router.close(PoolUnavailable("stopped"))
    await bench.timeline.settle()
    reports = len(bench.pool.reports)
    assert bench.timeline.timers() == 0
    await bench.timeline.advance(10.0)
    assert len(bench.pool.reports) == reports


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "RuntimeError"),
        ("first line\nsecond", "first line"),
        (
            "The actor died.\n\tclass_name: X\nThe actor is dead because it has died. Some common causes are",
            "The actor is dead because it has died",
        ),
    ],
)
def test_the_reason_of_a_death_is_one_line(text: str, reason: str) -> None:
    assert death_reason(RuntimeError(text)) == reason


# --- system errors, and pools that are forgotten -----------------------------------------------------------------


def errors_told(bench: Bench) -> dict[str, int]:
    return dict(bench.pool.reports[-1].errors)


async def test_system_errors_in_a_row_are_reported_and_anything_else_ends_the_row(bench: Bench) -> None:
    await bench.show("a", capacity=20)
    calls = await bench.calls(12)
    failure = pack_exception(DeadlineExceeded("too long", limit="timeout_s"))
    for call in calls[:3]:
        bench.lane().says(Raised(call.number, failure, 1, "system"))
    bench.lane().says(Raised(calls[3].number, failure, 1, "nobody"))
    await bench.timeline.advance(DEMAND_PERIOD_S)
    assert errors_told(bench) == {"a": 3}
    bench.lane().raises(calls[4], ValueError("mine"))
    await bench.timeline.advance(DEMAND_PERIOD_S)
    assert errors_told(bench) == {}, "an exception of user code says that the worker works"
    bench.lane().says(Raised(calls[5].number, failure, 1, "system"))
    bench.lane().returns(calls[6])
    await bench.timeline.advance(DEMAND_PERIOD_S)
    assert errors_told(bench) == {}


async def test_a_system_error_of_a_call_that_nobody_waits_for_counts_too(bench: Bench) -> None:
    await bench.show("a", capacity=2)
    cancelled, other = await bench.calls(2)
    bench.router.cancel(cancelled)
    await bench.timeline.settle()
    bench.lane().says(Raised(cancelled.number, pack_exception(TimeoutError()), 1, "system"))
    await bench.timeline.advance(DEMAND_PERIOD_S)
    assert errors_told(bench) == {"a": 1}
    bench.lane().returns(other)


async def test_a_lane_that_breaks_is_a_system_error_and_one_taken_out_begins_a_new_row(bench: Bench) -> None:
    await bench.show("a", "b")
    await bench.call(retries=3)
    await bench.call(retries=3)
    bench.lane("a").dies()
    await bench.timeline.advance(DEMAND_PERIOD_S)
    assert errors_told(bench) == {"a": 1}
    await bench.show(WorkerView("a", None, 1, False), "b")
    await bench.timeline.advance(DEMAND_PERIOD_S)
    assert errors_told(bench) == {}


async def test_a_pool_that_was_forgotten_is_defined_again_by_the_next_call_and_not_before(bench: Bench) -> None:
    await bench.show("a")
    bench.lane().returns(await bench.call())
    await bench.show(forgotten=True)
    asked = len(bench.pool.known)
    await bench.timeline.advance(100.0)
    assert len(bench.pool.known) == asked, "an idle router leaves the controller alone"
    call = await bench.call()
    assert bench.pool.known[asked] is None, "None brings the definition along"
    await bench.show("b")
    bench.lane("b").returns(call, "served")
    assert told(call) == [("returned", "served")]


async def test_a_controller_that_was_restarted_begins_its_versions_anew(bench: Bench) -> None:
    await bench.show("a", epoch="first")
    bench.pool.show("a", "b", epoch="second", version=1)
    await bench.timeline.settle()
    await bench.calls(2)
    assert bench.lane("a").submits() and bench.lane("b").submits()
