"""The benchmarks' harness: turns, statistics, verdicts, and the table that a reader sees."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import figures
import harness
import pytest
from apart import apart
from figures import Report, Row, judge, more, ratio, times, value
from harness import Benchmark, Contender, rotated
from http_load import complete

CHILD = """
import contextlib, os, sys
from apart import answer

def measure(case):
    print("what is printed is no answer", flush=True)
    return {"k": float(os.environ["FOO"]) / (1 / case)}

assert sys.argv[1:] == ["--contender", "peer", "--quick"]
answer(contextlib.nullcontext(measure))
"""


def row(*promises: figures.Promise, more_is_better: bool = False, **values: list[float | None]) -> Row:
    return Row("k", "one call", "ms", promises, more_is_better, values)


def verdict(of: Row, *others: Row) -> figures.Verdict:
    return judge(of, of.promises[0], {each.key: each for each in (of, *others)})


# --- statistics and verdicts -------------------------------------------------------------------------------------


def test_the_ratio_is_the_median_of_the_ratios_of_the_rounds_and_not_the_ratio_of_the_medians() -> None:
    found = row(gworker=[1.0, 10.0, 3.0], peer=[2.0, 100.0, 1.0])
    assert ratio(found, "peer") == 0.5
    assert found.median("gworker") == 3.0
    assert found.median("peer") == 2.0


def test_rounds_without_a_figure_are_left_out_in_pairs() -> None:
    assert ratio(row(gworker=[1.0, 10.0, None], peer=[4.0, None, 1.0]), "peer") == 0.25


@pytest.mark.parametrize(
    ("promise", "measured", "met"),
    [
        (times(0.5, "peer"), 0.5, True),
        (times(0.4, "peer"), 0.5, False),
        (times(0.5, "peer", at_least=True), 0.5, True),
        (times(0.6, "peer", at_least=True), 0.5, False),
        (more(-1.0, "peer"), -1.0, True),
        (more(-1.5, "peer"), -1.0, False),
        (value(1.0), 1.0, True),
        (value(0.9), 1.0, False),
        (value(1.1, at_least=True), 1.0, False),
    ],
)
def test_a_promise_is_met_up_to_its_bound(promise: figures.Promise, measured: float, met: bool) -> None:
    found = verdict(row(promise, gworker=[1.0], peer=[2.0]))
    assert (found.measured, found.met) == (measured, met)


def test_a_promise_to_several_peers_is_held_against_the_best_of_each_round() -> None:
    assert verdict(row(times(1, "a", "b"), gworker=[6.0, 6.0], a=[6.0, 2.0], b=[3.0, 12.0])).measured == 2.5
    best = row(times(1, "a", "b", at_least=True), more_is_better=True, gworker=[6.0, 6.0], a=[6.0, 2.0], b=[3.0, 12.0])
    assert verdict(best).measured == 0.75


def test_a_promise_is_not_judged_while_one_of_its_peers_is_missing() -> None:
    assert verdict(row(times(1, "a", "b"), gworker=[6.0], a=[6.0])).met is None
    assert verdict(row(times(1, "a", "b"), a=[6.0], b=[6.0])).met is None
    assert verdict(row(value(1))).met is None


def test_a_peer_may_stand_in_another_row() -> None:
    cold = Row("cold", "a cold start", "s", values={"gworker": [1.0, 2.0]})
    found = verdict(row(more(0.5, "gworker", row="cold"), gworker=[1.4, 2.4]), cold)
    assert found.met and found.promise == "≤ 0.5 ms more than gworker, a cold start" and found.shown == "+0.400 ms"


@pytest.mark.parametrize(
    ("x", "shown"),
    [(0, "0"), (5.0, "5"), (0.01234, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234"), (0.0, "0")],
)
def test_numbers_have_three_digits_that_tell_something(x: float, shown: str) -> None:
    assert figures.number(x) == shown


# --- tables ------------------------------------------------------------------------------------------------------


def test_the_table_shows_median_spread_ratio_promise_and_verdict() -> None:
    report = Report(
        "calls", "Calls", "About.", [row(times(0.2, "peer"), gworker=[1.0, 3.0, 2.0], peer=[4.0, 4.0, 4.0])]
    )
    report.contenders = ["gworker", "peer", "absent"]
    head, rule, line = figures.table(report).splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["", "gworker", "peer", "promise", "verdict"]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "one call (ms)", "2 (1 to 3)", "4 (4 to 4); 0.5 x", "≤ 0.2 x peer", "**missed**, 0.5 x",
    ]  # fmt: skip
    assert len(head) == len(rule) == len(line)


def test_results_say_what_failed_what_ended_early_and_what_wrote_nothing() -> None:
    report = Report("calls", "Calls", "About.", [row(value(1))], ["gworker"], {"gworker": "failed: OSError: why"})
    report.ended = "took longer than 3 s"
    text = figures.results({"calls": asdict(report), "lost": {"name": "lost", "ended": "ended with code 1"}})
    assert "- gworker failed: OSError: why\n" in text
    assert "- The benchmark took longer than 3 s." in text
    assert "- `lost` ended with code 1" in text


# --- rounds ------------------------------------------------------------------------------------------------------


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Benchmark]]:
    """Makes a benchmark of three rounds that writes `report.json`; the machine is not looked at."""
    monkeypatch.setattr(harness.machine, "busy", lambda: 0.0)
    before = signal.getsignal(signal.SIGTERM)

    def make(*rows: Row) -> Benchmark:
        monkeypatch.setattr(sys, "argv", ["calls.py", "--rounds", "3", "--json", str(tmp_path / "report.json")])
        return Benchmark("No-op calls: and who makes them.\n\nMore of it.", rows)

    with harness.environment(**harness.ENVIRONMENT):
        yield make
    signal.signal(signal.SIGTERM, before)


def contender(name: str, measure: Callable[[Any], Mapping[str, float]]) -> Contender:
    return Contender(name, lambda: contextlib.nullcontext(measure))


def test_contenders_are_measured_in_turns_and_each_round_begins_with_another_one(
    benchmark: Callable[..., Benchmark], tmp_path: Path
) -> None:
    turns: list[str] = []

    def measured(name: str) -> Contender:
        def measure(case: Any) -> Mapping[str, float]:
            turns.append(f"{name}{case}")
            return {"k": float(len(turns)), "no such row": 1.0}

        return contender(name, measure)

    bench = benchmark(row())
    bench.run([measured("a"), measured("b")], [1, 2])
    bench.finish()
    assert turns == ["a1", "b1", "a2", "b2", "b1", "a1", "b2", "a2", "a1", "b1", "a2", "b2"]
    read = Report.read(json.loads((tmp_path / "report.json").read_text()))
    assert read == bench.report
    assert (read.name, read.title, read.about) == ("calls", "No-op calls", "More of it.")
    assert read.about_run["rounds"] == 3


def test_a_contender_that_fails_is_left_out_from_then_on_and_the_others_go_on(
    benchmark: Callable[..., Benchmark],
) -> None:
    rounds = iter([{"k": 1.0}])

    def absent() -> Any:
        raise OSError("no such server")

    bench = benchmark(row())
    bench.run(
        [contender("gworker", lambda _: {"k": 2.0}), contender("once", lambda _: next(rounds)), Contender("no", absent)]
    )
    assert bench.report.rows[0].values == {"gworker": [2.0, 2.0, 2.0], "once": [1.0, None, None]}
    assert bench.report.failed == {"no": "did not start: OSError: no such server", "once": "failed: StopIteration: "}


@pytest.mark.slow
def test_a_contender_in_a_process_of_its_own_has_its_environment_and_its_failures_are_told(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(CHILD)
    with apart(
        str(script), "peer", "--quick", env={"PYTHONPATH": str(Path(figures.__file__).parent), "FOO": "7"}
    ) as ask:
        assert ask(2) == {"k": 14.0}
        with pytest.raises(RuntimeError, match="ZeroDivisionError: division by zero"):
            ask(0)
        assert ask(1) == {"k": 7.0}
    with pytest.raises(RuntimeError, match=r"it ended: .*ModuleNotFoundError"), apart(str(script), "peer"):
        pass


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", False),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", False),
    ],
)
def test_the_load_waits_for_the_whole_of_an_answer(answer: bytes, whole: bool) -> None:
    assert complete(answer) is whole


def test_every_name_comes_first_once() -> None:
    assert [rotated(["a", "b", "c"], n) for n in range(4)] == [
        ["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"],
    ]  # fmt: skip
    assert rotated([], 1) == []
