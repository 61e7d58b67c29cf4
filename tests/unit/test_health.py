"""DESIGN §4: what takes a worker out of the routing, for how long, and when a doubtful one may still be used."""

from __future__ import annotations

import pytest

import gworker as gw
from gworker.control.health import EJECTION_S, ERRORS_IN_A_ROW, FORGET_EJECTIONS_S, LONGEST_EJECTION_S, Health
from gworker.probe import Verdict

ALIVE = gw.Probe.on("alive", failures=2)
WARM = gw.Probe.on("warm", kind="readiness", failures=2)


def health(*verdicts: tuple[gw.Probe, Verdict]) -> Health:
    made = Health([ALIVE, WARM])
    for n, (probe, verdict) in enumerate(verdicts):
        made.record(probe, verdict, 0.5, verdict.value, float(n))
    return made


def test_a_worker_serves_until_a_probe_has_failed_as_often_as_it_may() -> None:
    assert health().serves(0.0)
    assert health((WARM, Verdict.FAILED), (ALIVE, Verdict.FAILED)).serves(9.0)
    for probe in (WARM, ALIVE):
        assert not health((probe, Verdict.FAILED), (probe, Verdict.FAILED)).serves(9.0)


def test_only_liveness_condemns_and_a_pass_before_the_kill_spares() -> None:
    assert not health((WARM, Verdict.FAILED), (WARM, Verdict.FAILED)).condemned
    doomed = health((ALIVE, Verdict.FAILED), (ALIVE, Verdict.FAILED), (ALIVE, Verdict.FAILED))
    assert doomed.condemned_at == 1.0
    doomed.record(ALIVE, Verdict.PASSED, 0.0, "", 5.0)
    assert not doomed.condemned and doomed.serves(5.0)


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.TIMED_OUT])
def test_one_that_answered_no_said_no_and_one_that_fell_silent_did_not(verdict: Verdict) -> None:
    assert health((WARM, verdict), (WARM, verdict)).said_no is (verdict is Verdict.FAILED)


def test_a_worker_that_serves_said_nothing() -> None:
    assert not health((WARM, Verdict.FAILED)).said_no


def test_why_names_the_probe_and_what_it_found() -> None:
    assert health().why(0.0) == ""
    assert health((WARM, Verdict.FAILED), (WARM, Verdict.FAILED)).why(9.0) == (
        "readiness probe warm failed 2 times: failed"
    )


def test_the_latest_verdict_of_each_probe_is_kept_with_its_latency() -> None:
    latest = health((WARM, Verdict.PASSED), (ALIVE, Verdict.UNKNOWN), (WARM, Verdict.FAILED)).latest
    assert [(s.method, s.kind, s.verdict, s.latency_ms) for s in latest.values()] == [
        ("warm", "readiness", "FAILED", 500.0),
        ("alive", "liveness", "UNKNOWN", 500.0),
    ]


def test_five_system_errors_in_a_row_of_all_routers_together_eject() -> None:
    made = health()
    assert not made.count_errors("a", 3, 0.0)
    assert not made.count_errors("b", 1, 0.0)
    assert not made.count_errors("a", 0, 0.0), "an answer ended the row of this router"
    assert not made.count_errors("b", ERRORS_IN_A_ROW - 1, 0.0)
    assert made.count_errors("a", 1, 0.0)
    assert not made.serves(0.0) and made.ejected(0.0)
    assert "5 system errors in a row: out of the routing for 30 s" in made.why(0.0)
    assert made.serves(EJECTION_S)


def test_each_ejection_is_longer_up_to_five_minutes_and_forgotten_after_ten_good_ones() -> None:
    made, now, lengths = health(), 0.0, []
    for _ in range(12):
        assert made.count_errors("a", ERRORS_IN_A_ROW, now)
        start = now
        while made.ejected(now):
            now += 1.0
        lengths.append(now - start)
    assert lengths == [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]
    assert max(lengths) == LONGEST_EJECTION_S
    now += FORGET_EJECTIONS_S
    made.count_errors("a", ERRORS_IN_A_ROW, now)
    assert not made.ejected(now + EJECTION_S)


def test_errors_while_it_is_out_do_not_make_it_longer() -> None:
    made = health()
    made.count_errors("a", ERRORS_IN_A_ROW, 0.0)
    assert not made.count_errors("a", 2 * ERRORS_IN_A_ROW, 1.0)
    assert made.serves(EJECTION_S)
