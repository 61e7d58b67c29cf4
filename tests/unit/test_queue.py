"""The queue of one router: bounded, in order, and whoever waits for space is told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gworker.errors import PoolUnavailable, QueueFull
from gworker.retries import Retries
from gworker.router.calls import Plan, RoutedCall
from gworker.router.queue import CallQueue

MB = 1024 * 1024


def make_queue(max_pending: int = 1000, max_pending_mb: float = 1000) -> CallQueue:
    return CallQueue("app/Embedder", max_pending, max_pending_mb)


def make_call(size: int = 1) -> RoutedCall:
    sink: Any = None
    return RoutedCall(Plan("Embedder.embed", "embed", None, "", None, Retries.of(0)), bytes(size), sink)


def line_up(queue: CallQueue, count: int) -> list[RoutedCall]:
    calls = [make_call() for _ in range(count)]
    for call in calls:
        queue.admit(call)
        queue.append(call)
    return calls


def end(queue: CallQueue, call: RoutedCall) -> None:
    call.over = True
    queue.leave(call)


def take_all(queue: CallQueue) -> list[RoutedCall]:
    taken = []
    while queue.next() is not None:
        taken.append(queue.take())
    return taken


def test_calls_are_taken_in_the_order_they_were_made() -> None:
    queue = make_queue()
    calls = line_up(queue, 3)
    assert queue.waiting == 3
    assert take_all(queue) == calls
    assert queue.waiting == 0


def test_what_comes_back_stands_before_what_was_made_later_and_after_what_was_made_earlier() -> None:
    queue = make_queue()
    calls = line_up(queue, 5)
    first, second, third = (queue.take() for _ in range(3))
    queue.put_back([second])
    queue.put_back([third, first])
    assert take_all(queue) == calls


def test_calls_that_have_ended_are_passed_over() -> None:
    queue = make_queue()
    first, second, third = line_up(queue, 3)
    end(queue, first)
    end(queue, third)
    assert queue.waiting == 1
    assert queue.calls() == [second]
    assert take_all(queue) == [second]


def test_a_call_counts_from_its_admission_not_from_its_place_in_line() -> None:
    queue = make_queue(max_pending=1)
    call = make_call()
    queue.admit(call)
    assert queue.waiting == 0, "the router's loop has not seen it yet"
    with pytest.raises(QueueFull, match=r"app/Embedder: 1 calls already wait.*max_pending=1"):
        queue.admit(make_call())
    queue.append(call)
    queue.take()
    queue.admit(make_call())


def test_bytes_are_bounded_too_but_one_call_is_always_let_in() -> None:
    queue = make_queue(max_pending_mb=2)
    large = make_call(3 * MB)
    queue.admit(large)
    with pytest.raises(QueueFull, match=r"calls of 3 MiB already wait.*max_pending_mb=2"):
        queue.admit(make_call())
    end(queue, large)
    queue.admit(make_call(MB))
    queue.admit(make_call(MB))
    with pytest.raises(QueueFull):
        queue.admit(make_call())


def test_what_comes_back_is_let_in_whatever_the_limits_and_counts_once() -> None:
    queue = make_queue(max_pending=2)
    calls = line_up(queue, 2)
    sent = [queue.take(), queue.take()]
    line_up(queue, 2)
    queue.put_back(sent)
    queue.put_back([])
    assert queue.waiting == 4
    assert take_all(queue)[:2] == calls
    line_up(queue, 2)


def test_leaving_twice_counts_once() -> None:
    queue = make_queue(max_pending=2)
    first, _ = line_up(queue, 2)
    end(queue, first)
    end(queue, first)
    queue.admit(make_call())
    with pytest.raises(QueueFull):
        queue.admit(make_call())


def test_whoever_waits_for_space_is_told_by_the_next_call_that_leaves() -> None:
    queue = make_queue()
    assert queue.when_space().done(), "there is space where nothing waits"
    line_up(queue, 2)
    waits = [queue.when_space(), queue.when_space()]
    assert not any(wait.done() for wait in waits)
    queue.take()
    assert all(wait.done() for wait in waits)
    assert not queue.when_space().done()


def test_a_closed_queue_admits_nobody_and_keeps_nobody_waiting() -> None:
    queue = make_queue()
    line_up(queue, 1)
    queue.close(PoolUnavailable("stopped"))
    with pytest.raises(PoolUnavailable, match=r"^stopped$"):
        queue.admit(make_call())
    assert queue.when_space().done()


def test_calls_that_end_behind_one_that_waits_are_not_kept() -> None:
    queue = make_queue(max_pending=10_000)
    first, *rest = line_up(queue, 1000)
    for call in rest:
        end(queue, call)
    assert len(queue._line) < 100
    assert take_all(queue) == [first]


def test_many_threads_are_admitted_up_to_the_limit_and_no_further() -> None:
    queue = make_queue(max_pending=100)

    def admit(_: int) -> bool:
        try:
            queue.admit(make_call())
        except QueueFull:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(admit, range(300))) == 100
