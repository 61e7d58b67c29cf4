"""An ASGI application of the user's, running in a worker: its lifespan, and requests that come as calls.

All of it runs on the user loop. A request is a call of a hidden generator method: `handle` yields what the application
sends, so a response streams with the backpressure of any stream, and is cancelled with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, MutableMapping
from typing import Any

_END: Any = object()
_ASGI = {"version": "3.0", "spec_version": "2.3"}


class AsgiHost:
    """Runs one application. `start` and `stop` are its lifespan; an application without one is as good."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._state: dict[str, Any] = {}
        self._asked: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self._said: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self._life: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Run the application's start-up. Raises RuntimeError when it says that it failed."""
        self._life = asyncio.create_task(self._live())
        await self._ask("startup")

    async def stop(self) -> None:
        """Run its shutdown. Raises RuntimeError when it says that it failed."""
        if self._life is not None and not self._life.done():
            await self._ask("shutdown")
            self._life.cancel()

    async def handle(self, scope: MutableMapping[str, Any], body: bytes) -> AsyncIterator[Any]:
        """The messages of the response to one request."""
        messages: asyncio.Queue[Any] = asyncio.Queue(1)
        bodies = [body]

        async def receive() -> Mapping[str, Any]:
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            await asyncio.get_running_loop().create_future()  # a client that goes away cancels the task
            raise AssertionError

        async def run() -> None:
            try:
                await self._app({**scope, "asgi": _ASGI, "state": dict(self._state)}, receive, messages.put)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                await messages.put(error)
            else:
                await messages.put(_END)

        task = asyncio.create_task(run())
        try:
            while (message := await messages.get()) is not _END:
                if isinstance(message, BaseException):
                    raise message
                yield message
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _live(self) -> None:
        scope = {"type": "lifespan", "asgi": _ASGI, "state": self._state}
        try:
            await self._app(scope, self._asked.get, self._said.put)
        except Exception as error:
            # Applications without a lifespan raise at the first word of it.
            await self._said.put({"type": "lifespan.unsupported", "message": repr(error)})
        else:
            await self._said.put({"type": "lifespan.unsupported"})

    async def _ask(self, what: str) -> None:
        await self._asked.put({"type": f"lifespan.{what}"})
        answer = await self._said.get()
        if answer["type"] == f"lifespan.{what}.failed":
            raise RuntimeError(f"the {what} of the ASGI application failed: {answer.get('message', '')}")
