"""The controller: one Ray actor per app, holding no CPU, that keeps the app's pools. No call passes through it.

A loop wakes when something happened, and a few times a second besides; it asks each pool for its plan and carries it
out. Each worker has a `Keeper` that follows it from creation to death. The controller of a deployed app writes down
what it decides before it does it; Ray restarts one that dies, and it takes the workers over as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import ray

from gworker import clock
from gworker.code import CodePackage
from gworker.control.board import WATCH_S, Board
from gworker.control.checkpoint import Checkpoint, Journal, RolloutRecord, UpdateRecord
from gworker.control.keeper import House, Keeper
from gworker.control.lender import Borrower, Lender
from gworker.control.placement import (
    Nodes,
    affordable,
    free_resources,
    how_often,
    node_totals,
    requirement,
    unheld_resources,
    what_no_node_has,
)
from gworker.control.pool import DEMAND_EXPIRES_S, Pool, Start
from gworker.control.rollout import Phase, Progress, Rollout, Update
from gworker.control.workers import Worker, WorkerState
from gworker.errors import NotFound, PoolUnavailable
from gworker.observe.events import Event, EventLog
from gworker.observe.status import AppStatus, PoolStatus, WorkerStatus
from gworker.observe.times import Times
from gworker.options import Options
from gworker.router import deployment
from gworker.router.membership import Demand, DeployedClass, PoolDefinition, PoolKey, PoolView
from gworker.router.reference import ActorReference
from gworker.weights.claims import Answer, Claim
from gworker.worker.actor import ORPHANED_S, WorkerStats

log = logging.getLogger("gworker.controller")

# The longest the loop sleeps, so that windows and expiries are seen in time.
TICK_S = 0.25
# The least between two ticks: reports of many routers are looked at together.
TICK_APART_S = 0.02
# How long the routers of a restarted controller wait at most for it to find the workers that serve.
RESTORE_S = 5.0
# How long the controller of a deployed app that was stopped outlives its workers.
STOPPED_S = 5.0
# How many of the latest events a status shows.
STATUS_EVENTS = 50


@dataclass(frozen=True)
class ControllerBoot:
    """What a controller is made from.

    `gpu_optional`: a GPU that no node has is dropped, with a notice, instead of waited for. `cluster_may_grow`: a
    requirement that no node meets today may be met by one that comes. `classes`: those of the app, and what a worker of
    each needs; they come along because the calls of an actor with many at a time may overtake each other. `deployed`:
    it and its workers outlive the process that made them. `orphaned_s`: see `worker.actor.ORPHANED_S`.
    """

    app_name: str
    gpu_optional: bool
    cluster_may_grow: bool
    classes: Mapping[str, Options] = field(default_factory=dict)
    deployed: bool = False
    orphaned_s: float = ORPHANED_S


class Controller:
    """Keeps the pools of one app. Made a Ray actor by `create_controller`."""

    def __init__(self, boot: ControllerBoot) -> None:
        self._boot = boot
        self._pools: dict[PoolKey, Pool] = {}
        self._keepers: dict[str, Keeper] = {}
        self._unborn: list[Keeper] = []
        self._deployed: dict[str, DeployedClass] = {}
        self._bounds: dict[tuple[str, str], dict[str, Any]] = {}
        self._next_number = 1
        self._version = 0
        self._update: Update | None = None
        self._progress = Progress(0, Phase.READY)
        self._progressed = asyncio.Event()
        self._nodes = Nodes()
        self._lender = Lender(self._borrower)
        self._board = Board(os.urandom(4).hex())
        self._early: dict[PoolKey, dict[str, tuple[Demand, float]]] = {}
        self._wake = asyncio.Event()
        self._events = EventLog()
        self._happened = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._restored: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._declared = dict(boot.classes)
        self._journal = Journal(boot.app_name) if boot.deployed else None
        if boot.deployed:
            # After a restart nobody may call for long: the workers are to be looked after all the same.
            deployment.this_actor().begin.remote()

    # --- asked by drivers and routers -----------------------------------------------------------------------------

    async def begin(self) -> None:
        """Start to work, once: take over what an earlier controller left, then plan and act."""
        if self._restored is None:
            self._restored = asyncio.Event()
            self._loop_task = self._background(self._run())
        await self._restored.wait()

    async def watch(
        self, router: str, key: PoolKey, known: tuple[str, int] | None, definition: PoolDefinition | None
    ) -> PoolView:
        """See `Board.next_view`. A router that knows nothing brings the `definition` of its pool along."""
        await self.begin()
        key = self._route_key(key)
        if definition is not None:
            missing = self._missing(key.class_name)
            if missing is not None and self._board.route(key) is None:
                return self._board.nothing(missing)
            self._ensure(definition)
        if self._stopping and self._board.route(key) is None:
            raise PoolUnavailable(self._being_stopped)
        return await self._board.next_view(router, key, known)

    async def report(
        self, router: str, key: PoolKey, demand: Demand, times: Mapping[str, Times] = MappingProxyType({})
    ) -> None:
        """A router says what it needs of a pool, and where the time of its calls went since the last report."""
        await self.begin()
        key = self._route_key(key)
        route = self._board.route(key)
        if route is None:
            self._keep_early(router, key, demand)
            return
        for pool in route.pools:
            pool.report(router, demand, clock.now())
        if times:
            route.pools[-1].count_times(times)  # during an update they may be those of several
        if demand.queued or demand.errors:
            self._wake.set()

    def _keep_early(self, router: str, key: PoolKey, demand: Demand) -> None:
        """Remember a report that overtook the definition of its pool: else the router's next one would be the first."""
        now = clock.now()
        for known, reports in list(self._early.items()):
            self._early[known] = {r: (d, at) for r, (d, at) in reports.items() if now - at < DEMAND_EXPIRES_S}
            if not self._early[known]:
                del self._early[known]
        self._early.setdefault(key, {})[router] = (demand, now)

    async def status(self) -> AppStatus:
        """All pools and workers, with the workers' own counters."""
        await self.begin()
        now = clock.now()
        pools = [pool.status(now) for pool in self._pools.values()]
        return AppStatus(
            name=self._boot.app_name,
            running=not self._stopping,
            pools=tuple(await asyncio.gather(*(self._with_counters(pool) for pool in pools))),
            events=self._events.after(self._events.last - STATUS_EVENTS),
        )

    async def events(self, after: int) -> tuple[Event, ...]:
        """The events after number `after` that are remembered, as soon as there are some, or none after a while."""
        after = min(after, self._events.last)  # a restarted controller may have forgotten the latest
        end = clock.now() + WATCH_S
        while not (news := self._events.after(after)) and (left_s := end - clock.now()) > 0:
            self._happened.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._happened.wait(), left_s)
        return news

    async def declare(self, classes: dict[str, Options]) -> None:
        """Classes that the app has got since: growth of one leaves room for a worker of each of the others."""
        self._declared.update(classes)

    async def retire(self, class_name: str, generation: int) -> None:
        """Let go the pools of definitions of a class older than `generation`."""
        for key, pool in self._pools.items():
            if key.class_name == class_name and key.generation < generation:
                pool.retired = True
        self._wake.set()

    async def deploy(self, classes: Mapping[str, DeployedClass], code: CodePackage | None = None) -> int:
        """Begin to serve these classes, and no others; returns the version, whose progress can be asked for.

        `code` is what they are imported from; stored before, it might be taken for that of a version that goes. An
        update that is still on its way is rolled back first.
        """
        await self.begin()
        if self._stopping:
            raise PoolUnavailable(self._being_stopped)
        if self._update is not None:
            self._end_update(Phase.FAILED, "another version was deployed meanwhile")
        if code is not None:
            deployment.store_code(self._boot.app_name, code)
        self._version += 1
        self._begin_update({name: replace(c, generation=self._version) for name, c in classes.items()})
        self._write_down(clock.now())  # whoever deploys is to hear only of what a successor would go on with
        return self._version

    async def progress(self, version: int) -> Progress:
        """How the update to a version stands, once it is over or after a while."""
        await self.begin()
        end = clock.now() + WATCH_S
        over = (Phase.READY, Phase.FAILED)
        while (
            self._progress.version == version and self._progress.phase not in over and (left_s := end - clock.now()) > 0
        ):
            self._progressed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._progressed.wait(), left_s)
        if self._progress.version > version:
            return Progress(version, Phase.FAILED, "another version was deployed meanwhile")
        if self._progress.version < version:
            return Progress(version, Phase.FAILED, "the controller died before it could begin: deploy again")
        if self._progress.phase is Phase.READY:
            # Whoever has deployed is to meet the new version, at the next call.
            await asyncio.gather(*(route.seen_by_all() for _, route in self._board.routes()))
        elif self._update is not None:
            return replace(self._progress, reason=self._update.waiting_for(clock.now()))
        return self._progress

    async def deployed_class(self, name: str) -> DeployedClass:
        """What was deployed under a name. Raises NotFound."""
        await self.begin()
        found = self._deployed.get(name)
        if found is None:
            raise self._not_found(name)
        return found

    async def generations(self) -> dict[str, int]:
        """The deployed classes, and the version that each is served in."""
        await self.begin()
        return {name: deployed.generation for name, deployed in self._deployed.items()}

    async def scale(
        self, class_name: str, variant: str, min_workers: int | None, max_workers: int | None
    ) -> tuple[int, int]:
        """Change the bounds of the pools of a class, live or yet to come. None leaves one as it is. Returns both.

        Raises NotFound, or InvalidDefinition for bounds that cannot be.
        """
        await self.begin()
        if class_name not in self._declared:
            known = ", ".join(sorted(self._declared)) or "none"
            raise NotFound(f"the app {self._boot.app_name!r} has no class {class_name!r}; it has: {known}")
        pools = [
            p for k, p in self._pools.items() if (k.class_name, k.variant) == (class_name, variant) and not p.retired
        ]
        asked = {"min_workers": min_workers, "max_workers": max_workers}
        wanted: dict[str, Any] = dict(self._bounds.get((class_name, variant), {}))
        wanted |= {name: bound for name, bound in asked.items() if bound is not None}
        now = pools[0].definition.options if pools else self._declared[class_name]
        bounds = now.replace(**wanted)
        self._bounds[class_name, variant] = wanted
        if self._journal is not None:
            self._journal.write_value("bounds", self._bounds)
        for pool in pools:
            if self._journal is not None and (stored := self._journal.read_definition(pool.definition.key)) is not None:
                self._journal.write_definition(self._within_bounds(stored))
            pool.rescale(self._within_bounds(pool.definition))
        self._wake.set()
        return bounds.min_workers, bounds.max_workers

    async def claim_weights(self, claim: Claim, lost: int | None) -> Answer:
        """A worker wants weights that its node may have; see `Lender`."""
        await self.begin()
        return await self._lender.claim(claim, lost)

    async def offer_weights(self, claim: Claim) -> Answer:
        """A worker has loaded weights for its node."""
        await self.begin()
        return await self._lender.offer(claim)

    async def release_weights(self, claim: Claim, private: bool) -> None:
        """A worker has not loaded the weights, or cannot share them."""
        self._lender.release(claim, private=private)

    async def make_room_for_weights(self, claim: Claim) -> bool:
        """Drop weights that no worker of the node uses; whether there were some."""
        return self._lender.shelf.make_room(claim.node)

    def _borrower(self, worker_id: str) -> Borrower | None:
        keeper = self._keepers.get(worker_id)
        if keeper is None or keeper.gone.is_set():
            return None
        return Borrower(keeper.worker.actor, keeper.pool.definition.key)

    def _within_bounds(self, definition: PoolDefinition) -> PoolDefinition:
        """A definition with the bounds that `scale` has set for its class, if it has."""
        key = definition.key
        changes = self._bounds.get((key.class_name, key.variant))
        return definition if not changes else replace(definition, options=replace(definition.options, **changes))

    def _not_found(self, name: str) -> NotFound:
        known = ", ".join(sorted(self._deployed)) or "none"
        return NotFound(f"the app {self._boot.app_name!r} has no class {name!r}; it has: {known}")

    def _missing(self, name: str) -> NotFound | None:
        """Why a deployed app does not serve a class; None where it does, or will."""
        coming = () if self._update is None else self._update.classes
        if not self._boot.deployed or name in self._deployed or name in coming:
            return None
        return self._not_found(name)

    async def stop(self, drain: bool, grace_s: float | None = None) -> None:
        """Stop every worker, drained or not; returns when their processes are gone.

        `grace_s` is the most that running inputs get, where that is less than `drain_timeout_s`.
        """
        if self._journal is not None:
            await self.begin()  # one that was restarted has workers to take over first
        self._stopping = True
        if self._update is not None:
            self._progress = Progress(self._update.version, Phase.FAILED, self._being_stopped)
            self._update = None
            self._progressed.set()
        for pool in self._pools.values():
            pool.closing = self._being_stopped
            self._changed(pool)
        keepers = list(self._keepers.values())
        for keeper in keepers:
            if not drain:
                keeper.worker.state = WorkerState.DRAINING  # its end is wanted
                keeper.kill()
            elif not keeper.worker.draining:
                self._background(keeper.drain("the app is stopped", grace_s))
        self._begin_to_keep()
        await asyncio.gather(*(keeper.gone.wait() for keeper in keepers))
        self._lender.shelf.clear()
        if self._journal is not None:
            self._journal.erase()
            self._background(self._end_itself())

    @property
    def _being_stopped(self) -> str:
        return f"the app {self._boot.app_name!r} is being stopped"

    async def _end_itself(self) -> None:
        """Whoever stopped the app ends its controller, too, but may have died meanwhile."""
        await asyncio.sleep(STOPPED_S)
        ray.kill(deployment.this_actor())

    # --- the loop -------------------------------------------------------------------------------------------------

    def _background(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        # In an empty context: Ray cancels recursively along context variables.
        task: asyncio.Task[Any] = contextvars.Context().run(asyncio.get_running_loop().create_task, coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self) -> None:
        assert self._restored is not None
        try:
            if self._journal is not None:
                await self._restore(self._journal)
        except Exception:
            log.exception("%s: what the last controller wrote down could not be read", self._boot.app_name)
        self._restored.set()
        while not self._stopping:
            self._wake.clear()
            try:
                self._tick(clock.now())
            except Exception:
                log.exception("a tick of the controller of %s failed; the next one follows", self._boot.app_name)
            if self._pools:  # where there are none yet, the first call is about to ask for one
                await asyncio.sleep(TICK_APART_S)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), TICK_S)

    def _tick(self, now: float) -> None:
        wanted = [(pool, self._plan(pool, now)) for pool in list(self._pools.values())]
        for pool, starts in wanted:
            for start in starts[: self._affordable(pool, len(starts))]:
                worker_id = f"{pool.definition.key.class_name}-{self._next_number}"
                self._unborn.append(self._keep(pool, pool.add(start.slot, worker_id, self._next_number, now)))
                self._next_number += 1
            # An update holds pools, also those without workers, and has yet to say which of them go.
            if self._update is None and (pool.forgettable or (pool.retired and not pool.slots and not pool.workers)):
                self._forget(pool)
        self._step_update(now)
        self._write_down(now)
        self._begin_to_keep()

    def _plan(self, pool: Pool, now: float) -> list[Start]:
        """Let the workers go that a pool lets go; returns what it wants to start. It asks nothing of Ray."""
        starts: list[Start] = []
        try:
            for action in pool.plan(now):
                if isinstance(action, Start):
                    starts.append(action)
                else:
                    self._background(self._keepers[action.worker_id].drain(action.reason))
            self._publish(pool)
        except Exception:
            log.exception("%s: planning %s failed; it is tried again", self._boot.app_name, pool.definition.key)
        return starts

    def _begin_to_keep(self) -> None:
        """Create the workers that have been decided on, once that has been written down."""
        unborn, self._unborn = self._unborn, []
        for keeper in unborn:
            self._background(keeper.live())

    def _keep(self, pool: Pool, worker: Worker) -> Keeper:
        house = House(
            app_name=self._boot.app_name,
            controller=ActorReference(deployment.this_actor()),
            cluster_may_grow=self._boot.cluster_may_grow,
            orphaned_s=self._boot.orphaned_s if self._boot.deployed else None,
            actor_extra=self._actor_extra,
            nodes=self._nodes,
            changed=self._changed,
            seen=self._seen_by_all,
            spawn=self._background,
        )
        keeper = self._keepers[worker.id] = Keeper(house, pool, worker)
        return keeper

    def _actor_extra(self, worker_id: str) -> dict[str, Any]:
        return deployment.worker_options(self._boot.app_name, worker_id) if self._boot.deployed else {}

    def _changed(self, pool: Pool) -> None:
        """Something happened to a pool: tell its routers, and look at it at once."""
        for worker_id in [w for w, k in self._keepers.items() if k.gone.is_set()]:
            self._lender.shelf.gone(worker_id, self._has_come_up)
            self._lender.changed()
            del self._keepers[worker_id]
        pool.refresh(clock.now())
        self._publish(pool)
        self._wake.set()

    def _has_come_up(self, worker_id: str) -> bool:
        keeper = self._keepers.get(worker_id)
        return keeper is not None and keeper.worker.ready_since is not None

    def _publish(self, pool: Pool) -> None:
        """Tell the routers of the pool what it is like, if they have something to learn."""
        route = self._board.route(self._route_key(pool.definition.key))
        if route is not None and pool in route.pools:
            route.refresh()

    async def _seen_by_all(self, pool: Pool) -> None:
        route = self._board.route(self._route_key(pool.definition.key))
        if route is not None:
            await route.seen_by_all()

    def _route_key(self, key: PoolKey) -> PoolKey:
        """How routers know a pool: those of a deployed app need not know which version serves."""
        return replace(key, generation=0) if self._boot.deployed else key

    # --- pools ----------------------------------------------------------------------------------------------------

    def _ensure(self, definition: PoolDefinition) -> None:
        """Have the pool that a router asks for; nothing happens if it is there."""
        key = self._route_key(definition.key)
        if self._board.route(key) is not None or self._stopping:
            return
        serving, update = self._deployed.get(key.class_name), self._update
        coming = None if update is None else update.classes.get(key.class_name)
        version = serving or coming  # where nothing serves yet, calls wait for what comes
        definition = definition if version is None else version.in_place_of(definition)
        pool = self._have_pool(self._within_bounds(definition))
        self._board.show(key, pool)
        for router, (demand, at) in self._early.pop(key, {}).items():
            pool.report(router, demand, at)
        if update is not None and serving is not None:
            self._include(update, key, pool)
        self._wake.set()

    def _have_pool(self, definition: PoolDefinition) -> Pool:
        """The pool of a definition, made and written down if need be."""
        pool = self._pools.get(definition.key)
        if pool is None:
            if self._journal is not None:
                self._journal.write_definition(definition)
            pool = self._add_pool(definition)
        return pool

    def _add_pool(self, definition: PoolDefinition) -> Pool:
        definition, notice = self._fit_gpu(definition)
        name = str(definition.key)

        def note(worker: str, action: str, reason: str) -> None:
            self._note(name, worker, action, reason)

        pool = Pool(definition, clock.now(), on_event=note)
        pool.notice = notice
        self._pools[definition.key] = pool
        pool.refresh(clock.now())
        return pool

    def _note(self, pool: str, worker: str, action: str, reason: str) -> None:
        event = self._events.add(pool, worker, action, reason)
        self._happened.set()
        log.info("%s: %s", self._boot.app_name, event)

    def _forget(self, pool: Pool) -> None:
        key = pool.definition.key
        del self._pools[key]
        self._lender.shelf.forget(key)
        route = self._board.route(self._route_key(key))
        if route is not None and route.pools == [pool]:
            self._board.forget(self._route_key(key))
        if self._journal is not None:
            self._journal.forget_definition(key)
            in_use = {p.definition.code for p in self._pools.values()} | {c.code for c in self._deployed.values()}
            deployment.drop_code(self._boot.app_name, in_use)

    def _fit_gpu(self, definition: PoolDefinition) -> tuple[PoolDefinition, str]:
        """Drop a GPU requirement that this machine cannot meet, where that is wanted."""
        gpu = definition.options.gpu
        if gpu is None or not self._boot.gpu_optional:
            return definition, ""
        only_gpu = replace(definition.options, cpu=0.0, memory_mb=None, resources=None)
        lacking = what_no_node_has(only_gpu, node_totals())
        if lacking is None:
            return definition, ""
        notice = (
            f"{definition.key.class_name} {lacking.replace('this cluster', 'this machine')}: it runs without a GPU, "
            "because gworker started this local Ray by itself. Set GWORKER_GPU=required to have it fail instead."
        )
        return replace(definition, options=replace(definition.options, gpu=None)), notice

    def _affordable(self, pool: Pool, count: int) -> int:
        if count == 0:
            return 0
        options = pool.definition.options
        owed = max(1, options.min_workers, self._replacing(pool))
        served = {key.class_name for key, other in self._pools.items() if other.workers}
        mine = pool.definition.key.class_name
        return affordable(
            count,
            requirement(options),
            free_resources((needs, placed) for _, needs, placed in self._held()),
            others=[requirement(o) for name, o in self._declared.items() if name != mine and name not in served],
            owed=owed - sum(not w.draining for w in pool.workers.values()),
            cluster_may_grow=self._boot.cluster_may_grow,
        )

    def _replacing(self, pool: Pool) -> int:
        """How many workers a pool has to get so that those of the version before, which make room for it, can go."""
        for rollout in [] if self._update is None else self._update.rollouts.values():
            if rollout.new is pool and rollout.phase is Phase.SWAPPING:
                return pool.pinned or 0
        return 0

    def _held(self) -> Iterator[tuple[Pool, Mapping[str, float], bool]]:
        """What each worker needs, by pool, and whether it has a place."""
        for pool in self._pools.values():
            needs = requirement(pool.definition.options)
            yield from ((pool, needs, worker.placed) for worker in pool.workers.values())

    # --- updates --------------------------------------------------------------------------------------------------

    def _begin_update(self, classes: Mapping[str, DeployedClass]) -> None:
        """Start to replace every pool by one of the new version."""
        update = self._update = Update(self._version, classes)
        self._progress = Progress(self._version, Phase.SURGING)
        for key, route in self._board.routes():
            self._include(update, key, route.pools[0])
        for deployed in classes.values():
            definition = deployed.default_pool
            if definition is not None and definition.key not in update.rollouts:
                new = self._have_pool(deployed.in_place_of(definition))
                update.rollouts[definition.key] = Rollout(None, new)
        self._declared = {name: deployed.options for name, deployed in classes.items()}
        self._note("", "", "updating", f"to version {self._version} of {', '.join(sorted(classes)) or 'no classes'}")
        self._wake.set()

    def _include(self, update: Update, key: PoolKey, old: Pool) -> None:
        """Have an update replace the pool behind a key, or let it go."""
        deployed = update.classes.get(key.class_name)
        if deployed is None:
            update.removed.append(old)
        else:
            update.rollouts[key] = Rollout(old, self._have_pool(deployed.in_place_of(old.definition)))

    def _step_update(self, now: float) -> None:
        update = self._update
        if update is None:
            return
        phase = update.step(now, self._fits)
        for key, rollout in update.rollouts.items():
            if rollout.old is not None and rollout.mixed:
                self._board.show(key, rollout.old, rollout.new)
        if phase in (Phase.READY, Phase.FAILED):
            self._end_update(phase, update.reason)
        elif phase is not self._progress.phase:
            self._progress = Progress(update.version, phase)

    def _end_update(self, phase: Phase, reason: str) -> None:
        """Commit the update, or roll it back. The first version has none to go back to: it stays, and tries again."""
        update, self._update = self._update, None
        assert update is not None and self._journal is not None
        if phase is Phase.FAILED and self._deployed:
            update.roll_back()
            for key, rollout in update.rollouts.items():
                if rollout.old is not None:
                    self._board.show(key, rollout.old)
            self._declared = {name: deployed.options for name, deployed in self._deployed.items()}
            self._note("", "", "rolled back", f"version {update.version}: {reason}")
        else:
            update.commit()
            for key, rollout in update.rollouts.items():
                self._board.show(key, rollout.new)
            self._deployed = dict(update.classes)
            self._bounds = {}  # those of the code again
            self._journal.write_value("bounds", self._bounds)
            self._journal.write_value("classes", self._deployed)
            self._note("", "", "updated" if phase is Phase.READY else "deployed", f"version {update.version} {reason}")
        self._progress = Progress(update.version, phase, reason)
        self._progressed.set()
        self._wake.set()

    def _fits(self, pool: Pool) -> bool | None:
        """See `rollout.Fits`."""
        needs = requirement(pool.definition.options)
        held = [(taken, placed) for owner, taken, placed in self._held() if placed or owner is not pool]
        if how_often(needs, free_resources(held)):
            return True
        return None if how_often(needs, unheld_resources(held)) else False

    # --- recovery ---------------------------------------------------------------------------------------------------

    def _write_down(self, now: float) -> None:
        if self._journal is not None:
            self._journal.write(
                Checkpoint(
                    at=clock.time_of_day(),
                    next_number=self._next_number,
                    pools={key: pool.record(now) for key, pool in self._pools.items()},
                    routes={key: [p.definition.key for p in route.pools] for key, route in self._board.routes()},
                    version=self._version,
                    update=self._update_record(),
                    progress=self._progress,
                    events=self._events.after(self._events.last - STATUS_EVENTS),
                )
            )

    def _update_record(self) -> UpdateRecord | None:
        update = self._update
        if update is None:
            return None
        rollouts = {
            key: RolloutRecord(
                old=None if r.old is None else r.old.definition.key,
                new=r.new.definition.key,
                swapping=r.phase is Phase.SWAPPING,
                size=r.size,
            )
            for key, r in update.rollouts.items()
        }
        return UpdateRecord(update.classes, rollouts, tuple(pool.definition.key for pool in update.removed))

    def _restore_update(self, record: UpdateRecord) -> None:
        """Go on with an update that another controller had begun."""
        update = self._update = Update(self._version, record.classes)
        self._progress = Progress(self._version, Phase.SURGING)
        for key, written in record.rollouts.items():
            old = None if written.old is None else self._pools[written.old]
            rollout = update.rollouts[key] = Rollout(old, self._pools[written.new])
            rollout.phase = Phase.SWAPPING if written.swapping else Phase.SURGING
            rollout.size = written.size
        update.removed = [self._pools[key] for key in record.removed]
        self._declared = {name: deployed.options for name, deployed in record.classes.items()}

    async def _restore(self, journal: Journal) -> None:
        """Take over the pools and the workers of the controller before this one; reap those nobody knows."""
        self._deployed = journal.read_value("classes") or {}
        self._bounds = journal.read_value("bounds") or {}
        if self._deployed:
            self._declared = {name: c.options for name, c in self._deployed.items()}
        checkpoint = journal.read()
        if checkpoint is None:
            return
        now, elapsed_s = clock.now(), max(0.0, clock.time_of_day() - checkpoint.at)
        self._next_number, self._version = checkpoint.next_number, checkpoint.version
        self._progress = checkpoint.progress
        self._events.restore(checkpoint.events)
        adopted: list[Keeper] = []
        for key, record in checkpoint.pools.items():
            definition = journal.read_definition(key)
            if definition is None:
                continue
            pool = self._add_pool(definition)
            pool.restore(record, elapsed_s, now)
            adopted += [self._keep(pool, worker) for worker in pool.workers.values()]
        for route, keys in checkpoint.routes.items():
            if pools := [self._pools[key] for key in keys if key in self._pools]:
                self._board.show(route, *pools)
        if checkpoint.update is not None:
            self._restore_update(checkpoint.update)
        self._note("", "", "controller restarted", f"takes over {len(adopted)} workers")
        app_name = self._boot.app_name
        for keeper in adopted:
            self._background(keeper.live(lambda worker_id: deployment.find_worker(app_name, worker_id)))
        known = {keeper.worker.id for keeper in adopted}
        for reaped in await asyncio.to_thread(deployment.reap_workers, app_name, known):
            self._note("", reaped, "reaped", "no controller knew it")
        serving = [k.settled.wait() for k in adopted if k.worker.pid is not None and not k.worker.draining]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*serving), RESTORE_S)

    # --- for people -------------------------------------------------------------------------------------------------

    async def _with_counters(self, pool: PoolStatus) -> PoolStatus:
        return replace(pool, workers=tuple(await asyncio.gather(*map(self._with_own_counters, pool.workers))))

    async def _with_own_counters(self, status: WorkerStatus) -> WorkerStatus:
        keeper = self._keepers.get(status.id)
        if keeper is None or not keeper.worker.serving:
            return status
        stats: WorkerStats | None = await keeper.stats()
        if stats is None:
            return status
        numbers = {name: batches for name, (batches, _) in stats.batches.items()}
        sizes = {name: inputs / batches for name, (batches, inputs) in stats.batches.items()}
        return replace(status, inputs=stats.inputs, batches=numbers, batch_sizes=sizes)


def create_controller(boot: ControllerBoot) -> Any:
    """Start an app's controller. Each open watch counts as one call.

    It ends with the process that called this, unless it is `deployed`: then it is found by the app's name, and there is
    never more than one.
    """
    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 10_000, "max_restarts": 0}
    if boot.deployed:
        options |= deployment.controller_options(boot.app_name)
    return ray.remote(GWorkerController).options(**options).remote(boot)


class GWorkerController(Controller):
    """What Ray is given: it disassembles the class that it exports, for 40 ms where the methods stand in it."""
