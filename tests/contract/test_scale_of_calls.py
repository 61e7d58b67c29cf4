"""Many calls: ten thousand in flight, full queues, endless inputs, and what waiting calls wait for."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gworker as gw
from tests.conftest import Gate, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("module_app")]

app = gw.App("contract-scale")


@app.cls(max_workers=1, cpu=0.1)
@gw.concurrent(max_inputs=256)
class Wide:
    @gw.method()
    async def double(self, x: int) -> int:
        return 2 * x

    @gw.method()
    async def wait(self, gate: Gate, x: int) -> int:
        while not gate.is_open:  # noqa: ASYNC110 - it is in another process; and we are many, so no arrivals are noted
            await asyncio.sleep(0.05)
        return x

    @gw.method()
    @gw.batched(max_batch_size=256)
    def batch(self, xs: list[int]) -> list[int]:
        return [2 * x for x in xs]


@app.cls(max_workers=1, cpu=0.1, max_pending=5)
class Narrow:
    """Five calls may wait."""

    @gw.method()
    def hold(self, gate: Gate, x: int = 0) -> int:
        gate.wait()
        return x

    @gw.method()
    def double(self, x: int) -> int:
        return 2 * x


@app.cls(max_workers=1, cpu=0.1, max_pending_mb=1)
class Light:
    """A megabyte may wait."""

    @gw.method()
    def hold(self, gate: Gate, array: Any = None) -> int:
        gate.wait()
        return 0 if array is None else array.nbytes

    @gw.method()
    def size(self, array: Any) -> int:
        return int(array.nbytes)


# --- in flight -------------------------------------------------------------------------------------------------------


def test_ten_thousand_calls_in_flight_each_get_their_own_result(gate: Gate) -> None:
    Wide().double.remote(0)
    calls = [Wide().wait.spawn(gate, x) for x in range(10_000)]
    assert not any(call.done() for call in calls)
    gate.open()
    assert gw.gather(*calls) == list(range(10_000))


def test_ten_thousand_inputs_through_batches_and_unordered() -> None:
    assert list(Wide().batch.map(range(10_000))) == list(range(0, 20_000, 2))
    assert sorted(Wide().double.map(range(3_000), ordered=False)) == list(range(0, 6_000, 2))


def test_many_threads_call_at_once() -> None:
    wrong: list[int] = []

    def caller(start: int) -> None:
        wrong.extend(x for x in range(start, start + 20) if Wide().double.remote(x) != 2 * x)

    threads = [threading.Thread(target=caller, args=(100 * i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- full queues -----------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once_and_loses_nothing_it_accepted(gate: Gate) -> None:
    running = Narrow().hold.spawn(gate)
    eventually(lambda: gate.arrivals == 1, 20)
    accepted = [Narrow().double.spawn(x) for x in range(5)]
    for _ in range(3):
        with pytest.raises(gw.QueueFull, match=r"Narrow.*5 calls already wait.*max_pending=5") as caught:
            Narrow().double.spawn(9)
    assert caught.value.retryable and caught.value.http_status == 429
    gate.open()
    assert running.get() == 0
    assert gw.gather(*accepted) == [0, 2, 4, 6, 8]
    assert Narrow().double.remote(9) == 18


def test_cancelling_and_deadlines_make_room_in_a_full_queue(gate: Gate) -> None:
    running = Narrow().hold.spawn(gate)
    eventually(lambda: gate.arrivals == 1, 20)
    accepted = [Narrow().double.spawn(x) for x in range(4)]
    late = Narrow().double.with_options(deadline_s=0.3).spawn(9)
    with pytest.raises(gw.QueueFull):
        Narrow().double.spawn(9)
    with pytest.raises(gw.DeadlineExceeded):
        late.get()
    accepted.append(Narrow().double.spawn(4))
    with pytest.raises(gw.QueueFull):
        Narrow().double.spawn(9)
    accepted.pop(0).cancel()
    accepted.append(eventually(spawn_or_none))
    gate.open()
    assert running.get() == 0
    assert gw.gather(*accepted) == [2, 4, 6, 8, 0]


def spawn_or_none() -> Any:
    """A call of Narrow, if there is room."""
    try:
        return Narrow().double.spawn(0)
    except gw.QueueFull:
        return None


def test_a_queue_is_bounded_in_bytes_too(gate: Gate) -> None:
    running = Light().hold.spawn(gate)
    eventually(lambda: gate.arrivals == 1, 20)
    array = np.zeros(50_000)  # 0.4 MB
    accepted = [Light().size.spawn(array) for _ in range(2)]
    with pytest.raises(gw.QueueFull, match=r"Light.*MiB already wait.*max_pending_mb=1"):
        Light().size.spawn(array)
    small = Light().size.spawn(np.zeros(10))
    gate.open()
    assert running.get() == 0
    assert gw.gather(*accepted, small) == [400_000, 400_000, 80]


def test_one_call_that_is_larger_than_the_whole_queue_still_goes_through() -> None:
    assert Light().size.remote(np.zeros(500_000)) == 4_000_000


# --- backpressure instead --------------------------------------------------------------------------------------------


async def test_map_waits_for_room_where_spawn_would_be_refused() -> None:
    assert list(Narrow().double.map(range(200))) == list(range(0, 400, 2))
    assert sorted(Narrow().double.map(range(100), ordered=False)) == list(range(0, 200, 2))
    assert [y async for y in Narrow().double.map.aio(range(100))] == list(range(0, 200, 2))
    Narrow().double.for_each(range(100))
    arrays = (np.zeros(50_000) for _ in range(20))
    assert list(Light().size.map(arrays)) == [400_000] * 20


def test_map_waits_while_others_fill_the_queue(gate: Gate) -> None:
    running = Narrow().hold.spawn(gate)
    eventually(lambda: gate.arrivals == 1, 20)
    accepted = [Narrow().double.spawn(x) for x in range(5)]
    results: list[int] = []
    mapping = threading.Thread(target=lambda: results.extend(Narrow().double.map(range(20))))
    mapping.start()
    mapping.join(0.3)
    assert mapping.is_alive() and results == []
    gate.open()
    mapping.join(20)
    assert results == list(range(0, 40, 2))
    assert running.get() == 0
    assert gw.gather(*accepted) == [0, 2, 4, 6, 8]


class Source:
    """An endless iterator that knows how far it was read."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        for x in itertools.count():
            self.taken = x + 1
            yield x


