"""The controller: one Ray actor per app, holding no CPU, that keeps the app's pools. No call passes through it.

A loop wakes when something happened, and a few times a second besides; it asks each pool for its plan and carries it
out. Each worker has one task that follows it from creation to death.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import logging
import random
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError

from gworker import clock
from gworker.control.placement import actor_options, describe_requirement, requirement, what_no_node_has
from gworker.control.pool import Pool, Start, Stop, Worker, WorkerState
from gworker.errors import PoolUnavailable
from gworker.observe.status import AppStatus, PoolStatus, ProbeStatus
from gworker.options import Options
from gworker.probe import Probe, ProbeState, Verdict
from gworker.router.membership import Demand, PoolDefinition, PoolKey, PoolView
from gworker.router.router import death_reason
from gworker.worker.actor import ProbeReport, StartReport, WorkerBoot, WorkerStats, create_worker
from gworker.worker.lifecycle import EXIT_BUDGET_S

log = logging.getLogger("gworker.controller")

# The longest the loop sleeps, so that windows and expiries are seen in time.
TICK_S = 0.25
# How long a watch is kept open before it answers with what is known already.
WATCH_S = 10.0
# How long a worker may lack a node before callers are told that there is none, where more nodes may come.
UNSCHEDULABLE_AFTER_S = 30.0
# How long the cluster is given to place a worker before its absence is looked into.
PLACEMENT_S = 0.3


@dataclass(frozen=True)
class ControllerBoot:
    """What a controller is made from.

    `gpu_optional`: a GPU that no node has is dropped, with a notice, instead of waited for. `cluster_may_grow`: a
    requirement that no node meets today may be met by one that comes. `classes`: those of the app, and what a worker of
    each needs; they come along because the calls of an actor with many at a time may overtake each other.
    """

    app_name: str
    gpu_optional: bool
    cluster_may_grow: bool
    classes: Mapping[str, Options] = field(default_factory=dict)


class Controller:
    """Keeps the pools of one app. Made a Ray actor by `controller_class`."""

    def __init__(self, boot: ControllerBoot) -> None:
        self._boot = boot
        self._pools: dict[PoolKey, Pool] = {}
        self._numbers = itertools.count(1)
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._gone: dict[str, asyncio.Event] = {}
        self._stopping = False
        self._declared = dict(boot.classes)
        self._self: Any = None

    # --- asked by drivers and routers -----------------------------------------------------------------------------

    async def ensure(self, definition: PoolDefinition) -> None:
        """Have a pool; nothing happens if it is there."""
        if self._loop_task is None:
            self._self = ray.get_runtime_context().current_actor
            self._loop_task = self._background(self._run())
        if definition.key in self._pools or self._stopping:
            return
        definition, notice = self._fit_gpu(definition)
        pool = self._pools[definition.key] = Pool(definition)
        pool.notice = notice
        self._wake.set()

    async def watch(self, key: PoolKey, version: int, definition: PoolDefinition | None) -> PoolView:
        """The pool's view once it is newer than `version`, or after a while the same one again."""
        if definition is not None:
            await self.ensure(definition)
        end = clock.now() + WATCH_S
        while True:
            pool = self._pools.get(key)
            if pool is None and self._stopping:
                raise PoolUnavailable(f"the app {self._boot.app_name!r} is being stopped")
            if pool is None:
                raise PoolUnavailable(f"the app {self._boot.app_name!r} has no pool {key}")
            view = pool.view()
            if view.version > version or clock.now() >= end:
                return view
            changed = self._changed
            try:
                await asyncio.wait_for(changed.wait(), max(0.0, end - clock.now()))
            except asyncio.TimeoutError:
                continue

    async def report(self, router: str, key: PoolKey, demand: Demand) -> None:
        """A router says what it needs of a pool."""
        pool = self._pools.get(key)
        if pool is not None:
            pool.report(router, demand, clock.now())
            if demand.queued:
                self._wake.set()

    async def status(self) -> AppStatus:
        """All pools and workers, with the workers' own counters."""
        now = clock.now()
        pools = [pool.status(now) for pool in self._pools.values()]
        return AppStatus(
            name=self._boot.app_name,
            running=not self._stopping,
            pools=tuple(await asyncio.gather(*(self._with_counters(pool) for pool in pools))),
        )

    async def declare(self, classes: dict[str, Options]) -> None:
        """Classes that the app has got since: growth of one leaves room for a worker of each of the others."""
        self._declared.update(classes)

    async def retire(self, class_name: str, generation: int) -> None:
        """Let go the pools of definitions of a class older than `generation`."""
        for key, pool in self._pools.items():
            if key.class_name == class_name and key.generation < generation:
                pool.retired = True
        self._wake.set()

    async def stop(self, drain: bool) -> None:
        """Stop every worker, drained or not; returns when their processes are gone."""
        self._stopping = True
        for pool in self._pools.values():
            pool.closing = f"the app {self._boot.app_name!r} is being stopped"
        self._publish()
        workers = [(pool, worker) for pool in self._pools.values() for worker in list(pool.workers.values())]
        gone = [self._gone[worker.id] for _, worker in workers if worker.id in self._gone]
        for pool, worker in workers:
            if not drain:
                worker.state = WorkerState.DRAINING
                self._kill(worker)
            elif worker.state is not WorkerState.DRAINING:
                self._background(self._drain(pool, worker, "the app is stopped"))
        await asyncio.gather(*(event.wait() for event in gone))

    # --- the loop -------------------------------------------------------------------------------------------------

    def _background(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        # In an empty context: Ray cancels recursively along context variables.
        task: asyncio.Task[Any] = contextvars.Context().run(asyncio.get_running_loop().create_task, coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self) -> None:
        while not self._stopping:
            try:
                self._tick(clock.now())
            except Exception:
                log.exception("a tick of the controller of %s failed; the next one follows", self._boot.app_name)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), TICK_S)
            self._wake.clear()

    def _tick(self, now: float) -> None:
        for key, pool in list(self._pools.items()):
            for action in pool.plan(now):
                if isinstance(action, Start):
                    for _ in range(self._affordable(pool, action.count)):
                        self._start(pool, now)
                elif isinstance(action, Stop):
                    worker = pool.workers[action.worker_id]
                    worker.state, worker.reason = WorkerState.DRAINING, action.reason
                    self._background(self._drain(pool, worker, action.reason))
            if pool.retired and not pool.workers:
                del self._pools[key]
        self._publish()

    def _publish(self) -> None:
        """Wake the routers that watch; each looks whether its pool has changed."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # --- a worker's life ------------------------------------------------------------------------------------------

    def _start(self, pool: Pool, now: float) -> None:
        number = next(self._numbers)
        worker = Worker(f"{pool.definition.key.class_name}-{number}", number, now)
        pool.workers[worker.id] = worker
        self._gone[worker.id] = asyncio.Event()
        self._background(self._live(pool, worker))

    async def _live(self, pool: Pool, worker: Worker) -> None:
        """Follow a worker from creation to death."""
        probes: list[asyncio.Task[Any]] = []
        try:
            if worker.draining:
                pool.lost(worker, "stopped before it began to start", clock.now())
                return
            boot = WorkerBoot(
                app_name=self._boot.app_name,
                pool=pool.definition.key,
                worker_id=worker.id,
                cls=pool.definition.cls,
                worker_values=pool.definition.worker_values,
                controller=self._self,
            )
            worker.actor = create_worker(boot, actor_options(pool.definition.options))
            await self._placed(pool, worker)
            report = await self._entered(pool, worker)
            if report.error is not None:
                log.error("%s: %s failed to start:\n%s", self._boot.app_name, worker.id, report.error)
                self._kill(worker)
                if worker.draining:
                    pool.lost(worker, "stopped while it started", clock.now())
                else:
                    pool.start_failed(worker, report.error, clock.now())
                return
            if worker.draining:
                # Stopped while it was starting; `_drain` sees to the rest.
                worker.pid, worker.node_id = report.pid, report.node_id
            else:
                pool.started(worker, report.pid, report.node_id)
                self._publish()
                probes = [self._background(self._keep_probing(pool, worker, p)) for p in pool.definition.options.probes]
            while True:
                for kind, reason in await worker.actor.watch.remote():
                    self._replace(pool, worker, f"{kind}: {reason}")
        except RayError as error:
            reason = death_reason(error)
            if worker.state is WorkerState.STARTING:
                log.error("%s: %s died while starting: %s", self._boot.app_name, worker.id, reason)
                pool.start_failed(worker, reason, clock.now())
            else:
                if worker.state is not WorkerState.DRAINING:
                    log.warning("%s: %s died and is replaced: %s", self._boot.app_name, worker.id, reason)
                pool.lost(worker, reason, clock.now())
        except Exception as error:
            log.exception("%s: following %s failed", self._boot.app_name, worker.id)
            self._kill(worker)
            pool.start_failed(worker, f"{type(error).__name__}: {error}", clock.now())
        finally:
            for probe in probes:
                probe.cancel()
            self._gone.pop(worker.id).set()
            self._wake.set()
            self._publish()

    async def _placed(self, pool: Pool, worker: Worker) -> None:
        """Wait until Ray has found a place; meanwhile say what it lacks."""
        ready = asyncio.ensure_future(_result(worker.actor.__ray_ready__.remote()))
        waited_s = 0.0
        options = pool.definition.options
        while not (await asyncio.wait([ready], timeout=PLACEMENT_S))[0]:
            waited_s += PLACEMENT_S
            lacking = what_no_node_has(options, _node_totals())
            if lacking is None:
                # Where a node could hold it, it is either on its way or the node is full.
                worker.pending = f"waiting for {describe_requirement(options)}" if waited_s > 1.0 else "being placed"
                pool.unschedulable = ""
            else:
                worker.pending = lacking
                if not self._boot.cluster_may_grow or waited_s >= UNSCHEDULABLE_AFTER_S:
                    pool.unschedulable = lacking
            self._publish()
        await ready
        worker.pending, worker.placed = "", True

    async def _entered(self, pool: Pool, worker: Worker) -> StartReport:
        limit_s = pool.definition.options.startup_timeout_s
        start = asyncio.ensure_future(_result(worker.actor.start.remote()))
        done, _ = await asyncio.wait([start], timeout=limit_s)
        if not done:
            start.add_done_callback(lambda late: late.exception())
            return StartReport(0, "", f"on_enter did not finish within startup_timeout_s={limit_s:g}\n")
        report: StartReport = await start
        return report

    def _replace(self, pool: Pool, worker: Worker, reason: str) -> None:
        if worker.state in (WorkerState.READY, WorkerState.UNREADY):
            log.warning("%s: %s is replaced: %s", self._boot.app_name, worker.id, reason)
            pool.replace(worker, reason, clock.now())
            self._background(self._drain(pool, worker, reason))
            self._wake.set()
            self._publish()

    async def _drain(self, pool: Pool, worker: Worker, reason: str) -> None:
        """No new inputs, running ones finish, on_exit runs, the process goes."""
        log.info("%s: draining %s: %s", self._boot.app_name, worker.id, reason)
        served = worker.pid is not None
        worker.state, worker.reason = WorkerState.DRAINING, reason
        self._publish()
        if served:
            grace_s = pool.definition.options.drain_timeout_s
            drained = asyncio.ensure_future(_result(worker.actor.drain.remote(grace_s)))
            done, _ = await asyncio.wait([drained], timeout=grace_s + EXIT_BUDGET_S + 10.0)
            if not done:
                log.warning("%s: %s did not drain in time and is killed", self._boot.app_name, worker.id)
                drained.add_done_callback(lambda late: late.exception())
            elif drained.exception() is None:
                for problem in drained.result():
                    log.warning("%s: draining %s: %s", self._boot.app_name, worker.id, problem)
        self._kill(worker)

    def _kill(self, worker: Worker) -> None:
        if worker.actor is not None:
            try:
                ray.kill(worker.actor)
            except Exception:
                log.debug("killing %s: it was gone already", worker.id, exc_info=True)

    # --- probes ---------------------------------------------------------------------------------------------------

    async def _keep_probing(self, pool: Pool, worker: Worker, probe: Probe) -> None:
        state = ProbeState(probe)
        # Spread over a period, so that the workers of a pool are not probed in step.
        await asyncio.sleep(probe.initial_delay_s + random.uniform(0.0, probe.period_s))
        while worker.state in (WorkerState.READY, WorkerState.UNREADY):
            begun = clock.now()
            report = await self._probe_once(worker, probe)
            verdict = report.verdict
            if verdict is Verdict.TIMED_OUT and report.progressed:
                verdict = Verdict.UNKNOWN  # busy is not dead
            worker.probes[probe.method] = ProbeStatus(
                probe.method, probe.kind, verdict.name, report.latency_s * 1000.0, report.reason
            )
            change = state.record(verdict)
            reason = f"{probe.kind} probe {probe.method} failed {probe.failures} times: {report.reason}"
            if change is False and probe.kind == "liveness":
                self._replace(pool, worker, reason)
                return
            if change is False and worker.state is WorkerState.READY:
                worker.state, worker.reason = WorkerState.UNREADY, reason
                log.warning("%s: %s takes no new inputs: %s", self._boot.app_name, worker.id, reason)
                self._publish()
            elif change is True and worker.state is WorkerState.UNREADY:
                worker.state, worker.reason = WorkerState.READY, ""
                log.info("%s: %s takes inputs again", self._boot.app_name, worker.id)
                self._publish()
            await asyncio.sleep(max(0.0, probe.period_s - (clock.now() - begun)))

    async def _probe_once(self, worker: Worker, probe: Probe) -> ProbeReport:
        """Run a probe. What goes wrong on the way, and not in the worker's code, proves nothing."""
        asked = asyncio.ensure_future(_result(worker.actor.probe.remote(probe)))
        done, _ = await asyncio.wait([asked], timeout=probe.timeout_s + 5.0)
        if not done:
            asked.add_done_callback(lambda late: late.exception())
            return ProbeReport(Verdict.UNKNOWN, probe.timeout_s + 5.0, False, "the worker did not answer")
        error = asked.exception()
        if error is not None:
            return ProbeReport(Verdict.UNKNOWN, 0.0, False, death_reason(error))
        report: ProbeReport = asked.result()
        return report

    # --- resources --------------------------------------------------------------------------------------------------

    def _fit_gpu(self, definition: PoolDefinition) -> tuple[PoolDefinition, str]:
        """Drop a GPU requirement that this machine cannot meet, where that is wanted."""
        gpu = definition.options.gpu
        if gpu is None or not self._boot.gpu_optional:
            return definition, ""
        lacking = what_no_node_has(replace(definition.options, cpu=0.0, memory_mb=None, resources=None), _node_totals())
        if lacking is None:
            return definition, ""
        notice = (
            f"{definition.key.class_name} {lacking.replace('this cluster', 'this machine')}: it runs without a GPU, "
            "because gworker started this local Ray by itself. Set GWORKER_GPU=required to have it fail instead."
        )
        return replace(definition, options=replace(definition.options, gpu=None)), notice

    def _affordable(self, pool: Pool, count: int) -> int:
        """How many of `count` workers to ask for: where the cluster cannot grow, no more than fit.

        The first worker and the floor are asked for all the same, and are seen to wait. Growth past that leaves
        room for one worker of every other class that has none: a class that calls another must not starve it.
        """
        capacity = [w for w in pool.workers.values() if w.state is not WorkerState.DRAINING]
        free = self._free()
        if self._boot.cluster_may_grow and _how_often(requirement(pool.definition.options), free) == 0:
            return count  # what fits nowhere is for Ray's cluster autoscaler to see
        for name, options in self._declared.items():
            if name != pool.definition.key.class_name and not self._has_workers(name):
                _subtract(free, requirement(options))
        fitting = _how_often(requirement(pool.definition.options), free)
        floor = max(1, pool.definition.options.min_workers)
        return min(count, max(fitting, floor - len(capacity)))

    def _free(self) -> dict[str, float]:
        """What is free in the cluster, less what workers on their way will take.

        Ray's account of what is available lags behind, for seconds on a busy machine: a worker that was placed just now
        may be missing from it. What is left of the whole once all our workers have theirs is never too much.
        """
        available: dict[str, float] = dict(ray.available_resources())  # type: ignore[no-untyped-call]
        left: dict[str, float] = dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
        for pool in self._pools.values():
            needs = requirement(pool.definition.options)
            for worker in pool.workers.values():
                _subtract(left, needs)
                if not worker.placed:
                    _subtract(available, needs)
        return {name: min(amount, left.get(name, 0.0)) for name, amount in available.items()}

    def _has_workers(self, class_name: str) -> bool:
        return any(p.workers for k, p in self._pools.items() if k.class_name == class_name)

    async def _with_counters(self, pool: PoolStatus) -> PoolStatus:
        known = next((p.workers for p in self._pools.values() if str(p.definition.key) == pool.name), {})
        workers = []
        for status in pool.workers:
            worker = known.get(status.id)
            if worker is None or worker.state not in (WorkerState.READY, WorkerState.UNREADY):
                workers.append(status)
                continue
            asked = asyncio.ensure_future(_result(worker.actor.stats.remote()))
            done, _ = await asyncio.wait([asked], timeout=2.0)
            if not done or asked.exception() is not None:
                workers.append(status)
                continue
            stats: WorkerStats = asked.result()
            sizes = {name: inputs / batches for name, (batches, inputs) in stats.batches.items()}
            workers.append(replace(status, inputs=stats.inputs, running=stats.held, batch_sizes=sizes))
        return replace(pool, workers=tuple(workers))


async def _result(reference: Any) -> Any:
    return await reference


def _subtract(free: dict[str, float], needs: dict[str, float]) -> None:
    for name, amount in needs.items():
        free[name] = free.get(name, 0.0) - amount


def _how_often(needs: dict[str, float], free: dict[str, float]) -> int:
    """How many workers with these needs fit into what is free, were it one node."""
    times = [int(free.get(name, 0.0) / amount + 1e-9) for name, amount in needs.items()]
    return max(0, min(times)) if times else 1_000


def _node_totals() -> list[dict[str, float]]:
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def create_controller(boot: ControllerBoot) -> Any:
    """Start an app's controller; it ends with the process that called this. Each open watch counts as one call."""
    return ray.remote(Controller).options(num_cpus=0, max_concurrency=10_000, max_restarts=0).remote(boot)
