"""Retries: how often a call is tried, after what, how soon; and at most once without them."""

from __future__ import annotations

import itertools
import os
import threading
import time
from typing import Any

import pytest

import gworker as gw
from tests.conftest import Gate, Ledger, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("module_app")]

app = gw.App("contract-retries")


class FlakyError(Exception):
    """Worth another try."""


class HoldingError(Exception):
    """Cannot be pickled, so it arrives as RemoteError."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class DerivedHoldingError(HoldingError):
    """Is found by its base."""


def soon(max_retries: int, **options: Any) -> gw.Retries:
    """A policy that does not wait long."""
    return gw.Retries(max_retries=max_retries, **{"initial_delay_s": 0.01, **options})


@app.cls(max_workers=1, cpu=0.1)
@gw.concurrent(max_inputs=16)
class Flaky:
    @gw.method()
    def fail_until(self, attempt: int, ledger: Ledger, error: type[BaseException] = FlakyError) -> int:
        """Raise before the attempt with this number."""
        now = gw.current_attempt_number()
        assert now == gw.current_call().attempt
        ledger.write(f"{now} {gw.current_call().id} {time.monotonic()}")
        if now < attempt:
            raise error(f"attempt {now}")
        return now

    @gw.method()
    async def fail_until_async(self, attempt: int, ledger: Ledger, error: type[BaseException] = FlakyError) -> int:
        return Flaky.user_cls.fail_until(self, attempt, ledger, error)  # type: ignore[attr-defined,no-any-return]

    @gw.method()
    def overrun_until(self, attempt: int, ledger: Ledger) -> int:
        now = gw.current_attempt_number()
        ledger.write(str(now))
        if now < attempt:
            call = gw.current_call()
            eventually(lambda: call.cancelled)
        return now


def attempts(ledger: Ledger) -> list[int]:
    """The numbers of the attempts that ran."""
    return [int(line.split()[0]) for line in ledger.lines()]


# --- how often -------------------------------------------------------------------------------------------------------


def test_without_retries_a_call_runs_once(ledger: Ledger) -> None:
    with pytest.raises(FlakyError, match="attempt 1"):
        Flaky().fail_until.remote(2, ledger)
    assert attempts(ledger) == [1]


@pytest.mark.parametrize("method", ["fail_until", "fail_until_async"])
def test_attempts_count_from_one_and_keep_the_id_of_the_call(method: str, ledger: Ledger) -> None:
    call = getattr(Flaky(), method).with_options(retries=soon(2)).spawn(3, ledger)
    assert call.get() == 3
    assert attempts(ledger) == [1, 2, 3]
    assert {line.split()[1] for line in ledger.lines()} == {call.id}


def test_max_retries_does_not_count_the_first_try_and_the_last_error_is_raised(ledger: Ledger) -> None:
    with pytest.raises(FlakyError, match="attempt 3"):
        Flaky().fail_until.with_options(retries=soon(2)).remote(9, ledger)
    assert attempts(ledger) == [1, 2, 3]


def test_the_retries_of_the_class_hold_unless_the_call_says_otherwise(ledger: Ledger) -> None:
    patient = Flaky.with_options(retries=soon(1))  # type: ignore[attr-defined]
    assert patient().fail_until.remote(2, ledger) == 2
    with pytest.raises(FlakyError):
        patient().fail_until.with_options(retries=0).remote(2, ledger)
    assert patient().fail_until.with_options(retries=soon(2)).remote(3, ledger) == 3
    assert attempts(ledger) == [1, 2, 1, 1, 2, 3]


# --- after what ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "retry_on", "tried_again"),
    [
        (FlakyError, (FlakyError,), True),
        (FlakyError, (LookupError, FlakyError), True),
        (KeyError, (LookupError,), True),
        (KeyError, (FlakyError,), False),
        (HoldingError, (HoldingError,), True),
        (DerivedHoldingError, (HoldingError,), True),
        (HoldingError, (FlakyError,), False),
        (SystemExit, (SystemExit,), True),
        (SystemExit, (FlakyError,), False),
    ],
)
def test_retry_on_says_which_errors_are_worth_another_try(
    raised: type[BaseException], retry_on: Any, tried_again: bool, ledger: Ledger
) -> None:
    bound = Flaky().fail_until.with_options(retries=soon(1, retry_on=retry_on))
    if tried_again:
        assert bound.remote(2, ledger, raised) == 2
    else:
        with pytest.raises((raised, gw.RemoteError)):
            bound.remote(2, ledger, raised)
    assert attempts(ledger) == ([1, 2] if tried_again else [1])


def test_a_class_that_travels_by_value_is_known_in_retry_on_too(ledger: Ledger) -> None:
    class LocalError(Exception):
        pass

    class DerivedLocalError(LocalError):
        pass

    bound = Flaky().fail_until.with_options(retries=soon(1, retry_on=(LocalError,)))
    assert bound.remote(2, ledger, DerivedLocalError) == 2
    with pytest.raises(FlakyError):
        bound.remote(2, ledger)
    assert attempts(ledger) == [1, 2, 1]


def test_an_execution_that_ran_out_of_time_is_tried_again(ledger: Ledger) -> None:
    assert Flaky().overrun_until.with_options(timeout_s=0.2, retries=soon(1)).remote(2, ledger) == 2
    assert attempts(ledger) == [1, 2]


# --- how soon --------------------------------------------------------------------------------------------------------


def test_the_wait_between_attempts_grows_and_is_capped(ledger: Ledger) -> None:
    policy = gw.Retries(max_retries=4, initial_delay_s=0.1, backoff_coefficient=3, max_delay_s=0.4)
    assert Flaky().fail_until.with_options(retries=policy).remote(5, ledger) == 5
    times = [float(line.split()[2]) for line in ledger.lines()]
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    for waited, wanted in zip(waits, [0.1, 0.3, 0.4, 0.4], strict=True):
        assert wanted <= waited < wanted + 2


def test_a_deadline_holds_for_all_attempts_together_and_tells_of_the_last_error(ledger: Ledger) -> None:
    begun = time.monotonic()
    bound = Flaky().fail_until.with_options(retries=soon(5, initial_delay_s=30), deadline_s=0.5)
    with pytest.raises(gw.DeadlineExceeded, match=r"deadline_s.*attempt 2.*FlakyError: attempt 1") as caught:
        bound.remote(2, ledger)
    assert (caught.value.limit, caught.value.where) == ("deadline_s", "between attempts")
    assert isinstance(caught.value.__cause__, FlakyError)
    assert time.monotonic() - begun < 5
    assert attempts(ledger) == [1]


def test_a_call_that_waits_for_its_next_attempt_can_be_cancelled(ledger: Ledger) -> None:
    call = Flaky().fail_until.with_options(retries=soon(5, initial_delay_s=30)).spawn(2, ledger)
    eventually(lambda: attempts(ledger) == [1])
    call.cancel()
    with pytest.raises(gw.CallCancelled):
        call.get(timeout_s=5)
    assert attempts(ledger) == [1]


# --- lost workers ----------------------------------------------------------------------------------------------------


@app.cls(max_workers=1, cpu=0.1)
class Mortal:
    @gw.method()
    def die_until(self, attempt: int, ledger: Ledger) -> int:
        now = gw.current_attempt_number()
        ledger.write(str(now))
        if now < attempt:
            os._exit(1)
        return now

    @gw.method()
    def die(self, gate: Gate) -> None:
        gate.wait()
        os._exit(1)

    @gw.method()
    def ping(self, ledger: Ledger) -> str:
        ledger.write(str(gw.current_attempt_number()))
        return "pong"


def mortal(number: int) -> Any:
    """A pool of the test's own, which has not lost a worker yet."""
    return Mortal.with_options(scaledown_window_s=100 + number)()  # type: ignore[attr-defined]


