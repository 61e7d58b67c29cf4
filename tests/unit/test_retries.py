"""DESIGN §3 and §4: the retry policy, its delays and what it matches."""

from __future__ import annotations

import pickle
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gworker.errors import Fatal, GWorkerError, InvalidDefinition, RemoteError
from gworker.retries import Retries
from gworker.wire import Failure, Payload, pack_exception


def test_delays_grow_by_the_coefficient_up_to_the_maximum():
    policy = Retries(max_retries=9, initial_delay_s=0.5, backoff_coefficient=3, max_delay_s=10)
    assert [policy.delay_s(n) for n in (1, 2, 3, 4, 5)] == [0.5, 1.5, 4.5, 10, 10]


def test_a_coefficient_of_one_keeps_the_delay():
    policy = Retries(max_retries=3, initial_delay_s=2, backoff_coefficient=1)
    assert policy.delay_s(1) == policy.delay_s(50) == 2


@given(
    initial=st.floats(0, 60),
    coefficient=st.floats(1, 1e6),
    number=st.integers(1, 10_000),
)
def test_a_delay_is_never_beyond_the_maximum_whatever_the_retry_number(initial, coefficient, number):
    policy = Retries(max_retries=1, initial_delay_s=initial, backoff_coefficient=coefficient)
    assert 0 <= policy.delay_s(number) <= policy.max_delay_s


def test_defaults_are_those_of_the_design():
    policy = Retries(max_retries=2)
    assert (policy.initial_delay_s, policy.backoff_coefficient, policy.max_delay_s) == (1.0, 2.0, 60.0)
    assert policy.retry_on == (Exception,)


@pytest.mark.parametrize(("given_value", "retries"), [(0, 0), (3, 3), (None, 0), (Retries(max_retries=2), 2)])
def test_of_takes_a_number_a_policy_or_none(given_value, retries):
    assert Retries.of(given_value).max_retries == retries


@pytest.mark.parametrize("wrong", [True, -1, 1.5, "3", [1]])
def test_of_refuses_anything_else_and_says_what_to_write(wrong):
    with pytest.raises(InvalidDefinition, match=r"write retries=3 or retries=gw\.Retries\(max_retries=3") as info:
        Retries.of(wrong)
    assert repr(wrong) in str(info.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_retries", -1),
        ("max_retries", True),
        ("max_retries", 1.0),
        ("initial_delay_s", -0.1),
        ("initial_delay_s", float("nan")),
        ("backoff_coefficient", 0.5),
        ("max_delay_s", float("inf")),
        ("max_delay_s", "60"),
    ],
)
def test_wrong_numbers_are_refused_by_name(name, value):
    with pytest.raises(InvalidDefinition, match=rf"gw\.Retries: {name}=.*write for example {name}="):
        Retries(**{"max_retries": 3, name: value})


def test_a_delay_above_the_maximum_is_refused():
    with pytest.raises(
        InvalidDefinition, match="initial_delay_s=120 is greater than max_delay_s=60: write max_delay_s=120"
    ):
        Retries(max_retries=1, initial_delay_s=120)


@pytest.mark.parametrize("wrong", ["ValueError", (ValueError, 3), ValueError("x"), (int,)])
def test_retry_on_takes_exception_classes_only(wrong):
    with pytest.raises(InvalidDefinition, match=r"expected exception classes: write for example retry_on=\("):
        Retries(max_retries=1, retry_on=wrong)


def test_retry_on_may_be_a_list_or_one_class():
    assert Retries(max_retries=1, retry_on=[ValueError, KeyError]).retry_on == (ValueError, KeyError)
    assert Retries(max_retries=1, retry_on=ValueError).retry_on == (ValueError,)


def on(*classes):
    return Retries(max_retries=1, retry_on=classes)


class Spiteful(LookupError):  # noqa: N818
    """Must not be unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def test_matches_goes_by_class_and_subclass():
    assert on(LookupError).matches(pack_exception(KeyError("x")))
    assert not on(LookupError).matches(pack_exception(ValueError("x")))
    assert on(OSError).matches(pack_exception(ConnectionResetError()))
    assert on(ValueError, OSError).matches(pack_exception(TimeoutError()))


def test_matches_unpickles_nothing():
    failure = Failure(Payload(pickle.dumps(Spiteful("x"))), "Spiteful", "x", "", pack_exception(Spiteful("x")).mro)
    assert on(Spiteful).matches(failure)
    assert on(LookupError).matches(failure)
    assert not on(KeyError).matches(failure)


class Outer:
    class FlakyError(Exception):
        """Can be imported, so its qualified name is its own."""


def test_a_class_that_travels_by_value_is_known_by_its_plain_name_because_cloudpickle_drops_the_other():
    class LocalError(Exception):
        pass

    name = f"{__name__}.LocalError"
    assert on(LocalError).matches(Failure(Payload(b""), "LocalError", "", "", (name,)))
    assert on(Outer.FlakyError).matches(pack_exception(Outer.FlakyError()))
    plain = f"{__name__}.FlakyError"
    assert not on(Outer.FlakyError).matches(Failure(Payload(b""), "FlakyError", "", "", (plain,)))


def test_a_class_that_was_defined_anew_is_still_meant():
    def define():
        class FlakyError(Exception):
            pass

        return FlakyError

    before, after = define(), define()
    assert on(before).matches(pack_exception(after()))


def test_the_default_matches_whatever_a_method_raises():
    policy = Retries(max_retries=1)
    assert policy.matches(pack_exception(Fatal("gpu")))
    assert policy.matches(pack_exception(SystemExit(1))), "it arrives as RemoteError, which is an Exception"


def test_what_arrives_as_remote_error_counts_as_that_and_as_what_was_raised():
    failure = pack_exception(KeyError(threading.Lock()))
    assert failure.pickled is None
    assert on(LookupError).matches(failure)
    assert on(RemoteError).matches(failure)
    assert on(GWorkerError).matches(failure)
    assert not on(ValueError).matches(failure)
    assert not on(RemoteError).matches(pack_exception(KeyError("x")))


def test_a_remote_error_that_a_method_passes_on_still_counts_as_what_was_raised():
    error = RemoteError("KeyError", "x", "", ("builtins.KeyError", "builtins.LookupError", "builtins.Exception"))
    assert on(LookupError).matches(pack_exception(error))
    assert on(RemoteError).matches(pack_exception(error))
    assert not on(ValueError).matches(pack_exception(error))


def test_a_policy_travels_by_pickle():
    policy = Retries(max_retries=3, retry_on=(KeyError,))
    assert pickle.loads(pickle.dumps(policy)) == policy
