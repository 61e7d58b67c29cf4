"""DESIGN §4, recovery: a controller may die at any moment; its successor goes on from what was written down."""

from __future__ import annotations

import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gworker.control.demands import DEMAND_EXPIRES_S
from gworker.control.pool import UNREADY_COUNTS_S, Pool, Start, Stop
from gworker.control.slot import INTENSITY
from gworker.control.supervisor import RETRY_FAILED_S
from gworker.probe import Verdict
from gworker.router.membership import Demand, PoolState
from tests.simulation.callers import Users, bursts, steady
from tests.simulation.processes import Answer
from tests.simulation.scenarios import FAULTS_S, LIVENESS, READINESS, Scenario, scenarios, simulated
from tests.simulation.simulator import Simulation
from tests.simulation.test_starts import crash


def succeed(pool: Pool, now: float, elapsed_s: float) -> Pool:
    """The pool that a successor makes of what this one has written down, so much later."""
    successor = Pool(pool.definition, now + elapsed_s, rng=random.Random(1))
    successor.restore(pickle.loads(pickle.dumps(pool.record(now))), elapsed_s, now + elapsed_s)
    return successor


@simulated
@given(scenarios(), st.floats(1.0, FAULTS_S), st.floats(0.0, 100.0))
def test_a_successor_knows_what_is_to_be_known_whatever_the_moment(
    scenario: Scenario, at: float, elapsed_s: float
) -> None:
    simulation = scenario.simulate().simulation
    simulation.run(at)
    pool, now = simulation.pool, simulation.now
    new, later = succeed(pool, now, elapsed_s), now + elapsed_s
    assert (new.autoscaler.desired, new.restarts, new.retired) == (pool.autoscaler.desired, pool.restarts, pool.retired)
    assert new.kills.open == pool.kills.open
    for what in ("failed_starts", "has_served", "last_error"):
        assert getattr(new.hope, what) == getattr(pool.hope, what)
    assert new.hope.next_try_at == pytest.approx(pool.hope.next_try_at)
    assert new.slots.keys() == pool.slots.keys()
    for number, slot in new.slots.items():
        old_slot = pool.slots[number]
        assert (slot.worker_id, slot.restarts, slot.reason) == (old_slot.worker_id, old_slot.restarts, old_slot.reason)
        assert slot.held(later) is old_slot.held(later)
        assert max(slot.start_allowed_at, now) == pytest.approx(max(old_slot.start_allowed_at, now))
        assert slot._backoff.failures == old_slot._backoff.failures
    assert new.workers.keys() == pool.workers.keys()
    for worker_id, worker in new.workers.items():
        old_worker = pool.workers[worker_id]
        assert (worker.slot, worker.number, worker.draining) == (
            old_worker.slot,
            old_worker.number,
            old_worker.draining,
        )
        assert worker.created == pytest.approx(old_worker.created)
        for since in ("ready_since", "unready_since"):
            known = getattr(old_worker, since)
            assert getattr(worker, since) == (None if known is None else pytest.approx(known))


@simulated
@given(scenarios(), st.floats(1.0, FAULTS_S), st.floats(0.0, 30.0), st.booleans())
def test_a_successor_restarts_no_worker_and_has_the_floor_again(
    scenario: Scenario, at: float, elapsed_s: float, survive: bool
) -> None:
    simulation = scenario.simulate().simulation
    simulation.run(at)
    before = simulation.pool
    new, now = succeed(before, simulation.now, elapsed_s), simulation.now + elapsed_s
    numbers = iter(range(10_000, 20_000))
    for worker in list(new.workers.values()):
        if worker.draining or not survive:
            (new.lost if worker.draining else new.start_failed)(worker, "it is gone", now)
        else:
            new.started(worker, worker.number, "node", now, adopted=True)
            for probe, _ in worker.health.failing:  # what was wrong with it is over
                for _ in range(probe.successes):
                    new.probed(worker, probe, Verdict.PASSED, 0.0, "", now)
    survivors = set(new.workers)
    assert len(survivors) == (sum(not w.draining for w in before.workers.values()) if survive else 0)
    heard_all = now + DEMAND_EXPIRES_S
    for _ in range(20 * 240):
        now += 0.25
        for action in new.plan(now):
            if isinstance(action, Stop):
                assert action.reason == "scaled down" and now >= heard_all
                new.lost(new.workers[action.worker_id], "drained", now)
            else:
                number = next(numbers)
                new.started(new.add(action.slot, f"Model-{number}", number, now), number, "node", now)
        assert now > heard_all or len(new.slots) <= max(before.autoscaler.desired, len(survivors)), "a needless start"
        if now > simulation.now + elapsed_s + 200:
            break
    assert len(new.workers) == scenario.floor, "nobody calls any more"
    kept = survivors & new.workers.keys()
    assert len(kept) == min(len(survivors), scenario.floor)


