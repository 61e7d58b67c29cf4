"""A pool in a simulated cluster, with simulated callers, under the real policies and a clock that jumps.

`Simulation` stands where the controller stands: it asks the pool for its plan every `TICK_S` and soon after anything
has happened, and carries it out, step by step as `gworker.control.controller` does. A test scripts the world (how long
starts take, what fails, how much room there is), lets time run, and looks at what became of it. `Rules` look on all
the while. Everything follows from the seed.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from gworker.control.checkpoint import _lasting
from gworker.control.controller import RESTORE_S, TICK_S
from gworker.control.placement import affordable, subtract
from gworker.control.pool import Pool, PoolRecord, Start, Stop
from gworker.control.workers import Worker, WorkerState
from gworker.options import Options
from gworker.probe import Probe, Verdict
from gworker.router.membership import Demand, PoolDefinition, PoolKey
from gworker.wire import Payload
from tests.simulation.agenda import Agenda, Entry
from tests.simulation.callers import Call, Router
from tests.simulation.keepers import Keeper
from tests.simulation.processes import Cluster, Process, World
from tests.simulation.rules import Rules

# From an event to the tick that sees to it; what happens meanwhile is seen to by the same tick.
REACTION_S = 0.005
# Until routers know of a new view.
VIEW_AFTER_S = 0.002
# From so many workers on the rules look at every tenth change only; they look at every plan.
LARGE = 200
# Until a restarted controller has found a worker.
FOUND_AFTER_S = 0.05


@dataclass(frozen=True)
class Happening:
    """An event of the pool, with the time of the simulation."""

    at: float
    worker: str
    action: str
    reason: str


class Simulation:
    """One pool. `options` are those of `App.cls`; `capacity` is the room in the cluster.

    Where the cluster may grow, the pool asks for more than fits. A `deployed` one writes its state down, so that
    `restart_controller` can be scripted.
    """

    def __init__(
        self,
        *,
        seed: int = 1,
        max_inputs: int = 4,
        target_inputs: int | None = None,
        floor_when_idle: bool = True,
        capacity: int = 10_000,
        cluster_may_grow: bool = False,
        deployed: bool = False,
        **options: Any,
    ) -> None:
        self.definition = PoolDefinition(
            key=PoolKey("Model"),
            cls=Payload(b""),
            worker_values=Payload(b""),
            options=Options.build(options, where="simulation"),
            max_inputs=max_inputs,
            target_inputs=target_inputs or max(1, int(0.8 * max_inputs)),
            floor_when_idle=floor_when_idle,
        )
        self.dice = random.Random(seed)
        self._sampling = random.Random(seed)
        self.agenda = Agenda()
        self.world = World()
        self.cluster = Cluster(self.agenda, capacity)
        self.cluster_may_grow = cluster_may_grow
        self.deployed = deployed
        self.lacking: str | None = None
        self.processes: dict[str, Process] = {}
        self.keepers: dict[str, Keeper] = {}
        self.routers: list[Router] = []
        self.happenings: list[Happening] = []
        self.actions: list[tuple[float, Start | Stop]] = []
        self.outcomes: Counter[str] = Counter()
        self.submitted = 0
        self.rules = Rules(self)
        self.up = True
        self.pool = self._make_pool()
        self.desired = [(self.now, self.pool.autoscaler.desired)]
        self._numbers = itertools.count(1)
        self._epoch = 0
        self._published: tuple[int, int] | None = None
        self._tick_entry: Entry | None = None
        self._restoring: Entry | None = None
        self._adopted: set[str] = set()
        self._journal: tuple[PoolRecord, float] | None = None
        self._crashing = False
        self._wake()

    def _make_pool(self) -> Pool:
        return Pool(self.definition, self.now, on_event=self._note, rng=random.Random(self.dice.random()))

    def _note(self, worker: str, action: str, reason: str) -> None:
        self.happenings.append(Happening(self.now, worker, action, reason))

    # --- for scripts ------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """The time; only differences mean something."""
        return self.agenda.now

    def run(self, seconds: float, **how: Any) -> bool:
        """Let time pass; see `Agenda.run`."""
        return self.agenda.run(seconds, **how)

    def at(self, seconds: float, action: Any, *args: Any) -> None:
        """Put something of the script down for so many seconds from now."""
        self.agenda.after(seconds, action, *args)

    def router(self) -> Router:
        """One more caller."""
        router = Router(self, f"router-{len(self.routers) + 1}")
        self.routers.append(router)
        if self._published is not None:
            router.see(self.pool.view)
        return router

    def count(self, state: WorkerState) -> int:
        """How many workers are in a state."""
        return sum(worker.state is state for worker in self.pool.workers.values())

    @property
    def ready(self) -> int:
        """How many workers are ready."""
        return self.count(WorkerState.READY)

    @property
    def staying(self) -> int:
        """How many workers are not on their way out."""
        return sum(not worker.draining for worker in self.pool.workers.values())

    def alive(self) -> list[Process]:
        """The processes that have come up and serve."""
        return [process for process in self.processes.values() if process.alive and process.entered]

    def crash(self, *, share: float = 0.0, least: int = 0) -> int:
        """So many of the processes die at this moment; how many did."""
        victims = self.pick(share=share, least=least)
        for process in victims:
            self.kill(process, "exit code 1")
        return len(victims)

    def pick(self, *, share: float = 0.0, least: int = 0) -> list[Process]:
        """Some of the processes that serve, by chance."""
        alive = self.alive()
        return self.dice.sample(alive, min(len(alive), max(least, round(share * len(alive)))))

    def crash_now_and_then(self) -> None:
        """From now on processes crash at the rate that the world says."""
        if not self._crashing:
            self._crashing = True
            self._next_crash(False)

    def _next_crash(self, due: bool) -> None:
        if due:
            self.crash(least=1)
        rate = len(self.processes) / self.world.crash_every_s
        wait_s = self.dice.expovariate(rate) if rate > 0 else 1e9
        # What the world says may change; waiting has no memory.
        self.agenda.after(min(wait_s, 1.0), self._next_crash, wait_s <= 1.0)

    def kill(self, process: Process, reason: str) -> None:
        """The process ends."""
        if process.alive:
            process.die(reason)
            self.cluster.release(process)
            self.processes.pop(process.id, None)

    def restart_controller(self, *, down_s: float = 1.5) -> None:
        """The controller dies now; its replacement takes over so much later, from what was written down."""
        if not self.up:
            return
        self.up = False
        for keeper in self.keepers.values():
            keeper.close()
        self.keepers.clear()
        for entry in (self._tick_entry, self._restoring):
            if entry is not None:
                entry.cancel()
        self._tick_entry = self._restoring = None
        self.agenda.after(down_s, self._restore)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        due = self.now + REACTION_S
        if self.up and self._restoring is None and (self._tick_entry is None or self._tick_entry.when > due):
            if self._tick_entry is not None:
                self._tick_entry.cancel()
            self._tick_entry = self.agenda.at(due, self._tick)

    def _tick(self) -> None:
        self._tick_entry = self.agenda.after(TICK_S, self._tick)
        before = self.rules.before_plan()
        actions = self.pool.plan(self.now)
        self.rules.after_plan(actions, before)
        self.actions += [(self.now, action) for action in actions]
        if self.desired[-1][1] != self.pool.autoscaler.desired:
            self.desired.append((self.now, self.pool.autoscaler.desired))
        starts = [action for action in actions if isinstance(action, Start)]
        begin = [self._keep(start) for start in starts[: self._affordable(len(starts))]]
        draining = [self.keepers[action.worker_id] for action in actions if isinstance(action, Stop)]
        published = self._publish()
        if self.deployed:
            record = self.pool.record(self.now)
            if self._journal is None or _lasting(record) != _lasting(self._journal[0]):
                self._journal = (record, self.now)
        for keeper in draining:
            keeper.drain(keeper.worker.reason)
        for keeper in begin:
            keeper.live()
        if actions or published:
            self.rules.check()

    def _keep(self, start: Start) -> Keeper:
        number = next(self._numbers)
        worker = self.pool.add(start.slot, f"Model-{number}", number, self.now)
        keeper = self.keepers[worker.id] = Keeper(self, worker)
        return keeper

    def create(self, worker: Worker) -> Process:
        """The process of a worker, not placed yet."""
        process = Process(worker.id, worker.number, self.definition.max_inputs, self.agenda, self.world, self.dice)
        self.processes[process.id] = process
        return process

    def _affordable(self, count: int) -> int:
        if count == 0:
            return 0
        needs = {"CPU": 1.0}
        held = [worker.placed for worker in self.pool.workers.values()]
        available, left = {"CPU": float(self.cluster.free)}, {"CPU": float(self.cluster.capacity)}
        for placed in held:
            subtract(left, needs)
            if not placed:
                subtract(available, needs)
        return affordable(
            count,
            needs,
            {"CPU": min(available["CPU"], left["CPU"])},
            others=[],
            owed=max(1, self.definition.options.min_workers) - self.staying,
            cluster_may_grow=self.cluster_may_grow,
        )

    def changed(self) -> None:
        """Something happened to the pool: tell the routers, and look at it at once."""
        self.keepers = {worker_id: k for worker_id, k in self.keepers.items() if worker_id in self.pool.workers}
        self.pool.refresh(self.now)
        if len(self.pool.workers) < LARGE or self._sampling.random() < 0.1:
            self.rules.check()
        self._publish()
        self._wake()

    def _publish(self) -> bool:
        view = self.pool.view
        if (self._epoch, view.version) == self._published or self._restoring is not None:
            return False
        self._published = (self._epoch, view.version)
        for router in self.routers:
            self.agenda.after(VIEW_AFTER_S, router.see, view)
        return True

    # --- what callers and keepers tell ------------------------------------------------------------------------------

    def next_call(self) -> int:
        """The number of a new call."""
        self.submitted += 1
        return self.submitted

    def call_ended(self, call: Call) -> None:
        """A call has its outcome."""
        assert call.outcome is not None
        self.outcomes[call.outcome] += 1
        self.rules.call_ended(call)

    def report(self, router: str, demand: Demand) -> None:
        """A router's demand reaches the controller, if there is one."""
        if self.up:
            self.pool.report(router, demand, self.now)
            if demand.queued or demand.errors:
                self._wake()

    def probed(self, worker: Worker, probe: Probe, verdict: Verdict, latency_s: float, reason: str) -> None:
        """A probe has run."""
        change = self.pool.probed(worker, probe, verdict, latency_s, reason, self.now)
        self.rules.probed(worker, probe, verdict, change)
        if change is not None:
            self.changed()

    # --- a new controller -------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        assert self.deployed, "only the controller of a deployed app has a successor"
        self.up = True
        self._epoch += 1
        self.rules.new_controller()
        self.pool = self._make_pool()
        self.pool.refresh(self.now)
        if self._journal is not None:
            record, at = self._journal
            self.pool.restore(record, self.now - at, self.now)
            self.rules.taken_over(self.pool)
        self._adopted = {w.id for w in self.pool.workers.values() if w.pid is not None and not w.draining}
        self._restoring = self.agenda.after(RESTORE_S, self._restored)
        for worker in self.pool.workers.values():
            keeper = self.keepers[worker.id] = Keeper(self, worker)
            self.agenda.after(FOUND_AFTER_S, self._adopt, keeper)
        for process in [p for p in self.processes.values() if p.id not in self.pool.workers]:
            self.kill(process, "no controller knew it")
        self.settled()

    def _adopt(self, keeper: Keeper) -> None:
        if not keeper.closed:
            keeper.adopt(self.processes.get(keeper.worker.id))

    def settled(self) -> None:
        """A keeper knows what became of its worker."""
        waits = any(w in self._adopted and not k.settled for w, k in self.keepers.items())
        if self._restoring is not None and not waits:
            self._restoring.cancel()
            self._restoring = self.agenda.after(0.0, self._restored)

    def _restored(self) -> None:
        self._restoring = None
        self._tick()
