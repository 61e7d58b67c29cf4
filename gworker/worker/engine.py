"""The engine: takes inputs in, starts invocations, and sees every input to its end.

It runs on the loop that carries traffic; the user's code runs elsewhere (`execution`, `threads`). An input goes

    submit -> held (a place of `Admission`) -> waiting (`Agenda`) -> running -> answered -> place free

or is refused as busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

from gworker import clock
from gworker.errors import CallCancelled
from gworker.functions import MethodSpec
from gworker.mailbox import Mailbox, turn_of
from gworker.observe.times import past_limit
from gworker.spec import ClassSpec
from gworker.wire import Busy, Ended, Failure, Item, Packed, Raised, Returned, Started, Submit, pack_exception, returned
from gworker.worker import execution
from gworker.worker.agenda import Agenda
from gworker.worker.execution import Failed, Outcome, Work
from gworker.worker.lifecycle import Instance
from gworker.worker.session import Session
from gworker.worker.slots import Admission
from gworker.worker.streams import StreamGate
from gworker.worker.threads import Crew, Launched

log = logging.getLogger("gworker.worker")

# How many inputs a worker stages behind a full house for lanes that report starts reliably.
MAX_STAGED = 16
# A synchronous execution is wedged when it overruns its time limit by as long again, and by this at least; an
# asynchronous one where its loop is blocked meanwhile.
WEDGED_AFTER_S = 5.0


class Input:
    """One call as this worker sees it. `answered` once its caller has, or needs, no more word of it.

    `arrived` is when it got its place here: what was before counts as time in the queue.
    """

    __slots__ = (
        "answered", "arrived", "call", "deadline", "gate", "held", "method", "run", "session", "timer", "turn", "weight"
    )  # fmt: skip

    def __init__(self, session: Session, call: Submit, method: MethodSpec, now: float) -> None:
        self.session = session
        self.call = call
        self.method = method
        self.arrived = now
        self.deadline = None if call.deadline_left_s is None else now + call.deadline_left_s
        self.gate = StreamGate(call.credit) if method.is_generator else None
        self.timer: asyncio.TimerHandle | None = None
        self.run: Run | None = None
        self.weight = 1.0
        self.turn = 0
        self.answered = False
        self.held = False


class Run(Work):
    """One invocation in progress, where it runs, and how to stop it. `take_home` leads back to the engine's loop."""

    inputs: Sequence[Input]
    blamed = False  # not the user's code failed: see Raised.blame
    timers: Sequence[asyncio.TimerHandle] = ()

    def __init__(
        self, instance: Instance, method: MethodSpec, inputs: list[Input], take_home: Callable[..., None]
    ) -> None:
        super().__init__(instance, method, inputs)
        self.take_home = take_home
        self.launched: Launched | None = None
        self.ended = 0.0

    def done(self, outcomes: list[Outcome] | None, error: BaseException | None) -> None:
        """It has ended; called where it ran."""
        self.ended = clock.now()
        self.take_home(self, outcomes, error)

    def let_go(self) -> None:
        """It has ended: refer to nothing that refers to this, so that all is freed at once, and to no large argument.

        A task that the method has left behind may still ask which call it came from.
        """
        self.launched = None
        for given in self.inputs:
            given.run = None
            if type(given.call.arguments) is not tuple:
                given.call = given.call._replace(arguments=(None,))


class Counters:
    """What this engine has done since it started; reported in the worker's status."""

    def __init__(self) -> None:
        self.inputs = 0
        self.succeeded = 0
        self.failed = 0
        self.batches: dict[str, tuple[int, int]] = {}

    def count_batch(self, method: str, size: int) -> None:
        """Add a batch of `size` inputs of `method`."""
        batches, inputs = self.batches.get(method, (0, 0))
        self.batches[method] = (batches + 1, inputs + size)


