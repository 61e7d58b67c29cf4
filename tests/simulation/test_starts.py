"""DESIGN §4, backoff and intensity: what becomes of a pool whose workers crash again and again, or do not come up."""

from __future__ import annotations

import itertools

import pytest

from gworker.control.backoff import FORGET_S, LONGEST_S
from gworker.control.slot import INTENSITY, PERIOD_S
from gworker.control.supervisor import RETRY_FAILED_S
from gworker.router.membership import PoolState
from tests.simulation.callers import Users, steady, steps
from tests.simulation.simulator import Simulation


def crash(simulation: Simulation, slot: int) -> None:
    """The worker of this place crashes, if there is one, and that is noticed."""
    worker = simulation.pool.workers.get(simulation.pool.slots[slot].worker_id or "")
    if worker is not None and worker.serving:
        simulation.kill(worker.actor, "exit code 1")
        simulation.run(0.1)


def test_a_place_that_restarts_five_times_is_held_a_minute_between_tries_while_the_others_serve_on() -> None:
    simulation = Simulation(min_workers=3)
    simulation.world.start_s = lambda dice: 0.5
    users = Users(simulation, simulation.router(), steady(6), retries=5)
    simulation.run(5)

    for _ in range(INTENSITY):
        assert simulation.run(10, until=lambda: simulation.ready == 3), "the first tries follow soon"
        crash(simulation, 1)
    tries = [simulation.now]
    for _ in range(5):
        assert simulation.run(90, until=lambda: simulation.ready == 3)
        crash(simulation, 1)
        tries.append(simulation.now)
        assert simulation.pool.view.state is PoolState.DEGRADED
        assert (simulation.ready, simulation.pool.view.failure) == (2, None)
    waits = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert all(LONGEST_S <= wait <= LONGEST_S + 2.0 for wait in waits), waits
    assert [s.restarts for s in simulation.pool.slots.values()] == [0, 10, 0]
    assert "degraded" in [h.action for h in simulation.happenings]
    users.stop()
    simulation.run(5)
    assert simulation.outcomes.keys() == {"result"}


def test_a_place_is_held_no_longer_than_its_restarts_are_recent() -> None:
    simulation = Simulation(min_workers=2)
    simulation.world.start_s = lambda dice: 0.5
    simulation.run(2)
    for _ in range(INTENSITY):
        assert simulation.run(10, until=lambda: simulation.ready == 2)
        crash(simulation, 0)
    assert simulation.pool.view.state is PoolState.DEGRADED
    assert simulation.run(LONGEST_S + 5, until=lambda: simulation.ready == 2)
    assert simulation.pool.view.state is PoolState.DEGRADED
    simulation.run(PERIOD_S)
    assert simulation.pool.view.state is PoolState.READY


@pytest.mark.parametrize(("healthy_s", "at_once"), [(FORGET_S - 60.0, False), (FORGET_S + 1.0, True)])
def test_ten_minutes_of_health_and_the_next_crash_is_as_the_first(healthy_s: float, at_once: bool) -> None:
    simulation = Simulation(min_workers=1)
    simulation.world.start_s = lambda dice: 0.5
    simulation.run(2)
    for _ in range(4):
        crash(simulation, 0)
        assert simulation.run(10, until=lambda: simulation.ready == 1)
    simulation.run(healthy_s)
    simulation.pool.slots[0]._backoff._rng.uniform = lambda a, b: b
    crash(simulation, 0)
    crashed = simulation.now
    assert simulation.run(70, until=lambda: simulation.ready == 1)
    assert (simulation.now - crashed < 1.0) is at_once


