"""One instance of a user's class: made, entered, handed to calls, left.

1. `create` makes the instance without arguments and binds its worker-scoped parameters.
2. `enter` runs the `on_enter` hooks, base class first, then in order of definition, then makes and starts the ASGI
   application of an `@gw.asgi_app()` function.
3. `target` is what a call's method runs on: the instance, or a view with the call's own parameter values.
4. `leave` stops that application and runs the `on_exit` hooks in the exact reverse order, each even if another raised.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import logging
from collections.abc import Mapping
from typing import Any

from gworker import clock
from gworker.functions import HookSpec
from gworker.parameters import bind_instance, entering, make_view
from gworker.spec import ClassSpec
from gworker.worker.asgi import AsgiHost
from gworker.worker.threads import UserThreads

log = logging.getLogger("gworker.worker")

# What all on_exit hooks of one instance may take together.
EXIT_BUDGET_S = 10.0


class Instance:
    """The user's object and its lifecycle; hooks run on `threads`."""

    def __init__(self, spec: ClassSpec, worker_values: Mapping[str, Any], threads: UserThreads) -> None:
        self.spec = spec
        self.threads = threads
        self._worker_values = dict(worker_values)
        self._object: Any = None
        self._entered = False
        self._asgi: AsgiHost | None = None

    async def enter(self) -> None:
        """Make the instance and run its on_enter hooks. Raises what they raise; then no on_exit hook will run."""
        await asyncio.wrap_future(self.threads.on_main(self._create))
        for hook in self.spec.enter_hooks:
            if hook.is_async:
                await asyncio.wrap_future(self.threads.user_loop.spawn(self._enter_async(hook)))
            else:
                await asyncio.wrap_future(self.threads.on_main(self._enter_sync, hook))
        for method in self.spec.methods.values():
            if method.asgi:
                await self._start_asgi(method.name)
        self._entered = True

    async def leave(self, budget_s: float = EXIT_BUDGET_S) -> list[str]:
        """Run the on_exit hooks within `budget_s` seconds in all; returns what went wrong, a line each."""
        if not self._entered:
            return []
        self._entered = False
        end = clock.now() + budget_s
        problems: list[str] = []
        if self._asgi is not None:
            stop = self.threads.user_loop.spawn(self._asgi.stop())
            problems += await self._finish("the ASGI application", stop, end, budget_s)
        for hook in self.spec.exit_hooks:
            run: concurrent.futures.Future[Any]
            if hook.is_async:
                run = self.threads.user_loop.spawn(getattr(self._object, hook.name)())
            else:
                run = self.threads.on_main(getattr(self._object, hook.name))
            problems += await self._finish(f"on_exit hook {hook.name}", run, end, budget_s)
        return problems

    async def _finish(self, what: str, run: concurrent.futures.Future[Any], end: float, budget_s: float) -> list[str]:
        try:
            await asyncio.wait_for(asyncio.wrap_future(run), max(0.0, end - clock.now()))
        except asyncio.TimeoutError:
            return [f"{what} did not finish: the hooks have {budget_s:g} s in all"]
        except BaseException as error:
            log.exception("%s: %s raised", self.spec.name, what)
            return [f"{what} raised {type(error).__name__}: {error}"]
        return []

    def target(self, values: Mapping[str, Any] | None) -> Any:
        """What a method runs on: a view with `values` for the call-scoped parameters, or the instance itself."""
        if values and self.spec.has_call_parameters:
            return make_view(self._object, values)
        return self._object

    @property
    def asgi(self) -> AsgiHost:
        """The ASGI application of a class that has one."""
        assert self._asgi is not None
        return self._asgi

    async def _start_asgi(self, name: str) -> None:
        user_loop = self.threads.user_loop
        app = await asyncio.wrap_future(self.threads.on_main(getattr(self._object, name)))
        if inspect.iscoroutine(app):
            app = await asyncio.wrap_future(user_loop.spawn(app))
        if not callable(app):
            raise TypeError(
                f"{self.spec.name}.{name} is under @gw.asgi_app() and returned {type(app).__qualname__}; expected an "
                "ASGI application, such as a FastAPI or Starlette object"
            )
        self._asgi = AsgiHost(app)
        await asyncio.wrap_future(user_loop.spawn(self._asgi.start()))

    def _create(self) -> None:
        self._object = self.spec.user_cls()
        bind_instance(self._object, self._worker_values)

    def _enter_sync(self, hook: HookSpec) -> None:
        with entering():
            getattr(self._object, hook.name)()

    async def _enter_async(self, hook: HookSpec) -> None:
        with entering():
            await getattr(self._object, hook.name)()
