"""A method of a handle, and the ways to call it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar

from gworker import clock, context, streaming
from gworker.awaiting import Awaited
from gworker.call import Call, SpawnedCall
from gworker.context import WaitingPool
from gworker.functions import MethodSpec
from gworker.local import local_instance
from gworker.mapping import MapRun, zipped
from gworker.observe.progress import ProgressBar, Ticker
from gworker.retries import Retries
from gworker.router.calls import Plan, RoutedCall
from gworker.wire import Packed, pack, pack_arguments, unpack

if TYPE_CHECKING:
    from gworker.handle import Cls, Handle
    from gworker.router.router import Router
    from gworker.spec import ClassSpec

P = ParamSpec("P")
R = TypeVar("R")

# The most calls that one .map keeps under way, and the least where a pool is small.
_LARGEST_WINDOW = 1000
_SMALLEST_WINDOW = 64


@dataclass(frozen=True)
class CallOptions:
    """What `.with_options` on a method sets; None leaves the class's own."""

    deadline_s: float | None = None
    timeout_s: float | None = None
    retries: Retries | None = None

    def changed(self, deadline_s: float | None, timeout_s: float | None, retries: int | Retries | None) -> CallOptions:
        """These options with those that are given replaced. Raises ValueError for a limit that is no duration."""
        return replace(
            self,
            deadline_s=self.deadline_s if deadline_s is None else _seconds("deadline_s", deadline_s),
            timeout_s=self.timeout_s if timeout_s is None else _seconds("timeout_s", timeout_s),
            retries=self.retries if retries is None else Retries.of(retries),
        )


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0 or math.isinf(value):
        raise ValueError(
            f"{name}={value!r} was given; expected a positive number of seconds: write for example {name}=30"
        )
    return float(value)