class Engine:
    """All inputs of one worker. Every method is called on the loop the engine was made on."""

    def __init__(self, spec: ClassSpec, instance: Instance, on_trouble: Callable[[str, str], None]) -> None:
        self.spec = spec
        self.counters = Counters()
        self.draining = False
        self.sessions: dict[str, Session] = {}
        self._instance = instance
        self._on_trouble = on_trouble
        self._loop = asyncio.get_running_loop()
        self._mailbox = Mailbox(self._loop)
        self._take_home = functools.partial(self._mailbox.post, self._finished)
        self._turn = turn_of(self._loop)
        self._admission = Admission(spec.max_inputs)
        self._staged: deque[Input] = deque()
        self._agenda = Agenda(spec)
        self._runners = {name: _runner(method) for name, method in spec.methods.items()}
        self._runs: set[Run] = set()
        self._settling = False
        self._fatal = ""
        self._window_timer: asyncio.TimerHandle | None = None
        self._offer_timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._weigher = Crew("gworker-weigh", 1)
        self._unweighed: list[Input] = []

    # --- what callers ask ------------------------------------------------------------------------------------

    def submit(self, session: Session, call: Submit) -> None:
        """Take an input in, stage it, or refuse it as busy."""
        now = clock.now()
        method = self.spec.methods.get(call.method)
        if method is None:
            error = AttributeError(f"class {self.spec.name} has no method {call.method!r}")
            session.send(Raised(call.call_id, pack_exception(error), 1))
            return
        if self.draining:
            session.send(Busy(call.call_id))
            return
        given = Input(session, call, method, now)
        if self._admission.take(session.name, now):
            self._hold(given, now)
        elif session.stages and len(self._staged) < MAX_STAGED:
            session.inputs[call.call_id] = given
            self._staged.append(given)
        else:
            self._admission.refuse(session.name)
            session.send(Busy(call.call_id))
            session.nudge()

    def cancel(self, session: Session, call_id: int) -> None:
        """Nobody waits for this input: drop it, stop it, or let its result go."""
        given = session.inputs.get(call_id)
        if given is not None and not given.answered:
            self._answer(given, None)

    def credit(self, session: Session, call_id: int, count: int) -> None:
        """The consumer of a stream has room for more."""
        given = session.inputs.get(call_id)
        if given is not None and given.gate is not None:
            given.gate.grant(count)

    def caller_waits(self, session: str, count: int) -> None:
        """A caller would send `count` more inputs."""
        if count or self._admission.concerns(session):
            self._admission.wait(session, count)
            self._offer_room()

    def caller_left(self, session: str) -> None:
        """A caller is gone, and wants nothing any more."""
        self._admission.leave(session)
        self._offer_room()

    def room_for(self, session: str) -> int:
        """What the engine would take from this caller now."""
        return 0 if self.draining else self._admission.room_for(session, clock.now())

    @property
    def held(self) -> int:
        """Inputs gathered or running."""
        return self._admission.held

    async def drain(self, grace_s: float) -> bool:
        """Refuse new inputs, give staged ones back, wait for the rest; False if some still run after `grace_s`."""
        self.draining = True
        while self._staged:
            staged = self._staged.popleft()
            self._tell(staged, Busy(staged.call.call_id))
        for session in self.sessions.values():
            session.nudge()
        try:
            await asyncio.wait_for(self._idle.wait(), grace_s)
        except asyncio.TimeoutError:
            return False
        return True

    # --- in ---------------------------------------------------------------------------------------------------

    def _hold(self, given: Input, now: float) -> None:
        given.held = True
        given.arrived = now
        given.session.inputs[given.call.call_id] = given
        self.counters.inputs += 1
        self._idle.clear()
        if given.deadline is not None:
            left = max(0.0, given.deadline - now)
            given.timer = self._loop.call_later(left, self._pass_deadline, given, "deadline_s")
        batch = given.method.batch
        if batch is None or batch.weight is None:
            self._enqueue(given, now)
        else:
            if not self._unweighed:
                self._turn.at_end(self._weigh)
            self._unweighed.append(given)

    def _weigh(self) -> None:
        # Together, once a turn of the loop: one hop to the weigher and back, and what came together may share a batch.
        unweighed, self._unweighed = self._unweighed, []

        def weigh() -> list[float | Failure]:
            return [execution.weigh(self._instance, given.method, given.call.arguments) for given in unweighed]

        def done(weights: list[float | Failure], error: BaseException | None) -> None:
            self._mailbox.post(self._weighed, unweighed, weights)

        self._weigher.run(done, weigh)

    def _weighed(self, inputs: list[Input], weights: list[float | Failure]) -> None:
        for given, weight in zip(inputs, weights, strict=True):
            if isinstance(weight, Failure):
                self._answer(given, Raised(given.call.call_id, weight, 1))
            elif not given.answered:
                given.weight = weight
                self._enqueue(given, clock.now())

    def _enqueue(self, given: Input, now: float) -> None:
        self._agenda.add(given, now)
        self._settle_soon()

    def _settle_soon(self) -> None:
        # Once a turn of the loop: what one bundle brings, and what ends together, is seen together.
        if not self._settling:
            self._settling = True
            self._turn.at_end(self._settle)

    def _settle(self) -> None:
        """Start what may start, and offer the room that is left."""
        self._settling = False
        if self._agenda:
            self._pump()
        self._offer_room()

    def _pump(self) -> None:
        """Start what may start; wake again when the next window closes."""
        now = clock.now()
        while chosen := self._agenda.take(now):
            if len(chosen) == 1 and chosen[0].deadline is None:
                self._start(chosen)
            elif in_time := [given for given in chosen if not self._is_late(given, now)]:
                self._start(in_time)
        if self._window_timer is not None:
            self._window_timer.cancel()
            self._window_timer = None
        if (closes := self._agenda.next_start()) is not None:
            self._window_timer = self._loop.call_later(max(0.0, closes - now), self._pump)

    def _is_late(self, given: Input, now: float) -> bool:
        """Whether its deadline has passed, though its timer may not have run yet: then it is answered, and not run."""
        if given.deadline is None or given.deadline > now:
            return False
        self._pass_deadline(given, "deadline_s")
        return True

    # --- running ----------------------------------------------------------------------------------------------

    def _start(self, inputs: list[Input]) -> None:
        method = inputs[0].method
        run = Run(self._instance, method, inputs, self._take_home)
        if method.batch is not None:
            self.counters.count_batch(method.name, len(inputs))
        if method.is_generator:
            run.gate = inputs[0].gate
            run.emit = lambda item: self._mailbox.post(self._emit, inputs[0], item)
        self._runs.add(run)
        limited = False
        for given in inputs:
            given.run = run
            limited = limited or given.call.timeout_s is not None
            if given.session.stages:
                given.session.send(Started(given.call.call_id))
        if limited:
            self._limit_execution(run)
        self._launch(run, self._agenda.begin(method))

    def _launch(self, run: Run, on_main: bool) -> None:
        threads, method = self._instance.threads, run.method
        if method.is_async:
            run.launched = threads.user_loop.launch(self._runners[method.name](run), run.done)
        else:
            (threads.main if on_main else threads.others).run(run.done, self._runners[method.name], run)

    def _limit_execution(self, run: Run) -> None:
        longest = 0.0
        timers = []
        for given in run.inputs:
            if given.call.timeout_s is not None:
                longest = max(longest, given.call.timeout_s)
                timers.append(self._loop.call_later(given.call.timeout_s, self._pass_deadline, given, "timeout_s"))
        wedged = longest + max(longest, WEDGED_AFTER_S)
        timers.append(self._loop.call_later(wedged, self._report_wedged, run, longest))
        run.timers = timers

    def _report_wedged(self, run: Run, limit_s: float) -> None:
        if run not in self._runs:
            return
        if run.method.is_async:
            # One that was told to stop may take its time; one whose loop is blocked was never told.
            if run.launched is None or run.launched.asked_to_stop:
                return
            reason = f"{run.label} blocks the event loop long after its timeout_s of {limit_s:g} s"
        else:
            reason = f"{run.label} is still running long after its timeout_s of {limit_s:g} s"
        self._on_trouble("wedged", reason)

    def _finished(self, run: Run, outcomes: Sequence[Outcome] | None, error: BaseException | None) -> None:
        self._runs.discard(run)
        for timer in run.timers:
            timer.cancel()
        self._agenda.end(run.method)
        if isinstance(error, asyncio.CancelledError):
            outcomes = [execution.failed(CallCancelled(f"{run.label} was cancelled"))] * len(run.inputs)
        elif outcomes is None:
            failure = error or RuntimeError("it ended without an outcome")
            log.error("running %s failed inside gworker", run.label, exc_info=failure)
            outcomes = [execution.failed(failure)] * len(run.inputs)
            run.blamed = True
        now = clock.now()
        for given, outcome in zip(run.inputs, outcomes, strict=True):
            self._conclude(run, given, outcome)
            self._leave(given, now)
        run.let_go()
        self._settle_soon()

    def _conclude(self, run: Run, given: Input, outcome: Outcome) -> None:
        call_id = given.call.call_id
        ended = run.ended
        began = ended if run.began is None else run.began
        wait_s, run_s = began - given.arrived, ended - began
        message: Raised | Ended | Returned
        fatal: str | None = None
        if isinstance(outcome, Failed):
            self.counters.failed += 1
            message = Raised(call_id, outcome.failure, len(run.inputs), _blame(given), wait_s, run_s)
            fatal = outcome.fatal
        else:
            self.counters.succeeded += 1
            message = Ended(call_id, wait_s, run_s) if outcome is None else returned((call_id, outcome, wait_s, run_s))
        if not given.answered:
            self._tell(given, message)
        if fatal is not None and fatal != self._fatal:
            self._fatal = fatal
            self.draining = True  # nothing more comes into a process that is to be replaced
            self._on_trouble("fatal", fatal)

    def _emit(self, given: Input, item: Packed) -> None:
        if not given.answered:
            given.session.send(Item(given.call.call_id, item))

    # --- out --------------------------------------------------------------------------------------------------

    def _pass_deadline(self, given: Input, limit: Literal["timeout_s", "deadline_s"]) -> None:
        if given.answered:
            return
        call = given.call
        now = clock.now()
        began = None if given.run is None else given.run.began
        wait_s = (now if began is None else began) - given.arrived
        run_s = None if began is None else now - began
        blame: Literal["system", "nobody"] = "nobody"  # how long a caller waits says nothing about the worker
        if limit == "timeout_s":
            assert given.run is not None
            given.run.blamed = True
            blame = "system" if given is given.run.inputs[0] else "nobody"
        # Who hears of it knows what came before, and says all of it.
        label = f"{self.spec.name}.{call.method}"
        error = past_limit(label, limit, timeout_s=call.timeout_s, wait_s=wait_s, run_s=run_s)
        self._answer(given, Raised(call.call_id, pack_exception(error), 1, blame, wait_s, run_s, limit))

    def _answer(self, given: Input, message: Any) -> None:
        """The last word to the caller, or none if it has gone; what still waits or runs for it alone is stopped."""
        if given.answered:
            return
        self._tell(given, message)
        if given.run is not None:
            if given.run in self._runs and all(i.answered for i in given.run.inputs):
                self._stop(given.run)
        elif not given.held:
            with contextlib.suppress(ValueError):
                self._staged.remove(given)
        else:
            self._agenda.remove(given)
            self._leave(given, clock.now())
            self._settle_soon()

    def _stop(self, run: Run) -> None:
        """Nobody waits for this invocation: tell it. A synchronous one keeps its place until it returns."""
        run.stop()
        if run.gate is not None:
            run.gate.close()
        if run.launched is not None:
            run.launched.cancel()

    def _tell(self, given: Input, message: Any) -> None:
        """The last word, if there is one: its caller needs no more of it."""
        given.answered = True
        session = given.session
        session.inputs.pop(given.call.call_id, None)
        if given.timer is not None:
            given.timer.cancel()
            given.timer = None
        if message is not None:
            session.send(message)

    def _leave(self, given: Input, now: float) -> None:
        """Give the input's place back; a staged input moves up into it."""
        given.held = False
        self._admission.release(given.session.name)
        if self._staged:
            self._move_up(now)
        if self._admission.held == 0:
            self._idle.set()

    def _move_up(self, now: float) -> None:
        while self._staged and self._admission.take_unpromised(self._staged[0].session.name, now):
            self._hold(self._staged.popleft(), now)

    def _offer_room(self) -> None:
        if self.draining or not (self._staged or self._offer_timer is not None or self._admission.awaited):
            return
        now = clock.now()
        self._move_up(now)  # an offer that nobody used may just have lapsed
        for name in self._admission.offer(now):
            if (session := self.sessions.get(name)) is not None:
                session.nudge()
        if self._offer_timer is not None:
            self._offer_timer.cancel()
            self._offer_timer = None
        if (expiry := self._admission.next_expiry()) is not None:
            self._offer_timer = self._loop.call_later(max(0.0, expiry - now), self._offer_room)


def _blame(given: Input) -> Literal["user", "system", "nobody"]:
    if given.run is None or not given.run.blamed:
        return "user"
    return "system" if given is given.run.inputs[0] else "nobody"


def _runner(method: MethodSpec) -> Callable[[Work], Any]:
    """What runs it; a coroutine function where it is asynchronous."""
    if method.is_generator:
        return execution.run_stream_async if method.is_async else execution.run_stream
    if method.batch is not None:
        return execution.run_batch_async if method.is_async else execution.run_batch
    return execution.run_call_async if method.is_async else execution.run_call
