"""Generator methods: items as they come, with backpressure, closed when their consumer leaves."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import gworker as gw
from tests.conftest import Gate, Ledger, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("module_app")]

app = gw.App("contract-stream")

# How far a generator may run ahead of its consumer: what is in flight, and what each side holds.
AHEAD = 64
KINDS = pytest.mark.parametrize("kind", ["sync_items", "async_items"])


class BrokenError(Exception):
    """What the generators below raise."""


@app.cls(max_workers=1, cpu=0.1)
@gw.concurrent(max_inputs=8)
class Streamer:
    factor: int = gw.parameter(default=1)

    @gw.on_enter()
    def setup(self) -> None:
        self.made = 0

    @gw.method()
    def sync_items(self, count: int, ledger: Ledger | None = None) -> Iterator[int]:
        try:
            for i in range(count):
                self.made = i + 1
                yield i * self.factor
        finally:
            if ledger is not None:
                ledger.write(f"closed after {self.made}")

    @gw.method()
    async def async_items(self, count: int, ledger: Ledger | None = None) -> AsyncIterator[int]:
        try:
            for i in range(count):
                self.made = i + 1
                yield i * self.factor
        finally:
            await asyncio.sleep(0)  # a generator that is closed may still await
            if ledger is not None:
                ledger.write(f"closed after {self.made}")

    @gw.method()
    def how_many_made(self) -> int:
        return self.made

    @gw.method()
    def break_after(self, count: int) -> Iterator[int]:
        yield from range(count)
        raise BrokenError(count)

    @gw.method()
    async def break_after_async(self, count: int) -> AsyncIterator[int]:
        for i in range(count):
            yield i
        raise BrokenError(count)

    @gw.method()
    def unpicklable_second(self) -> Iterator[Any]:
        yield 1
        yield threading.Lock()

    @gw.method()
    def contexts(self) -> Iterator[tuple[str, int, str]]:
        for _ in range(3):
            call = gw.current_call()
            yield call.id, call.attempt, call.method

    @gw.method()
    async def contexts_async(self) -> AsyncIterator[tuple[str, int, str]]:
        for _ in range(3):
            call = gw.current_call()
            yield call.id, call.attempt, call.method
            await asyncio.sleep(0)

    @gw.method()
    def slow(self, gate: Gate) -> Iterator[int]:
        yield 0
        gate.wait()
        yield 1

    @gw.method()
    async def slow_async(self, gate: Gate, ledger: Ledger) -> AsyncIterator[int]:
        try:
            yield 0
            await gate.wait_async()
            yield 1
        except BaseException as error:
            ledger.write(type(error).__name__)
            raise


@app.cls(max_workers=1, cpu=0.1)
class OneAtATime:
    @gw.method()
    def count(self) -> Iterator[int]:
        yield from itertools.count()

    @gw.method()
    async def count_async(self) -> AsyncIterator[int]:
        for i in itertools.count():
            yield i

    @gw.method()
    def ping(self) -> str:
        return "pong"


@KINDS
def test_items_come_complete_and_in_order(kind: str) -> None:
    assert list(getattr(Streamer(), kind).stream(1000)) == list(range(1000))
    assert list(getattr(Streamer(), kind).stream(0)) == []
    assert list(getattr(Streamer(), kind).remote_gen(3)) == [0, 1, 2]


@KINDS
async def test_streams_can_be_consumed_asynchronously(kind: str) -> None:
    assert [i async for i in getattr(Streamer(), kind).stream.aio(100)] == list(range(100))


def test_an_item_arrives_before_the_next_one_is_made(gate: Gate) -> None:
    items = Streamer().slow.stream(gate)
    assert next(items) == 0
    gate.open()
    assert list(items) == [1]


def test_a_stream_reads_the_parameters_of_its_own_call() -> None:
    streams = [Streamer(factor=f).sync_items.stream(40) for f in (1, 2, 3)]
    assert list(zip(*streams, strict=True)) == [(i, 2 * i, 3 * i) for i in range(40)]


@pytest.mark.parametrize("method", ["contexts", "contexts_async"])
def test_the_running_call_is_known_at_every_item(method: str) -> None:
    seen = list(getattr(Streamer(), method).stream())
    assert len(seen) == 3 and len(set(seen)) == 1
    assert seen[0][1:] == (1, method)


# --- backpressure ----------------------------------------------------------------------------------------------------


@KINDS
def test_a_generator_does_not_run_far_ahead_of_its_consumer(kind: str) -> None:
    streamer = Streamer()
    items = getattr(streamer, kind).stream(100_000)
    for consumed in range(1, 200):
        next(items)
        assert streamer.how_many_made.remote() <= consumed + AHEAD
    ahead = -1
    while ahead != (ahead := streamer.how_many_made.remote()):  # until it makes no more
        time.sleep(0.1)
    assert ahead <= 199 + AHEAD
    items.close()


# --- closing ---------------------------------------------------------------------------------------------------------


@KINDS
def test_closing_the_stream_stops_the_generator_and_runs_its_finally(kind: str, ledger: Ledger) -> None:
    items = getattr(Streamer(), kind).stream(100_000, ledger)
    assert next(items) == 0
    items.close()
    (line,) = eventually(ledger.lines)
    assert int(line.removeprefix("closed after ")) <= 1 + AHEAD


@KINDS
def test_leaving_the_loop_stops_the_generator(kind: str, ledger: Ledger) -> None:
    for i in getattr(Streamer(), kind).stream(100_000, ledger):
        if i == 30:
            break
    (line,) = eventually(ledger.lines)
    assert int(line.removeprefix("closed after ")) <= 31 + AHEAD


@KINDS
async def test_closing_an_asynchronous_stream_stops_the_generator(kind: str, ledger: Ledger) -> None:
    items = getattr(Streamer(), kind).stream.aio(100_000, ledger)
    assert await anext(items) == 0
    await items.aclose()
    await asyncio.to_thread(eventually, ledger.lines)


async def test_cancelling_the_consumer_stops_the_generator(ledger: Ledger, gate: Gate) -> None:
    first = asyncio.Event()

    async def consume() -> None:
        async for _ in Streamer().slow_async.stream.aio(gate, ledger):
            first.set()

    task = asyncio.create_task(consume())
    await first.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(eventually, ledger.lines) == ["CancelledError"]


@pytest.mark.parametrize("method", ["count", "count_async"])
def test_a_closed_stream_gives_its_place_to_the_next_input(method: str) -> None:
    handle = OneAtATime()
    for _ in range(3):
        items = getattr(handle, method).stream()
        assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
        items.close()
    assert handle.ping.spawn().get(timeout_s=10) == "pong"


def test_a_stream_that_is_never_asked_for_an_item_runs_nothing(ledger: Ledger) -> None:
    items = Streamer().sync_items.stream(1, ledger)
    items.close()
    assert list(Streamer().sync_items.stream(1)) == [0]
    assert ledger.lines() == []


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["break_after", "break_after_async"])
@pytest.mark.parametrize("count", [0, 3, 100])
def test_what_a_generator_raises_comes_after_its_items(method: str, count: int) -> None:
    got: list[int] = []
    items = getattr(Streamer(), method).stream(count)
    with pytest.raises(BrokenError, match=str(count)) as caught:
        got.extend(items)
    assert got == list(range(count))
    assert method in str(caught.value.__cause__)


def test_an_item_that_cannot_be_pickled_is_an_error_that_names_the_method() -> None:
    items = Streamer().unpicklable_second.stream()
    assert next(items) == 1
    with pytest.raises(TypeError, match=r"Streamer\.unpicklable_second.*lock.*pickled"):
        next(items)


@pytest.mark.parametrize(("limit", "where"), [("timeout_s", "running"), ("deadline_s", "")])
def test_time_limits_hold_for_streams(limit: str, where: str, gate: Gate) -> None:
    items = Streamer().slow.with_options(**{limit: 0.5}).stream(gate)
    assert next(items) == 0
    with pytest.raises(gw.DeadlineExceeded) as caught:
        next(items)
    assert caught.value.limit == limit


def test_stream_and_remote_are_told_apart() -> None:
    with pytest.raises(TypeError, match=r"\.stream"):
        Streamer().sync_items.remote(3)  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"\.remote"):
        Streamer().how_many_made.stream()  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="sync_items"):
        Streamer().sync_items.stream()  # the count is missing, and that is told before the first item


# --- retries ---------------------------------------------------------------------------------------------------------


@app.cls(max_workers=1, cpu=0.1, retries=gw.Retries(max_retries=3, initial_delay_s=0.01))
class Unsteady:
    @gw.method()
    def fail_first_at(self, item: int, ledger: Ledger) -> Iterator[int]:
        ledger.write(f"attempt {gw.current_attempt_number()}")
        for i in range(10):
            if i == item and gw.current_attempt_number() == 1:
                raise BrokenError(item)
            yield i

    @gw.method()
    def die_at(self, item: int, ledger: Ledger) -> Iterator[int]:
        ledger.write(f"attempt {gw.current_attempt_number()}")
        for i in range(10):
            if i == item:
                time.sleep(0.2)  # the items before have left
                os._exit(1)
            yield i


def test_a_stream_is_retried_before_its_first_item_and_not_after(ledger: Ledger) -> None:
    assert list(Unsteady().fail_first_at.stream(0, ledger)) == list(range(10))
    assert ledger.lines() == ["attempt 1", "attempt 2"]
    items = Unsteady().fail_first_at.stream(5, ledger)
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(BrokenError):
        next(items)
    assert len(ledger.lines()) == 3


def test_a_stream_whose_worker_dies_after_an_item_ends_with_worker_lost(ledger: Ledger) -> None:
    items = Unsteady().die_at.stream(3, ledger)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(gw.WorkerLost):
        next(items)
    assert ledger.lines() == ["attempt 1"]
