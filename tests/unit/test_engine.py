"""The engine of a worker, in process, with real threads and a clock of the test's own: DESIGN §4 without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gworker as gw
from gworker import context
from gworker.spec import compile_class
from gworker.wire import (
    Busy,
    Ended,
    Item,
    Raised,
    Returned,
    Started,
    Submit,
    pack,
    pack_arguments,
    unpack,
    unpack_exception,
)
from gworker.worker.engine import MAX_STAGED, WEDGED_AFTER_S, Engine
from gworker.worker.lifecycle import Instance
from gworker.worker.slots import OFFER_S
from gworker.worker.threads import UserThreads

pytestmark = pytest.mark.timeout(20)

_LAST = (Busy, Returned, Raised, Ended)


class Caller:
    """A session as the engine sees it: it notes what it is sent."""

    def __init__(self, worker: Worker, name: str, stages: bool) -> None:
        self.name = name
        self.stages = stages
        self.inputs: dict[int, Any] = {}
        self.messages: list[Any] = []
        self.nudges = 0
        self._worker = worker
        self._numbers = itertools.count(1)
        self._news = asyncio.Event()
        worker.engine.sessions[name] = self  # type: ignore[assignment]

    def send(self, message: Any) -> None:
        self.messages.append(message)
        self._news.set()

    def nudge(self) -> None:
        self.nudges += 1

    def submit(
        self,
        method: str,
        *args: Any,
        parameters: dict[str, Any] | None = None,
        deadline_s: float | None = None,
        timeout_s: float | None = None,
        batch_cap: int = 0,
        credit: int = 0,
        attempt: int = 1,
        waiting: tuple[context.WaitingPool, ...] = (),
        **kwargs: Any,
    ) -> int:
        """Send an input; its number."""
        number = next(self._numbers)
        spec = self._worker.engine.spec.methods.get(method)
        bound = spec.bind("Test", args, kwargs) if spec is not None else (args, kwargs)
        call = Submit(
            call_id=number,
            name=f"{self.name}-{number}",
            method=method,
            arguments=pack_arguments(*bound),
            parameters=None if parameters is None else pack(parameters),
            parameters_key=str(parameters),
            attempt=attempt,
            deadline_left_s=deadline_s,
            timeout_s=timeout_s,
            batch_cap=batch_cap,
            credit=credit,
            waiting=waiting,
        )
        self._worker.engine.submit(self, call)  # type: ignore[arg-type]
        return number

    def cancel(self, number: int) -> None:
        self._worker.engine.cancel(self, number)  # type: ignore[arg-type]

    def grant(self, number: int, count: int) -> None:
        self._worker.engine.credit(self, number, count)  # type: ignore[arg-type]

    def about(self, number: int, *kinds: type) -> list[Any]:
        return [m for m in self.messages if m.call_id == number and isinstance(m, kinds or object)]

    async def next(self, number: int, *kinds: type, count: int = 1) -> Any:
        """The `count`-th message of these kinds about an input, once it has come."""
        while len(found := self.about(number, *kinds)) < count:
            self._news.clear()
            await self._news.wait()
        return found[count - 1]

    async def result(self, number: int) -> Any:
        """What the input came to: its value, or its exception raised."""
        message = await self.next(number, *_LAST)
        if isinstance(message, Raised):
            raise unpack_exception(message.failure)
        assert isinstance(message, Returned), message
        return unpack(message.result)

    async def results(self, numbers: list[int]) -> list[Any]:
        return [await self.result(number) for number in numbers]

    async def error(self, number: int) -> BaseException:
        message = await self.next(number, *_LAST)
        assert isinstance(message, Raised), message
        return unpack_exception(message.failure)


class Worker:
    """An engine with a real instance on real threads."""

    def __init__(self, cls: type, **options: Any) -> None:
        self.spec = compile_class(cls, options)
        self.threads = UserThreads(self.spec.max_inputs)
        self.instance = Instance(self.spec, {}, self.threads)
        self.troubles: list[tuple[str, str]] = []
        self.engine: Engine = None  # type: ignore[assignment]
        self.caller: Caller = None  # type: ignore[assignment]

    async def start(self) -> Worker:
        await self.instance.enter()
        self.engine = Engine(self.spec, self.instance, lambda kind, reason: self.troubles.append((kind, reason)))
        self.caller = Caller(self, "caller", stages=False)
        return self

    def another(self, name: str = "other", *, stages: bool = False) -> Caller:
        return Caller(self, name, stages)

    @property
    def object(self) -> Any:
        """The user's instance."""
        return self.instance._object

    def close(self) -> None:
        self.threads.main.stop()
        self.threads.others.stop()
        self.engine._weigher.stop()
        if (loop := self.threads._user_loop) is not None:
            while asyncio.all_tasks(loop.loop):  # cancelled, and about to end
                time.sleep(0.001)
            loop.stop()
            loop._thread.join()
            loop.loop.close()


MakeWorker = Callable[..., Any]


@pytest.fixture
async def make(timeline: Any) -> AsyncIterator[MakeWorker]:
    made: list[Worker] = []

    async def make(cls: type, **options: Any) -> Worker:
        worker = Worker(cls, **options)
        made.append(worker)
        return await worker.start()

    yield make
    for worker in made:
        if isinstance(worker.object, Held):
            worker.object.go.set()
        await asyncio.wait_for(worker.engine._idle.wait(), None)
        worker.close()


