"""What routers are told: a view for each key that they know, and which of them have seen it.

Behind a key stands a pool; while one version of a deployed app replaces another there may be two, and routers see the
workers of both.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import operator
from collections.abc import Iterable
from dataclasses import replace

from gworker import clock
from gworker.control.pool import Pool
from gworker.control.viewlog import ViewLog
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
        self._log = ViewLog(epoch)
        self._latest: list[PoolView] = []
        self.changed = asyncio.Event()
        self._seen: dict[str, tuple[int, float]] = {}

    def refresh(self) -> None:
        """Bring the view up to date, and wake those who wait for it if they have something to learn."""
        before, self._latest = self._latest, [pool.view for pool in self.pools]
        unchanged = len(before) == len(self._latest) and all(map(operator.is_, before, self._latest))
        if not unchanged and self._log.record(combined(self._latest)):
            self.wake()

    @property
    def view(self) -> PoolView:
        """The whole view as it is now."""
        return self._log.view

    def news(self, known: tuple[str, int] | None) -> PoolView:
        """What a router is to be told that knows this version, (epoch, version): the changes, or the whole view."""
        return self._log.since(known)

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
    """The routes of one app. `epoch` names this controller: one that was restarted counts its versions anew.

    So does a route that is made anew; to routers each is an epoch of its own. `any_version`: routers know a pool by the
    same key whatever version of it serves.
    """

    def __init__(self, epoch: str, *, any_version: bool = False) -> None:
        self._epoch = epoch
        self._any_version = any_version
        self._routes: dict[PoolKey, Route] = {}
        self._numbers = itertools.count(1)

    def show(self, key: PoolKey, *pools: Pool) -> None:
        """Have these pools behind a key, the newest last."""
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = Route(list(pools), f"{self._epoch}-{next(self._numbers)}")
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

    def key_of(self, key: PoolKey) -> PoolKey:
        """What routers know a pool by: those of a deployed app need not know which version serves."""
        return replace(key, generation=0) if self._any_version else key

    def publish(self, pool: Pool) -> None:
        """Tell the routers of a pool what it is like, if they have something to learn."""
        route = self._routes.get(self.key_of(pool.definition.key))
        if route is not None and pool in route.pools:
            route.refresh()

    async def seen_by_all(self, pool: Pool) -> None:
        """See `Route.seen_by_all`."""
        route = self._routes.get(self.key_of(pool.definition.key))
        if route is not None:
            await route.seen_by_all()

    def nothing(self, why: GWorkerError | None = None) -> PoolView:
        """The view of a pool that is not kept. `why` it will not be, either."""
        return PoolView(0, PoolState.READY, (), failure=why, epoch=self._epoch, forgotten=True)

    async def next_view(self, router: str, key: PoolKey, known: tuple[str, int] | None) -> PoolView:
        """What has changed once the view is not the `known` one, (epoch, version); after a while, that nothing has.

        The whole view for a router that knows none of ours, or one that is too old.
        """
        end = clock.now() + WATCH_S
        while True:
            route = self._routes.get(key)
            if route is None:
                return self.nothing()
            if known is not None and known[0] == route.view.epoch:
                route.saw(router, known[1])
            view = route.view
            if (view.epoch, view.version) != known or clock.now() >= end:
                return route.news(known)
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
