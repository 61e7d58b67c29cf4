"""A pool whose world does not change comes to rest: nothing is started, stopped, told or noted, for an hour."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gworker.probe import Probe
from tests.simulation.callers import Users, steady
from tests.simulation.processes import Answer
from tests.simulation.simulator import Simulation

pytestmark = pytest.mark.slow

ALIVE = Probe.on("alive")
WARM = Probe.on("warm", kind="readiness")


def busy() -> Simulation:
    simulation = Simulation(min_workers=1, buffer_workers=1, probes=[ALIVE, WARM])
    simulation.world.call_s = lambda dice: dice.uniform(20.0, 40.0)
    Users(simulation, simulation.router(), steady(7), retries=1)
    Users(simulation, simulation.router(), steady(4))
    return simulation


def after_crashes() -> Simulation:
    simulation = Simulation(min_workers=4, probes=[ALIVE])
    for at in (10, 12, 14, 16, 80, 150):
        simulation.at(at, lambda: simulation.crash(share=0.5))
    return simulation


def short_of_room() -> Simulation:
    simulation = Simulation(min_workers=4, capacity=2, cluster_may_grow=True)
    Users(simulation, simulation.router(), steady(2))
    simulation.world.call_s = lambda dice: 30.0
    return simulation


def half_of_it_unready() -> Simulation:
    simulation = Simulation(min_workers=4, max_workers=6, probes=[ALIVE, WARM])

    def fall_ill() -> None:
        ill = {process.id for process in simulation.pick(least=3)}
        simulation.world.answer = lambda process, probe: (
            Answer.NO if process.id in ill and probe is WARM else Answer.YES
        )

    simulation.at(10, fall_ill)
    return simulation


def without_a_floor() -> Simulation:
    simulation = Simulation(probes=[ALIVE])
    Users(simulation, simulation.router(), lambda t: 20.0 if t < 60 else 0.0)
    return simulation


@pytest.mark.parametrize(
    ("make", "serving"),
    [(busy, 5), (after_crashes, 4), (short_of_room, 2), (half_of_it_unready, 3), (without_a_floor, 0)],
)
def test_a_quiet_system_comes_to_rest_within_ten_minutes_and_stays_so_for_an_hour(
    make: Callable[[], Simulation], serving: int
) -> None:
    simulation = make()
    simulation.run(600)
    assert simulation.ready == serving

    def so_far() -> tuple[object, ...]:
        return len(simulation.actions), len(simulation.happenings), simulation.pool.view.version, simulation.processes

    before = so_far()
    simulation.run(3600)
    assert so_far() == before
    assert simulation.ready == serving
    simulation.rules.account()