class Held:
    """Executions that say when they have begun, and wait until the test lets them go on."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.seen: list[Any] = []
        self._begun = threading.Semaphore(0)

    def hold(self, what: Any) -> None:
        self.seen.append(what)
        self._begun.release()
        assert self.go.wait(10)

    async def begun(self, count: int = 1) -> None:
        """Wait until `count` more executions have begun."""
        for _ in range(count):
            assert await asyncio.to_thread(self._begun.acquire, timeout=10)


class Batcher(Held):
    @gw.method()
    @gw.batched(max_batch_size=8)
    def embed(self, xs: list[int]) -> list[int]:
        self.hold(xs)
        return [x * 2 for x in xs]

    @gw.method()
    def plain(self, x: int) -> int:
        self.hold(x)
        return x


# --- batches -----------------------------------------------------------------------------------------------------


async def test_arrivals_during_a_running_batch_coalesce_into_one(make: MakeWorker) -> None:
    worker = await make(Batcher)
    numbers = [worker.caller.submit("embed", 0)]
    await worker.object.begun()
    numbers += [worker.caller.submit("embed", x) for x in range(1, 6)]
    worker.object.go.set()
    assert await worker.caller.results(numbers) == [0, 2, 4, 6, 8, 10]
    assert worker.object.seen == [[0], [1, 2, 3, 4, 5]]
    assert worker.engine.counters.batches == {"embed": (2, 6)}


async def test_without_a_window_a_batch_takes_what_is_there(make: MakeWorker) -> None:
    worker = await make(Batcher)
    worker.object.go.set()
    await worker.caller.results([worker.caller.submit("embed", x) for x in range(3)])
    assert worker.object.seen == [[0, 1, 2]]


class Windowed:
    @gw.on_enter()
    def start(self) -> None:
        self.seen: list[Any] = []

    @gw.method()
    @gw.batched(max_batch_size=3, wait_ms=20)
    def embed(self, xs: list[int], tags: list[str]) -> list[Any]:
        self.seen.append((xs, tags))
        return list(zip(xs, tags, strict=True))


async def test_the_window_starts_at_the_first_waiting_input(make: MakeWorker, timeline: Any) -> None:
    worker = await make(Windowed)
    first = worker.caller.submit("embed", 1, "a")
    await timeline.advance(0.015)
    second = worker.caller.submit("embed", 2, tags="b")
    await timeline.advance(0.004)
    assert worker.engine.counters.batches == {}
    await timeline.advance(0.001)
    assert await worker.caller.results([first, second]) == [(1, "a"), (2, "b")]
    assert worker.object.seen == [([1, 2], ["a", "b"])]


async def test_a_full_batch_leaves_at_once(make: MakeWorker) -> None:
    worker = await make(Windowed)
    numbers = [worker.caller.submit("embed", n, "x") for n in range(3)]
    assert len(await worker.caller.results(numbers)) == 3


async def test_a_lone_input_does_not_wait_longer_than_the_window(make: MakeWorker, timeline: Any) -> None:
    worker = await make(Windowed)
    number = worker.caller.submit("embed", 1, "a")
    await timeline.advance(0.02)
    assert await worker.caller.result(number) == (1, "a")


@gw.concurrent(max_inputs=16)
class Parallel(Held):
    @gw.method()
    @gw.batched(max_batch_size=4, max_concurrent_batches=2)
    def embed(self, xs: list[int]) -> list[int]:
        self.hold(xs)
        return xs

    @gw.method()
    @gw.batched(max_batch_size=4)
    def rank(self, xs: list[int]) -> list[int]:
        self.hold(xs)
        return xs

    @gw.method()
    def plain(self, x: int) -> int:
        self.hold(x)
        return x


async def test_a_batch_waits_for_its_permit_and_is_closed_as_late_as_possible(make: MakeWorker, timeline: Any) -> None:
    worker = await make(Parallel)
    numbers = [worker.caller.submit("rank", 0)]
    await worker.object.begun()
    for x in range(1, 4):
        numbers.append(worker.caller.submit("rank", x))
        await timeline.settle()
    worker.object.go.set()
    await worker.caller.results(numbers)
    assert worker.object.seen == [[0], [1, 2, 3]]


async def test_as_many_batches_of_a_method_run_as_its_permits_allow(make: MakeWorker, timeline: Any) -> None:
    worker = await make(Parallel)
    numbers = [worker.caller.submit("embed", x) for x in range(10)]
    await worker.object.begun(2)
    await timeline.settle()
    assert sorted(worker.object.seen) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    worker.object.go.set()
    await worker.caller.results(numbers)
    assert worker.object.seen[2:] == [[8, 9]]


async def test_in_a_concurrent_class_plain_inputs_run_beside_batches(make: MakeWorker) -> None:
    worker = await make(Parallel)
    numbers = [worker.caller.submit("rank", 1), worker.caller.submit("plain", 2), worker.caller.submit("plain", 3)]
    await worker.object.begun(3)
    worker.object.go.set()
    assert await worker.caller.results(numbers) == [1, 2, 3]


async def test_without_concurrent_one_invocation_runs_at_a_time_batch_or_not(make: MakeWorker, timeline: Any) -> None:
    worker = await make(Batcher)
    numbers = []
    for method, x in (("plain", 1), ("embed", 2), ("plain", 3)):
        numbers.append(worker.caller.submit(method, x))
        await timeline.advance(0.001)
    await worker.object.begun()
    await timeline.settle()
    assert worker.object.seen == [1]
    worker.object.go.set()
    assert await worker.caller.results(numbers) == [1, 4, 3]
    assert worker.object.seen == [1, [2], 3], "in the order of arrival"


async def test_a_worker_holds_no_more_inputs_than_it_may_over_all_methods(make: MakeWorker) -> None:
    worker = await make(Batcher)
    assert worker.spec.max_inputs == 16
    numbers = [worker.caller.submit("embed" if x % 2 else "plain", x) for x in range(20)]
    assert [bool(worker.caller.about(n, Busy)) for n in numbers] == [False] * 16 + [True] * 4
    assert worker.engine.held == 16
    assert worker.engine.room_for("caller") == 0
    worker.object.go.set()
    await worker.caller.results(numbers[:16])
    assert worker.engine.held == 0
    assert worker.engine.room_for("caller") == 16


async def test_batches_split_by_parameter_values(make: MakeWorker) -> None:
    class Classifier(Held):
        threshold: float = gw.parameter(default=0.5)

        @gw.method()
        @gw.batched(max_batch_size=8)
        def label(self, xs: list[float]) -> list[bool]:
            self.hold((self.threshold, xs))
            return [x > self.threshold for x in xs]

    worker = await make(Classifier)
    worker.object.go.set()
    numbers = [worker.caller.submit("label", 0.6, parameters={"threshold": t}) for t in (0.5, 0.7, 0.5)]
    assert await worker.caller.results(numbers) == [True, False, True]
    assert sorted(worker.object.seen) == [(0.5, [0.6, 0.6]), (0.7, [0.6])]


async def test_a_capped_input_is_in_no_larger_batch(make: MakeWorker) -> None:
    worker = await make(Batcher)
    worker.object.go.set()
    await worker.caller.results([worker.caller.submit("embed", x, batch_cap=2) for x in range(5)])
    assert worker.object.seen == [[0, 1], [2, 3], [4]]


# --- what a batch may return -------------------------------------------------------------------------------------


class Returns:
    """Returns what the test puts in."""

    make: Callable[[int], Any]

    @gw.method()
    @gw.batched(max_batch_size=8)
    def run(self, xs: list[int]) -> Any:
        return self.make(len(xs))


async def batch_of(worker: Worker, count: int, make_result: Callable[[int], Any]) -> list[Any]:
    worker.object.make = make_result
    numbers = [worker.caller.submit("run", x) for x in range(count)]
    for number in numbers:
        await worker.caller.next(number, *_LAST)
    return [
        await (worker.caller.error(n) if worker.caller.about(n, Raised) else worker.caller.result(n)) for n in numbers
    ]


@pytest.mark.parametrize(
    "make_result",
    [
        lambda n: list(range(n)),
        lambda n: tuple(range(n)),
        range,
        np.arange,
    ],
    ids=["list", "tuple", "range", "array"],
)
async def test_any_sized_sequence_is_a_result(make: MakeWorker, make_result: Callable[[int], Any]) -> None:
    assert await batch_of(await make(Returns), 3, make_result) == [0, 1, 2]


async def test_rows_of_an_array_are_results(make: MakeWorker) -> None:
    rows = await batch_of(await make(Returns), 3, lambda n: np.arange(n * 4.0).reshape(n, 4))
    assert np.array_equal(np.stack(rows), np.arange(12.0).reshape(3, 4))
    rows[0][:] = 9  # writable and its own


@pytest.mark.slow
async def test_rows_of_a_tensor_are_results(make: MakeWorker) -> None:
    torch = pytest.importorskip("torch")
    rows = await batch_of(await make(Returns), 3, lambda n: torch.arange(n * 4.0).reshape(n, 4))
    assert torch.equal(torch.stack(rows), torch.arange(12.0).reshape(3, 4))


async def test_an_exception_as_one_element_is_raised_for_that_one_caller(make: MakeWorker) -> None:
    worker = await make(Returns)
    first, second, third = await batch_of(worker, 3, lambda n: [1, KeyError("mine"), 3])
    assert [type(m) for m in worker.caller.messages] == [Returned, Raised, Returned]
    assert (first, third) == (1, 3)
    assert isinstance(second, KeyError) and second.args == ("mine",)


async def test_one_result_that_cannot_be_pickled_hurts_nobody_else(make: MakeWorker) -> None:
    first, second = await batch_of(await make(Returns), 2, lambda n: [threading.Lock(), 2])
    assert isinstance(first, TypeError) and "Returns.run() returned a value of type lock" in str(first)
    assert second == 2


@pytest.mark.parametrize(
    ("make_result", "words"),
    [
        (lambda n: [1], ["batch of 3 inputs", "returned 1 results"]),
        (lambda n: [1] * 4, ["batch of 3 inputs", "returned 4 results"]),
        (lambda n: "abc", ["returned str"]),
        (lambda n: b"abc", ["returned bytes"]),
        (lambda n: dict.fromkeys(range(n)), ["returned dict"]),
        (lambda n: set(range(n)), ["returned set"]),
        (lambda n: None, ["returned NoneType"]),
        (lambda n: iter(range(n)), ["returned range_iterator"]),
        (lambda n: np.array(3.0), ["returned ndarray", "no length"]),
    ],
    ids=["short", "long", "str", "bytes", "dict", "set", "None", "iterator", "scalar"],
)
async def test_anything_else_is_an_error_to_all_of_the_batch(
    make: MakeWorker, make_result: Callable[[int], Any], words: list[str]
) -> None:
    errors = await batch_of(await make(Returns), 3, make_result)
    for error in errors:
        assert isinstance(error, gw.BatchResultError)
        assert "Returns.run()" in str(error)
        assert all(word in str(error) for word in words)


class Explosive:
    """Its result's length raises."""

    def __getitem__(self, index: int) -> int:
        raise SystemExit(3)

    def __len__(self) -> int:
        return 2


