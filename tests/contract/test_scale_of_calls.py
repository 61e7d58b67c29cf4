"""Very many calls at once: all answered, none mixed up; and where the queue ends."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import gworker as gw
from tests.conftest import Gate, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("module_app")]

app = gw.App("contract-scale-of-calls")

MANY = 10_000
KB = 1024


# --- ten thousand ----------------------------------------------------------------------------------------------------


@app.cls(max_workers=1, cpu=0.1)
class Serial:
    """One input at a time."""

    @gw.method()
    def square(self, x: int) -> int:
        return x * x


@app.cls(max_workers=1, cpu=0.1, max_pending=2 * MANY)
@gw.concurrent(max_inputs=2 * MANY)
class Wide:
    """Ten thousand inputs at a time."""

    @gw.on_enter()
    async def prepare(self) -> None:
        self.inside = 0
        self.full = asyncio.Event()

    @gw.method()
    async def square_when_all_are_here(self, x: int, everybody: int) -> int:
        self.inside += 1
        if self.inside == everybody:
            self.full.set()
        await self.full.wait()
        return x * x


@app.cls(max_workers=1, cpu=0.1)
class Batches:
    """Batches of as many as there are."""

    @gw.method()
    @gw.batched(max_batch_size=256)
    def square(self, xs: list[int]) -> list[int]:
        return [x * x for x in xs]


SQUARES = [x * x for x in range(MANY)]


@pytest.mark.parametrize("cls", [Serial, Batches], ids=["one at a time", "batched"])
def test_ten_thousand_calls_in_flight_to_one_worker_are_all_answered_correctly(cls: Any) -> None:
    square = cls().square
    calls = [square.spawn(x) for x in range(MANY)]
    assert gw.gather(*calls) == SQUARES


async def test_ten_thousand_calls_that_run_at_the_same_time_in_one_worker_are_all_answered_correctly() -> None:
    square = Wide().square_when_all_are_here
    assert await asyncio.gather(*(square.remote.aio(x, MANY) for x in range(MANY))) == SQUARES


def test_calls_of_many_threads_are_not_mixed_up() -> None:
    square = Batches().square

    def call(start: int) -> list[int]:
        return gw.gather(*(square.spawn(x) for x in range(start, start + 500)))

    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(call, range(0, 4000, 500)))
    assert list(itertools.chain.from_iterable(got)) == SQUARES[:4000]


def test_cancelling_most_of_ten_thousand_leaves_the_others_untouched() -> None:
    calls = [Serial().square.spawn(x) for x in range(MANY)]
    for call in calls[1000:-1]:
        call.cancel()
    assert gw.gather(*calls[:1000]) == SQUARES[:1000]
    assert calls[-1].get(30) == SQUARES[-1]
    ended = [call for call in calls[1000:-1] if isinstance(outcome_of(call), gw.CallCancelled)]
    assert ended  # those that had not been answered before


def outcome_of(call: gw.Call[int]) -> Any:
    """The result or the error of a call."""
    try:
        return call.get(30)
    except gw.CallCancelled as error:
        return error


# --- where the queue ends --------------------------------------------------------------------------------------------


@app.cls(max_workers=1, cpu=0.1, max_pending=5)
class Narrow:
    """Five may wait."""

    @gw.method()
    def hold(self, gate: Gate, x: int) -> int:
        gate.wait()
        return x

    @gw.method()
    def echo(self, x: int) -> int:
        return x


@app.cls(max_workers=1, cpu=0.1, max_pending_mb=1)
class Light:
    """A mebibyte may wait."""

    @gw.method()
    def hold(self, gate: Gate, data: bytes) -> int:
        gate.wait()
        return len(data)

    @gw.method()
    def size(self, data: bytes) -> int:
        return len(data)


def held(call: gw.Call[Any], gate: Gate) -> gw.Call[Any]:
    """The call, once it runs: the worker takes no other until the gate opens."""
    eventually(lambda: gate.arrivals == 1, 30)
    return call


async def test_queue_full_is_raised_at_once_for_one_call_more_than_may_wait(gate: Gate) -> None:
    narrow = Narrow()
    running = held(narrow.hold.spawn(gate, -1), gate)
    waiting = [narrow.echo.spawn(x) for x in range(5)]
    for _ in range(2):
        with pytest.raises(gw.QueueFull, match=r"Narrow: 5 calls already wait.*max_pending=5.*\.map"):
            narrow.echo.spawn(5)
    with pytest.raises(gw.QueueFull):
        narrow.echo.remote(5)
    with pytest.raises(gw.QueueFull):
        await narrow.echo.remote.aio(5)
    gate.open()
    assert running.get(20) == -1
    assert gw.gather(*waiting) == [0, 1, 2, 3, 4]
    assert narrow.echo.remote(6) == 6  # there is room again


def test_a_cancelled_call_makes_room(gate: Gate) -> None:
    narrow = Narrow()
    held(narrow.hold.spawn(gate, -1), gate)
    waiting = [narrow.echo.spawn(x) for x in range(5)]
    waiting[2].cancel()
    with pytest.raises(gw.CallCancelled):
        waiting[2].get(10)
    waiting[2] = narrow.echo.spawn(2)
    with pytest.raises(gw.QueueFull):
        narrow.echo.spawn(5)
    gate.open()
    assert gw.gather(*waiting) == [0, 1, 2, 3, 4]


def test_queue_full_is_raised_for_more_bytes_than_may_wait(gate: Gate) -> None:
    light = Light()
    running = held(light.hold.spawn(gate, b""), gate)
    waiting = [light.size.spawn(bytes(300 * KB)) for _ in range(3)]
    with pytest.raises(gw.QueueFull, match=r"Light: calls of 1 MiB already wait.*max_pending_mb=1\b"):
        light.size.spawn(bytes(300 * KB))
    waiting.append(light.size.spawn(bytes(50 * KB)))  # a small one still fits
    gate.open()
    assert running.get(20) == 0
    assert gw.gather(*waiting) == [300 * KB] * 3 + [50 * KB]


def test_one_call_that_is_larger_than_the_limit_is_accepted_when_nothing_else_waits(gate: Gate) -> None:
    assert Light().size.remote(bytes(3000 * KB)) == 3000 * KB
    held(Light().hold.spawn(gate, b""), gate)
    large = Light().size.spawn(bytes(3000 * KB))
    with pytest.raises(gw.QueueFull):
        Light().size.spawn(b"x")
    gate.open()
    assert large.get(20) == 3000 * KB


# --- .map ------------------------------------------------------------------------------------------------------------


class Source:
    """An endless iterator that counts what was taken of it."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        for x in itertools.count():
            self.taken += 1
            yield x

    async def asynchronously(self) -> AsyncIterator[int]:
        for x in self:
            yield x


