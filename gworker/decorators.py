"""The marks that users put on functions and classes.

The decorators return what they were given, so code inside a class just works. A mark is an attribute: `__gworker__` of
a function holds a `FunctionMarks`, `__gworker_concurrent__` of a class a `ConcurrentSpec`.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from gworker import checks
from gworker.errors import InvalidDefinition

if TYPE_CHECKING:
    from typing_extensions import Never

    from gworker.signatures import BatchedDecorator, MethodDecorator

C = TypeVar("C", bound=type)
Hook = TypeVar("Hook", bound=Callable[[Any], object])

FUNCTION_MARKS = "__gworker__"
_orders = itertools.count(1)
CONCURRENT_MARK = "__gworker_concurrent__"


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """How the inputs of a batched method are gathered. `weight` is the cost of one input: like ones share a batch."""

    max_batch_size: int
    wait_s: float = 0.0
    max_concurrent_batches: int = 1
    weight: Callable[..., float] | None = None
    max_weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class ConcurrentSpec:
    """How many inputs one worker takes in. `target_inputs` is what the autoscaler aims at; None means the default."""

    max_inputs: int
    target_inputs: int | None = None


@dataclass(frozen=True, kw_only=True)
class FunctionMarks:
    """What the decorators said about one function. `order` grows with each function marked.

    A class pickled by value comes out with its attributes sorted by name, so the order of definition is kept here.
    """

    method: bool = False
    enter: bool = False
    exit: bool = False
    batch: BatchSpec | None = None
    asgi: bool = False
    order: int = 0


def marks_of(fn: object) -> FunctionMarks | None:
    """The marks on a function, or None."""
    marks = getattr(fn, FUNCTION_MARKS, None)
    return marks if isinstance(marks, FunctionMarks) else None


def method(*bare: Never) -> MethodDecorator:
    """Make a method callable from elsewhere: `Embedder().embed.remote(...)`. Goes above `@gw.batched(...)`.

    The method may be `def` or `async def`, and may be a generator: then it is called with `.stream(...)`.

    >>> import gworker as gw
    >>> class Doubler:
    ...     @gw.method()
    ...     def double(self, x: int) -> int:
    ...         return 2 * x
    >>> Doubler().double(4)
    8
    """
    _refuse_arguments("method", bare)

    def mark(fn: Any) -> Any:
        _refuse_what_is_no_function("method", fn)
        marks = marks_of(fn) or FunctionMarks()
        if marks.enter or marks.exit:
            raise _both_method_and_hook(fn, marks)
        if marks.asgi:
            raise _asgi_and("@gw.method()", fn)
        return _mark(fn, replace(marks, method=True))

    return mark


def asgi_app(*bare: Never) -> Callable[[Hook], Hook]:
    """Serve routes of your own from the workers: the function returns a FastAPI, Starlette or other ASGI application.

    It is called once when a worker starts, after the `on_enter` hooks, may be `def` or `async def`, and takes no
    arguments. The gateway passes requests below /v1/{Class}/ on to it; a request takes the place of one input.

    >>> import gworker as gw
    >>> class Site:
    ...     @gw.asgi_app()
    ...     def web(self):
    ...         from fastapi import FastAPI
    ...         return FastAPI()
    """
    _refuse_arguments("asgi_app", bare)

    def mark(fn: Any) -> Any:
        _refuse_what_is_no_function("asgi_app", fn)
        marks = marks_of(fn) or FunctionMarks()
        for other, is_there in (
            ("@gw.method()", marks.method),
            ("@gw.batched(...)", marks.batch is not None),
            ("a hook's decorator", marks.enter or marks.exit),
        ):
            if is_there:
                raise _asgi_and(other, fn)
        return _mark(fn, replace(marks, asgi=True))

    return mark


def on_enter(*bare: Never) -> Callable[[Hook], Hook]:
    """Run this function once when a worker starts, before its first input: load the model here.

    Hooks of base classes run first, then in order of definition; `def` and `async def` may be mixed.
    """
    return _hook("on_enter", bare)


def on_exit(*bare: Never) -> Callable[[Hook], Hook]:
    """Run this function when a worker stops gracefully, in the reverse order of the `on_enter` hooks; 10 s in all."""
    return _hook("on_exit", bare)


@overload
def batched(
    *,
    max_batch_size: int,
    wait_ms: float = 0,
    max_concurrent_batches: int = 1,
    weight: Callable[..., float] | None = None,
    max_weight: float | None = None,
) -> BatchedDecorator: ...
@overload
def batched(bare: Never, /) -> NoReturn: ...
def batched(
    *bare: Any,
    max_batch_size: Any = None,
    wait_ms: float = 0,
    max_concurrent_batches: int = 1,
    weight: Callable[..., float] | None = None,
    max_weight: float | None = None,
) -> Any:
    """Run many calls as one: the method receives each argument as a list and returns a list of the same length.

    Goes below `@gw.method()`. A batch leaves when it has `max_batch_size` inputs, or `wait_ms` milliseconds after its
    first one; with 0 it takes what is there. `weight` gives the cost of one input from its arguments (tokens, pixels),
    and `max_weight` bounds the sum in a batch; inputs of nearly the same weight share a batch, led by the one that has
    waited longest, and none is passed over by many later ones. `max_concurrent_batches` above 1 needs `@gw.concurrent`
    on the class.
    """
    write = "@gw.batched(max_batch_size=64, wait_ms=20)"
    _refuse_arguments("batched", bare, write)
    where = "@gw.batched"
    if max_batch_size is None:
        raise InvalidDefinition(f"{where}: max_batch_size is missing: write {write}")
    size = checks.whole(where, "max_batch_size", max_batch_size, least=1, example=64)
    wait = checks.number(where, "wait_ms", wait_ms, example=20, unit="milliseconds")
    batches = checks.whole(where, "max_concurrent_batches", max_concurrent_batches, least=1)
    if weight is not None and not callable(weight):
        raise InvalidDefinition(
            f"{where}: weight={checks.shown(weight)} was given; expected a function from the arguments of one input to "
            "its cost: write for example weight=len, max_weight=8192"
        )
    if (weight is None) != (max_weight is None):
        given, missing = ("max_weight", "weight=len") if weight is None else ("weight", "max_weight=8192")
        raise InvalidDefinition(f"{where}: {given} was given alone; the two go together: write for example {missing}")
    if max_weight is not None:
        max_weight = checks.number(where, "max_weight", max_weight, above=True, example=8192)
    batch = BatchSpec(
        max_batch_size=size,
        wait_s=wait / 1000,
        max_concurrent_batches=batches,
        weight=weight,
        max_weight=max_weight,
    )

    def mark(fn: Any) -> Any:
        _refuse_what_is_no_function("batched", fn)
        marks = marks_of(fn) or FunctionMarks()
        if marks.method:
            raise InvalidDefinition(
                f"{_name(fn)}: @gw.batched stands above @gw.method; it goes below: write @gw.method() on the first "
                "line and @gw.batched(...) on the second"
            )
        if marks.enter or marks.exit:
            raise InvalidDefinition(
                f"{_name(fn)}: a hook cannot be batched, it runs once for each worker: remove @gw.batched, or write "
                "@gw.method() instead of the hook's decorator"
            )
        if marks.asgi:
            raise _asgi_and("@gw.batched(...)", fn)
        if marks.batch is not None:
            raise InvalidDefinition(f"{_name(fn)}: @gw.batched is written twice: keep one of them")
        return _mark(fn, replace(marks, batch=batch))

    return mark


@overload
def concurrent(*, max_inputs: int, target_inputs: int | None = None) -> Callable[[C], C]: ...
@overload
def concurrent(bare: Never, /) -> NoReturn: ...
def concurrent(*bare: Any, max_inputs: Any = None, target_inputs: int | None = None) -> Any:
    """Let one worker hold up to `max_inputs` inputs at a time. Goes on the class, below `@app.cls(...)`.

    The class must be ready for it: synchronous methods run on several threads, asynchronous ones share a loop. Batched
    methods still run one batch at a time. The autoscaler adds workers to keep each at `target_inputs`, by default 80 %
    of `max_inputs`.
    """
    write = "@gw.concurrent(max_inputs=16)"
    _refuse_arguments("concurrent", bare, write)
    where = "@gw.concurrent"
    if max_inputs is None:
        raise InvalidDefinition(f"{where}: max_inputs is missing: write {write}")
    inputs = checks.whole(where, "max_inputs", max_inputs, least=1, example=16)
    if target_inputs is not None:
        target_inputs = checks.whole(where, "target_inputs", target_inputs, least=1, example=12)
        if target_inputs > inputs:
            raise InvalidDefinition(
                f"{where}: target_inputs={target_inputs} is greater than max_inputs={inputs}: write at most "
                f"target_inputs={inputs}, or leave it out"
            )
    spec = ConcurrentSpec(max_inputs=inputs, target_inputs=target_inputs)

    def mark(cls: Any) -> Any:
        if not isinstance(cls, type) and (wrapped := getattr(cls, "user_cls", None)) is not None:
            name = getattr(wrapped, "__name__", "the class")
            raise InvalidDefinition(
                f"{name}: @gw.concurrent stands above @app.cls; it goes below: write @app.cls(...) on the first line "
                "and @gw.concurrent(...) on the second"
            )
        if not isinstance(cls, type):
            raise InvalidDefinition(
                f"{_name(cls)}: @gw.concurrent goes on the class, not on a function: write it between @app.cls(...) "
                "and the class statement"
            )
        setattr(cls, CONCURRENT_MARK, spec)
        return cls

    return mark


def refuse_bare(decorator: str, bare: tuple[object, ...], write: str | None = None) -> None:
    """Raise for positional arguments of a decorator that takes none, most often the class of a bare `@app.cls`."""
    write = write or f"@{decorator}()"
    if not bare:
        return
    if _is_decorated(bare[0]):
        raise InvalidDefinition(
            f"{_name(bare[0])}: @{decorator} was written without parentheses, did you forget them? Write {write}"
        )
    given = ", ".join(checks.shown(value) for value in bare)
    raise InvalidDefinition(f"@{decorator}({given}): it takes no positional arguments: write {write}")


def _refuse_arguments(decorator: str, bare: tuple[object, ...], write: str | None = None) -> None:
    refuse_bare(f"gw.{decorator}", bare, write)


def _hook(kind: str, bare: tuple[object, ...]) -> Callable[[Any], Any]:
    _refuse_arguments(kind, bare)

    def mark(fn: Any) -> Any:
        _refuse_what_is_no_function(kind, fn)
        marks = marks_of(fn) or FunctionMarks()
        marks = replace(marks, enter=True) if kind == "on_enter" else replace(marks, exit=True)
        if marks.method:
            raise _both_method_and_hook(fn, marks)
        if marks.asgi:
            raise _asgi_and(f"@gw.{kind}()", fn)
        if marks.batch is not None:
            raise InvalidDefinition(
                f"{_name(fn)}: a hook cannot be batched, it runs once for each worker: remove @gw.batched, or write "
                f"@gw.method() instead of @gw.{kind}()"
            )
        return _mark(fn, marks)

    return mark


def _mark(fn: Any, marks: FunctionMarks) -> Any:
    if not marks.order:
        marks = replace(marks, order=next(_orders))
    try:
        setattr(fn, FUNCTION_MARKS, marks)
    except (AttributeError, TypeError):
        raise InvalidDefinition(
            f"{_name(fn)}: a {type(fn).__qualname__} cannot be marked: write a function in the class that calls it"
        ) from None
    return fn


def _both_method_and_hook(fn: object, marks: FunctionMarks) -> InvalidDefinition:
    kind = "on_enter" if marks.enter else "on_exit"
    return InvalidDefinition(
        f"{_name(fn)}: @gw.method() and @gw.{kind}() cannot be on one function: a hook runs by itself. Keep one, or "
        "write a second function that calls the first"
    )


def _asgi_and(other: str, fn: object) -> InvalidDefinition:
    return InvalidDefinition(
        f"{_name(fn)}: @gw.asgi_app() and {other} cannot be on one function: it returns the application that answers "
        "requests, and runs once when a worker starts. Keep one, or write a second function"
    )


def _refuse_what_is_no_function(decorator: str, fn: Any) -> None:
    if isinstance(fn, (staticmethod, classmethod, property)):
        name = _name(getattr(fn, "__func__", None) or getattr(fn, "fget", None))
        raise InvalidDefinition(
            f"{name}: @gw.{decorator}() is above @{type(fn).__name__}; it goes on plain functions that take self: "
            f"write def {name.rpartition('.')[2]}(self, ...) without @{type(fn).__name__}"
        )
    if isinstance(fn, type):
        raise InvalidDefinition(
            f"{_name(fn)}: @gw.{decorator}() goes on the functions in a class, not on the class itself: move it above "
            "a def inside the class"
        )
    if not callable(fn) or not hasattr(fn, "__get__"):
        raise InvalidDefinition(
            f"@gw.{decorator}() was put on {checks.shown(fn)} ({type(fn).__qualname__}); it goes on a function: write "
            "it above a def inside the class"
        )


def _is_decorated(value: object) -> bool:
    return inspect.isroutine(value) or isinstance(value, (type, property))


def _name(value: object) -> str:
    name = getattr(value, "__qualname__", None)
    # What a function inside a function is called: the part a reader knows.
    return name.rpartition("<locals>.")[2] if isinstance(name, str) else checks.shown(value)
