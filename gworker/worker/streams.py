"""Backpressure for generator methods: a generator is advanced only while its consumer has room for an item."""

from __future__ import annotations

import asyncio
import threading


class StreamGate:
    """Counts the items the consumer has room for. Used from the generator's own thread or loop."""

    def __init__(self, credit: int) -> None:
        self._credit = credit
        self._closed = False
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None

    def grant(self, count: int) -> None:
        """The consumer has room for `count` more."""
        with self._changed:
            self._credit += count
            self._notify()

    def close(self) -> None:
        """The consumer has gone: let the generator stop."""
        with self._changed:
            self._closed = True
            self._notify()

    def acquire(self) -> bool:
        """Wait for room for one item; False when the stream was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._credit > 0)
            return self._take()

    async def acquire_async(self) -> bool:
        """The same on an event loop."""
        while True:
            with self._changed:
                if self._closed or self._credit > 0:
                    return self._take()
                self._loop = asyncio.get_running_loop()
                self._event = event = asyncio.Event()
            await event.wait()

    def _take(self) -> bool:
        if self._closed:
            return False
        self._credit -= 1
        return True

    def _notify(self) -> None:
        self._changed.notify_all()
        if self._loop is not None and self._event is not None:
            self._loop.call_soon_threadsafe(self._event.set)
            self._event = None
