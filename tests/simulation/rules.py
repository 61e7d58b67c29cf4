"""What must hold at every moment of every simulation. Reckoned from outside: from what was told, asked and done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gworker.control.pool import Pool, Start, Stop
from gworker.control.workers import Worker, WorkerState
from gworker.probe import Probe, Verdict

if TYPE_CHECKING:
    from tests.simulation.callers import Call
    from tests.simulation.simulator import Simulation


class Row:
    """The verdicts of one probe on one worker, counted again. `said_no`: one was an answer, and none passed since."""

    def __init__(self, probe: Probe) -> None:
        self.failing = False
        self.said_no = False
        self._probe = probe
        self._failures = 0
        self._successes = 0

    @classmethod
    def failed(cls, probe: Probe, *, said_no: bool) -> Row:
        """One that has failed as often as it may."""
        row = cls(probe)
        row.failing, row.said_no, row._failures = True, said_no, probe.failures
        return row

    def count(self, verdict: Verdict) -> None:
        """One more verdict."""
        if verdict is Verdict.UNKNOWN:
            return
        if verdict is Verdict.PASSED:
            self._failures, self._successes = 0, self._successes + 1
            if self._successes >= self._probe.successes:
                self.failing = self.said_no = False
        else:
            self._failures, self._successes = self._failures + 1, 0
            self.said_no |= verdict is Verdict.FAILED
            self.failing |= self._failures >= self._probe.failures


class Rules:
    """Looks on. `exact_size`: there are never more workers that stay than are desired; true while all are ready."""

    def __init__(self, simulation: Simulation) -> None:
        self.exact_size = False
        self.kills = 0
        self.most_open_kills = 0
        self.bursts = 0
        self._simulation = simulation
        self._rows: dict[str, dict[Probe, Row]] = defaultdict(dict)
        self._open_kills: dict[str, int] = {}
        self._failed_at: dict[str, float] = {}
        self._in_burst = False
        self._period_s = max(
            (p.period_s for p in simulation.definition.options.probes if p.kind == "liveness"), default=0.0
        )

    # --- probes -----------------------------------------------------------------------------------------------------

    def probed(self, worker: Worker, probe: Probe, verdict: Verdict, change: bool | None) -> None:
        """A probe has run; the pool says whether that changed something."""
        row = self._rows[worker.id].setdefault(probe, Row(probe))
        before = row.failing
        row.count(verdict)
        assert change is (None if row.failing is before else not row.failing)
        if change is False and probe.kind == "liveness":
            self._failed_at[worker.id] = self._simulation.now

    def new_controller(self) -> None:
        """What was known of probes is known no more; the kills under way still are."""
        self._rows.clear()
        self._failed_at.clear()
        self._in_burst = False

    def taken_over(self, pool: Pool) -> None:
        """What was written down of probes that fail goes on counting."""
        for worker in pool.workers.values():
            for probe, denied in worker.health.failing:
                self._rows[worker.id][probe] = Row.failed(probe, said_no=denied)

    def failing(self, worker_id: str, kind: str) -> list[Row]:
        """The probes of a worker that have failed as often as they may."""
        rows = self._rows.get(worker_id)
        return [row for probe, row in rows.items() if probe.kind == kind and row.failing] if rows else []

    # --- the kill budget --------------------------------------------------------------------------------------------

    def before_plan(self) -> int:
        """Before each plan: how large the pool is; whether most of it has failed, and is not dealt with yet."""
        now, pool = self._simulation.now, self._simulation.pool
        self._settle_kills()
        self._failed_at = {w: at for w, at in self._failed_at.items() if now - at <= self._period_s}
        if 2 * len(self._failed_at) > len(pool.slots):
            self.bursts += not self._in_burst
            self._in_burst = True
        elif self._in_burst:
            waiting = (w for w in pool.workers.values() if w.serving and self.failing(w.id, "liveness"))
            self._in_burst = any(waiting)
        return len(pool.slots)

    def after_plan(self, actions: Iterable[Start | Stop], size: int) -> None:
        """After each plan."""
        self._settle_kills()  # a worker that is well again by the state of this moment closes the kill before
        kills = [a for a in actions if isinstance(a, Stop) and a.reason.startswith("liveness probe")]
        for kill in kills:
            assert self.failing(kill.worker_id, "liveness"), f"{kill} though its probe has not failed"
            self._open_kills[kill.worker_id] = self._simulation.pool.workers[kill.worker_id].slot
        self.kills += len(kills)
        self.most_open_kills = max(self.most_open_kills, len(self._open_kills))
        if kills:
            allowed = 1 if self._in_burst else max(1, size // 10)
            assert len(self._open_kills) <= allowed, f"{self._open_kills} killed at once, of {size}; {allowed} may be"

    def _settle_kills(self) -> None:
        if self._open_kills:
            pool = self._simulation.pool
            ready = {worker.slot for worker in pool.workers.values() if worker.state is WorkerState.READY}
            # A place that was given up is made good by another one: when none is missing.
            whole = len(ready) >= pool.autoscaler.desired
            self._open_kills = {
                worker_id: slot
                for worker_id, slot in self._open_kills.items()
                if worker_id in pool.workers or not (slot in ready or (slot not in pool.slots and whole))
            }

    # --- everything else --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """After everything that happens."""
        pool, options = self._simulation.pool, self._simulation.definition.options
        self._settle_kills()
        staying = {worker.slot: worker for worker in pool.workers.values() if not worker.draining}
        assert len(staying) == self._simulation.staying, "two workers in one place"
        assert len(staying) <= options.max_workers
        assert {n: w.id for n, w in staying.items()} == {
            n: slot.worker_id for n, slot in pool.slots.items() if slot.worker_id is not None
        }
        if self.exact_size:
            assert len(staying) <= pool.autoscaler.desired
        if pool.view.version > 1 and not pool.retired and self._simulation.definition.floor_when_idle:
            assert len(pool.slots) >= options.min_workers, "a place of the floor is missing"
        for view in pool.view.workers:
            if view.ready:
                worker = pool.workers.get(view.id)
                assert worker is not None and worker.serving, f"{view.id} is routed to, and does not serve"
                refusing = [
                    row for kind in ("liveness", "readiness") for row in self.failing(view.id, kind) if row.said_no
                ]
                assert not refusing, f"{view.id} is routed to, and said no"

    def call_ended(self, call: Call) -> None:
        """A call has its outcome: no call runs again that may have run before, unless its retries allow that."""
        assert call.runs <= 1 + min(call.lost, call.retries)
        if call.outcome in ("result", "system error"):
            assert call.runs >= 1
        elif call.outcome == "WorkerLost":
            assert call.lost == call.retries + 1
        elif call.outcome in ("StartupFailed", "PoolUnavailable", "Unschedulable"):
            assert call.router.view is not None and call.router.view.failure is not None
        else:
            assert call.outcome == "caller gone" and call.router.dead

    def account(self) -> None:
        """Every call that was made has ended, or is known to be open."""
        open_calls = sum(len(router.live) for router in self._simulation.routers)
        assert self._simulation.submitted == sum(self._simulation.outcomes.values()) + open_calls
