"""DESIGN §4, Batching: with a weight, like inputs share a batch, and none is passed over by many."""

from __future__ import annotations

import random
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gworker.decorators import BatchSpec
from gworker.worker import batcher
from gworker.worker.batcher import OVERTAKEN, BatchQueue
from gworker.worker.packing import LIGHT, LIKE

LIGHTEST = 1000.0  # a `max_weight` of which one batch of the weights below is no small part
WEIGHTS = st.sampled_from([0.0, 1.0, 60.0, 70.0, 80.0, 100.0, 100.0, 120.0, 180.0, 250.0, 400.0, 2000.0])


class Item:
    """An input, told apart from others by identity."""

    def __init__(self, number: int, weight: float, cap: int = 0) -> None:
        self.number = number
        self.weight = weight
        self.cap = cap

    def __repr__(self) -> str:
        return f"#{self.number} of {self.weight:g}"


def queue_of(size: int, weights: list[float], *, max_weight: float = LIGHTEST) -> BatchQueue[Item]:
    queue: BatchQueue[Item] = BatchQueue(BatchSpec(max_batch_size=size, weight=len, max_weight=max_weight))
    for number, weight in enumerate(weights):
        queue.add(Item(number, weight), 0.0, weight=weight)
    return queue


def weights_of(batch: list[Item]) -> list[float]:
    return [item.weight for item in batch]


def go_together(batch: list[Item], size: int) -> bool:
    """Whether inputs may share a batch, by the definition."""
    heaviest, lightest = max(weights_of(batch)), min(weights_of(batch))
    caps = [item.cap for item in batch if item.cap]
    fits = len(batch) <= min([size, *caps]) and sum(weights_of(batch)) <= LIGHTEST
    return fits and (heaviest <= LIKE * lightest or heaviest * len(batch) <= LIGHT * LIGHTEST)


# --- against the definition --------------------------------------------------------------------------------------


@given(
    given_inputs=st.lists(st.tuples(WEIGHTS, st.sampled_from([0, 0, 0, 1, 2, 3])), min_size=1, max_size=25),
    size=st.integers(1, 6),
)
def test_a_batch_holds_its_oldest_input_and_as_many_like_it_as_fit(
    given_inputs: list[tuple[float, int]], size: int
) -> None:
    queue: BatchQueue[Item] = BatchQueue(BatchSpec(max_batch_size=size, weight=len, max_weight=LIGHTEST))
    waiting = [Item(number, weight, cap) for number, (weight, cap) in enumerate(given_inputs)]
    for item in waiting:
        queue.add(item, 0.0, weight=item.weight, cap=item.cap)
    while waiting:
        batch = queue.close(0.0)
        assert batch[0] is waiting[0]
        assert [item.number for item in batch] == sorted(item.number for item in batch)
        assert len(batch) == 1 or go_together(batch, size)
        waiting = [item for item in waiting if item not in batch]
        assert not any(go_together([*batch, item], size) for item in waiting)
        for item in batch:
            twins = [other for other in waiting if (other.weight, other.cap) == (item.weight, item.cap)]
            assert all(item.number < other.number for other in twins), "of equals the oldest go first"
    assert len(queue) == 0


@given(
    arrivals=st.lists(st.lists(st.tuples(WEIGHTS, st.booleans()), max_size=6), min_size=1, max_size=40),
    size=st.integers(1, 6),
    most_overtaken=st.integers(0, 2),
)
def test_no_input_is_passed_over_by_more_than_the_bound(
    arrivals: list[list[tuple[float, bool]]], size: int, most_overtaken: int
) -> None:
    queue: BatchQueue[Item] = BatchQueue(BatchSpec(max_batch_size=size, weight=len, max_weight=LIGHTEST))
    waiting: list[Item] = []
    overtaken: dict[int, int] = {}
    most, count = 0, 0
    with patch.object(batcher, "OVERTAKEN", most_overtaken):  # a low bound is met often
        while arrivals or waiting:
            for weight, hurried in arrivals.pop(0) if arrivals else []:
                item = Item(count, weight)
                count += 1
                waiting.append(item)
                queue.add(item, 0.0, weight=weight, deadline=1.0 if hurried else None)
            most = max(most, len(waiting))
            batch = queue.close(0.9)
            waiting = [item for item in waiting if item not in batch]
            for item in waiting:
                younger = sum(other.number > item.number for other in batch)
                overtaken[item.number] = overtaken.get(item.number, 0) + younger
                assert overtaken[item.number] <= most_overtaken * most + size
            if not waiting:
                most = 0
                assert len(queue) == 0
                queue = BatchQueue(BatchSpec(max_batch_size=size, weight=len, max_weight=LIGHTEST))


# --- one promise at a time ---------------------------------------------------------------------------------------


def test_like_inputs_share_a_batch_and_the_oldest_says_which() -> None:
    queue = queue_of(3, [100.0, 300.0, 10.0, 95.0, 290.0, 105.0, 310.0, 11.0, 12.0])
    batches = [weights_of(queue.close(0.0)) for _ in range(3)]
    assert batches == [[100.0, 95.0, 105.0], [300.0, 290.0, 310.0], [10.0, 11.0, 12.0]]


