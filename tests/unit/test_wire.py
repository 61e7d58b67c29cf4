"""What travels between a router and a worker: values, exceptions both ways, and bundles in order."""

from __future__ import annotations

import asyncio
import concurrent.futures
import decimal
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gworker.errors import BatchResultError, DeadlineExceeded, Fatal, RemoteError, RemoteTraceback, WorkerLost
from gworker.wire import (
    INLINE_BUFFER_BYTES,
    Cancel,
    Down,
    InOrder,
    Payload,
    Returned,
    Submit,
    Up,
    decode,
    encode,
    pack,
    pack_exception,
    packed_bytes,
    unpack,
    unpack_exception,
)

LARGE = INLINE_BUFFER_BYTES  # bytes: from this size on a buffer travels beside the pickle


def travel(value: Any) -> Any:
    """Through a payload, a bundle, and back: what a result goes through on its way to a caller."""
    bundle = Down(0, -1, 1, False, (Returned(1, pack(value)),))
    again = decode(encode(bundle), Down)
    assert again is not None
    (message,) = again.messages
    assert isinstance(message, Returned)
    return unpack(message.result)


# --- values ------------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary()


@given(scalars | st.dictionaries(st.text(max_size=5), st.lists(scalars, max_size=3) | st.tuples(scalars), max_size=3))
def test_plain_data_arrives_as_it_was(value: Any) -> None:
    assert travel(value) == value


def test_functions_and_classes_of_no_importable_module_arrive_by_value() -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    offset = 3
    function, point = travel((lambda x: x + offset, Point(4)))
    assert function(1) == 4
    assert point.x == 4


def test_what_cannot_be_pickled_raises_where_it_is_packed() -> None:
    with pytest.raises(TypeError, match="lock"):
        pack(threading.Lock())


# --- arrays ------------------------------------------------------------------------------------------------------

SIZES = pytest.mark.parametrize("count", [0, 1, 10, LARGE], ids=["empty", "one", "small", "large"])


@SIZES
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "complex128", "S5", "datetime64[s]"])
def test_an_array_arrives_equal_writable_and_its_own(dtype: str, count: int) -> None:
    sent = np.zeros(count, dtype=dtype)
    arrived = travel(sent)
    assert arrived.dtype == sent.dtype and arrived.shape == sent.shape
    assert np.array_equal(arrived, sent)
    assert arrived.flags.writeable
    if count:
        arrived[0] = 1
        assert not np.array_equal(arrived, sent)
        assert np.array_equal(sent, np.zeros(count, dtype=dtype))


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.arange(LARGE, dtype="f4").reshape(64, -1).T,
        lambda: np.arange(LARGE, dtype="f4")[::2],
        lambda: np.arange(LARGE, dtype="f4")[::-1],
        lambda: np.asfortranarray(np.arange(LARGE, dtype="f4").reshape(64, -1)),
        lambda: np.broadcast_to(np.float32(1), (64, LARGE)),
        lambda: np.array(3.5),
        lambda: np.array([{"a": 1}, None], dtype=object),
        lambda: np.zeros(LARGE, dtype=[("a", "f4"), ("b", "i4")]),
    ],
    ids=["transposed", "strided", "reversed", "fortran", "broadcast", "scalar", "objects", "records"],
)
def test_arrays_of_every_layout_arrive_equal(make: Callable[[], Any]) -> None:
    sent = make()
    arrived = travel(sent)
    assert arrived.shape == sent.shape and arrived.dtype == sent.dtype
    assert np.array_equal(arrived, sent)
    assert arrived.flags.writeable


def test_a_read_only_array_arrives_writable() -> None:
    sent = np.zeros(LARGE)
    sent.flags.writeable = False
    arrived = travel(sent)
    arrived[0] = 1.0


def test_two_receivers_of_one_payload_do_not_share_memory() -> None:
    payload = pack(np.zeros(LARGE))
    one, other = unpack(payload), unpack(payload)
    one[:] = 1.0
    assert other.sum() == 0.0


