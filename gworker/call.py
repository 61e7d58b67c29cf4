"""The outcome of a call, as its caller holds it."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gworker import context
from gworker.router.calls import Problem, RoutedCall
from gworker.wire import Payload, unpack

if TYPE_CHECKING:
    from gworker.router.router import Router

R = TypeVar("R")
_UNSET: Any = object()


class Call(Generic[R]):
    """A call that is under way, as `.spawn(...)` returns it. Awaitable; its result can be asked for again and again."""

    def __init__(self) -> None:
        self._outcome: concurrent.futures.Future[Payload | Problem] = concurrent.futures.Future()
        self._outcome.set_running_or_notify_cancel()  # only its router ends it
        self._value: Any = _UNSET
        self._error: BaseException | None = None
        self._router: Router | None = None
        self._call: RoutedCall | None = None

    def _attach(self, router: Router, call: RoutedCall) -> None:
        self._router, self._call = router, call

    @property
    def id(self) -> str:
        """The id of the call, the same as `current_call().id` in the worker."""
        assert self._call is not None
        return self._call.id

    def get(self, timeout_s: float | None = None) -> R:
        """Wait for the result and return it, or raise what the call raised.

        Raises TimeoutError when there is none within `timeout_s` seconds; the call goes on.
        """
        if context.on_user_loop() and not self.done():
            assert self._call is not None
            raise RuntimeError(
                f"the result of {self._call.label} (call {self.id}) was waited for on the event loop of a worker and "
                "would block every asynchronous method of it: write `await call`, or `await gw.gather.aio(...)`"
            )
        if timeout_s is None:
            self._refuse_deadlock()
        else:
            concurrent.futures.wait([self._outcome], timeout_s)
        if timeout_s is not None and not self._outcome.done():
            assert self._call is not None
            raise TimeoutError(f"{self._call.label} (call {self.id}) has no result after {timeout_s:g} s")
        return self._unpacked(self._outcome.result())

    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self._outcome.done()

    def cancel(self) -> None:
        """Stop the call: drop it from the queue, or tell the worker. It then ends with CallCancelled."""
        assert self._router is not None and self._call is not None
        if not self.done():
            self._router.cancel(self._call)

    def __await__(self) -> Generator[Any, None, R]:
        self._refuse_deadlock()
        outcome = yield from asyncio.shield(asyncio.wrap_future(self._outcome)).__await__()
        return self._unpacked(outcome)

    def __repr__(self) -> str:
        if not self.done():
            state = "running"
        else:
            outcome = self._outcome.result()
            state = f"raised {outcome.type_name}" if isinstance(outcome, Problem) else "returned"
        label = "a call" if self._call is None else f"{self._call.label} {self.id}"
        return f"<gworker.Call {label}: {state}>"

    def _unpacked(self, outcome: Payload | Problem) -> R:
        if isinstance(outcome, Problem):
            if self._error is None:
                self._error = outcome.exception()
            raise self._error
        if self._value is _UNSET:
            self._value = unpack(outcome)
        value: R = self._value
        return value

    def _refuse_deadlock(self) -> None:
        """Raise where the wait could never end: the call needs the worker that waits for it."""
        if context.this_worker() is None or self._router is None or self.done():
            return
        why = context.why_for_ever(self._router._label, context.waiting_pools())
        if why is not None:
            assert self._call is not None
            raise RuntimeError(f"the result of {self._call.label} (call {self.id}) was waited for: {why}")

    def _when_done(self, callback: Callable[[], object]) -> None:
        self._outcome.add_done_callback(lambda _: callback())

    # The sink of its RoutedCall.

    def returned(self, result: Payload) -> None:
        """See Sink."""
        self._outcome.set_result(result)

    def raised(self, problem: Problem) -> None:
        """See Sink."""
        self._outcome.set_result(problem)

    def item(self, item: Payload) -> None:
        """See Sink; a plain call has no items."""

    def ended(self) -> None:
        """See Sink; a plain call ends by returning."""


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
