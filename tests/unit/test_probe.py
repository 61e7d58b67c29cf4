"""DESIGN §3 and §4: what a probe is, what its answers mean, and when they change a worker's state."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gworker.errors import InvalidDefinition
from gworker.probe import Probe, ProbeState, Verdict, verdict_of, worst_case_detection_s

PASSED, FAILED, TIMED_OUT, UNKNOWN = Verdict.PASSED, Verdict.FAILED, Verdict.TIMED_OUT, Verdict.UNKNOWN


def liveness(**options) -> ProbeState:
    return ProbeState(Probe.on("health", kind="liveness", **options))


def readiness(**options) -> ProbeState:
    return ProbeState(Probe.on("health", kind="readiness", **options))


def test_on_has_the_defaults_of_the_design():
    probe = Probe.on("health")
    assert (probe.method, probe.kind) == ("health", "liveness")
    assert (probe.period_s, probe.timeout_s, probe.initial_delay_s) == (10, 5, 0)
    assert (probe.failures, probe.successes) == (3, 1)
    assert pickle.loads(pickle.dumps(probe)) == probe


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "livenes"},
            r'kind=\'livenes\' was given; write kind="liveness" or kind="readiness"\. Did you mean \'liv',
        ),
        ({"kind": None}, r'write kind="liveness" or kind="readiness"'),
        ({"period_s": 0}, r"period_s=0 .*greater than 0 \(seconds\): write for example period_s=10"),
        ({"period_s": float("nan")}, r"period_s=nan .*finite number"),
        ({"period_s": True}, r"period_s=True \(bool\)"),
        ({"timeout_s": -1}, r"timeout_s=-1 .*write for example timeout_s=5"),
        ({"timeout_s": "5s"}, r"timeout_s='5s' \(str\)"),
        ({"failures": 0}, r"failures=0 .*at least 1: write for example failures=3"),
        ({"failures": 2.5}, r"failures=2.5 \(float\)"),
        ({"successes": 0}, r"successes=0 .*at least 1"),
        ({"initial_delay_s": -1}, r"initial_delay_s=-1 .*at least 0"),
    ],
)
def test_on_refuses_wrong_options_by_name_with_the_remedy(options, message):
    with pytest.raises(InvalidDefinition, match=message) as info:
        Probe.on("health", **options)
    assert 'gw.Probe.on("health")' in str(info.value)


def test_on_wants_the_name_of_the_method_not_the_function():
    def health(self):
        pass

    with pytest.raises(InvalidDefinition, match=r'expected the name of a method: write gw\.Probe\.on\("health"\)'):
        Probe.on(health)
    with pytest.raises(InvalidDefinition, match="expected the name of a method"):
        Probe.on("")


def test_numbers_of_any_kind_become_plain_ones():
    probe = Probe.on(
        "health", period_s=np.int64(30), timeout_s=np.float32(2), failures=np.int8(2), successes=np.int8(3)
    )
    assert (probe.period_s, probe.timeout_s, probe.failures, probe.successes) == (30.0, 2.0, 2, 3)
    kinds = [type(v) for v in (probe.period_s, probe.timeout_s, probe.failures, probe.successes, probe.initial_delay_s)]
    assert kinds == [float, float, int, int, float]


class Shaped:
    """Falsy, and like an array in one respect only."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __bool__(self):
        return False


class Raises:
    def __bool__(self):
        raise RuntimeError("no truth value")


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        (None, PASSED),
        (True, PASSED),
        (0, PASSED),
        ("", PASSED),
        ([], PASSED),
        ({}, PASSED),
        ({"ok": True}, PASSED),
        ({"status": "starting"}, PASSED),
        (np.True_, PASSED),
        (np.zeros(3), PASSED),
        (np.float64(0), PASSED),
        (np.array([False]), PASSED),
        (Shaped(shape=()), PASSED),
        (Shaped(dtype="bool"), PASSED),
        (Shaped(shape=(1,), dtype="bool"), PASSED),
        (False, FAILED),
        (np.False_, FAILED),
        (np.array(False), FAILED),
        ({"ok": False}, FAILED),
        ({"ok": None}, FAILED),
        ({"ok": 0, "detail": "x"}, FAILED),
        ({"ok": np.zeros(3)}, FAILED),
        ({"ok": Raises()}, FAILED),
    ],
    ids=repr,
)
def test_false_and_a_falsy_ok_failed_and_everything_else_passed(result, verdict):
    assert verdict_of(result) is verdict