def with_a_stand_in(*, start_s: float) -> Simulation:
    """Four workers are wanted; one has not been ready for so long that a fifth has been asked for."""
    simulation = Simulation(min_workers=4, max_workers=8, probes=[READINESS])
    simulation.run(5)
    simulation.world.start_s = lambda dice: start_s
    (ill,) = simulation.pick(least=1)
    ill.ill = Answer.NO
    assert simulation.run(2 * UNREADY_COUNTS_S, until=lambda: simulation.staying == 5)
    return simulation


def adopt(pool: Pool, now: float, *, well: bool) -> None:
    """The workers that had come up are there as before; those that were not ready are again, if they are `well`."""
    for worker in pool.workers.values():
        if worker.pid is not None:
            pool.started(worker, worker.pid, "node", now, adopted=True)
            for probe, _ in worker.health.failing if well else ():
                pool.probed(worker, probe, Verdict.PASSED, 0.0, "", now)


def test_a_successor_with_too_many_workers_lets_one_go_when_it_knows_which_are_idle() -> None:
    simulation = with_a_stand_in(start_s=1.0)
    simulation.run(5)
    assert simulation.ready == 4
    now = simulation.now + 1.0
    pool = succeed(simulation.pool, simulation.now, 1.0)
    adopt(pool, now, well=True)
    idle, *busy = sorted(pool.workers.values(), key=lambda worker: worker.number)
    assert len(busy) == 4
    assert pool.plan(now) == []
    pool.report("router", Demand(0, 4, tuple((worker.id, 1) for worker in busy)), now + DEMAND_EXPIRES_S - 0.5)
    assert pool.plan(now + DEMAND_EXPIRES_S - 0.1) == []
    assert pool.plan(now + DEMAND_EXPIRES_S + 0.1) == [Stop(idle.id, "scaled down")], "the newest are busy"


def test_a_successor_lets_the_one_go_on_starting_that_stands_in_for_one_that_is_long_unready() -> None:
    simulation = with_a_stand_in(start_s=120.0)
    before = {worker.id: worker.state for worker in simulation.pool.workers.values()}
    assert sorted(before.values()) == ["READY", "READY", "READY", "STARTING", "UNREADY"]
    now = simulation.now + 1.0
    pool = succeed(simulation.pool, simulation.now, 1.0)
    adopt(pool, now, well=False)
    for tenths in range(200):
        assert pool.plan(now + tenths / 10) == []
    assert {worker.id: worker.state for worker in pool.workers.values()} == before


def restarted(simulation: Simulation, *, down_s: float = 1.5) -> None:
    """The controller dies, and its successor has taken over."""
    simulation.restart_controller(down_s=down_s)
    assert simulation.run(down_s + 20, until=lambda: simulation.up and simulation._restoring is None)


@pytest.mark.parametrize("window_s", [0, 60])
def test_a_successor_lets_nobody_go_before_it_has_heard_what_the_callers_need(window_s: float) -> None:
    simulation = Simulation(deployed=True, scaledown_window_s=window_s)
    simulation.world.call_s = lambda dice: dice.uniform(5.0, 10.0)
    Users(simulation, simulation.router(), steady(18))
    simulation.run(30)
    processes, actions = dict(simulation.processes), len(simulation.actions)
    assert len(processes) == 6
    for down_s in (1.4, 1.5, 1.6, 1.7):  # the callers report four times a second
        restarted(simulation, down_s=down_s)
        simulation.run(30)
    assert simulation.processes == processes
    assert simulation.actions[actions:] == []
    assert simulation.outcomes.keys() == {"result"}


