"""What follows one worker in a simulation, step by step as `gworker.control.keeper` and `prober` do with a real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gworker.control.keeper import PLACEMENT_S, UNSCHEDULABLE_AFTER_S
from gworker.control.workers import Worker, WorkerState
from gworker.probe import ANSWER_GRACE_S, Probe, Verdict
from gworker.worker.lifecycle import EXIT_BUDGET_S
from tests.simulation.agenda import Entry
from tests.simulation.processes import Answer, Process

if TYPE_CHECKING:
    from tests.simulation.simulator import Simulation

# How long a probe takes that answers.
ANSWERED_AFTER_S = 0.005


class Keeper:
    """Follows one worker from creation, or adoption, to death. `closed` with the controller it belongs to."""

    def __init__(self, simulation: Simulation, worker: Worker) -> None:
        self.worker = worker
        self.process: Process | None = None
        self.closed = False
        self.settled = False
        self._adopted = False
        self._simulation = simulation
        self._agenda = simulation.agenda
        self._pool = simulation.pool
        self._pending_since = self._agenda.now
        self._timers: list[Entry] = []

    # --- its life -------------------------------------------------------------------------------------------------

    def live(self) -> None:
        """Have a process made."""
        if self.worker.draining:
            self._lost("stopped before it began to start")
            return
        process = self._simulation.create(self.worker)
        self._follow(process)
        self._simulation.cluster.create(process)
        if not process.placed:
            self._timer(PLACEMENT_S, self._look_for_place)

    def adopt(self, process: Process | None) -> None:
        """Take over a process that is there already; None where there is none."""
        self._adopted = True
        if process is None or not process.alive:
            self._died("the worker is gone")
            return
        self._follow(process)
        if self.worker.draining:
            self.drain(self.worker.reason)
        if process.placed:
            self._placed()
        else:
            self._timer(PLACEMENT_S, self._look_for_place)

    def close(self) -> None:
        """The controller is gone, and what it follows with it."""
        self.closed = True
        for timer in self._timers:
            timer.cancel()

    def _follow(self, process: Process) -> None:
        self.process = self.worker.actor = self.worker.reference = process
        process.on_placed = self._placed
        process.on_entered = self._entered
        process.on_death = self._died

    def _timer(self, delay_s: float, action: Callable[..., object], *args: object) -> None:
        self._timers = [timer for timer in self._timers if timer.when >= self._agenda.now]
        self._timers.append(self._agenda.after(delay_s, action, *args))

    def _look_for_place(self) -> None:
        worker, process = self.worker, self.process
        if self.closed or process is None or process.placed or not process.alive:
            return
        waited_s = self._agenda.now - self._pending_since
        before = worker.pending
        if self._simulation.lacking is None:
            worker.pending = "waiting for CPU x1" if waited_s > 1.0 else "being placed"
            self._pool.unschedulable = ""
        else:
            worker.pending = self._simulation.lacking
            if not self._simulation.cluster_may_grow or waited_s >= UNSCHEDULABLE_AFTER_S:
                self._pool.cannot_be_placed(worker, self._simulation.lacking)
        if worker.pending != before:
            self._simulation.changed()
        # A real keeper looks every PLACEMENT_S; what it finds changes at these times only.
        self._timer(PLACEMENT_S if waited_s <= 1.0 + PLACEMENT_S else UNSCHEDULABLE_AFTER_S, self._look_for_place)

    def _placed(self) -> None:
        if self.closed or self.process is None:
            return
        self.worker.pending, self.worker.placed = "", True
        self._timer(self._pool.definition.options.startup_timeout_s, self._too_late)
        self.process.start()

    def _too_late(self) -> None:
        if not self.closed and self.worker.state is WorkerState.STARTING and self.process is not None:
            self.process.error = "on_enter did not finish within startup_timeout_s"
            self._entered()

    def _entered(self) -> None:
        worker, process, now = self.worker, self.process, self._agenda.now
        if self.closed or process is None or not process.alive or self.settled:
            return
        if worker.draining:
            if process.error is None:
                worker.pid, worker.node_id = process.number, "node"
                self._settle()
            else:
                self._kill()
                self._lost("stopped while it started")
            return
        if process.error is not None:
            self._kill()
            self._pool.start_failed(worker, process.error, now)
            self._gone()
            return
        self._pool.started(worker, process.number, "node", now, adopted=self._adopted)
        self._simulation.changed()
        for probe in self._pool.definition.options.probes:
            Prober(self._simulation, self, probe)
        self._settle()

    def _died(self, reason: str) -> None:
        if self.closed or self.worker.state is WorkerState.STOPPED:
            return
        if self.worker.state is WorkerState.STARTING:
            self._pool.start_failed(self.worker, reason, self._agenda.now)
            self._gone()
        else:
            self._lost(reason)

    def _lost(self, reason: str) -> None:
        self._pool.lost(self.worker, reason, self._agenda.now)
        self._gone()

    def _gone(self) -> None:
        self._settle()
        self._simulation.changed()

    def _settle(self) -> None:
        self.settled = True
        self._simulation.settled()

    # --- its end --------------------------------------------------------------------------------------------------

    def drain(self, reason: str) -> None:
        """No new inputs, running ones finish, on_exit runs, the process goes."""
        worker, process = self.worker, self.process
        served = worker.pid is not None and not worker.silent
        worker.state, worker.reason = WorkerState.DRAINING, reason
        self._simulation.changed()
        if process is None:
            return
        if served:
            grace_s = self._pool.definition.options.drain_timeout_s
            self._timer(grace_s + EXIT_BUDGET_S + 10.0, self._kill)
            process.drain(grace_s, self._kill)
        else:
            self._kill()

    def _kill(self) -> None:
        if self.process is not None and not self.closed:
            self._simulation.kill(self.process, "killed by the controller")


class Prober:
    """One probe of one worker."""

    def __init__(self, simulation: Simulation, keeper: Keeper, probe: Probe) -> None:
        self._simulation = simulation
        self._keeper = keeper
        self._probe = probe
        self._after(probe.initial_delay_s + simulation.dice.uniform(0.0, probe.period_s), self._ask)

    def _after(self, delay_s: float, action: Callable[..., object], *args: object) -> None:
        self._simulation.agenda.after(delay_s, action, *args)

    def _ask(self) -> None:
        keeper, probe = self._keeper, self._probe
        if keeper.closed or not keeper.worker.serving or keeper.process is None:
            return
        process, begun = keeper.process, self._simulation.agenda.now
        answer = process.ill or self._simulation.world.answer(process, probe)
        if process.frozen:
            self._after(probe.timeout_s + ANSWER_GRACE_S, self._answered, begun, Answer.HANGS)
        elif answer is Answer.HANGS:
            self._after(probe.timeout_s, self._answered, begun, answer)
        else:
            self._after(ANSWERED_AFTER_S, self._answered, begun, answer)

    def _answered(self, begun: float, answer: Answer) -> None:
        keeper, probe, now = self._keeper, self._probe, self._simulation.agenda.now
        worker, process = keeper.worker, keeper.process
        if keeper.closed or process is None:
            return
        worker.silent = process.frozen
        if not worker.serving:
            return
        progressed = process.succeeded > process.succeeded_at_probe.get(probe, 0)
        process.succeeded_at_probe[probe] = process.succeeded
        verdict, reason = {
            Answer.YES: (Verdict.PASSED, ""),
            Answer.NO: (Verdict.FAILED, "returned False"),
            Answer.RAISES: (Verdict.FAILED, "raised ValueError"),
            Answer.HANGS: (Verdict.TIMED_OUT, f"no answer within {probe.timeout_s:g} s"),
            Answer.LOST: (Verdict.UNKNOWN, "asking failed"),
        }[answer]
        if verdict is Verdict.TIMED_OUT and progressed and not process.frozen:
            verdict = Verdict.UNKNOWN
        if not process.alive:
            verdict = Verdict.UNKNOWN
        self._simulation.probed(worker, probe, verdict, now - begun, reason)
        self._after(max(0.0, probe.period_s - (now - begun)), self._ask)
