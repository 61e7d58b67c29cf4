"""What running user code may ask: which call is this, which attempt, how much time is left, was it cancelled.

Also what the process itself knows: whether it is a worker, and which loop is the user's.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from gworker import clock


class WaitingPool(NamedTuple):
    """A pool one of whose workers waits for a call. `alone`: the pool has no other, and it takes no other call in."""

    name: str
    alone: bool


class Flag:
    """Up or not. Lighter than an event: nobody waits for it."""

    __slots__ = ("_up",)

    def __init__(self) -> None:
        self._up = False

    def set(self) -> None:
        """Put it up, for good."""
        self._up = True

    def is_set(self) -> bool:
        """Whether it is up."""
        return self._up


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
    _cancelled: Flag = field(default_factory=Flag, repr=False, compare=False)
    _waiting: tuple[WaitingPool, ...] = field(default=(), repr=False, compare=False)

    @property
    def cancelled(self) -> bool:
        """True once nobody waits for the result: a long synchronous method should look and return early."""
        return self._cancelled.is_set()

    @property
    def deadline_left_s(self) -> float | None:
        """Seconds until the caller gives up, 0.0 when it has; None without a deadline."""
        return clock.left_until(self.deadline)


class HasContext(Protocol):
    """What runs, and can say what `current_call()` shows of it: made when it is asked for, which is seldom."""

    @property
    def context(self) -> CallContext:
        """The call."""
        ...


class _Running(NamedTuple):
    """A call, and the task that runs it: tasks which the method makes inherit the context, and may outlive the call."""

    source: CallContext | HasContext
    task: weakref.ref[asyncio.Task[Any]] | None

    @property
    def call(self) -> CallContext:
        """What `current_call()` shows."""
        return self.source if isinstance(self.source, CallContext) else self.source.context


_new = tuple.__new__  # a call of Python's less
_CALL: contextvars.ContextVar[_Running | None] = contextvars.ContextVar("gworker_call", default=None)


def current_call() -> CallContext:
    """The call that is running on this thread or task.

    Raises RuntimeError outside a call. Threads that a method starts do not inherit it: pass the object on.
    """
    call = current_call_or_none()
    if call is None:
        raise RuntimeError(
            "gworker.current_call() was used outside a call: it works inside a method marked with @gw.method() "
            "while that method runs; a thread the method starts must be handed the object"
        )
    return call


def current_call_or_none() -> CallContext | None:
    """The running call, or None outside one."""
    running = _CALL.get()
    return None if running is None else running.call


def current_attempt_number() -> int:
    """Which try of the call this is, starting at 1. Raises RuntimeError outside a call."""
    return current_call().attempt


def enter_call(source: CallContext | HasContext) -> contextvars.Token[_Running | None]:
    """Make this call the current one in this context."""
    task = _current_task()
    return _CALL.set(_new(_Running, (source, None if task is None else weakref.ref(task))))


def exit_call(token: contextvars.Token[_Running | None]) -> None:
    """Undo `enter_call`."""
    _CALL.reset(token)


@dataclass
class WorkerProcess:
    """What a worker process knows of itself: its app, its pool, how to reach the controller, the user's loop.

    `defined_as` is the name that the code gives the app, which may be deployed under another one. `worker_id` is what
    the controller calls this worker.
    """

    app_name: str
    pool: Any
    controller: Any
    serves_one_call_at_a_time: bool
    max_workers: int
    user_loop: asyncio.AbstractEventLoop | None = None
    deployed: bool = False
    defined_as: str = ""
    worker_id: str = ""

    @property
    def as_waiting(self) -> WaitingPool:
        """Its pool while this worker waits for a call."""
        return WaitingPool(f"{self.app_name}/{self.pool}", self.max_workers == 1 and self.serves_one_call_at_a_time)


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


def _current_task() -> asyncio.Task[Any] | None:
    loop = asyncio._get_running_loop()
    return None if loop is None else asyncio.current_task(loop)


# --- calls that wait for each other ------------------------------------------------------------------------------


def waiting_pools() -> tuple[WaitingPool, ...]:
    """The pools that wait, outermost first, while the running call waits for something.

    Empty outside a call, in tasks and threads that a call has made, because it may not wait for them, and in a call
    that nobody waits for any more.
    """
    running = _CALL.get()
    if _worker is None or running is None or running.call.cancelled:
        return ()
    if (None if running.task is None else running.task()) is not _current_task():
        return ()
    return tuple(dict.fromkeys((*running.call._waiting, _worker.as_waiting)))


def why_for_ever(pool: str, waiting: Sequence[WaitingPool]) -> str | None:
    """Why `pool` could not serve a call for which all of `waiting` would wait; None where it could."""
    if WaitingPool(pool, alone=True) not in waiting:
        return None
    names = [each.name for each in waiting]
    cycle = [*names[names.index(pool) :], pool]
    if len(cycle) == 2:
        return (
            f"the only worker of {pool} (max_workers=1) is busy with the caller: it would wait for itself. Call the "
            "method on self, raise max_workers, or add @gw.concurrent(max_inputs=...) to the class"
        )
    return (
        f"the only worker of {pool} (max_workers=1) is busy with a call that waits for this one "
        f"({' -> '.join(cycle)}): it would wait for itself. Raise max_workers, add @gw.concurrent(max_inputs=...) to "
        "the class, or .spawn the call and do not wait for it"
    )
