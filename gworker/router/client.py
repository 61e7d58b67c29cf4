"""An app as this process reaches it: its controller, and the routers to its pools."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from gworker import clock
from gworker.deaths import death_reason
from gworker.errors import GWorkerError, NotFound, PoolUnavailable
from gworker.observe.times import Times
from gworker.router import deployment
from gworker.router.cluster import attach, is_alive
from gworker.router.direct import DirectLane, TakenUp
from gworker.router.lanes import Lane, LaneListener, RayLane
from gworker.router.loop import io_loop
from gworker.router.membership import Demand, DeployedClass, PoolDefinition, PoolKey, PoolView, WorkerView
from gworker.router.router import Router

log = logging.getLogger("gworker.router")

# How long a controller may take to answer a question of a person.
ANSWER_S = 30.0
# How often it is looked, while an answer is waited for, whether Ray is still there.
RAY_GONE_S = 2.0
# How often a controller that is being replaced is asked whether it is back.
FIND_AGAIN_S = 0.2
# How often who calls looks whether Ray is still the one that the app runs in: nobody can start another one as fast.
SAME_RAY_S = 0.05


class AppClient:
    """The controller of one running app, and this process's routers to its pools. Thread-safe.

    `find_again`, for a deployed app, finds its controller by name, or gives None: it may die, and be replaced, while
    calls go on. `version` is the version of a deployed app that serves, as its views told last. `lost` is set once the
    controller is found to be gone for good, or Ray to be another one.
    """

    def __init__(self, app_name: str, controller: Any, find_again: Callable[[], Any] | None = None) -> None:
        self.app_name = app_name
        self.controller = controller
        self.lost = False
        self.version = ""
        self._ray = _this_ray()
        self._look_again_at = clock.now() + SAME_RAY_S
        self._find_again = find_again
        self._loop = io_loop()
        self._lock = threading.Lock()
        self._routers: dict[PoolKey, Router] = {}
        self._definitions: dict[PoolKey, PoolDefinition] = {}

    def router(self, key: PoolKey, define: Callable[[], PoolDefinition]) -> Router:
        """The router to the pool `key`, made at first use from what `define` returns."""
        router = self._routers.get(key)
        if router is None:
            with self._lock:
                router = self._routers.get(key)
                if router is None:
                    definition = define()
                    self._definitions[key] = definition
                    label = f"{self.app_name}/{key}"
                    router = self._routers[key] = Router(key, label, definition.options, self, self._loop)
        return router

    @property
    def usable(self) -> bool:
        """Whether the app can be reached: Ray is up, and the one that it runs in; its controller was not found gone."""
        if self.lost or not ray.is_initialized():
            return False
        now = clock.now()
        if now >= self._look_again_at:
            self._look_again_at = now + SAME_RAY_S
            self.lost = self._ray != _this_ray()
        return not self.lost

    @property
    def deployed(self) -> bool:
        """Whether the app outlives this process."""
        return self._find_again is not None

    async def watch(self, router: str, key: PoolKey, known: tuple[str, int] | None) -> PoolView:
        """See PoolSource. The first call brings the pool's definition along."""
        definition = self._definitions[key] if known is None else None
        while True:
            if not ray.is_initialized():  # a remote call would start another Ray, from this thread
                self.lost = True
                raise PoolUnavailable(f"Ray was shut down while the app {self.app_name!r} was running")
            try:
                view: PoolView = await self.controller.watch.remote(router, key, known, definition)
                self.version = view.app_version or self.version
                return view
            except RayError as error:
                # An error of its own it would only raise again.
                if isinstance(error, RayTaskError) or not await asyncio.to_thread(self._found_again):
                    self.lost = True
                    raise self._unavailable(error) from error
            await asyncio.sleep(FIND_AGAIN_S)

    def ask(self, question: str, *about: Any, timeout_s: float | None = ANSWER_S) -> Any:
        """What the controller answers, whose method `question` is. One that is being replaced is waited for.

        Raises what that raises, and PoolUnavailable when the controller is gone.
        """
        deadline = clock.deadline_after(timeout_s)
        while True:
            try:
                answer = getattr(self.controller, question).remote(*about)
                while not ray.wait([answer], timeout=min(RAY_GONE_S, clock.left_until(deadline) or RAY_GONE_S))[0]:
                    if not is_alive():  # who ends this process may have ended its Ray as well
                        raise PoolUnavailable(f"Ray has ended before the app {self.app_name!r} had answered")
                    if clock.left_until(deadline) == 0.0:
                        raise PoolUnavailable(f"the controller of the app {self.app_name!r} does not answer")
                return ray.get(answer)
            except RayTaskError as error:
                raise error.cause from None  # without the controller's frames, which say nothing to who asked
            except RayActorError as error:
                if clock.left_until(deadline) == 0.0 or not self._found_again():
                    raise self._unavailable(error) from error
            time.sleep(FIND_AGAIN_S)

    def deployed_class(self, name: str) -> DeployedClass:
        """A class of a deployed app. Raises NotFound."""
        found: DeployedClass = self.ask("deployed_class", name)
        return found

    def generations(self) -> dict[str, int]:
        """The classes of a deployed app, and the version that each is served in."""
        found: dict[str, int] = self.ask("generations")
        return found

    def scale(self, class_name: str, variant: str, min_workers: int | None, max_workers: int | None) -> tuple[int, int]:
        """Change how many workers a class may have; the bounds as they are then. Raises NotFound, InvalidDefinition."""
        bounds: tuple[int, int] = self.ask("scale", class_name, variant, min_workers, max_workers)
        return bounds

    def _found_again(self) -> bool:
        """Whether the controller of a deployed app is there, or on its way back. A blocking round trip."""
        found = None if self._find_again is None else self._find_again()
        if found is not None:
            self.controller = found
        return found is not None

    def _unavailable(self, error: RayError) -> PoolUnavailable:
        if isinstance(error, RayTaskError):
            cause: Any = error.cause
            if isinstance(cause, PoolUnavailable):
                return cause
            what = f"{type(cause).__name__}: {cause}"
            return PoolUnavailable(f"the controller of the app {self.app_name!r} failed inside gworker: {what}")
        return PoolUnavailable(f"the controller of the app {self.app_name!r} is gone: {death_reason(error)}")

    def report(self, router: str, key: PoolKey, demand: Demand, times: Mapping[str, Times]) -> None:
        """See PoolSource."""
        if not ray.is_initialized():
            return
        try:
            self.controller.report.remote(router, key, demand, times)
        except Exception:  # the watch call learns of a dead controller, and says so to the callers
            log.debug("a demand report to the controller of %s was lost", self.app_name, exc_info=True)

    def make_lane(
        self, worker: WorkerView, session: str, listener: LaneListener, taken_up: TakenUp | None = None
    ) -> Lane:
        """See PoolSource."""

        def by_ray(name: str) -> Lane:
            return RayLane(self._loop, worker.actor.get(), name, worker.capacity, listener, ray.is_initialized)

        async def ask_tcp() -> tuple[str, int] | None:
            if not ray.is_initialized():
                return None
            try:
                found: tuple[str, int] | None = await worker.actor.get().listen.remote()
            except RayTaskError:  # it has answered, and has none
                log.warning("a worker does not listen for other nodes", exc_info=True)
                return None
            return found

        if worker.direct is None or (taken_up is None and os.environ.get("GWORKER_LANE") == "ray"):
            return by_ray(session)
        return DirectLane(
            self._loop,
            worker.direct,
            session,
            worker.capacity,
            listener,
            # Where a session broke Ray may have been shut down, and asking it anything would start another one.
            same_node=taken_up is not None or worker.direct.node_id == _node_id(),
            ask_tcp=ask_tcp,
            # By another name: the worker may know this one already, from a connection that was given up.
            fall_back=lambda: by_ray(f"{session}.ray"),
            taken_up=taken_up,
        )

    @property
    def unfinished(self) -> int:
        """Calls of this process that have not ended."""
        return sum(router.unfinished for router in list(self._routers.values()))

    def wait_idle(self, timeout_s: float | None = None) -> bool:
        """Wait until every call of this process has ended; False if some have not within `timeout_s`."""
        deadline = clock.deadline_after(timeout_s)

        async def idle() -> bool:
            while self.unfinished:
                if deadline is not None and clock.now() >= deadline:
                    return False
                await asyncio.sleep(0.01)
            return True

        return asyncio.run_coroutine_threadsafe(idle(), self._loop).result()

    def close(self, reason: GWorkerError) -> None:
        """End every call with `reason`."""
        with self._lock:
            routers = list(self._routers.values())
        for router in routers:
            router.close(reason)


def _this_ray() -> str:
    """Names Ray as this process is attached to it: another one after `ray.shutdown` and `ray.init`."""
    if not ray.is_initialized():
        return ""
    here = ray.get_runtime_context()
    return f"{here.get_node_id()} {here.get_job_id()}"  # either alone may be the same


def _node_id() -> str:
    found: str = ray.get_runtime_context().get_node_id()
    return found


_clients: dict[str, AppClient] = {}
_clients_lock = threading.Lock()


def deployed_client(app_name: str) -> AppClient:
    """A deployed app as this process reaches it, always the same while it is there. Raises NotFound."""
    with _clients_lock:
        client = _clients.get(app_name)
        if client is None or not client.usable:
            client = _clients[app_name] = _connect(app_name)
        return client


def _connect(app_name: str) -> AppClient:
    attach()
    controller = deployment.find_controller(app_name)
    if controller is None:
        known = ", ".join(deployment.deployed_apps()) or "none"
        raise NotFound(
            f"no app {app_name!r} is deployed in this Ray cluster; deployed are: {known}. Deploy it with app.deploy()"
        )
    return AppClient(app_name, controller, lambda: deployment.find_controller(app_name))
