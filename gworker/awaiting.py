"""The outcome of a call that a coroutine awaits: `await method.remote.aio(...)`.

Lighter than a `Call`, which threads may wait for as well: one future of the caller's own loop. Outcomes that come
together wake that loop once.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from typing import Any

from gworker.router.calls import Problem
from gworker.wire import Payload, unpack


class Awaited:
    """The sink of a call that one task of the running loop awaits."""

    __slots__ = ("_mailbox", "outcome")

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._mailbox = _mailbox_of(loop)
        self.outcome: asyncio.Future[Payload | Problem] = loop.create_future()

    async def result(self) -> Any:
        """What the call returned; raises what it raised."""
        outcome = await self.outcome
        if isinstance(outcome, Problem):
            raise outcome.exception()
        return unpack(outcome)

    def returned(self, result: Payload) -> None:
        """See Sink."""
        self._mailbox.put(self.outcome, result)

    def raised(self, problem: Problem) -> None:
        """See Sink."""
        self._mailbox.put(self.outcome, problem)

    def item(self, item: Payload) -> None:
        """See Sink; a plain call has no items."""

    def ended(self) -> None:
        """See Sink; a plain call ends by returning."""


class _Mailbox:
    """Outcomes on their way from the router's loop to another one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._arrived: deque[tuple[asyncio.Future[Any], Payload | Problem]] = deque()
        self._woken = False

    def put(self, future: asyncio.Future[Any], outcome: Payload | Problem) -> None:
        """Called on the router's loop, or on the caller's."""
        self._arrived.append((future, outcome))
        if not self._woken:
            self._woken = True
            loop = self._loop()
            if loop is asyncio._get_running_loop():
                self._deliver()
            elif loop is not None:
                loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False
        while self._arrived:
            future, outcome = self._arrived.popleft()
            if not future.done():
                future.set_result(outcome)


_mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = weakref.WeakKeyDictionary()


def _mailbox_of(loop: asyncio.AbstractEventLoop) -> _Mailbox:
    mailbox = _mailboxes.get(loop)
    if mailbox is None:
        mailbox = _mailboxes[loop] = _Mailbox(loop)
    return mailbox
