"""What `gworker bench` plans, counts and reckons, without Ray or clock."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gworker.cli.benchmark.arrivals import arrivals
from gworker.cli.benchmark.figures import Distribution, StepFigures, remarks
from gworker.cli.benchmark.plan import Arrival, Closed, Open, Plan
from gworker.cli.benchmark.pools import Counters, Pools
from gworker.cli.benchmark.recorder import Recorder, Window
from gworker.cli.exits import Failed
from gworker.observe.status import AppStatus, PoolStatus, WorkerStatus

# --- plan --------------------------------------------------------------------------------------------------------


def test_without_options_a_lone_caller_a_few_and_many_are_measured() -> None:
    plan = Plan.read({})
    assert plan.loads == (Closed(1), Closed(8), Closed(64))
    assert (plan.duration_s, plan.warmup_s, plan.requests) == (5.0, 1.0, None)


def test_loads_are_read_from_lists_of_numbers() -> None:
    assert Plan.read({"concurrency": "1,16"}).loads == (Closed(1), Closed(16))
    plan = Plan.read({"rate": "0.5,100", "arrival": Arrival.CONSTANT, "seed": 7, "max_in_flight": 9, "warmup_s": 0.0})
    assert plan.loads == (Open(0.5, Arrival.CONSTANT, 7, 9), Open(100.0, Arrival.CONSTANT, 7, 9))
    assert plan.warmup_s == 0.0
    assert Plan.read({"requests": 100}).duration_s is None
    assert Plan.read({"requests": 100, "duration_s": 2.0}).duration_s == 2.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency": "1,x"}, "--concurrency 1,x: expected whole numbers greater than zero"),
        ({"concurrency": "0"}, "write for example --concurrency 1,8,64"),
        ({"concurrency": "1.5"}, "whole numbers"),
        ({"rate": "inf"}, "--rate inf: expected numbers"),
        ({"rate": "nan"}, "--rate nan: expected numbers"),
        ({"rate": "1", "concurrency": "1"}, "Give one of them"),
        ({"seed": 0}, "--seed was given without --rate"),
        ({"max_in_flight": 3}, "--max-in-flight was given without --rate"),
    ],
)
def test_options_that_cannot_be_are_told_what_to_write(options: dict[str, Any], words: str) -> None:
    with pytest.raises(Failed) as caught:
        Plan.read(options)
    assert words in str(caught.value)


# --- arrivals ----------------------------------------------------------------------------------------------------


@given(rate=st.floats(0.01, 1e5), seed=st.integers(0, 2**32))
def test_random_arrivals_ascend_and_are_the_same_every_time(rate: float, seed: int) -> None:
    first, second = ([*itertools.islice(arrivals(Open(rate, seed=seed)), 50)] for _ in range(2))
    assert first == second == sorted(first)
    assert first[0] > 0


def test_random_arrivals_have_their_rate_and_bunch_as_a_poisson_process_does() -> None:
    times = list(itertools.islice(arrivals(Open(200.0)), 20_000))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = math.fsum(gaps) / len(gaps)
    deviation = math.sqrt(math.fsum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(1 / 200, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.05)  # of evenly spaced ones it is zero


def test_even_arrivals_do_not_drift() -> None:
    assert list(itertools.islice(arrivals(Open(3.0, Arrival.CONSTANT)), 3000))[-1] == 2999 / 3.0


# --- what counts -------------------------------------------------------------------------------------------------


def recorder(begin: float = 10.0, end: float = 20.0, *, slo_s: float | None = None, **window: Any) -> Recorder:
    return Recorder(Window(begin, end, **window), slo_s)


def call(record: Recorder, due: float, ended: float) -> None:
    record.returned(record.start(due), due, ended)


def figures(record: Recorder, load: Closed | Open, now: float = 30.0, **about: Any) -> StepFigures:
    given = {"interrupted": False, "streams": False, "cores": 0.1, "pools": Pools(1, 1), **about}
    return StepFigures.of(load, record, record.close(now), **given)


def test_in_a_closed_loop_what_ends_within_the_window_counts() -> None:
    record = recorder(by_end=True)
    for due, ended in [(8.0, 9.9), (9.0, 11.0), (12.0, 13.0), (19.0, 20.5)]:
        call(record, due, ended)
    found = figures(record, Closed(2))
    assert (found.calls, found.calls_per_s, found.seconds) == (2, 0.2, 10.0)
    assert found.latency is not None and found.latency.max_ms == 2000.0
    assert found.unfinished == 0 and found.due_per_s is None


def test_in_an_open_loop_what_is_due_within_the_window_counts_however_late_it_ends() -> None:
    record = recorder()
    for due, ended in [(9.0, 11.0), (12.0, 13.0), (19.0, 29.0), (20.0, 20.1)]:
        call(record, due, ended)
    found = figures(record, Open(1.0))
    assert (found.calls, found.due_per_s) == (2, 0.2)
    assert found.calls_per_s == 0.2  # those that ended within, the one that came before it included
    assert found.latency is not None and found.latency.max_ms == 10_000.0


def test_latency_counts_from_when_a_call_was_due_so_a_stall_shows_in_all_calls_that_it_delayed() -> None:
    record = recorder(0.0, 10.0)
    for number in range(100):  # the server stands still from 2 s to 8 s
        due = number / 10
        call(record, due, (8.0 if 2.0 <= due < 8.0 else due) + 0.001)
    latency = figures(record, Open(10.0)).latency
    assert latency is not None
    assert latency.p50_ms == pytest.approx(1001) and latency.p90_ms == pytest.approx(5001)


def test_a_number_of_requests_ends_with_the_last_of_them() -> None:
    record = recorder(10.0, math.inf, most=2)
    call(record, 9.0, 10.5)
    call(record, 10.5, 11.0)
    assert not record.is_full
    call(record, 11.0, 14.0)
    assert record.is_full
    call(record, 14.0, 15.0)
    found = figures(record, Closed(1))
    assert (found.calls, found.seconds, found.calls_per_s) == (2, 4.0, 0.5)


def test_an_interrupted_step_ends_then_and_what_had_not_ended_is_told() -> None:
    record = recorder()
    call(record, 10.0, 11.0)
    record.start(12.0)
    found = figures(record, Open(1.0), now=14.0, interrupted=True)
    assert (found.seconds, found.calls, found.unfinished, found.calls_per_s) == (4.0, 1, 1, 0.25)
    assert remarks(found) == ["interrupted after 4.0 s"]


def test_goodput_is_what_ended_well_in_time_out_of_all_that_was_asked_for() -> None:
    record = recorder(slo_s=0.5)
    call(record, 11.0, 11.5)
    call(record, 12.0, 13.0)
    record.raised(record.start(13.0), 13.1, ValueError("no"))
    record.drop(14.0)
    found = figures(record, Open(1.0))
    assert (found.good_per_s, found.good_share) == (0.1, 0.25)
    assert (found.calls, found.failed, found.dropped) == (2, 1, 1)


def test_errors_are_counted_by_type_with_what_the_first_one_said() -> None:
    record = recorder(by_end=True)
    for ended, error in [
        (9.0, ValueError("warm-up")),
        (11.0, ValueError("a")),
        (12.0, ValueError("b")),
        (13.0, KeyError("c")),
    ]:
        record.raised(False, ended, error)
    assert [(p.type, p.count, p.example) for p in figures(record, Closed(1)).problems] == [
        ("KeyError", 1, "'c'"),
        ("ValueError", 2, "a"),
    ]


def test_a_stream_has_a_first_item_gaps_and_a_rate_of_items() -> None:
    record = recorder(slo_s=0.3)
    times = [12.25, 12.5, 13.0]
    for at in (5.0, *times, 25.0):
        record.item(at)
    record.streamed(record.start(12.0), 12.0, times, 13.5)
    record.streamed(record.start(14.0), 14.0, [14.5], 14.6)
    found = figures(record, Open(1.0), streams=True)
    assert found.items_per_s == pytest.approx(0.3)
    assert found.first_item is not None and found.first_item.mean_ms == 375.0
    assert found.between_items is not None and (found.between_items.count, found.between_items.max_ms) == (2, 500.0)
    assert found.good_share == 0.5  # the promise is about the first item


def test_a_step_without_calls_has_figures_and_says_what_to_do() -> None:
    found = figures(recorder(by_end=True), Closed(4))
    assert found.latency is None and found.good_share is None
    assert "no call ended in the time that counts" in remarks(found)[0]


# --- percentiles -------------------------------------------------------------------------------------------------


def test_a_percentile_that_few_values_cannot_tell_from_the_greatest_is_none() -> None:
    found = Distribution.of([n / 1000 for n in range(1, 101)])
    assert found is not None
    assert (found.p50_ms, found.p90_ms, found.p99_ms, found.p999_ms, found.max_ms) == (50, 90, 99, None, 100)
    assert Distribution.of([]) is None


@given(st.lists(st.floats(0, 100), min_size=1, max_size=3000))
def test_percentiles_ascend_and_no_more_than_their_share_lies_above(times: list[float]) -> None:
    random.Random(0).shuffle(times)
    found = Distribution.of(times)
    assert found is not None
    shown = [
        p
        for p in (found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms, found.p999_ms, found.max_ms)
        if p is not None
    ]
    assert shown == sorted(shown)
    for share, value in ((0.5, found.p50_ms), (0.99, found.p99_ms)):
        if value is not None:
            assert sum(t * 1000 > value for t in times) <= (1 - share) * len(times)


# --- pools and remarks -------------------------------------------------------------------------------------------


def status(ready: int, **batches: tuple[int, float]) -> AppStatus:
    workers = tuple(
        WorkerStatus(name, "READY", 1, "n", 1.0, batches={"embed": n}, batch_sizes={"embed": size})
        for name, (n, size) in batches.items()
    )
    pool = PoolStatus("Embedder", "Embedder", "READY", ready, ready, 0, 0, 0, 0, 0, 0, workers=workers)
    return AppStatus("app", True, (pool,))


def test_the_mean_batch_is_that_of_the_step_also_where_workers_come_and_go() -> None:
    before = Counters.of(status(2, a=(10, 1.0), b=(5, 2.0)), "Embedder", "embed")
    after = Counters.of(status(2, a=(20, 2.0), c=(10, 5.0)), "Embedder", "embed")
    assert before.until(after) == Pools(2, 2, (30 + 50) / 20)
    assert before.until(before).mean_batch is None
    assert Counters.of(status(2, a=(10, 1.0)), "Embedder", "other").batches == {}


def full(**about: Any) -> StepFigures:
    record = recorder()
    for number in range(1000):
        due = 10 + number / 100
        call(record, due, due + 0.02)
    return figures(record, Open(100.0), **about)


def test_a_generator_that_was_the_limit_is_told_and_one_that_was_not_is_not() -> None:
    assert remarks(full(cores=0.5)) == []
    assert "the load generator was the limit, it used 0.97 of a core" in remarks(full(cores=0.97))[0]


def test_a_process_that_was_late_is_told_where_that_shows() -> None:
    record = recorder()
    for number in range(1000):
        due = 10 + number / 100
        record.late(due, 0.005)
        call(record, due, due + 0.02)
    assert "this process was late by 5.0 ms (p95)" in remarks(figures(record, Open(100.0)))[0]


def test_a_pool_that_falls_behind_is_told() -> None:
    record = recorder()
    for number in range(1000):
        due = 10 + number / 100
        call(record, due, due + number / 100)
    assert "50 of 100 calls/s ended: the pool fell behind" in remarks(figures(record, Open(100.0)))[0]


def test_workers_that_came_meanwhile_are_told() -> None:
    assert "the workers went from 1 to 3 meanwhile" in remarks(full(pools=Pools(1, 3)))[0]
