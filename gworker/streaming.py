"""The consumer's side of generator methods: items as they come, with room granted as they are consumed."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from gworker.router.calls import Problem, RoutedCall
from gworker.wire import Packed, unpack

if TYPE_CHECKING:
    from gworker.router.router import Router

# Items a generator may be ahead of its consumer.
WINDOW = 16
_GRANT = WINDOW // 2
_END = object()

# Sends the call with a sink; made by the bound method.
Submit = Callable[[Any], "tuple[Router, RoutedCall]"]


class _ItemSink:
    """Hands what comes to `put`, from the router's loop."""

    def __init__(self, put: Callable[[Any], object]) -> None:
        self._put = put

    def returned(self, result: Packed) -> None:
        """See Sink; a stream ends by `ended`."""

    def raised(self, problem: Problem) -> None:
        self._put(problem)

    def item(self, item: Packed) -> None:
        self._put(item)

    def ended(self) -> None:
        self._put(_END)


def iterate(submit: Submit) -> Iterator[Any]:
    """The items of a stream. The call is sent at the first `next`; closing the iterator stops the generator."""
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
    router, call = submit(_ItemSink(arrived.put))
    consumed = 0
    try:
        while (entry := arrived.get()) is not _END:
            if isinstance(entry, Problem):
                raise entry.exception()
            consumed += 1
            if consumed % _GRANT == 0:
                router.grant(call, _GRANT)
            yield unpack(entry)
    finally:
        if not call.over:
            router.cancel(call)


async def iterate_async(submit: Submit) -> AsyncIterator[Any]:
    """The same on an event loop."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    router, call = submit(_ItemSink(lambda entry: loop.call_soon_threadsafe(arrived.put_nowait, entry)))
    consumed = 0
    try:
        while (entry := await arrived.get()) is not _END:
            if isinstance(entry, Problem):
                raise entry.exception()
            consumed += 1
            if consumed % _GRANT == 0:
                router.grant(call, _GRANT)
            yield unpack(entry)
    finally:
        if not call.over:
            router.cancel(call)
