"""DESIGN §4, passive health: five system errors in a row take a worker out for 30 s x n, 300 s at most."""

from __future__ import annotations

import itertools

import pytest

from gworker.control.health import EJECTION_S, ERRORS_IN_A_ROW, LONGEST_EJECTION_S
from gworker.router.membership import Demand
from tests.simulation.callers import Users, steady
from tests.simulation.simulator import Simulation


def spoilt(workers: int, bad: int, *, level: int = 12) -> Simulation:
    """A pool in which calls to the first so many workers end in system errors."""
    simulation = Simulation(min_workers=workers, max_workers=workers)  # no room for stand-ins
    simulation.world.start_s = lambda dice: 1.0
    simulation.world.spoils = lambda process: process.number <= bad
    simulation.run(5)
    Users(simulation, simulation.router(), steady(level))
    return simulation


def ejections(simulation: Simulation, worker: str) -> list[float]:
    return [h.at for h in simulation.happenings if (h.worker, h.action) == (worker, "ejected")]


def test_a_worker_that_spoils_its_calls_is_out_for_longer_and_longer_and_costs_few_calls() -> None:
    simulation = spoilt(4, 1)
    simulation.world.call_s = lambda dice: dice.uniform(1.0, 3.0)
    simulation.run(3000)
    lengths = [later - earlier for earlier, later in itertools.pairwise(ejections(simulation, "Model-1"))]
    for n, length in enumerate(lengths, start=1):
        assert length == pytest.approx(min(EJECTION_S * n, LONGEST_EJECTION_S), abs=5.0), lengths
    assert len(lengths) >= 12
    assert simulation.outcomes["system error"] <= (len(lengths) + 2) * (ERRORS_IN_A_ROW + 4)
    assert simulation.outcomes["result"] > 10_000
    assert simulation.pool.restarts == 0, "it is not killed for it"


def test_one_that_is_well_again_is_used_again_after_its_time() -> None:
    simulation = spoilt(4, 1)
    simulation.run(20)
    simulation.world.spoils = lambda process: False
    simulation.run(40)
    assert len(ejections(simulation, "Model-1")) == 1
    first = next(process for process in simulation.alive() if process.number == 1)
    assert first.succeeded > 0


def test_where_most_are_out_they_are_used_all_the_same() -> None:
    simulation = spoilt(4, 3)
    simulation.run(20)
    assert simulation.ready == 1
    assert sum(worker.ready for worker in simulation.pool.view.workers) == 4
    assert "panic" in [h.action for h in simulation.happenings]


def test_what_a_worker_did_wrong_before_it_was_taken_out_does_not_take_it_out_again() -> None:
    """In a panic it stays in use, so that its router goes on telling of the same old errors."""
    simulation = spoilt(1, 1, level=ERRORS_IN_A_ROW)
    assert simulation.run(5, until=lambda: bool(ejections(simulation, "Model-1")))
    simulation.world.call_s = lambda dice: 1000.0
    simulation.run(200)
    assert len(ejections(simulation, "Model-1")) == 1
    assert simulation.ready == 1


def told(simulation: Simulation, router: str, in_a_row: int, *, running: int = 1) -> None:
    worker_id = next(iter(simulation.pool.workers))
    errors = ((worker_id, in_a_row),) if in_a_row else ()
    simulation.report(router, Demand(0, running, errors=errors))
    simulation.run(0.25)


def test_a_row_that_an_answer_ended_is_not_added_to_those_of_other_routers() -> None:
    simulation = Simulation(min_workers=2)
    simulation.run(5)
    told(simulation, "a", 4)
    told(simulation, "a", 0)
    told(simulation, "b", 4)
    assert simulation.ready == 2
    told(simulation, "b", 5)
    assert simulation.ready == 1


def test_the_row_of_a_router_that_is_gone_is_forgotten() -> None:
    simulation = Simulation(min_workers=2)
    simulation.run(5)
    told(simulation, "a", 4)
    simulation.run(40)
    told(simulation, "b", 4)
    assert simulation.ready == 2


def test_rows_of_several_routers_that_still_stand_add_up() -> None:
    simulation = Simulation(min_workers=2)
    simulation.run(5)
    told(simulation, "a", 3)
    told(simulation, "b", 2)
    assert simulation.ready == 1
