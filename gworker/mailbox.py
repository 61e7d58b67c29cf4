"""Hands work over to an event loop from other threads. What is handed over together wakes the loop once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any


class Mailbox:
    """The way into one loop. `post` is for any thread, the loop's own among them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._letters: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._woken = False

    def post(self, action: Callable[..., object], *args: Any) -> None:
        """Have `action(*args)` called on the loop soon, in the order of posting. It must not raise."""
        self._letters.append((action, args))
        # Without a lock: at worst two threads both wake the loop. `_deliver` takes the flag down before it looks.
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False
        letters = self._letters
        while letters:
            action, args = letters.popleft()
            action(*args)
