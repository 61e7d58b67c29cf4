"""What running user code may ask: which call is this, which attempt, how much time is left, was it cancelled.

Also what the process itself knows: whether it is a worker, and which loop is the user's.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gworker import clock


@dataclass(frozen=True)
class CallContext:
    """The call that runs now. In a batched method it is the batch's, with one context for each input in `inputs`.

    `deadline` is an instant of `time.monotonic()` in this process, the latest of a batch's; None without one.
    """

    id: str
    attempt: int
    deadline: float | None
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[CallContext] = ()
    _cancelled: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    @property
    def cancelled(self) -> bool:
        """True once nobody waits for the result: a long synchronous method should look and return early."""
        return self._cancelled.is_set()

    @property
    def deadline_left_s(self) -> float | None:
        """Seconds until the caller gives up, 0.0 when it has; None without a deadline."""
        return clock.left_until(self.deadline)


_CALL: contextvars.ContextVar[CallContext | None] = contextvars.ContextVar("gworker_call", default=None)


def current_call() -> CallContext:
    """The call that is running on this thread or task.

    Raises RuntimeError outside a call. Threads that a method starts do not inherit it: pass the object on.
    """
    call = _CALL.get()
    if call is None:
        raise RuntimeError(
            "gworker.current_call() was used outside a call: it works inside a method marked with @gw.method() "
            "while that method runs; a thread the method starts must be handed the object"
        )
    return call


def current_call_or_none() -> CallContext | None:
    """The running call, or None outside one."""
    return _CALL.get()


def current_attempt_number() -> int:
    """Which try of the call this is, starting at 1. Raises RuntimeError outside a call."""
    return current_call().attempt


def enter_call(call: CallContext) -> contextvars.Token[CallContext | None]:
    """Make `call` the current one in this context."""
    return _CALL.set(call)


def exit_call(token: contextvars.Token[CallContext | None]) -> None:
    """Undo `enter_call`."""
    _CALL.reset(token)


@dataclass
class WorkerProcess:
    """What a worker process knows of itself: its app, its pool, how to reach the controller, the user's loop.

    `defined_as` is the name that the code gives the app, which may be deployed under another one.
    """

    app_name: str
    pool: Any
    controller: Any
    serves_one_call_at_a_time: bool
    max_workers: int
    user_loop: asyncio.AbstractEventLoop | None = None
    deployed: bool = False
    defined_as: str = ""


_worker: WorkerProcess | None = None


def this_worker() -> WorkerProcess | None:
    """The worker this process is, or None in a driver."""
    return _worker


def become_worker(worker: WorkerProcess) -> None:
    """Declare this process a worker; called once, by the actor."""
    global _worker
    _worker = worker


def on_user_loop() -> bool:
    """True on the event loop that a worker shares between its asynchronous methods."""
    if _worker is None or _worker.user_loop is None:
        return False
    try:
        return asyncio.get_running_loop() is _worker.user_loop
    except RuntimeError:
        return False
