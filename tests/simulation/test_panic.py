"""DESIGN §4, readiness and panic: who is routed to when probes fail, and how much capacity is kept."""

from __future__ import annotations

from typing import Any

import pytest

from gworker.control.pool import UNREADY_COUNTS_S
from gworker.probe import Probe
from tests.simulation.callers import Users, steady
from tests.simulation.processes import Answer, Process
from tests.simulation.simulator import Simulation

WARM = Probe.on("warm", kind="readiness", period_s=2, timeout_s=1, failures=2)


def pool_of(workers: int, **options: Any) -> Simulation:
    simulation = Simulation(min_workers=workers, max_workers=5 * workers, probes=[WARM], **options)
    simulation.run(5)
    assert simulation.ready == workers
    return simulation


def routable(simulation: Simulation) -> set[str]:
    return {worker.id for worker in simulation.pool.view.workers if worker.ready}


def make_ill(simulation: Simulation, answer: Answer, count: int) -> list[Process]:
    ill = simulation.alive()[:count]
    for process in ill:
        process.ill = answer
    simulation.run(10)
    return ill


def names(processes: list[Process]) -> set[str]:
    return {process.id for process in processes}


def test_one_that_says_it_is_not_ready_gets_no_calls_until_it_says_otherwise() -> None:
    simulation = pool_of(4)
    Users(simulation, simulation.router(), steady(8))
    (ill,) = make_ill(simulation, Answer.NO, 1)
    served = ill.succeeded
    simulation.run(10)
    assert ill.succeeded == served
    ill.ill = None
    simulation.run(10)
    assert ill.succeeded > served
    assert simulation.outcomes.keys() == {"result"}


@pytest.mark.parametrize(("silent", "used"), [(1, False), (2, False), (3, True), (4, True)])
def test_workers_that_only_fell_silent_are_used_while_fewer_than_half_are_ready(silent: int, used: bool) -> None:
    simulation = pool_of(4)
    ill = make_ill(simulation, Answer.HANGS, silent)
    assert simulation.ready == 4 - silent
    assert routable(simulation) & names(ill) == (names(ill) if used else set())
    assert [h.action for h in simulation.happenings].count("panic") == used


@pytest.mark.parametrize("refusing", [1, 3, 4])
def test_those_that_said_no_are_never_used_however_few_are_left(refusing: int) -> None:
    simulation = pool_of(4)
    ill = make_ill(simulation, Answer.NO, refusing)
    assert not routable(simulation) & names(ill)


def test_one_that_said_no_and_then_fell_silent_has_not_taken_it_back() -> None:
    simulation = pool_of(4)
    ill = make_ill(simulation, Answer.NO, 3)
    for process in ill:
        process.ill = Answer.HANGS
    simulation.run(15)
    assert not routable(simulation) & names(ill)
    ill[0].ill = None
    simulation.run(5)
    assert routable(simulation) & names(ill) == {ill[0].id}


def test_one_that_said_no_long_ago_and_was_well_since_may_fall_silent_like_any_other() -> None:
    simulation = pool_of(4)
    ill = make_ill(simulation, Answer.NO, 3)
    for answer in (None, Answer.HANGS):
        for process in ill:
            process.ill = answer
        simulation.run(10)
    assert simulation.ready == 1
    assert len(routable(simulation)) == 4


def test_a_question_that_was_never_asked_proves_nothing() -> None:
    simulation = pool_of(4)
    make_ill(simulation, Answer.LOST, 4)
    assert simulation.ready == 4


def test_a_busy_worker_is_not_taken_for_dead_because_its_probe_waits() -> None:
    simulation = pool_of(2)
    Users(simulation, simulation.router(), steady(6))
    simulation.run(5)
    for process in simulation.alive():
        process.ill = Answer.HANGS
    simulation.run(60)
    assert simulation.ready == 2


def test_a_worker_that_is_long_unready_is_made_up_for_until_it_is_back() -> None:
    simulation = pool_of(4)
    (ill,) = make_ill(simulation, Answer.NO, 1)
    assert simulation.staying == 4
    simulation.run(UNREADY_COUNTS_S)
    assert (simulation.ready, simulation.staying) == (4, 5)
    ill.ill = None
    simulation.run(10)
    assert (simulation.ready, simulation.staying) == (4, 4)
    assert ill.alive, "the newest goes"


def test_a_worker_that_others_stood_in_for_all_through_a_window_goes() -> None:
    simulation = pool_of(4, scaledown_window_s=60)
    (ill,) = make_ill(simulation, Answer.NO, 1)
    simulation.run(45)
    assert (simulation.ready, simulation.staying, ill.alive) == (4, 5, True)
    simulation.run(20)
    assert (simulation.ready, simulation.staying, ill.alive) == (4, 4, False)


def test_however_many_are_long_unready_the_pool_never_more_than_doubles() -> None:
    simulation = pool_of(4)
    simulation.world.answer = lambda process, probe: Answer.NO
    simulation.run(300)
    assert (simulation.ready, simulation.staying) == (0, 8)
    simulation.world.answer = lambda process, probe: Answer.YES
    simulation.run(20)
    assert (simulation.ready, simulation.staying) == (4, 4)
