"""The cluster of a simulation: room for so many processes, and the processes, which start, answer, hang and crash."""

from __future__ import annotations

import enum
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gworker.probe import Probe
from gworker.worker.slots import OFFER_S, Admission
from tests.simulation.agenda import Agenda, Entry

if TYPE_CHECKING:
    from tests.simulation.callers import Call, Router

# How long the cluster takes to place a process, and how soon the death of one is noticed.
PLACED_AFTER_S = 0.02
DEATH_SEEN_S = 0.007


class Answer(enum.Enum):
    """What comes of a probe."""

    YES = "it returns"
    NO = "it returns False"
    RAISES = "it raises"
    HANGS = "it does not return"
    LOST = "asking it fails, on the asking side"


@dataclass
class World:
    """How processes behave at this moment of the script. Times in seconds, chosen with the simulation's own dice.

    `crash_every_s` is the mean life of one process. `answer` and `spoils` look at the process; `spoils` says that a
    call in it ends in a system error.
    """

    start_s: Callable[[random.Random], float] = lambda dice: dice.uniform(0.5, 2.0)
    start_fails: Callable[[random.Random], bool] = lambda dice: False
    crash_every_s: float = math.inf
    call_s: Callable[[random.Random], float] = lambda dice: dice.uniform(0.2, 1.0)
    exit_s: float = 0.05
    answer: Callable[[Process, Probe], Answer] = lambda process, probe: Answer.YES
    spoils: Callable[[Process], bool] = lambda process: False


class Process:
    """One worker process. `ill` overrides what the world answers to its probes; `frozen`: it says nothing any more."""

    def __init__(self, worker_id: str, number: int, capacity: int, agenda: Agenda, world: World, dice: random.Random):
        self.id = worker_id
        self.number = number
        self.capacity = capacity
        self.alive = True
        self.placed = False
        self.entered = False
        self.draining = False
        self.left = False
        self.frozen = False
        self.error: str | None = None
        self.ill: Answer | None = None
        self.calls: dict[Call, Entry | None] = {}
        self.succeeded = 0
        self.succeeded_at_probe: dict[Probe, int] = {}
        self.admission = Admission(capacity)
        self.routers: dict[str, Router] = {}
        self.on_placed: Callable[[], None] = _nothing
        self.on_entered: Callable[[], None] = _nothing
        self.on_death: Callable[[str], None] = _nothing
        self._on_drained: Callable[[], None] = _nothing
        self._agenda = agenda
        self._world = world
        self._dice = dice
        self._starting = False

    # --- its life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run on_enter, once however often it is asked."""
        if not self._starting:
            self._starting = True
            self._agenda.after(self._world.start_s(self._dice), self._enter)
        elif self.entered or self.error is not None:
            self._agenda.after(0.0, self.on_entered)

    def _enter(self) -> None:
        if not self.alive:
            return
        if self._world.start_fails(self._dice):
            self.error = "Traceback (most recent call last):\nValueError: no model"
        else:
            self.entered = True
        self.on_entered()

    def freeze(self) -> None:
        """Nothing comes out of it any more, and nothing ends in it."""
        self.frozen = True
        for call, entry in self.calls.items():
            if entry is not None:
                entry.cancel()
                self.calls[call] = None

    def die(self, reason: str) -> None:
        """The process is gone; whoever is interested learns of it a moment later."""
        if not self.alive:
            return
        self.alive = False
        for entry in self.calls.values():
            if entry is not None:
                entry.cancel()
        routers = dict.fromkeys([*(call.router for call in self.calls), *self.routers.values()])
        self.calls.clear()
        for router in routers:
            self._agenda.after(DEATH_SEEN_S, router.broken, self.id)
        self._agenda.after(DEATH_SEEN_S, lambda: self.on_death(reason))

    def drain(self, grace_s: float, drained: Callable[[], None]) -> None:
        """Take nothing more in; `drained` is called when all is done, or the grace is over, and on_exit has run."""
        if self.frozen:
            return
        self._on_drained = drained
        if self.left:
            self._agenda.after(0.0, self._tell_drained)
        elif not self.draining:
            self.draining = True
            if self.calls:
                self._agenda.after(grace_s, self._leave)
            else:
                self._leave()

    def _leave(self) -> None:
        if self.alive and not self.left:
            self.left = True
            self._agenda.after(self._world.exit_s, self._tell_drained)

    def _tell_drained(self) -> None:
        if self.alive:
            self._on_drained()

    # --- its calls ------------------------------------------------------------------------------------------------

    def accept(self, call: Call) -> bool:
        """Take a call in and begin to run it; False if there is no room for it."""
        self.routers[call.router.name] = call.router
        if self.draining:
            return False
        if not self.admission.take(call.router.name, self._agenda.now):
            self.admission.refuse(call.router.name)
            self.want(call.router, 0)
            return False
        call.runs += 1
        entry = None if self.frozen else self._agenda.after(self._world.call_s(self._dice), self._finish, call)
        self.calls[call] = entry
        return True

    def want(self, router: Router, count: int) -> None:
        """A router would send so many calls more."""
        self.routers[router.name] = router
        self.admission.wait(router.name, count)
        self._offer()

    def _offer(self) -> None:
        if not self.alive or self.draining:
            return
        for name in self.admission.offer(self._agenda.now):
            self._agenda.after(0.0, self.routers[name].room_in, self.id)
            self._agenda.after(1.001 * OFFER_S, self._offer)  # in case it does not answer

    def drop(self, call: Call) -> None:
        """Nobody waits for this call any more."""
        self.admission.wait(call.router.name, 0)
        entry = self.calls.get(call)
        if entry is not None:
            entry.cancel()
            self._left(call)

    def _finish(self, call: Call) -> None:
        spoilt = self._world.spoils(self)
        self.succeeded += not spoilt
        self._left(call)
        call.router.answered(self.id, call, "system error" if spoilt else "result")

    def _left(self, call: Call) -> None:
        del self.calls[call]
        self.admission.release(call.router.name)
        if not self.draining:
            self._offer()
        elif not self.calls:
            self._leave()


def _nothing(*_: object) -> None:
    pass


class Cluster:
    """Room for `capacity` processes. Who finds none waits, first come first served."""

    def __init__(self, agenda: Agenda, capacity: int) -> None:
        self.capacity = capacity
        self.placed = 0
        self._agenda = agenda
        self._waiting: deque[Process] = deque()

    @property
    def free(self) -> int:
        """How many processes more would fit."""
        return self.capacity - self.placed

    def resize(self, capacity: int) -> None:
        """Nodes come, or go; what runs on those that go is not touched."""
        self.capacity = capacity
        self._fit()

    def create(self, process: Process) -> None:
        """Ask for a process."""
        self._waiting.append(process)
        self._fit()

    def release(self, process: Process) -> None:
        """The process is gone."""
        self.placed -= process.placed
        process.placed = False
        self._fit()

    def _fit(self) -> None:
        while self._waiting and self.free > 0:
            process = self._waiting.popleft()
            if process.alive:
                process.placed = True
                self.placed += 1
                self._agenda.after(PLACED_AFTER_S, self._tell, process)

    @staticmethod
    def _tell(process: Process) -> None:
        if process.alive:
            process.on_placed()