def test_a_lost_worker_ends_the_call_that_may_have_started_there(ledger: Ledger) -> None:
    with pytest.raises(gw.WorkerLost, match=r"Mortal\.die_until.*may have started.*retries do not allow"):
        mortal(1).die_until.remote(2, ledger)
    assert attempts(ledger) == [1]


def test_where_retries_allow_a_lost_worker_is_retried_at_once_whatever_retry_on_says(ledger: Ledger) -> None:
    policy = gw.Retries(max_retries=1, initial_delay_s=60, retry_on=(FlakyError,))
    assert mortal(2).die_until.with_options(retries=policy).spawn(2, ledger).get(timeout_s=20) == 2
    assert attempts(ledger) == [1, 2]


def test_a_lost_worker_counts_as_a_try(ledger: Ledger) -> None:
    with pytest.raises(gw.WorkerLost, match="attempt 2"):
        mortal(3).die_until.with_options(retries=1).remote(9, ledger)
    assert attempts(ledger) == [1, 2]


def test_calls_that_had_not_started_when_the_worker_died_run_elsewhere_without_a_retry(
    gate: Gate, ledger: Ledger
) -> None:
    handle = mortal(4)
    killer = handle.die.spawn(gate)
    eventually(lambda: gate.arrivals == 1, 20)
    others = [handle.ping.spawn(ledger) for _ in range(5)]
    gate.open()
    with pytest.raises(gw.WorkerLost):
        killer.get()
    assert [call.get(timeout_s=20) for call in others] == ["pong"] * 5
    assert attempts(ledger) == [1] * 5


