"""What the controller of a deployed app writes down, so that its replacement can go on where it ended.

It stands in the key-value store of Ray's head node, which outlives every actor. Definitions never change and are
written once each; the state is written whenever it has changed, before anything is done about it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.experimental import internal_kv

from gworker.control.pool import PoolRecord
from gworker.control.rollout import Progress
from gworker.observe.events import Event
from gworker.router import deployment
from gworker.router.membership import DeployedClass, PoolDefinition, PoolKey


@dataclass(frozen=True)
class RolloutRecord:
    """A rollout as it is written down; `size` is that of the old pool before it made room."""

    old: PoolKey | None
    new: PoolKey
    swapping: bool
    size: int


@dataclass(frozen=True)
class UpdateRecord:
    """An update on its way: its classes, and the rollout of each route."""

    classes: Mapping[str, DeployedClass]
    rollouts: Mapping[PoolKey, RolloutRecord]
    removed: tuple[PoolKey, ...]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a controller. `at` is when it was written, by the time of day: nothing else spans processes.

    `routes` has the pools behind each key that routers know; `progress` is that of the latest update.
    """

    at: float
    next_number: int
    version: int
    pools: Mapping[PoolKey, PoolRecord]
    routes: Mapping[PoolKey, list[PoolKey]]
    update: UpdateRecord | None
    progress: Progress
    events: tuple[Event, ...]


class Journal:
    """The store of one app. `write` does nothing when nothing has changed."""

    def __init__(self, app_name: str) -> None:
        self._app_name = app_name
        self._written: Any = None

    def read(self) -> Checkpoint | None:
        """The last checkpoint; None for an app that has none."""
        found: Checkpoint | None = self.read_value("state")
        return found

    def write(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint in place of the last one."""
        update = checkpoint.update
        changed = (
            checkpoint.next_number,
            checkpoint.version,
            checkpoint.progress,
            None if update is None else dict(update.rollouts),
            dict(checkpoint.routes),
            tuple(_lasting(record) for record in checkpoint.pools.values()),
        )
        if changed != self._written:
            self.write_value("state", checkpoint)
            self._written = changed

    def read_value(self, name: str) -> Any:
        """What `write_value` kept under a name; None if nothing."""
        data = internal_kv._internal_kv_get(self._key(name), namespace=deployment.KV_NAMESPACE)
        return None if data is None else pickle.loads(data)

    def write_value(self, name: str, value: Any) -> None:
        """Keep a value that seldom changes."""
        data = pickle.dumps(value, protocol=5)
        internal_kv._internal_kv_put(self._key(name), data, overwrite=True, namespace=deployment.KV_NAMESPACE)

    def write_definition(self, definition: PoolDefinition) -> None:
        """Keep the definition of a pool."""
        self.write_value(f"pool/{definition.key}", definition)

    def read_definition(self, key: PoolKey) -> PoolDefinition | None:
        """The definition of a pool."""
        found: PoolDefinition | None = self.read_value(f"pool/{key}")
        return found

    def forget_definition(self, key: PoolKey) -> None:
        """Drop the definition of a pool that is no more."""
        internal_kv._internal_kv_del(self._key(f"pool/{key}"), namespace=deployment.KV_NAMESPACE)

    def erase(self) -> None:
        """Drop all that was written of the app."""
        internal_kv._internal_kv_del(self._key(""), del_by_prefix=True, namespace=deployment.KV_NAMESPACE)

    def _key(self, name: str) -> bytes:
        return deployment.kv_key(self._app_name, name)


def _lasting(record: PoolRecord) -> Any:
    """What of a pool is worth writing down again: not that time has passed."""
    return (
        record.desired,
        record.pinned,
        record.retired,
        record.failed_starts,
        record.has_served,
        tuple((s.number, s.worker_id, s.restarts) for s in record.slots),
        tuple((w.id, w.state, w.pid) for w in record.workers),
    )
