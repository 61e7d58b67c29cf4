"""The Ray actor that is a worker: a thin shell that connects the ray lane and the controller to the engine.

1. The controller creates it, calls `start` (load the class, run the on_enter hooks) and keeps a `watch` call open. Each
   may be called again, by a controller that has taken the worker over.
2. Routers `exchange` bundles with it. Each exchange is answered when there is something to say, so that one is always
   open while inputs are in the worker: results, items and start reports leave as they come, many to a bundle.
3. The controller `probe`s it in a concurrency group of its own, and `drain`s it before it is killed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import logging
import os
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from gworker import clock, context
from gworker.code import use_code
from gworker.observe.logs import LogFile, folder_of, record_this_process
from gworker.probe import Probe, Verdict, verdict_of
from gworker.router import cluster, deployment
from gworker.router.membership import DirectAddress
from gworker.router.reference import ActorReference
from gworker.spec import ClassSpec
from gworker.weights.claims import WeightsName
from gworker.weights.shared import offered
from gworker.wire import Packed, Up, decode, encode, pack_exception, unpack
from gworker.worker.engine import Engine
from gworker.worker.execution import why_fatal
from gworker.worker.guardian import guard_this_process
from gworker.worker.lifecycle import Instance
from gworker.worker.listener import DirectListener, socket_folder
from gworker.worker.memory import keep_freed_memory
from gworker.worker.session import Session
from gworker.worker.threads import UserThreads, run_on_own_thread

log = logging.getLogger("gworker.worker")

# A worker answers an exchange after this long even when it has nothing to say; the router opens the next one.
EXCHANGE_S = 3.0
# A router with inputs here that has not been heard of for this long is gone, and its inputs are cancelled.
LEASE_S = 10.0
# A session that holds nothing is forgotten after this long.
FORGET_S = 120.0
# A watch is answered after this long even when nothing happened: that the next one comes shows that a controller lives.
WATCH_S = 20.0
# A detached worker that no controller has watched for this long drains and ends itself.
ORPHANED_S = 600.0
# What running inputs of such a worker get.
DRAIN_ORPHAN_S = 30.0
# Open exchanges of one router. At this many the oldest is answered, so that the router can always send.
MAX_OPEN_EXCHANGES = 3


@dataclass(frozen=True)
class WorkerBoot:
    """What a worker is made from. `cls` is the packed decorated class, `worker_values` its worker-scoped values.

    `code` names the code package of a deployed app. `orphaned_s` is set for one that outlives its controller: see
    `ORPHANED_S`.
    """

    app_name: str
    pool: Any
    worker_id: str
    cls: Packed
    worker_values: Packed
    controller: ActorReference
    code: str = ""
    orphaned_s: float | None = None


@dataclass(frozen=True)
class StartReport:
    """What became of a start. `error` is the traceback of what `on_enter`, or loading the class, raised.

    `direct` is where the worker listens for the direct lane. `load_s` and `enter_s` are what it took to load the class,
    and to run the on_enter hooks.
    """

    pid: int
    node_id: str
    error: str | None = None
    direct: DirectAddress | None = None
    load_s: float = 0.0
    enter_s: float = 0.0


@dataclass(frozen=True)
class Trouble:
    """Something the worker sees in itself for which it must be replaced; numbered from 1."""

    number: int
    kind: str
    reason: str


@dataclass(frozen=True)
class ProbeReport:
    """A probe's verdict, how long it took, and whether an input finished successfully since the last one.

    `silent` stands for a process that did not answer at all.
    """

    verdict: Verdict
    latency_s: float
    progressed: bool
    reason: str = ""
    silent: bool = False


@dataclass(frozen=True)
class WorkerStats:
    """A worker's counters. `batches` maps each batched method to its number of batches and the inputs in them."""

    held: int
    inputs: int
    succeeded: int
    failed: int
    batches: dict[str, tuple[int, int]]