# --- batches ---------------------------------------------------------------------------------------------------------


@app.cls(max_workers=1, cpu=0.1)
class Halving:
    @gw.method()
    @gw.batched(max_batch_size=8, wait_ms=300)
    def run(self, items: list[int], ledgers: list[Ledger]) -> list[int]:
        ledgers[0].write(" ".join(map(str, items)))
        if 5 in items:
            raise FlakyError("five")
        return [10 * item for item in items]

    @gw.method()
    @gw.batched(max_batch_size=8, wait_ms=300)
    def element(self, items: list[int], ledgers: list[Ledger]) -> list[Any]:
        ledgers[0].write(" ".join(map(str, items)))
        first = {call.attempt for call in gw.current_call().inputs} == {1}
        return [FlakyError(item) if item == 2 and first else 10 * item for item in items]


def test_without_retries_a_failed_batch_fails_all_its_members(ledger: Ledger) -> None:
    outcomes = list(Halving().run.map(range(8), [ledger] * 8, return_exceptions=True))
    assert [type(outcome) for outcome in outcomes] == [FlakyError] * 8
    assert ledger.lines() == ["0 1 2 3 4 5 6 7"]


def test_the_inputs_of_a_failed_batch_are_retried_in_halves_until_the_poisoned_one_is_alone(ledger: Ledger) -> None:
    bound = Halving().run.with_options(retries=soon(3))
    outcomes = list(bound.map(range(8), [ledger] * 8, return_exceptions=True))
    assert isinstance(outcomes[5], FlakyError)
    assert outcomes[:5] + outcomes[6:] == [0, 10, 20, 30, 40, 60, 70]
    batches = [[int(x) for x in line.split()] for line in ledger.lines()]
    assert [batch for batch in batches if 5 in batch] == [list(range(8)), [4, 5, 6, 7], [4, 5], [5]]
    assert [0, 1, 2, 3] in batches and [6, 7] in batches and [4] in batches


def test_an_element_that_was_an_exception_is_retried_without_the_others(ledger: Ledger) -> None:
    bound = Halving().element.with_options(retries=soon(1))
    assert list(bound.map(range(4), [ledger] * 4)) == [0, 10, 20, 30]
    assert ledger.lines() == ["0 1 2 3", "2"]