async def test_a_result_that_raises_when_it_is_read_is_a_failure_not_an_exit(make: MakeWorker) -> None:
    worker = await make(Returns)
    errors = await batch_of(worker, 2, lambda n: Explosive())
    assert [e.type_name for e in errors] == ["SystemExit", "SystemExit"]
    assert await batch_of(worker, 1, lambda n: [7]) == [7]


# --- bad inputs --------------------------------------------------------------------------------------------------


class Poisonous:
    """Cannot be unpickled."""

    def __reduce__(self) -> Any:
        return (_explode, ())


def _explode() -> None:
    raise ValueError("this cannot be unpickled")


async def test_one_argument_that_cannot_be_unpickled_hurts_nobody_else_in_its_batch(make: MakeWorker) -> None:
    worker = await make(Batcher)
    worker.object.go.set()
    good, bad, other = (worker.caller.submit("embed", x) for x in (1, Poisonous(), 3))
    assert await worker.caller.results([good, other]) == [2, 6]
    error = await worker.caller.error(bad)
    assert isinstance(error, ValueError) and "cannot be unpickled" in str(error)
    assert worker.object.seen == [[1, 3]]


async def test_a_batch_of_nothing_but_bad_inputs_is_not_run(make: MakeWorker) -> None:
    worker = await make(Batcher)
    worker.object.go.set()
    numbers = [worker.caller.submit("embed", Poisonous()) for _ in range(2)]
    assert [type(await worker.caller.error(n)) for n in numbers] == [ValueError, ValueError]
    assert worker.object.seen == []


async def test_a_method_that_does_not_exist_is_an_error_to_its_caller(make: MakeWorker) -> None:
    worker = await make(Batcher)
    error = await worker.caller.error(worker.caller.submit("nothing", 1))
    assert isinstance(error, AttributeError) and "Batcher has no method 'nothing'" in str(error)
    assert worker.engine.held == 0


async def test_a_result_that_cannot_be_pickled_is_an_error_that_names_the_method(make: MakeWorker) -> None:
    class Locks:
        @gw.method()
        def lock(self) -> Any:
            return threading.Lock()

    worker = await make(Locks)
    error = await worker.caller.error(worker.caller.submit("lock"))
    assert isinstance(error, TypeError)
    assert "Locks.lock() returned a value of type lock that cannot be pickled" in str(error)


async def test_a_method_may_use_the_memory_of_a_result_again(make: MakeWorker) -> None:
    class Reuses:
        @gw.on_enter()
        def start(self) -> None:
            self.out = np.zeros(10_000)

        @gw.method()
        def fill(self, x: float) -> Any:
            self.out[:] = x
            return self.out

    worker = await make(Reuses)
    numbers = []
    for x in (1.0, 2.0):
        numbers.append(worker.caller.submit("fill", x))
        await worker.caller.next(numbers[-1], Returned)
    assert [a[0] for a in await worker.caller.results(numbers)] == [1.0, 2.0]


# --- user code that raises anything ------------------------------------------------------------------------------

ANYTHING = [
    SystemExit(1),
    KeyboardInterrupt(),
    asyncio.CancelledError(),
    StopIteration(),
    GeneratorExit(),
    ValueError("x"),
]


class Raises:
    what: BaseException

    @gw.on_enter()
    def start(self) -> None:
        self.what = ValueError()

    @gw.method()
    def sync(self) -> None:
        raise self.what

    @gw.method()
    async def asynchronous(self) -> None:
        raise self.what

    @gw.method()
    @gw.batched(max_batch_size=4)
    def batch(self, xs: list[int]) -> list[int]:
        raise self.what

    @gw.method()
    @gw.batched(max_batch_size=4)
    async def async_batch(self, xs: list[int]) -> list[int]:
        raise self.what

    @gw.method()
    def stream(self) -> Iterator[int]:
        yield 1
        raise self.what

    @gw.method()
    async def async_stream(self) -> AsyncIterator[int]:
        yield 1
        raise self.what

    @gw.method()
    def fine(self) -> str:
        return "fine"


@pytest.mark.parametrize("method", ["sync", "asynchronous", "batch", "async_batch", "stream", "async_stream"])
@pytest.mark.parametrize("what", ANYTHING, ids=lambda e: type(e).__name__)
async def test_whatever_user_code_raises_reaches_its_caller_and_the_engine_goes_on(
    make: MakeWorker, method: str, what: BaseException
) -> None:
    worker = await make(Raises)
    worker.object.what = what
    number = worker.caller.submit(method, *([1] if "batch" in method else []), credit=8)
    error = await worker.caller.error(number)
    names = {type(what).__name__}
    if isinstance(what, StopIteration):
        names.add("RuntimeError")  # what Python makes of it in coroutines and generators
    assert getattr(error, "type_name", type(error).__name__) in names
    assert type(what).__name__ in str(error.__cause__)
    if not isinstance(what, Exception) or isinstance(what, StopIteration):
        assert isinstance(error, (gw.RemoteError, RuntimeError))
    assert await worker.caller.result(worker.caller.submit("fine")) == "fine"
    assert worker.engine.held == 1 - 1


async def test_gw_fatal_reaches_the_caller_and_asks_for_another_worker(make: MakeWorker) -> None:
    worker = await make(Raises)
    worker.object.what = gw.Fatal("out of order")
    numbers = [worker.caller.submit("batch", x) for x in range(3)]
    for number in numbers:
        assert isinstance(await worker.caller.error(number), gw.Fatal)
    assert worker.troubles == [("fatal", "Fatal: out of order")]


@pytest.mark.parametrize(
    ("what", "fatal"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (ValueError("CUDA error: an illegal memory access was encountered"), False),
    ],
    ids=["illegal access", "assert", "out of memory", "not a RuntimeError"],
)
async def test_a_cuda_error_that_poisons_the_process_asks_for_another_worker(
    make: MakeWorker, what: Exception, fatal: bool
) -> None:
    worker = await make(Raises)
    worker.object.what = what
    assert type(await worker.caller.error(worker.caller.submit("sync"))) is type(what)
    assert [kind for kind, _ in worker.troubles] == (["fatal"] if fatal else [])


# --- weights -----------------------------------------------------------------------------------------------------


def weighed_by(weight: Callable[..., Any], max_weight: float = 10) -> type:
    class Weighed(Held):
        @gw.method()
        @gw.batched(max_batch_size=8, weight=weight, max_weight=max_weight)
        def embed(self, texts: list[str]) -> list[int]:
            self.seen.append(texts)
            return [len(t) for t in texts]

    return Weighed


