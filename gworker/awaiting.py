"""The outcome of a call that a coroutine awaits: `await method.remote.aio(...)`.

Lighter than a `Call`, which threads may wait for as well: one future of the caller's own loop. Outcomes that come
together wake that loop once.
"""

from __future__ import annotations

import asyncio
from typing import Any

from gworker.mailbox import mailbox_of
from gworker.router.calls import Problem
from gworker.wire import Packed, unpack


class Awaited:
    """The sink of a call that one task of the running loop awaits."""

    __slots__ = ("_mailbox", "outcome")

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._mailbox = mailbox_of(loop)
        self.outcome: asyncio.Future[Packed | Problem] = loop.create_future()

    async def result(self) -> Any:
        """What the call returned; raises what it raised."""
        outcome = await self.outcome
        if isinstance(outcome, Problem):
            raise outcome.exception()
        return unpack(outcome)

    def _settle(self, outcome: Packed | Problem) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def returned(self, result: Packed) -> None:
        """See Sink."""
        self._mailbox.post(self._settle, result)

    def raised(self, problem: Problem) -> None:
        """See Sink."""
        self._mailbox.post(self._settle, problem)

    def item(self, item: Packed) -> None:
        """See Sink; a plain call has no items."""

    def ended(self) -> None:
        """See Sink; a plain call ends by returning."""
