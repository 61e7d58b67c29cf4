"""DESIGN §4: when there is no hope, and how many workers probes may kill at once."""

from __future__ import annotations

import pytest

from gworker.control.supervisor import RETRY_FAILED_S, Hope, KillBudget


@pytest.mark.parametrize(("floor", "starts"), [(0, 3), (1, 3), (2, 6), (5, 15), (6, 18), (7, 20), (50, 20)])
def test_a_pool_whose_first_starts_all_failed_is_without_hope(floor: int, starts: int) -> None:
    hope = Hope(floor)
    for n in range(starts):
        assert not hope.lost
        hope.start_failed("boom", float(n))
    assert hope.lost
    assert hope.last_error == "boom"


def test_a_pool_without_hope_is_tried_again_every_minute_and_recovers() -> None:
    hope = Hope(0)
    for _ in range(3):
        hope.start_failed("boom", 100.0)
    assert hope.next_try_at == 100.0 + RETRY_FAILED_S
    hope.start_failed("boom", 160.0)
    assert hope.next_try_at == 160.0 + RETRY_FAILED_S
    hope.start_succeeded()
    assert not hope.lost
    assert hope.last_error is None


def test_once_a_worker_has_served_failed_starts_never_take_the_hope_away() -> None:
    hope = Hope(0)
    hope.start_succeeded()
    for _ in range(50):
        hope.start_failed("boom", 0.0)
    assert not hope.lost


def test_a_start_between_the_failures_starts_the_count_anew() -> None:
    hope = Hope(0)
    hope.start_failed("boom", 0.0)
    hope.start_failed("boom", 0.0)
    hope.start_succeeded()
    hope.start_failed("boom", 0.0)
    assert not hope.lost


def killing(*workers: int) -> KillBudget:
    budget = KillBudget()
    for number in workers:
        budget.kill(f"w{number}", number)
    return budget


@pytest.mark.parametrize(("size", "allowed"), [(1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (100, 10), (1000, 100)])
def test_a_tenth_of_the_pool_may_be_killed_at_once_and_one_in_any_case(size: int, allowed: int) -> None:
    assert KillBudget().allowance(size, 10.0, 0.0) == allowed
    assert killing(1).allowance(size, 10.0, 0.0) == allowed - 1


def test_a_kill_is_over_when_the_process_is_gone_and_its_place_is_ready_again() -> None:
    budget = killing(1)
    for present, ready, closed in [(["w1"], [1], False), (["w1"], [], False), ([], [], False), ([], [1], True)]:
        budget.settle(present, ready, [1, 2])
        assert (budget.allowance(10, 10.0, 0.0) == 1) is closed


def test_a_kill_is_over_when_its_place_is_not_wanted_any_more() -> None:
    budget = killing(1)
    budget.settle([], [], [2])
    assert budget.allowance(10, 10.0, 0.0) == 1


def test_when_more_than_half_fail_within_a_period_one_at_a_time_is_killed() -> None:
    budget = KillBudget()
    for number in range(20):
        budget.failed(f"w{number}", float(number) / 10)
    assert budget.allowance(40, 10.0, 2.0) == 4, "half of them"
    budget.failed("w20", 2.0)
    assert budget.allowance(40, 10.0, 2.0) == 1
    assert budget.allowance(40, 10.0, 20.0, condemned=1) == 1, "they still fail"
    assert budget.allowance(40, 10.0, 20.0) == 4, "that was longer ago than a period"
