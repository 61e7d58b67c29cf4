"""What routers are told: a view for each key that they know, and which of them have seen it.

Behind a key stands a pool; while one version of a deployed app replaces another there may be two, and routers see the
workers of both.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import replace

from gworker import clock
from gworker.control.pool import Pool
from gworker.errors import GWorkerError
from gworker.router.membership import PoolKey, PoolState, PoolView

# How long a watch is kept open before it answers with what is known already.
WATCH_S = 10.0
# How long is waited at most for routers to see a view.
SEEN_S = 1.0


class Route:
    """One key that routers know, and the pools behind it."""

    def __init__(self, pools: list[Pool], epoch: str) -> None:
        self.pools = pools
        self.view = PoolView(0, PoolState.SCALING, (), epoch=epoch)
        self.changed = asyncio.Event()
        self._seen: dict[str, tuple[int, float]] = {}

    def refresh(self) -> None:
        """Bring the view up to date, and wake those who wait for it if they have something to learn."""
        view = combined([pool.view for pool in self.pools])
        if self.view.version and view.tells_the_same_as(self.view):
            return
        self.view = replace(view, version=self.view.version + 1, epoch=self.view.epoch)
        self.wake()

    def wake(self) -> None:
        """Have those who wait look again."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def saw(self, router: str, version: int) -> None:
        """A router acts on this version of the view."""
        self._seen[router] = (version, clock.now())

    async def seen_by_all(self) -> None:
        """Wait until every router that watches knows what the view is now. Bounded: one may be gone."""
        version = self.view.version
        end = clock.now() + SEEN_S
        while clock.now() < end:
            self._seen = {r: (v, at) for r, (v, at) in self._seen.items() if clock.now() - at < WATCH_S + SEEN_S}
            if all(known >= version for known, _ in self._seen.values()):
                return
            await asyncio.sleep(0.005)


class Board:
    """The routes of one app. `epoch` names this controller: one that was restarted counts its versions anew."""

    def __init__(self, epoch: str) -> None:
        self._epoch = epoch
        self._routes: dict[PoolKey, Route] = {}

    def show(self, key: PoolKey, *pools: Pool) -> None:
        """Have these pools behind a key, the newest last."""
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = Route(list(pools), self._epoch)
        route.pools = list(pools)
        route.refresh()

    def forget(self, key: PoolKey) -> None:
        """Have nothing behind a key any more."""
        route = self._routes.pop(key, None)
        if route is not None:
            route.wake()

    def route(self, key: PoolKey) -> Route | None:
        """What stands behind a key."""
        return self._routes.get(key)

    def routes(self) -> Iterable[tuple[PoolKey, Route]]:
        """All of them."""
        return list(self._routes.items())

    def nothing(self, why: GWorkerError | None = None) -> PoolView:
        """The view of a pool that is not kept. `why` it will not be, either."""
        return PoolView(0, PoolState.READY, (), failure=why, epoch=self._epoch, forgotten=True)

    async def next_view(self, router: str, key: PoolKey, known: tuple[str, int] | None) -> PoolView:
        """The view once it is not the `known` one, (epoch, version), or after a while the same one again."""
        end = clock.now() + WATCH_S
        while True:
            route = self._routes.get(key)
            if route is None:
                return self.nothing()
            if known is not None and known[0] == self._epoch:
                route.saw(router, known[1])
            view = route.view
            if (view.epoch, view.version) != known or clock.now() >= end:
                return view
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(route.changed.wait(), max(0.0, end - clock.now()))


def combined(views: list[PoolView]) -> PoolView:
    """The view of several pools as one: all their workers; it fails only where all have failed."""
    newest = views[-1]
    if len(views) == 1:
        return newest
    failures = [view.failure for view in views]
    return replace(
        newest,
        workers=tuple(worker for view in views for worker in view.workers),
        failure=None if None in failures else newest.failure,
        app_version=views[0].app_version,
    )