def test_the_sender_may_use_its_array_again_once_it_is_packed() -> None:
    # A method that returns the same preallocated array each time; an iterator that fills one array for .map.
    reused = np.zeros(LARGE)
    payload = pack(reused)
    reused[:] = 1.0
    assert unpack(payload).sum() == 0.0


def test_a_large_array_travels_beside_the_pickle_and_a_small_one_inside() -> None:
    large, small = pack(np.zeros(LARGE, dtype="u1")), pack(np.zeros(LARGE - 1, dtype="u1"))
    assert isinstance(large, Payload) and len(large.buffers) == 1 and len(large.data) < 1000
    assert isinstance(small, bytes)


def test_the_size_of_a_payload_counts_its_buffers() -> None:
    assert 10_000 <= packed_bytes(pack([np.zeros(5000, dtype="u1"), np.zeros(5000, dtype="u1")])) < 11_000
    assert packed_bytes(pack([None])) < 20


def test_the_buffers_of_a_bundle_stay_out_of_its_pickle() -> None:
    encoded = encode(Down(0, -1, 1, False, (Returned(1, pack(np.zeros(10**6, dtype="u1"))),)))
    assert isinstance(encoded, tuple)
    data, buffers = encoded
    assert len(data) < 1000
    assert [memoryview(b).nbytes for b in buffers] == [10**6]


def test_a_bundle_without_large_buffers_is_one_string_of_bytes() -> None:
    submit = Submit(7, "id", "embed", pack(((), {"x": 1})), None, "", 1, None, None, 0, 0)
    up = Up("session", 3, -1, 0, False, [submit, Cancel(6)])
    encoded = encode(up)
    assert isinstance(encoded, bytes)
    assert decode(encoded, Up) == up


def test_many_arrays_in_one_value_arrive_each_in_its_place() -> None:
    sent = {"a": np.full(LARGE, 1.0), "b": [np.full(LARGE, 2.0), np.full(3, 3.0)], "c": np.full(LARGE, 4.0)}
    arrived = travel(sent)
    assert arrived["a"][0] == 1.0 and arrived["b"][0][0] == 2.0 and arrived["b"][1][0] == 3.0 and arrived["c"][0] == 4.0


def test_bytearrays_and_large_bytes_arrive_as_what_they_were() -> None:
    arrived = travel([b"x" * 10**5, bytearray(b"y" * 10**5)])
    assert arrived == [b"x" * 10**5, bytearray(b"y" * 10**5)]
    assert [type(a) for a in arrived] == [bytes, bytearray]


# --- exceptions --------------------------------------------------------------------------------------------------


class PlainError(Exception):
    pass


class RichError(Exception):
    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail

    def __reduce__(self) -> Any:
        return (_rich, (self.code, self.detail))


def _rich(code: int, detail: str) -> RichError:
    return RichError(code, detail=detail)