async def test_a_batch_is_packed_by_weight_like_inputs_together(make: MakeWorker) -> None:
    worker = await make(weighed_by(len))
    texts = ["a" * 6, "b" * 2, "c" * 7, "d" * 99, "e" * 4, "f", "g"]
    numbers = [worker.caller.submit("embed", t) for t in texts]
    assert await worker.caller.results(numbers) == [len(t) for t in texts]
    # What came together was weighed together: the first did not run alone, though nothing else ran.
    assert worker.object.seen == [["a" * 6, "e" * 4], ["b" * 2], ["c" * 7], ["d" * 99], ["f", "g"]]


async def test_an_input_with_a_weight_whose_deadline_comes_near_is_not_passed_over(
    make: MakeWorker, timeline: Any
) -> None:
    class Weighed(Held):
        @gw.method()
        @gw.batched(max_batch_size=3, weight=len, max_weight=100)
        def embed(self, texts: list[str]) -> list[int]:
            self.hold(texts)
            return [len(t) for t in texts]

    worker = await make(Weighed)
    running = worker.caller.submit("embed", "first")
    await worker.object.begun()
    others = [worker.caller.submit("embed", "a" * 10) for _ in range(3)]
    hurried = worker.caller.submit("embed", "b" * 40, deadline_s=10.0)
    while not any(len(queue) == 4 for queue in worker.engine._agenda._queues.values()):  # weighed on another thread
        await asyncio.to_thread(time.sleep, 0.001)
    await timeline.advance(6.0)
    worker.object.go.set()
    assert await worker.caller.results([running, *others, hurried]) == [5, 10, 10, 10, 40]
    assert worker.object.seen[:2] == [["first"], ["b" * 40]]


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (lambda text: {}[text], "KeyError"),
        (lambda text: -1, "returned -1"),
        (lambda text: math.nan, "returned nan"),
        (lambda text: math.inf, "returned inf"),
        (lambda text: True, "returned True"),
        (lambda text: None, "returned None"),
        (lambda text: "7", "returned '7'"),
        (lambda text: (_ for _ in ()).throw(SystemExit(3)), "SystemExit"),
        (lambda text: (_ for _ in ()).throw(asyncio.CancelledError()), "CancelledError"),
    ],
    ids=["raises", "negative", "nan", "infinite", "bool", "None", "text", "SystemExit", "CancelledError"],
)
async def test_a_weight_that_raises_or_is_none_fails_its_input_and_nobody_else(
    make: MakeWorker, weight: Callable[[str], Any], words: str
) -> None:
    worker = await make(weighed_by(lambda text: weight(text) if text == "bad" else len(text)))
    good, bad, other = (worker.caller.submit("embed", t) for t in ("good", "bad", "fine!"))
    assert await worker.caller.results([good, other]) == [4, 5]
    error = await worker.caller.error(bad)
    assert words in str(error) or words in type(error).__name__
    if "returned" in words:
        assert "weight function of Weighed.embed" in str(error)
    assert await worker.caller.result(worker.caller.submit("embed", "again")) == 5
    assert worker.engine.held == 0


async def test_weights_are_asked_neither_on_the_engines_loop_nor_on_a_thread_of_methods(make: MakeWorker) -> None:
    asked: list[str] = []
    worker = await make(weighed_by(lambda text: asked.append(threading.current_thread().name) or 1))
    await worker.caller.result(worker.caller.submit("embed", "x"))
    assert asked and threading.current_thread().name not in asked
    assert not any(name.startswith(("gworker-main", "gworker-input")) for name in asked)


class UnpicklableError(Exception):
    made_on: list[str]

    def __reduce__(self) -> Any:
        self.made_on.append(threading.current_thread().name)
        raise TypeError("no")


async def test_what_a_weight_raises_is_pickled_off_the_engines_loop(make: MakeWorker) -> None:
    error = UnpicklableError("x")
    error.made_on = []

    def weight(text: str) -> float:
        raise error

    worker = await make(weighed_by(weight))
    assert isinstance(await worker.caller.error(worker.caller.submit("embed", "x")), gw.RemoteError)
    assert error.made_on and threading.current_thread().name not in error.made_on


async def test_an_input_that_is_cancelled_while_it_is_weighed_is_not_run(make: MakeWorker, timeline: Any) -> None:
    weighing, go = threading.Event(), threading.Event()

    def weight(text: str) -> float:
        if text == "slow":
            weighing.set()
            assert go.wait(10)
        return 1

    worker = await make(weighed_by(weight))
    slow = worker.caller.submit("embed", "slow")
    assert await asyncio.to_thread(weighing.wait, 10)
    worker.caller.cancel(slow)
    assert worker.engine.held == 0
    go.set()
    assert await worker.caller.result(worker.caller.submit("embed", "next")) == 4
    await timeline.settle()
    assert worker.object.seen == [["next"]]


# --- cancellation ------------------------------------------------------------------------------------------------


async def test_a_queued_input_that_is_cancelled_is_dropped_and_its_place_is_free(
    make: MakeWorker, timeline: Any
) -> None:
    worker = await make(Batcher)
    running = worker.caller.submit("plain", 1)
    await worker.object.begun()
    plain, batched, kept = (worker.caller.submit(m, x) for m, x in (("plain", 2), ("embed", 3), ("embed", 4)))
    worker.caller.cancel(plain)
    worker.caller.cancel(batched)
    assert worker.engine.held == 2
    worker.object.go.set()
    assert await worker.caller.results([running, kept]) == [1, 8]
    await timeline.settle()
    assert worker.object.seen == [1, [4]]
    assert worker.caller.about(plain) == worker.caller.about(batched) == []


class Waits:
    @gw.on_enter()
    async def start(self) -> None:
        self.started = asyncio.Semaphore(0)
        self.go = asyncio.Event()
        self.cancelled: list[Any] = []
        self.finished: list[Any] = []

    async def wait(self, x: Any) -> None:
        self.started.release()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.append(x)
            raise
        self.finished.append(x)

    @gw.method()
    async def single(self, x: int) -> int:
        await self.wait(x)
        return x

    @gw.method()
    @gw.batched(max_batch_size=4)
    async def batch(self, xs: list[int]) -> list[int]:
        await self.wait(xs)
        return xs


Many = gw.concurrent(max_inputs=16)(type("Many", (Waits,), {}))


async def on_user_loop(worker: Worker, coroutine: Any) -> Any:
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, worker.threads.user_loop.loop))


async def started(worker: Worker, count: int = 1) -> None:
    for _ in range(count):
        await on_user_loop(worker, worker.object.started.acquire())


async def let_go(worker: Worker) -> None:
    async def go() -> None:
        worker.object.go.set()

    await on_user_loop(worker, go())


async def test_a_running_async_input_that_is_cancelled_gets_cancelled_error_and_nobody_else(make: MakeWorker) -> None:
    worker = await make(Many)
    numbers = [worker.caller.submit("single", x) for x in range(4)]
    await started(worker, 4)
    worker.caller.cancel(numbers[2])
    await asyncio.to_thread(lambda: None)
    await let_go(worker)
    del numbers[2]
    assert await worker.caller.results(numbers) == [0, 1, 3]
    assert worker.object.cancelled == [2]
    assert worker.object.finished == [0, 1, 3]


async def test_a_cancelled_member_of_a_running_batch_loses_its_result_and_touches_nobody(make: MakeWorker) -> None:
    worker = await make(Waits)
    numbers = [worker.caller.submit("batch", x) for x in range(3)]
    await started(worker)
    worker.caller.cancel(numbers[1])
    await let_go(worker)
    assert await worker.caller.results([numbers[0], numbers[2]]) == [0, 2]
    assert worker.caller.about(numbers[1]) == []
    assert worker.object.cancelled == []


