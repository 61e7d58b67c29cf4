"""The controller and its keepers with a fake Ray and a clock of the test's own: nothing is left behind or forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError

from gworker.code import CodePackage
from gworker.control import checkpoint as checkpoint_module
from gworker.control import keeper as keeper_module
from gworker.control import nodes as nodes_module
from gworker.control import placement as placement_module
from gworker.control.board import Route
from gworker.control.controller import Controller, ControllerBoot
from gworker.control.demands import DEMAND_EXPIRES_S
from gworker.control.pool import Pool
from gworker.control.rollout import Phase
from gworker.control.workers import WorkerState
from gworker.errors import NotFound, PoolUnavailable
from gworker.options import Options
from gworker.probe import Probe, Verdict
from gworker.router import deployment
from gworker.router.membership import Demand, DeployedClass, PoolDefinition, PoolKey
from gworker.router.roster import Roster
from gworker.wire import Payload
from gworker.worker.actor import ProbeReport, StartReport, WorkerBoot, WorkerStats

pytestmark = pytest.mark.slow  # not a decision but the shells that carry them out: a second in all

NOTHING = Payload(b"")
# How long Ray takes to start a process.
PLACING_S = 0.7


class Method:
    """A method of an actor: `remote` gives something to await."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def remote(self, *args: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._call(*args))


