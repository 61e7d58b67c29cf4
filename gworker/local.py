"""`.local(...)`: the user's class in this process, hooks included, without Ray.

There is one instance for each class and set of worker-scoped values. Synchronous code runs on the caller's thread,
asynchronous code on one loop of the instance's own, where its asynchronous hooks ran. `on_exit` runs at exit.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from typing import Any

from gworker import context
from gworker.context import CallContext
from gworker.functions import MethodSpec
from gworker.parameters import bind_instance, entering, make_view
from gworker.spec import ClassSpec
from gworker.worker.execution import check_batch_result
from gworker.worker.threads import UserLoop

log = logging.getLogger("gworker.local")
_numbers = itertools.count(1)

Bound = tuple[tuple[Any, ...], dict[str, Any]]


class LocalInstance:
    """One instance of a class in this process."""

    def __init__(self, spec: ClassSpec, worker_values: Mapping[str, Any]) -> None:
        self._spec = spec
        self._loop: UserLoop | None = None
        self._object = spec.user_cls()
        bind_instance(self._object, worker_values)
        for hook in spec.enter_hooks:
            bound = getattr(self._object, hook.name)
            if hook.is_async:
                self._user_loop.spawn(_entering(bound)).result()
            else:
                with entering():
                    bound()

    @property
    def _user_loop(self) -> UserLoop:
        if self._loop is None:
            self._loop = UserLoop()
        return self._loop

    def leave(self) -> None:
        """Run the on_exit hooks, each even if another raised."""
        for hook in self._spec.exit_hooks:
            try:
                bound = getattr(self._object, hook.name)
                if hook.is_async:
                    self._user_loop.spawn(bound()).result()
                else:
                    bound()
            except BaseException:
                log.exception("on_exit hook %s.%s raised", self._spec.name, hook.name)

    def call(self, method: MethodSpec, values: Mapping[str, Any], bound: Bound) -> Any:
        """Run a method: a result, an awaitable, or an iterator of either kind."""
        target = make_view(self._object, values) if self._spec.has_call_parameters else self._object
        function = getattr(target, method.name)
        call = CallContext(f"local-{next(_numbers)}", 1, None, method.name, dict(values))
        args, kwargs = bound
        if method.batch is not None:
            call = replace(call, inputs=(call,))
            kwargs = {name: [value] for name, value in kwargs.items()}
        if method.is_generator:
            items = self._items_async if method.is_async else _items
            return items(function, args, kwargs, call)
        if method.is_async:
            return self._await(function, args, kwargs, call, method)
        token = context.enter_call(call)
        try:
            return self._only(method, function(*args, **kwargs))
        finally:
            context.exit_call(token)

    async def _await(self, function: Any, args: Any, kwargs: Any, call: CallContext, method: MethodSpec) -> Any:
        async def run() -> Any:
            context.enter_call(call)
            return self._only(method, await function(*args, **kwargs))

        return await asyncio.wrap_future(self._user_loop.spawn(run()))

    def _only(self, method: MethodSpec, result: Any) -> Any:
        """The one element of a batch of one; an exception in its place is raised."""
        if method.batch is None:
            return result
        check_batch_result(f"{self._spec.name}.{method.name}", 1, result)
        value = result[0]
        if isinstance(value, BaseException):
            raise value
        return value

    async def _items_async(self, function: Any, args: Any, kwargs: Any, call: CallContext) -> AsyncIterator[Any]:
        generator = function(*args, **kwargs)

        async def step() -> Any:
            context.enter_call(call)
            try:
                return (await generator.__anext__(),)
            except StopAsyncIteration:
                return ()

        try:
            while item := await asyncio.wrap_future(self._user_loop.spawn(step())):
                yield item[0]
        finally:
            await asyncio.wrap_future(self._user_loop.spawn(generator.aclose()))


def _items(function: Any, args: Any, kwargs: Any, call: CallContext) -> Iterator[Any]:
    generator = function(*args, **kwargs)
    try:
        while True:
            token = context.enter_call(call)
            try:
                item = next(generator)
            except StopIteration:
                return
            finally:
                context.exit_call(token)
            yield item
    finally:
        generator.close()


async def _entering(hook: Any) -> None:
    with entering():
        await hook()


_lock = threading.Lock()
# One lock for each class and its values: an asynchronous hook of one class may use another, from its own thread.
_making: dict[Any, threading.RLock] = {}
_instances: dict[Any, LocalInstance] = {}


def local_instance(spec: ClassSpec, worker_key: str, worker_values: Mapping[str, Any]) -> LocalInstance:
    """The instance of a class and its worker-scoped values; made, and its hooks run, at first use."""
    key = (spec.user_cls, worker_key)
    with _lock:
        if not _making:
            atexit.register(_leave_all)
        making = _making.setdefault(key, threading.RLock())
    with making:
        if key not in _instances:
            _instances[key] = LocalInstance(spec, worker_values)
        return _instances[key]


def _leave_all() -> None:
    while _instances:
        _, last = _instances.popitem()
        last.leave()