async def test_a_running_batch_that_nobody_waits_for_any_more_is_stopped(make: MakeWorker) -> None:
    worker = await make(Waits)
    numbers = [worker.caller.submit("batch", x) for x in range(3)]
    await started(worker)
    for number in numbers:
        worker.caller.cancel(number)
    await worker.engine._idle.wait()
    assert worker.object.cancelled == [[0, 1, 2]]


@gw.concurrent(max_inputs=16)
class Looks(Held):
    @gw.method()
    def look(self, x: int) -> tuple[int, bool]:
        call = gw.current_call()
        self.hold(x)
        self.flags[x] = call.cancelled
        return x, call.cancelled

    def __init__(self) -> None:
        super().__init__()
        self.flags: dict[int, bool] = {}


async def test_cancelling_one_sync_input_among_sixteen_leaves_fifteen(make: MakeWorker) -> None:
    worker = await make(Looks)
    numbers = [worker.caller.submit("look", x) for x in range(16)]
    await worker.object.begun(16)
    worker.caller.cancel(numbers[7])
    assert worker.engine.held == 16, "it keeps its place until it returns"
    assert worker.caller.about(numbers[7]) == []
    worker.object.go.set()
    others = [x for x in range(16) if x != 7]
    assert await worker.caller.results([numbers[x] for x in others]) == [(x, False) for x in others]
    await worker.engine._idle.wait()
    assert worker.object.flags == {x: x == 7 for x in range(16)}
    assert worker.caller.about(numbers[7]) == []


async def test_cancelling_what_is_not_here_changes_nothing(make: MakeWorker) -> None:
    worker = await make(Batcher)
    worker.object.go.set()
    number = worker.caller.submit("plain", 1)
    assert await worker.caller.result(number) == 1
    worker.caller.cancel(number)
    worker.caller.cancel(12345)
    assert worker.engine.held == 0


async def test_a_method_that_blocks_the_user_loop_stops_neither_cancellation_nor_refusals(make: MakeWorker) -> None:
    class Blocks(Held):
        @gw.method()
        async def block(self, x: int) -> int:
            self.hold(x)
            return x

    worker = await make(Blocks)
    first = worker.caller.submit("block", 1)
    await worker.object.begun()
    other = worker.another(stages=True)
    staged = other.submit("block", 2)
    other.cancel(staged)
    refused = worker.caller.submit("block", 3)
    assert worker.caller.about(refused, Busy)
    worker.object.go.set()
    assert await worker.caller.result(first) == 1
    assert worker.object.seen == [1]


# --- limits ------------------------------------------------------------------------------------------------------


async def test_an_async_execution_that_passes_timeout_s_is_cancelled(make: MakeWorker, timeline: Any) -> None:
    worker = await make(Waits)
    number = worker.caller.submit("single", 1, timeout_s=3)
    await started(worker)
    await timeline.advance(2.9)
    assert worker.caller.about(number) == []
    await timeline.advance(0.1)
    error = await worker.caller.error(number)
    assert isinstance(error, gw.DeadlineExceeded)
    assert (error.limit, error.where) == ("timeout_s", "running")
    assert "Waits.single" in str(error) and "timeout_s of 3 s" in str(error)
    await worker.engine._idle.wait()
    assert worker.object.cancelled == [1]


async def test_a_sync_execution_that_passes_timeout_s_is_told_and_keeps_its_place(
    make: MakeWorker, timeline: Any
) -> None:
    worker = await make(Looks)
    number = worker.caller.submit("look", 1, timeout_s=3)
    await worker.object.begun()
    await timeline.advance(3)
    assert isinstance(await worker.caller.error(number), gw.DeadlineExceeded)
    assert worker.engine.held == 1
    worker.object.go.set()
    await worker.engine._idle.wait()
    assert worker.object.flags == {1: True}
    assert len(worker.caller.about(number)) == 1
    await timeline.advance(100)
    assert worker.troubles == []


@pytest.mark.parametrize("timeout_s", [1.0, 20.0])
async def test_a_sync_execution_that_does_not_return_within_as_long_again_is_wedged(
    make: MakeWorker, timeline: Any, timeout_s: float
) -> None:
    worker = await make(Batcher)
    worker.caller.submit("plain", 1, timeout_s=timeout_s)
    await worker.object.begun()
    limit = timeout_s + max(timeout_s, WEDGED_AFTER_S)
    await timeline.advance(limit - 0.1)
    assert worker.troubles == []
    await timeline.advance(0.1)
    assert worker.troubles == [
        ("wedged", f"Batcher.plain is still running long after its timeout_s of {timeout_s:g} s")
    ]


async def test_the_time_limit_of_one_execution_does_not_count_the_time_in_the_queue(
    make: MakeWorker, timeline: Any
) -> None:
    worker = await make(Batcher)
    first, second = worker.caller.submit("plain", 1), worker.caller.submit("plain", 2, timeout_s=1)
    await worker.object.begun()
    await timeline.advance(50)
    worker.object.go.set()
    assert await worker.caller.results([first, second]) == [1, 2]


async def test_an_input_whose_deadline_passes_in_the_queue_is_dropped(make: MakeWorker, timeline: Any) -> None:
    worker = await make(Batcher)
    running = worker.caller.submit("plain", 1)
    await worker.object.begun()
    waiting = [worker.caller.submit("plain", 2, deadline_s=3), worker.caller.submit("embed", 3, deadline_s=3)]
    await timeline.advance(3)
    for number in waiting:
        error = await worker.caller.error(number)
        assert isinstance(error, gw.DeadlineExceeded)
        assert (error.limit, error.where) == ("deadline_s", "worker queue")
        assert str(error).endswith("passed its deadline_s: 3 s batch wait")
        message = await worker.caller.next(number, Raised)
        assert (message.limit, message.wait_s, message.run_s) == ("deadline_s", 3.0, None)
    worker.object.go.set()
    await worker.caller.result(running)
    await timeline.settle()
    assert worker.object.seen == [1]


async def test_a_running_input_whose_deadline_passes_says_how_long_it_waited_and_ran(
    make: MakeWorker, timeline: Any
) -> None:
    worker = await make(Waits)
    first = worker.caller.submit("single", 0)
    await started(worker)
    number = worker.another(stages=True).submit("single", 1)
    worker.caller.cancel(first)
    await started(worker)
    other = worker.engine.sessions["other"]
    other.cancel(number)
    await worker.engine._idle.wait()
    number = worker.caller.submit("single", 2, deadline_s=3)
    await started(worker)
    await timeline.advance(3)
    error = await worker.caller.error(number)
    assert isinstance(error, gw.DeadlineExceeded)
    assert (error.limit, error.where) == ("deadline_s", "running")
    assert str(error) == "Waits.single passed its deadline_s: 0 s batch wait, 3 s running"
    message = await worker.caller.next(number, Raised)
    assert (message.limit, message.wait_s, message.run_s, message.blame) == ("deadline_s", 0.0, 3.0, "nobody")


@pytest.mark.parametrize("method", ["plain", "embed"])
async def test_an_input_whose_deadline_has_passed_when_it_comes_is_not_run(make: MakeWorker, method: str) -> None:
    worker = await make(Batcher)
    worker.object.go.set()
    late = worker.caller.submit(method, 1, deadline_s=0.0)
    other = worker.caller.submit(method, 2)
    await worker.caller.result(other)
    assert isinstance(await worker.caller.error(late), gw.DeadlineExceeded)
    assert worker.object.seen == [[2] if method == "embed" else 2]
    await worker.engine._idle.wait()