class TwoArgumentsError(Exception):
    """Pickles, but does not unpickle: its __init__ takes more than it hands to Exception."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class UnpicklableError(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class ExitingError(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def raised(error: BaseException) -> BaseException:
    """`error` as its caller receives it."""
    try:
        raise error
    except BaseException as caught:
        failure = pack_exception(caught)
    return unpack_exception(pickle.loads(pickle.dumps(failure)))


@pytest.mark.parametrize(
    "error",
    [
        PlainError("boom", 3),
        KeyError("k"),
        decimal.DivisionByZero("x"),
        WorkerLost("gone"),
        BatchResultError("2, not 3"),
        Fatal("replace me"),
        OSError(2, "No such file", "/x"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_exception_arrives_as_what_it_was_with_the_workers_traceback_as_its_cause(error: Exception) -> None:
    arrived = raised(error)
    assert type(arrived) is type(error)
    assert arrived.args == error.args
    assert isinstance(arrived.__cause__, RemoteTraceback)
    assert "raise error" in str(arrived.__cause__) and type(error).__name__ in str(arrived.__cause__)


def test_attributes_of_an_exception_arrive() -> None:
    rich = raised(RichError(7, detail="why"))
    assert isinstance(rich, RichError) and (rich.code, rich.detail) == (7, "why")
    limit = raised(DeadlineExceeded("late", limit="timeout_s", where="running"))
    assert isinstance(limit, DeadlineExceeded) and (limit.limit, limit.where) == ("timeout_s", "running")


def test_a_class_of_no_importable_module_arrives_by_value() -> None:
    class LocalError(Exception):
        pass

    assert type(raised(LocalError("x"))).__name__ == "LocalError"


def test_the_chain_of_causes_is_in_the_traceback() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise PlainError("outer") from inner
    except PlainError as caught:
        arrived = unpack_exception(pack_exception(caught))
    assert "KeyError: 'inner'" in str(arrived.__cause__) and "direct cause" in str(arrived.__cause__)


@pytest.mark.parametrize(
    "error", [TwoArgumentsError(1, 2), UnpicklableError("held a lock"), ExitingError("x")], ids=repr
)
def test_one_that_does_not_survive_pickling_arrives_as_remote_error(error: Exception) -> None:
    arrived = raised(error)
    assert isinstance(arrived, RemoteError)
    assert arrived.type_name == type(error).__name__
    assert arrived.message == str(error)
    assert "raise error" in arrived.traceback
    assert isinstance(arrived.__cause__, RemoteTraceback)


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(1),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(3),
        StopAsyncIteration(),
        asyncio.CancelledError(),
        concurrent.futures.CancelledError(),
    ],
    ids=lambda e: f"{type(e).__module__}.{type(e).__name__}",
)
def test_one_that_would_change_the_callers_control_flow_arrives_as_remote_error(error: BaseException) -> None:
    arrived = raised(error)
    assert isinstance(arrived, RemoteError)
    assert arrived.type_name == type(error).__name__
    assert f"{type(error).__module__}.{type(error).__qualname__}" in arrived.mro


def test_one_whose_own_text_raises_arrives_all_the_same() -> None:
    arrived = raised(MuteError())
    assert isinstance(arrived, MuteError)
    assert "MuteError" in str(arrived.__cause__)


def test_one_that_only_the_worker_can_unpickle_arrives_as_remote_error(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = pack_exception(PlainError("boom"))
    monkeypatch.delitem(globals(), "PlainError")
    arrived = unpack_exception(failure)
    assert isinstance(arrived, RemoteError)
    assert arrived.type_name == "PlainError" and arrived.message == "boom"


def test_what_unpickles_to_no_exception_arrives_as_remote_error() -> None:
    failure = pack_exception(PlainError("boom"))._replace(pickled=Payload(pickle.dumps("not an exception")))
    assert isinstance(unpack_exception(failure), RemoteError)


def test_a_remote_error_that_passes_through_a_second_worker_keeps_what_it_tells() -> None:
    first = raised(UnpicklableError("held a lock"))
    second = raised(first)
    assert isinstance(second, RemoteError)
    assert (second.type_name, second.message) == ("UnpicklableError", "held a lock")


# --- order -------------------------------------------------------------------------------------------------------


@given(st.permutations(range(12)))
def test_bundles_are_handed_out_in_order_and_as_soon_as_they_can_be(arrivals: list[int]) -> None:
    order = InOrder()
    handed: list[int] = []
    for n, number in enumerate(arrivals):
        handed += order.feed(number, number)
        seen = set(arrivals[: n + 1])
        unbroken = next(i for i in range(13) if i not in seen)
        assert handed == list(range(unbroken))
        assert order.last == unbroken - 1


def test_before_the_first_bundle_the_last_is_minus_one() -> None:
    assert InOrder().last == -1
