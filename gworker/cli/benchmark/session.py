"""One measurement: the first result, then a step for each load, until all are done or Ctrl-C comes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gworker import clock
from gworker.cli.benchmark.figures import StepFigures
from gworker.cli.benchmark.load import Input, Step, new_loop, sender
from gworker.cli.benchmark.plan import Load, Plan
from gworker.cli.benchmark.pools import Counters, Pools
from gworker.cli.benchmark.recorder import Recorder, Window
from gworker.errors import PoolUnavailable

# How many inputs are tried for a first result.
FIRST_TRIES = 3
# How often a person who watches is told how far it is.
TELL_EVERY_S = 0.25


@dataclass(frozen=True)
class FirstResult:
    """The seconds until the first result, those until Ray was there among them.

    `ray` is how it was had: started, or attached. `workers_before` were ready before the call.
    """

    seconds: float
    ray_s: float
    ray: str
    workers_before: int


@dataclass(frozen=True)
class Subject:
    """What is measured: a method of a handle. `counters` reads those of its pools, and blocks.

    `floor` ends when as many workers are ready as there are to be in any case; None where that is not known.
    """

    bound: Any
    streams: bool
    counters: Callable[[], Counters]
    floor: Callable[[], concurrent.futures.Future[None] | None]


# Told every now and then: the load, the seconds it has run and will run if that is known, and its record.
Tell = Callable[[Load, float, float | None, Recorder], None]


class Session:
    """Measures one subject. `steps` grow as loads are done; `interrupted`: Ctrl-C came."""

    def __init__(self, subject: Subject, plan: Plan, inputs: Iterator[Input], tell: Tell | None = None) -> None:
        self.first: FirstResult | None = None
        self.steps: list[StepFigures] = []
        self.interrupted = False
        self._subject = subject
        self._plan = plan
        self._inputs = inputs
        self._tell = tell
        self._stop = asyncio.Event()

    def run(self, began: float, ray_s: float, ray: str) -> None:
        """Measure. `began` is when Ray was asked for. The first Ctrl-C ends it in order, the second at once.

        Raises what the first call raised, when three inputs in a row fail.
        """
        loop = new_loop()
        try:
            with _interruptible(loop, self._interrupt):
                loop.run_until_complete(self._measure(began, ray_s, ray))
        finally:
            loop.run_until_complete(_cancel_all())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    def _interrupt(self) -> None:
        self.interrupted = True
        self._stop.set()

    async def _measure(self, began: float, ray_s: float, ray: str) -> None:
        stopping = asyncio.ensure_future(self._stop.wait())
        starting = asyncio.ensure_future(self._start(began, ray_s, ray))
        await asyncio.wait({stopping, starting}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        starting.result()
        for load in self._plan.loads:
            if self._stop.is_set():
                return
            await self._step(load)

    async def _start(self, began: float, ray_s: float, ray: str) -> None:
        before = await asyncio.to_thread(self._subject.counters)
        for tries_left in range(FIRST_TRIES - 1, -1, -1):
            try:
                await _once(self._subject, next(self._inputs))
                break
            except PoolUnavailable:
                raise
            except Exception:
                if not tries_left:
                    raise
        self.first = FirstResult(clock.now() - began, ray_s, ray, before.ready)
        if (floor := self._subject.floor()) is not None:
            await asyncio.wrap_future(floor)

    async def _step(self, load: Load) -> None:
        plan, subject = self._plan, self._subject
        before = await asyncio.to_thread(subject.counters)
        begin = clock.now() + plan.warmup_s
        window = Window.opening(begin, plan.duration_s, plan.requests, is_open=plan.is_open)
        record = Recorder(window, None if plan.slo_ms is None else plan.slo_ms / 1000)
        meter = _Meter(subject, window, before)
        beside = [asyncio.ensure_future(meter.run()), asyncio.ensure_future(self._watch(load, record))]
        step = Step(record, sender(subject.bound, self._inputs, record, streams=subject.streams))
        try:
            seconds = await step.run(load, self._stop)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        cores, pools = await meter.read()
        found = StepFigures.of(
            load,
            record,
            seconds,
            interrupted=self._stop.is_set(),
            streams=subject.streams,
            cores=cores,
            pools=pools,
        )
        if not (found.interrupted and found.is_empty):
            self.steps.append(found)

    async def _watch(self, load: Load, record: Recorder) -> None:
        began, plan = clock.now(), self._plan
        whole_s = None if plan.duration_s is None else plan.warmup_s + plan.duration_s
        while self._tell is not None:
            self._tell(load, clock.now() - began, whole_s, record)
            await asyncio.sleep(TELL_EVERY_S)


async def _cancel_all() -> None:
    """End what a second Ctrl-C, or SIGTERM, has cut short."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def _once(subject: Subject, given: Input) -> None:
    args, kwargs = given
    if subject.streams:
        async for _ in subject.bound.stream.aio(*args, **kwargs):
            pass
    else:
        await subject.bound.remote.aio(*args, **kwargs)


class _Meter:
    """What this process and the pools did between the opening of the window and its end.

    A step that is over before its pools have answered is reckoned from its beginning, warm-up included.
    """

    def __init__(self, subject: Subject, window: Window, before: Counters) -> None:
        self._subject = subject
        self._window = window
        self._before = before
        self._cpu: list[tuple[float, float]] = []

    async def run(self) -> None:
        await asyncio.sleep(self._window.begin - clock.now())
        self._mark()
        self._before = await asyncio.to_thread(self._subject.counters)
        await asyncio.sleep(self._window.end - clock.now())
        self._mark()

    def _mark(self) -> None:
        self._cpu.append((clock.now(), time.process_time()))

    async def read(self) -> tuple[float, Pools]:
        """The cores this process used, and what the pools did."""
        while len(self._cpu) < 2:
            self._mark()
        (began, cpu_before), (ended, cpu_after) = self._cpu
        after = await asyncio.to_thread(self._subject.counters)
        return (cpu_after - cpu_before) / max(ended - began, 1e-3), self._before.until(after)


@contextlib.contextmanager
def _interruptible(loop: asyncio.AbstractEventLoop, interrupt: Callable[[], None]) -> Iterator[None]:
    """Have the first Ctrl-C call `interrupt`; the second is Python's own again."""

    def once() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        interrupt()

    loop.add_signal_handler(signal.SIGINT, once)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