@pytest.mark.parametrize("down_s", [0.1, 0.15, 0.2, 0.25])
def test_a_successor_of_a_retired_pool_lets_it_finish_what_still_waits(down_s: float) -> None:
    simulation = Simulation(deployed=True, max_workers=4)
    simulation.world.call_s = lambda dice: 2.0
    users = Users(simulation, simulation.router(), steady(30))
    simulation.run(30)
    assert simulation.ready == 4
    simulation.pool.retired = True
    users.stop()
    simulation.run(0.3)
    restarted(simulation, down_s=down_s)
    assert simulation.pool.retired
    simulation.run(30)
    assert sum(isinstance(action, Start) for _, action in simulation.actions) == 4, "no new ones"
    assert not simulation.processes
    assert simulation.outcomes == {"result": simulation.submitted}


def test_a_worker_that_crashed_while_there_was_no_controller_is_a_crash_and_no_failed_start() -> None:
    simulation = Simulation(deployed=True, min_workers=2)
    simulation.run(10)
    simulation.restart_controller(down_s=2)
    simulation.crash(least=1)
    simulation.run(10)
    assert simulation.ready == 2
    assert "crashed" in [h.action for h in simulation.happenings]
    assert "failed to start" not in [h.action for h in simulation.happenings]
    assert (simulation.pool.restarts, simulation.pool.hope.failed_starts) == (1, 0)


def test_health_counts_from_when_a_worker_came_up_not_from_when_it_was_taken_over() -> None:
    simulation = Simulation(deployed=True, min_workers=1)
    simulation.world.start_s = lambda dice: 0.5
    simulation.run(2)
    for _ in range(4):
        assert simulation.run(10, until=lambda: simulation.ready == 1)
        crash(simulation, 0)
    simulation.run(700)
    restarted(simulation)
    simulation.run(5)
    crash(simulation, 0)
    assert simulation.run(1, until=lambda: simulation.ready == 1), "after ten good minutes at once"


def test_a_place_that_is_held_stays_held() -> None:
    simulation = Simulation(deployed=True, min_workers=2)
    simulation.world.start_s = lambda dice: 0.5
    for _ in range(INTENSITY):
        assert simulation.run(10, until=lambda: simulation.ready == 2)
        crash(simulation, 0)
    crashed = simulation.now
    restarted(simulation)
    assert simulation.pool.view.state is PoolState.DEGRADED
    assert simulation.run(90, until=lambda: simulation.ready == 2)
    assert 59 < simulation.now - crashed < 63


def test_a_pool_without_hope_is_not_tried_more_often_because_its_controller_dies() -> None:
    simulation = Simulation(deployed=True, min_workers=1)
    simulation.world.start_s = lambda dice: 0.5
    simulation.world.start_fails = lambda dice: True
    assert simulation.run(60, until=lambda: simulation.pool.view.state is PoolState.FAILED)
    simulation.run(1)  # it is written down
    for _ in range(5):
        restarted(simulation)
        assert simulation.pool.view.state is PoolState.FAILED
        simulation.run(5)
    assert simulation.pool.hope.failed_starts == 3
    assert simulation.run(RETRY_FAILED_S, until=lambda: simulation.pool.hope.failed_starts == 4)


def test_the_kills_under_way_count_for_the_successor_too() -> None:
    simulation = Simulation(deployed=True, min_workers=5, max_workers=5, probes=[LIVENESS], drain_timeout_s=5)
    simulation.run(10)
    simulation.world.start_s = lambda dice: 60.0
    simulation.world.answer = lambda process, probe: Answer.NO
    simulation.run(15)
    assert simulation.rules.kills == 1
    restarted(simulation)
    simulation.run(30)
    assert simulation.rules.kills == 1, "the place of the first has no worker yet"


def test_calls_go_on_while_there_is_no_controller() -> None:
    simulation = Simulation(deployed=True, min_workers=3, scaledown_window_s=10)
    users = Users(simulation, simulation.router(), bursts(5, 20, every_s=20, for_s=10))
    for down_s in (0.5, 3, 30, 3):
        simulation.run(20)
        before = simulation.outcomes["result"]
        simulation.restart_controller(down_s=down_s)
        simulation.run(down_s)
        assert simulation.outcomes["result"] > before
    users.stop()
    simulation.run(60)
    assert simulation.outcomes == {"result": simulation.submitted}
    assert simulation.ready == 3
    assert simulation.pool.restarts == 0
