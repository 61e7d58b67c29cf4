"""DESIGN §6: the tree of errors, their HTTP statuses, and that they survive the way between processes."""

from __future__ import annotations

import copy
import pickle
import traceback

import pytest

from gworker import errors
from gworker.errors import (
    AuthenticationError,
    BatchResultError,
    CallCancelled,
    DeadlineExceeded,
    Fatal,
    GWorkerError,
    InvalidDefinition,
    NotFound,
    PoolUnavailable,
    QueueFull,
    RemoteError,
    RemoteTraceback,
    StartupFailed,
    Unschedulable,
    WorkerLost,
    anew,
)

STATUSES = {
    GWorkerError: 500,
    InvalidDefinition: 400,
    NotFound: 404,
    QueueFull: 429,
    PoolUnavailable: 503,
    StartupFailed: 503,
    Unschedulable: 503,
    DeadlineExceeded: 504,
    CallCancelled: 499,
    WorkerLost: 502,
    BatchResultError: 500,
    RemoteError: 500,
    AuthenticationError: 401,
}


def made(cls: type[Exception]) -> Exception:
    return RemoteError("ValueError", "bad", "Traceback ...") if cls is RemoteError else cls("what happened")


def test_the_table_of_statuses_is_complete():
    public = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, GWorkerError)}
    assert public == set(STATUSES)


@pytest.mark.parametrize("cls", STATUSES, ids=lambda c: c.__name__)
def test_each_error_knows_its_http_status_on_class_and_instance(cls):
    assert cls.http_status == STATUSES[cls]
    assert made(cls).http_status == STATUSES[cls]


@pytest.mark.parametrize("cls", STATUSES, ids=lambda c: c.__name__)
def test_each_error_says_whether_trying_again_can_help(cls):
    assert cls.retryable is (cls in {QueueFull, PoolUnavailable, WorkerLost})


@pytest.mark.parametrize("cls", [*STATUSES, Fatal, RemoteTraceback], ids=lambda c: c.__name__)
@pytest.mark.parametrize("travel", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_each_error_survives_pickling_with_its_text_and_attributes(cls, travel):
    error = made(cls)
    error.extra = [1, 2]
    again = travel(error)
    assert type(again) is cls
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize("cls", STATUSES, ids=lambda c: c.__name__)
def test_each_caller_of_many_with_one_error_has_a_traceback_and_notes_of_its_own_and_the_same_cause(cls):
    cause = KeyError("why")
    with pytest.raises(cls) as raised:
        raise made(cls) from cause
    error = raised.value
    error.__notes__ = ["first"]
    before = traceback.extract_tb(error.__traceback__)
    for _ in range(3):
        with pytest.raises(cls) as raised:
            raise anew(error)
        mine = raised.value
        assert mine is not error and type(mine) is cls and str(mine) == str(error)
        assert mine.__cause__ is cause and mine.__suppress_context__
        assert len(traceback.extract_tb(mine.__traceback__)) == 1
        mine.__notes__.append("mine")
    assert error.__notes__ == ["first"]
    assert traceback.extract_tb(error.__traceback__) == before


def test_invalid_definition_is_a_type_error_and_a_value_error():
    assert issubclass(InvalidDefinition, TypeError)
    assert issubclass(InvalidDefinition, ValueError)


def test_deadline_exceeded_is_a_timeout_error_and_keeps_its_limit_across_pickling():
    error = pickle.loads(pickle.dumps(DeadlineExceeded("too slow", limit="deadline_s", where="worker queue")))
    assert isinstance(error, TimeoutError)
    assert (str(error), error.limit, error.where) == ("too slow", "deadline_s", "worker queue")


def test_deadline_exceeded_without_details_has_empty_ones():
    error = DeadlineExceeded("too slow")
    assert (error.limit, error.where) == ("", "")


def test_remote_error_describes_what_was_raised():
    error = RemoteError("KeyError", "'x'", "Traceback ...", ("builtins.KeyError", "builtins.LookupError"))
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "KeyError: 'x'"
    assert (again.type_name, again.message, again.traceback) == ("KeyError", "'x'", "Traceback ...")
    assert again.mro == ("builtins.KeyError", "builtins.LookupError")


def test_remote_error_without_a_message_is_just_the_type():
    assert str(RemoteError("SystemExit", "")) == "SystemExit"


def test_remote_errors_made_with_keywords_survive_pickling():
    error = RemoteError(type_name="KeyError", message="'x'", traceback="...", mro=("builtins.KeyError",))
    assert str(pickle.loads(pickle.dumps(error))) == "KeyError: 'x'"
    assert str(pickle.loads(pickle.dumps(RemoteTraceback(text="line 3")))) == str(RemoteTraceback("line 3"))


def test_fatal_is_for_users_and_not_a_gworker_error():
    assert not issubclass(Fatal, GWorkerError)


def test_remote_traceback_shows_the_workers_traceback():
    assert "line 3, in embed" in str(RemoteTraceback('  File "m.py", line 3, in embed\n'))
