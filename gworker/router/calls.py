"""A call on the caller's side: what is sent, what is known of it, and who gets the outcome."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from gworker import clock
from gworker.context import WaitingPool
from gworker.errors import DeadlineExceeded, GWorkerError, PoolUnavailable, anew
from gworker.observe.times import Spent, past_limit, seconds
from gworker.retries import Retries
from gworker.wire import Failure, Packed, Raised, Submit, packed_bytes, submit, unpack_exception

if TYPE_CHECKING:
    from gworker.router.links import Link

# How long after its deadline the worker of a call may take to say where the time went. Its own timer passes then, too.
VERDICT_S = 0.1

_numbers = itertools.count(1)
_process = os.urandom(4).hex()


class Problem(NamedTuple):
    """Why a call failed: an error of this side, or what the method raised, still pickled; and what led to it."""

    error: BaseException | Failure
    cause: Failure | None = None

    @property
    def type_name(self) -> str:
        """The class of the exception."""
        return self.error.type_name if isinstance(self.error, Failure) else type(self.error).__name__

    def exception(self) -> BaseException:
        """An exception to raise, another one for each who asks: an error of this side may be that of many calls.

        Runs user code, so it is for the thread or task that waits for the call.
        """
        error = unpack_exception(self.error) if isinstance(self.error, Failure) else anew(self.error)
        if self.cause is not None:
            error.__cause__ = unpack_exception(self.cause)
        return error


class Sink(Protocol):
    """Who waits for the outcome. Called on the router's loop, or on the caller's thread; must not block."""

    def returned(self, result: Packed) -> None:
        """The call returned."""

    def raised(self, problem: Problem) -> None:
        """The call failed; nothing follows."""

    def item(self, item: Packed) -> None:
        """A stream has an item."""

    def ended(self) -> None:
        """A stream is complete."""


class _Nobody:
    """Waits for nothing."""

    def returned(self, result: Packed) -> None:
        """See Sink."""

    def raised(self, problem: Problem) -> None:
        """See Sink."""

    def item(self, item: Packed) -> None:
        """See Sink."""

    def ended(self) -> None:
        """See Sink."""


NOBODY = _Nobody()


class Plan(NamedTuple):
    """What the calls of one method of one handle have in common."""

    label: str
    method: str
    parameters: Packed | None
    parameters_key: Any
    timeout_s: float | None
    retries: Retries


class RoutedCall:
    """One call while its router is responsible for it.

    `queued_at` is when its present attempt was queued; `spent` is where the time of the last went that was answered.
    """

    # What few calls need: most have what `__init__` gives them, and no dict.
    attempt = 1
    batch_cap = 0
    items = 0
    last_failure: Failure | None = None
    # Its deadline has passed, and its worker has a moment to say where the time went.
    overdue = False
    # Another attempt goes to another worker, where there is one; `tries` counts how often this one was refused.
    avoid: Link | None = None
    tries = 0

    def __init__(
        self,
        plan: Plan,
        arguments: Packed,
        sink: Sink,
        deadline: float | None = None,
        credit: int = 0,
        waiting: tuple[WaitingPool, ...] = (),
    ) -> None:
        self.number = next(_numbers)
        self.plan = plan
        self.arguments = arguments
        self.nbytes = packed_bytes(arguments)
        self.deadline = deadline
        self.credit = credit
        self.sink = sink
        self.waiting = waiting
        self.submitted_at = self.queued_at = clock.now()
        self.sent_at = 0.0
        self.timer: Any = None
        self.link: Link | None = None
        self.spent: Spent | None = None
        self.queued = False
        self.started = False
        self.reached_worker = False
        self.over = False

    # Its sink, which a `SpawnedCall` needs none of.

    def returned(self, result: Packed) -> None:
        """See Sink."""
        self.sink.returned(result)

    def raised(self, problem: Problem) -> None:
        """See Sink."""
        self.sink.raised(problem)

    def item(self, item: Packed) -> None:
        """See Sink."""
        self.sink.item(item)

    def ended(self) -> None:
        """See Sink."""
        self.sink.ended()

    @property
    def id(self) -> str:
        """What names the call in logs, and in the worker."""
        return f"{_process}-{self.number}"

    @property
    def label(self) -> str:
        """The method's name for messages."""
        return self.plan.label

    @property
    def retries(self) -> Retries:
        """When to try again."""
        return self.plan.retries

    def may_retry(self) -> bool:
        """Whether another attempt is allowed: some are left, and no item of a stream has been handed out."""
        return self.attempt <= self.retries.max_retries and self.items == 0

    def past_limit(self, told: Raised) -> DeadlineExceeded:
        """The error of a call whose limit passed in a worker, which has `told` what it knows; where the time went."""
        assert told.limit
        now = clock.now()
        return past_limit(
            self.label,
            told.limit,
            timeout_s=self.plan.timeout_s,
            queue_s=now - self.queued_at - (told.wait_s or 0.0) - (told.run_s or 0.0),
            total_s=now - self.submitted_at,
            wait_s=told.wait_s,
            run_s=told.run_s,
            about=self._which_attempt(),
        )

    def past_deadline(self, no_worker: str | None) -> GWorkerError:
        """The error of a call whose deadline has passed, and of which no worker has told more.

        It says where the time went. `no_worker` is why none serves.
        """
        now = clock.now()
        total = seconds(now - self.submitted_at)
        if self.link is not None:
            spent = f"{seconds(self.sent_at - self.queued_at)} queued, {seconds(now - self.sent_at)} in a worker"
            return DeadlineExceeded(
                f"{self.label} passed its deadline_s after {total}: {spent}, which did not say what it does"
                f"{self._which_attempt()}",
                limit="deadline_s",
                where="worker",
            )
        if self.last_failure is not None and not self.queued:
            last = self.last_failure
            return DeadlineExceeded(
                f"{self.label} passed its deadline_s after {total}, while it waited to begin attempt "
                f"{self.attempt}; the one before had ended with {last.type_name}: {last.message}",
                limit="deadline_s",
                where="between attempts",
            )
        if no_worker is not None and not self.reached_worker:
            return PoolUnavailable(f"{self.label} passed its deadline_s after {total} without a worker: {no_worker}")
        return DeadlineExceeded(
            f"{self.label} passed its deadline_s after {total} in the queue: every worker was busy",
            limit="deadline_s",
            where="queue",
        )

    def _which_attempt(self) -> str:
        if self.attempt == 1:
            return ""
        return f" (attempt {self.attempt}, {seconds(self.queued_at - self.submitted_at)} after the first began)"

    def message(self) -> Submit:
        """The call as it is sent now."""
        plan = self.plan
        number = self.number
        deadline_left_s = None if self.deadline is None else clock.left_until(self.deadline)
        return submit((
            number, f"{_process}-{number}", plan.method, self.arguments, plan.parameters, plan.parameters_key,
            self.attempt, deadline_left_s, plan.timeout_s, self.batch_cap, self.credit, self.waiting,
        ))  # fmt: skip
