"""Follows one worker from creation, or adoption, to death: a thin shell that tells its pool what happened.

1. The worker is asked of Ray; while it has no node, the pool hears what is missing.
2. `start` loads the class and runs the on_enter hooks, within `startup_timeout_s`.
3. Probes run, and a `watch` call is kept open: it brings trouble that the worker sees in itself, and fails in the
   moment in which the process dies.
4. `drain` lets running inputs finish and on_exit hooks run; then the process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError

from gworker import clock
from gworker.control.nodes import LOOK_S, Nodes
from gworker.control.placement import actor_options, describe_requirement, what_no_node_has
from gworker.control.pool import Pool
from gworker.control.prober import Prober, result_of
from gworker.control.workers import Worker, WorkerState
from gworker.deaths import death_reason
from gworker.router.reference import ActorReference
from gworker.worker.actor import StartReport, Trouble, WorkerBoot, WorkerStats, create_worker
from gworker.worker.lifecycle import EXIT_BUDGET_S

log = logging.getLogger("gworker.controller")

# How long a worker may lack a node before callers are told that there is none, where more nodes may come.
UNSCHEDULABLE_AFTER_S = 30.0
# How long the cluster is given to place a worker before its absence is looked into.
PLACEMENT_S = 0.3
# How long after its loss Ray may still place workers on a node.
RAY_KNOWS_S = 20.0
# How long a worker that Ray cannot reach may stay so before it is given up.
UNREACHABLE_S = 30.0
# How long a worker that has drained may take to see its last answers delivered.
SETTLE_S = 2.0
# How long a worker may take to tell its counters: a status is for people who wait.
STATS_S = 2.0


class NodeLostError(Exception):
    """A worker will never come up: Ray has put it on a node that is gone."""


@dataclass(frozen=True)
class House:
    """What keepers share of their controller.

    `actor_extra` names a worker's actor where it is to outlive the controller. `changed` is called with the pool after
    each change; `seen` returns when the routers know of it, or are gone; `spawn` runs a coroutine beside all else.
    """

    app_name: str
    controller: ActorReference
    cluster_may_grow: bool
    orphaned_s: float | None
    actor_extra: Callable[[str], dict[str, Any]]
    nodes: Nodes
    changed: Callable[[Pool], None]
    seen: Callable[[Pool], Awaitable[None]]
    spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]


class Keeper:
    """The keeper of one worker. `gone` is set when the worker is."""

    def __init__(self, house: House, pool: Pool, worker: Worker) -> None:
        self.pool = pool
        self.worker = worker
        self.gone = asyncio.Event()
        self.settled = asyncio.Event()
        self._house = house
        self._placed_at = worker.created
        self._probers: list[asyncio.Task[Any]] = []

    # --- its life -------------------------------------------------------------------------------------------------

    async def live(self, find: Callable[[str], Any] | None = None) -> None:
        """Follow the worker to its end. `find` gets the actor of one that is there already."""
        pool, worker = self.pool, self.worker
        try:
            if worker.draining and find is None:
                pool.lost(worker, "stopped before it began to start", clock.now())
                return
            worker.actor = self._create() if find is None else await asyncio.to_thread(find, worker.id)
            worker.reference = ActorReference(worker.actor)
            if worker.draining:
                self._house.spawn(self.drain(worker.reason))
            placed = asyncio.ensure_future(result_of(worker.actor.__ray_ready__.remote()))
            started = asyncio.ensure_future(result_of(worker.actor.start.remote()))  # no round trip later
            for asked in (placed, started):  # nobody may wait for them any more; then what they raise is no news
                asked.add_done_callback(lambda done: done.cancelled() or done.exception())
            await self._placed(placed)
            if not await self._entered(started, adopted=find is not None):
                return
            self.settled.set()
            self._died(await self._watch())
        except (RayError, ValueError, NodeLostError) as error:
            reason = death_reason(error)
            if isinstance(error, ActorUnavailableError):  # which says nothing of why
                reason = await self._why_lost(0.0) or reason
            self._died(reason)
        except Exception as error:
            log.exception("%s: following %s failed", self._house.app_name, worker.id)
            self.kill()
            pool.start_failed(worker, f"{type(error).__name__}: {error}", clock.now())
        finally:
            for prober in self._probers:
                prober.cancel()
            self.gone.set()
            self.settled.set()
            self._house.changed(pool)

    def _create(self) -> Any:
        definition = self.pool.definition
        boot = WorkerBoot(
            app_name=self._house.app_name,
            pool=definition.key,
            worker_id=self.worker.id,
            cls=definition.cls,
            worker_values=definition.worker_values,
            controller=self._house.controller,
            code=definition.code,
            orphaned_s=self._house.orphaned_s,
        )
        house = self._house
        options = actor_options(definition.options) | house.nodes.actor_options() | house.actor_extra(self.worker.id)
        return create_worker(boot, options)

    async def _placed(self, ready: asyncio.Future[Any]) -> None:
        """Wait until Ray has found a place; meanwhile say what it lacks."""
        pool, worker = self.pool, self.worker
        begun = clock.now()
        options = pool.definition.options
        while not (await asyncio.wait([ready], timeout=PLACEMENT_S))[0]:
            waited_s = clock.now() - begun
            may_be_lost = LOOK_S < waited_s < RAY_KNOWS_S and await self._house.nodes.any_lost()
            if may_be_lost and (lost := await self._why_lost(LOOK_S)):
                raise NodeLostError(lost)
            told = worker.pending, pool.unschedulable
            lacking = what_no_node_has(options, self._house.nodes.totals())
            if lacking is None:
                # Where a node could hold it, it is either on its way or the node is full.
                needs = describe_requirement(options)
                worker.pending = f"waiting for {needs}" if needs and waited_s > 1.0 else "being placed"
                pool.unschedulable = ""
            else:
                worker.pending = lacking
                if not self._house.cluster_may_grow or waited_s >= UNSCHEDULABLE_AFTER_S:
                    pool.cannot_be_placed(worker, lacking)
            if told != (worker.pending, pool.unschedulable):
                self._house.changed(pool)
        await ready
        worker.pending, worker.placed = "", True
        self._placed_at = clock.now()

    async def _entered(self, start: asyncio.Future[StartReport], *, adopted: bool) -> bool:
        """Wait for the on_enter hooks; False if the worker did not come up, and is gone."""
        pool, worker = self.pool, self.worker
        limit_s = pool.definition.options.startup_timeout_s
        done, _ = await asyncio.wait([start], timeout=limit_s)
        if done:
            report = await start
        else:
            report = StartReport(0, "", f"on_enter did not finish within startup_timeout_s={limit_s:g}\n")
        if worker.draining:
            if report.error is None:  # stopped while it was starting; `drain` sees to the rest
                worker.pid, worker.node_id = report.pid, report.node_id
                return True
            self.kill()
            pool.lost(worker, "stopped while it started", clock.now())
            return False
        if report.error is not None:
            log.error("%s: %s failed to start:\n%s", self._house.app_name, worker.id, report.error)
            self.kill()
            pool.start_failed(worker, report.error, clock.now())
            return False
        worker.direct = report.direct
        up_s = self._placed_at - worker.created
        phases = (
            f"{up_s:.2f} s until its process was up, {report.load_s:.2f} s to load, {report.enter_s:.2f} s in on_enter"
        )
        pool.started(worker, report.pid, report.node_id, clock.now(), adopted=adopted, phases=phases)
        self._house.changed(pool)
        for probe in pool.definition.options.probes:
            prober = Prober(self._house.app_name, pool, worker, probe, self._house.changed)
            self._probers.append(self._house.spawn(prober.run()))
        return True

    async def _watch(self) -> str:
        """Hear of trouble, until the process dies: why, where Ray does not say it by an error."""
        seen = 0
        unreachable_since: float | None = None
        while True:
            try:
                troubles: list[Trouble] = await self.worker.actor.watch.remote(seen)
            except ActorUnavailableError:
                # The connection broke; the process may be alive.
                if lost := await self._why_lost(LOOK_S):
                    return lost
                unreachable_since = unreachable_since or clock.now()
                if clock.now() - unreachable_since > UNREACHABLE_S:
                    raise
                await asyncio.sleep(1.0)
                continue
            unreachable_since = None
            for trouble in troubles:
                seen = trouble.number
                self.pool.replace(self.worker, f"{trouble.kind}: {trouble.reason}")
            if troubles:
                self._house.changed(self.pool)

    async def _why_lost(self, at_most_old_s: float) -> str:
        """Why the worker's node is taken for lost; nothing where it is not, or is not known."""
        nodes = self._house.nodes
        node_id = self.worker.node_id or await nodes.node_of(self.worker.actor)
        return await nodes.why_lost(node_id, at_most_old_s=at_most_old_s)

    def _died(self, reason: str) -> None:
        pool, worker = self.pool, self.worker
        self.kill()  # it may be alive, out of our reach
        starting = worker.state is WorkerState.STARTING and worker.pid is None
        if starting and not reason.startswith("node lost"):  # which would say nothing against the class
            log.error("%s: %s died while starting: %s", self._house.app_name, worker.id, reason)
            pool.start_failed(worker, reason, clock.now())
            return
        if not worker.draining:
            log.warning("%s: %s died and is replaced: %s", self._house.app_name, worker.id, reason)
        pool.lost(worker, reason, clock.now())

    # --- its end --------------------------------------------------------------------------------------------------

    async def drain(self, reason: str, most_s: float | None = None) -> None:
        """No new inputs, running ones finish (within `most_s` seconds, if given), on_exit runs, the process goes."""
        worker = self.worker
        log.info("%s: draining %s: %s", self._house.app_name, worker.id, reason)
        served = worker.actor is not None and worker.pid is not None and not worker.silent
        worker.state, worker.reason = WorkerState.DRAINING, reason
        try:
            self._house.changed(self.pool)
            if served:
                await self._drain(most_s)
        except Exception:
            log.exception("%s: draining %s failed inside gworker; it is killed", self._house.app_name, worker.id)
        finally:
            self.kill()

    async def _drain(self, most_s: float | None) -> None:
        worker = self.worker
        grace_s = self.pool.definition.options.drain_timeout_s
        grace_s = grace_s if most_s is None else min(grace_s, most_s)
        problems = await self._within(worker.actor.drain.remote(grace_s), grace_s + EXIT_BUDGET_S + 10.0)
        for problem in ["it did not drain in time and is killed"] if problems is None else problems:
            log.warning("%s: draining %s: %s", self._house.app_name, worker.id, problem)
        # A router that has not yet seen that the worker drains may send it one more input, which is refused.
        await self._house.seen(self.pool)
        await self._within(worker.actor.settle.remote(), SETTLE_S)

    async def stats(self) -> WorkerStats | None:
        """The worker's own counters; None where it does not answer soon."""
        found: WorkerStats | None = await self._within(self.worker.actor.stats.remote(), STATS_S)
        return found

    @staticmethod
    async def _within(reference: Any, limit_s: float) -> Any:
        """What a call to the worker returned; None where it failed, or took longer."""
        asked = asyncio.ensure_future(result_of(reference))
        done, _ = await asyncio.wait([asked], timeout=limit_s)
        if not done or asked.exception() is not None:
            asked.add_done_callback(lambda late: late.exception())
            return None
        return asked.result()

    def kill(self) -> None:
        """End the process now."""
        if self.worker.actor is not None:
            with contextlib.suppress(Exception):  # it was gone already
                ray.kill(self.worker.actor)
