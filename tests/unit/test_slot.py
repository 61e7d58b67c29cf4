"""DESIGN §4, backoff and intensity of one place: 5 restarts in 300 s, then held at the longest backoff."""

from __future__ import annotations

import random

import pytest

from gworker.control.backoff import FORGET_S, LONGEST_S
from gworker.control.slot import INTENSITY, PERIOD_S, Slot


class Ceiling(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


def failing(times: int, now: float = 0.0) -> Slot:
    slot = Slot(3, Ceiling())
    for _ in range(times):
        slot.failed("boom", now)
    return slot


def test_it_is_filled_again_at_once_then_ever_later_then_held() -> None:
    waits = [failing(n).start_allowed_at for n in range(1, 7)]
    assert waits == [0, 1, 2, 4, LONGEST_S, LONGEST_S]


def test_a_failure_empties_the_place_and_is_counted_with_its_reason() -> None:
    slot = failing(1)
    slot.worker_id = "w1"
    slot.failed("out of memory", 1.0)
    assert (slot.worker_id, slot.restarts, slot.reason) == (None, 2, "out of memory")


def test_it_is_held_while_five_restarts_lie_within_five_minutes() -> None:
    slot = failing(INTENSITY - 1)
    assert not slot.held(0.0)
    slot.failed("boom", 10.0)
    assert slot.held(10.0)
    assert slot.held(PERIOD_S - 0.1)
    assert not slot.held(PERIOD_S)


def test_restarts_that_are_far_apart_hold_nothing() -> None:
    slot = Slot(0, Ceiling())
    for n in range(20):
        slot.failed("boom", n * 80.0)
        assert not slot.held(n * 80.0)


def test_ten_minutes_of_health_make_a_clean_record() -> None:
    slot = failing(4)
    slot.failed("boom", 1000.0, healthy_s=FORGET_S)
    assert slot.start_allowed_at == 1000.0


def test_a_wait_that_was_decided_is_not_cut_short_by_a_later_event() -> None:
    slot = failing(5)
    slot.failed("boom", 1000.0, healthy_s=FORGET_S)
    slot.start_allowed_at = 5000.0
    slot.failed("boom", 1001.0)
    assert slot.start_allowed_at == 5000.0


@pytest.mark.parametrize("elapsed_s", [0.0, 2.0, 1000.0])
def test_a_successor_goes_on_with_what_was_written_down(elapsed_s: float) -> None:
    slot = failing(5, now=100.0)
    slot.worker_id = "w7"
    record = slot.record(110.0)
    restored = Slot.restored(record, elapsed_s, 7.0)
    assert (restored.number, restored.worker_id, restored.restarts, restored.reason) == (3, "w7", 5, "boom")
    assert restored.start_allowed_at == pytest.approx(7.0 + 50.0 - elapsed_s)
    assert restored.held(7.0) is (elapsed_s < PERIOD_S - 10.0)
    restored._backoff._rng = Ceiling()
    assert restored._backoff.next_delay_s() == 16.0, "the sixth failure in a row"
