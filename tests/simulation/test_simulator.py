"""The simulator itself: the same seed tells the same story, and a large pool is simulated at a reasonable speed."""

from __future__ import annotations

import time

import pytest

from tests.simulation.callers import Arrivals, Users, bursts, steady
from tests.simulation.scenarios import LIVENESS
from tests.simulation.simulator import Simulation


def story(seed: int) -> list[object]:
    simulation = Simulation(seed=seed, min_workers=2, probes=[LIVENESS], drain_timeout_s=5)
    simulation.world.crash_every_s = 30.0
    simulation.crash_now_and_then()
    Users(simulation, simulation.router(), bursts(3, 20, every_s=30, for_s=10))
    Arrivals(simulation, simulation.router(), steady(2), retries=1)
    simulation.run(60)
    simulation.rules.account()
    return [*simulation.happenings, *simulation.actions, simulation.outcomes]


def test_everything_follows_from_the_seed() -> None:
    assert story(1) == story(1)
    assert story(1) != story(2)


def test_calls_are_served_by_workers_that_come_and_go_with_them() -> None:
    simulation = Simulation(scaledown_window_s=10)
    users = Users(simulation, simulation.router(), steady(9))
    simulation.run(30)
    assert simulation.ready == 3
    users.stop()
    simulation.run(30)
    assert not simulation.processes
    assert simulation.outcomes["result"] == simulation.submitted > 100


@pytest.mark.slow
def test_a_thousand_workers_come_up_serve_and_survive_crashes() -> None:
    simulation = Simulation(min_workers=1000, max_workers=1000, drain_timeout_s=5)
    simulation.world.call_s = lambda dice: dice.uniform(5.0, 15.0)
    began = time.process_time()
    Users(simulation, simulation.router(), steady(3000), retries=1)
    simulation.run(5)
    assert simulation.ready == 1000
    simulation.crash(share=0.1)
    simulation.run(10)
    assert simulation.ready == 1000
    simulation.rules.account()
    assert simulation.outcomes["result"] > 2000
    assert time.process_time() - began < 20
