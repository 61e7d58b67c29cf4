"""An app as this process reaches it: its controller, and the routers to its pools."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from gworker import clock
from gworker.errors import GWorkerError, PoolUnavailable
from gworker.router.lanes import Lane, RayLane
from gworker.router.loop import io_loop
from gworker.router.membership import Demand, PoolDefinition, PoolKey, PoolView, WorkerView
from gworker.router.router import Link, Router, death_reason

log = logging.getLogger("gworker.router")


class AppClient:
    """The controller of one running app, and this process's routers to its pools. Thread-safe.

    `lost` is set once the controller is found to be gone.
    """

    def __init__(self, app_name: str, controller: Any) -> None:
        self.app_name = app_name
        self.controller = controller
        self.lost = False
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

    async def watch(self, key: PoolKey, version: int) -> PoolView:
        """See PoolSource. The first call brings the pool's definition along."""
        definition = self._definitions[key] if version < 0 else None
        if not ray.is_initialized():  # a remote call would start another Ray, from this thread
            self.lost = True
            raise PoolUnavailable(f"Ray was shut down while the app {self.app_name!r} was running")
        try:
            view: PoolView = await self.controller.watch.remote(key, version, definition)
        except RayError as error:
            self.lost = True
            reason = f"the controller of the app {self.app_name!r} is gone: {death_reason(error)}"
            raise PoolUnavailable(reason) from error
        return view

    def report(self, router: str, key: PoolKey, demand: Demand) -> None:
        """See PoolSource."""
        if not ray.is_initialized():
            return
        try:
            self.controller.report.remote(router, key, demand)
        except Exception:  # the watch call learns of a dead controller, and says so to the callers
            log.debug("a demand report to the controller of %s was lost", self.app_name, exc_info=True)

    def make_lane(self, worker: WorkerView, session: str, link: Link) -> Lane:
        """See PoolSource."""
        return RayLane(self._loop, worker.actor, session, worker.capacity, link, ray.is_initialized)

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
