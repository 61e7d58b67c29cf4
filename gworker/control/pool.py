"""One pool: which workers it has, which it should have, and what routers are told. Pure: no Ray, no clock.

The controller feeds it what happened and carries out what `plan` returns.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from gworker.control.autoscaler import Autoscaler, ScalePolicy
from gworker.control.supervisor import Supervisor
from gworker.errors import GWorkerError, PoolUnavailable, StartupFailed, Unschedulable
from gworker.observe.status import PoolStatus, ProbeStatus, WorkerStatus
from gworker.router.membership import Demand, PoolDefinition, PoolState, PoolView, WorkerView

# A router that has not repeated its demand for this long is gone.
DEMAND_EXPIRES_S = 5.0


class WorkerState(str, enum.Enum):
    """The life of a worker; BACKOFF is the pool's wait between two of them."""

    STARTING = "STARTING"
    READY = "READY"
    UNREADY = "UNREADY"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"


# What counts as capacity: it serves, will serve, or may serve again.
_CAPACITY = (WorkerState.STARTING, WorkerState.READY, WorkerState.UNREADY)


@dataclass
class Worker:
    """A worker as the controller knows it. `pending` says what it waits for while Ray cannot place it."""

    id: str
    number: int
    created: float
    actor: Any = None
    state: WorkerState = WorkerState.STARTING
    pid: int | None = None
    node_id: str | None = None
    placed: bool = False
    pending: str = ""
    reason: str = ""
    probes: dict[str, ProbeStatus] = field(default_factory=dict)

    @property
    def draining(self) -> bool:
        """Whether it is on its way out."""
        return self.state is WorkerState.DRAINING


@dataclass(frozen=True)
class Start:
    """Create this many workers."""

    count: int


@dataclass(frozen=True)
class Stop:
    """Drain this worker and see it gone."""

    worker_id: str
    reason: str


