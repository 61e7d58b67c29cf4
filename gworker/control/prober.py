"""Asks one probe of one worker again and again, beside its inputs, and tells the pool what it found."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError

from gworker import clock
from gworker.control.pool import Pool
from gworker.control.workers import Worker
from gworker.deaths import death_reason
from gworker.probe import ANSWER_GRACE_S, Probe, Verdict
from gworker.worker.actor import ProbeReport

log = logging.getLogger("gworker.controller")

# The controller was itself so late that what it measured of others means nothing.
OWN_DELAY_S = 1.0


class Prober:
    """One probe of one worker. The first run is spread over a period, so that a pool is not probed in step."""

    def __init__(
        self, app_name: str, pool: Pool, worker: Worker, probe: Probe, changed: Callable[[Pool], None]
    ) -> None:
        self._app_name = app_name
        self._pool = pool
        self._worker = worker
        self._probe = probe
        self._changed = changed

    async def run(self) -> None:
        """Probe until the worker is on its way out. One run at a time; none while it starts or drains."""
        probe, worker = self._probe, self._worker
        await asyncio.sleep(probe.initial_delay_s + random.uniform(0.0, probe.period_s))
        while worker.serving:
            begun = clock.now()
            report = await self._ask()
            worker.silent = report.silent
            if not worker.serving:
                return
            try:
                self._judge(report)
            except Exception:  # a worker that is probed no more would be one that nobody looks after
                log.exception("%s: judging a probe of %s failed inside gworker", self._app_name, worker.id)
            await asyncio.sleep(max(0.0, probe.period_s - (clock.now() - begun)))

    def _judge(self, report: ProbeReport) -> None:
        worker = self._worker
        verdict, reason = report.verdict, report.reason
        if verdict is Verdict.TIMED_OUT and report.progressed:
            # Busy is not dead.
            verdict, reason = Verdict.UNKNOWN, f"{reason}, but inputs finished meanwhile"
        change = self._pool.probed(worker, self._probe, verdict, report.latency_s, reason, clock.now())
        if change is not None:
            self._changed(self._pool)
        if change is False:
            log.warning("%s: %s: %s", self._app_name, worker.id, worker.health.why(clock.now()))

    async def _ask(self) -> ProbeReport:
        """Run the probe. What goes wrong on the way, and not in the worker, proves nothing."""
        begun = clock.now()
        limit_s = self._probe.timeout_s + ANSWER_GRACE_S
        asked = asyncio.ensure_future(result_of(self._worker.actor.probe.remote(self._probe)))
        done, _ = await asyncio.wait([asked], timeout=limit_s)
        took_s = clock.now() - begun
        if not done:
            asked.add_done_callback(lambda late: late.exception())
            if took_s > limit_s + OWN_DELAY_S:
                return ProbeReport(Verdict.UNKNOWN, took_s, False, "the controller was too busy to tell")
            reason = f"the process did not answer within {limit_s:g} s"
            return ProbeReport(Verdict.TIMED_OUT, took_s, False, reason, silent=True)
        error = asked.exception()
        if isinstance(error, RayError):
            return ProbeReport(Verdict.UNKNOWN, took_s, False, death_reason(error))
        if error is not None:
            return ProbeReport(Verdict.UNKNOWN, took_s, False, f"asking failed: {type(error).__name__}: {error}")
        report: ProbeReport = asked.result()
        return report


async def result_of(reference: Any) -> Any:
    """What a call to an actor returns, as a coroutine: a task can be made of it, and waited for within a limit."""
    return await reference
