"""DESIGN §4, backoff: 0, then 1 s doubling to 60 s with full jitter; forgotten after 600 s of health."""

from __future__ import annotations

import random

import pytest

from gworker.control.backoff import FORGET_S, LONGEST_S, Backoff


class Ceiling(random.Random):
    """Always the longest delay there may be."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_the_first_try_is_at_once_then_the_longest_wait_doubles_up_to_a_minute() -> None:
    backoff = Backoff(Ceiling())
    assert [backoff.next_delay_s(0.0) for _ in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff.failures == 9


@pytest.mark.parametrize("failures", [2, 3, 5, 30])
def test_jitter_is_full_it_spreads_from_nothing_to_the_longest_wait(failures: int) -> None:
    longest = min(LONGEST_S, 2.0 ** (failures - 2))
    delays = []
    for seed in range(300):
        backoff = Backoff(random.Random(seed))
        delays.append([backoff.next_delay_s(0.0) for _ in range(failures)][-1])
    assert all(0 <= delay <= longest for delay in delays)
    assert min(delays) < 0.05 * longest and max(delays) > 0.95 * longest
    assert sum(delays) / len(delays) == pytest.approx(longest / 2, rel=0.1)


def test_a_failure_after_ten_minutes_of_health_starts_with_a_clean_record() -> None:
    backoff = Backoff(Ceiling())
    for _ in range(5):
        backoff.next_delay_s(0.0)
    assert backoff.next_delay_s(FORGET_S) == 0.0
    assert backoff.failures == 1


def test_a_failure_just_before_that_does_not() -> None:
    backoff = Backoff(Ceiling())
    for _ in range(5):
        backoff.next_delay_s(0.0)
    assert backoff.next_delay_s(FORGET_S - 1) == 16.0


def test_a_long_series_of_failures_stays_finite() -> None:
    backoff = Backoff(Ceiling())
    assert [backoff.next_delay_s() for n in range(5000)][-1] == LONGEST_S
