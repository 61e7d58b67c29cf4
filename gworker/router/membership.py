"""What a controller tells routers of a pool: who serves, in which state, and what a waiting call waits for."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import Any

from gworker.errors import GWorkerError
from gworker.options import Options
from gworker.wire import Packed


@dataclass(frozen=True, order=True)
class PoolKey:
    """Names a pool: the class, its `with_options` variant, its worker-scoped values, and which definition of it."""

    class_name: str
    variant: str = ""
    worker_key: str = ""
    generation: int = 0

    def __str__(self) -> str:
        detail = ",".join(part for part in (self.variant, self.worker_key) if part)
        version = f"#{self.generation}" if self.generation else ""
        return f"{self.class_name}[{detail}]{version}" if detail else f"{self.class_name}{version}"


class PoolState(str, enum.Enum):
    """How a pool is: serving as it should, changing size, hurt, or without hope until a start succeeds."""

    READY = "READY"
    SCALING = "SCALING"
    DEGRADED = "DEGRADED"
    FAILED = "FAILED"


@dataclass(frozen=True)
class DirectAddress:
    """Where a worker listens for the direct lane, and the secret that routers prove to know.

    `path` is a Unix socket on the node `node_id`; routers of other nodes ask the worker for a TCP port.
    """

    node_id: str
    path: str
    pid: int
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class WorkerView:
    """A worker as routers see it. `capacity` is its `max_inputs`; only a `ready` one is sent new inputs.

    `actor` is an `ActorReference`: over the direct lane a router has no use for the handle.
    `direct` is None for one that can be reached by actor calls only.
    """

    id: str
    actor: Any
    capacity: int
    ready: bool
    direct: DirectAddress | None = None


@dataclass(frozen=True)
class PoolView:
    """A pool as routers see it. `failure` is what waiting calls are to raise; `waiting_for` what they wait for.

    `notice` is something the user should be told once. `start_error` is the traceback of the last start if it failed.
    `version` counts the changes as one controller, `epoch`, has seen them; a controller that was restarted begins anew.
    `app_version` names what a deployed app serves.
    `forgotten` says that the controller keeps the pool no more: who needs it defines it again.
    """

    version: int
    state: PoolState
    workers: tuple[WorkerView, ...]
    waiting_for: str = ""
    failure: GWorkerError | None = None
    notice: str = ""
    start_error: str | None = None
    epoch: str = ""
    app_version: str = ""
    forgotten: bool = False

    def tells_the_same_as(self, other: PoolView) -> bool:
        """Whether a router that knows the other view has nothing to learn from this one."""
        return (
            len(self.workers) == len(other.workers)
            and all(
                mine is theirs or (mine.id == theirs.id and mine.ready is theirs.ready)
                for mine, theirs in zip(self.workers, other.workers, strict=True)
            )
            and self.says_the_same_as(other)
        )

    def says_the_same_as(self, other: PoolView) -> bool:
        """The same of what is not said of single workers."""
        return (
            self.state is other.state
            and self.waiting_for == other.waiting_for
            and str(self.failure) == str(other.failure)
            and self.notice == other.notice
            and self.start_error == other.start_error
            and self.app_version == other.app_version
        )


@dataclass(frozen=True)
class PoolChange(PoolView):
    """What has changed in a view since version `since`: `workers` has only those that are new, or others than before.

    `turned` has those that are ready now, or are not any more; `left` those that are gone.
    """

    since: int = 0
    turned: tuple[tuple[str, bool], ...] = ()
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class PoolDefinition:
    """What a controller needs to know to keep a pool: the packed class and values, and the compiled numbers.

    `floor_when_idle` is False for one of many sets of worker-scoped values: its workers all go when nobody needs it.
    `code` names the code package of a deployed app, empty where there is none.
    """

    key: PoolKey
    cls: Packed
    worker_values: Packed
    options: Options
    max_inputs: int
    target_inputs: int
    floor_when_idle: bool = True
    code: str = ""


@dataclass(frozen=True)
class DeployedClass:
    """A class as it was deployed: what makes it in a worker, and what a caller has to know of it.

    `interface` is the packed `ClassSpec` without the class, `interface_by_value` the same for callers that lack the
    app's modules. `code` names the code package that `cls` needs. `default_pool` is the pool of its default values,
    None where there are none. `generation` is the version of the app that it belongs to.
    """

    name: str
    cls: Packed
    interface: Packed
    interface_by_value: Packed
    code: str
    options: Options
    max_inputs: int
    target_inputs: int
    default_pool: PoolDefinition | None
    generation: int = 0

    def in_place_of(self, definition: PoolDefinition) -> PoolDefinition:
        """The pool of this version that replaces another's, or stands for one that a caller has defined.

        A variant keeps the options that make it one.
        """
        return replace(
            definition,
            key=replace(definition.key, generation=self.generation),
            cls=self.cls,
            code=self.code,
            options=definition.options if definition.key.variant else self.options,
            max_inputs=self.max_inputs,
            target_inputs=self.target_inputs,
        )


@dataclass(frozen=True)
class Demand:
    """A router's report: inputs it queues and inputs it has in workers.

    `inflight` has the latter by worker. `errors` has the workers that answered with system errors: how many in a row.
    """

    queued: int
    running: int
    inflight: tuple[tuple[str, int], ...] = ()
    errors: tuple[tuple[str, int], ...] = ()

    @property
    def idle(self) -> bool:
        """Whether nothing is queued and nothing runs."""
        return not self.queued and not self.running