def in_thread(results: Iterator[Any], into: list[Any]) -> threading.Thread:
    """A thread that takes all results; what they raise is appended too."""

    def take() -> None:
        try:
            into.extend(results)
        except BaseException as error:
            into.append(error)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    return thread


def test_map_waits_for_room_where_spawn_would_raise_queue_full(gate: Gate) -> None:
    narrow = Narrow()
    held(narrow.hold.spawn(gate, -1), gate)
    waiting = [narrow.echo.spawn(x) for x in range(5)]
    got: list[Any] = []
    thread = in_thread(narrow.echo.map(range(50)), got)
    with pytest.raises(gw.QueueFull):
        narrow.echo.spawn(0)
    assert got == []
    gate.open()
    thread.join(20)
    assert got == list(range(50))
    assert gw.gather(*waiting) == [0, 1, 2, 3, 4]


async def test_asynchronous_map_waits_for_room_too(gate: Gate) -> None:
    narrow = Narrow()
    await asyncio.to_thread(held, narrow.hold.spawn(gate, -1), gate)
    waiting = [narrow.echo.spawn(x) for x in range(5)]

    async def take(inputs: Any) -> list[int]:
        return [y async for y in narrow.echo.map.aio(inputs)]

    async def some() -> AsyncIterator[int]:
        for x in range(30):
            yield x

    tasks = [asyncio.create_task(take(range(30))), asyncio.create_task(take(some()))]
    await asyncio.wait(tasks, timeout=0.2)  # nothing may end, whatever happens meanwhile
    assert not any(task.done() for task in tasks)
    gate.open()
    assert await asyncio.wait_for(asyncio.gather(*tasks), 20) == [list(range(30))] * 2
    assert gw.gather(*waiting) == [0, 1, 2, 3, 4]


def test_map_and_for_each_wait_for_room_in_bytes(gate: Gate) -> None:
    light = Light()
    held(light.hold.spawn(gate, b""), gate)
    got: list[Any] = []
    thread = in_thread(light.size.map(bytes(400 * KB) for _ in range(12)), got)
    eventually(lambda: refuses(light, 400 * KB))
    assert got == []
    gate.open()
    thread.join(20)
    assert got == [400 * KB] * 12
    light.size.for_each(bytes(400 * KB) for _ in range(12))


def refuses(light: Any, size: int) -> bool:
    """Whether a call of that many bytes finds no room."""
    try:
        light.size.spawn(bytes(size)).cancel()
    except gw.QueueFull:
        return True
    return False


@pytest.mark.parametrize("ordered", [True, False])
def test_map_takes_no_more_of_an_endless_iterator_than_may_be_under_way(gate: Gate, ordered: bool) -> None:
    source = Source()
    results = Narrow().echo.map(source, ordered=ordered)
    assert source.taken == 0  # nothing before the first result is asked for
    got = list(itertools.islice(results, 20))
    assert len(set(got)) == 20
    assert not ordered or got == list(range(20))
    look_ahead = 5 + 1  # max_pending, and the one that waits for room
    eventually(lambda: source.taken >= 20)
    for x in range(50):  # time enough to run away
        assert Narrow().echo.remote(x) == x
        assert source.taken <= 20 + look_ahead
    results.close()  # type: ignore[attr-defined]
    taken = source.taken
    assert Narrow().echo.remote(1) == 1
    assert source.taken <= taken + 1


def test_map_of_a_held_worker_takes_a_bounded_number_of_inputs(gate: Gate) -> None:
    source = Source()
    results = Narrow().hold.map(itertools.repeat(gate), source)
    got: list[Any] = []
    in_thread(itertools.islice(results, 100), got)
    eventually(lambda: source.taken >= 5)
    eventually(lambda: gate.arrivals == 1)
    assert source.taken <= 6
    assert got == []
    gate.open()
    eventually(lambda: got == list(range(100)))
    assert source.taken <= 100 + 6


async def test_asynchronous_map_is_as_lazy() -> None:
    for endless in (Source.__iter__, Source.asynchronously):
        source = Source()
        results: Any = Narrow().echo.map.aio(endless(source))
        assert source.taken == 0
        assert [await anext(results) for _ in range(20)] == list(range(20))
        for x in range(30):
            assert await Narrow().echo.remote.aio(x) == x
            assert source.taken <= 20 + 6
        await results.aclose()


def test_an_endless_map_runs_on_for_thousands_of_results() -> None:
    results = Batches().square.map(itertools.count())
    assert list(itertools.islice(results, 5000)) == SQUARES[:5000]
    results.close()  # type: ignore[attr-defined]
