"""Random scenarios: a pool, callers, and two minutes of faults. Hypothesis chooses; everything else follows."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st

from gworker.probe import Probe
from tests.simulation.callers import Users, bursts
from tests.simulation.processes import Answer, Process
from tests.simulation.simulator import Simulation

# Always the same examples: a failure is for everybody to see, and again tomorrow. Not made smaller: that takes minutes.
_few = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate)
)


def simulated(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a property test whose examples are whole simulations."""
    marked: Callable[..., None] = pytest.mark.slow(_few(test))
    return marked


LIVENESS = Probe.on("alive", period_s=2, timeout_s=1, failures=2)
READINESS = Probe.on("warm", kind="readiness", period_s=2, timeout_s=1, failures=2)

# Faults begin in this time, and last so long at most; after both nothing goes wrong any more.
FAULTS_S = 120.0
LASTS_S = 40.0


class Fault(enum.Enum):
    """What goes wrong."""

    CRASH = "some processes crash at once"
    CRASHES = "processes crash now and then"
    SLOW_STARTS = "starts take ten times as long"
    FAILING_STARTS = "starts fail"
    SHORTAGE = "nodes go, and come back later"
    SOME_SAY_NO = "some processes answer their probes with no, for good"
    SOME_HANG = "some processes do not answer their probes, for good"
    SOME_FREEZE = "some processes say nothing any more"
    ALL_SAY_NO = "all probes fail for a while"
    ALL_HANG = "all probes hang for a while"
    ALL_LOST = "the controller cannot ask for a while"
    SPOILT = "calls end in system errors in some processes for a while"
    ROUTER_DIES = "a caller dies without a word"
    CONTROLLER = "the controller dies, and another takes over"


@dataclass(frozen=True)
class Scenario:
    """`faults` are (when, what, how much: 0 to 1)."""

    seed: int
    floor: int
    more: int
    max_inputs: int
    idle: int
    busy: int
    retries: int
    start_s: float
    call_s: float
    window_s: float
    may_grow: bool
    probes: tuple[Probe, ...]
    faults: tuple[tuple[float, Fault, float], ...]

    def simulate(self) -> Scene:
        """The simulation, with everything put down that is to happen."""
        simulation = Simulation(
            seed=self.seed,
            max_inputs=self.max_inputs,
            cluster_may_grow=self.may_grow,
            deployed=True,
            capacity=2 * (self.floor + self.more),
            min_workers=self.floor,
            max_workers=self.floor + self.more,
            scaledown_window_s=self.window_s,
            drain_timeout_s=5,
            probes=list(self.probes),
        )
        world = simulation.world
        world.start_s = lambda dice: dice.uniform(0.5, 1.5) * self.start_s
        world.call_s = lambda dice: dice.uniform(0.5, 1.5) * self.call_s
        scene = Scene(self, simulation)
        for at, fault, amount in self.faults:
            simulation.at(at, scene.strike, fault, amount)
        simulation.at(FAULTS_S + LASTS_S, scene.heal)
        return scene


