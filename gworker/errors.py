"""What gworker raises. Each class knows its HTTP status and whether trying the same call again can help.

    GWorkerError             500
    ├─ InvalidDefinition     400  (a TypeError and a ValueError)
    ├─ NotFound              404
    ├─ QueueFull             429  trying again helps
    ├─ PoolUnavailable       503  trying again helps
    ├─ StartupFailed         503
    ├─ Unschedulable         503
    ├─ DeadlineExceeded      504  (a TimeoutError)
    ├─ CallCancelled         499
    ├─ WorkerLost            502  trying again helps
    ├─ BatchResultError      500
    ├─ RemoteError           500
    └─ AuthenticationError   401

`Fatal` stands beside the tree: users raise it, to have their worker replaced.
"""

# ruff: noqa: N818 - the names are the contract; a class that ends in Error is one whose name needs it.

from __future__ import annotations

import copy
from typing import ClassVar, TypeVar

E = TypeVar("E", bound=BaseException)


class GWorkerError(Exception):
    """Anything that gworker itself raises; what a user's method raises arrives as what it was."""

    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False


class InvalidDefinition(GWorkerError, TypeError, ValueError):
    """A class, an option, a decorator or a parameter value that cannot work. The message says what to write."""

    http_status: ClassVar[int] = 400


class NotFound(GWorkerError):
    """No such app or class; the message lists those that exist."""

    http_status: ClassVar[int] = 404


class QueueFull(GWorkerError):
    """This process already has as many calls of the class waiting as `max_pending` or `max_pending_mb` allow."""

    http_status: ClassVar[int] = 429
    retryable: ClassVar[bool] = True


class PoolUnavailable(GWorkerError):
    """No worker was ready before the call's deadline; the message says why."""

    http_status: ClassVar[int] = 503
    retryable: ClassVar[bool] = True


class StartupFailed(GWorkerError):
    """No worker of the class could start; the message carries the traceback of its `on_enter`."""

    http_status: ClassVar[int] = 503


class Unschedulable(GWorkerError):
    """The cluster has no node that could hold a worker; the message says what is missing."""

    http_status: ClassVar[int] = 503


class DeadlineExceeded(GWorkerError, TimeoutError):
    """A time limit passed: `limit` is "timeout_s" (one execution) or "deadline_s" (the whole call).

    `where` says where the call was at that moment: "queue", "worker queue" (held there, not begun), "running", "worker"
    where that did not say which, "between attempts" or "gateway". The message says where the time went, in seconds.
    """

    http_status: ClassVar[int] = 504

    def __init__(self, *args: object, limit: str = "", where: str = "") -> None:
        super().__init__(*args)
        self.limit = limit
        self.where = where


class CallCancelled(GWorkerError):
    """The call was cancelled, by `Call.cancel()` or because the app stopped."""

    http_status: ClassVar[int] = 499


class WorkerLost(GWorkerError):
    """The worker died while the call may have been running in it, and `retries` did not allow another try."""

    http_status: ClassVar[int] = 502
    retryable: ClassVar[bool] = True


class BatchResultError(GWorkerError):
    """A batched method returned something other than one result for each input."""


class RemoteError(GWorkerError):
    """A method raised something that cannot be raised here as it was: it cannot be pickled, or it would end the caller.

    `type_name`, `message` and `traceback` describe it; `mro` holds "module.qualname" of its class and their bases.
    """

    def __init__(self, type_name: str, message: str, traceback: str = "", mro: tuple[str, ...] = ()) -> None:
        super().__init__(type_name, message, traceback, tuple(mro))
        self.type_name = type_name
        self.message = message
        self.traceback = traceback
        self.mro = tuple(mro)

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


class AuthenticationError(GWorkerError):
    """No token, or the wrong one."""

    http_status: ClassVar[int] = 401


class Fatal(Exception):
    """Raise it in a method or a probe to say "replace this worker"; the caller receives it like any exception."""


def anew(error: E) -> E:
    """The same error as an object of its own, without a traceback, of the same cause.

    One that ends many calls is raised by each of their callers, and every `raise` lengthens the traceback of its
    object: each caller would see the frames of those before, and keep them alive.
    """
    another = copy.copy(error)
    another.__cause__, another.__context__ = error.__cause__, error.__context__
    another.__suppress_context__ = error.__suppress_context__
    if notes := getattr(error, "__notes__", None):
        another.__dict__["__notes__"] = list(notes)
    return another


class RemoteTraceback(Exception):
    """The traceback of the worker, as text: the `__cause__` of an exception that a method raised."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n--- in the worker ---\n{self.text.rstrip()}"
