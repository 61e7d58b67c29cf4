"""DESIGN §4, Autoscaling: how many workers a pool should have, from demand and time alone."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gworker.control.autoscaler import SUSTAIN_S, Autoscaler, ScalePolicy

TICK_S = 0.25


def autoscaler(**changes: Any) -> Autoscaler:
    numbers = {"min_workers": 0, "max_workers": 100, "buffer_workers": 0, "target_inputs": 10, "window_s": 60.0}
    return Autoscaler(ScalePolicy(**{**numbers, **changes}))


def run(scaler: Autoscaler, demand: int, start: float, seconds: float) -> list[int]:
    """Tick with the same demand for a while; what was desired at each tick."""
    return [scaler.tick(demand, start + n * TICK_S) for n in range(round(seconds / TICK_S) + 1)]


@given(
    demand=st.integers(0, 10_000),
    target=st.integers(1, 300),
    buffer=st.integers(0, 5),
    floor=st.integers(0, 10),
    above=st.integers(0, 200),
)
def test_the_need_is_demand_over_target_plus_buffer_within_the_limits(
    demand: int, target: int, buffer: int, floor: int, above: int
) -> None:
    scaler = autoscaler(target_inputs=target, buffer_workers=buffer, min_workers=floor, max_workers=floor + above)
    wanted = math.ceil(demand / target) + (buffer if demand else 0)
    assert scaler.need(demand) == min(max(wanted, floor), floor + above)


@given(
    demands=st.lists(st.integers(0, 500), max_size=60),
    floor=st.integers(0, 3),
    above=st.integers(0, 20),
    window_s=st.sampled_from([0.0, 1.0, 5.0]),
)
def test_the_size_is_always_within_the_limits(demands: list[int], floor: int, above: int, window_s: float) -> None:
    scaler = autoscaler(min_workers=floor, max_workers=floor + above, window_s=window_s)
    for n, demand in enumerate(demands):
        assert floor <= scaler.tick(demand, n * TICK_S) <= floor + above


def test_from_zero_workers_it_grows_at_once() -> None:
    assert autoscaler().tick(35, 0.0) == 4


def test_buffer_workers_are_kept_only_while_there_is_demand() -> None:
    scaler = autoscaler(buffer_workers=2, window_s=5.0)
    assert scaler.tick(0, 0.0) == 0
    assert scaler.tick(1, 1.0) == 3
    assert run(scaler, 0, 1.25, 10.0)[-1] == 0


def test_from_one_worker_on_it_grows_when_the_need_has_lasted_a_second() -> None:
    scaler = autoscaler()
    run(scaler, 5, 0.0, 3.0)
    desired = run(scaler, 35, 3.25, SUSTAIN_S + TICK_S)
    assert desired[0] == 1
    assert desired[-1] == 4
    assert desired.index(4) * TICK_S == pytest.approx(SUSTAIN_S, abs=TICK_S)


def test_a_floor_does_not_grow_on_the_first_tick_of_its_life() -> None:
    scaler = autoscaler(min_workers=1)
    assert scaler.tick(35, 0.0) == 1
    assert run(scaler, 35, 0.25, SUSTAIN_S)[-1] == 4


def test_it_grows_to_what_was_needed_throughout_not_to_the_peak() -> None:
    scaler = autoscaler()
    run(scaler, 5, 0.0, 3.0)
    desired = [scaler.tick(demand, 3.25 + n * TICK_S) for n, demand in enumerate((35, 95, 35, 95, 35, 95))]
    assert max(desired) == 4


def test_a_peak_shorter_than_a_second_does_not_grow_it() -> None:
    scaler = autoscaler()
    run(scaler, 5, 0.0, 3.0)
    run(scaler, 95, 3.25, SUSTAIN_S - 2 * TICK_S)
    assert run(scaler, 5, 4.0, 5.0) == [1] * 21


def test_it_shrinks_only_after_the_window_without_need() -> None:
    scaler = autoscaler(window_s=5.0)
    assert run(scaler, 35, 0.0, 2.0)[-1] == 4
    desired = run(scaler, 0, 2.25, 8.0)
    gone = desired.index(0) * TICK_S + 2.25
    assert desired[0] == 4
    assert gone == pytest.approx(2.0 + 5.0, abs=2 * TICK_S)


def test_it_shrinks_to_the_highest_need_within_the_window() -> None:
    scaler = autoscaler(window_s=5.0)
    run(scaler, 95, 0.0, 2.0)
    desired = [scaler.tick(25 if n == 12 else 5, 2.25 + n * TICK_S) for n in range(24)]
    assert desired[-1] == 3


def test_need_within_the_window_keeps_the_workers() -> None:
    scaler = autoscaler(window_s=5.0)
    for second in range(60):
        assert scaler.tick(35 if second % 4 == 0 else 0, float(second)) == 4


def test_a_gap_between_ticks_is_not_taken_for_a_window_without_need() -> None:
    scaler = autoscaler(window_s=60.0)
    assert scaler.tick(35, 0.0) == 4
    assert scaler.tick(0, 1000.0) == 4, "until this tick the last that was known is that four were needed"


def test_without_a_window_it_shrinks_soon() -> None:
    scaler = autoscaler(window_s=0.0)
    run(scaler, 35, 0.0, 2.0)
    assert run(scaler, 0, 2.25, SUSTAIN_S + TICK_S)[-1] == 0


def test_it_does_not_flap_on_a_noisy_demand() -> None:
    """Ten minutes of a demand that wanders between 3 and 7 workers, with spikes: few changes, never too few workers."""
    rng = random.Random(20)
    scaler = autoscaler(window_s=60.0)
    sizes, lasting = [], []
    level = 50.0
    for n in range(2400):
        level = min(70.0, max(30.0, level + rng.gauss(0.0, 1.0)))
        demand = max(0, round(level + rng.gauss(0.0, 8.0) + (300 if rng.random() < 0.01 else 0)))
        sizes.append(scaler.tick(demand, n * TICK_S))
        lasting.append(demand)
    changes = sum(a != b for a, b in itertools.pairwise(sizes))
    assert changes <= 30, f"{changes} changes in ten minutes"
    # A spike of one tick starts no workers; what lasted a second is always served.
    assert max(sizes) <= 10
    for n in range(8, 2400):
        assert sizes[n] >= math.ceil(min(lasting[n - 5 : n + 1]) / 10)


def policy(**changes: Any) -> ScalePolicy:
    return ScalePolicy(**{"buffer_workers": 0, "target_inputs": 1, "window_s": 60.0, **changes})


def test_other_bounds_hold_at_once() -> None:
    scaler = Autoscaler(policy(min_workers=0, max_workers=4))
    assert scaler.tick(8, 0.0) == 4
    scaler.rescale(policy(min_workers=0, max_workers=2))
    assert scaler.desired == 2, "no window is waited for"
    scaler.rescale(policy(min_workers=3, max_workers=8))
    assert scaler.tick(0, 1.0) == 3
    scaler.rescale(policy(min_workers=0, max_workers=8, window_s=0.0))
    assert scaler.tick(0, 2.0) == 0
    idle = Autoscaler(policy(min_workers=0, max_workers=4, floor_when_idle=False))
    idle.rescale(policy(min_workers=2, max_workers=4, floor_when_idle=False))
    assert idle.desired == 0, "one of many sets of parameter values has its floor only while it is used"
