"""A call on the caller's side: what is sent, what is known of it, and who gets the outcome."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from gworker import clock
from gworker.context import WaitingPool
from gworker.errors import DeadlineExceeded, GWorkerError, PoolUnavailable, anew
from gworker.retries import Retries
from gworker.wire import Failure, Packed, Submit, packed_bytes, unpack_exception

if TYPE_CHECKING:
    from gworker.router.router import Link

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
    """Waits for nothing any more."""

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
    """One call while its router is responsible for it."""

    attempt = 1
    batch_cap = 0
    items = 0
    last_failure: Failure | None = None
    sent_at = 0.0
    timer: Any = None
    link: Link | None = None
    # Another attempt goes to another worker, where there is one; `tries` counts how often this one was refused.
    avoid: Link | None = None
    tries = 0
    queued = False
    started = False
    reached_worker = False
    done = False

    def __init__(
        self,
        plan: Plan,
        arguments: Packed,
        sink: Sink,
        *,
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
        self.submitted_at = clock.now()

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

    def past_deadline(self, no_worker: str | None) -> GWorkerError:
        """The error of a call whose deadline passes now, saying where the time went. `no_worker` is why none serves."""
        now = clock.now()
        total_s = now - self.submitted_at
        if self.link is not None:
            spent = f"{self.sent_at - self.submitted_at:.3g} s queued, {now - self.sent_at:.3g} s in a worker"
            return DeadlineExceeded(
                f"{self.label} passed its deadline_s after {total_s:.3g} s: {spent} (attempt {self.attempt})",
                limit="deadline_s",
                where="worker",
            )
        if self.last_failure is not None and not self.queued:
            last = self.last_failure
            return DeadlineExceeded(
                f"{self.label} passed its deadline_s after {total_s:.3g} s, while it waited to begin attempt "
                f"{self.attempt}; the one before had ended with {last.type_name}: {last.message}",
                limit="deadline_s",
                where="between attempts",
            )
        if no_worker is not None and not self.reached_worker:
            return PoolUnavailable(
                f"{self.label} passed its deadline_s after {total_s:.3g} s without a worker: {no_worker}"
            )
        return DeadlineExceeded(
            f"{self.label} passed its deadline_s after {total_s:.3g} s in the queue: every worker was busy",
            limit="deadline_s",
            where="queue",
        )

    def message(self) -> Submit:
        """The call as it is sent now."""
        plan = self.plan
        return Submit(
            self.number,
            self.id,
            plan.method,
            self.arguments,
            plan.parameters,
            plan.parameters_key,
            self.attempt,
            None if self.deadline is None else clock.left_until(self.deadline),
            plan.timeout_s,
            self.batch_cap,
            self.credit,
            self.waiting,
        )