# --- where the time goes -----------------------------------------------------------------------------------------


def times_of(message: Any) -> tuple[float, float]:
    return round(message.wait_s, 6), round(message.run_s, 6)


async def test_the_window_of_a_batch_is_batch_wait_of_each_of_its_inputs(make: MakeWorker, timeline: Any) -> None:
    worker = await make(Windowed)
    first = worker.caller.submit("embed", 1, "a")
    await timeline.advance(0.015)
    second = worker.caller.submit("embed", 2, "b")
    await timeline.advance(0.005)
    waits = [times_of(await worker.caller.next(number, Returned)) for number in (first, second)]
    assert waits == [(0.02, 0.0), (0.005, 0.0)]


async def test_what_runs_is_run_time_and_what_waits_behind_it_batch_wait(make: MakeWorker, timeline: Any) -> None:
    worker = await make(Batcher)
    first = worker.caller.submit("embed", 0)
    await worker.object.begun()
    second = worker.caller.submit("embed", 1)
    await timeline.advance(3)
    worker.object.go.set()
    assert times_of(await worker.caller.next(first, Returned)) == (0.0, 3.0)
    assert times_of(await worker.caller.next(second, Returned)) == (3.0, 0.0)


async def test_an_async_invocation_tells_its_times_too(make: MakeWorker, timeline: Any) -> None:
    worker = await make(Waits)
    number = worker.caller.submit("single", 1)
    await started(worker)
    await timeline.advance(2)
    worker.threads.user_loop.loop.call_soon_threadsafe(worker.object.go.set)
    assert times_of(await worker.caller.next(number, Returned)) == (0.0, 2.0)


async def test_what_never_ran_has_no_times(make: MakeWorker) -> None:
    worker = await make(Batcher)
    message = await worker.caller.next(worker.caller.submit("unknown"), Raised)
    assert (message.wait_s, message.run_s) == (None, None)


async def test_the_time_that_an_input_is_staged_is_not_batch_wait(make: MakeWorker, timeline: Any) -> None:
    worker = await make(Looks)
    staging = worker.another(stages=True)
    numbers = [staging.submit("look", x) for x in range(17)]  # one more than it has places
    await worker.object.begun(16)
    await timeline.advance(2)
    worker.object.go.set()
    assert times_of(await staging.next(numbers[0], Returned)) == (0.0, 2.0)
    assert times_of(await staging.next(numbers[16], Returned)) == (0.0, 0.0)


async def test_the_run_time_of_a_stream_lasts_until_its_end(make: MakeWorker, timeline: Any) -> None:
    worker = await make(Streams)
    number = worker.caller.submit("count", 2, credit=1)
    await worker.caller.next(number, Item)
    await timeline.advance(5)
    worker.caller.grant(number, 5)
    assert times_of(await worker.caller.next(number, Ended)) == (0.0, 5.0)


# --- streams -----------------------------------------------------------------------------------------------------


class Streams:
    @gw.on_enter()
    def start(self) -> None:
        self.made: list[int] = []
        self.closed = threading.Event()

    @gw.method()
    def count(self, n: int) -> Iterator[int]:
        try:
            for i in range(n):
                self.made.append(i)
                yield i
        finally:
            self.closed.set()

    @gw.method()
    async def count_async(self, n: int) -> AsyncIterator[int]:
        try:
            for i in range(n):
                self.made.append(i)
                yield i
        finally:
            self.closed.set()

    @gw.method()
    def mixed(self) -> Iterator[Any]:
        try:
            yield 1
            yield threading.Lock()
            yield 3
        finally:
            self.closed.set()


both = pytest.mark.parametrize("method", ["count", "count_async"])


@both
async def test_a_stream_sends_its_items_in_order_and_then_its_end(make: MakeWorker, method: str) -> None:
    worker = await make(Streams)
    number = worker.caller.submit(method, 5, credit=16)
    await worker.caller.next(number, Ended)
    assert [unpack(m.item) for m in worker.caller.about(number, Item)] == [0, 1, 2, 3, 4]
    assert isinstance(worker.caller.about(number)[-1], Ended)


@both
async def test_a_generator_is_advanced_only_while_its_consumer_has_room(make: MakeWorker, method: str) -> None:
    worker = await make(Streams)
    number = worker.caller.submit(method, 100, credit=2)
    await worker.caller.next(number, Item, count=2)
    await drained_user_code(worker)
    assert worker.object.made == [0, 1]
    worker.caller.grant(number, 3)
    await worker.caller.next(number, Item, count=5)
    await drained_user_code(worker)
    assert worker.object.made == [0, 1, 2, 3, 4]
    worker.caller.cancel(number)
    assert await asyncio.to_thread(worker.object.closed.wait, 10)


async def drained_user_code(worker: Worker) -> None:
    """Give a generator that ran on without room the time to show it: a few turns of its own loop, or of its thread."""
    if worker.threads._user_loop is not None:
        for _ in range(5):
            await on_user_loop(worker, asyncio.sleep(0))
    for _ in range(5):
        await asyncio.to_thread(lambda: None)


@both
async def test_closing_a_stream_stops_the_generator(make: MakeWorker, method: str) -> None:
    worker = await make(Streams)
    number = worker.caller.submit(method, 100, credit=1)
    await worker.caller.next(number, Item)
    worker.caller.cancel(number)
    assert await asyncio.to_thread(worker.object.closed.wait, 10)
    await worker.engine._idle.wait()
    assert len(worker.object.made) <= 2
    assert worker.caller.about(number, Ended) == []


@both
async def test_a_stream_of_nothing_ends(make: MakeWorker, method: str) -> None:
    worker = await make(Streams)
    number = worker.caller.submit(method, 0, credit=16)
    assert isinstance(await worker.caller.next(number), Ended)


async def test_an_item_that_cannot_be_pickled_ends_the_stream_with_an_error_and_closes_it(make: MakeWorker) -> None:
    worker = await make(Streams)
    number = worker.caller.submit("mixed", credit=16)
    error = await worker.caller.error(number)
    assert isinstance(error, TypeError) and "Streams.mixed()" in str(error)
    assert [unpack(m.item) for m in worker.caller.about(number, Item)] == [1]
    assert worker.object.closed.is_set()


@both
async def test_a_stream_that_waits_for_room_ends_at_its_deadline(make: MakeWorker, timeline: Any, method: str) -> None:
    worker = await make(Streams)
    number = worker.caller.submit(method, 100, credit=1, deadline_s=5)
    await worker.caller.next(number, Item)
    await timeline.advance(5)
    assert isinstance(await worker.caller.error(number), gw.DeadlineExceeded)
    assert await asyncio.to_thread(worker.object.closed.wait, 10)


# --- threads and loops -------------------------------------------------------------------------------------------


class Threads(Held):
    @gw.on_enter()
    def start(self) -> None:
        self.entered_on = threading.get_ident()

    @gw.on_enter()
    async def start_async(self) -> None:
        self.loop = asyncio.get_running_loop()

    @gw.method()
    def plain(self) -> int:
        return threading.get_ident()

    @gw.method()
    @gw.batched(max_batch_size=1)
    def batch(self, xs: list[int]) -> list[int]:
        return [threading.get_ident()]

    @gw.method()
    def stream(self) -> Iterator[int]:
        yield threading.get_ident()

    @gw.method()
    async def on_loop(self) -> bool:
        return asyncio.get_running_loop() is self.loop


