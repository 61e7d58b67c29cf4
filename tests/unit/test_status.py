"""Statuses are data that shows itself well, in a terminal and in a notebook, without asking anybody."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import pickle

import pytest
from rich.console import Console

from gworker.observe.events import Event, EventLog
from gworker.observe.status import AppStatus, MethodTimes, PoolStatus, ProbeStatus, WorkerStatus
from gworker.observe.times import Histogram, Times


def pool(name: str = "Embedder", **changes: object) -> PoolStatus:
    status = PoolStatus(
        name=name,
        class_name="Embedder",
        state="SCALING",
        desired=3,
        ready=1,
        starting=2,
        pending=1,
        draining=0,
        queued=17,
        running=4,
        restarts=5,
        waiting_for="",
        workers=(
            WorkerStatus(
                "Embedder-1",
                "READY",
                123,
                "node",
                1.5,
                inputs=9,
                inflight=4,
                restarts=2,
                batch_sizes={"embed": 3.0},
                probes=(ProbeStatus("health", "liveness", "PASSED", 1.0),),
            ),
        ),
    )
    return dataclasses.replace(status, **changes)  # type: ignore[arg-type]


EVENT = Event(7, dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc), "Embedder", "Embedder-1", "ready", "<i>")
STATUS = AppStatus(
    "inference",
    running=True,
    pools=(pool(), pool("Embedder[gpu=None]", waiting_for="<b>GPU</b> x1")),
    events=(EVENT,),
)


def rendered(status: AppStatus) -> str:
    text = io.StringIO()
    Console(width=200, file=text).print(status)
    return text.getvalue()


def test_a_pool_is_found_by_class_or_by_its_own_name() -> None:
    assert STATUS.pool("Embedder").name == "Embedder"
    assert STATUS.pool("Embedder[gpu=None]").name == "Embedder[gpu=None]"


def test_a_class_without_a_pool_is_a_key_error_that_names_those_there_are() -> None:
    with pytest.raises(KeyError, match=r"Ranker.*inference.*there are: Embedder"):
        STATUS.pool("Ranker")
    with pytest.raises(KeyError, match="none"):
        AppStatus("empty", running=False).pool("Ranker")


def test_in_a_terminal_it_is_a_table() -> None:
    text = rendered(STATUS)
    assert "inference" in text and "running" in text
    for cell in ("Embedder", "SCALING", "17", "waiting for", "<b>GPU</b> x1", "Embedder-1", "health PASSED 1 ms"):
        assert cell in text


def test_where_the_time_of_calls_went_is_a_table_of_its_own() -> None:
    times = Times(Histogram([0.00008] * 9), Histogram([0.004] * 9), Histogram([3.0] * 8))
    status = AppStatus("inference", running=True, pools=(pool(times=(MethodTimes.of("embed", times),)),))
    assert "batch wait p50 / p99" in rendered(status) and "batch wait p50 / p99" in status._repr_html_()
    (row,) = (line for line in str(status).splitlines() if " embed " in line)
    assert row.split("  ")[-1].strip() == "3.8 s / 5.0 s" and " 9 " in row
    assert pickle.loads(pickle.dumps(status)) == status


def test_an_app_that_is_not_running_says_so() -> None:
    assert "not running" in rendered(AppStatus("inference", running=False))
    assert "not running" in AppStatus("inference", running=False)._repr_html_()


def test_in_a_notebook_it_is_a_table_whose_texts_are_escaped() -> None:
    page = STATUS._repr_html_()
    assert page.count("<tr>") == 6, "two pools, their workers, and a head for each"
    assert "&lt;i&gt;" in page and "<i>" not in page
    assert "&lt;b&gt;GPU&lt;/b&gt; x1" in page and "<b>GPU</b>" not in page
    assert "<script>" not in AppStatus("<script>", running=True)._repr_html_()


def test_brackets_in_names_are_no_markup() -> None:
    assert "Embedder[gpu=None]" in rendered(STATUS)
    assert "[bold]" in rendered(AppStatus("[bold]x", running=True, pools=(pool(waiting_for="[red]"),)))


def test_it_is_frozen_and_travels() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        STATUS.name = "other"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(STATUS)) == STATUS


def test_as_text_it_shows_pools_workers_and_events() -> None:
    lines = str(STATUS).splitlines()
    assert lines[0] == "app inference (running)"
    assert any(line.startswith("Embedder-1") and "READY" in line for line in lines)
    assert lines[-1].endswith("Embedder-1 ready: <i>")


def test_a_table_shows_so_many_workers_and_says_how_many_more_there_are() -> None:
    many = pool(workers=tuple(WorkerStatus(f"w{n}", "READY", n, "node", 1.0) for n in range(1000)))
    text = str(AppStatus("big", running=True, pools=(many,)))
    assert "… 980 more" in text and len(text.splitlines()) < 40


def test_the_event_log_is_bounded_and_is_followed_by_number() -> None:
    log = EventLog(remembered=3, now=lambda: EVENT.time)
    assert log.after(0) == ()
    for n in range(5):
        log.add("pool", f"w{n}", "started", "")
    assert [event.number for event in log.after(0)] == [3, 4, 5]
    assert [event.worker for event in log.after(4)] == ["w4"]
    assert log.after(5) == log.after(99) == ()


def test_a_log_goes_on_from_an_earlier_one() -> None:
    log = EventLog()
    log.restore([EVENT])
    assert log.add("pool", "w", "started", "").number == 8
    assert [event.number for event in log.after(0)] == [7, 8]
