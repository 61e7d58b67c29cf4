"""What the app is doing, as the gateway tells it: a status that many may ask for, and whether it is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ray.exceptions import RayError

from gworker import clock
from gworker.errors import PoolUnavailable
from gworker.http.problems import Problem, without_traceback
from gworker.observe.status import AppStatus, PoolStatus

# A status this fresh is good enough for all who ask meanwhile: pages, scrapers and probes must not wear the app out.
FRESH_S = 0.5


class StatusSource:
    """The status of an app, read at most twice a second however many ask."""

    def __init__(self, read: Callable[[], AppStatus]) -> None:
        self._read = read
        self._latest: AppStatus | None = None
        self._at = float("-inf")
        self._reading: asyncio.Task[AppStatus] | None = None

    async def get(self) -> AppStatus:
        """The status, at most FRESH_S old. Raises PoolUnavailable when the app's controller does not answer."""
        if self._latest is not None and clock.now() - self._at < FRESH_S:
            return self._latest
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(asyncio.to_thread(self._read))
        try:
            latest = await asyncio.shield(self._reading)
        except (RayError, TimeoutError) as error:
            raise PoolUnavailable(f"the app's controller does not answer: {type(error).__name__}") from error
        self._latest, self._at = latest, clock.now()
        return latest


@dataclass(frozen=True)
class PoolReadiness:
    """Whether a pool can serve, and why not."""

    pool: str
    ready: bool
    state: str
    why: str = ""


def readiness(status: AppStatus) -> list[PoolReadiness]:
    """Each pool: it is ready when a worker is, or when it wants none because there is nothing to do."""
    return [_pool_readiness(pool) for pool in status.pools]


def _pool_readiness(pool: PoolStatus) -> PoolReadiness:
    if pool.ready or (pool.desired == 0 and pool.state != "FAILED"):
        return PoolReadiness(pool.name, True, pool.state)
    why = without_traceback(pool.waiting_for) or f"{pool.starting} of {pool.desired} workers are starting"
    return PoolReadiness(pool.name, False, pool.state, why)


def not_ready(app_name: str, pools: list[PoolReadiness]) -> Problem:
    """The problem that an app with these pools has when somebody asks whether it is ready."""
    lacking = [f"{pool.pool}: {pool.why}" for pool in pools if not pool.ready]
    return Problem(
        503,
        "not-ready",
        "The app is not ready",
        "; ".join(lacking) or f"the app {app_name!r} is not running",
        retryable=True,
        headers={"Retry-After": "2"},
        pools=[asdict(pool) for pool in pools],
    )


def status_document(status: AppStatus, *, debug: bool, events: int = 100) -> dict[str, Any]:
    """A status as plain data, with the latest events. Tracebacks are told only with `debug`."""
    document = asdict(status)
    document["events"] = document["events"][-events:]
    return document if debug else _cut(document)


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return without_traceback(value)
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cut(item) for item in value]
    return value
