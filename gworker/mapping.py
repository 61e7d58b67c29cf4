"""`.map` and its relatives: many calls at once, inputs taken lazily, results in order or as they come.

A feeder takes inputs and sends calls while fewer than `window` results are outstanding or unread; the consumer takes
results. So an endless iterator is consumed only as fast as its results are.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import queue
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from gworker.call import Call
from gworker.errors import QueueFull
from gworker.observe.progress import Ticker

# Sends one call for one tuple of arguments; made by the bound method.
Send = Callable[["tuple[Any, ...]"], Call[Any]]


class _End:
    """No more inputs; with the error that ended them."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class MapRun:
    """One run of `.map`: its feeder, what is outstanding, and its end."""

    def __init__(
        self, inputs: Any, send: Send, when_space: Callable[[], Any], window: int, ordered: bool, keep_errors: bool
    ) -> None:
        self._inputs = inputs
        self._send = send
        self._when_space = when_space
        self._window = window
        self._ordered = ordered
        self._keep_errors = keep_errors
        self._outstanding: dict[int, Call[Any]] = {}
        self._closed = threading.Event()
        self._sent = 0

    # --- with threads ---------------------------------------------------------------------------------------------

    def results(self, ticker: Ticker) -> Iterator[Any]:
        """Results, for a `for` loop."""
        arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        room = threading.Semaphore(self._window)
        self._start_feeder(room, arrived.put)
        yielded = 0
        end: _End | None = None
        try:
            with ticker:
                while end is None or yielded < self._sent:
                    entry = arrived.get()
                    if isinstance(entry, _End):
                        end = entry
                        continue
                    value = self._value_of(entry)
                    yielded += 1
                    ticker.advance()
                    yield value
                    room.release()
            if end is not None and end.error is not None:
                raise end.error
        finally:
            self._close()
            room.release()

    def _start_feeder(self, room: threading.Semaphore, put: Callable[[Any], object]) -> None:
        # In the consumer's context: inside a worker the calls inherit the deadline of the call that makes them.
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(self._feed, room, put), name="gworker-map", daemon=True).start()

    def _feed(self, room: threading.Semaphore, put: Callable[[Any], object]) -> None:
        end = _End()
        try:
            for arguments in self._inputs:
                room.acquire()
                if self._closed.is_set():
                    return
                call = self._send_when_possible(arguments)
                if call is None:
                    return
                self._admit(call, put)
        except BaseException as error:  # the user's iterator, or a bad input: the consumer's to see
            end = _End(error)
        put(end)

    def _send_when_possible(self, arguments: tuple[Any, ...]) -> Call[Any] | None:
        while not self._closed.is_set():
            try:
                return self._send(arguments)
            except QueueFull:
                with contextlib.suppress(concurrent.futures.TimeoutError):  # not the builtin one before Python 3.11
                    self._when_space().result(1.0)
        return None

    # --- with a loop ----------------------------------------------------------------------------------------------

    async def results_async(self, ticker: Ticker) -> AsyncIterator[Any]:
        """Results, for an `async for` loop."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Any] = asyncio.Queue()

        def put(entry: Any) -> None:
            loop.call_soon_threadsafe(arrived.put_nowait, entry)

        if isinstance(self._inputs, AsyncIterable):
            room: Any = asyncio.Semaphore(self._window)
            feeder = loop.create_task(self._feed_async(self._inputs, room, put))
        else:
            room = threading.Semaphore(self._window)
            self._start_feeder(room, put)
            feeder = None
        yielded = 0
        end: _End | None = None
        try:
            with ticker:
                while end is None or yielded < self._sent:
                    entry = await arrived.get()
                    if isinstance(entry, _End):
                        end = entry
                        continue
                    await entry._settled()
                    value = self._value_of(entry)
                    yielded += 1
                    ticker.advance()
                    yield value
                    room.release()
            if end is not None and end.error is not None:
                raise end.error
        finally:
            self._close()
            room.release()
            if feeder is not None:
                feeder.cancel()

    async def _feed_async(
        self, inputs: AsyncIterable[Any], room: asyncio.Semaphore, put: Callable[[Any], object]
    ) -> None:
        end = _End()
        try:
            async for arguments in inputs:
                await room.acquire()
                self._admit(await self._send_when_possible_async(arguments), put)
        except BaseException as error:  # a CancelledError, too, may be the iterator's own
            end = _End(error)
        put(end)

    async def _send_when_possible_async(self, arguments: tuple[Any, ...]) -> Call[Any]:
        while True:
            try:
                return self._send(arguments)
            except QueueFull:
                await asyncio.wrap_future(self._when_space())

    # --- both -----------------------------------------------------------------------------------------------------

    def _admit(self, call: Call[Any], put: Callable[[Any], object]) -> None:
        self._sent += 1
        self._outstanding[id(call)] = call
        if self._ordered:
            put(call)
        else:
            call._when_done(lambda: put(call))
        if self._closed.is_set():  # while it was being sent
            call.cancel()

    def _value_of(self, call: Call[Any]) -> Any:
        try:
            return call.get()
        except Exception as error:
            if self._keep_errors:
                return error
            raise
        finally:
            self._outstanding.pop(id(call), None)

    def _close(self) -> None:
        self._closed.set()
        for call in list(self._outstanding.values()):
            call.cancel()
        self._outstanding.clear()


def zipped(first: Any, more: tuple[Any, ...]) -> Any:
    """The argument tuples of `.map`: one input of each iterable to a call, until the shortest ends."""
    if isinstance(first, AsyncIterable):
        if more:
            raise TypeError(".map takes one asynchronous iterable, or any number of ordinary ones")
        return _tuples_of(first)
    if not all(isinstance(each, Iterable) for each in (first, *more)):
        kinds = ", ".join(type(each).__name__ for each in (first, *more))
        raise TypeError(f".map takes iterables of inputs, one for each argument of the method; it was given {kinds}")
    return zip(first, *more, strict=False)


async def _tuples_of(inputs: AsyncIterable[Any]) -> AsyncIterator[tuple[Any, ...]]:
    async for one in inputs:
        yield (one,)