@pytest.mark.parametrize("ordered", [True, False])
def test_an_endless_iterator_is_read_no_further_than_its_results_are_taken(ordered: bool) -> None:
    source = Source()
    results = Wide().double.map(source, ordered=ordered)
    got = [next(results) for _ in range(300)]
    assert len(set(got)) == 300
    ahead = -1
    while ahead != (ahead := source.taken):  # until it reads no further
        time.sleep(0.1)
    assert ahead <= 300 + 1_001
    got += [next(results) for _ in range(3_000)]
    assert len(set(got)) == 3_300
    assert source.taken <= 3_300 + 1_001
    results.close()
    after = source.taken
    time.sleep(0.1)
    assert source.taken <= after + 1


def test_an_endless_iterator_into_a_narrow_queue_is_read_slowly(gate: Gate) -> None:
    source = Source()
    Narrow().double.remote(0)
    results = Narrow().hold.starmap((gate, x) for x in source)
    first = threading.Thread(target=lambda: next(results))
    first.start()
    eventually(lambda: gate.arrivals == 1)
    ahead = -1
    while ahead != (ahead := source.taken):
        time.sleep(0.1)
    assert ahead <= 5 + 1 + 2  # queued, running, on their way
    gate.open()
    first.join(10)
    assert [next(results) for _ in range(20)] == list(range(1, 21))
    results.close()


# --- what waiting calls wait for -------------------------------------------------------------------------------------


def test_while_a_call_waits_for_a_worker_status_and_log_say_for_what(
    make_app: Any, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    own = make_app()

    @own.cls(max_workers=1, cpu=0.1)
    class SlowStart:
        @gw.on_enter()
        def load(self) -> None:
            gate.wait()

        @gw.method()
        def ping(self) -> str:
            return "pong"

    with caplog.at_level(logging.WARNING, "gworker"):
        call = SlowStart().ping.spawn()
        eventually(lambda: gate.arrivals == 1, 20)
        pool = own.status().pool("SlowStart")
        assert (pool.state, pool.queued, pool.ready, pool.starting) == ("SCALING", 1, 0, 1)
        assert "on_enter is running" in pool.waiting_for
        eventually(lambda: "on_enter is running" in caplog.text, 10)
    assert "SlowStart" in caplog.text and "1 call" in caplog.text
    gate.open()
    assert call.get(timeout_s=10) == "pong"
    assert own.status().pool("SlowStart").waiting_for == ""
