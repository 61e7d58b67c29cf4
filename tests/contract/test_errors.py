"""What a method raises, as its caller receives it; and what it does to the worker."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

import gworker as gw
from tests.conftest import Gate, Ledger, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("module_app")]

app = gw.App("contract-errors")


class MyError(Exception):
    """With an attribute, as many have."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message, code)
        self.code = code


class PickyError(Exception):
    """Cannot be made from its `args`, so pickle cannot make it again."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class HoldingError(Exception):
    """Holds something that cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class ShapeShifterError(Exception):
    """Becomes something else by pickling."""

    def __reduce__(self) -> Any:
        return (str, ("not an exception at all",))


class SilentError(Exception):
    """Raises when it is printed."""

    def __str__(self) -> str:
        raise ValueError("no text for you")


class PickyExit(Exception):  # noqa: N818
    """Would end its process when it is unpickled."""

    def __reduce__(self) -> Any:
        return (_leave, ())


def _leave() -> None:
    raise SystemExit(3)


class UnpicklableResult:
    """Raises something nasty when it is pickled."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("while pickling")


BUILTIN = [
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    StopIteration,
    StopAsyncIteration,
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
    BaseException,
]


@app.cls(max_workers=1, cpu=0.1)
class Raiser:
    @gw.method()
    def pid(self) -> int:
        return os.getpid()

    @gw.method()
    def throw(self, error: type[BaseException], *args: Any) -> None:
        raise error(*args)

    @gw.method()
    async def throw_async(self, error: type[BaseException], *args: Any) -> None:
        await asyncio.sleep(0)
        raise error(*args)

    @gw.method()
    def stream(self, error: type[BaseException]) -> Iterator[int]:
        yield 1
        raise error("in the stream")

    @gw.method()
    def with_cause(self) -> None:
        try:
            {}["missing"]
        except KeyError as error:
            raise MyError("outer", 7) from error

    @gw.method()
    def local_class(self) -> None:
        class LocalError(ValueError):
            pass

        raise LocalError("made in the worker")

    @gw.method()
    def result(self, make: Any) -> Any:
        return make()

    @gw.method()
    async def result_async(self, make: Any) -> Any:
        return make()

    @gw.method()
    def own_error_of_gworker(self) -> None:
        raise gw.QueueFull("mine")

    @gw.method()
    async def background_exit(self) -> str:
        async def leave() -> None:
            raise SystemExit(4)

        task = asyncio.get_running_loop().create_task(leave())
        await asyncio.wait([task])
        return "still here"


@pytest.fixture
def same_worker() -> Iterator[None]:
    """The worker that served before the test serves after it."""
    before = Raiser().pid.remote()
    yield
    assert Raiser().pid.spawn().get(timeout_s=10) == before


# --- as it was -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["throw", "throw_async"])
async def test_an_exception_arrives_with_its_type_arguments_and_attributes(method: str, same_worker: None) -> None:
    bound = getattr(Raiser(), method)
    with pytest.raises(MyError, match="no good") as caught:
        bound.remote(MyError, "no good", 42)
    assert type(caught.value) is MyError
    assert caught.value.code == 42
    with pytest.raises(MyError):
        await bound.remote.aio(MyError, "no good")
    with pytest.raises(MyError):
        bound.spawn(MyError, "no good").get()
    with pytest.raises(ZeroDivisionError):
        bound.remote(ZeroDivisionError)


def test_the_cause_is_the_traceback_of_the_worker() -> None:
    with pytest.raises(MyError) as caught:
        Raiser().throw.remote(MyError, "no good")
    text = str(caught.value.__cause__)
    assert "in throw" in text and "raise error(*args)" in text and os.path.basename(__file__) in text
    # What Python prints for an uncaught one shows both sides.
    printed = "".join(traceback.format_exception(caught.value))
    assert "in throw" in printed and "Raiser().throw.remote" in printed


def test_the_causes_an_exception_had_in_the_worker_are_in_that_traceback() -> None:
    with pytest.raises(MyError) as caught:
        Raiser().with_cause.remote()
    assert caught.value.code == 7
    assert "KeyError: 'missing'" in str(caught.value.__cause__)
    assert "direct cause" in str(caught.value.__cause__)


def test_the_error_of_a_call_can_be_asked_for_again() -> None:
    call = Raiser().throw.spawn(MyError, "no good")
    for _ in range(2):
        with pytest.raises(MyError):
            call.get()
    assert call.done() and "MyError" in repr(call)


def test_an_exception_class_made_in_the_worker_arrives_as_its_own_kind() -> None:
    with pytest.raises(ValueError, match="made in the worker") as caught:
        Raiser().local_class.remote()
    assert type(caught.value).__name__ == "LocalError"


def test_an_exception_class_made_in_a_function_is_the_same_class_on_both_sides(make_app: Any) -> None:
    own = make_app()

    class TheirError(Exception):
        pass

    @own.cls(max_workers=1, cpu=0.1)
    class Thrower:
        @gw.method()
        def throw(self) -> None:
            raise TheirError(1)

        @gw.method()
        def recognises(self, error: Exception) -> bool:
            return isinstance(error, TheirError)

    with pytest.raises(TheirError):
        Thrower().throw.remote()
    assert Thrower().recognises.remote(TheirError(2))


def test_errors_of_gworker_that_a_method_raises_arrive_as_they_are() -> None:
    with pytest.raises(gw.QueueFull, match="mine") as caught:
        Raiser().own_error_of_gworker.remote()
    assert "own_error_of_gworker" in str(caught.value.__cause__)


def test_gather_raises_the_first_error_in_order_and_the_other_calls_go_on() -> None:
    calls = [Raiser().pid.spawn(), Raiser().throw.spawn(MyError, "second"), Raiser().throw.spawn(KeyError, "third")]
    with pytest.raises(MyError, match="second"):
        gw.gather(*calls)
    assert isinstance(calls[0].get(), int)
    with pytest.raises(KeyError):
        calls[2].get()


class SlowError(Exception):
    """Takes two seconds to be unpickled anywhere but in the process that raised it."""

    def __reduce__(self) -> Any:
        return (_slowly, (os.getpid(),))


def _slowly(pid: int) -> SlowError:
    if os.getpid() != pid:
        time.sleep(2)
    return SlowError()


@pytest.mark.parametrize("retries", [0, gw.Retries(max_retries=1, initial_delay_s=0)])
def test_an_exception_that_is_slow_to_unpickle_keeps_no_other_call_back(retries: Any) -> None:
    Raiser().pid.remote()
    failing = Raiser().throw.with_options(retries=retries).spawn(SlowError)
    longest_s = 0.0
    for _ in range(20):
        began = time.monotonic()
        Raiser().pid.remote()
        longest_s = max(longest_s, time.monotonic() - began)
    assert failing.done()
    assert longest_s < 1.5
    with pytest.raises(SlowError):
        failing.get()


# --- as text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["throw", "throw_async"])
@pytest.mark.parametrize("error", BUILTIN)
def test_what_would_change_the_callers_control_flow_arrives_as_remote_error(
    error: type[BaseException], method: str, same_worker: None
) -> None:
    if method == "throw_async" and error is StopIteration:
        with pytest.raises(RuntimeError, match="StopIteration"):  # Python's own doing
            Raiser().throw_async.remote(error, "from inside")
        return
    with pytest.raises(gw.RemoteError, match="from inside") as caught:
        getattr(Raiser(), method).remote(error, "from inside")
    assert caught.value.type_name == error.__name__
    assert caught.value.message == "from inside"
    assert method in caught.value.traceback
    assert f"{error.__module__}.{error.__qualname__}" in caught.value.mro
    assert method in str(caught.value.__cause__)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
def test_the_same_holds_for_streams(error: type[BaseException], same_worker: None) -> None:
    items = Raiser().stream.stream(error)
    assert next(items) == 1
    with pytest.raises(gw.RemoteError) as caught:
        next(items)
    assert caught.value.type_name == error.__name__


@pytest.mark.parametrize(
    ("error", "args", "message"),
    [
        (PickyError, (1, 2), "1 and 2"),
        (HoldingError, ("with a lock",), "with a lock"),
        (ShapeShifterError, ("before",), "before"),
        (PickyExit, ("leaving",), "leaving"),
    ],
)
def test_an_exception_that_cannot_be_pickled_both_ways_arrives_as_remote_error(
    error: type[Exception], args: tuple[Any, ...], message: str, same_worker: None
) -> None:
    with pytest.raises(gw.RemoteError) as caught:
        Raiser().throw.remote(error, *args)
    assert (caught.value.type_name, caught.value.message) == (error.__name__, message)
    assert "in throw" in caught.value.traceback
    assert message in str(caught.value) and error.__name__ in str(caught.value)


def test_an_exception_that_cannot_even_be_printed_still_arrives(same_worker: None) -> None:
    with pytest.raises(SilentError):
        Raiser().throw.remote(SilentError)


@pytest.mark.parametrize("method", ["result", "result_async"])
def test_a_result_that_cannot_be_pickled_is_an_error_that_names_method_and_type(method: str, same_worker: None) -> None:
    with pytest.raises(TypeError, match=rf"Raiser\.{method}\(\) returned.*lock.*cannot be pickled"):
        getattr(Raiser(), method).remote(threading.Lock)
    for error in (RuntimeError, SystemExit, KeyboardInterrupt, asyncio.CancelledError):
        with pytest.raises(TypeError, match="UnpicklableResult"):
            getattr(Raiser(), method).remote(lambda error=error: UnpicklableResult(error))


def test_a_task_that_an_async_method_starts_cannot_end_the_worker(same_worker: None) -> None:
    assert Raiser().background_exit.spawn().get(timeout_s=10) == "still here"


def test_an_error_in_one_input_touches_no_other(make_app: Any, gate: Gate) -> None:
    own = make_app()

    @own.cls(max_workers=1, cpu=0.1)
    @gw.concurrent(max_inputs=8)
    class Many:
        @gw.method()
        async def run(self, error: type[BaseException] | None) -> str:
            await gate.wait_async()
            if error is not None:
                raise error("from one of many")
            return "fine"

    calls = [Many().run.spawn(error) for error in (None, MyError, None, SystemExit, None, asyncio.CancelledError)]
    eventually(lambda: gate.arrivals == 6)
    gate.open()
    assert [calls[i].get(timeout_s=5) for i in (0, 2, 4)] == ["fine"] * 3
    for i, kind in ((1, MyError), (3, gw.RemoteError), (5, gw.RemoteError)):
        with pytest.raises(kind):
            calls[i].get(timeout_s=5)


# --- and the worker --------------------------------------------------------------------------------------------------


class OutOfLuckError(gw.Fatal):
    """A Fatal of the user's own."""


