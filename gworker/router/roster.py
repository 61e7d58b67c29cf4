"""A router's knowledge of its pool, kept up to date by whole views and by changes. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from gworker.router.membership import PoolChange, PoolView, WorkerView

# A version that nobody has counted: whoever says that it knows this one is told the whole view.
NOTHING_KNOWN = ("", 0)


class Differences(NamedTuple):
    """The workers that are new or other than before, and those that are gone."""

    changed: tuple[WorkerView, ...]
    left: tuple[str, ...]


class Roster:
    """The workers of a pool by name. `view` is the latest that was told, whose own `workers` are not to be used.

    `known` is what to say that is known, (epoch, version): None at first, and of a pool that is not kept any more.
    """

    def __init__(self) -> None:
        self.workers: dict[str, WorkerView] = {}
        self.view: PoolView | None = None
        self.known: tuple[str, int] | None = None

    def take(self, told: PoolView) -> Differences | None:
        """Learn what was told. None where that does not follow on what is known: then the whole has to be told."""
        if not isinstance(told, PoolChange):
            return self._take_whole(told)
        epoch, version = self.known or NOTHING_KNOWN
        if told.epoch != epoch or told.since > version:
            self.known = NOTHING_KNOWN
            return None
        if told.version < version:  # it was overtaken
            return Differences((), ())
        turned = tuple(
            replace(self.workers[worker_id], ready=ready)
            for worker_id, ready in told.turned
            if worker_id in self.workers
        )
        self._know(told)
        for worker in (*told.workers, *turned):
            self.workers[worker.id] = worker
        left = tuple(worker_id for worker_id in told.left if self.workers.pop(worker_id, None) is not None)
        return Differences((*told.workers, *turned), left)

    def _take_whole(self, told: PoolView) -> Differences:
        if not told.forgotten and self.known is not None:
            epoch, version = self.known
            if told.epoch == epoch and told.version < version:  # it was overtaken
                return Differences((), ())
        before, self.workers = self.workers, {worker.id: worker for worker in told.workers}
        self._know(told)
        return Differences(
            tuple(worker for worker in told.workers if before.get(worker.id) != worker),
            tuple(worker_id for worker_id in before if worker_id not in self.workers),
        )

    def _know(self, told: PoolView) -> None:
        self.view = told
        self.known = None if told.forgotten else (told.epoch, told.version)