@pytest.mark.parametrize(("floor", "first"), [(0, 3), (1, 3), (4, 12), (10, 20)])
def test_a_pool_whose_first_starts_all_fail_is_failed_tells_callers_tries_once_a_minute_and_recovers(
    floor: int, first: int
) -> None:
    simulation = Simulation(min_workers=floor, capacity=10)
    simulation.world.start_s = lambda dice: 0.5
    simulation.world.start_fails = lambda dice: True
    Users(simulation, simulation.router(), steady(2))
    assert simulation.run(300, until=lambda: simulation.pool.view.state is PoolState.FAILED)
    assert simulation.pool.hope.failed_starts == first
    simulation.run(1)
    assert simulation.outcomes.keys() == {"StartupFailed"}, "those that waited"
    told = simulation.outcomes["StartupFailed"]
    while simulation.staying:  # those that were on their way
        simulation.run(1)
    tries = simulation.pool.hope.failed_starts
    simulation.run(5 * RETRY_FAILED_S + 5)
    assert 4 <= simulation.pool.hope.failed_starts - tries <= 5
    assert simulation.outcomes["StartupFailed"] > told + 100, "new ones at once"
    simulation.world.start_fails = lambda dice: False
    assert simulation.run(RETRY_FAILED_S + 5, until=lambda: simulation.ready >= max(1, floor))
    simulation.run(3)
    assert simulation.pool.view.failure is None
    assert simulation.outcomes["result"] > 0


def test_once_it_has_served_a_few_starts_that_fail_leave_it_hope_and_callers_wait() -> None:
    simulation = Simulation(min_workers=1)
    users = Users(simulation, simulation.router(), steady(2), retries=1)
    simulation.run(5)
    simulation.world.start_fails = lambda dice: True
    crash(simulation, 0)
    assert simulation.run(60, until=lambda: simulation.pool.hope.failed_starts == 3)
    assert simulation.pool.view.failure is None
    simulation.world.start_fails = lambda dice: False
    assert simulation.run(60, until=lambda: simulation.ready == 1)
    users.stop()
    simulation.run(5)
    assert simulation.outcomes.keys() == {"result"}


def test_what_failed_before_nobody_wanted_it_any_more_is_not_held_against_the_next_caller() -> None:
    simulation = Simulation(scaledown_window_s=10)
    simulation.world.start_s = lambda dice: 0.5
    simulation.world.start_fails = lambda dice: True
    router = simulation.router()
    router.submit()
    assert simulation.run(30, until=lambda: simulation.pool.view.state is PoolState.FAILED)
    simulation.run(20)
    assert simulation.outcomes == {"StartupFailed": 1}
    simulation.world.start_fails = lambda dice: False
    router.submit()
    simulation.run(5)
    assert simulation.outcomes == {"StartupFailed": 1, "result": 1}


def test_starts_that_fail_while_others_serve_fail_no_call_and_leave_the_pool_degraded() -> None:
    simulation = Simulation(min_workers=1, max_workers=3)
    users = Users(simulation, simulation.router(), steps((0, 1), (10, 12)))
    simulation.run(5)
    simulation.world.start_fails = lambda dice: True
    simulation.run(300)
    assert simulation.pool.view.state is PoolState.DEGRADED
    assert simulation.pool.view.failure is None
    users.stop()
    simulation.run(30)
    assert simulation.outcomes.keys() == {"result"}


def test_a_start_that_takes_too_long_has_failed() -> None:
    simulation = Simulation(startup_timeout_s=20)
    simulation.world.start_s = lambda dice: 50.0
    Users(simulation, simulation.router(), steps((0, 1), (1, 0)))
    assert simulation.run(65, until=lambda: simulation.pool.view.state is PoolState.FAILED)
    simulation.run(1)
    assert simulation.outcomes == {"StartupFailed": 1}
    assert "startup_timeout_s" in str(simulation.pool.view.failure)
    simulation.run(60)
    assert not simulation.processes


def test_what_could_not_be_placed_is_forgotten_with_the_demand_for_it() -> None:
    simulation = Simulation(capacity=0, scaledown_window_s=10)
    simulation.lacking = "needs GPU A100 x1; this cluster has none"
    router = simulation.router()
    router.submit()
    simulation.run(5)
    assert simulation.outcomes == {"Unschedulable": 1}
    simulation.run(30)
    assert not simulation.pool.slots
    simulation.lacking = None
    simulation.cluster.resize(1)
    router.submit()
    simulation.run(10)
    assert simulation.outcomes == {"Unschedulable": 1, "result": 1}, "a node has come meanwhile"
