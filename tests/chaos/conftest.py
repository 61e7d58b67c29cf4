"""What the fault tests share: an account book of each test's own, faults by name, and an eye on a pool."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.account import Book, Fault
from tests.conftest import eventually, pids


@pytest.fixture
def book(tmp_path: Path) -> Book:
    """An account book of the test's own."""
    return Book(tmp_path / "book")


@pytest.fixture
def make_fault(tmp_path: Path) -> Callable[[str], Fault]:
    """Makes faults by name, none of them active."""
    return lambda name: Fault(tmp_path / f"fault-{name}")


def serving(
    app: Any, class_name: str, count: int, *, without: Collection[int] = (), timeout_s: float = 40.0
) -> list[int]:
    """Wait until exactly `count` workers of a class are READY, none of them one of `without`; their process ids."""

    def found() -> list[int]:
        ready = pids(app, class_name)
        return ready if len(ready) == count and not {*ready} & {*without} else []

    result: list[int] = eventually(found, timeout_s)
    return result


def pool_when(app: Any, class_name: str, condition: Callable[[Any], object], timeout_s: float = 40.0) -> Any:
    """Wait until the status of a pool meets a condition; that status. Where it does not, what happened is told."""

    def found() -> Any:
        with contextlib.suppress(KeyError):
            pool = app.status().pool(class_name)
            return pool if condition(pool) else None
        return None

    try:
        return eventually(found, timeout_s)
    except AssertionError as error:
        events = "\n".join(map(str, events_of(app, class_name)))
        raise AssertionError(f"{app.status().pools}\n{events}") from error


@pytest.fixture(params=["direct", "ray"])
def each_lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what is lost: lanes differ in what they know of an input when its worker dies."""
    monkeypatch.setenv("GWORKER_LANE", request.param)


@contextlib.contextmanager
def watched(app: Any, class_name: str, every_s: float = 0.03) -> Iterator[list[Any]]:
    """Look at the status of a pool again and again; gives the list that what was seen is put into."""
    seen: list[Any] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            with contextlib.suppress(KeyError):
                seen.append(app.status().pool(class_name))
            time.sleep(every_s)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join(15.0)


def states(pool: Any) -> list[str]:
    """The states of a pool's workers."""
    return sorted(worker.state for worker in pool.workers)


def events_of(app: Any, class_name: str) -> list[Any]:
    """What has happened to the pools of a class, the oldest first."""
    return [event for event in app.status().events if event.pool.startswith(class_name)]
