"""The router: one per process and pool. Queues calls, picks a worker for each, retries, and ends every one of them.

A call is queued -> sent -> answered. A worker that refuses it, or dies before it can have started it, puts it back at
the head of the queue; one that may have started it before dying ends it with `WorkerLost`, unless `retries` allow
another attempt. All methods but `submit`, `cancel` and `grant` run on the router's loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import os
import random
from collections.abc import Callable
from typing import Any

from gworker import clock, context
from gworker.deaths import death_reason
from gworker.errors import (
    CallCancelled,
    GWorkerError,
    PoolUnavailable,
    WorkerLost,
    anew,
)
from gworker.mailbox import Mailbox, turn_of
from gworker.observe.times import Tally
from gworker.options import Options
from gworker.router.calls import VERDICT_S, Problem, RoutedCall
from gworker.router.choice import ASK_MORE_S, Choice
from gworker.router.direct import TakenUp
from gworker.router.express import ExpressWays
from gworker.router.links import Inquiry, Link, PoolSource
from gworker.router.membership import Demand, PoolKey, PoolView, WorkerView
from gworker.router.queue import CallQueue, promise
from gworker.router.roster import Differences, Roster
from gworker.wire import Busy, Cancel, Credit, Ended, Failure, Item, Raised, Returned, Started

log = logging.getLogger("gworker.router")

# What has been said once in this process is not said again.
_noticed: set[str] = set()

# How often a router repeats its demand while it has any; the controller forgets it after some times as long.
DEMAND_PERIOD_S = 0.25
# How long calls wait without a word before the log says for what.
EXPLAIN_AFTER_S = 5.0
# A worker whose lane broke is linked again only where a view still names it this long afterwards: it did not die.
RELINK_AFTER_S = 3.0


class Router:
    """Calls of this process to one pool. `chance` decides between workers that are equal."""

    def __init__(
        self,
        key: PoolKey,
        label: str,
        options: Options,
        source: PoolSource,
        loop: asyncio.AbstractEventLoop,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.key = key
        self.name = f"{os.getpid()}-{os.urandom(4).hex()}"
        self.source = source
        self._label = label
        self._loop = loop
        self._queue = CallQueue(label, options.max_pending, options.max_pending_mb)
        self._mailbox = Mailbox(loop, paced=True)
        self._turn = turn_of(loop)
        self._pumping = False
        self._live: dict[int, RoutedCall] = {}
        self._links: dict[str, Link] = {}
        self._choice: Choice[Link] = Choice(chance)  # the links that are ready
        self._asking: asyncio.TimerHandle | None = None
        self._lost_at: dict[str, float] = {}
        self._sessions = itertools.count(1)
        self._roster = Roster()
        # Workers that serve and have no link, as theirs broke lately; links with calls whose worker has left the pool.
        self._unlinked: dict[str, None] = {}
        self._leaving: dict[str, Link] = {}
        self._closed: GWorkerError | None = None
        self._reported = Demand(0, 0)
        self._errors: dict[str, int] = {}
        self._tally = Tally()
        self._needed = asyncio.Event()
        self._finished_lately = False
        self._report_timer: asyncio.TimerHandle | None = None
        self._explain_timer: asyncio.TimerHandle | None = None
        self._ready_waiters: list[tuple[concurrent.futures.Future[None], int]] = []
        self.express = ExpressWays(self)
        self._watcher: concurrent.futures.Future[None] = asyncio.run_coroutine_threadsafe(self._watch(), loop)

    # --- from any thread ------------------------------------------------------------------------------------------

    def submit(self, call: RoutedCall) -> None:
        """Accept a call. Raises QueueFull at once when as many, or as many bytes, wait here as may."""
        self._queue.admit(call)
        self._mailbox.post(self._accept, call)

    def cancel(self, call: RoutedCall) -> None:
        """Nobody waits for this call any more. It ends with CallCancelled, unless it has ended already."""
        self._mailbox.post(self._cancel, call)

    def grant(self, call: RoutedCall, count: int) -> None:
        """The consumer of a stream has room for `count` more items."""
        self._mailbox.post(self._grant, call, count)

    def when_space(self) -> concurrent.futures.Future[None]:
        """Ends when a call has left the queue; for those that would rather wait than meet QueueFull."""
        return self._queue.when_space()

    def waiting_for(self) -> str:
        """What queued calls wait for, in words; empty when workers serve."""
        return "" if self._has_ready_links() else self.missing()

    def missing(self) -> str:
        """What the pool lacks, in words, whether or not some workers serve."""
        view = self._roster.view
        if view is None:
            return "the controller's first answer"
        if not self._unlinked or any(link.was_up for link in self._links.values()):
            return view.waiting_for
        return "; ".join(filter(None, ("its workers cannot be reached from here", view.waiting_for)))

    def when_ready(self, count: int = 1) -> concurrent.futures.Future[None]:
        """Ends when `count` workers serve, or fewer while another fails to start; raises the failure of the pool."""
        ready = promise()
        self._mailbox.post(self._wait_ready, ready, count)
        return ready

    def _wait_ready(self, ready: concurrent.futures.Future[None], count: int) -> None:
        self._ready_waiters.append((ready, count))
        self._tell_ready_waiters()

    def _tell_ready_waiters(self) -> None:
        view = self._roster.view
        failure = self._closed or (view.failure if view is not None else None)
        ready = len(self._choice)
        waiters, self._ready_waiters = self._ready_waiters, []
        for waiter, count in waiters:
            if ready >= count or (ready and view is not None and view.start_error is not None):
                waiter.set_result(None)
            elif failure is not None:
                waiter.set_exception(anew(failure))
            else:
                self._ready_waiters.append((waiter, count))

    @property
    def unfinished(self) -> int:
        """Calls that have been accepted and have not ended."""
        # In the order in which a call passes from one to the next, so that none is missed on its way.
        return len(self.express.busy) + len(self._mailbox) + len(self._live)

    @property
    def is_quiet(self) -> bool:
        """Whether no call is with this router, and none need be: it is open, and no worker has failed lately."""
        return not (self._live or self._mailbox or self._errors) and self._closed is None

    def post(self, action: Callable[..., object], *args: Any) -> None:
        """Have `action(*args)` called on the router's loop soon."""
        self._mailbox.post(action, *args)

    def on_express(self) -> None:
        """A call has been sent by an express way: it is demand as any other."""
        self._finished_lately = True
        if self._report_timer is None:
            self._mailbox.post(self._report)

    def account(self, call: RoutedCall, message: Returned | Raised | Ended) -> None:
        """Count where the time of an attempt went that a worker has answered."""
        wait_s, run_s = message.wait_s, message.run_s
        queue_s = clock.now() - call.queued_at - (wait_s or 0.0) - (run_s or 0.0)
        call.spent = spent = queue_s, wait_s, run_s
        self._tally[call.plan.method].append(spent)

    def account_queued(self, call: RoutedCall) -> None:
        """Count what a call whose deadline has passed had spent in the queue; of the rest nothing is known."""
        until = clock.now() if call.link is None else call.sent_at
        self._tally[call.plan.method].append((until - call.queued_at, None, None))

    def take_over(self, call: RoutedCall, link: Link, message: Any) -> None:
        """See to a call that came by an express way, where this is what the worker said of it."""
        self._mailbox.post(self._take_over, call, link, message)

    def find_out(self, call: RoutedCall, link: Link, session: str, taken_up: TakenUp, error: BaseException) -> None:
        """See to a call whose express way broke with `error`: the worker may be dead, or have done it."""
        self._mailbox.post(self._find_out, call, link, session, taken_up, error)

    def close(self, reason: GWorkerError) -> None:
        """End every call with `reason`, and every later one too."""
        self._closed = reason
        self._queue.close(reason)
        self._mailbox.post(self._close)

    # --- the queue ------------------------------------------------------------------------------------------------

    def _accept(self, call: RoutedCall) -> None:
        self._live[call.number] = call
        refusal = self._refusal
        if refusal is not None:
            self._end(call, refusal)
            self.pump_soon()  # that there was a call is demand
            return
        if call.deadline is not None:
            left = call.deadline - clock.now()
            if left <= 0:
                self._pass_deadline(call)
                return
            call.timer = self._loop.call_later(left, self._pass_deadline, call)
        self._queue.append(call)
        self._needed.set()
        self.pump_soon()

    def _take_over(self, call: RoutedCall, link: Link, message: Any) -> None:
        if self._take_in(call, link):
            self.on_message(link, message)
            self.on_progress(link)

    def _find_out(self, call: RoutedCall, link: Link, session: str, taken_up: TakenUp, error: BaseException) -> None:
        if not self._take_in(call, link):
            return
        if link.broken:
            del link.calls[call.number]
            self.settle_lost(link, [call], error)
        else:
            Inquiry(self, link, call, session, taken_up)

    def _take_in(self, call: RoutedCall, link: Link) -> bool:
        """Count a call that is in a worker as ours; False where it has ended at that."""
        self._live[call.number] = call
        if self._closed is not None:
            self._end(call, self._closed)
            return False
        call.link = link
        link.calls[call.number] = call
        if call.deadline is not None:
            left = max(0.0, call.deadline - clock.now())
            call.timer = self._loop.call_later(left, self._pass_deadline, call)
        return True

    @property
    def _refusal(self) -> GWorkerError | None:
        """Why no call is taken any more: the router is closed, or the pool has failed and nothing of it serves."""
        if self._closed is not None:
            return self._closed
        view = self._roster.view
        # What is said of a pool that is not kept may be old: it is asked for again.
        if view is None or view.failure is None or view.forgotten or self._has_ready_links():
            return None
        return view.failure

    def _cancel(self, call: RoutedCall) -> None:
        self._end(call, CallCancelled(f"{call.label} was cancelled by its caller"), tell=True)
        self.pump_soon()

    def _grant(self, call: RoutedCall, count: int) -> None:
        if call.link is not None and not call.over:
            call.link.lane.send(Credit(call.number, count))

    def _requeue(self, calls: list[RoutedCall]) -> None:
        for call in calls:
            call.link = None
            call.started = False
        self._queue.put_back(calls)

    def pump_soon(self) -> None:
        """Pump at the end of this turn of the loop."""
        if not self._pumping:
            self._pumping = True
            self._turn.at_end(self.pump)

    def pump(self) -> None:
        """Send what can be sent, say what waits, report the demand."""
        self._pumping = False
        if self._closed is not None:
            return
        now = clock.now()
        while True:
            while (call := self._queue.next()) is not None:
                link = self._choice.pick(avoid=call.avoid, tries=call.tries)
                if link is None:
                    break
                self._send(link, self._queue.take(), now)
            waiting = self._queue.waiting
            if not waiting or not self._ask(waiting):
                break
        if not waiting and self._choice.asks:
            self._ask_no_more()
        if self._report_timer is None or waiting:
            self._report()
        if waiting and self._explain_timer is None:
            self._explain_timer = self._loop.call_later(EXPLAIN_AFTER_S, self._explain)

    def on_progress(self, link: Link) -> None:
        """A worker may have room."""
        self._choice.heard(link)
        if self._queue.waiting or self._choice.asks or self._report_timer is None:
            self.pump_soon()

    def _ask(self, waiting: int) -> bool:
        """Have workers say when they have room; False where no more of them are asked for now."""
        asked = self._choice.ask(waiting)
        for link in asked:
            link.lane.want(waiting)
        if self._asking is None and not self._choice.all_asked:
            self._asking = self._loop.call_later(ASK_MORE_S, self._ask_more)
        return bool(asked)

    def _ask_more(self) -> None:
        self._asking = None
        self._choice.ask_more()
        self.pump()

    def _ask_no_more(self) -> None:
        # Those that have answered meanwhile, too: they would go on offering their room, and keep it for us.
        for link in self._choice.ask_no_more():
            link.lane.want(0)
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    def new_session(self) -> str:
        """What a worker knows a new link as. It may have known this router before, and have counted its bundles."""
        return f"{self.name}-{next(self._sessions)}"

    def _may_link(self, worker: WorkerView) -> bool:
        # A view that was on its way may name a worker that has just died.
        return clock.now() - self._lost_at.get(worker.id, float("-inf")) > RELINK_AFTER_S

    def _has_ready_links(self) -> bool:
        return len(self._choice) > 0

    def ready_links(self) -> list[Link]:
        """The workers that may be used."""
        return [link for link in self._links.values() if link.ready and not link.broken]

    def _send(self, link: Link, call: RoutedCall, now: float) -> None:
        call.link = link
        call.sent_at = now
        call.reached_worker = True
        call.started = not link.lane.vouches_for_starts
        link.calls[call.number] = call
        link.lane.send(call.message())

    # --- what workers say -----------------------------------------------------------------------------------------

    def on_message(self, link: Link, message: Any) -> None:
        """Handle a message of a worker."""
        call = link.calls.get(message.call_id)
        kind = type(message)
        if self._errors or kind is Raised:
            self._judge(link, message)
        if call is None or call.over:
            return
        if kind is Returned:
            self.account(call, message)
            self._finish(call)
            self._hand_over(call, call.returned, message.result)
        elif isinstance(message, Item):
            call.items += 1
            self._hand_over(call, call.item, message.item)
        elif isinstance(message, Ended):
            self.account(call, message)
            self._finish(call)
            self._hand_over(call, call.ended)
        elif isinstance(message, Raised):
            self.account(call, message)
            self._failed(link, call, message)
        elif isinstance(message, Started):
            call.started = True
        elif isinstance(message, Busy):
            del link.calls[call.number]
            call.tries += 1
            self._requeue([call])

    def _judge(self, link: Link, message: Any) -> None:
        """Count the system errors in a row that a worker answers with; anything else it brings about ends the row."""
        blame = message.blame if isinstance(message, Raised) else ""
        if blame == "system" and link.worker.id in self._roster.workers:
            self._errors[link.worker.id] = self._errors.get(link.worker.id, 0) + 1
        elif self._errors and (blame == "user" or isinstance(message, (Returned, Item, Ended))):
            self._errors.pop(link.worker.id, None)

    def _failed(self, link: Link, call: RoutedCall, message: Raised) -> None:
        failure = message.failure
        if failure.final or not call.may_retry() or not call.retries.matches(failure):
            if message.limit:
                self._end(call, call.past_limit(message), cause=call.last_failure)
            else:
                self._end(call, failure)
            return
        del link.calls[call.number]
        delay_s = call.retries.delay_s(call.attempt)
        call.last_failure = failure
        self._next_attempt(call)
        call.avoid = link
        if message.batch_size > 1:
            # In halves, so that the one input that spoils its batch ends up alone.
            half = (message.batch_size + 1) // 2
            call.batch_cap = min(call.batch_cap or half, half)
        elif call.batch_cap:
            call.batch_cap = 1
        self._loop.call_later(delay_s, self._retry, call)

    def _next_attempt(self, call: RoutedCall) -> None:
        log.info("%s: attempt %d failed, another follows (call %s)", call.label, call.attempt, call.id)
        call.attempt += 1
        call.queued_at = clock.now()
        call.link = None
        call.tries = 0

    def _retry(self, call: RoutedCall) -> None:
        if not call.over:
            call.queued_at = clock.now()
            self._requeue([call])
            self.pump()

    def on_broken(self, link: Link, error: BaseException) -> None:
        """A worker is gone: settle each call that was there."""
        link.broken = True
        self._links.pop(link.worker.id, None)
        self._choice.remove(link)
        if link.worker.id in self._roster.workers:
            self._unlinked[link.worker.id] = None
            if link.was_up or link.calls:  # and not each time that it is tried again
                self._errors[link.worker.id] = self._errors.get(link.worker.id, 0) + 1
        self._lost_at[link.worker.id] = clock.now()
        self.express.leave(link)
        calls, link.calls = list(link.calls.values()), {}
        self.settle_lost(link, calls, error)

    def settle_lost(self, link: Link, calls: list[RoutedCall], error: BaseException) -> None:
        """Calls were in a worker that is gone, and which does not have them any more."""
        again: list[RoutedCall] = []
        for call in calls:
            if not call.started:
                again.append(call)
            elif call.may_retry():
                self._next_attempt(call)
                again.append(call)
            else:
                reason = death_reason(error)
                self._end(
                    call,
                    WorkerLost(
                        f"the worker {link.worker.id} was lost while it had {call.label} (attempt {call.attempt}), "
                        f"which may have started: {reason}. It was not run again because retries do not allow it."
                    ),
                )
        self._requeue(again)
        self.pump()

    # --- ends -----------------------------------------------------------------------------------------------------

    def _finish(self, call: RoutedCall) -> None:
        call.over = True
        self._finished_lately = True
        self._live.pop(call.number, None)
        if call.queued:
            self._queue.leave(call)
        if call.timer is not None:
            call.timer.cancel()
        if call.link is not None:
            call.link.calls.pop(call.number, None)

    def _end(
        self, call: RoutedCall, error: BaseException | Failure, *, cause: Failure | None = None, tell: bool = False
    ) -> None:
        if call.over:
            return
        link = call.link
        if tell and link is not None and not link.broken:
            link.lane.send(Cancel(call.number))
            # Once the lane has sent that: it may be idle then, and says nothing of it.
            self._loop.call_soon(self.on_progress, link)
        self._finish(call)
        self._hand_over(call, call.raised, Problem(error, cause))

    def _hand_over(self, call: RoutedCall, deliver: Callable[..., None], *outcome: Any) -> None:
        # A consumer whose event loop is closed raises; that must not cost other calls their outcome.
        try:
            deliver(*outcome)
        except Exception:
            log.warning("%s: whoever waited for call %s is gone", call.label, call.id, exc_info=True)

    def _pass_deadline(self, call: RoutedCall) -> None:
        if call.link is not None and not call.overdue:
            call.overdue = True
            call.timer = self._loop.call_later(VERDICT_S, self._pass_deadline, call)
            return
        if call.link is not None or call.queued:
            self.account_queued(call)
        error = call.past_deadline(None if self._has_ready_links() else self.waiting_for())
        self._end(call, error, cause=call.last_failure, tell=True)
        self.pump()

    def _fail_all(self, error: GWorkerError) -> None:
        for call in list(self._live.values()):
            if call.link is None:
                self._end(call, error)

    def _close(self) -> None:
        assert self._closed is not None
        self._watcher.cancel()
        self.express.close()
        for call in list(self._live.values()):
            self._end(call, self._closed, tell=True)
        for link in self._links.values():
            self._choice.remove(link)
            link.lane.close()
        self._links.clear()
        self._queue.clear()
        self._tell_ready_waiters()
        for timer in (self._report_timer, self._explain_timer, self._asking):
            if timer is not None:
                timer.cancel()

    # --- the pool -------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        roster = self._roster
        while self._closed is None:
            if roster.known is None and roster.view is not None and (not self._live or roster.view.failure is not None):
                self._needed.clear()  # the controller keeps the pool no more, and no new call needs it
                await self._needed.wait()
            try:
                told = await self.source.watch(self.name, self.key, roster.known)
            except Exception as error:
                self.close(
                    error
                    if isinstance(error, GWorkerError)
                    else PoolUnavailable(f"{self._label}: the app's controller is gone: {death_reason(error)}")
                )
                return
            try:
                differences = roster.take(told)
                if differences is not None:
                    self._see(told, differences)
            except Exception as error:  # a fault of our own ends the calls; without this they would wait for ever
                log.exception("%s: following the pool failed inside gworker", self._label)
                reason = f"following the pool failed inside gworker: {type(error).__name__}: {error}"
                self.close(PoolUnavailable(f"{self._label}: {reason}"))
                return

    def _see(self, view: PoolView, differences: Differences) -> None:
        """Act on what the controller has told; of the workers only on the differences."""
        if view.notice and view.notice not in _noticed and context.this_worker() is None:
            _noticed.add(view.notice)
            log.warning("%s", view.notice)
        workers = self._roster.workers
        self._lost_at = {worker_id: at for worker_id, at in self._lost_at.items() if worker_id in workers}
        self._errors = {w: count for w, count in self._errors.items() if w in workers and workers[w].ready}
        for worker_id in differences.left:
            self._unlinked.pop(worker_id, None)
            if (link := self._links.get(worker_id)) is not None:
                self._set_ready(link, False)
                self._leaving[worker_id] = link
        for worker in differences.changed:
            if (link := self._links.get(worker.id)) is not None:
                self._leaving.pop(worker.id, None)
                self._set_ready(link, worker.ready)
            elif worker.ready:
                self._unlinked[worker.id] = None
        self._link_and_unlink()
        if view.failure is not None and not self._has_ready_links():
            self._fail_all(view.failure)
        self._tell_ready_waiters()
        self.pump()

    def _link_and_unlink(self) -> None:
        """Link workers that have no link; close the links of those that have left, once our calls there have ended."""
        workers = self._roster.workers
        for worker_id in list(self._unlinked):
            worker = workers.get(worker_id)
            if worker is None or not worker.ready or worker_id in self._links:
                del self._unlinked[worker_id]
            elif self._may_link(worker):
                del self._unlinked[worker_id]
                link = self._links[worker_id] = Link(self, worker)
                self._choice.add(link)
                self.express.enter(link)
        for worker_id, link in list(self._leaving.items()):
            if not link.calls:
                del self._leaving[worker_id]
                if self._links.get(worker_id) is link:
                    del self._links[worker_id]
                    link.lane.close()

    def _set_ready(self, link: Link, ready: bool) -> None:
        link.ready = ready
        if ready:
            self._choice.add(link)
            self.express.enter(link)
            return
        self.express.leave(link)
        if self._choice.remove(link):
            link.lane.want(0)  # or it would go on offering its room, and be asked again

    def _demand(self) -> Demand:
        held = {link.worker.id: len(link.calls) for link in self._links.values() if link.calls}
        queued = len(self._live) - sum(held.values())
        for way in list(self.express.busy):
            held[way.link.worker.id] = held.get(way.link.worker.id, 0) + 1
        running = sum(held.values()) or int(self._finished_lately)
        return Demand(queued, running, tuple(held.items()), tuple(self._errors.items()))

    def _report(self) -> None:
        """Tell the controller the demand: at once when calls find no worker, else once a period while there is any."""
        if self._queue.waiting and not self._reported.queued and not self._has_ready_links():
            self._send_report()
        elif self._report_timer is None and (self._live or self._finished_lately or not self._reported.idle):
            self._report_timer = self._loop.call_later(DEMAND_PERIOD_S, self._send_report)

    def _send_report(self) -> None:
        self._reported = self._demand()
        self._finished_lately = False
        self.source.report(self.name, self.key, self._reported, self._tally.take())
        if self._report_timer is not None:
            self._report_timer.cancel()
            self._report_timer = None
        if not self._reported.idle:
            self._report_timer = self._loop.call_later(DEMAND_PERIOD_S, self._send_report)

    def _explain(self) -> None:
        self._explain_timer = None
        waiting = self._queue.calls()
        if waiting and not self._has_ready_links():
            longest = clock.now() - min(c.submitted_at for c in waiting)
            log.warning("%s: %d calls wait, %.0f s so far: %s", self._label, len(waiting), longest, self.waiting_for())
            self._explain_timer = self._loop.call_later(6 * EXPLAIN_AFTER_S, self._explain)
