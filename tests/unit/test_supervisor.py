"""DESIGN §4: when a failed start or a lost worker is followed by another, and when there is no hope."""

from __future__ import annotations

import random

import pytest

from gworker.control.supervisor import RETRY_FAILED_S, Supervisor


class Ceiling(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


@pytest.mark.parametrize(("floor", "starts"), [(0, 3), (1, 3), (2, 6), (5, 15), (6, 18), (7, 20), (50, 20)])
def test_a_pool_whose_first_starts_all_failed_is_without_hope(floor: int, starts: int) -> None:
    supervisor = Supervisor(floor)
    for n in range(starts):
        assert not supervisor.failed
        supervisor.start_failed("boom", float(n))
    assert supervisor.failed
    assert supervisor.last_error == "boom"


def test_a_pool_without_hope_is_tried_again_every_minute_and_recovers() -> None:
    supervisor = Supervisor(0)
    for _ in range(3):
        supervisor.start_failed("boom", 100.0)
    assert supervisor.start_allowed_at == 100.0 + RETRY_FAILED_S
    supervisor.start_failed("boom", 160.0)
    assert supervisor.start_allowed_at == 160.0 + RETRY_FAILED_S
    supervisor.start_succeeded()
    assert not supervisor.failed
    assert supervisor.last_error is None


def test_once_a_worker_has_served_failed_starts_never_take_the_hope_away() -> None:
    supervisor = Supervisor(0)
    supervisor.start_succeeded()
    for _ in range(50):
        supervisor.start_failed("boom", 0.0)
    assert not supervisor.failed


def test_a_start_between_the_failures_starts_the_count_anew() -> None:
    supervisor = Supervisor(0)
    supervisor.start_failed("boom", 0.0)
    supervisor.start_failed("boom", 0.0)
    supervisor.start_succeeded()
    supervisor.start_failed("boom", 0.0)
    assert not supervisor.failed


def test_failed_starts_are_followed_by_ever_longer_waits() -> None:
    supervisor = Supervisor(10, Ceiling())
    waits = []
    for _ in range(5):
        supervisor.start_failed("boom", 0.0)
        waits.append(supervisor.start_allowed_at)
    assert waits == [0, 1, 2, 4, 8]


def test_a_worker_that_crashed_is_replaced_at_once_one_that_keeps_crashing_ever_later() -> None:
    supervisor = Supervisor(0, Ceiling())
    waits = []
    for _ in range(4):
        supervisor.lost(0.0)
        waits.append(supervisor.start_allowed_at)
    assert waits == [0, 1, 2, 4]
    assert supervisor.restarts == 4


def test_a_wait_that_was_decided_is_not_cut_short_by_a_later_event() -> None:
    supervisor = Supervisor(0)
    for _ in range(3):
        supervisor.start_failed("boom", 0.0)
    supervisor.lost(1.0)
    assert supervisor.start_allowed_at == RETRY_FAILED_S
