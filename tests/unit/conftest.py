"""Time under a test's control: the running loop and `gworker.clock` stand still until the test moves them on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from gworker import clock

# Few examples, because the whole tier is to take seconds; no deadline, because machines are busy.
settings.register_profile("unit", max_examples=50, deadline=None)
settings.load_profile("unit")


class Timeline:
    """The time of one test. What the loop has scheduled runs when `advance` passes over it, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop: Any = loop
        self._now = 1000.0

    def now(self) -> float:
        return self._now

    async def settle(self) -> None:
        """Let everything run that can run without time passing."""
        for _ in range(1000):
            await asyncio.sleep(0)
            if not self._loop._ready:
                return
        raise AssertionError("the loop does not come to rest: something reschedules itself for ever")

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass, stopping at each timer on the way."""
        end = self._now + seconds
        await self.settle()
        while (due := self._next_timer()) is not None and due <= end:
            self._now = max(self._now, due)
            await self.settle()
        self._now = end
        await self.settle()

    def timers(self) -> int:
        """How many timers the loop holds."""
        return sum(not handle._cancelled for handle in self._loop._scheduled)

    def _next_timer(self) -> float | None:
        return min((handle._when for handle in self._loop._scheduled if not handle._cancelled), default=None)


@pytest.fixture
async def timeline(monkeypatch: pytest.MonkeyPatch) -> Timeline:
    loop = asyncio.get_running_loop()
    timeline = Timeline(loop)
    monkeypatch.setattr(loop, "time", timeline.now)
    monkeypatch.setattr(clock, "now", timeline.now)
    return timeline


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as they can, so that they meet where they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
