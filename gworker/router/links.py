"""What a router holds of each worker: its lane, and the calls that are there; and where it learns of workers."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from gworker.observe.times import Times
from gworker.router.calls import RoutedCall
from gworker.router.direct import TakenUp
from gworker.router.lanes import Lane, LaneListener
from gworker.router.membership import Demand, PoolKey, PoolView, WorkerView
from gworker.wire import Cancel

if TYPE_CHECKING:
    from gworker.router.router import Router

# How often it is looked whether a call that is asked after has been given up meanwhile.
LOOK_S = 0.1


class PoolSource(Protocol):
    """Where a router learns of its pool, and reports to: the controller, seen from here."""

    async def watch(self, router: str, key: PoolKey, known: tuple[str, int] | None) -> PoolView:
        """The pool's view once it is not the `known` one, (epoch, version), or a PoolChange since that one.

        Asking says that the router acts on the known one already. Raises when the controller is gone.
        """
        ...

    def report(self, router: str, key: PoolKey, demand: Demand, times: Mapping[str, Times]) -> None:
        """Tell the controller what this router needs, and the times of calls since the last report; never blocks."""

    def make_lane(
        self, worker: WorkerView, session: str, listener: LaneListener, taken_up: TakenUp | None = None
    ) -> Lane:
        """A lane to a worker, which knows this end of it as `session`: a new one, or one that is taken up."""
        ...


class Link:
    """A worker as this router uses it: the lane, and the calls that are there."""

    def __init__(self, router: Router, worker: WorkerView) -> None:
        self.worker = worker
        self.ready = worker.ready
        self.broken = False
        self.was_up = False
        self.calls: dict[int, RoutedCall] = {}
        self._router = router
        self.on_message = functools.partial(router.on_message, self)  # see LaneListener; a call less than a method
        self.lane = router.source.make_lane(worker, router.new_session(), self)

    @property
    def load(self) -> float:
        """How full this router has made the worker: 0.0 for idle."""
        return len(self.calls) / self.worker.capacity

    def has_room(self) -> bool:
        """Whether the worker would take a call of ours now, as far as is known."""
        return self.lane.available() > 0

    def on_progress(self) -> None:
        """See LaneListener."""
        self.was_up = True
        self._router.on_progress(self)

    def on_broken(self, error: BaseException) -> None:
        """See LaneListener."""
        self._router.on_broken(self, error)


class Inquiry:
    """A lane that takes up the session of an express way which broke, to find out what became of the call there."""

    def __init__(self, router: Router, link: Link, call: RoutedCall, session: str, taken_up: TakenUp) -> None:
        self._router = router
        self._link = link
        self._call = call
        self._over = False
        self._lane = router.source.make_lane(link.worker, session, self, taken_up)
        self._look()

    def on_message(self, message: Any) -> None:
        """See LaneListener."""
        self._router.on_message(self._link, message)

    def on_progress(self) -> None:
        """See LaneListener."""
        if self._is_answered and not self._over:
            self._over = True
            self._lane.close()
            self._router.pump_soon()

    @property
    def _is_answered(self) -> bool:
        return self._call.over or self._call.link is not self._link

    def _look(self) -> None:
        """Nobody tells of a call that was given up on this side: the worker may have nothing to say for long."""
        if self._over:
            return
        if self._is_answered:
            self._over = True
            self._lane.send(Cancel(self._call.number))
            self._lane.close()
        else:
            asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def on_broken(self, error: BaseException) -> None:
        """See LaneListener."""
        self._over = True
        if self._link.calls.pop(self._call.number, None) is not None:
            self._router.settle_lost(self._link, [self._call], error)