async def test_where_one_runs_at_a_time_sync_code_keeps_to_the_thread_of_on_enter(make: MakeWorker) -> None:
    worker = await make(Threads)
    for _ in range(3):
        for method, args in (("plain", []), ("batch", [1])):
            assert await worker.caller.result(worker.caller.submit(method, *args)) == worker.object.entered_on
    number = worker.caller.submit("stream", credit=2)
    assert unpack((await worker.caller.next(number, Item)).item) == worker.object.entered_on


async def test_in_a_concurrent_class_a_method_with_one_batch_at_a_time_keeps_to_it_too(make: MakeWorker) -> None:
    worker = await make(gw.concurrent(max_inputs=4)(type("ConcurrentThreads", (Threads,), {})))
    for _ in range(3):
        assert await worker.caller.result(worker.caller.submit("batch", 1)) == worker.object.entered_on
    assert await worker.caller.result(worker.caller.submit("plain")) != worker.object.entered_on


async def test_async_methods_and_hooks_share_one_loop_that_is_not_the_engines(make: MakeWorker) -> None:
    worker = await make(Threads)
    assert await worker.caller.result(worker.caller.submit("on_loop"))
    assert worker.object.loop is not asyncio.get_running_loop()


async def test_user_code_never_runs_on_the_engines_thread(make: MakeWorker) -> None:
    worker = await make(Threads)
    assert worker.object.entered_on != threading.get_ident()


# --- what running code may ask -----------------------------------------------------------------------------------


