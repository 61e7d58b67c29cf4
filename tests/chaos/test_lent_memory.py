"""Memory that is lent between a caller and its workers, over kills, broken connections and a thousand calls."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from typing import Any

import numpy as np
import psutil
import pytest

import gworker as gw
from gworker import blocks
from tests.chaos.test_direct import lane_of

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.chaos,
    pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux's"),
]

MB = 1_000_000


@pytest.fixture
def arrays(app: Any) -> Any:
    @app.cls(cpu=0.1, min_workers=1, max_workers=1)
    @gw.concurrent(max_inputs=8)
    class Arrays:
        @gw.on_enter()
        def begin(self) -> None:
            self.kept: list[Any] = []

        @gw.method()
        def echo(self, array: Any) -> Any:
            return array

        @gw.method()
        def keep(self, array: Any) -> int:
            self.kept.append(array)
            return os.getpid()

        @gw.method()
        def kept_are(self, value: int) -> bool:
            return all((array == value).all() for array in self.kept)

        @gw.method()
        def overwrite(self, array: Any) -> Any:
            array += 1
            return array

        @gw.method()
        def state(self) -> tuple[int, int, int, int]:
            """File descriptors, megabytes, blocks that are out, idle megabytes."""
            here = psutil.Process()
            return here.num_fds(), here.memory_info().rss // MB, blocks.pool.out, blocks.pool.idle_bytes // MB

        @gw.method()
        def items(self, count: int) -> Any:
            for number in range(count):
                yield np.full(MB, number % 100, np.uint8)

    return Arrays()


def same(array: Any, value: int) -> bool:
    return bool((array == value).all())


def lends(app: Any, eventually: Any) -> Any:
    """The lane, once both ends lend to each other."""
    lane = lane_of(app, eventually)
    eventually(lambda: lane._wire is not None and lane._wire._loans is not None and lane._wire._loans._lends)
    return lane


def test_large_arrays_of_both_directions_are_lent_and_independent(app: Any, arrays: Any, eventually: Any) -> None:
    sent = np.zeros(MB, np.int64)
    assert np.array_equal(arrays.overwrite.remote(sent), np.ones(MB))
    lane = lends(app, eventually)
    assert lane._wire._loans._peer is not None
    assert not sent.any()
    first, second = arrays.echo.remote(sent), arrays.echo.remote(sent)
    first[:] = 5
    assert not second.any()
    held = [arrays.echo.remote(np.full(MB, number, np.uint8)) for number in range(40)]
    assert all((array == number).all() for number, array in enumerate(held))
    assert arrays.state.remote()[2] >= 40, "they are lent as long as the caller has them"
    del held, first, second
    eventually(lambda: arrays.state.remote()[2] <= 1)


def test_a_thousand_calls_leave_neither_descriptors_nor_memory(app: Any, arrays: Any, eventually: Any) -> None:
    sent = np.ones(MB, np.uint8)
    here = psutil.Process()
    for _ in range(50):
        arrays.echo.remote(sent)
    lends(app, eventually)
    before, before_there = (here.num_fds(), here.memory_info().rss // MB), arrays.state.remote()
    for _ in range(100):
        for result in arrays.echo.map([sent] * 10):
            assert result[-1] == 1
    del result
    eventually(lambda: blocks.pool.out == 0)
    eventually(lambda: arrays.state.remote()[2] == 0)
    after, after_there = (here.num_fds(), here.memory_info().rss // MB), arrays.state.remote()
    for ours, then in ((after, before), (after_there, before_there)):
        assert ours[0] <= then[0] + 40
        assert ours[1] <= then[1] + 100
    # Nobody calls any more: the memory goes back.
    eventually(lambda: blocks.pool.idle_bytes == 0, 20.0)
    eventually(lambda: arrays.state.remote()[3] == 0, 20.0)
    assert here.num_fds() <= before[0] + 5


def test_a_stream_of_large_items_is_lent_item_by_item(app: Any, arrays: Any, eventually: Any) -> None:
    for number, item in enumerate(arrays.items.stream(300)):
        assert (item == number % 100).all()
    del item
    eventually(lambda: arrays.state.remote()[2] == 0)


def test_a_worker_killed_with_memory_lent_both_ways_harms_nobody(
    app: Any, arrays: Any, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    held = [arrays.echo.remote(np.full(MB, number, np.uint8)) for number in range(10)]
    victim = arrays.keep.remote(np.full(4 * MB, 3, np.uint8))
    lends(app, eventually)
    over = threading.Event()
    outcomes: list[Any] = []

    def call() -> None:
        while not over.is_set():
            try:
                outcomes.append(same(arrays.echo.remote(np.full(4 * MB, 7, np.uint8)), 7))
            except gw.WorkerLost as error:
                outcomes.append(str(error))  # the error itself would keep the arguments, by its traceback

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(outcomes) > 20)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: any(isinstance(each, str) for each in outcomes))
    done = len(outcomes)
    eventually(lambda: sum(each is True for each in outcomes[done:]) > 5, 40.0)
    over.set()
    for thread in threads:
        thread.join()
    errors = [each for each in outcomes if isinstance(each, str)]
    assert all("its process is gone" in each for each in errors), errors
    assert len(errors) <= 3
    assert all((array == number).all() for number, array in enumerate(held)), "what has arrived stays"
    assert "could not be handled" not in caplog.text
    gc.collect()  # what was raised refers to itself, by its traceback, and to the arguments
    eventually(lambda: blocks.pool.out == 0)


def test_connections_broken_while_memory_is_lent_lose_nothing(app: Any, arrays: Any, eventually: Any) -> None:
    arrays.keep.remote(np.full(MB, 3, np.uint8))
    lane = lends(app, eventually)
    held: list[Any] = []
    over = threading.Event()
    wrong: list[Any] = []

    def call(value: int) -> None:
        while not over.is_set():
            result = arrays.echo.remote(np.full(MB, value, np.uint8))
            if not (result == value).all():
                wrong.append(result)
            if len(held) < 60:
                held.append((value, result))

    threads = [threading.Thread(target=call, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        broken = eventually(lambda: lane._wire)
        count = len(held)
        lane._loop.call_soon_threadsafe(broken.abort)
        eventually(lambda: lane._wire not in (None, broken), every_s=0.001)  # noqa: B023  # waited for here
        eventually(lambda: len(held) > count or len(held) >= 60)  # noqa: B023
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all((array == value).all() for value, array in held)
    assert arrays.kept_are.remote(3)
    lends(app, eventually)
    held.clear()
    eventually(lambda: blocks.pool.out == 0)
    eventually(lambda: arrays.state.remote()[2] == 0)


def test_a_caller_may_do_without(app: Any, arrays: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWORKER_SHARED_MEMORY", "off")
    sent = np.ones(MB, np.uint8)
    assert np.array_equal(arrays.echo.remote(sent), sent)
    assert lane_of(app, eventually)._wire._loans is None  # type: ignore[union-attr]
    assert arrays.state.remote()[2:] == (0, 0)