class _Bound:
    """What bound methods and bound generators share: how a call is made."""

    def __init__(self, handle: Handle, spec: MethodSpec, options: CallOptions) -> None:
        self._handle = handle
        self._spec = spec
        self._options = options
        self._ready: tuple[ClassSpec, Router, Plan] | None = None

    @property
    def _label(self) -> str:
        return f"{self._handle._cls.name}.{self._spec.name}"

    def __repr__(self) -> str:
        return f"<gworker method {self._handle!r}.{self._spec.name}{self._spec.signature}>"

    def _send(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        sink: Any,
        *,
        credit: int = 0,
        waiting: tuple[WaitingPool, ...] = (),
    ) -> tuple[Router, RoutedCall]:
        router, plan, arguments, deadline = self._planned(args, kwargs)
        call = RoutedCall(plan, arguments, sink, deadline, credit, waiting)
        router.submit(call)
        return router, call

    def _new_call(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], waiting: tuple[WaitingPool, ...]
    ) -> tuple[Router, SpawnedCall[Any]]:
        """A call that is ready to be submitted, and the router for it."""
        router, plan, arguments, deadline = self._planned(args, kwargs)
        return router, SpawnedCall(router, plan, arguments, deadline, waiting)

    def _planned(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Router, Plan, Packed, float | None]:
        """What a call is made of, and the router for it; the last is its deadline."""
        cls = self._handle._cls
        arguments = self._pack(*self._spec.bind(cls.name, args, kwargs))  # a bad call fails here, and starts nothing
        router, plan = self._prepared(cls)
        outer = context.current_call_or_none()
        deadline = self._options.deadline_s
        if deadline is not None or outer is not None:
            deadline = clock.earliest(clock.deadline_after(deadline), None if outer is None else outer.deadline)
        return router, plan, arguments, deadline

    def _prepared(self, cls: Cls) -> tuple[Router, Plan]:
        """The router to the pool of the class as it is now, and what all calls of this method have in common."""
        handle = self._handle
        router = handle._router_of(cls)
        spec = cls.spec
        prepared = self._ready
        if prepared is None or prepared[0] is not spec or prepared[1] is not router:
            options = spec.options
            plan = Plan(
                label=self._label,
                method=self._spec.name,
                parameters=handle._packed_parameters,
                parameters_key=handle._values.call_key,
                timeout_s=self._options.timeout_s or options.timeout_s,
                retries=self._options.retries or options.retries,
            )
            prepared = self._ready = (spec, router, plan)
        return prepared[1], prepared[2]

    def _pack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Packed:
        try:
            return pack_arguments(args, kwargs)
        except Exception as error:
            names = list(self._spec.signature.parameters)
            for name, value in (*zip(names, args, strict=False), *kwargs.items()):
                try:
                    pack(value)
                except Exception as culprit:
                    raise TypeError(
                        f"{self._label}: argument {name!r} of type {type(value).__qualname__} cannot be pickled: "
                        f"{type(culprit).__name__}: {culprit}. Pass plain data, arrays or tensors, and open files, "
                        "locks and connections in the worker."
                    ) from culprit
            raise TypeError(f"{self._label}: the arguments cannot be pickled together: {error}") from error

    def _run_locally(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        handle = self._handle
        cls = handle._cls
        if self._spec.asgi:
            raise TypeError(f"{self._label} makes an ASGI application, which runs in workers, behind the gateway only")
        bound = self._spec.bind(cls.name, args, kwargs)
        instance = local_instance(cls.spec, handle._values.worker_key, handle._values.worker)
        return instance.call(self._spec, handle._values.call, bound)

    def _refuse_deadlock(self, way: str, *, blocks: bool) -> tuple[WaitingPool, ...]:
        """The pools that will wait for a call made this way.

        Raises where the wait could never end: on a worker's user loop, or where the only worker of the pool waits, too.
        """
        worker = context.this_worker()
        if worker is None:
            return ()
        if blocks and context.on_user_loop():
            awaiting = "await" if way in ("remote", "for_each") else "async for ... in"
            raise RuntimeError(
                f"{self._label}.{way}(...) was called on the event loop of a worker and would block every asynchronous "
                f"method of it: write `{awaiting} {self._label}.{way}.aio(...)`"
            )
        if context.current_call_or_none() is None:
            return ()
        app = self._handle._cls.app.name
        waiting = context.waiting_pools()
        # A task that the method made, and may wait for or not, is refused the direct case only.
        why = context.why_for_ever(f"{app}/{self._handle._key}", waiting or (worker.as_waiting,))
        if why is not None:
            raise RuntimeError(f"{self._label}.{way}(...) was called from inside {worker.pool}: {why}")
        # Another app that a worker calls is one of its own, whatever its name.
        return waiting if app == worker.app_name else ()

    def _refuse_direct_call(self, way: str) -> NoReturn:
        raise TypeError(
            f"{self._label}(...) was called directly on a handle: write {self._label}.{way}(...) to run it in a "
            f"worker, or {self._label}.local(...) to run it in this process"
        )


class _Way(Generic[P, R]):
    """One way to call a method; calling it blocks, `.aio` is for `await`."""

    def __init__(self, bound: BoundMethod[P, R]) -> None:
        self._bound = bound


class Remote(_Way[P, R]):
    """`.remote(...)` and `.remote.aio(...)`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the method in a worker; wait for the result and return it, or raise what the method raised."""
        waiting = self._bound._refuse_deadlock("remote", blocks=True)
        call: SpawnedCall[R]
        router, call = self._bound._new_call(args, kwargs, waiting)
        way = router.express.take(call)
        if way is None:
            router.submit(call)
        elif (result := way.run(call)) is not None:
            value: R = unpack(result)
            return value
        try:
            return call.get()
        except BaseException:
            call.cancel()
            raise

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The same for `await`. Cancelling the task that awaits it cancels the call."""
        waiting = self._bound._refuse_deadlock("remote", blocks=False)
        sink = Awaited()
        router, call = self._bound._send(args, kwargs, sink, waiting=waiting)
        try:
            result: R = await sink.result()
            return result
        except BaseException:
            if not call.over:
                router.cancel(call)
            raise


class _ManyCalls(_Way[P, R]):
    """What `.map`, `.starmap` and `.for_each` share."""

    def _run(self, way: str, inputs: Any, *, blocks: bool, ordered: bool, return_exceptions: bool) -> MapRun:
        bound = self._bound
        waiting = bound._refuse_deadlock(way, blocks=blocks)
        spec = bound._handle._cls.spec
        most = min(_LARGEST_WINDOW, spec.options.max_pending)
        window = max(1, min(most, max(_SMALLEST_WINDOW, 2 * spec.max_inputs * spec.options.max_workers)))
        when_space = bound._handle._router().when_space
        return MapRun(
            inputs, lambda args: bound._spawn(args, {}, waiting), when_space, window, ordered, return_exceptions
        )

    def _ticker(self, inputs: Any, progress: bool) -> Ticker:
        if not progress:
            return Ticker()
        return ProgressBar(self._bound._label, inputs, self._bound._handle._router().waiting_for)


class Map(_ManyCalls[P, R]):
    """`.map(...)` and `.map.aio(...)`."""

    def __call__(
        self,
        inputs: Iterable[Any],
        *more_inputs: Iterable[Any],
        ordered: bool = True,
        return_exceptions: bool = False,
        progress: bool = False,
    ) -> Iterator[R]:
        """One call for each input, many at a time; yields the results in the order of the inputs.

        With several iterables each call gets one input of each. `ordered=False` yields results as they come.
        The first error is raised where its result would have been and cancels the rest; with `return_exceptions=True`
        errors are yielded instead. Inputs are taken lazily, so an endless iterator is fine; what it raises is raised
        here. `progress=True` shows a bar on standard error.
        """
        run = self._run(
            "map", zipped(inputs, more_inputs), blocks=True, ordered=ordered, return_exceptions=return_exceptions
        )
        return run.results(self._ticker(inputs, progress))

    def aio(
        self,
        inputs: Any,
        *more_inputs: Iterable[Any],
        ordered: bool = True,
        return_exceptions: bool = False,
        progress: bool = False,
    ) -> AsyncIterator[R]:
        """The same for `async for`; `inputs` may be an asynchronous iterable."""
        run = self._run(
            "map", zipped(inputs, more_inputs), blocks=False, ordered=ordered, return_exceptions=return_exceptions
        )
        return run.results_async(self._ticker(inputs, progress))


class Starmap(_ManyCalls[P, R]):
    """`.starmap(...)` and `.starmap.aio(...)`."""

    def __call__(
        self,
        inputs: Iterable[Iterable[Any]],
        *,
        ordered: bool = True,
        return_exceptions: bool = False,
        progress: bool = False,
    ) -> Iterator[R]:
        """Like `.map`, with the arguments of each call as one tuple."""
        tuples = (tuple(arguments) for arguments in inputs)
        run = self._run("starmap", tuples, blocks=True, ordered=ordered, return_exceptions=return_exceptions)
        return run.results(self._ticker(inputs, progress))

    def aio(
        self,
        inputs: Iterable[Iterable[Any]],
        *,
        ordered: bool = True,
        return_exceptions: bool = False,
        progress: bool = False,
    ) -> AsyncIterator[R]:
        """The same for `async for`."""
        tuples = (tuple(arguments) for arguments in inputs)
        run = self._run("starmap", tuples, blocks=False, ordered=ordered, return_exceptions=return_exceptions)
        return run.results_async(self._ticker(inputs, progress))


class ForEach(_ManyCalls[P, R]):
    """`.for_each(...)` and `.for_each.aio(...)`."""

    def __call__(
        self,
        inputs: Iterable[Any],
        *more_inputs: Iterable[Any],
        return_exceptions: bool = False,
        progress: bool = False,
    ) -> None:
        """Like `.map` for methods whose results do not matter; returns when all calls have ended.

        The first error is raised and cancels the rest; with `return_exceptions=True` errors are passed over.
        """
        run = self._run(
            "for_each", zipped(inputs, more_inputs), blocks=True, ordered=False, return_exceptions=return_exceptions
        )
        for _ in run.results(self._ticker(inputs, progress)):
            pass

    async def aio(
        self, inputs: Any, *more_inputs: Iterable[Any], return_exceptions: bool = False, progress: bool = False
    ) -> None:
        """The same for `await`."""
        run = self._run(
            "for_each", zipped(inputs, more_inputs), blocks=False, ordered=False, return_exceptions=return_exceptions
        )
        async for _ in run.results_async(self._ticker(inputs, progress)):
            pass


class BoundMethod(_Bound, Generic[P, R]):
    """A method of a handle: `Embedder().embed`."""

    @property
    def remote(self) -> Remote[P, R]:
        """Call it and wait: `.remote(...)`, or `await .remote.aio(...)`."""
        return Remote(self)

    def spawn(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Call it and go on: returns a `Call` at once. Raises QueueFull when too many calls wait already."""
        return self._spawn(args, kwargs)

    @property
    def map(self) -> Map[P, R]:
        """Call it for each of many inputs."""
        return Map(self)

    @property
    def starmap(self) -> Starmap[P, R]:
        """Call it for each of many tuples of arguments."""
        return Starmap(self)

    @property
    def for_each(self) -> ForEach[P, R]:
        """Call it for each of many inputs and forget the results."""
        return ForEach(self)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the method in this process, hooks included, without Ray.

        An asynchronous method gives an awaitable; a batched one takes one input and runs a batch of one.
        """
        result: R = self._run_locally(args, kwargs)
        return result

    def with_options(
        self, *, deadline_s: float | None = None, timeout_s: float | None = None, retries: int | Retries | None = None
    ) -> BoundMethod[P, R]:
        """The same method with other limits: `deadline_s` for the whole call, `timeout_s` for one execution."""
        return BoundMethod(self._handle, self._spec, self._options.changed(deadline_s, timeout_s, retries))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Refuse: a method is not called directly on a handle."""
        self._refuse_direct_call("remote")

    def _spawn(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], waiting: tuple[WaitingPool, ...] = ()
    ) -> Call[R]:
        router, call = self._new_call(args, kwargs, waiting)
        router.submit(call)
        return call

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in ("stream", "remote_gen"):
                raise TypeError(f"{self._label} is not a generator: write {self._label}.remote(...), not .{name}(...)")
            raise AttributeError(name)