class Asks:
    threshold: float = gw.parameter(default=0.5)

    @gw.method()
    def single(self) -> dict[str, Any]:
        return described(gw.current_call())

    @gw.method()
    async def asynchronous(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        return described(gw.current_call())

    @gw.method()
    @gw.batched(max_batch_size=4)
    def batch(self, xs: list[int]) -> list[Any]:
        call = gw.current_call()
        return [(described(call), [described(i) for i in call.inputs])] * len(xs)


def described(call: gw.CallContext) -> dict[str, Any]:
    return {
        "id": call.id,
        "attempt": call.attempt,
        "method": call.method,
        "deadline": call.deadline,
        "parameters": dict(call.parameters),
        "number": gw.current_attempt_number(),
    }


@pytest.mark.parametrize("method", ["single", "asynchronous"])
async def test_a_method_can_ask_which_call_it_serves(make: MakeWorker, timeline: Any, method: str) -> None:
    worker = await make(Asks)
    number = worker.caller.submit(method, parameters={"threshold": 0.7}, deadline_s=9, attempt=3)
    assert await worker.caller.result(number) == {
        "id": f"caller-{number}",
        "attempt": 3,
        "method": method,
        "deadline": timeline.now() + 9,
        "parameters": {"threshold": 0.7},
        "number": 3,
    }


@pytest.mark.parametrize(
    ("deadlines", "latest"), [((5, 9, 7), 9), ((5, None, 7), None)], ids=["all have one", "one has none"]
)
async def test_in_a_batch_the_current_call_is_the_batchs_with_the_latest_deadline_of_its_inputs(
    make: MakeWorker, timeline: Any, deadlines: tuple[float | None, ...], latest: float | None
) -> None:
    worker = await make(Asks)
    numbers = [worker.caller.submit("batch", 1, deadline_s=d, attempt=n + 1) for n, d in enumerate(deadlines)]
    (call, inputs), *_ = await worker.caller.results(numbers)
    assert call["id"].startswith("batch-")
    assert call["deadline"] == (None if latest is None else timeline.now() + latest)
    assert call["attempt"] == 3
    assert [i["id"] for i in inputs] == [f"caller-{n}" for n in numbers]
    assert [i["attempt"] for i in inputs] == [1, 2, 3]


async def test_whoever_waits_for_an_input_of_a_batch_waits_for_the_batch(make: MakeWorker) -> None:
    class Waited:
        @gw.method()
        def single(self) -> Any:
            return gw.current_call()._waiting

        @gw.method()
        @gw.batched(max_batch_size=4)
        def batch(self, xs: list[int]) -> list[Any]:
            return [gw.current_call()._waiting] * len(xs)

    one, two, three = (context.WaitingPool(f"app/{name}", alone=True) for name in ("One", "Two", "Three"))
    worker = await make(Waited)
    assert await worker.caller.result(worker.caller.submit("single", waiting=(two, one))) == (two, one)
    numbers = [worker.caller.submit("batch", 1, waiting=waiting) for waiting in ((one,), (), (two, one), (three,))]
    assert (await worker.caller.results(numbers))[0] == (one, two, three)


async def test_outside_a_call_there_is_no_current_call(make: MakeWorker) -> None:
    worker = await make(Asks)
    await worker.caller.result(worker.caller.submit("single"))
    assert context.current_call_or_none() is None
    after = await asyncio.wrap_future(worker.threads.on_main(context.current_call_or_none))
    assert after is None


# --- staging and draining ----------------------------------------------------------------------------------------


async def test_a_lane_that_stages_may_send_a_few_more_which_start_as_places_become_free(
    make: MakeWorker, timeline: Any
) -> None:
    class One(Held):
        @gw.method()
        def plain(self, x: int) -> int:
            self.hold(x)
            return x

    worker = await make(One)
    other = worker.another(stages=True)
    numbers = [other.submit("plain", x) for x in range(MAX_STAGED + 3)]
    await worker.object.begun()
    await timeline.settle()
    taken, refused = numbers[: MAX_STAGED + 1], numbers[MAX_STAGED + 1 :]
    assert [other.about(n) for n in refused] == [[Busy(n)] for n in refused]
    assert worker.engine.held == 1
    assert [n for n in taken if other.about(n, Started)] == numbers[:1], "what is staged has not started"
    worker.object.go.set()
    assert await other.results(taken) == list(range(MAX_STAGED + 1))
    assert worker.object.seen == list(range(MAX_STAGED + 1))
    for number in taken:
        assert [type(m) for m in other.about(number)] == [Started, Returned]


class One(Held):
    @gw.method()
    def plain(self, x: int) -> int:
        self.hold(x)
        return x


async def test_a_start_is_reported_before_the_code_runs(make: MakeWorker) -> None:
    reported: list[bool] = []

    class Reports(Held):
        @gw.method()
        def plain(self) -> None:
            reported.append(any(isinstance(m, Started) for m in other.messages))

    worker = await make(Reports)
    other = worker.another(stages=True)
    await other.result(other.submit("plain"))
    assert reported == [True]


async def test_a_lane_that_does_not_stage_is_told_of_no_starts(make: MakeWorker) -> None:
    worker = await make(One)
    worker.object.go.set()
    number = worker.caller.submit("plain", 1)
    await worker.caller.result(number)
    assert [type(m) for m in worker.caller.about(number)] == [Returned]


async def test_a_staged_input_that_is_cancelled_makes_room_for_another(make: MakeWorker) -> None:
    worker = await make(One)
    other = worker.another(stages=True)
    numbers = [other.submit("plain", x) for x in range(MAX_STAGED + 1)]
    await worker.object.begun()
    for number in numbers[1:]:
        other.cancel(number)
    more = [other.submit("plain", 100 + x) for x in range(MAX_STAGED)]
    assert not any(other.about(n, Busy) for n in more)
    worker.object.go.set()
    await other.results(more)
    assert worker.object.seen == [0, *range(100, 100 + MAX_STAGED)]


async def test_a_staged_input_whose_deadline_has_passed_is_not_run(make: MakeWorker, timeline: Any) -> None:
    worker = await make(One)
    running = worker.caller.submit("plain", 1)
    other = worker.another(stages=True)
    await worker.object.begun()
    late = other.submit("plain", 2, deadline_s=3)
    await timeline.advance(4)
    worker.object.go.set()
    await worker.caller.result(running)
    assert isinstance(await other.error(late), gw.DeadlineExceeded)
    await timeline.settle()
    assert worker.object.seen == [1]


async def test_a_staged_input_starts_though_the_free_place_was_offered_to_a_caller_that_does_not_come(
    make: MakeWorker, timeline: Any
) -> None:
    worker = await make(One)
    worker.object.go.set()
    silent, other = worker.another("silent"), worker.another(stages=True)
    worker.engine.caller_waits("silent", 1)
    assert silent.nudges == 1
    number = other.submit("plain", 7)
    await timeline.settle()
    assert worker.object.seen == [], "the place is kept for the one it was offered to"
    await timeline.advance(OFFER_S)
    assert await other.result(number) == 7


async def test_a_staged_input_does_not_take_a_place_that_was_offered(make: MakeWorker, timeline: Any) -> None:
    worker = await make(gw.concurrent(max_inputs=2)(type("Two", (One,), {})))
    first = worker.caller.submit("plain", 1)
    await worker.object.begun()
    polite, other = worker.another("polite"), worker.another(stages=True)
    worker.engine.caller_waits("polite", 1)
    staged = [other.submit("plain", x) for x in (2, 3)]
    worker.object.go.set()
    await worker.caller.result(first)
    number = polite.submit("plain", 4)
    assert await polite.result(number) == 4
    assert await other.results(staged) == [2, 3]


async def test_callers_that_wait_are_offered_free_places_in_turn_and_told(make: MakeWorker, timeline: Any) -> None:
    worker = await make(One)
    first = worker.caller.submit("plain", 1)
    await worker.object.begun()
    a, b = worker.another("a"), worker.another("b")
    worker.engine.caller_waits("a", 5)
    worker.engine.caller_waits("b", 5)
    assert a.nudges == b.nudges == 0
    worker.object.go.set()
    await worker.caller.result(first)
    await timeline.settle()
    assert (a.nudges, b.nudges) == (1, 0)
    assert (worker.engine.room_for("a"), worker.engine.room_for("b")) == (1, 0)
    await a.result(a.submit("plain", 2))
    await timeline.settle()
    assert (a.nudges, b.nudges) == (1, 1)


async def test_draining_refuses_what_is_new_gives_back_what_is_staged_and_finishes_what_runs(
    make: MakeWorker, timeline: Any
) -> None:
    worker = await make(Batcher)
    running = [worker.caller.submit("plain", 1), worker.caller.submit("embed", 2)]
    await worker.object.begun()
    other = worker.another(stages=True)
    filling = [worker.caller.submit("plain", x) for x in range(14)]
    staged = other.submit("plain", 99)
    nudged = worker.caller.nudges
    draining = asyncio.ensure_future(worker.engine.drain(60))
    await timeline.settle()
    assert [type(m) for m in other.about(staged)] == [Busy]
    assert worker.caller.about(worker.caller.submit("plain", 3), Busy)
    assert worker.engine.room_for("caller") == 0
    assert worker.caller.nudges > nudged and other.nudges, "callers are told that it drains"
    assert not draining.done()
    worker.object.go.set()
    assert await draining
    assert await worker.caller.results([*running, *filling]) == [1, 4, *range(14)]
    assert 99 not in worker.object.seen


async def test_an_idle_worker_drains_at_once(make: MakeWorker) -> None:
    worker = await make(Batcher)
    assert await worker.engine.drain(60)


async def test_a_drain_ends_after_its_grace_though_something_still_runs(make: MakeWorker, timeline: Any) -> None:
    worker = await make(Batcher)
    worker.caller.submit("plain", 1)
    await worker.object.begun()
    draining = asyncio.ensure_future(worker.engine.drain(30))
    await timeline.advance(29.9)
    assert not draining.done()
    await timeline.advance(0.1)
    assert await draining is False


async def test_an_input_that_gathers_when_the_drain_begins_still_runs(make: MakeWorker, timeline: Any) -> None:
    worker = await make(Windowed)
    number = worker.caller.submit("embed", 1, "a")
    draining = asyncio.ensure_future(worker.engine.drain(30))
    await timeline.advance(0.02)
    assert await worker.caller.result(number) == (1, "a")
    assert await draining


# --- several engines ---------------------------------------------------------------------------------------------


async def test_two_instances_in_one_process_share_nothing(make: MakeWorker) -> None:
    one, other = await make(Batcher), await make(Batcher)
    numbers = [one.caller.submit("embed", 1), one.caller.submit("embed", 2)]
    theirs = [other.caller.submit("embed", 3), other.caller.submit("embed", 4)]
    await one.object.begun()
    await other.object.begun()
    assert one.object.seen == [[1, 2]] and other.object.seen == [[3, 4]]
    one.object.go.set()
    assert await one.caller.results(numbers) == [2, 4]
    assert other.caller.messages == []
    other.object.go.set()
    assert await other.caller.results(theirs) == [6, 8]
    assert one.engine.counters.batches == other.engine.counters.batches == {"embed": (1, 2)}


async def test_it_counts_what_it_did(make: MakeWorker) -> None:
    worker = await make(Raises)
    for method in ("fine", "sync", "fine"):
        number = worker.caller.submit(method)
        await worker.caller.next(number, *_LAST)
    counters = worker.engine.counters
    assert (counters.inputs, counters.succeeded, counters.failed) == (3, 2, 1)


# --- the life of an instance -------------------------------------------------------------------------------------


async def test_hooks_run_base_first_and_leave_in_the_exact_reverse_each_even_if_another_raised(
    make: MakeWorker,
) -> None:
    log: list[str] = []

    class Base:
        @gw.on_enter()
        def one(self) -> None:
            log.append("one")

        @gw.on_exit()
        def last(self) -> None:
            log.append("last")

    class Derived(Base):
        @gw.on_enter()
        async def two(self) -> None:
            log.append("two")

        @gw.on_exit()
        def middle(self) -> None:
            log.append("middle")
            raise SystemExit(3)

        @gw.on_exit()
        async def first(self) -> None:
            log.append("first")
            raise ValueError("x")

        @gw.method()
        def method(self) -> None: ...

    worker = await make(Derived)
    assert log == ["one", "two"]
    problems = await worker.instance.leave()
    assert log == ["one", "two", "first", "middle", "last"]
    assert [p for p in problems if "first raised ValueError: x" in p]
    assert [p for p in problems if "middle raised SystemExit" in p]
    assert await worker.instance.leave() == [], "once"
    assert len(log) == 5


async def test_when_on_enter_raises_no_on_exit_hook_runs(timeline: Any) -> None:
    left: list[int] = []

    class Fails:
        @gw.on_enter()
        def load(self) -> None:
            raise OSError("no model")

        @gw.on_exit()
        def leave(self) -> None:
            left.append(1)

        @gw.method()
        def method(self) -> None: ...

    spec = compile_class(Fails, {})
    instance = Instance(spec, {}, UserThreads(1))
    with pytest.raises(OSError, match="no model"):
        await instance.enter()
    assert await instance.leave() == []
    assert left == []


async def test_exit_hooks_have_one_budget_for_all(make: MakeWorker, timeline: Any) -> None:
    class Hangs(Held):
        @gw.on_exit()
        async def quick(self) -> None:
            self.seen.append("quick")

        @gw.on_exit()
        async def hang(self) -> None:
            self.seen.append("hang")
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

        @gw.method()
        def method(self) -> None: ...

    worker = await make(Hangs)
    leaving = asyncio.ensure_future(worker.instance.leave(10))
    while "hang" not in worker.object.seen:
        await asyncio.to_thread(lambda: None)
    await timeline.advance(10)
    problems = await leaving
    assert "hang did not finish" in problems[0] and "10 s" in problems[0]