class _Line:
    """A session and its open exchanges: the worker's end of the ray lane."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.session = Session(name, engine, self._schedule)
        self.open: deque[asyncio.Future[Any]] = deque()
        self._loop = asyncio.get_running_loop()
        self._scheduled = False

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self.session.has_news:
            self.answer_oldest()

    def answer_oldest(self) -> None:
        while self.open:
            exchange = self.open.popleft()
            if not exchange.done():
                exchange.set_result(encode(self.session.take()))
                return

    async def exchange(self, bundle: Up) -> Any:
        answer: asyncio.Future[Any] = self._loop.create_future()
        self.open.append(answer)
        self.session.receive(bundle)
        if self.session.has_news:
            self._schedule()
        elif len(self.open) >= MAX_OPEN_EXCHANGES:
            self.answer_oldest()
        expiry = self._loop.call_later(EXCHANGE_S, self._expire, answer)
        try:
            return await answer
        finally:
            expiry.cancel()

    def _expire(self, answer: asyncio.Future[Any]) -> None:
        if not answer.done():
            self.open.remove(answer)
            answer.set_result(encode(self.session.take()))


class WorkerActor:
    """One worker process. Made a Ray actor by `actor_class`."""

    def __init__(self, boot: WorkerBoot) -> None:
        self._boot = boot
        self._lines: dict[str, _Line] = {}
        self._over: set[str] = set()
        self._troubles: list[Trouble] = []
        self._troubled = asyncio.Event()
        self._watched_at = clock.now()
        self._start: asyncio.Task[StartReport] | None = None
        self._drained: asyncio.Task[list[str]] | None = None
        self._engine: Engine | None = None
        self._instance: Instance | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._probes_running: dict[Probe, concurrent.futures.Future[Any]] = {}
        self._succeeded_at_probe: dict[Probe, int] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._listener: DirectListener | None = None
        self._folder = socket_folder()

    async def start(self) -> StartReport:
        """Load the class, make its instance, run on_enter, once; say what became of it, each time.

        Never raises what user code raises: it reports it.
        """
        if self._start is None:
            self._loop = asyncio.get_running_loop()
            self._start = self._loop.create_task(self._come_up())
            if self._boot.orphaned_s is not None:
                self._keepers.append(self._loop.create_task(self._end_when_orphaned(self._boot.orphaned_s)))
        return await asyncio.shield(self._start)

    async def _come_up(self) -> StartReport:
        assert self._loop is not None
        pid, node_id = os.getpid(), ray.get_runtime_context().get_node_id()
        keep_freed_memory()
        began = clock.now()
        try:
            loader = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="gworker-load")
            cls, values = await self._loop.run_in_executor(loader, self._load)
            loader.shutdown(wait=False)
            gc.freeze()
            spec: ClassSpec = cls.spec
            threads = UserThreads(spec.max_inputs)
            self._become_worker(spec, threads, cls.app.name)
            self._instance = Instance(spec, values, threads)
            loaded = clock.now()
            await self._instance.enter()
            # What is there now stays: modules, the model. Without this each full collection, some for every few
            # thousand calls, would look through all of it, and hold up the calls for as long as 100 ms.
            gc.collect()
            gc.freeze()
            entered = clock.now()
        except BaseException as error:
            log.error("starting %s failed", self._boot.pool, exc_info=error)
            return StartReport(pid, node_id, "".join(traceback.format_exception(error)))
        self._engine = Engine(spec, self._instance, self._trouble)
        self._keepers.append(self._loop.create_task(self._keep_leases()))
        self._listener = DirectListener(self._engine, self._folder)
        direct = await self._listener.open()
        return StartReport(pid, node_id, direct=direct, load_s=loaded - began, enter_s=entered - loaded)

    def _load(self) -> tuple[Any, dict[str, Any]]:
        self._record()
        guard_this_process(self._folder)
        if self._boot.code:
            use_code(deployment.stored_code(self._boot.app_name, self._boot.code))
        context.become_worker(
            context.WorkerProcess(self._boot.app_name, self._boot.pool, self._boot.controller, False, 0)
        )
        cls = unpack(self._boot.cls)
        cls.spec  # noqa: B018  # compiled here: it may import much
        return cls, unpack(self._boot.worker_values)

    def _record(self) -> None:
        """Keep what user code prints and logs, for `gworker logs`."""
        try:
            folder = folder_of(cluster.logs_folder(), self._boot.app_name)
            record_this_process(LogFile(folder, self._boot.worker_id), _running_call)
        except OSError as error:
            log.warning("what %s prints is not kept for `gworker logs`: %s", self._boot.worker_id, error)

    def _become_worker(self, spec: ClassSpec, threads: UserThreads, defined_as: str) -> None:
        uses_loop = any(m.is_async for m in spec.methods.values()) or any(
            h.is_async for h in (*spec.enter_hooks, *spec.exit_hooks)
        )
        context.become_worker(
            context.WorkerProcess(
                app_name=self._boot.app_name,
                pool=self._boot.pool,
                controller=self._boot.controller,
                serves_one_call_at_a_time=not spec.concurrent or spec.max_inputs == 1,
                max_workers=spec.options.max_workers,
                user_loop=threads.user_loop.loop if uses_loop else None,
                deployed=self._boot.orphaned_s is not None,
                defined_as=defined_as,
                worker_id=self._boot.worker_id,
            )
        )

    async def exchange(self, bundle: Any) -> Any:
        """The ray lane: take a router's bundle, answer with the next bundle for it when there is one.

        The answer is None where the session is over: the router was silent for so long that it was given up.
        """
        up = decode(bundle, Up)
        assert up is not None
        if up.session in self._over:
            return encode(None)
        line = self._lines.get(up.session)
        if line is None:
            assert self._engine is not None, "a router found a worker that has not started"
            line = self._lines[up.session] = _Line(up.session, self._engine)
            self._engine.sessions[up.session] = line.session
        return await line.exchange(up)

    async def watch(self, seen: int) -> list[Trouble]:
        """Wait for trouble beyond number `seen`. The call fails when the process dies, and ends after `WATCH_S`."""
        self._watched_at = clock.now()
        end = self._watched_at + WATCH_S
        while not (news := [t for t in self._troubles if t.number > seen]) and (left_s := end - clock.now()) > 0:
            self._troubled.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._troubled.wait(), left_s)
        return news

    def _trouble(self, kind: str, reason: str) -> None:
        self._troubles.append(Trouble(len(self._troubles) + 1, kind, reason))
        self._troubled.set()

    async def _end_when_orphaned(self, orphaned_s: float) -> None:
        """Nobody supervises this worker any more, and nobody will stop it: it sees to that itself."""
        assert self._start is not None
        await asyncio.wait([self._start])  # meanwhile its controller waits for the start, and does not watch
        self._watched_at = clock.now()
        while (left_s := self._watched_at + orphaned_s - clock.now()) > 0:  # noqa: ASYNC110  # time is the event
            await asyncio.sleep(left_s)
        log.warning("%s: no controller for %.0f s: the worker drains and ends", self._boot.worker_id, orphaned_s)
        if self._instance is not None:
            with contextlib.suppress(Exception):
                await self._drain_once(DRAIN_ORPHAN_S)
        ray.kill(ray.get_runtime_context().current_actor)

    async def _keep_leases(self) -> None:
        assert self._engine is not None
        while True:
            await asyncio.sleep(LEASE_S / 5)
            now = clock.now()
            for name, line in list(self._lines.items()):
                silent = 0.0 if line.open else now - line.session.last_heard
                lost = silent > LEASE_S and line.session.owes_answers
                if silent > LEASE_S:
                    if line.session.inputs:
                        log.warning("caller %s has gone: its %d calls are cancelled", name, len(line.session.inputs))
                    line.session.close()  # also where it only waited: its turns would be kept from the others
                if lost or silent > FORGET_S:
                    # A router that comes back to what is no more must be told, or its calls would wait for ever.
                    self._over.add(name)
                    del self._lines[name], self._engine.sessions[name]

    @ray.method(concurrency_group="control")
    async def probe(self, probe: Probe) -> ProbeReport:
        """Run a probe beside the inputs: a sync method on a thread of its own, an async one on the user loop."""
        assert self._engine is not None and self._instance is not None
        started = clock.now()
        run = self._probes_running.get(probe)
        if run is None or run.done():
            method = getattr(self._instance.target(None), probe.method)
            if self._instance.spec.methods[probe.method].is_async:
                run = self._instance.threads.user_loop.spawn(method())
            else:
                run = run_on_own_thread(method, f"gworker-probe-{probe.method}")
            self._probes_running[probe] = run
        done, _ = await asyncio.wait([asyncio.wrap_future(run)], timeout=probe.timeout_s)
        latency_s = clock.now() - started
        succeeded = self._engine.counters.succeeded
        progressed = succeeded > self._succeeded_at_probe.get(probe, 0)
        self._succeeded_at_probe[probe] = succeeded
        if not done:
            reason = f"no answer within {probe.timeout_s:g} s"
            return ProbeReport(Verdict.TIMED_OUT, latency_s, progressed, reason)
        (finished,) = done
        error = asyncio.CancelledError() if finished.cancelled() else finished.exception()
        if error is None:
            verdict, reason = await asyncio.to_thread(_what_was_returned, finished.result())
            return ProbeReport(verdict, latency_s, progressed, reason)
        fatal, reason = await asyncio.to_thread(_what_was_raised, error)
        if fatal is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._trouble, "fatal", fatal)
        return ProbeReport(Verdict.FAILED, latency_s, progressed, reason)

    @ray.method(concurrency_group="control")
    async def drain(self, grace_s: float) -> list[str]:
        """Finish what runs within `grace_s`, see the results delivered, run on_exit. Then the process may be killed."""
        if self._loop is None or self._instance is None:
            return []
        future = asyncio.run_coroutine_threadsafe(self._drain_once(grace_s), self._loop)
        return await asyncio.wrap_future(future)

    async def _drain_once(self, grace_s: float) -> list[str]:
        """Drain, or wait for the drain that is under way: each on_exit hook runs once, and to its end."""
        if self._drained is None:
            self._drained = asyncio.get_running_loop().create_task(self._drain(grace_s))
        return await asyncio.shield(self._drained)

    async def _drain(self, grace_s: float) -> list[str]:
        assert self._instance is not None
        problems: list[str] = []
        if self._engine is not None:
            if not await self._engine.drain(grace_s):
                problems.append(f"{self._engine.held} inputs were still running after {grace_s:g} s")
            await self._settle()
        problems += await self._instance.leave()
        await self._settle()  # calls that came meanwhile have been refused; their routers must know before the kill
        if self._listener is not None:
            self._listener.close()
        return problems

    async def _settle(self) -> None:
        """What was said has left; wait for the routers to say that it has arrived. Bounded by Session.settled."""
        while not self._is_settled():  # noqa: ASYNC110  # time settles too
            await asyncio.sleep(0.005)

    def _is_settled(self) -> bool:
        lines = all(line.session.settled for line in self._lines.values())
        return lines and (self._listener is None or self._listener.settled)

    async def listen(self) -> tuple[str, int] | None:
        """Open a TCP port for routers of other nodes; its host and number, None where that cannot be."""
        return None if self._listener is None else await self._listener.open_tcp()

    @ray.method(concurrency_group="control")
    async def settle(self) -> None:
        """Wait until the routers have heard the last of a worker that has drained: what came late was refused."""
        if self._loop is not None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._settle(), self._loop))

    # Copying gigabytes takes seconds, in which the group does nothing else: there are no probes before on_enter ends. A
    # group of its own would cost every worker ten milliseconds more of its start.
    @ray.method(concurrency_group="control")
    async def hand_over_weights(self, name: WeightsName) -> tuple[Any, bool]:
        """What this worker has loaded for all of its node: as the result of this call it belongs to the caller."""
        return offered(name)

    @ray.method(concurrency_group="control")
    async def stats(self) -> WorkerStats:
        """The engine's counters."""
        assert self._engine is not None
        counters = self._engine.counters
        return WorkerStats(
            held=self._engine.held,
            inputs=counters.inputs,
            succeeded=counters.succeeded,
            failed=counters.failed,
            batches=dict(counters.batches),
        )


