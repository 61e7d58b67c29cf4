"""The callers: they send what the load says, in this process, and tell the recorder what became of it.

Everything runs on one event loop of its own, which waits with `select`: it wakes 0.1 ms late (median of 300 waits),
where epoll, which takes whole milliseconds, is 0.7 ms late, as much as some calls take.
"""

from __future__ import annotations

import asyncio
import math
import os
import selectors
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from gworker import clock, streaming
from gworker.awaiting import Awaited
from gworker.cli.benchmark.arrivals import arrivals
from gworker.cli.benchmark.plan import Closed, Open
from gworker.cli.benchmark.recorder import Recorder

if TYPE_CHECKING:
    from gworker.router.calls import RoutedCall
    from gworker.router.router import Router

# How long calls that are under way at the end of a step are waited for.
DRAIN_S = 30.0
# How often a closed loop looks how late this process wakes.
HEARTBEAT_S = 0.02
# Arrivals that are overdue are sent at once, so many before results are looked at.
BURST = 64
# `select` cannot watch file descriptors from here on.
_SELECT_LIMIT = 1024

# Sends one call with the next inputs: told whether it counts and when it was due.
Send = Callable[[bool, float], Coroutine[Any, Any, None]]
Input = tuple[tuple[Any, ...], dict[str, Any]]


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop with fine timers."""
    probe = os.dup(2)
    os.close(probe)
    # What the loop opens itself gets numbers near this one.
    return asyncio.SelectorEventLoop(selectors.SelectSelector() if probe < _SELECT_LIMIT - 32 else None)


def sender(bound: Any, inputs: Iterator[Input], recorder: Recorder, *, streams: bool) -> Send:
    """Calls `bound`, a method of a handle, with the inputs in turn.

    As `remote.aio` and `stream.aio` do, but what the router knows of the call stays at hand.
    """

    async def send(counts: bool, due: float) -> None:
        args, kwargs = next(inputs)
        sink = Awaited()
        try:
            router, call = bound._send(args, kwargs, sink)
        except Exception as error:
            recorder.raised(counts, clock.now(), error)
            return
        try:
            await sink.result()
        except Exception as error:
            recorder.raised(counts, clock.now(), error)
        except BaseException:
            if not call.over:
                router.cancel(call)
            raise
        else:
            recorder.returned(counts, due, clock.now(), call.spent)

    async def stream(counts: bool, due: float) -> None:
        args, kwargs = next(inputs)
        times: list[float] = []
        sent: list[RoutedCall] = []

        def submit(sink: Any) -> tuple[Router, RoutedCall]:
            router, call = bound._send(args, kwargs, sink, credit=streaming.WINDOW)
            sent.append(call)
            return router, call

        try:
            async for _ in streaming.iterate_async(submit):
                times.append(now := clock.now())
                recorder.item(now)
        except Exception as error:
            recorder.raised(counts, clock.now(), error)
        else:
            recorder.streamed(counts, due, times, clock.now(), sent[0].spent)

    return stream if streams else send


class Step:
    """One load, from its warm-up until its calls have ended."""

    def __init__(self, recorder: Recorder, send: Send) -> None:
        self._recorder = recorder
        self._send = send
        self._stopped = False
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self, load: Closed | Open, stop: asyncio.Event) -> float:
        """Send until the window closes, and wait for what is under way then; a stop waits for nothing.

        Returns the seconds that rates are over.
        """
        window = self._recorder.window
        work = asyncio.ensure_future(self._work(load))
        stopping = asyncio.ensure_future(self._obey(stop))
        beating = asyncio.ensure_future(self._beat() if isinstance(load, Closed) else asyncio.sleep(0))
        longest_s = None if window.end == math.inf else window.end - clock.now() + DRAIN_S
        try:
            await asyncio.wait({work, stopping}, timeout=longest_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            tasks = [work, stopping, beating, *self._calls]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self._recorder.close(clock.now())

    async def _obey(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stopped = True

    async def _work(self, load: Closed | Open) -> None:
        if isinstance(load, Closed):
            await asyncio.gather(*(self._caller() for _ in range(load.callers)))
        else:
            await self._pace(load)
        while self._calls:
            await asyncio.wait(self._calls)

    async def _caller(self) -> None:
        recorder = self._recorder
        while (now := clock.now()) < recorder.window.end and not recorder.is_full and not self._stopped:
            await self._send(recorder.start(now), now)

    async def _pace(self, load: Open) -> None:
        recorder, began = self._recorder, clock.now()
        for number, after in enumerate(arrivals(load), 1):
            due = began + after
            if recorder.is_full or self._stopped:
                return
            if (left_s := min(due, recorder.window.end) - clock.now()) > 0:
                await asyncio.sleep(left_s)
            elif number % BURST == 0:
                await asyncio.sleep(0)
            if due >= recorder.window.end:
                return
            if len(self._calls) >= load.max_in_flight:
                recorder.drop(due)
                continue
            call = asyncio.ensure_future(self._call(recorder.start(due), due))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _call(self, counts: bool, due: float) -> None:
        now = clock.now()
        self._recorder.late(now, now - due)
        await self._send(counts, due)

    async def _beat(self) -> None:
        """Note how late this process wakes up: results wait as long before it sees them."""
        while True:
            due = clock.now() + HEARTBEAT_S
            await asyncio.sleep(HEARTBEAT_S)
            now = clock.now()
            self._recorder.late(now, now - due)
