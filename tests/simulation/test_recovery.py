"""DESIGN §4, recovery: a controller may die at any moment; its successor goes on from what was written down."""

from __future__ import annotations

import pytest

from gworker.control.pool import Start
from tests.simulation.callers import Users, steady
from tests.simulation.simulator import Simulation


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