def test_a_worker_starts_healthy():
    assert liveness().healthy
    assert liveness().consecutive_failures == 0


@pytest.mark.parametrize("make", [liveness, readiness])
@pytest.mark.parametrize("bad", [FAILED, TIMED_OUT])
def test_it_takes_as_many_failures_in_a_row_as_configured(make, bad):
    state = make(failures=3)
    assert [state.record(v) for v in (bad, bad, PASSED, bad, bad)] == [None] * 5
    assert state.healthy
    assert state.record(bad) is False
    assert not state.healthy


def test_becoming_unhealthy_is_told_once():
    state = readiness(failures=1)
    assert [state.record(FAILED), state.record(FAILED), state.record(TIMED_OUT)] == [False, None, None]
    assert state.consecutive_failures == 3


def test_readiness_returns_after_enough_successes_in_a_row():
    state = readiness(failures=1, successes=2)
    state.record(FAILED)
    assert [state.record(v) for v in (PASSED, FAILED, PASSED)] == [None, None, None]
    assert state.record(PASSED) is True
    assert state.healthy
    assert state.consecutive_failures == 0


def test_successes_from_before_the_failure_do_not_count():
    state = readiness(failures=1, successes=2)
    for verdict in (PASSED, PASSED, PASSED, FAILED):
        state.record(verdict)
    assert state.record(PASSED) is None
    assert not state.healthy


def test_liveness_that_passes_again_before_the_worker_is_killed_spares_it():
    state = liveness(failures=1, successes=2)
    state.record(FAILED)
    assert [state.record(PASSED), state.record(PASSED)] == [None, True]
    assert state.healthy


def test_an_unknown_verdict_counts_for_nothing():
    state = readiness(failures=2, successes=2)
    state.record(FAILED)
    assert state.record(UNKNOWN) is None
    assert state.consecutive_failures == 1
    assert state.record(FAILED) is False
    state.record(PASSED)
    state.record(UNKNOWN)
    assert state.record(PASSED) is True


@given(
    st.sampled_from(["liveness", "readiness"]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.sampled_from(list(Verdict)), max_size=40),
)
def test_the_state_follows_the_definition_on_any_sequence(kind, failures, successes, verdicts):
    state = ProbeState(Probe.on("health", kind=kind, failures=failures, successes=successes))
    seen: list[bool] = []
    for verdict in verdicts:
        before = state.healthy
        change = state.record(verdict)
        if verdict is not UNKNOWN:
            seen.append(verdict is PASSED)
        if change is None:
            assert state.healthy is before
        else:
            assert state.healthy is change is not before
        if change is False:
            assert seen[-failures:] == [False] * failures
        if change is True:
            assert seen[-successes:] == [True] * successes
        trailing = next((i for i, passed in enumerate(reversed(seen)) if passed), len(seen))
        assert state.consecutive_failures == trailing
        if trailing >= failures:
            assert not state.healthy


@pytest.mark.parametrize(
    ("given", "hanging_s", "frozen_s"),
    [
        # Three failures, a period apart, and one that was excused; a frozen process is excused nothing.
        ({"period_s": 30, "failures": 3, "timeout_s": 5}, 30 + 3 * 30 + 5, 30 + 2 * 30 + 7),
        ({"period_s": 30, "failures": 1, "timeout_s": 5, "initial_delay_s": 60}, 60 + 30 + 30 + 5, 60 + 30 + 7),
        # One run at a time: where the time-out is longer than the period, runs are a time-out apart.
        ({"period_s": 1, "failures": 2, "timeout_s": 5}, 1 + 2 * 5 + 5, 1 + 7 + 7),
    ],
)
def test_the_worst_case_of_detection_counts_every_run_it_takes(given, hanging_s, frozen_s):
    probe = Probe.on("health", **given)
    assert worst_case_detection_s(probe) == hanging_s
    assert worst_case_detection_s(probe, frozen=True) == frozen_s
