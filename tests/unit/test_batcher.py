"""DESIGN §4, Batching: which waiting inputs form the next batch, and when it may leave.

What a weight changes about it is in `test_packing`.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gworker.decorators import BatchSpec
from gworker.worker.batcher import BatchQueue


class Item:
    """Inputs are told apart by identity: two equal ones are two."""

    def __init__(self, number: int, arrived: float = 0.0, weight: float = 1.0, cap: int = 0) -> None:
        self.number = number
        self.arrived = arrived
        self.weight = weight
        self.cap = cap

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None

    def __repr__(self) -> str:
        return f"#{self.number}"


def queue_of(spec: BatchSpec, *items: Item) -> BatchQueue[Item]:
    queue: BatchQueue[Item] = BatchQueue(spec)
    for item in items:
        queue.add(item, item.arrived, weight=item.weight, cap=item.cap)
    return queue


def numbers(batch: list[Item]) -> list[int]:
    return [item.number for item in batch]


# --- against a model ---------------------------------------------------------------------------------------------

additions = st.tuples(st.just("add"), st.integers(0, 9).map(float), st.integers(0, 5))
removals = st.tuples(st.just("remove"), st.integers(0, 30), st.just(0))
closings = st.tuples(st.just("close"), st.just(0), st.just(0))
passing = st.tuples(st.just("pass"), st.integers(1, 20), st.just(0))
operations = st.lists(st.one_of(additions, additions, removals, closings, passing), max_size=40)


def limits(waiting: list[Item], spec: BatchSpec) -> int:
    """How many of the first `waiting` items one batch can hold: the definition, tried size by size."""

    def fits(size: int) -> bool:
        members = waiting[:size]
        caps = [item.cap for item in members if item.cap > 0]
        light = spec.max_weight is None or sum(item.weight for item in members) <= spec.max_weight
        return size == 1 or (size <= min([spec.max_batch_size, *caps]) and light)

    return max((size for size in range(1, len(waiting) + 1) if all(fits(n) for n in range(1, size + 1))), default=0)


def cannot_grow(waiting: list[Item], spec: BatchSpec) -> bool:
    size = limits(waiting, spec)
    head = waiting[:size]
    caps = [item.cap for item in head if item.cap > 0]
    heavy = spec.max_weight is not None and sum(item.weight for item in head) >= spec.max_weight
    return size > 0 and (size < len(waiting) or size >= min([spec.max_batch_size, *caps]) or heavy)


@settings(max_examples=80)
@given(
    operations=operations,
    max_batch_size=st.integers(1, 6),
    max_weight=st.one_of(st.none(), st.integers(1, 12).map(float)),
    wait_s=st.sampled_from([0.0, 5.0]),
)
def test_batches_hold_to_size_weight_caps_and_window_whatever_happens(
    operations: list[tuple[str, float, int]], max_batch_size: int, max_weight: float | None, wait_s: float
) -> None:
    weight = None if max_weight is None else len
    spec = BatchSpec(max_batch_size=max_batch_size, wait_s=wait_s, weight=weight, max_weight=max_weight)
    queue: BatchQueue[Item] = BatchQueue(spec)
    waiting: list[Item] = []
    now = 0.0
    for number, (what, amount, cap) in enumerate(operations):
        if what == "add":
            item = Item(number, now, amount, cap)
            waiting.append(item)
            queue.add(item, now, weight=amount, cap=cap)
        elif what == "remove" and amount < len(waiting):
            assert queue.remove(waiting.pop(int(amount)))
        elif what == "close":
            batch = queue.close(now)
            if max_weight is None:
                assert numbers(batch) == numbers(waiting[: limits(waiting, spec)])
            elif waiting:
                assert batch[0] is waiting[0]
                assert limits(batch, spec) == len(batch)
            waiting = [item for item in waiting if item.number not in numbers(batch)]
        elif what == "pass":
            now += amount
        assert len(queue) == len(waiting)
        assert queue.oldest == (waiting[0].arrived if waiting else math.inf)
        if not waiting:
            assert queue.ready_at() == math.inf
        elif cannot_grow(waiting, spec):
            assert queue.ready_at() == -math.inf
        else:
            assert queue.ready_at() == waiting[0].arrived + wait_s


@given(st.lists(st.floats(0.001, 1.0), max_size=30), st.floats(0.5, 3.0))
def test_every_input_leaves_whatever_the_weights_add_up_to(weights: list[float], most: float) -> None:
    spec = BatchSpec(max_batch_size=8, weight=len, max_weight=most)
    queue = queue_of(spec, *(Item(n, weight=w) for n, w in enumerate(weights)))
    left: list[int] = []
    while len(queue):
        left += numbers(queue.close(0.0))
    assert sorted(left) == list(range(len(weights)))
    assert queue.ready_at() == math.inf


# --- one promise at a time ---------------------------------------------------------------------------------------


def test_the_window_starts_at_the_first_waiting_input_and_later_ones_do_not_move_it() -> None:
    queue = queue_of(BatchSpec(max_batch_size=8, wait_s=2.0), Item(1, arrived=10.0))
    assert queue.ready_at() == 12.0
    queue.add(Item(2), 11.9)
    assert queue.ready_at() == 12.0


def test_the_window_of_those_left_behind_starts_when_their_first_arrived() -> None:
    queue = queue_of(BatchSpec(max_batch_size=2, wait_s=2.0), Item(1, 10.0), Item(2, 10.5), Item(3, 11.0))
    queue.close(0.0)
    assert queue.ready_at() == 13.0


def test_when_the_first_waiting_input_is_cancelled_the_window_is_that_of_the_next() -> None:
    first, second = Item(1, 10.0), Item(2, 11.0)
    queue = queue_of(BatchSpec(max_batch_size=8, wait_s=2.0), first, second)
    assert queue.remove(first)
    assert queue.ready_at() == 13.0


def test_without_a_window_what_is_there_may_leave() -> None:
    queue = queue_of(BatchSpec(max_batch_size=8), Item(1, 10.0), Item(2, 10.0))
    assert queue.ready_at() == 10.0
    assert numbers(queue.close(0.0)) == [1, 2]


def test_a_full_batch_may_leave_at_once() -> None:
    queue = queue_of(BatchSpec(max_batch_size=2, wait_s=60.0), Item(1), Item(2))
    assert queue.ready_at() == -math.inf


def test_a_batch_that_is_full_by_weight_may_leave_at_once() -> None:
    spec = BatchSpec(max_batch_size=9, wait_s=60.0, weight=len, max_weight=10.0)
    queue = queue_of(spec, Item(1, weight=6.0), Item(2, weight=6.0))
    assert queue.ready_at() == -math.inf
    assert numbers(queue.close(0.0)) == [1]


def test_a_batch_may_weigh_exactly_as_much_as_is_allowed() -> None:
    spec = BatchSpec(max_batch_size=9, wait_s=60.0, weight=len, max_weight=10.0)
    queue = queue_of(spec, Item(1, weight=6.0), Item(2, weight=4.0))
    assert queue.ready_at() == -math.inf
    assert numbers(queue.close(0.0)) == [1, 2]


def test_one_oversized_input_runs_alone_and_holds_up_nobody_for_its_window() -> None:
    spec = BatchSpec(max_batch_size=9, wait_s=60.0, weight=len, max_weight=10.0)
    queue = queue_of(spec, Item(1, weight=99.0), Item(2, weight=1.0))
    assert queue.ready_at() == -math.inf
    assert numbers(queue.close(0.0)) == [1]
    assert numbers(queue.close(0.0)) == [2]


@pytest.mark.parametrize(
    ("caps", "batches"),
    [
        ([0, 0, 2, 0, 0], [[0, 1], [2, 3], [4]]),
        ([1, 0, 0], [[0], [1, 2]]),
        ([0, 0, 1, 1], [[0, 1], [2], [3]]),
        ([2, 2, 2, 2], [[0, 1], [2, 3]]),
        ([99, 99, 99], [[0, 1, 2]]),
    ],
)
def test_a_capped_input_is_in_no_batch_larger_than_its_cap(caps: list[int], batches: list[list[int]]) -> None:
    queue = queue_of(BatchSpec(max_batch_size=4), *(Item(n, cap=cap) for n, cap in enumerate(caps)))
    left = []
    while len(queue):
        left.append(numbers(queue.close(0.0)))
    assert left == batches


def test_an_input_that_does_not_wait_here_cannot_be_removed() -> None:
    queue = queue_of(BatchSpec(max_batch_size=4), Item(1))
    assert not queue.remove(Item(1)), "an equal one is another one"
    assert len(queue) == 1


def test_closing_an_empty_queue_gives_an_empty_batch() -> None:
    assert queue_of(BatchSpec(max_batch_size=4)).close(0.0) == []


def test_lower_turns_leave_first_and_the_window_is_still_that_of_the_oldest() -> None:
    queue: BatchQueue[Item] = BatchQueue(BatchSpec(max_batch_size=2, wait_s=0.1))
    late = Item(1)
    queue.add(late, 0.0, turn=9)
    assert (queue.turn, queue.oldest) == (9, 0.0)
    for number in (2, 3, 4):
        queue.add(Item(number), 1.0, turn=number)
    assert (queue.turn, queue.oldest) == (2, 0.0)
    assert numbers(queue.close(1.0)) == [2, 3]
    assert queue.ready_at() == -math.inf
    assert queue.remove(late)
    assert queue.ready_at() == pytest.approx(1.1)
    assert numbers(queue.close(1.0)) == [4]
    assert queue.turn == math.inf