class Scene:
    """A scenario under way: three callers, who call for as long as there are faults and a little longer."""

    def __init__(self, scenario: Scenario, simulation: Simulation) -> None:
        self.simulation = simulation
        self.scenario = scenario
        self._ill = 0
        self._room = simulation.cluster.capacity
        self._normal = replace(simulation.world)
        self._loads = [
            Users(simulation, simulation.router(), bursts(low, high, every_s=50, for_s=20), retries=retries)
            for low, high, retries in (
                (scenario.idle, scenario.busy, 0),
                (scenario.idle, 0, scenario.retries),
                (1, 2, scenario.retries),
            )
        ]

    def strike(self, fault: Fault, amount: float) -> None:
        """Something goes wrong now."""
        simulation = self.simulation
        if fault is Fault.CRASH:
            simulation.crash(share=amount, least=1)
        elif fault is Fault.SHORTAGE:
            simulation.cluster.resize(round((1 - amount) * self._room))
            simulation.at(LASTS_S * amount, simulation.cluster.resize, self._room)
        elif fault is Fault.ROUTER_DIES:
            simulation.routers[1].die()
        elif fault is Fault.CONTROLLER:
            simulation.restart_controller(down_s=0.1 + 5 * amount)
        elif fault in _ILL:
            self._infect(_ILL[fault], amount)
        else:
            for name, value in self._changed_world(fault, amount).items():
                setattr(simulation.world, name, value)
                simulation.at(LASTS_S * amount, setattr, simulation.world, name, getattr(self._normal, name))

    def _changed_world(self, fault: Fault, amount: float) -> dict[str, object]:
        """What is different for a while."""
        if fault is Fault.CRASHES:
            self.simulation.crash_now_and_then()
            return {"crash_every_s": 30.0}
        if fault is Fault.SLOW_STARTS:
            return {"start_s": lambda dice: 10 * self.scenario.start_s}
        if fault is Fault.FAILING_STARTS:
            return {"start_fails": lambda dice: dice.random() < 0.3 + amount}
        if fault is Fault.SPOILT:
            spoilt = {process.id for process in self.simulation.pick(share=amount, least=1)}
            return {"spoils": lambda process: process.id in spoilt}
        return {"answer": _always(_ALL[fault])}

    def _infect(self, answer: Answer | None, share: float) -> None:
        for process in self.simulation.pick(share=share, least=1):
            if LIVENESS not in self.scenario.probes:
                continue  # nobody is to replace it, and nobody could use it
            self._ill += 1
            if answer is None:
                process.freeze()
            else:
                process.ill = answer

    def heal(self) -> None:
        """From now on nothing goes wrong; what is ill stays so, to be found and replaced."""
        for name, value in vars(self._normal).items():
            setattr(self.simulation.world, name, value)
        self.simulation.cluster.resize(self._room)

    def rest(self) -> None:
        """The callers make no more calls."""
        for load in self._loads:
            load.stop()

    @property
    def repaired_within_s(self) -> float:
        """From the end of the faults: the last wait of a place, a try of a failed pool, then kills one by one."""
        start_s = max(10 * self.scenario.start_s, 5.0)
        drain_s = 5.0 + 10.0 + 10.0
        return 3 * (60.0 + start_s) + self._ill * (drain_s + 60.0 + start_s)


_ILL = {Fault.SOME_SAY_NO: Answer.NO, Fault.SOME_HANG: Answer.HANGS, Fault.SOME_FREEZE: None}
_ALL = {Fault.ALL_SAY_NO: Answer.NO, Fault.ALL_HANG: Answer.HANGS, Fault.ALL_LOST: Answer.LOST}


def _always(answer: Answer) -> Callable[[Process, Probe], Answer]:
    return lambda process, probe: answer


def scenarios(*, faults: tuple[Fault, ...] = tuple(Fault)) -> st.SearchStrategy[Scenario]:
    """Scenarios with up to eight of these faults."""
    fault = st.tuples(st.floats(5.0, FAULTS_S), st.sampled_from(faults), st.floats(0.0, 1.0))
    return st.builds(
        Scenario,
        seed=st.integers(0, 10_000),
        floor=st.integers(0, 6),
        more=st.integers(1, 6),
        max_inputs=st.integers(1, 8),
        idle=st.integers(0, 4),
        busy=st.integers(0, 30),
        retries=st.integers(0, 2),
        start_s=st.sampled_from([0.1, 1.0, 4.0]),
        call_s=st.sampled_from([0.3, 1.0, 3.0]),
        window_s=st.sampled_from([0.0, 5.0, 30.0]),
        may_grow=st.booleans(),
        probes=st.sampled_from([(), (LIVENESS,), (READINESS,), (LIVENESS, READINESS)]),
        faults=st.lists(fault, max_size=8).map(tuple),
    )