class FakeWorker:
    """A worker's actor. It is placed where there is room, comes up when `world` lets its class, ends when killed."""

    def __init__(self, world: World, boot: WorkerBoot, options: Any) -> None:
        self.world = world
        self.boot = boot
        self.options = options
        self.killed = asyncio.Event()
        self.placed = False
        self.starts = 0
        self.drains = 0
        self.fail: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        for name in ("stats", "start", "watch", "drain", "settle", "probe"):
            setattr(self, name, Method(getattr(self, f"_{name}")))
        self.__ray_ready__ = Method(self._ready)

    @property
    def id(self) -> str:
        return self.boot.worker_id

    async def _until_killed(self, other: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (self.killed, other)]
        await asyncio.wait([*waits, self.fail], return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self.killed.is_set():
            raise ActorDiedError
        if self.fail.done():
            error, self.fail = self.fail.result(), asyncio.get_running_loop().create_future()
            raise error

    async def _ready(self) -> None:
        while not self.placed:
            if sum(w.placed for w in self.world.workers.values()) < self.world.room:
                self.placed = True
            await asyncio.wait([asyncio.ensure_future(self.killed.wait())], timeout=PLACING_S)
            if self.killed.is_set():
                raise ActorDiedError

    async def _start(self) -> StartReport:
        self.starts += 1
        await self._until_killed(self.world.gate(self.boot.pool))
        error = self.world.failing.get(self.boot.pool.generation)
        return StartReport(1000 + int(self.id.rpartition("-")[2]), "node", error)

    async def _watch(self, seen: int) -> list[Any]:
        await self._until_killed(asyncio.Event())
        return []

    async def _drain(self, grace_s: float) -> list[str]:
        self.drains += 1
        return []

    async def _settle(self) -> None:
        pass

    async def _stats(self) -> WorkerStats:
        return WorkerStats(0, 0, 0, 0, {})

    async def _probe(self, probe: Probe) -> ProbeReport:
        return ProbeReport(Verdict.UNKNOWN, 0.0, False)


class FakeKv:
    """Ray's key-value store."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.broken = False

    def _internal_kv_get(self, key: bytes, namespace: Any = None) -> bytes | None:
        return self.data.get(key)

    def _internal_kv_exists(self, key: bytes, namespace: Any = None) -> bool:
        return key in self.data

    def _internal_kv_put(self, key: bytes, value: bytes, overwrite: bool = True, namespace: Any = None) -> None:
        if self.broken:
            raise ConnectionError("the store does not answer")
        self.data[key] = value

    def _internal_kv_list(self, prefix: bytes, namespace: Any = None) -> list[bytes]:
        return [key for key in self.data if key.startswith(prefix)]

    def _internal_kv_del(self, key: bytes, del_by_prefix: bool = False, namespace: Any = None) -> None:
        for found in [k for k in self.data if k == key or (del_by_prefix and k.startswith(key))]:
            del self.data[found]


class World:
    """A cluster with room for everything, and the controllers of one app in it."""

    def __init__(self, timeline: Any) -> None:
        self.timeline = timeline
        self.kv = FakeKv()
        self.room = 1000
        self.reachable = True
        self.asked_for_nodes = 0
        self.refusing: set[str] = set()
        self.workers: dict[str, FakeWorker] = {}
        self.failing: dict[int, str] = {}
        self.killed_itself = 0
        self._gates: dict[tuple[str, int], asyncio.Event] = {}
        self.controllers: list[Controller] = []

    # --- what Ray is to the controller

    def create_worker(self, boot: WorkerBoot, options: Any) -> FakeWorker:
        worker = self.workers[boot.worker_id] = FakeWorker(self, boot, options)
        return worker

    def find_worker(self, app_name: str, worker_id: str) -> FakeWorker:
        if worker_id not in self.workers:
            raise ValueError("it was gone before the controller was back")
        return self.workers[worker_id]

    def kill(self, actor: Any) -> None:
        if isinstance(actor, FakeWorker):
            actor.killed.set()
            self.workers.pop(actor.id, None)
        else:
            self.killed_itself += 1

    def cluster_resources(self) -> dict[str, float]:
        if not self.reachable:
            raise ConnectionError("the head node does not answer")
        return {"CPU": float(self.room)}

    def nodes(self) -> list[dict[str, Any]]:
        self.asked_for_nodes += 1
        return [
            {
                "NodeID": node,
                "Alive": True,
                "Resources": {"CPU": 1000.0},
                "NodeManagerAddress": node,
                "NodeManagerPort": 1,
            }
            for node in ("node", "other")
        ]

    async def refuses(self, host: str, port: int) -> bool:
        return host in self.refusing

    def node_of(self, worker: FakeWorker) -> str:
        return "node"

    def available_resources(self) -> dict[str, float]:
        return {"CPU": float(self.room - sum(w.placed for w in self.workers.values()))}

    # --- what tests do

    def gate(self, key: PoolKey) -> asyncio.Event:
        """What workers of a class and a version wait for in on_enter; open unless `shut`."""
        found = self._gates.get((key.class_name, key.generation))
        if found is None:
            found = self._gates[key.class_name, key.generation] = asyncio.Event()
            found.set()
        return found

    def shut(self, class_name: str, generation: int) -> asyncio.Event:
        gate = self.gate(PoolKey(class_name, generation=generation))
        gate.clear()
        return gate

    async def controller(self, *, cluster_may_grow: bool = True) -> Controller:
        """A controller that has begun; as after a restart, where there was one."""
        made = Controller(ControllerBoot("app", False, cluster_may_grow, deployed=True))
        self.controllers.append(made)
        begun = asyncio.ensure_future(made.begin())
        await self.pass_time(6.0)
        await begun
        return made

    async def die(self, controller: Controller) -> None:
        """The process of a controller ends, in whatever it was doing."""
        controller._journal, controller._stopping = None, True  # the dead write nothing, and plan nothing
        tasks = list(controller._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, a step at a time: threads that are waited for have time to answer, too."""
        for _ in range(max(1, round(seconds / 0.5))):
            await self.timeline.advance(min(seconds, 0.5))
            await self.threads()

    async def threads(self) -> None:
        for _ in range(3):
            await asyncio.get_running_loop().run_in_executor(None, lambda: None)
            await self.timeline.settle()

    async def end(self) -> None:
        for controller in self.controllers:
            await self.die(controller)

    def pids(self, pool: str) -> list[str]:
        return sorted(w.id for w in self.workers.values() if str(w.boot.pool) == pool)


@pytest.fixture
async def world(timeline: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    world = World(timeline)
    actor = type("FakeController", (), {"begin": Method(lambda: asyncio.sleep(0))})()
    monkeypatch.setattr(checkpoint_module, "internal_kv", world.kv)
    monkeypatch.setattr(deployment, "internal_kv", world.kv)
    monkeypatch.setattr(deployment, "this_actor", lambda: actor)
    monkeypatch.setattr(deployment, "find_worker", world.find_worker)
    monkeypatch.setattr(deployment, "reap_workers", lambda app_name, known: [])
    monkeypatch.setattr(placement_module.ray, "cluster_resources", world.cluster_resources)
    monkeypatch.setattr(placement_module.ray, "available_resources", world.available_resources)
    monkeypatch.setattr(placement_module.ray, "nodes", world.nodes)
    monkeypatch.setattr(nodes_module, "_refuses", world.refuses)
    monkeypatch.setattr(nodes_module, "_node_of", world.node_of)
    monkeypatch.setattr(keeper_module, "create_worker", world.create_worker)
    monkeypatch.setattr(keeper_module.ray, "kill", world.kill)
    yield world
    await world.end()


def deployed(name: str = "Echo", **options: Any) -> DeployedClass:
    """A class as `deploy` sends it."""
    built = Options.build({"scaledown_window_s": 10, **options}, where="test")
    definition = PoolDefinition(PoolKey(name), NOTHING, NOTHING, built, max_inputs=1, target_inputs=1)
    return DeployedClass(name, NOTHING, NOTHING, NOTHING, "", built, 1, 1, definition)


def classes(*found: DeployedClass) -> dict[str, DeployedClass]:
    return {each.name: each for each in found}


class FakeRouter:
    """A router that follows one pool, as `AppClient` does."""

    def __init__(self, controller: Controller, definition: PoolDefinition) -> None:
        self.roster = Roster()
        self.queued = 0
        self.slow_s = 0.0
        self._controller = controller
        self._definition = definition
        self._tasks = [asyncio.ensure_future(self._follow()), asyncio.ensure_future(self._report())]

    async def _follow(self) -> None:
        key, roster = self._definition.key, self.roster
        while True:
            definition = self._definition if roster.known is None else None
            told = await self._controller.watch("router", key, roster.known, definition)
            await asyncio.sleep(self.slow_s)
            roster.take(told)
            while roster.known is None and (not self.queued or told.failure is not None):  # noqa: ASYNC110  # what a test sets is no event
                await asyncio.sleep(0.25)

    async def _report(self) -> None:
        while True:
            if self.queued:
                await self._controller.report("router", self._definition.key, Demand(self.queued, 0))
            await asyncio.sleep(0.25)

    def ready(self) -> list[str]:
        return sorted(w.id for w in self.roster.workers.values() if w.ready)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def follow() -> AsyncIterator[Callable[..., FakeRouter]]:
    """Makes routers."""
    made: list[FakeRouter] = []

    def make(controller: Controller, definition: PoolDefinition) -> FakeRouter:
        made.append(FakeRouter(controller, definition))
        return made[-1]

    yield make
    for router in made:
        await router.close()


# --- updates -----------------------------------------------------------------------------------------------------


async def test_pools_that_nobody_uses_while_an_update_takes_long_serve_when_they_are_called_again(
    world: World, follow: Any
) -> None:
    controller = await world.controller()
    idle, slow = deployed("Idle"), deployed("Slow", min_workers=1)
    await controller.deploy(classes(idle, slow))
    await world.pass_time(2)
    gate = world.shut("Slow", 2)
    await controller.deploy(classes(idle, slow))
    await world.pass_time(200)
    gate.set()
    await world.pass_time(2)
    assert (await controller.progress(2)).phase is Phase.READY
    router = follow(controller, idle.default_pool)
    router.queued = 1
    await world.pass_time(5)
    assert router.ready() == world.pids("Idle#2") != []


async def test_a_pool_that_is_first_asked_for_during_an_update_is_updated_with_the_others(
    world: World, follow: Any
) -> None:
    controller = await world.controller()
    echo = deployed(min_workers=1)
    await controller.deploy(classes(echo))
    await world.pass_time(2)
    gate = world.shut("Echo", 2)
    await controller.deploy(classes(echo))
    await world.pass_time(2)
    assert echo.default_pool is not None
    router = follow(controller, replace(echo.default_pool, key=PoolKey("Echo", variant="cpu=2")))
    router.queued = 1
    await world.pass_time(5)
    assert router.ready() == world.pids("Echo[cpu=2]#1") != [], "the version that serves"
    gate.set()
    await world.pass_time(5)
    assert (await controller.progress(2)).phase is Phase.READY
    assert router.ready() == world.pids("Echo[cpu=2]#2") != []
    assert world.pids("Echo[cpu=2]#1") == []


async def test_what_calls_during_the_first_deployment_waits_for_the_version_that_comes(
    world: World, follow: Any
) -> None:
    controller = await world.controller()
    gate = world.shut("Echo", 1)
    echo = deployed(min_workers=2)
    await controller.deploy(classes(echo))
    router = follow(controller, echo.default_pool)
    router.queued = 1
    await world.pass_time(5)
    gate.set()
    await world.pass_time(60)
    assert router.ready() == world.pids("Echo#1")
    assert len(world.workers) == 2, "no workers beside those of the version"


async def test_who_knows_a_deployed_class_by_a_definition_of_its_own_is_told_of_every_change(
    world: World, follow: Any
) -> None:
    controller = await world.controller()
    echo = deployed(min_workers=1)
    await controller.deploy(classes(echo))
    assert echo.default_pool is not None
    router = follow(controller, replace(echo.default_pool, key=PoolKey("Echo", generation=3)))  # a notebook's third
    router.queued = 1
    await world.pass_time(3)
    (first,) = router.ready()
    world.kill(world.workers[first])
    await world.pass_time(3)
    assert router.ready() == world.pids("Echo#1") != []


async def test_without_room_for_both_versions_one_worker_at_a_time_makes_way_however_long_a_process_takes_to_start(
    world: World,
) -> None:
    world.room = 4
    controller = await world.controller()
    await controller.deploy(classes(deployed(min_workers=4)))
    await world.pass_time(3)
    version = await controller.deploy(classes(deployed(min_workers=4)))
    least = 4
    for _ in range(100):
        await world.pass_time(0.25)
        serving = [w for pool in controller._pools.values() for w in pool.workers.values() if w.serving]
        least = min(least, len(serving))
    assert (await controller.progress(version)).phase is Phase.READY
    assert len(world.pids("Echo#2")) == 4 and world.pids("Echo#1") == []
    assert least == 3


async def test_that_a_version_serves_is_said_when_the_routers_know_it(world: World, follow: Any) -> None:
    controller = await world.controller()
    echo = deployed(min_workers=1)
    await controller.deploy(classes(echo))
    await world.pass_time(3)
    router = follow(controller, echo.default_pool)
    await world.pass_time(1)
    router.slow_s = 0.2
    version = await controller.deploy(classes(echo))
    progress = asyncio.ensure_future(controller.progress(version))
    for _ in range(100):
        await world.timeline.advance(0.01)
        if progress.done():
            break
    assert progress.result().phase is Phase.READY
    assert router.ready() == world.pids("Echo#2")


async def test_the_code_of_a_version_is_kept_though_that_of_an_older_one_is_dropped(world: World) -> None:
    controller = await world.controller()
    for digest in ("one", "two"):
        await controller.deploy(classes(replace(deployed(min_workers=1), code=digest)), CodePackage(digest, b"1"))
        await world.pass_time(1)
    # "one" goes about now, and nothing that runs needs the code of a class that wants values to be given.
    await controller.deploy(classes(replace(deployed(), code="three", default_pool=None)), CodePackage("three", b"3"))
    await world.pass_time(100)
    assert [key.decode().rpartition("/")[2] for key in world.kv.data if b"/code/" in key] == ["three"]


def test_workers_of_an_app_are_not_taken_for_those_of_another_whose_name_begins_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [deployment.worker_options(app, f"Echo-{n}")["name"] for app in ("a", "a/b") for n in (1, 2)]
    monkeypatch.setattr(deployment, "_names", lambda: names)
    monkeypatch.setattr(deployment, "_find", lambda name: None)
    assert deployment.reap_workers("a", {"Echo-1"}) == ["Echo-2"]


# --- the end -----------------------------------------------------------------------------------------------------


async def test_stop_reaches_the_workers_that_a_restarted_controller_has_yet_to_take_over(world: World) -> None:
    controller = await world.controller()
    await controller.deploy(classes(deployed(min_workers=2)))
    await world.pass_time(2)
    assert len(world.workers) == 2
    await world.die(controller)
    successor = Controller(ControllerBoot("app", False, True, deployed=True))
    world.controllers.append(successor)
    stopping = asyncio.ensure_future(successor.stop(drain=True))  # before `begin`
    await world.pass_time(10)
    await stopping
    assert world.workers == {}


async def test_a_controller_whose_app_was_stopped_takes_no_new_version_and_ends_itself(world: World) -> None:
    controller = await world.controller()
    await controller.deploy(classes(deployed(min_workers=1)))
    await world.pass_time(2)
    await controller.stop(drain=True)
    with pytest.raises(PoolUnavailable, match="stopped"):
        await controller.deploy(classes(deployed(min_workers=1)))
    await world.pass_time(10)
    assert world.killed_itself == 1, "whoever stopped it may have died before it could do that"


# --- what goes wrong on the controller's own side ------------------------------------------------------------------


async def test_while_nothing_can_be_written_down_no_worker_starts_and_none_is_forgotten(world: World) -> None:
    controller = await world.controller()
    await controller.deploy(classes(deployed(min_workers=1)))
    await world.pass_time(2)
    (first,) = world.workers
    world.kv.broken = True
    world.kill(world.workers[first])
    await world.pass_time(3)
    assert world.workers == {}
    world.kv.broken = False
    await world.pass_time(3)
    assert len(world.workers) == 1


async def test_when_the_cluster_cannot_say_what_is_free_workers_drain_and_are_probed_all_the_same(
    world: World, follow: Any
) -> None:
    controller = await world.controller()
    await controller.deploy(classes(deployed("Growing"), deployed("Shrinking")))
    await world.pass_time(2)
    shrinking = follow(controller, deployed("Shrinking").default_pool)
    shrinking.queued = 2
    await world.pass_time(3)
    assert len(world.pids("Shrinking#1")) == 2
    world.reachable = False
    growing = follow(controller, deployed("Growing").default_pool)
    growing.queued = 1
    shrinking.queued = 0
    await world.pass_time(60)
    assert world.workers == {}
    world.reachable = True
    await world.pass_time(3)
    assert len(world.pids("Growing#1")) == 1


@pytest.mark.parametrize("during", ["start", "service"])
async def test_a_worker_that_is_given_up_is_killed_though_it_may_live(world: World, during: str) -> None:
    controller = await world.controller()
    if during == "start":
        gate = world.shut("Echo", 1)
    await controller.deploy(classes(deployed(min_workers=1)))
    await world.pass_time(2)
    (first,) = world.workers.values()
    first.fail.set_result(ActorUnavailableError("the connection broke", b"\0" * 16))
    if during == "start":
        gate.set()
    await world.pass_time(60)
    assert first.killed.is_set() == (during == "start"), "one that serves is given time to come back"
    assert len(world.workers) == 1


@pytest.mark.parametrize("during", ["placement", "start", "service"])
async def test_a_worker_whose_node_is_lost_is_replaced_at_once_and_on_another_node(world: World, during: str) -> None:
    controller = await world.controller()
    if during == "placement":
        world.room = 0
    if during == "start":
        gate = world.shut("Echo", 1)
    await controller.deploy(classes(deployed(min_workers=1)))
    await world.pass_time(2)
    (first,) = world.workers.values()
    assert "label_selector" not in first.options
    world.refusing.add("node")
    if during != "placement":
        first.fail.set_result(ActorUnavailableError("the connection broke", b"\0" * 16))
    if during == "start":
        gate.set()
    world.room = 1000
    await world.pass_time(2)
    assert first.killed.is_set()
    (second,) = world.workers.values()
    assert second.options["label_selector"] == {"ray.io/node-id": "!in(node)"}
    status = await controller.status()
    (crashed,) = [event.reason for event in status.events if event.action == "crashed"]
    assert crashed.startswith("node lost: ")
    assert "failed to start" not in [event.action for event in status.events], "it says nothing against the class"
    assert status.pool("Echo#1").state == "READY"


async def starting(world: World) -> tuple[Controller, FakeWorker]:
    """A controller, and its one worker, which is in on_enter."""
    controller = await world.controller()
    world.shut("Echo", 1)
    await controller.deploy(classes(deployed(min_workers=1)))
    await world.pass_time(2)
    (first,) = world.workers.values()
    return controller, first


async def test_a_worker_that_dies_while_another_node_is_lost_has_failed_to_start(world: World) -> None:
    controller, first = await starting(world)
    world.refusing.add("other")
    first.fail.set_result(ActorUnavailableError("the connection broke", b"\0" * 16))
    await world.pass_time(2)
    assert "failed to start" in [event.action for event in (await controller.status()).events]


async def test_what_ray_says_of_a_death_stands_though_the_node_is_lost(world: World) -> None:
    controller, first = await starting(world)
    world.refusing.add("node")
    first.fail.set_result(OutOfMemoryError("Task was killed due to the node running low on memory"))
    await world.pass_time(2)
    (failed,) = [event for event in (await controller.status()).events if event.action == "failed to start"]
    assert failed.reason.startswith("out of memory")


async def test_a_worker_that_waits_for_room_waits_on_while_nodes_come_and_go(world: World) -> None:
    controller = await world.controller()
    world.room = 0
    await controller.deploy(classes(deployed(min_workers=1)))
    for _ in range(4):
        world.refusing.add("other")
        await world.pass_time(3)
        world.refusing.discard("other")
        await world.pass_time(3)
    assert [event.action for event in (await controller.status()).events].count("starting") == 1


# --- a controller that dies ----------------------------------------------------------------------------------------


async def test_a_worker_that_is_taken_over_is_not_killed_for_the_loss_of_another_node(world: World) -> None:
    controller = await world.controller()
    await controller.deploy(classes(deployed(min_workers=1)))
    await world.pass_time(5)
    (worker,) = world.workers.values()
    await world.die(controller)
    world.refusing.add("other")  # the node of the controller
    ready = worker._ready

    async def late() -> None:
        await asyncio.sleep(3)
        await ready()

    worker.__ray_ready__ = Method(late)
    await world.controller()
    await world.pass_time(5)
    assert not worker.killed.is_set()


async def test_a_version_that_was_accepted_is_written_down(world: World) -> None:
    controller = await world.controller()
    await controller.deploy(classes(deployed(min_workers=1)))
    await world.pass_time(2)
    version = await controller.deploy(classes(deployed(min_workers=1)))
    await world.die(controller)  # before it did anything about it
    successor = await world.controller()
    await world.pass_time(5)
    assert (await successor.progress(version)).phase is Phase.READY
    assert len(world.pids("Echo#2")) == 1 and world.pids("Echo#1") == []


async def test_that_a_version_was_rolled_back_is_known_to_the_next_controller(world: World) -> None:
    controller = await world.controller()
    await controller.deploy(classes(deployed(min_workers=1)))
    await world.pass_time(2)
    world.failing[2] = "ValueError: no weights"
    version = await controller.deploy(classes(deployed(min_workers=1)))
    await world.pass_time(30)
    await world.die(controller)
    successor = await world.controller()
    progress = await successor.progress(version)
    assert progress.phase is Phase.FAILED and "no weights" in progress.reason


async def test_a_version_that_a_controller_never_heard_of_is_not_reported_as_served(world: World) -> None:
    controller = await world.controller()
    await controller.deploy(classes(deployed(min_workers=1)))
    await world.pass_time(2)
    assert (await controller.progress(7)).phase is Phase.FAILED


async def test_a_report_that_overtakes_the_definition_of_its_pool_counts_as_soon_as_that_is_there(world: World) -> None:
    controller = await world.controller()
    echo = deployed().default_pool
    assert echo is not None
    await controller.deploy(classes(deployed(min_workers=0)))
    await world.pass_time(2)
    variant = replace(echo, key=PoolKey("Echo", variant="max_pending=1"))
    await controller.report("router", variant.key, Demand(1, 0))
    await world.pass_time(0.1)
    assert world.workers == {}
    await controller.watch("router", variant.key, None, variant)
    await world.pass_time(0.1)
    assert len(world.workers) == 1, "a router repeats its report only after a quarter of a second"


async def test_a_report_on_a_pool_that_is_not_there_is_forgotten_with_its_router(world: World) -> None:
    controller = await world.controller()
    for number in range(5):
        await controller.report(f"router-{number}", PoolKey(f"Nothing{number}"), Demand(1, 0))
        await world.pass_time(DEMAND_EXPIRES_S + 0.5)
    assert len(controller._early) == 1


async def test_a_worker_is_told_to_start_together_with_its_creation(world: World) -> None:
    controller = await world.controller()
    world.room = 0
    await controller.deploy(classes(deployed(min_workers=1)))
    await world.pass_time(1)
    (worker,) = world.workers.values()
    assert not worker.placed
    assert worker.starts == 1, "Ray keeps the call until the process is there: no round trip is waited for"


async def test_a_controller_that_dies_while_versions_swap_knows_how_large_the_old_one_was(world: World) -> None:
    world.room = 3
    controller = await world.controller()
    await controller.deploy(classes(deployed(min_workers=0)))
    echo = deployed().default_pool
    assert echo is not None
    await controller.watch("router", echo.key, None, echo)
    for _ in range(20):
        await controller.report("router", echo.key, Demand(0, 3))
        await world.pass_time(0.5)
    assert len(world.pids("Echo#1")) == 3
    world.shut("Echo", 2)
    await controller.deploy(classes(deployed(min_workers=0)))
    await world.pass_time(8)
    assert len(world.pids("Echo#1")) == 2
    await world.die(controller)
    successor = await world.controller()
    world.failing[2] = "ValueError: no weights"
    world.gate(PoolKey("Echo", generation=2)).set()
    await world.pass_time(4)
    assert (await successor.progress(2)).phase is Phase.FAILED
    await world.pass_time(4)
    assert len(world.pids("Echo#1")) == 3, "as large as it was"
    assert {"Echo-1", "Echo-2"} < set(world.pids("Echo#1")), "a worker that was starting was not taken for none"


# --- many workers ------------------------------------------------------------------------------------------------


async def test_workers_that_wait_for_a_place_cost_little_however_many_they_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.room = 0
    controller = await world.controller()
    await controller.deploy(classes(deployed(min_workers=50)))
    await world.pass_time(5)
    assert len(world.workers) == 50
    asked, looks = world.asked_for_nodes, 0
    refresh = Pool.refresh

    def counted(pool: Pool, now: float) -> bool:
        nonlocal looks
        looks += 1
        return refresh(pool, now)

    monkeypatch.setattr(Pool, "refresh", counted)
    await world.pass_time(10)
    assert world.asked_for_nodes - asked <= 10 / 0.3 + 1
    assert looks <= 2 * 10 / 0.25
    (pool,) = (await controller.status()).pools
    assert pool.pending == 50 and pool.waiting_for == "50 starting: waiting for CPU x1"


async def test_a_worker_that_drains_ends_whatever_goes_wrong_on_the_controllers_side(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = await world.controller()
    await controller.deploy(classes(deployed(min_workers=1)))
    await world.pass_time(2)

    async def broken(route: Route) -> None:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(Route, "seen_by_all", broken)
    stopping = asyncio.ensure_future(controller.stop(drain=True))
    await world.pass_time(3)
    assert stopping.done() and world.workers == {}


async def test_a_worker_that_said_it_is_not_ready_is_not_used_by_the_next_controller(world: World) -> None:
    readiness = Probe.on("warm", kind="readiness", failures=1, period_s=1000)
    controller = await world.controller()
    await controller.deploy(classes(deployed(min_workers=2, probes=[readiness])))
    await world.pass_time(3)
    (pool,) = controller._pools.values()
    pool.probed(pool.workers["Echo-1"], readiness, Verdict.FAILED, 0.001, "returned False", world.timeline.now())
    await world.pass_time(1)
    await world.die(controller)
    successor = await world.controller()
    (pool,) = successor._pools.values()
    assert [(w.id, w.ready) for w in pool.view.workers] == [("Echo-1", False), ("Echo-2", True)]
    assert pool.workers["Echo-1"].state is WorkerState.UNREADY
    pool.probed(pool.workers["Echo-1"], readiness, Verdict.PASSED, 0.001, "", world.timeline.now())
    await world.pass_time(1)
    assert [w.ready for w in pool.view.workers] == [True, True]


async def test_a_worker_that_died_while_there_was_no_controller_has_crashed_and_did_not_fail_to_start(
    world: World,
) -> None:
    controller = await world.controller()
    await controller.deploy(classes(deployed(min_workers=1)))
    await world.pass_time(2)
    await world.die(controller)
    del world.workers["Echo-1"]
    successor = await world.controller()
    await world.pass_time(3)
    actions = [e.action for e in (await successor.events(0)) if e.worker == "Echo-1"]
    assert actions == ["starting", "ready", "crashed"]
    (pool,) = (await successor.status()).pools
    assert (pool.ready, pool.restarts) == (1, 1)


@pytest.mark.parametrize("grows", [True, False])
async def test_an_update_ends_though_room_is_left_for_a_class_that_has_no_worker(
    world: World, follow: Any, grows: bool
) -> None:
    world.room = 3
    controller = await world.controller(cluster_may_grow=grows)
    both = classes(deployed("Caller", min_workers=1), deployed("Called"))
    await controller.deploy(both)
    router = follow(controller, deployed("Caller").default_pool)
    router.queued = 2
    await world.pass_time(5)
    assert len(world.pids("Caller#1")) == 2
    version = await controller.deploy(both)
    await world.pass_time(100)
    assert (await controller.progress(version)).phase is Phase.READY
    await world.pass_time(5)
    assert world.pids("Caller#1") == [] and len(world.pids("Caller#2")) == 2


async def test_a_class_that_the_new_version_lacks_is_not_brought_back_by_those_who_call_it(
    world: World, follow: Any
) -> None:
    controller = await world.controller()
    await controller.deploy(classes(deployed("Old"), deployed("Kept")))
    router = follow(controller, deployed("Old").default_pool)
    router.queued = 1
    await world.pass_time(5)
    await controller.deploy(classes(deployed("Kept")))
    await world.pass_time(5)
    router.queued = 0
    await world.pass_time(30)
    assert world.workers == {}
    view = await controller.watch("another", PoolKey("Old"), None, deployed("Old").default_pool)
    assert isinstance(view.failure, NotFound) and "no class 'Old'; it has: Kept" in str(view.failure)


async def test_a_probe_goes_on_whatever_goes_wrong_on_the_controllers_side(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = await world.controller()
    probed = []

    def broken(pool: Pool, *about: Any) -> None:
        probed.append(about)
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(Pool, "probed", broken)
    await controller.deploy(classes(deployed(min_workers=1, probes=[Probe.on("alive", period_s=1)])))
    await world.pass_time(10)
    assert len(probed) > 5
