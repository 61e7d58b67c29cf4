"""The outcome of a call, as its caller holds it."""

from __future__ import annotations

import abc
import asyncio
import logging
import threading
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gworker import context
from gworker.context import WaitingPool
from gworker.mailbox import mailbox_of
from gworker.router.calls import NOBODY, Plan, Problem, RoutedCall
from gworker.wire import Packed, unpack

if TYPE_CHECKING:
    from gworker.router.router import Router

R = TypeVar("R")
_UNSET: Any = object()
log = logging.getLogger("gworker.router")


class Call(abc.ABC, Generic[R]):
    """A call that is under way, as `.spawn(...)` returns it. Awaitable; its result can be asked for again and again."""

    @property
    @abc.abstractmethod
    def id(self) -> str:
        """The id of the call, the same as `current_call().id` in the worker."""

    @abc.abstractmethod
    def get(self, timeout_s: float | None = None) -> R:
        """Wait for the result and return it, or raise what the call raised.

        Raises TimeoutError when there is none within `timeout_s` seconds; the call goes on.
        """

    @abc.abstractmethod
    def done(self) -> bool:
        """Whether there is a result or an error."""

    @abc.abstractmethod
    def cancel(self) -> None:
        """Stop the call: drop it from the queue, or tell the worker. It then ends with CallCancelled."""

    @abc.abstractmethod
    def __await__(self) -> Generator[Any, None, R]:
        """Wait for the result as `get` does, in a task."""

    @abc.abstractmethod
    def _when_done(self, callback: Callable[[], object]) -> None:
        """Have `callback()` called once there is an outcome: here if there is one, else by the router's loop."""


class SpawnedCall(RoutedCall, Call[R]):
    """A call that its caller holds: told of its outcome, it keeps it.

    Lighter than a future: nothing is locked, and what those need that wait is made when they come. One object rather
    than two: a collection of garbage in a caller's process looks at all that ten thousand calls are made of.
    """

    _waiting: Sequence[Callable[[], object]] = ()

    def __init__(
        self,
        router: Router,
        plan: Plan,
        arguments: Packed,
        deadline: float | None = None,
        waiting: tuple[WaitingPool, ...] = (),
    ) -> None:
        super().__init__(plan, arguments, NOBODY, deadline, 0, waiting)
        self._router = router
        self._outcome: Packed | Problem = _UNSET
        self._value: Any = _UNSET

    def get(self, timeout_s: float | None = None) -> R:
        """See Call."""
        if self._outcome is _UNSET:
            self._wait(timeout_s)
        return self._unpacked()

    def done(self) -> bool:
        """See Call."""
        return self._outcome is not _UNSET

    def cancel(self) -> None:
        """See Call."""
        if not self.done():
            self._router.cancel(self)

    def __await__(self) -> Generator[Any, None, R]:
        self._refuse_deadlock()
        yield from self._settled().__await__()
        return self._unpacked()

    def __repr__(self) -> str:
        if not self.done():
            state = "running"
        else:
            outcome = self._outcome
            state = f"raised {outcome.type_name}" if isinstance(outcome, Problem) else "returned"
        return f"<gworker.Call {self.label} {self.id}: {state}>"

    def __dir__(self) -> list[str]:
        return dir(Call)  # what the router keeps here is no business of who completes names

    def _unpacked(self) -> R:
        outcome = self._outcome
        if isinstance(outcome, Problem):
            raise outcome.exception()
        if self._value is _UNSET:
            self._value = unpack(outcome)
        value: R = self._value
        return value

    def _refuse_deadlock(self) -> None:
        """Raise where the wait could never end: the call needs the worker that waits for it."""
        if context.this_worker() is None or self.done():
            return
        why = context.why_for_ever(self._router._label, context.waiting_pools())
        if why is not None:
            raise RuntimeError(f"the result of {self.label} (call {self.id}) was waited for: {why}")

    def _when_done(self, callback: Callable[[], object]) -> None:
        waiting: list[Callable[[], object]] = vars(self).setdefault("_waiting", [])  # the same for all threads
        waiting.append(callback)
        if self._outcome is not _UNSET and self._forget(callback):  # it had come before the callback could be seen
            callback()

    def _forget(self, callback: Callable[[], object]) -> bool:
        """Have it not called any more; False if it was called already, or is about to be."""
        try:
            vars(self)["_waiting"].remove(callback)
        except ValueError:
            return False
        return True

    async def _settled(self) -> None:
        """Wait for the outcome, whatever it is."""
        if self._outcome is _UNSET:
            loop = asyncio.get_running_loop()
            settled: asyncio.Future[None] = loop.create_future()
            mailbox = mailbox_of(loop)

            def tell() -> None:
                mailbox.post(_settle, settled)

            self._when_done(tell)
            try:
                await settled
            except BaseException:  # whoever awaits and gives up again and again leaves nothing behind
                self._forget(tell)
                raise

    def _wait(self, timeout_s: float | None) -> None:
        if context.on_user_loop():
            raise RuntimeError(
                f"the result of {self.label} (call {self.id}) was waited for on the event loop of a worker and "
                "would block every asynchronous method of it: write `await call`, or `await gw.gather.aio(...)`"
            )
        if timeout_s is None:
            self._refuse_deadlock()
        lock = threading.Lock()
        lock.acquire()
        tell = lock.release
        self._when_done(tell)
        told = False
        try:
            told = lock.acquire(timeout=-1 if timeout_s is None else min(max(0.0, timeout_s), threading.TIMEOUT_MAX))
        finally:
            if not told:  # whoever asks again and again leaves nothing behind
                self._forget(tell)
        if not told and self._outcome is _UNSET:
            raise TimeoutError(f"{self.label} (call {self.id}) has no result after {timeout_s:g} s")

    def _settle(self, outcome: Packed | Problem) -> None:
        self._outcome = outcome
        waiting = self._waiting
        while isinstance(waiting, list) and waiting:
            try:
                callback = waiting.pop(0)
            except IndexError:  # who waited for it has just given up
                return
            try:
                callback()
            except Exception:  # the event loop of one may be closed; that must not cost another its outcome
                log.warning("whoever waited for %r is gone", self, exc_info=True)

    def returned(self, result: Packed) -> None:
        """See Sink."""
        self._settle(result)

    def raised(self, problem: Problem) -> None:
        """See Sink."""
        self._settle(problem)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Gather:
    """`gather`, with `.aio` beside it."""

    def __call__(self, *calls: Call[Any]) -> list[Any]:
        """Wait for all calls and return their results in the order given.

        Raises the first error met in that order; the other calls go on.

        >>> import gworker as gw
        >>> gw.gather()
        []
        """
        return [call.get() for call in calls]

    async def aio(self, *calls: Call[Any]) -> list[Any]:
        """The same for `await`."""
        return [await call for call in calls]


gather = _Gather()
