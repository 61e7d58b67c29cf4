"""Histograms of where the time of calls goes: what goes in comes out, in number and sum exactly."""

from __future__ import annotations

import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gworker.errors import DeadlineExceeded
from gworker.observe.status import MethodTimes
from gworker.observe.times import BUCKETS_S, Histogram, Tally, Times, add_all, past_limit

TIMES = st.lists(st.floats(0, 1e4), max_size=3000)


@given(TIMES)
def test_number_and_sum_are_exact_however_many_there_are(times_s: list[float]) -> None:
    seen = Histogram(times_s)
    assert seen.count == len(times_s)
    assert min(seen.counts) >= 0
    assert seen.sum_s == pytest.approx(sum(times_s))


def test_a_time_is_in_the_bucket_whose_bound_it_does_not_exceed() -> None:
    for number, bound in enumerate(BUCKETS_S):
        assert Histogram([bound]).counts[number] == 1
        assert Histogram([bound * 1.001]).counts[number + 1] == 1
    assert Histogram([0.0, -1e-9]).counts[0] == 2, "clocks are rounded"


def test_a_sample_of_very_many_stands_for_them_all() -> None:
    draw = random.Random(1)
    times_s = [draw.expovariate(10) for _ in range(50_001)]
    few, many = Histogram(times_s[:1024]), Histogram(times_s)
    assert many.count == 50_001
    for share in (0.5, 0.99):
        assert many.quantile_s(share) == pytest.approx(few.quantile_s(share), rel=0.3)


def test_a_quantile_is_told_to_about_a_bucket() -> None:
    seen = Histogram([0.002] * 50 + [0.3] * 49 + [7.0])
    assert 0.001 < seen.quantile_s(0.5) <= 0.0025
    assert 0.25 < seen.quantile_s(0.99) <= 0.5
    assert 5 < seen.quantile_s(1.0) <= 10
    assert Histogram([9999.0]).quantile_s(0.5) == BUCKETS_S[-1], "as much as is known"
    assert Histogram().quantile_s(0.5) == Histogram().mean_s == 0.0


def test_what_was_counted_is_taken_once_by_method_and_as_far_as_it_came() -> None:
    tally = Tally()
    tally["embed"].append((0.1, 0.2, 0.3))
    tally["embed"].append((0.1, None, None))
    tally["other"].append((1.0, 0.0, 2.0))
    taken = pickle.loads(pickle.dumps(tally.take()))  # to the controller
    assert {method: [t.count for t in times] for method, times in taken.items()} == {
        "embed": [2, 1, 1],
        "other": [1, 1, 1],
    }
    assert taken["other"].run.sum_s == 2.0
    assert tally.take() == {}


def test_reports_add_up() -> None:
    known: dict[str, Times] = {}
    for _ in range(3):
        tally = Tally()
        tally["embed"].append((0.5, 0.0, 1.0))
        add_all(known, tally.take())
    told = MethodTimes.of("embed", known["embed"])
    assert (told.method, told.queue.count, told.queue.mean_s, told.run.sum_s) == ("embed", 3, 0.5, 3.0)
    assert 0.25 < told.queue.p50_s <= told.queue.p99_s <= 0.5


def test_the_error_of_a_limit_says_where_the_time_went_as_far_as_it_is_known() -> None:
    def says(limit: str, **about: object) -> DeadlineExceeded:
        return past_limit("Slow.f", limit, timeout_s=2.0, **about)  # type: ignore[arg-type]

    error = says("timeout_s", wait_s=0.0501, run_s=2.001)
    assert str(error) == "Slow.f ran longer than its timeout_s of 2 s: 0.0501 s batch wait, 2 s running"
    assert (error.limit, error.where) == ("timeout_s", "running")
    error = says("deadline_s", wait_s=3.0, run_s=None)
    assert (str(error), error.where) == ("Slow.f passed its deadline_s: 3 s batch wait", "worker queue")
    error = says("deadline_s", wait_s=0.00001, run_s=1.2, queue_s=0.8, total_s=2.0, about=" (attempt 2)")
    assert str(error) == (
        "Slow.f passed its deadline_s after 2 s: 0.8 s queued, 0 s batch wait, 1.2 s running (attempt 2)"
    )
