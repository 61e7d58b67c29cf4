"""Running the user's methods: unpack, call, pack, on the thread or loop that is the user's. Knows nothing of queues.

Every function here turns whatever user code does into outcomes, one for each input. Nothing escapes: neither
`SystemExit` nor an exception that a weight, a `__reduce__` or a `__len__` raises.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextvars import Token
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from gworker import clock, context
from gworker.context import CallContext
from gworker.errors import BatchResultError, Fatal
from gworker.functions import MethodSpec
from gworker.wire import Failure, Packed, Submit, pack, pack_exception, unpack, unpack_arguments
from gworker.worker.lifecycle import Instance
from gworker.worker.streams import StreamGate


class Failed:
    """An input that raised: what, and why this worker must be replaced if it must."""

    __slots__ = ("failure", "fatal")

    def __init__(self, failure: Failure, fatal: str | None = None) -> None:
        self.failure = failure
        self.fatal = fatal


# What came of one input: a packed result, nothing more of a stream, or a failure.
Outcome: TypeAlias = "Packed | Failed | None"


class Given(Protocol):
    """An input, as far as an invocation has to know it. `deadline` is an instant of `clock.now()`."""

    call: Submit
    deadline: float | None


class Work:
    """One invocation: the method, the inputs it is for, how a stream sends its items, and whether to stop."""

    emit: Callable[[Packed], object]
    gate: StreamGate | None = None
    stopped = False
    _batch = 0
    _values: Mapping[str, Any] = MappingProxyType({})
    _context: CallContext | None = None

    def __init__(self, instance: Instance, method: MethodSpec, inputs: Sequence[Given]) -> None:
        self.instance = instance
        self.method = method
        self.inputs = inputs
        self.began: float | None = None  # when it began, where it runs
        if method.batch is not None:
            self._batch = next(_batch_numbers)

    @property
    def label(self) -> str:
        """The method's name for messages."""
        return f"{self.instance.spec.name}.{self.method.name}"

    @property
    def context(self) -> CallContext:
        """What `current_call()` shows: the call, or the batch with its inputs. Made by the thread that asks first."""
        context = self._context
        if context is None:
            context = self._batch_context() if self._batch else self._context_of(self.inputs[0])
            context = self.__dict__.setdefault("_context", context)  # two threads that ask at once are shown the same
            if self.stopped:  # meanwhile: then who stopped it may not have seen the context
                self.stop()
        return context

    def stop(self) -> None:
        """Nobody waits for this invocation any more."""
        self.stopped = True
        if self._context is not None:
            for call in (self._context, *self._context.inputs):
                call._cancelled.set()

    def enter(self) -> Token[Any]:
        """It begins, here. Returns what `context.exit_call` takes."""
        self.began = clock.now()
        return context.enter_call(self)

    def bind(self) -> Callable[..., Any]:
        """The method to call, on what shows it the values of this call's parameters."""
        packed = self.inputs[0].call.parameters
        if packed is not None:
            self._values = unpack(packed)
            if self._context is not None:
                for call in (self._context, *self._context.inputs):
                    object.__setattr__(call, "parameters", self._values)
        if self.method.asgi:
            return self.instance.asgi.handle
        bound: Callable[..., Any] = getattr(self.instance.target(self._values), self.method.name)
        return bound

    def _context_of(self, given: Given) -> CallContext:
        call = given.call
        return CallContext(
            call.name, call.attempt, given.deadline, self.method.name, dict(self._values), _waiting=call.waiting
        )

    def _batch_context(self) -> CallContext:
        contexts = tuple(map(self._context_of, self.inputs))
        limits = [c.deadline for c in contexts if c.deadline is not None]
        return CallContext(
            id=f"batch-{self._batch}",
            attempt=max(c.attempt for c in contexts),
            deadline=max(limits) if len(limits) == len(contexts) else None,
            method=self.method.name,
            parameters=dict(self._values),
            inputs=contexts,
            _waiting=tuple(dict.fromkeys(pool for c in contexts for pool in c._waiting)),
        )


