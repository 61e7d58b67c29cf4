"""One pool: which workers it has, which it should have, and what routers are told. Pure: no Ray, no clock.

The controller feeds it what happened and carries out what `plan` returns. A pool has *slots*, one for each worker it
wants; a slot whose worker is lost gets another one when its backoff allows.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from gworker.control.autoscaler import Autoscaler, ScalePolicy
from gworker.control.demands import DEMAND_EXPIRES_S, Demands
from gworker.control.health import Health
from gworker.control.slot import Slot, SlotRecord
from gworker.control.supervisor import Hope, KillBudget
from gworker.control.workers import Worker, WorkerRecord, WorkerState, record_of, restored_worker
from gworker.errors import GWorkerError, PoolUnavailable, StartupFailed, Unschedulable
from gworker.observe.status import MethodTimes, PoolStatus, WorkerStatus
from gworker.observe.times import Times, add_all
from gworker.probe import Probe, Verdict
from gworker.router.membership import Demand, PoolDefinition, PoolState, PoolView

# A worker that has not been ready for this long does not count as capacity any more.
UNREADY_COUNTS_S = 30.0
# A pool that nobody used for this long, and that has no workers, is forgotten.
FORGET_POOL_S = 60.0


@dataclass(frozen=True)
class Start:
    """Create a worker for this slot, when there is room for it."""

    slot: int


@dataclass(frozen=True)
class Stop:
    """Drain this worker and see it gone."""

    worker_id: str
    reason: str


@dataclass(frozen=True)
class PoolRecord:
    """A pool as it is written down; its definition stands elsewhere, because it never changes.

    `pinned` is a size that an update keeps it at, None where it follows the demand.
    """

    desired: int
    pinned: int | None
    retired: bool
    slots: tuple[SlotRecord, ...]
    workers: tuple[WorkerRecord, ...]
    kills: tuple[tuple[str, int], ...]
    restarts: int
    failed_starts: int
    next_try_s: float
    has_served: bool
    last_error: str | None


def _policy(definition: PoolDefinition) -> ScalePolicy:
    options = definition.options
    return ScalePolicy(
        min_workers=options.min_workers,
        max_workers=options.max_workers,
        buffer_workers=options.buffer_workers,
        target_inputs=definition.target_inputs,
        window_s=options.scaledown_window_s,
        floor_when_idle=definition.floor_when_idle,
    )


def _unheard(worker: str, action: str, reason: str) -> None:
    pass


class Pool:
    """The workers of one class, or of one variant of it."""

    def __init__(
        self,
        definition: PoolDefinition,
        now: float,
        *,
        on_event: Callable[[str, str, str], object] = _unheard,
        rng: random.Random | None = None,
    ) -> None:
        self.definition = definition
        self.workers: dict[str, Worker] = {}
        self.slots: dict[int, Slot] = {}
        self.hope = Hope(definition.options.min_workers)
        self.kills = KillBudget()
        self.autoscaler = Autoscaler(_policy(definition))
        self.restarts = 0
        self.notice = ""
        self.retired = False
        self.pinned: int | None = None
        self.unschedulable = ""
        self.closing = ""
        self.view = PoolView(version=0, state=PoolState.SCALING, workers=())
        self._on_event = on_event
        self._rng = rng
        self._now = now
        self._demands = Demands()
        self._times: dict[str, Times] = {}
        self._used_at = now
        self._hears_all_at = now
        self._panicking = False
        self._going_because = "replaced by a new definition"
        self._told_desired = self.autoscaler.desired
        self._told_state = PoolState.READY

    # --- what happened --------------------------------------------------------------------------------------------

    def rescale(self, definition: PoolDefinition) -> None:
        """Keep other numbers of workers from now on: `definition` is the pool's own, with other bounds."""
        self.definition = definition
        self.autoscaler.rescale(_policy(definition))
        options = definition.options
        self._on_event("", "bounds changed", f"{options.min_workers} to {options.max_workers} workers")

    def report(self, router: str, demand: Demand, now: float) -> None:
        """A router says what it needs, which workers have its inputs, and which gave it system errors in a row."""
        for worker_id, in_a_row in self._demands.report(router, demand, now).items():
            worker = self.workers.get(worker_id)
            if worker is not None and worker.serving and worker.health.count_errors(router, in_a_row, now):
                self._on_event(worker_id, "ejected", worker.health.why_ejected)
        if not demand.idle:
            self._used_at = now

    def count_times(self, times: Mapping[str, Times]) -> None:
        """A router says where the time of calls went since its last report, by method."""
        add_all(self._times, times)

    def add(self, slot: int, worker_id: str, number: int, now: float) -> Worker:
        """The worker that `Start(slot)` asked for."""
        worker = Worker(worker_id, number, slot, now, Health(self.definition.options.probes))
        self.workers[worker_id] = worker
        self.slots[slot].worker_id = worker_id
        again = self.slots[slot].restarts
        self._on_event(worker_id, "starting", f"restart {again} of its place" if again else "")
        return worker

    def started(
        self, worker: Worker, pid: int, node_id: str, now: float, *, adopted: bool = False, phases: str = ""
    ) -> None:
        """A worker finished its on_enter hooks; long ago, where it was `adopted`. `phases` tells what took how long."""
        worker.pid, worker.node_id, worker.pending, worker.reason = pid, node_id, "", ""
        worker.state = WorkerState.READY
        if worker.ready_since is None:
            worker.ready_since = now
        self.unschedulable = ""
        self.hope.start_succeeded()
        took = f"{now - worker.created:.2f} s after it was asked for"
        details = f": {phases}" if phases and not adopted else ""
        self._on_event(worker.id, "adopted" if adopted else "ready", took + details)

    def cannot_be_placed(self, worker: Worker, lacking: str) -> None:
        """No node of the cluster could ever hold a worker of this pool."""
        if self.unschedulable != lacking:
            self.unschedulable = lacking
            self._on_event(worker.id, "unschedulable", lacking)

    def start_failed(self, worker: Worker, error: str, now: float) -> None:
        """A worker did not come up."""
        if worker.ready_since is not None:  # it had, for an earlier controller, and is gone since
            self.lost(worker, error, now)
            return
        self._remove(worker, "its start failed")
        self._slot_failed(worker, (error.strip().splitlines() or ["it failed to start"])[-1], now)
        self.hope.start_failed(error, now)
        self._on_event(worker.id, "failed to start", error.strip())

    def lost(self, worker: Worker, reason: str, now: float) -> None:
        """A worker's process has ended, as wanted or not."""
        wanted = worker.draining
        self._remove(worker, reason)
        if not wanted:
            self._slot_failed(worker, reason, now)
        self._on_event(worker.id, "stopped" if wanted else "crashed", reason)

    def replace(self, worker: Worker, reason: str) -> None:
        """A worker said that it must be replaced; `plan` sees to it."""
        if worker.serving:
            worker.replace_because = reason

    def probed(
        self, worker: Worker, probe: Probe, verdict: Verdict, latency_s: float, reason: str, now: float
    ) -> bool | None:
        """A probe has run; what that changed, as `ProbeState.record` says it."""
        change = worker.health.record(probe, verdict, latency_s, reason, now)
        if change is False and probe.kind == "liveness":
            self.kills.failed(worker.id, now)
            self._on_event(worker.id, "failed liveness", worker.health.why(now))
        return change

    def _slot_failed(self, worker: Worker, reason: str, now: float) -> None:
        self.restarts += 1
        slot = self.slots.get(worker.slot)
        if slot is not None and slot.worker_id == worker.id:
            healthy_s = 0.0 if worker.ready_since is None else now - worker.ready_since
            slot.failed(reason, now, healthy_s=healthy_s)

    def _remove(self, worker: Worker, reason: str) -> None:
        worker.state, worker.reason = WorkerState.STOPPED, worker.reason or reason
        self.workers.pop(worker.id, None)

    def retire(self, reason: str) -> None:
        """Another definition has taken its place: it serves what it was given, and goes."""
        self.retired, self._going_because, self.pinned = True, reason, None
        self._demands.clear()

    def unpin(self) -> None:
        """Follow the demand again, from the size that it has."""
        if self.pinned is not None:
            self.autoscaler.begin_at(self.pinned)
            self._told_desired = self.pinned
            self.pinned = None

    # --- what follows ---------------------------------------------------------------------------------------------

    def those(self, state: WorkerState) -> list[Worker]:
        """The workers in a state."""
        return [worker for worker in self.workers.values() if worker.state is state]

    def plan(self, now: float) -> list[Start | Stop]:
        """What is to be done so that the pool is healthy and gets to its size."""
        self._now = now
        demand = self._demands.total(now)
        self._settle_states(now)
        stops = [*self._replacements(), *self._kills(now)]
        desired = self._desired(demand, now)
        stops += self._shrink(desired, now)
        self._grow(desired, now)
        if desired == 0 and not self.slots:
            self.hope.begin_anew()
            self.unschedulable = ""
        starts = self._starts(now)
        self.refresh(now)
        return [*stops, *starts]

    @property
    def size(self) -> int:
        """How many workers it is to have, as was decided last."""
        return self.autoscaler.desired if self.pinned is None else self.pinned

    @property
    def forgettable(self) -> bool:
        """Whether the pool is of no use to anybody: no workers, no demand for a while, no floor to keep."""
        return not self.workers and not self.slots and self._now - self._used_at > FORGET_POOL_S

    def _settle_states(self, now: float) -> None:
        for worker in self.workers.values():
            if not worker.serving:
                continue
            if worker.health.serves(now):
                if worker.state is WorkerState.UNREADY:
                    worker.state, worker.reason = WorkerState.READY, ""
                    self._on_event(worker.id, "ready again", "")
                worker.unready_since = None
                continue
            worker.reason = worker.health.why(now)
            if worker.state is WorkerState.READY:
                worker.state = WorkerState.UNREADY
                if worker.unready_since is None:  # else an earlier controller has seen it begin
                    worker.unready_since = now
                self._on_event(worker.id, "unready", worker.reason)
        ready = [worker.slot for worker in self.those(WorkerState.READY)]
        whole = self.retired or len(ready) >= self.size
        self.kills.settle(self.workers, ready, self.slots, whole=whole)

    def _replacements(self) -> list[Stop]:
        return [self._stop(w, w.replace_because, failed=True) for w in self._serving() if w.replace_because]

    def _kills(self, now: float) -> list[Stop]:
        """Replace workers that failed their liveness probe, the first to fail first, as many as may be at once."""
        period_s = max((p.period_s for p in self.definition.options.probes if p.kind == "liveness"), default=0.0)
        if not period_s:
            return []
        condemned = sorted(
            (w for w in self._serving() if w.health.condemned), key=lambda w: (w.health.condemned_at or now, w.number)
        )
        count = self.kills.allowance(len(self.slots), period_s, now, condemned=len(condemned))
        stops = []
        for worker in condemned[:count]:
            self.kills.kill(worker.id, worker.slot)
            stops.append(self._stop(worker, worker.health.why(now), failed=True))
        return stops

    def _serving(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.serving]

    def _stop(self, worker: Worker, reason: str, *, failed: bool = False) -> Stop:
        if failed:
            self._slot_failed(worker, reason, self._now)
        else:
            self.slots.pop(worker.slot, None)
        worker.state, worker.reason = WorkerState.DRAINING, reason
        self._on_event(worker.id, "replaced" if failed else "draining", reason)
        return Stop(worker.id, reason)

    def _desired(self, demand: Demand, now: float) -> int:
        deaf = self._deaf(now)
        if self.retired:
            # What was called before the new definition is still served, by as few workers as there are.
            # One is started only for calls that wait: those that run, or ran a moment ago, need none.
            counted = sum(self._counts(slot, now) for slot in self.slots.values())
            return 0 if demand.idle and not deaf else max(int(demand.queued > 0), counted)
        if self.pinned is not None:
            return self.pinned
        at_least = self.autoscaler.desired if deaf else 0
        desired = self.autoscaler.tick(demand.queued + demand.running, now, at_least=at_least)
        if desired != self._told_desired:
            action = "scaled up" if desired > self._told_desired else "scaled down"
            why = f"from {self._told_desired} to {desired}: {demand.queued} queued, {demand.running} running"
            self._on_event("", action, why)
            self._told_desired = desired
        return desired

    def _deaf(self, now: float) -> bool:
        """Whether a restored pool may not have heard yet what the routers need, and which workers have their inputs."""
        return now < self._hears_all_at

    def _counts(self, slot: Slot, now: float) -> bool:
        """Whether a slot counts as capacity: it has a worker that serves, will serve or may serve again, or will."""
        worker = self.workers.get(slot.worker_id or "")
        return worker is None or worker.unready_since is None or now - worker.unready_since < UNREADY_COUNTS_S

    def _grow(self, desired: int, now: float) -> None:
        counted = sum(self._counts(slot, now) for slot in self.slots.values())
        # For each worker that is long unready another may come; no more than double the pool, whatever fails.
        most = min(self.definition.options.max_workers, 2 * desired)
        free = (number for number in itertools.count() if number not in self.slots)
        for _ in range(min(desired - counted, most - len(self.slots))):
            number = next(free)
            self.slots[number] = Slot(number, self._rng)

    def _shrink(self, desired: int, now: float) -> list[Stop]:
        """Let go what is too much: places without a worker first, then those that do not serve, idle ones, new ones.

        A pool that cannot know yet which workers are idle keeps them all; what an update decides needs no demand.
        """
        counted = [slot for slot in self.slots.values() if self._counts(slot, now)]
        going = []
        if len(counted) > desired:
            inflight = self._demands.inflight()
            going = sorted(counted, key=lambda slot: self._keeping(slot, inflight))[: len(counted) - desired]
        going += self._replaced_unready(counted, desired, now)
        stops = []
        keeps_workers = self._deaf(now) and self.pinned is None
        for slot in going:
            worker = self.workers.get(slot.worker_id or "")
            if worker is None:
                del self.slots[slot.number]
            elif not keeps_workers:
                reason = self._going_because if self.retired else "scaled down"
                reason = "makes room for the new version" if self.pinned is not None else reason
                stops.append(self._stop(worker, reason))
        return stops

    def _keeping(self, slot: Slot, inflight: dict[str, int]) -> tuple[int, bool, int]:
        """The later in this order, the longer it is kept."""
        worker = self.workers.get(slot.worker_id or "")
        if worker is None:
            return (0, False, -slot.number)
        rank = {WorkerState.STARTING: 1, WorkerState.UNREADY: 2}.get(worker.state, 3)
        return (rank, inflight.get(worker.id, 0) > 0, -worker.number)

    def _replaced_unready(self, counted: list[Slot], desired: int, now: float) -> list[Slot]:
        """Workers that have not been ready for a whole window, where as many as are wanted are ready without them."""
        if len(self.those(WorkerState.READY)) < desired or len(counted) == len(self.slots):
            return []
        window_s = max(UNREADY_COUNTS_S, self.definition.options.scaledown_window_s)
        long_unready = []
        for slot in self.slots.values():
            worker = self.workers.get(slot.worker_id or "")
            if worker is not None and worker.unready_since is not None and now - worker.unready_since >= window_s:
                long_unready.append(slot)
        return long_unready

    def _starts(self, now: float) -> list[Start | Stop]:
        due = [s for s in self.slots.values() if s.worker_id is None and now >= s.start_allowed_at]
        if self.failed(now):
            # Without hope: one try at a time, until one comes up.
            due = due[:1] if not self.those(WorkerState.STARTING) and now >= self.hope.next_try_at else []
        return [Start(slot.number) for slot in due]

    # --- what is told ---------------------------------------------------------------------------------------------

    def failed(self, now: float) -> bool:
        """Whether calls are not to wait: nothing serves, and every start has failed again and again."""
        if any(w.serving for w in self.workers.values()):
            return False
        worn_out = self.hope.failed_starts > 0 and bool(self.slots) and all(s.held(now) for s in self.slots.values())
        return self.hope.lost or worn_out

    def _state(self, now: float) -> PoolState:
        if self.failed(now):
            return PoolState.FAILED
        ready, unready = len(self.those(WorkerState.READY)), len(self.those(WorkerState.UNREADY))
        if (unready and ready < unready) or any(slot.held(now) for slot in self.slots.values()):
            return PoolState.DEGRADED
        if ready < len(self.slots) or len(self.slots) != self.size:
            return PoolState.SCALING
        return PoolState.READY

    def failure(self, now: float) -> GWorkerError | None:
        """What calls that wait are to raise, or None while there is hope."""
        name = self.definition.key.class_name
        if self.closing:
            return PoolUnavailable(self.closing)
        if self.unschedulable:
            return Unschedulable(f"{name} {self.unschedulable}")
        if self.failed(now):
            which = "the last workers" if self.hope.has_served else "the first workers"
            return StartupFailed(f"{name}: {which} all failed to start; the last error was:\n{self.hope.last_error}")
        return None

    def waiting_for(self, now: float) -> str:
        """Why no worker is ready, in words."""
        starting = self.those(WorkerState.STARTING)
        pending = sorted({w.pending for w in starting if w.pending})
        if self.closing or self.unschedulable:
            return self.closing or self.unschedulable
        if pending:
            return f"{len(starting)} starting: {'; '.join(pending)}"
        if starting:
            return f"{len(starting)} starting (on_enter is running)"
        unready = self.those(WorkerState.UNREADY)
        if unready:
            return f"{len(unready)} not ready: {unready[0].reason}"
        waits = [slot for slot in self.slots.values() if slot.worker_id is None and slot.start_allowed_at > now]
        if waits:
            soonest = min(waits, key=lambda slot: slot.start_allowed_at)
            return f"backing off after a failure: {soonest.reason}"
        return "no worker yet"

    def refresh(self, now: float) -> bool:
        """Bring `view` up to date; True if something that routers act on has changed."""
        self._now = now
        state = self._state(now)
        if state is not self._told_state and state in (PoolState.DEGRADED, PoolState.FAILED):
            self._on_event("", state.value.lower(), self.waiting_for(now))
        self._told_state = state
        routable = self._routable(now)
        workers = tuple(
            w.view(self.definition.max_inputs, w.id in routable)
            for w in self.workers.values()
            if w.serving or (w.draining and w.pid is not None)
        )
        failure = self.failure(now)
        view = PoolView(
            version=self.view.version,
            state=state,
            workers=workers,
            waiting_for=self.waiting_for(now),
            failure=failure,
            notice=self.notice,
            start_error=self.hope.last_error,
            app_version=str(self.definition.key.generation),
        )
        if self.view.version and view.tells_the_same_as(self.view):
            return False
        self.view = replace(view, version=self.view.version + 1)
        return True

    def _routable(self, now: float) -> set[str]:
        """The workers to send inputs to. While fewer than half are ready, doubtful ones too: better they than none."""
        serving = self._serving()
        routable = {w.id for w in serving if w.state is WorkerState.READY and w.health.serves(now)}
        doubtful = [w for w in serving if w.id not in routable and not w.health.said_no]
        panicking = bool(doubtful) and 2 * len(routable) < len(serving)
        if panicking and not self._panicking:
            self._on_event("", "panic", f"{len(routable)} of {len(serving)} are ready: {len(doubtful)} more are used")
        self._panicking = panicking
        return routable | {w.id for w in doubtful} if panicking else routable

    def status(self, now: float) -> PoolStatus:
        """The pool as people see it."""
        demand = self._demands.total(now)
        inflight = self._demands.inflight()

        def restarts(worker: Worker) -> int:
            slot = self.slots.get(worker.slot)
            return slot.restarts if slot is not None and slot.worker_id == worker.id else 0

        workers = [w.status(now, inflight=inflight.get(w.id, 0), restarts=restarts(w)) for w in self.workers.values()]
        workers += [self._vacant(slot, now) for slot in self.slots.values() if slot.worker_id is None]
        starting = self.those(WorkerState.STARTING)
        ready = len(self.those(WorkerState.READY))
        waits = not ready and bool(workers or demand.queued)
        return PoolStatus(
            name=str(self.definition.key),
            class_name=self.definition.key.class_name,
            state=self._state(now).value,
            desired=0 if self.retired else self.size,
            ready=ready,
            starting=len(starting),
            pending=sum(not w.placed for w in starting),
            draining=len(self.those(WorkerState.DRAINING)),
            queued=demand.queued,
            running=demand.running,
            restarts=self.restarts,
            waiting_for=self.waiting_for(now) if waits or any(w.pending for w in starting) else "",
            workers=tuple(workers),
            times=tuple(MethodTimes.of(method, times) for method, times in sorted(self._times.items())),
        )

    def _vacant(self, slot: Slot, now: float) -> WorkerStatus:
        wait_s = slot.start_allowed_at - now
        reason = f"next try in {wait_s:.0f} s: {slot.reason}" if wait_s > 0 else slot.reason or "waits for room"
        name = f"{self.definition.key.class_name}/{slot.number}"
        return WorkerStatus(name, WorkerState.BACKOFF.value, None, None, 0.0, reason, restarts=slot.restarts)

    # --- what is written down ---------------------------------------------------------------------------------------

    def record(self, now: float) -> PoolRecord:
        """What a successor of the controller has to know."""
        return PoolRecord(
            desired=self.autoscaler.desired,
            pinned=self.pinned,
            retired=self.retired,
            slots=tuple(slot.record(now) for slot in self.slots.values()),
            workers=tuple(record_of(worker, now) for worker in self.workers.values()),
            kills=tuple(self.kills.open.items()),
            restarts=self.restarts,
            failed_starts=self.hope.failed_starts,
            next_try_s=self.hope.next_try_at - now,
            has_served=self.hope.has_served,
            last_error=self.hope.last_error,
        )

    def restore(self, record: PoolRecord, elapsed_s: float, now: float) -> None:
        """Go on from what was written down `elapsed_s` seconds ago. The workers are as yet only said to be there."""
        self._hears_all_at = now + DEMAND_EXPIRES_S
        self.autoscaler.desired = self._told_desired = record.desired
        self.pinned, self.retired = record.pinned, record.retired
        self.slots = {s.number: Slot.restored(s, elapsed_s, now, self._rng) for s in record.slots}
        probes = self.definition.options.probes
        self.workers = {w.id: restored_worker(w, probes, elapsed_s, now) for w in record.workers}
        for worker_id, slot in record.kills:
            self.kills.kill(worker_id, slot)
        self.hope.failed_starts = record.failed_starts
        self.hope.next_try_at = now + record.next_try_s - elapsed_s
        self.hope.has_served = record.has_served
        self.hope.last_error = record.last_error
        self.restarts = record.restarts
