"""What type checkers see of decorated functions. Nothing here exists at run time: the decorators return the functions.

A method is read through a descriptor. On an instance it is a `BoundMethod` or `BoundGenerator` with the function's own
signature, so `Embedder().embed.remote(...)` is checked, and it can be called, so `self.embed(...)` in the class is
checked as well. A batched function from `list[A]` to `list[R]` becomes a method from `A` to `R`.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from gworker.bound import BoundGenerator, BoundMethod

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
R_co = TypeVar("R_co", covariant=True)

# --- what an instance shows --------------------------------------------------------------------------------------

class AsyncMethod(BoundMethod[P, R]):
    """An asynchronous method: `.remote(...)` gives the result, a call in the class or `.local(...)` an awaitable."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:  # type: ignore[override]
        """Call it in the class."""

    def local(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:  # type: ignore[override]
        """Run the method in this process."""

class BatchedMethod(BoundMethod[P, R]):
    """A batched method: called from elsewhere with one input, in the class with lists."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it in the class, as it is written."""

class AsyncBatchedMethod(AsyncMethod[P, R]):
    """An asynchronous batched method."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it in the class, as it is written."""

class AsyncGenerator(BoundGenerator[P, R]):
    """An asynchronous generator method: the iterator of a call in the class, or of `.local(...)`, is asynchronous."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:  # type: ignore[override]
        """Call it in the class."""

    def local(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:  # type: ignore[override]
        """Run the generator in this process."""

# --- the descriptors ---------------------------------------------------------------------------------------------

class _Named(Generic[P, R]):
    """`Embedder.embed`: a method named through its class, to be called with an instance as its first argument."""

    def __call__(self, instance: Any, /, *args: P.args, **kwargs: P.kwargs) -> R: ...

class Method(Generic[P, R]):
    """A synchronous method."""

    @overload
    def __get__(self, instance: None, owner: type) -> _Named[P, R]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> BoundMethod[P, R]: ...

class AsyncMethodOf(Generic[P, R]):
    """An asynchronous method."""

    @overload
    def __get__(self, instance: None, owner: type) -> _Named[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> AsyncMethod[P, R]: ...

class BatchedMethodOf(Generic[P, R]):
    """A batched method."""

    @overload
    def __get__(self, instance: None, owner: type) -> _Named[..., Any]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> BatchedMethod[P, R]: ...

class AsyncBatchedMethodOf(Generic[P, R]):
    """An asynchronous batched method."""

    @overload
    def __get__(self, instance: None, owner: type) -> _Named[..., Any]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> AsyncBatchedMethod[P, R]: ...

class GeneratorOf(Generic[P, R]):
    """A generator method."""

    @overload
    def __get__(self, instance: None, owner: type) -> _Named[P, Iterator[R]]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> BoundGenerator[P, R]: ...

class AsyncGeneratorOf(Generic[P, R]):
    """An asynchronous generator method."""

    @overload
    def __get__(self, instance: None, owner: type) -> _Named[P, AsyncIterator[R]]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> AsyncGenerator[P, R]: ...

# --- what the decorators return ----------------------------------------------------------------------------------

class Results(Protocol[R_co]):
    """What a batched function may return: a list, a tuple, an array, a tensor."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> R_co: ...

class Batched(Generic[P, R]):
    """A batched function that is not a method yet. P and R are those of one input."""

class AsyncBatched(Generic[P, R]):
    """The same of an asynchronous function."""

class _OptionalSecond(Protocol[A, R_co]):
    def __call__(self, instance: Any, first: list[A], second: Any = ..., /) -> R_co: ...

class _OptionalThird(Protocol[A, B, R_co]):
    def __call__(self, instance: Any, first: list[A], second: list[B], third: Any = ..., /) -> R_co: ...

class _Nothing:
    """No function returns this; only one that returns Any, or has no annotations, matches it."""

class BatchedDecorator(Protocol):
    """What `batched(...)` returns. Arguments lose their names; where some are optional, arguments are not checked."""

    @overload
    def __call__(self, fn: Callable[Concatenate[Any, list[A], P], _Nothing], /) -> Batched[..., Any]: ...
    @overload
    def __call__(self, fn: _OptionalSecond[A, Results[R]], /) -> Batched[..., R]: ...
    @overload
    def __call__(self, fn: _OptionalSecond[A, Coroutine[Any, Any, Results[R]]], /) -> AsyncBatched[..., R]: ...
    @overload
    def __call__(self, fn: _OptionalThird[A, B, Results[R]], /) -> Batched[..., R]: ...
    @overload
    def __call__(self, fn: _OptionalThird[A, B, Coroutine[Any, Any, Results[R]]], /) -> AsyncBatched[..., R]: ...
    @overload
    def __call__(self, fn: Callable[[Any, list[A]], Results[R]], /) -> Batched[[A], R]: ...
    @overload
    def __call__(self, fn: Callable[[Any, list[A]], Coroutine[Any, Any, Results[R]]], /) -> AsyncBatched[[A], R]: ...
    @overload
    def __call__(self, fn: Callable[[Any, list[A], list[B]], Results[R]], /) -> Batched[[A, B], R]: ...
    @overload
    def __call__(
        self, fn: Callable[[Any, list[A], list[B]], Coroutine[Any, Any, Results[R]]], /
    ) -> AsyncBatched[[A, B], R]: ...
    @overload
    def __call__(self, fn: Callable[[Any, list[A], list[B], list[C]], Results[R]], /) -> Batched[[A, B, C], R]: ...
    @overload
    def __call__(
        self, fn: Callable[[Any, list[A], list[B], list[C]], Coroutine[Any, Any, Results[R]]], /
    ) -> AsyncBatched[[A, B, C], R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Any, list[A], P], Results[R]], /) -> Batched[..., R]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[Any, list[A], P], Coroutine[Any, Any, Results[R]]], /
    ) -> AsyncBatched[..., R]: ...

class MethodDecorator(Protocol):
    """What `method()` returns."""

    @overload
    def __call__(self, fn: AsyncBatched[P, R], /) -> AsyncBatchedMethodOf[P, R]: ...
    @overload
    def __call__(self, fn: Batched[P, R], /) -> BatchedMethodOf[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Any, P], _Nothing], /) -> Method[P, Any]: ...
    # The next three overlap with the last, which is for what is left: any function.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[Concatenate[Any, P], AsyncIterator[R]], /
    ) -> AsyncGeneratorOf[P, R]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[Concatenate[Any, P], Iterator[R]], /
    ) -> GeneratorOf[P, R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> AsyncMethodOf[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Any, P], R], /) -> Method[P, R]: ...
