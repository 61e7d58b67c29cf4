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
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gworker import clock
from gworker.code import CodePackage
from gworker.control.board import WATCH_S, Board
from gworker.control.bounds import Bounds
from gworker.control.checkpoint import Checkpoint, Journal
from gworker.control.demands import Demands
from gworker.control.keeper import House, Keeper
from gworker.control.lender import Borrower, Lender
from gworker.control.nodes import Nodes
from gworker.control.pool import Pool, Start
from gworker.control.rollout import Progress
from gworker.control.room import Room
from gworker.control.updates import Updates
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
        self._bounds = Bounds()
        self._next_number = 1
        self._nodes = Nodes()
        self._lender = Lender(self._borrower)
        self._board = Board(os.urandom(4).hex(), any_version=boot.deployed)
        self._early: dict[PoolKey, Demands] = {}
        self._wake = asyncio.Event()
        self._room = Room(
            self._pools, boot.classes, gpu_optional=boot.gpu_optional, cluster_may_grow=boot.cluster_may_grow
        )
        self._updates = Updates(
            self._board,
            self._room,
            have_pool=self._have_pool,
            committed=self._serve,
            note=self._note,
            wake=self._wake.set,
        )
        self._events = EventLog()
        self._happened = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._restored: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
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
        key = self._board.key_of(key)
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
        key = self._board.key_of(key)
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
        self._early = {known: early for known, early in self._early.items() if early.alive(now)}
        self._early.setdefault(key, Demands()).report(router, demand, now)

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
        self._room.declared.update(classes)

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
        if code is not None:
            deployment.store_code(self._boot.app_name, code)
        self._updates.begin(classes)
        self._write_down(clock.now())  # whoever deploys is to hear only of what a successor would go on with
        return self._updates.version

    async def progress(self, version: int) -> Progress:
        """How the update to a version stands, once it is over or after a while."""
        await self.begin()
        return await self._updates.progress_of(version)

    async def deployed_class(self, name: str) -> DeployedClass:
        """What was deployed under a name. Raises NotFound."""
        await self.begin()
        found = self._updates.serving.get(name)
        if found is None:
            raise self._not_found(name, self._updates.serving)
        return found

    async def generations(self) -> dict[str, int]:
        """The deployed classes, and the version that each is served in."""
        await self.begin()
        return {name: deployed.generation for name, deployed in self._updates.serving.items()}

    async def scale(
        self, class_name: str, variant: str, min_workers: int | None, max_workers: int | None
    ) -> tuple[int, int]:
        """Change the bounds of the pools of a class, live or yet to come. None leaves one as it is. Returns both.

        Raises NotFound, or InvalidDefinition for bounds that cannot be.
        """
        await self.begin()
        if class_name not in self._room.declared:
            raise self._not_found(class_name, self._room.declared)
        pools = [
            p for k, p in self._pools.items() if (k.class_name, k.variant) == (class_name, variant) and not p.retired
        ]
        now = pools[0].definition.options if pools else self._room.declared[class_name]
        bounds = self._bounds.change(class_name, variant, now, min_workers=min_workers, max_workers=max_workers)
        if self._journal is not None:
            self._journal.write_value("bounds", self._bounds.said)
        for pool in pools:
            if self._journal is not None and (stored := self._journal.read_definition(pool.definition.key)) is not None:
                self._journal.write_definition(self._bounds.applied(stored))
            pool.rescale(self._bounds.applied(pool.definition))
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

    def _serve(self, classes: Mapping[str, DeployedClass]) -> None:
        """Another version of a deployed app serves from now on, within the bounds of its code."""
        assert self._journal is not None
        self._bounds = Bounds()
        self._journal.write_value("bounds", self._bounds.said)
        self._journal.write_value("classes", classes)

    def _not_found(self, name: str, there: Iterable[str]) -> NotFound:
        known = ", ".join(sorted(there)) or "none"
        return NotFound(f"the app {self._boot.app_name!r} has no class {name!r}; it has: {known}")

    def _missing(self, name: str) -> NotFound | None:
        """Why a deployed app does not serve a class; None where it does, or will."""
        serving = self._updates.serving
        if not self._boot.deployed or name in serving or name in self._updates.coming:
            return None
        return self._not_found(name, serving)

    async def stop(self, drain: bool, grace_s: float | None = None) -> None:
        """Stop every worker, drained or not; returns when their processes are gone.

        `grace_s` is the most that running inputs get, where that is less than `drain_timeout_s`.
        """
        if self._journal is not None:
            await self.begin()  # one that was restarted has workers to take over first
        self._stopping = True
        self._updates.abandon(self._being_stopped)
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
            replacing = self._updates.replacing(pool) if starts else 0
            for start in starts[: self._room.affordable(pool, len(starts), replacing=replacing)]:
                worker_id = f"{pool.definition.key.class_name}-{self._next_number}"
                self._unborn.append(self._keep(pool, pool.add(start.slot, worker_id, self._next_number, now)))
                self._next_number += 1
            # An update holds pools, also those without workers, and has yet to say which of them go.
            unused = pool.forgettable or (pool.retired and not pool.slots and not pool.workers)
            if unused and not self._updates.under_way:
                self._forget(pool)
        self._updates.step(now)
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
            self._board.publish(pool)
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
            seen=self._board.seen_by_all,
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
        self._board.publish(pool)
        self._wake.set()

    def _has_come_up(self, worker_id: str) -> bool:
        keeper = self._keepers.get(worker_id)
        return keeper is not None and keeper.worker.ready_since is not None

    # --- pools ----------------------------------------------------------------------------------------------------

    def _ensure(self, definition: PoolDefinition) -> None:
        """Have the pool that a router asks for; nothing happens if it is there."""
        key = self._board.key_of(definition.key)
        if self._board.route(key) is not None or self._stopping:
            return
        pool = self._have_pool(self._bounds.applied(self._updates.current(definition)))
        self._board.show(key, pool)
        for router, demand, at in self._early.pop(key, Demands()).alive(clock.now()):
            pool.report(router, demand, at)
        if self._updates.under_way and key.class_name in self._updates.serving:
            self._updates.include(key, pool)
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
        definition, notice = self._room.fit_gpu(definition)
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
        route = self._board.route(self._board.key_of(key))
        if route is not None and route.pools == [pool]:
            self._board.forget(self._board.key_of(key))
        if self._journal is not None:
            self._journal.forget_definition(key)
            in_use = {p.definition.code for p in self._pools.values()}
            in_use |= {deployed.code for deployed in self._updates.serving.values()}
            deployment.drop_code(self._boot.app_name, in_use)

    # --- recovery ---------------------------------------------------------------------------------------------------

    def _write_down(self, now: float) -> None:
        if self._journal is not None:
            self._journal.write(
                Checkpoint(
                    at=clock.time_of_day(),
                    next_number=self._next_number,
                    pools={key: pool.record(now) for key, pool in self._pools.items()},
                    routes={key: [p.definition.key for p in route.pools] for key, route in self._board.routes()},
                    version=self._updates.version,
                    update=self._updates.record(),
                    progress=self._updates.progress,
                    events=self._events.after(self._events.last - STATUS_EVENTS),
                )
            )

    async def _restore(self, journal: Journal) -> None:
        """Take over the pools and the workers of the controller before this one; reap those nobody knows."""
        self._updates.restore_serving(journal.read_value("classes") or {})
        self._bounds = Bounds(journal.read_value("bounds"))
        checkpoint = journal.read()
        if checkpoint is None:
            return
        now, elapsed_s = clock.now(), max(0.0, clock.time_of_day() - checkpoint.at)
        self._next_number = checkpoint.next_number
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
        self._updates.restore(checkpoint.version, checkpoint.progress, checkpoint.update, self._pools)
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

    It ends with the process that called this, and runs on its node, so that the loss of another one cannot end it. A
    `deployed` one lives on: it is found by the app's name, and there is never more than one.
    """
    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 10_000, "max_restarts": 0}
    if boot.deployed:
        options |= deployment.controller_options(boot.app_name)
    elif (here := _node_to_stay_on()) is not None:
        # Not soft: Ray would put what asks for no resources on any node (ray-project/ray#25360).
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(GWorkerController).options(**options).remote(boot)


def _node_to_stay_on() -> str | None:
    """The node of this process, where an actor can be bound to it.

    Not within a placement group: one that captures what is started in it would not get the controller, nor its workers.
    Not while the node is drained: Ray would refuse.
    """
    here: str = ray.get_runtime_context().get_node_id()
    if ray.util.get_current_placement_group() is not None:
        return None
    with contextlib.suppress(Exception):  # it is internal to Ray
        from ray._private.state import state

        if here in state.get_draining_nodes():
            return None
    return here


class GWorkerController(Controller):
    """What Ray is given: it disassembles the class that it exports, for 40 ms where the methods stand in it."""