_batch_numbers = itertools.count(1)


def failed(error: BaseException) -> Failed:
    """The outcome of an input that raised `error`."""
    return Failed(pack_exception(error), why_fatal(error))


# What CUDA says when the context of the process is lost: no later call in this process can succeed.
_POISON = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "illegal instruction",
    "uncorrectable ECC",
    "CUDA context is destroyed",
)


def why_fatal(error: BaseException) -> str | None:
    """Why a worker that raised `error` must be replaced, or None: `gw.Fatal`, or a CUDA error that stays."""
    if isinstance(error, Fatal):
        return f"Fatal: {error}"
    if isinstance(error, RuntimeError):
        text = str(error)
        if "CUDA" in text and any(sign in text for sign in _POISON):
            return f"CUDA error that poisons the process: {text.splitlines()[0]}"
    return None


def _pack_result(work: Work, value: Any) -> Packed | Failed:
    try:
        return pack(value, once=True)
    except BaseException as error:
        explained = TypeError(
            f"{work.label}() returned a value of type {type(value).__qualname__} that cannot be pickled: "
            f"{type(error).__name__}: {error}. Return plain data, arrays or tensors."
        )
        explained.__cause__ = error
        return failed(explained)


# --- plain calls -------------------------------------------------------------------------------------------------


def run_call(work: Work) -> list[Outcome]:
    """Run a synchronous method on this thread."""
    token = work.enter()
    try:
        method = work.bind()
        args, kwargs = unpack_arguments(work.inputs[0].call.arguments)
        return [_pack_result(work, method(*args, **kwargs))]
    except BaseException as error:
        return [failed(error)]
    finally:
        context.exit_call(token)


async def run_call_async(work: Work) -> list[Outcome]:
    """Run an asynchronous method on this loop."""
    work.enter()
    try:
        method = work.bind()
        args, kwargs = unpack_arguments(work.inputs[0].call.arguments)
        return [_pack_result(work, await method(*args, **kwargs))]
    except BaseException as error:
        return [failed(error)]


# --- batches -----------------------------------------------------------------------------------------------------


def _columns(work: Work) -> tuple[list[Failed | None], dict[str, list[Any]]]:
    """The arguments of the inputs as one list for each name; an input that cannot be unpacked fails alone."""
    outcomes: list[Failed | None] = []
    rows: list[dict[str, Any]] = []
    for given in work.inputs:
        try:
            rows.append(unpack_arguments(given.call.arguments)[1])
            outcomes.append(None)
        except BaseException as error:
            outcomes.append(failed(error))
    return outcomes, {name: [row[name] for row in rows] for name in work.method.signature.parameters}


def check_batch_result(label: str, size: int, result: Any) -> None:
    """Raise BatchResultError unless `result` is a sequence of `size` elements."""
    if isinstance(result, (str, bytes, bytearray, Mapping, AbstractSet)) or not hasattr(result, "__getitem__"):
        raise BatchResultError(
            f"{label}() is batched and must return a sequence with one element for each of its {size} inputs "
            f"(a list, tuple, array or tensor); it returned {type(result).__qualname__}"
        )
    try:
        length = len(result)
    except TypeError as error:
        raise BatchResultError(
            f"{label}() is batched and must return a sequence of {size} elements; it returned "
            f"{type(result).__qualname__}, which has no length"
        ) from error
    if length != size:
        raise BatchResultError(
            f"{label}() received a batch of {size} inputs and returned {length} results: "
            "a batched method must return one result for each input, in the same order"
        )


def _spread(work: Work, outcomes: list[Failed | None], result: Any) -> list[Outcome]:
    """Hand each input its element of `result`, or all of them a BatchResultError."""
    size = outcomes.count(None)
    check_batch_result(work.label, size, result)
    elements = iter(range(size))
    return [outcome or _element(work, result, next(elements)) for outcome in outcomes]


