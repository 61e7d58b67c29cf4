"""Running the user's methods: unpack, call, pack, on the thread or loop that is the user's. Knows nothing of queues.

Every function here turns whatever user code does into outcomes, one for each input. Nothing escapes: neither
`SystemExit` nor an exception that a weight, a `__reduce__` or a `__len__` raises.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from gworker import context
from gworker.context import CallContext
from gworker.errors import BatchResultError, Fatal
from gworker.functions import MethodSpec
from gworker.wire import Failure, Payload, pack, pack_exception, unpack
from gworker.worker.lifecycle import Instance
from gworker.worker.streams import StreamGate


@dataclass
class Outcome:
    """What came of one input: a packed result, or a failure. `fatal` says that this worker must be replaced."""

    result: Payload | None = None
    failure: Failure | None = None
    fatal: str | None = None


@dataclass
class Work:
    """One invocation: the method, the packed arguments of each input, and the context the method will see."""

    instance: Instance
    method: MethodSpec
    arguments: Sequence[Payload]
    parameters: Payload | None
    context: CallContext
    emit: Callable[[Payload], object] = lambda item: None
    gate: StreamGate | None = None

    @property
    def label(self) -> str:
        """The method's name for messages."""
        return f"{self.instance.spec.name}.{self.method.name}"


def failed(error: BaseException) -> Outcome:
    """The outcome of an input that raised `error`."""
    return Outcome(failure=pack_exception(error), fatal=why_fatal(error))


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


def _bind(work: Work) -> tuple[Callable[..., Any], Mapping[str, Any]]:
    values: Mapping[str, Any] = unpack(work.parameters) if work.parameters is not None else {}
    for call in (work.context, *work.context.inputs):
        object.__setattr__(call, "parameters", values)
    if work.method.asgi:
        return work.instance.asgi.handle, values
    return getattr(work.instance.target(values), work.method.name), values


def _pack_result(work: Work, value: Any) -> Outcome:
    try:
        return Outcome(result=pack(value))
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
    token = context.enter_call(work.context)
    try:
        method, _ = _bind(work)
        args, kwargs = unpack(work.arguments[0])
        return [_pack_result(work, method(*args, **kwargs))]
    except BaseException as error:
        return [failed(error)]
    finally:
        context.exit_call(token)


async def run_call_async(work: Work) -> list[Outcome]:
    """Run an asynchronous method on this loop."""
    context.enter_call(work.context)
    try:
        method, _ = _bind(work)
        args, kwargs = unpack(work.arguments[0])
        return [_pack_result(work, await method(*args, **kwargs))]
    except BaseException as error:
        return [failed(error)]


# --- batches -----------------------------------------------------------------------------------------------------


def _columns(work: Work) -> tuple[list[Outcome | None], dict[str, list[Any]]]:
    """The arguments of the inputs as one list for each name; an input that cannot be unpacked fails alone."""
    outcomes: list[Outcome | None] = []
    rows: list[dict[str, Any]] = []
    for packed in work.arguments:
        try:
            rows.append(unpack(packed)[1])
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


def _spread(work: Work, outcomes: list[Outcome | None], result: Any) -> list[Outcome]:
    """Hand each input its element of `result`, or all of them a BatchResultError."""
    size = outcomes.count(None)
    check_batch_result(work.label, size, result)
    elements = iter(range(size))
    return [outcome or _element(work, result, next(elements)) for outcome in outcomes]


def _element(work: Work, result: Any, index: int) -> Outcome:
    try:
        value = result[index]
    except BaseException as error:
        return failed(error)
    return failed(value) if isinstance(value, BaseException) else _pack_result(work, value)


def _all_failed(outcomes: list[Outcome | None], error: BaseException) -> list[Outcome]:
    shared = failed(error)
    return [outcome or shared for outcome in outcomes]


def run_batch(work: Work) -> list[Outcome]:
    """Run a synchronous batched method on this thread."""
    token = context.enter_call(work.context)
    outcomes: list[Outcome | None] = [None] * len(work.arguments)
    try:
        outcomes, columns = _columns(work)
        if None in outcomes:
            method, _ = _bind(work)
            return _spread(work, outcomes, method(**columns))
        return [outcome for outcome in outcomes if outcome is not None]
    except BaseException as error:
        return _all_failed(outcomes, error)
    finally:
        context.exit_call(token)


async def run_batch_async(work: Work) -> list[Outcome]:
    """Run an asynchronous batched method on this loop."""
    context.enter_call(work.context)
    outcomes: list[Outcome | None] = [None] * len(work.arguments)
    try:
        outcomes, columns = _columns(work)
        if None in outcomes:
            method, _ = _bind(work)
            return _spread(work, outcomes, await method(**columns))
        return [outcome for outcome in outcomes if outcome is not None]
    except BaseException as error:
        return _all_failed(outcomes, error)


def weigh(instance: Instance, method: MethodSpec, arguments: Payload) -> float | Failure:
    """The weight of an input as the user's function sees it: a finite number that is not negative, or a failure."""
    assert method.batch is not None and method.batch.weight is not None
    try:
        weight = method.batch.weight(*unpack(arguments)[1].values())
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
    token = context.enter_call(work.context)
    generator: Any = None
    outcome = Outcome()
    try:
        method, _ = _bind(work)
        args, kwargs = unpack(work.arguments[0])
        generator = method(*args, **kwargs)
        while work.gate.acquire():
            try:
                item = next(generator)
            except StopIteration:
                break
            packed = _pack_result(work, item)
            if packed.result is None:
                outcome = packed
                break
            work.emit(packed.result)
    except BaseException as error:
        outcome = failed(error)
    finally:
        if inspect.isgenerator(generator):
            try:
                generator.close()
            except BaseException as error:
                outcome = outcome if outcome.failure else failed(error)
        context.exit_call(token)
    return [outcome]


async def run_stream_async(work: Work) -> list[Outcome]:
    """Run an asynchronous generator method on this loop."""
    assert work.gate is not None
    context.enter_call(work.context)
    generator: Any = None
    outcome = Outcome()
    try:
        method, _ = _bind(work)
        args, kwargs = unpack(work.arguments[0])
        generator = method(*args, **kwargs)
        while await work.gate.acquire_async():
            try:
                item = await anext_of(generator)
            except StopAsyncIteration:
                break
            packed = _pack_result(work, item)
            if packed.result is None:
                outcome = packed
                break
            work.emit(packed.result)
    except BaseException as error:
        outcome = failed(error)
    finally:
        if inspect.isasyncgen(generator):
            try:
                await generator.aclose()
            except BaseException as error:
                outcome = outcome if outcome.failure else failed(error)
    return [outcome]


def anext_of(generator: Any) -> Any:
    """`anext`, without turning the generator's own StopAsyncIteration into anything else."""
    return generator.__anext__()
