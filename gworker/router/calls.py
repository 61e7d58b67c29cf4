"""A call on the caller's side: what is sent, what is known of it, and who gets the outcome."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from gworker import clock
from gworker.context import WaitingPool
from gworker.errors import DeadlineExceeded, GWorkerError, PoolUnavailable
from gworker.retries import Retries
from gworker.wire import Failure, Payload, Submit, unpack_exception

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
        """The exception to raise. Runs user code, so it is for the thread or task that waits for the call."""
        error = unpack_exception(self.error) if isinstance(self.error, Failure) else self.error
        if self.cause is not None:
            error.__cause__ = unpack_exception(self.cause)
        return error


class Sink(Protocol):
    """Who waits for the outcome. Called on the router's loop, or on the caller's thread; must not block."""

    def returned(self, result: Payload) -> None:
        """The call returned."""

    def raised(self, problem: Problem) -> None:
        """The call failed; nothing follows."""

    def item(self, item: Payload) -> None:
        """A stream has an item."""

    def ended(self) -> None:
        """A stream is complete."""


class RoutedCall:
    """One call while its router is responsible for it."""

    __slots__ = (
        "arguments",
        "attempt",
        "avoid",
        "batch_cap",
        "credit",
        "deadline",
        "done",
        "id",
        "items",
        "label",
        "last_failure",
        "link",
        "method",
        "nbytes",
        "number",
        "parameters",
        "parameters_key",
        "queued",
        "reached_worker",
        "retries",
        "sent_at",
        "sink",
        "started",
        "submitted_at",
        "timeout_s",
        "timer",
        "tries",
        "waiting",
    )

    def __init__(
        self,
        *,
        label: str,
        method: str,
        arguments: Payload,
        parameters: Payload | None,
        parameters_key: Any,
        deadline: float | None,
        timeout_s: float | None,
        retries: Retries,
        credit: int,
        sink: Sink,
        waiting: tuple[WaitingPool, ...] = (),
    ) -> None:
        self.number = next(_numbers)
        self.id = f"{_process}-{self.number}"
        self.label = label
        self.method = method
        self.arguments = arguments
        self.parameters = parameters
        self.parameters_key = parameters_key
        self.deadline = deadline
        self.timeout_s = timeout_s
        self.retries = retries
        self.credit = credit
        self.sink = sink
        self.waiting = waiting
        self.nbytes = arguments.nbytes
        self.attempt = 1
        self.batch_cap = 0
        self.items = 0
        self.last_failure: Failure | None = None
        self.submitted_at = clock.now()
        self.sent_at = 0.0
        self.timer: Any = None
        self.link: Link | None = None
        # Another attempt goes to another worker, where there is one; `tries` counts how often this one was refused.
        self.avoid: Link | None = None
        self.tries = 0
        self.queued = False
        self.started = False
        self.reached_worker = False
        self.done = False

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
        return Submit(
            call_id=self.number,
            name=self.id,
            method=self.method,
            arguments=self.arguments,
            parameters=self.parameters,
            parameters_key=self.parameters_key,
            attempt=self.attempt,
            deadline_left_s=clock.left_until(self.deadline),
            timeout_s=self.timeout_s,
            batch_cap=self.batch_cap,
            credit=self.credit,
            waiting=self.waiting,
        )
