"""DESIGN §4, Autoscaling: how many workers a pool keeps under loads of many shapes. Demand is per worker here."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gworker.control.pool import Stop
from tests.simulation.callers import Arrivals, Curve, Reports, Users, bursts, noise, sine, steady, steps
from tests.simulation.scenarios import simulated
from tests.simulation.simulator import Simulation


def directions(simulation: Simulation) -> str:
    """The runs of `desired`: "+-" where it went up, in however many steps, and then down."""
    sizes = [desired for _, desired in simulation.desired]
    signs = ["+" if after > before else "-" for before, after in itertools.pairwise(sizes)]
    return "".join(sign for sign, _ in itertools.groupby(signs))


def reported(curve: Curve, seconds: float, **options: Any) -> Simulation:
    """A pool with this demand for so long; one worker for each 10 inputs."""
    simulation = Simulation(target_inputs=10, max_inputs=10, **options)
    simulation.rules.exact_size = True
    Reports(simulation, curve)
    simulation.run(seconds)
    return simulation


@pytest.mark.parametrize("spread", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("level", [10, 20, 50])
def test_noise_round_a_threshold_changes_the_direction_twice_at_most_in_ten_minutes(level: int, spread: float) -> None:
    simulation = reported(noise(level + 0.5, spread, seed=20), 600)
    assert len(directions(simulation)) - 1 <= 2, simulation.desired
    assert len(simulation.desired) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("wander", [0.0, 1.0])
def test_a_wave_of_load_is_followed_once_up_and_once_down_a_period(wander: float) -> None:
    wave, ripple = sine(45, 40, period_s=900), noise(0, wander, seed=3)
    simulation = reported(lambda t: wave(t) + ripple(t), 3 * 900)
    assert directions(simulation) == "+-" * 3
    sizes = {desired for _, desired in simulation.desired}
    assert {1, 9} <= sizes


def test_a_wave_of_real_calls_is_served_throughout_and_followed_once_up_and_once_down() -> None:
    simulation = Simulation(target_inputs=10, max_inputs=10, scaledown_window_s=60)
    simulation.world.call_s = lambda dice: 2.0
    arrivals = Arrivals(simulation, simulation.router(), sine(12, 10, period_s=600))
    simulation.run(600)
    arrivals.stop()
    simulation.run(120)
    assert directions(simulation).strip("+-") == ""
    assert directions(simulation) == "+-"
    assert simulation.outcomes == {"result": simulation.submitted}


def test_workers_that_start_slowly_count_and_no_more_are_asked_for_however_long_the_queue_grows() -> None:
    simulation = Simulation(scaledown_window_s=30)
    simulation.world.start_s = lambda dice: 120.0
    simulation.rules.exact_size = True
    Users(simulation, simulation.router(), steady(30))
    simulation.run(110)
    assert simulation.staying == simulation.pool.autoscaler.desired == 10
    simulation.run(200)
    assert simulation.ready == 10
    assert sum(happening.action == "starting" for happening in simulation.happenings) == 10


def test_what_is_not_needed_any_more_before_it_has_come_up_goes_first() -> None:
    simulation = Simulation(scaledown_window_s=10)
    simulation.world.start_s = lambda dice: 1.0
    Users(simulation, simulation.router(), steady(3))
    simulation.run(20)
    simulation.world.start_s = lambda dice: 500.0
    Reports(simulation, steps((0, 30), (20, 0)))
    simulation.run(15)
    assert (simulation.ready, simulation.staying) == (1, 11)
    simulation.run(60)
    assert [w.id for w in simulation.pool.workers.values()] == ["Model-1"]
    assert simulation.outcomes.keys() == {"result"}


@pytest.mark.parametrize("floor", [0, 2])
def test_the_buffer_is_kept_while_there_is_demand_and_only_then(floor: int) -> None:
    simulation = reported(steps((10, 15), (100, 0)), 60, min_workers=floor, buffer_workers=3, scaledown_window_s=20)
    assert simulation.ready == 2 + 3
    simulation.run(100)
    assert simulation.staying == floor


def test_bursts_closer_than_the_window_keep_the_workers_and_single_ones_let_them_go() -> None:
    simulation = reported(bursts(2, 50, every_s=40, for_s=5), 600, scaledown_window_s=60)
    assert directions(simulation) == "+"
    simulation = reported(bursts(2, 50, every_s=150, for_s=5), 600, scaledown_window_s=60)
    assert directions(simulation) == "+-" * 4


def test_a_blip_shorter_than_a_second_starts_nothing_and_a_first_call_at_once() -> None:
    simulation = reported(steps((10.0, 5), (20.0, 500), (20.7, 5), (30, 5)), 60)
    assert [desired for _, desired in simulation.desired] == [0, 1]
    (first,) = [h for h in simulation.happenings if h.action == "starting"]
    assert first.at - 1010 < 0.5


@simulated
@given(seed=st.integers(0, 1000), floor=st.integers(0, 4), window_s=st.sampled_from([0.0, 5.0, 30.0]))
def test_the_size_follows_any_load_within_its_limits_and_nothing_that_serves_is_cut_short(
    seed: int, floor: int, window_s: float
) -> None:
    dice = random.Random(seed)
    levels = [(at * 10.0, dice.choice([0, 0, 3, 12, 40])) for at in range(12)]
    simulation = Simulation(
        seed=seed, min_workers=floor, max_workers=floor + 5, scaledown_window_s=window_s, drain_timeout_s=60
    )
    simulation.rules.exact_size = True
    simulation.world.call_s = lambda dice: dice.expovariate(0.3)
    Users(simulation, simulation.router(), steps(*levels, (120, 0)))
    simulation.run(120 + window_s + 60)
    assert simulation.outcomes.keys() <= {"result"}
    assert simulation.staying == floor
    stops = [action for _, action in simulation.actions if isinstance(action, Stop)]
    assert all(stop.reason == "scaled down" for stop in stops)