def _running_call() -> str:
    call = context.current_call_or_none()
    return "" if call is None else call.id


# The truth, the `repr` and the `str` of what a probe gives are user code: not for the loop that carries control.


def _what_was_returned(result: Any) -> tuple[Verdict, str]:
    verdict = verdict_of(result)
    if verdict is Verdict.PASSED:
        return verdict, ""
    try:
        return verdict, f"returned {result!r}"
    except Exception as error:
        return verdict, f"returned a {type(result).__name__} whose repr raises {type(error).__name__}"


def _what_was_raised(error: BaseException) -> tuple[str | None, str]:
    raised = pack_exception(error)
    return why_fatal(error), f"raised {raised.type_name}: {raised.message}"


def create_worker(boot: WorkerBoot, options: Mapping[str, Any]) -> Any:
    """Ask Ray for a worker; returns its actor handle at once. `options` are Ray actor options: resources, and a name.

    Ray counts each open exchange of each router against `max_concurrency`. It never restarts a worker by itself: a
    restarted process would have lost its instance without anybody knowing.
    """
    return _remote_class().options(max_concurrency=10_000, max_restarts=0, max_task_retries=0, **options).remote(boot)


@functools.cache
def _remote_class() -> Any:
    """The actor class, made once: Ray sends another one to the cluster, and from there to every process."""
    return ray.remote(concurrency_groups={"control": 64})(GWorker)  # type: ignore[call-overload]  # the stub lacks it


class GWorker(WorkerActor):
    """What Ray is given: it disassembles the class that it exports, for 15 ms where the methods stand in it."""