class Stream(Generic[P, R]):
    """`.stream(...)` and `.stream.aio(...)`."""

    def __init__(self, bound: BoundGenerator[P, R]) -> None:
        self._bound = bound

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        """The items as they come. The call is sent at the first `next`; closing the iterator stops the generator."""
        waiting = self._bound._refuse_deadlock("stream", blocks=True)
        return streaming.iterate(self._bound._submitter(args, kwargs, waiting))

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        """The same for `async for`."""
        waiting = self._bound._refuse_deadlock("stream", blocks=False)
        return streaming.iterate_async(self._bound._submitter(args, kwargs, waiting))


class BoundGenerator(_Bound, Generic[P, R]):
    """A generator method of a handle."""

    @property
    def stream(self) -> Stream[P, R]:
        """Call it and take its items: `.stream(...)`, or `async for` over `.stream.aio(...)`."""
        return Stream(self)

    @property
    def remote_gen(self) -> Stream[P, R]:
        """The same as `stream`."""
        return Stream(self)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        """Run the generator in this process, hooks included; an asynchronous one gives an asynchronous iterator."""
        items: Iterator[R] = self._run_locally(args, kwargs)
        return items

    def with_options(
        self, *, deadline_s: float | None = None, timeout_s: float | None = None, retries: int | Retries | None = None
    ) -> BoundGenerator[P, R]:
        """The same method with other limits. A stream is not retried after its first item."""
        return BoundGenerator(self._handle, self._spec, self._options.changed(deadline_s, timeout_s, retries))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        """Refuse: a generator is not called directly on a handle."""
        self._refuse_direct_call("stream")

    def _submitter(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], waiting: tuple[WaitingPool, ...]
    ) -> streaming.Submit:
        self._spec.bind(self._handle._cls.name, args, kwargs)  # a bad call fails here, not at the first next
        return lambda sink: self._send(args, kwargs, sink, credit=streaming.WINDOW, waiting=waiting)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in ("remote", "spawn", "map", "starmap", "for_each"):
                raise TypeError(f"{self._label} is a generator: write {self._label}.stream(...), not .{name}(...)")
            raise AttributeError(name)
