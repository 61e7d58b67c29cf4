"""A worker as the controller knows it. Pure data, and the reasons for which one ends."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from gworker.control.health import Health
from gworker.observe.status import WorkerStatus
from gworker.probe import Probe
from gworker.router.membership import DirectAddress, WorkerView


class WorkerState(str, enum.Enum):
    """The life of a worker; BACKOFF is a place's wait between two of them."""

    STARTING = "STARTING"
    READY = "READY"
    UNREADY = "UNREADY"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"
    BACKOFF = "BACKOFF"


_SERVING = (WorkerState.READY, WorkerState.UNREADY)


@dataclass
class Worker:
    """One worker. `pending` says what it waits for while Ray cannot place it; `slot` is its place in the pool.

    `actor` is its handle, `reference` the same for routers, who mostly have no use for it.
    `ready_since` is when it came up, `unready_since` since when it has not been ready again. `replace_because` is set
    once it must be replaced; `silent` while its process does not answer, so that there is nobody to drain.
    """

    id: str
    number: int
    slot: int
    created: float
    health: Health = field(default_factory=lambda: Health(()))
    actor: Any = None
    reference: Any = None
    direct: DirectAddress | None = None
    state: WorkerState = WorkerState.STARTING
    pid: int | None = None
    node_id: str | None = None
    placed: bool = False
    pending: str = ""
    reason: str = ""
    ready_since: float | None = None
    unready_since: float | None = None
    replace_because: str = ""
    silent: bool = False
    _view: WorkerView | None = field(default=None, repr=False, compare=False)

    def view(self, capacity: int, ready: bool) -> WorkerView:
        """What routers are told of it: the same object as before where nothing has changed."""
        known = self._view
        if (
            known is None
            or known.ready is not ready
            or known.direct is not self.direct
            or known.actor is not self.reference
            or known.capacity != capacity
        ):
            known = self._view = WorkerView(self.id, self.reference, capacity, ready, self.direct)
        return known

    @property
    def draining(self) -> bool:
        """Whether it is on its way out."""
        return self.state is WorkerState.DRAINING

    @property
    def serving(self) -> bool:
        """Whether it has come up and is not on its way out."""
        return self.state in _SERVING

    def status(self, now: float, *, inflight: int, restarts: int) -> WorkerStatus:
        """The worker as people see it."""
        return WorkerStatus(
            id=self.id,
            state=self.state.value,
            pid=self.pid,
            node_id=self.node_id,
            age_s=now - self.created,
            reason=self.reason or self.pending,
            inflight=inflight,
            restarts=restarts,
            probes=tuple(self.health.latest.values()),
        )


@dataclass(frozen=True)
class WorkerRecord:
    """A worker as it is written down, for a controller that has to take it over. `failing`: see `Health.failing`."""

    id: str
    number: int
    slot: int
    age_s: float
    ready_s: float | None
    state: WorkerState
    reason: str
    pid: int | None
    node_id: str | None
    failing: tuple[tuple[Probe, bool], ...]
    unready_s: float | None = None


def record_of(worker: Worker, now: float) -> WorkerRecord:
    """What a successor of the controller has to know of a worker."""
    return WorkerRecord(
        id=worker.id,
        number=worker.number,
        slot=worker.slot,
        age_s=now - worker.created,
        ready_s=None if worker.ready_since is None else now - worker.ready_since,
        state=worker.state,
        reason=worker.reason,
        pid=worker.pid,
        node_id=worker.node_id,
        failing=worker.health.failing,
        unready_s=None if worker.unready_since is None else now - worker.unready_since,
    )


def restored_worker(record: WorkerRecord, probes: Iterable[Probe], elapsed_s: float, now: float) -> Worker:
    """A worker that was written down `elapsed_s` seconds ago; what it does now remains to be seen."""
    return Worker(
        id=record.id,
        number=record.number,
        slot=record.slot,
        created=now - elapsed_s - record.age_s,
        health=Health.restored(probes, record.failing, now),
        state=WorkerState.DRAINING if record.state is WorkerState.DRAINING else WorkerState.STARTING,
        reason=record.reason,
        pid=record.pid,
        node_id=record.node_id,
        ready_since=None if record.ready_s is None else now - elapsed_s - record.ready_s,
        unready_since=None if record.unready_s is None else now - elapsed_s - record.unready_s,
    )
