"""DESIGN §4: whatever goes wrong, no call is lost without a word, and the floor comes back once nothing goes wrong."""

from __future__ import annotations

import pytest
from hypothesis import given

from gworker.control.demands import DEMAND_EXPIRES_S
from tests.simulation.callers import LEASE_S, Reports, Users, steady, steps
from tests.simulation.scenarios import FAULTS_S, LASTS_S, Fault, Scenario, scenarios, simulated
from tests.simulation.simulator import Simulation


def lived_through(scenario: Scenario) -> Simulation:
    """The scenario to its end: the floor is back, and after the last call everybody has an answer."""
    scene = scenario.simulate()
    simulation = scene.simulation
    simulation.run(FAULTS_S + LASTS_S)
    back = simulation.run(
        scene.repaired_within_s, until=lambda: simulation.up and simulation.ready >= simulation.pool.autoscaler.desired
    )
    assert back, f"not within {scene.repaired_within_s:g} s after the last fault"
    assert simulation.ready >= scenario.floor
    scene.rest()
    assert simulation.run(120, until=lambda: not any(router.live for router in simulation.routers))
    simulation.rules.account()
    assert sum(simulation.outcomes.values()) == simulation.submitted
    return simulation


@simulated
@given(scenarios())
def test_the_floor_comes_back_and_every_call_has_ended_whatever_went_wrong(scenario: Scenario) -> None:
    lived_through(scenario)


@simulated
@given(scenarios(faults=(Fault.CRASH, Fault.CRASHES, Fault.SLOW_STARTS, Fault.SHORTAGE)))
def test_where_only_workers_are_lost_calls_end_in_results_and_lost_workers(scenario: Scenario) -> None:
    assert lived_through(scenario).outcomes.keys() <= {"result", "WorkerLost"}


@simulated
@given(scenarios(faults=(Fault.SLOW_STARTS, Fault.SHORTAGE, Fault.ALL_LOST, Fault.CONTROLLER)))
def test_where_no_worker_is_lost_every_call_ends_in_a_result(scenario: Scenario) -> None:
    assert lived_through(scenario).outcomes.keys() <= {"result"}


def test_to_zero_and_back_again_and_again_without_losing_a_call() -> None:
    simulation = Simulation(scaledown_window_s=5, drain_timeout_s=30)
    simulation.world.call_s = lambda dice: dice.uniform(0.1, 8.0)
    router = simulation.router()
    sizes = []
    for _ in range(10):
        users = Users(simulation, router, steady(simulation.dice.randint(1, 40)))
        simulation.run(simulation.dice.uniform(1, 10))
        sizes.append(simulation.staying)
        users.stop()
        simulation.run(simulation.dice.uniform(12, 20))
        sizes.append(simulation.staying)
    simulation.run(30)
    assert min(sizes[::2]) > 0
    assert set(sizes[1::2]) == {0}
    assert simulation.outcomes["result"] == simulation.submitted
    assert not simulation.processes


def test_callers_without_retries_lose_exactly_the_calls_that_ran_in_the_worker_that_crashed() -> None:
    simulation = Simulation(min_workers=3)
    simulation.world.call_s = lambda dice: 60.0
    once, twice = simulation.router(), simulation.router()
    for router, retries in ((once, 0), (twice, 1)):
        Users(simulation, router, steps((10, 4), (15, 0)), retries=retries)
    simulation.run(20)
    (victim,) = simulation.pick(least=1)
    lost = sum(call.router is once for call in victim.calls)
    assert 0 < lost < len(victim.calls)
    simulation.kill(victim, "exit code 1")
    simulation.run(300)
    assert simulation.outcomes == {"result": 8 - lost, "WorkerLost": lost}


def test_what_a_caller_that_died_without_a_word_wanted_is_forgotten_soon() -> None:
    simulation = Simulation(scaledown_window_s=5)
    simulation.world.call_s = lambda dice: 1000.0
    router = simulation.router()
    Users(simulation, router, steady(20))
    simulation.run(20)
    assert simulation.staying == 7
    router.die()
    simulation.run(DEMAND_EXPIRES_S + 5 + 1)
    assert simulation.staying == 0
    simulation.run(LEASE_S + 5)
    assert not simulation.processes, "its calls are cancelled, and hold up no drain"
    assert simulation.outcomes == {"caller gone": 20}


@pytest.mark.parametrize("may_grow", [False, True])
def test_where_the_cluster_is_short_of_room_calls_wait_and_the_pool_grows_with_it(may_grow: bool) -> None:
    simulation = Simulation(capacity=2, cluster_may_grow=may_grow)
    simulation.rules.exact_size = True
    Users(simulation, simulation.router(), steady(30))
    simulation.run(60)
    assert simulation.ready == 2
    assert simulation.staying == (10 if may_grow else 2), "only where more nodes may come is more asked for than fits"
    simulation.cluster.resize(6)
    simulation.run(10)
    assert simulation.ready == 6
    simulation.cluster.resize(100)
    simulation.run(10)
    assert simulation.ready == simulation.pool.autoscaler.desired == 10
    assert simulation.outcomes.keys() == {"result"}


def test_the_floor_is_asked_for_though_there_is_no_room_and_is_there_as_soon_as_there_is() -> None:
    simulation = Simulation(capacity=1, min_workers=4)
    simulation.run(60)
    assert (simulation.ready, simulation.staying) == (1, 4)
    assert "waiting for" in simulation.pool.waiting_for(simulation.now)
    simulation.cluster.resize(4)
    simulation.run(5)
    assert simulation.ready == 4


def test_the_floor_stands_through_crashes_drains_and_scaling() -> None:
    simulation = Simulation(min_workers=3, max_workers=12, scaledown_window_s=5, drain_timeout_s=5)
    Reports(simulation, steps((10, 40), (30, 0), (60, 40), (90, 0)))
    simulation.world.crash_every_s = 40.0
    simulation.crash_now_and_then()
    simulation.run(150)  # the rules see that no place of the floor is ever missing
    simulation.world.crash_every_s = 1e9
    assert simulation.run(90, until=lambda: simulation.ready == 3)