def test_what_is_nearest_goes_along() -> None:
    queue = queue_of(3, [100.0, 140.0, 70.0, 101.0, 99.0])
    assert weights_of(queue.close(0.0)) == [100.0, 101.0, 99.0]


def test_of_many_equals_the_oldest_go_along_whether_lighter_or_heavier() -> None:
    queue = queue_of(4, [100.0, *[99.0] * 5])
    assert [item.number for item in queue.close(0.0)] == [0, 1, 2, 3]
    queue = queue_of(4, [100.0, *[101.0] * 5])
    assert [item.number for item in queue.close(0.0)] == [0, 1, 2, 3]


def test_with_equal_weights_inputs_go_first_come_first_served() -> None:
    queue = queue_of(4, [7.0] * 10)
    assert [[item.number for item in queue.close(0.0)] for _ in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_batch_that_is_light_takes_unlike_inputs_too() -> None:
    queue = queue_of(8, [1.0, 20.0, 5.0])
    assert weights_of(queue.close(0.0)) == [1.0, 20.0, 5.0], "padded to 60, of 1000"
    queue = queue_of(8, [1.0, 40.0, 5.0])
    assert weights_of(queue.close(0.0)) == [1.0, 5.0], "padded to 120, of 1000"


def test_what_does_not_fit_lets_a_lighter_one_go_along() -> None:
    queue = queue_of(8, [600.0, 599.0, 500.0, 400.0])
    assert weights_of(queue.close(0.0)) == [600.0, 400.0]


def test_zero_weights_share_a_batch() -> None:
    queue = queue_of(3, [0.0] * 4)
    assert [len(queue.close(0.0)) for _ in range(2)] == [3, 1]


def test_an_input_that_a_stream_of_others_would_pass_over_for_ever_leaves_in_time() -> None:
    """Unlike old ones are before it, and for each of them come young ones that are like that one."""
    size, old = 8, 40
    queue = queue_of(size, [2.0**number for number in range(old)], max_weight=2.0**60)
    victim = Item(-1, 2.0**50)
    queue.add(victim, 0.0, weight=victim.weight)
    others, most = 0, 0
    for oldest in range(10 * old):
        for _ in range(size - 1):
            queue.add(Item(1000, 2.0**oldest), 0.0, weight=2.0 ** min(oldest, old))
        most = max(most, len(queue))
        batch = queue.close(0.0)
        if victim in batch:
            break
        others += len(batch)
    bound = old + OVERTAKEN * most + size
    assert OVERTAKEN * most < others <= bound, "the bound is what let it leave"


def test_a_stream_of_urgent_inputs_does_not_starve_one_without_a_deadline() -> None:
    queue = queue_of(4, [500.0])
    for round_number in range(100):
        now = float(round_number)
        for _ in range(4):
            queue.add(Item(1, 10.0), now, weight=10.0, deadline=now + 1)
        batch = queue.close(now + 0.9)
        if batch[0].weight == 500.0:
            break
    assert 4 * round_number <= OVERTAKEN * 5 + 4


def test_an_input_whose_time_is_half_over_goes_next() -> None:
    queue = queue_of(2, [100.0, 100.0, 100.0, 100.0])
    hurried = Item(9, 900.0)
    queue.add(hurried, 10.0, weight=900.0, deadline=14.0)
    assert hurried not in queue.close(11.9)
    assert queue.close(12.0) == [hurried]
    assert len(queue.close(12.0)) == 2


def test_an_input_that_was_removed_goes_with_no_batch_and_hurries_none() -> None:
    queue = queue_of(4, [100.0, 200.0])
    gone = Item(9, 100.0)
    queue.add(gone, 0.0, weight=100.0, deadline=1.0)
    assert queue.remove(gone)
    assert weights_of(queue.close(5.0)) == [100.0]
    assert weights_of(queue.close(5.0)) == [200.0]
    assert queue.close(5.0) == []


# --- how well it packs -------------------------------------------------------------------------------------------


def padding(spec: BatchSpec, waiting: int) -> float:
    """How many times its weight a worker computes when callers, of which so many wait, send again once answered."""
    rng = random.Random(7)
    queue: BatchQueue[Item] = BatchQueue(spec)

    def add() -> None:
        item = Item(0, min(256.0, max(3.0, rng.lognormvariate(2.8, 0.9))))
        queue.add(item, 0.0, weight=item.weight)

    for _ in range(waiting):
        add()
    padded = useful = 0.0
    for _ in range(40):
        weights = weights_of(queue.close(0.0))
        padded += max(weights) * len(weights)
        useful += sum(weights)
        for _ in weights:
            add()
    return padded / useful


@pytest.mark.parametrize(("waiting", "most"), [(128, 1.3), (512, 1.2)])
def test_mixed_texts_are_hardly_padded(waiting: int, most: float) -> None:
    assert padding(BatchSpec(max_batch_size=64, weight=len, max_weight=8192.0), waiting) < most
    assert padding(BatchSpec(max_batch_size=64), waiting) > 5
