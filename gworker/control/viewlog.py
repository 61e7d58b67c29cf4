"""The view of a pool and its latest changes: a router that knows an earlier version is told what it lacks. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from gworker.router.membership import PoolChange, PoolState, PoolView, WorkerView

# So many changes of workers are remembered, or as many as there are workers where those are more.
KEPT = 1000


class ViewLog:
    """The newest view, counted by `epoch`, and how it came to be."""

    def __init__(self, epoch: str) -> None:
        self.view = PoolView(0, PoolState.SCALING, (), epoch=epoch)
        self._workers: dict[str, WorkerView] = {}
        # The version, the worker, and whether the whole of it is to be told, not only whether it is ready.
        self._log: deque[tuple[int, str, bool]] = deque()
        self._reaches_to = 0  # the changes since this version are all in the log

    def record(self, view: PoolView) -> bool:
        """Have this view, whatever its version; False if routers have nothing to learn from it."""
        version = self.view.version + 1
        before, now = self._workers, {worker.id: worker for worker in view.workers}
        changes = len(self._log)
        for worker_id, worker in now.items():
            known = before.get(worker_id)
            if known is not worker:
                whole = known is None or known.actor is not worker.actor or known.direct != worker.direct
                if known is None or whole or known.ready is not worker.ready:
                    self._log.append((version, worker_id, whole))
        if len(now) < len(before) or any(worker_id not in now for worker_id in before):
            self._log.extend((version, worker_id, True) for worker_id in before if worker_id not in now)
        if self.view.version and len(self._log) == changes and view.says_the_same_as(self.view):
            return False
        self._workers = now
        self.view = replace(view, version=version, epoch=self.view.epoch)
        while len(self._log) > max(KEPT, len(now)):
            self._reaches_to = self._log.popleft()[0]
        return True

    def since(self, known: tuple[str, int] | None) -> PoolView:
        """What to tell a router that knows this version, (epoch, version): the changes since if they are remembered."""
        view = self.view
        if known is None or known[0] != view.epoch or not self._reaches_to <= known[1] <= view.version:
            return view
        touched: dict[str, bool] = {}
        for version, worker_id, whole in reversed(self._log):
            if version <= known[1]:
                break
            touched[worker_id] = whole or touched.get(worker_id, False)
        there = {worker_id: self._workers[worker_id] for worker_id in touched if worker_id in self._workers}
        return PoolChange(
            version=view.version,
            state=view.state,
            workers=tuple(worker for worker_id, worker in there.items() if touched[worker_id]),
            waiting_for=view.waiting_for,
            failure=view.failure,
            notice=view.notice,
            start_error=view.start_error,
            epoch=view.epoch,
            app_version=view.app_version,
            since=known[1],
            turned=tuple((worker_id, w.ready) for worker_id, w in there.items() if not touched[worker_id]),
            left=tuple(worker_id for worker_id in touched if worker_id not in self._workers),
        )