def _element(work: Work, result: Any, index: int) -> Packed | Failed:
    try:
        value = result[index]
    except BaseException as error:
        return failed(error)
    return failed(value) if isinstance(value, BaseException) else _pack_result(work, value)


def _all_failed(outcomes: list[Failed | None], error: BaseException) -> list[Outcome]:
    shared = failed(error)
    return [outcome or shared for outcome in outcomes]


def run_batch(work: Work) -> list[Outcome]:
    """Run a synchronous batched method on this thread."""
    token = work.enter()
    outcomes: list[Failed | None] = [None] * len(work.inputs)
    try:
        outcomes, columns = _columns(work)
        if None in outcomes:
            method = work.bind()
            return _spread(work, outcomes, method(**columns))
        return [outcome for outcome in outcomes if outcome is not None]
    except BaseException as error:
        return _all_failed(outcomes, error)
    finally:
        context.exit_call(token)


async def run_batch_async(work: Work) -> list[Outcome]:
    """Run an asynchronous batched method on this loop."""
    work.enter()
    outcomes: list[Failed | None] = [None] * len(work.inputs)
    try:
        outcomes, columns = _columns(work)
        if None in outcomes:
            method = work.bind()
            return _spread(work, outcomes, await method(**columns))
        return [outcome for outcome in outcomes if outcome is not None]
    except BaseException as error:
        return _all_failed(outcomes, error)


def weigh(instance: Instance, method: MethodSpec, arguments: Packed) -> float | Failure:
    """The weight of an input as the user's function sees it: a finite number that is not negative, or a failure."""
    assert method.batch is not None and method.batch.weight is not None
    try:
        weight = method.batch.weight(*unpack_arguments(arguments)[1].values())
        number = _as_weight(weight)
        if number is None:
            raise ValueError(
                f"the weight function of {instance.spec.name}.{method.name} returned {weight!r}: "
                "it must return a finite number that is not negative"
            )
        return number
    except BaseException as error:
        return pack_exception(error)


def _as_weight(value: Any) -> float | None:
    """`value` as a number that can be summed up, whatever kind of number it is; None if it is none."""
    if isinstance(value, (bool, str, bytes)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0.0 <= number < float("inf") else None


# --- generators --------------------------------------------------------------------------------------------------


def run_stream(work: Work) -> list[Outcome]:
    """Run a generator method on this thread, advancing it as its consumer makes room."""
    assert work.gate is not None
    token = work.enter()
    generator: Any = None
    outcome: Failed | None = None
    try:
        method = work.bind()
        args, kwargs = unpack_arguments(work.inputs[0].call.arguments)
        generator = method(*args, **kwargs)
        while work.gate.acquire():
            try:
                item = next(generator)
            except StopIteration:
                break
            packed = _pack_result(work, item)
            if isinstance(packed, Failed):
                outcome = packed
                break
            work.emit(packed)
    except BaseException as error:
        outcome = failed(error)
    finally:
        if inspect.isgenerator(generator):
            try:
                generator.close()
            except BaseException as error:
                outcome = outcome or failed(error)
        context.exit_call(token)
    return [outcome]


async def run_stream_async(work: Work) -> list[Outcome]:
    """Run an asynchronous generator method on this loop."""
    assert work.gate is not None
    work.enter()
    generator: Any = None
    outcome: Failed | None = None
    try:
        method = work.bind()
        args, kwargs = unpack_arguments(work.inputs[0].call.arguments)
        generator = method(*args, **kwargs)
        while await work.gate.acquire_async():
            try:
                item = await anext_of(generator)
            except StopAsyncIteration:
                break
            packed = _pack_result(work, item)
            if isinstance(packed, Failed):
                outcome = packed
                break
            work.emit(packed)
    except BaseException as error:
        outcome = failed(error)
    finally:
        if inspect.isasyncgen(generator):
            try:
                await generator.aclose()
            except BaseException as error:
                outcome = outcome or failed(error)
    return [outcome]


def anext_of(generator: Any) -> Any:
    """`anext`, without turning the generator's own StopAsyncIteration into anything else."""
    return generator.__anext__()