class Pool:
    """The workers of one class, or of one variant of it."""

    def __init__(self, definition: PoolDefinition, supervisor: Supervisor | None = None) -> None:
        options = definition.options
        self.definition = definition
        self.workers: dict[str, Worker] = {}
        self.supervisor = supervisor or Supervisor(options.min_workers)
        self.autoscaler = Autoscaler(
            ScalePolicy(
                min_workers=options.min_workers,
                max_workers=options.max_workers,
                buffer_workers=options.buffer_workers,
                target_inputs=definition.target_inputs,
                window_s=options.scaledown_window_s,
            )
        )
        self.version = 0
        self.notice = ""
        self.retired = False
        self.unschedulable = ""
        self.closing = ""
        self._demands: dict[str, tuple[Demand, float]] = {}
        self._told: tuple[Any, ...] = ()

    # --- what happened --------------------------------------------------------------------------------------------

    def report(self, router: str, demand: Demand, now: float) -> None:
        """A router says what it needs."""
        if demand == Demand(0, 0):
            self._demands.pop(router, None)
        else:
            self._demands[router] = (demand, now)

    def started(self, worker: Worker, pid: int, node_id: str) -> None:
        """A worker finished its on_enter hooks."""
        worker.pid, worker.node_id, worker.pending = pid, node_id, ""
        worker.state = WorkerState.READY
        self.unschedulable = ""
        self.supervisor.start_succeeded()

    def start_failed(self, worker: Worker, error: str, now: float) -> None:
        """A worker did not come up."""
        self._remove(worker, "its start failed")
        self.supervisor.start_failed(error, now)

    def lost(self, worker: Worker, reason: str, now: float) -> None:
        """A worker's process has ended, as wanted or not."""
        wanted = worker.state is WorkerState.DRAINING
        self._remove(worker, reason)
        if not wanted:
            self.supervisor.lost(now)

    def replace(self, worker: Worker, reason: str, now: float) -> None:
        """A worker serves no more and is to be replaced; it drains."""
        worker.state, worker.reason = WorkerState.DRAINING, reason
        self.supervisor.lost(now)

    def _remove(self, worker: Worker, reason: str) -> None:
        worker.state, worker.reason = WorkerState.STOPPED, reason
        self.workers.pop(worker.id, None)

    # --- what follows ---------------------------------------------------------------------------------------------

    def demand(self, now: float) -> Demand:
        """Inputs queued and running, of the routers that are alive."""
        for router in [r for r, (_, at) in self._demands.items() if now - at > DEMAND_EXPIRES_S]:
            del self._demands[router]
        demands = [demand for demand, _ in self._demands.values()]
        return Demand(sum(d.queued for d in demands), sum(d.running for d in demands))

    def plan(self, now: float) -> list[Start | Stop]:
        """What is to be done so that the pool gets to its size."""
        demand = self.demand(now)
        capacity = [w for w in self.workers.values() if w.state in _CAPACITY]
        if self.retired:
            # What was called before the new definition is still served, by as few workers as there are.
            # One is started only for calls that wait: those that run, or ran a moment ago, need none.
            desired = 0 if demand == Demand(0, 0) else max(int(demand.queued > 0), len(capacity))
        else:
            desired = self.autoscaler.tick(demand.queued + demand.running, now)
        if len(capacity) < desired and now >= self.supervisor.start_allowed_at:
            if self.supervisor.failed:
                # Without hope: one try at a time, until one comes up.
                return [] if capacity else [Start(1)]
            return [Start(desired - len(capacity))]
        # Newest first, and those that do not serve yet before those that do.
        surplus = sorted(capacity, key=lambda w: (w.state is WorkerState.READY, -w.number))[: len(capacity) - desired]
        if len(capacity) > desired:
            return [Stop(w.id, "replaced by a new definition" if self.retired else "scaled down") for w in surplus]
        return []

    def wakes_at(self) -> float:
        """When a start that backs off may be tried: a moment to plan again."""
        return self.supervisor.start_allowed_at

    # --- what is told ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> PoolState:
        """The pool's state."""
        capacity = [w for w in self.workers.values() if w.state in _CAPACITY]
        ready = sum(w.state is WorkerState.READY for w in capacity)
        if self.supervisor.failed and not ready:
            return PoolState.FAILED
        if ready < len(capacity) or len(capacity) != self.autoscaler.desired:
            return PoolState.SCALING
        return PoolState.READY

    @property
    def failure(self) -> GWorkerError | None:
        """What calls that wait are to raise, or None while there is hope."""
        name = self.definition.key.class_name
        if self.closing:
            return PoolUnavailable(self.closing)
        if self.unschedulable:
            return Unschedulable(f"{name} {self.unschedulable}")
        if self.supervisor.failed:
            return StartupFailed(
                f"{name}: the first workers all failed to start; the last error was:\n{self.supervisor.last_error}"
            )
        return None

    def waiting_for(self) -> str:
        """Why no worker is ready, in words."""
        starting = [w for w in self.workers.values() if w.state is WorkerState.STARTING]
        pending = sorted({w.pending for w in starting if w.pending})
        if self.closing or self.unschedulable:
            return self.closing or self.unschedulable
        if pending:
            return f"{len(starting)} starting: {'; '.join(pending)}"
        if starting:
            return f"{len(starting)} starting (on_enter is running)"
        unready = [w for w in self.workers.values() if w.state is WorkerState.UNREADY]
        if unready:
            return f"{len(unready)} not ready: {unready[0].reason}"
        if self.supervisor.last_error:
            return "backing off after a failed start: " + self.supervisor.last_error.strip().splitlines()[-1]
        return "no worker yet"

    def view(self) -> PoolView:
        """The pool as routers see it; its version grows whenever something they act on has changed."""
        workers = tuple(
            WorkerView(w.id, w.actor, self.definition.max_inputs, w.state is WorkerState.READY)
            for w in self.workers.values()
            if w.state in (WorkerState.READY, WorkerState.UNREADY, WorkerState.DRAINING)
        )
        failure = self.failure
        told = (
            tuple((w.id, w.ready) for w in workers),
            self.state,
            self.waiting_for(),
            None if failure is None else str(failure),
            self.notice,
            self.supervisor.last_error,
        )
        if told != self._told:
            self._told = told
            self.version += 1
        return PoolView(
            self.version, self.state, workers, self.waiting_for(), failure, self.notice, self.supervisor.last_error
        )

    def status(self, now: float) -> PoolStatus:
        """The pool as people see it."""
        demand = self.demand(now)

        def count(state: WorkerState) -> int:
            return sum(w.state is state for w in self.workers.values())

        return PoolStatus(
            name=str(self.definition.key),
            class_name=self.definition.key.class_name,
            state=self.state.value,
            desired=0 if self.retired else self.autoscaler.desired,
            ready=count(WorkerState.READY),
            starting=count(WorkerState.STARTING),
            draining=count(WorkerState.DRAINING),
            queued=demand.queued,
            running=demand.running,
            restarts=self.supervisor.restarts,
            waiting_for="" if count(WorkerState.READY) else self.waiting_for() if self.workers or demand.queued else "",
            workers=tuple(
                WorkerStatus(
                    id=w.id,
                    state=w.state.value,
                    pid=w.pid,
                    node_id=w.node_id,
                    age_s=now - w.created,
                    reason=w.reason or w.pending,
                    probes=tuple(w.probes.values()),
                )
                for w in self.workers.values()
            ),
        )
