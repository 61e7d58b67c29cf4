"""What travels between a router and a worker: values, exceptions both ways, and bundles in order."""

from __future__ import annotations

import asyncio
import concurrent.futures
import decimal
import enum
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gworker.context import WaitingPool
from gworker.errors import BatchResultError, DeadlineExceeded, Fatal, RemoteError, RemoteTraceback, WorkerLost
from gworker.wire import (
    INLINE_BUFFER_BYTES,
    Busy,
    Cancel,
    Credit,
    Down,
    Ended,
    Failure,
    InOrder,
    Item,
    Payload,
    Raised,
    Returned,
    Started,
    Submit,
    Up,
    decode,
    encode,
    from_plain,
    pack,
    pack_arguments,
    pack_exception,
    packed_bytes,
    to_plain,
    unpack,
    unpack_arguments,
    unpack_exception,
)

_MESSAGES = (Submit, Cancel, Credit, Started, Busy, Returned, Raised, Item, Ended)

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


@given(st.lists(scalars, max_size=4), st.dictionaries(st.text(max_size=5), scalars, max_size=4))
def test_plain_arguments_arrive_as_they_were(args: list[Any], kwargs: dict[str, Any]) -> None:
    packed = pack_arguments(tuple(args), kwargs)
    for arrived in (unpack_arguments(packed), unpack_arguments(pickle.loads(pickle.dumps(packed)))):
        assert arrived == (tuple(args), kwargs)
        assert [type(value) for value in arrived[0]] == [type(value) for value in args]


@pytest.mark.parametrize(
    "value",
    [0.0, -0.0, float("inf"), float("nan"), 2**63 - 1, -(2**63), "\ud800", "\0", b"\xff", True, None, ""],
    ids=repr,
)
def test_what_cannot_change_and_runs_no_code_travels_as_it_is(value: Any) -> None:
    assert pack(value) == (value,) and pack(value)[0] is value  # type: ignore[index]
    assert pack_arguments((value,), {"x": value}) == (((value,), {"x": value}),)
    arrived = travel(value)
    assert type(arrived) is type(value) and repr(arrived) == repr(value)


class Colour(enum.IntEnum):
    RED = 1


class Word(str):
    """A text of somebody's own: to unpickle it runs their code."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return _word, (str(self),)


def _word(text: str) -> Word:
    return Word(text)


class Number(int):
    pass


class Mode(str, enum.Enum):
    FAST = "fast"


@pytest.mark.parametrize(
    "value", [Colour.RED, Mode.FAST, Word("w"), Number(3), np.float64(1.5), np.int64(2), np.bool_(True)], ids=repr
)
def test_what_is_only_derived_from_a_plain_type_is_pickled_and_arrives_as_what_it_was(value: Any) -> None:
    for packed in (pack(value), pack_arguments((value,), {}), pack_arguments((), {"x": value})):
        assert isinstance(packed, (bytes, Payload))
    arrived = travel(value)
    assert type(arrived) is type(value) and arrived == value


def test_no_code_of_anybodys_runs_where_a_name_of_an_argument_is_unpickled_with_its_bundle() -> None:
    packed = pack_arguments((), {Word("x"): 1})
    assert isinstance(packed, (bytes, Payload))
    assert unpack_arguments(packed) == ((), {"x": 1})


@pytest.mark.parametrize("value", ["x" * 2000, b"x" * 2000, 2**63, -(2**63) - 1, [], (), {}, (1,), [None]], ids=type)
def test_what_is_large_or_could_change_is_pickled_by_its_owner(value: Any) -> None:
    assert isinstance(pack(value), bytes)
    assert isinstance(pack_arguments((value,), {}), bytes)
    assert isinstance(pack_arguments((), {"x": value}), bytes)
    assert travel(value) == value


def test_what_a_call_weighs_in_the_queue_is_about_what_it_has() -> None:
    # As they are, arguments count little: so they are little, all of them together.
    for count, size in ((1, 1000), (10, 100), (30, 1000), (1, 10**6), (1000, 1)):
        texts = tuple(f"{number:04}".ljust(size)[:size] for number in range(count))
        for packed in (pack_arguments(texts, {}), pack_arguments((), {f"x{n}": text for n, text in enumerate(texts)})):
            assert count * size / 5 < packed_bytes(packed) < count * size + 300 + 20 * count


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


# --- bundles -----------------------------------------------------------------------------------------------------

_packed = st.tuples(scalars) | st.binary(max_size=20)
_calls = st.integers(0, 2**40)
_failures = st.builds(
    Failure,
    st.none() | _packed,
    st.text(max_size=5),
    st.text(max_size=5),
    st.text(max_size=5),
    st.lists(st.text(max_size=5), max_size=2).map(tuple),
    st.booleans(),
)
_waits = st.lists(st.builds(WaitingPool, st.text(max_size=5), st.booleans()), max_size=2).map(tuple)
_seconds = st.floats(0, 100)
_limits = st.none() | _seconds
_submits = st.builds(
    Submit, _calls, st.text(max_size=5), st.text(max_size=5), _packed, st.none() | _packed, st.text(max_size=5),
    st.integers(1, 9), _limits, _limits, st.integers(0, 9), st.integers(0, 9), _waits,
)  # fmt: skip
_ups = st.builds(
    Up, st.text(max_size=5), _calls, st.integers(-1, 9), st.integers(0, 9), st.booleans(),
    st.lists(_submits | st.builds(Cancel, _calls) | st.builds(Credit, _calls, st.integers(1, 9)), max_size=4),
)  # fmt: skip
_answers = (
    st.builds(Started, _calls)
    | st.builds(Busy, _calls)
    | st.builds(Returned, _calls, _packed, _seconds, _seconds)
    | st.builds(
        Raised,
        _calls,
        _failures,
        st.integers(1, 9),
        st.sampled_from(["user", "system", "nobody"]),
        _limits,
        _limits,
        st.sampled_from(["timeout_s", "deadline_s", None]),
    )
    | st.builds(Item, _calls, _packed)
    | st.builds(Ended, _calls, _seconds, _seconds)
)
_downs = st.builds(
    Down, _calls, st.integers(-1, 9), st.integers(0, 9), st.booleans(), st.lists(_answers, max_size=4)
)  # fmt: skip


@given(_ups | _downs)
def test_any_bundle_arrives_as_what_it_was(bundle: Any) -> None:
    kind = type(bundle)
    for arrived in (
        from_plain(kind, to_plain(bundle)),
        from_plain(kind, pickle.loads(pickle.dumps(to_plain(bundle)))),
        decode(encode(bundle), kind),
    ):
        assert arrived == bundle
        assert type(arrived) is kind
        assert [type(message) for message in arrived.messages] == [type(message) for message in bundle.messages]


def test_no_bundle_arrives_as_none() -> None:
    assert decode(encode(None), Down) is None


_junk: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.lists(inner, max_size=6).map(tuple)
        | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=8,
)
_almost = st.tuples(
    _junk,
    _junk,
    _junk,
    _junk,
    _junk,
    st.lists(st.tuples(st.integers(-12, 12), st.lists(scalars, max_size=12)), max_size=2),
)


@given(st.sampled_from([Up, Down]), _junk | _almost | _almost.map(lambda plain: plain[1:]))
def test_what_is_no_bundle_raises_what_ends_a_connection_and_nothing_else(kind: Any, plain: Any) -> None:
    try:
        bundle = from_plain(kind, plain)
    except (ValueError, TypeError, IndexError, KeyError):
        return
    assert type(bundle) is kind
    assert {type(message) for message in bundle.messages} <= {*_MESSAGES}


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