@app.cls(max_workers=1, cpu=0.1)
class Replaceable:
    @gw.on_exit()
    def leave(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.write(f"left {os.getpid()}")

    @gw.method()
    def pid(self) -> int:
        return os.getpid()

    @gw.method()
    def throw(self, error: type[BaseException], message: str, ledger: Ledger | None = None) -> None:
        if ledger is not None:
            self.ledger = ledger
        raise error(message)

    @gw.method()
    @gw.batched(max_batch_size=4, wait_ms=100)
    def one_fatal(self, items: list[int]) -> list[Any]:
        return [OutOfLuckError("element") if item == 2 else item for item in items]

    @gw.method()
    def die(self) -> None:
        os._exit(5)


def replaceable(number: int) -> Any:
    """A pool of the test's own, which has not lost a worker yet."""
    return Replaceable.with_options(scaledown_window_s=100 + number)()  # type: ignore[attr-defined]


def other_worker(handle: Any, than: int) -> int:
    """The pid of the worker, once it is another one."""
    pid: int = eventually(lambda: (pid := handle.pid.spawn().get(timeout_s=20)) != than and pid, 20)
    return pid


def test_fatal_reaches_the_caller_and_replaces_the_worker_gracefully(ledger: Ledger) -> None:
    handle = replaceable(1)
    before = handle.pid.remote()
    with pytest.raises(gw.Fatal, match="broken"):
        handle.throw.remote(gw.Fatal, "broken", ledger)
    other_worker(handle, before)
    eventually(lambda: ledger.lines() == [f"left {before}"])


def test_a_fatal_of_the_users_own_among_the_results_of_a_batch_replaces_the_worker_and_spares_the_other_results() -> (
    None
):
    handle = replaceable(3)
    before = handle.pid.remote()
    outcomes = list(handle.one_fatal.map([1, 2, 3], return_exceptions=True))
    assert [outcomes[0], outcomes[2]] == [1, 3] and type(outcomes[1]) is OutOfLuckError
    other_worker(handle, before)


def test_a_cuda_error_that_poisons_the_process_replaces_the_worker_and_others_do_not() -> None:
    handle = replaceable(4)
    before = handle.pid.remote()
    with pytest.raises(RuntimeError, match="out of memory"):
        handle.throw.remote(RuntimeError, "CUDA error: out of memory")
    with pytest.raises(RuntimeError, match="illegal"):
        handle.throw.remote(RuntimeError, "an illegal memory access, but of another kind")
    assert handle.pid.remote() == before
    with pytest.raises(RuntimeError, match="illegal"):
        handle.throw.remote(RuntimeError, "CUDA error: an illegal memory access was encountered\nCompile with ...")
    other_worker(handle, before)


def test_a_worker_that_dies_is_worker_lost_to_its_caller_and_is_replaced() -> None:
    handle = replaceable(5)
    before = handle.pid.remote()
    with pytest.raises(gw.WorkerLost, match=r"Replaceable\.die.*may have started") as caught:
        handle.die.remote()
    assert caught.value.retryable
    assert handle.pid.spawn().get(timeout_s=20) != before
