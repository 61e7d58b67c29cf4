"""What a controller tells routers of a pool: who serves, in which state, and what a waiting call waits for."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from gworker.errors import GWorkerError
from gworker.options import Options
from gworker.wire import Payload


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
class WorkerView:
    """A worker as routers see it. `capacity` is its `max_inputs`; only a `ready` one is sent new inputs."""

    id: str
    actor: Any
    capacity: int
    ready: bool


@dataclass(frozen=True)
class PoolView:
    """A pool as routers see it. `failure` is what waiting calls are to raise; `waiting_for` what they wait for.

    `notice` is something the user should be told once. `start_error` is the traceback of the last start if it failed.
    """

    version: int
    state: PoolState
    workers: tuple[WorkerView, ...]
    waiting_for: str = ""
    failure: GWorkerError | None = None
    notice: str = ""
    start_error: str | None = None


@dataclass(frozen=True)
class PoolDefinition:
    """What a controller needs to know to keep a pool: the packed class and values, and the compiled numbers."""

    key: PoolKey
    cls: Payload
    worker_values: Payload
    options: Options
    max_inputs: int
    target_inputs: int


@dataclass(frozen=True)
class Demand:
    """A router's report: inputs it queues and inputs it has in workers."""

    queued: int
    running: int
