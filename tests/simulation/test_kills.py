"""DESIGN §4, correlated failure: how many workers probes may kill at once. The rules look at every single kill."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gworker.probe import Probe
from tests.simulation.callers import Users, steady
from tests.simulation.processes import Answer
from tests.simulation.scenarios import simulated
from tests.simulation.simulator import Simulation

ALIVE = Probe.on("alive", period_s=5, timeout_s=1, failures=2)


def pool_of(workers: int, *, most: int | None = None, start_s: float = 1.0, seed: int = 1) -> Simulation:
    simulation = Simulation(
        seed=seed,
        min_workers=workers,
        max_workers=most or 2 * workers,
        drain_timeout_s=5,
        probes=[ALIVE],
        scaledown_window_s=600,
    )
    simulation.run(5)
    simulation.world.start_s = lambda dice: start_s
    assert simulation.ready == workers
    return simulation


def well(simulation: Simulation) -> bool:
    return not any(process.ill for process in simulation.alive()) and simulation.ready >= (
        simulation.definition.options.min_workers
    )


def test_of_forty_workers_that_fail_here_and_there_four_are_replaced_at_once() -> None:
    simulation = pool_of(40, start_s=10.0)
    Users(simulation, simulation.router(), steady(60), retries=1)
    for process in simulation.pick(least=18):
        process.ill = Answer.NO
    assert simulation.run(300, until=lambda: well(simulation))
    assert (simulation.rules.kills, simulation.rules.most_open_kills, simulation.rules.bursts) == (18, 4, 0)
    assert simulation.outcomes.keys() == {"result"}


def test_when_more_than_half_failed_within_a_period_they_are_replaced_one_by_one_until_all_are_dealt_with() -> None:
    simulation = pool_of(40, start_s=20.0, most=40)
    for process in simulation.pick(least=30):
        process.ill = Answer.NO
    began = simulation.now
    assert simulation.run(3600, until=lambda: well(simulation))
    assert (simulation.rules.kills, simulation.rules.bursts) == (30, 1)
    # The first four were killed before half of the pool had failed; the others one after the other.
    assert simulation.now - began >= (30 - 4 + 1) * 20


def test_where_others_stand_in_for_them_the_sick_stay_until_those_are_ready() -> None:
    """The probes may yet pass again: nothing is gained by a pool that has neither these workers nor those."""
    simulation = pool_of(40, start_s=20.0)
    for process in simulation.pick(least=30):
        process.ill = Answer.NO
    simulation.run(50)
    assert simulation.staying > 60, "stand-ins are starting"
    assert simulation.rules.kills <= 4 + 2
    assert simulation.run(30, until=lambda: well(simulation))


def test_a_probe_that_fails_everywhere_for_a_minute_costs_a_few_workers_and_not_the_pool() -> None:
    simulation = pool_of(50, start_s=30.0)
    simulation.world.answer = lambda process, probe: Answer.RAISES
    simulation.run(60)
    simulation.world.answer = lambda process, probe: Answer.YES
    assert simulation.run(120, until=lambda: well(simulation))
    assert simulation.rules.kills <= 5 + 2


def test_workers_that_are_spared_take_calls_again() -> None:
    simulation = pool_of(5, start_s=10.0)
    Users(simulation, simulation.router(), steady(10), retries=3)
    simulation.world.answer = lambda process, probe: Answer.RAISES
    simulation.run(12)
    simulation.world.answer = lambda process, probe: Answer.YES
    simulation.run(20)
    assert simulation.ready == 5
    assert sum(process.number <= 5 for process in simulation.alive()) >= 2
    assert all(process.succeeded for process in simulation.alive())


@simulated
@given(
    seed=st.integers(0, 1000),
    workers=st.sampled_from([1, 5, 20, 29]),
    shares=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=3),
    start_s=st.sampled_from([0.5, 8.0, 25.0]),
    answer=st.sampled_from([Answer.NO, Answer.HANGS, None]),
)
def test_the_budget_is_kept_however_many_fail_and_whenever(
    seed: int, workers: int, shares: list[float], start_s: float, answer: Answer | None
) -> None:
    simulation = pool_of(workers, start_s=start_s, seed=seed)

    def strike(share: float) -> None:
        for process in simulation.pick(share=share):
            if answer is None:
                process.freeze()
            else:
                process.ill = answer

    for n, share in enumerate(shares):
        simulation.at(20.0 * n, strike, share)
    simulation.run(120)
    assert simulation.rules.most_open_kills <= max(1, workers // 10)
