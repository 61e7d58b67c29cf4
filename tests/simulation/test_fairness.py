"""DESIGN §4: a caller gets its share of a pool whatever others send, and a lone one gets all of it."""

from __future__ import annotations

import statistics
from collections import defaultdict

import pytest

from tests.simulation.callers import Call, Router, Users, steady
from tests.simulation.simulator import Simulation

CALL_S = 0.1


class Observed:
    """How long the calls of a router took, and how many have ended."""

    def __init__(self, simulation: Simulation, router: Router, open_calls: int) -> None:
        self.times: list[float] = []
        self._simulation = simulation
        self._began: dict[Call, float] = {}
        submit = router.submit

        def timed(*, retries: int = 0) -> Call:
            began = simulation.now
            call = submit(retries=retries)
            self._began[call] = began
            return call

        router.submit = timed  # type: ignore[method-assign]
        Users(simulation, router, steady(open_calls))
        follow = router.on_end

        def ended(call: Call) -> None:
            assert call.outcome == "result"
            self.times.append(simulation.now - self._began.pop(call))
            follow(call)

        router.on_end = ended

    def p99(self) -> float:
        return statistics.quantiles(self.times, n=100)[98]


def pool(workers: int, max_inputs: int, seed: int) -> Simulation:
    simulation = Simulation(seed=seed, min_workers=workers, max_workers=workers, max_inputs=max_inputs)
    simulation.world.call_s = lambda dice: dice.uniform(0.5 * CALL_S, 1.5 * CALL_S)
    simulation.run(5.0)
    assert simulation.ready == workers
    return simulation


@pytest.mark.parametrize(("workers", "max_inputs"), [(1, 1), (1, 4), (3, 1), (10, 4), (100, 1)])
def test_one_call_at_a_time_is_served_beside_thousands(workers: int, max_inputs: int) -> None:
    simulation = pool(workers, max_inputs, seed=1)
    hot = Observed(simulation, simulation.router(), 2000)
    simulation.run(2.0)
    light = Observed(simulation, simulation.router(), 1)
    simulation.run(60.0)
    assert len(light.times) > 100
    # The one that runs when it comes, perhaps one that was let in before, and its own.
    assert light.p99() < 4 * CALL_S
    assert light.p99() < 2.5 * CALL_S or workers * max_inputs == 1
    places = workers * max_inputs
    assert len(hot.times) + len(light.times) > 0.95 * places * 62.0 / CALL_S, "no place is left empty"


def test_callers_that_want_more_than_their_share_get_equal_shares() -> None:
    simulation = pool(2, 8, seed=2)
    callers = [Observed(simulation, simulation.router(), open_calls) for open_calls in (3000, 300, 30)]
    light = Observed(simulation, simulation.router(), 2)
    simulation.run(60.0)
    counts = [len(caller.times) for caller in callers]
    assert max(counts) < 1.1 * min(counts)
    assert len(light.times) > 0.8 * 2 * 60.0 / CALL_S / 1.3, "and who wants less than its share gets what it wants"


def test_a_lone_caller_gets_every_place() -> None:
    simulation = pool(10, 4, seed=3)
    alone = Observed(simulation, simulation.router(), 2000)
    simulation.run(20.0)
    assert len(alone.times) > 0.97 * 40 * 20.0 / CALL_S


def test_many_routers_do_not_meet_on_the_same_workers() -> None:
    # Each has a call at a time: together half of what there is, and hardly one finds its worker busy.
    simulation = pool(100, 4, seed=4)
    most: dict[str, int] = defaultdict(int)
    routers = [simulation.router() for _ in range(100)]
    for router in routers:
        Users(simulation, router, steady(1))
    for _ in range(200):
        simulation.run(0.05)
        for process in simulation.alive():
            most[process.id] = max(most[process.id], len(process.calls))
    assert len(most) == 100 and min(most.values()) >= 1
    mean = statistics.mean(len(p.calls) for p in simulation.alive())
    assert mean == pytest.approx(1.0, abs=0.1)
