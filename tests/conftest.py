"""One local Ray for all tests that need one, with fake GPUs, and an app of its own for each test."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

_numbers = itertools.count(1)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spare `-m "not cluster"` the import of files that it deselects as a whole: rewriting them takes seconds."""
    chosen: str = config.getoption("markexpr")
    if collection_path.suffix != ".py" or not re.fullmatch(r"[\w\s()]+", chosen):
        return None
    whole_file = re.search(r"^pytestmark = .+$", collection_path.read_text(), re.MULTILINE)
    if whole_file is None:
        return None
    marks = set(re.findall(r"pytest\.mark\.(\w+)", whole_file[0]))
    # Single tests may carry any of the other marks besides.
    others = sorted(set(re.findall(r"\w+", chosen)) - {"and", "or", "not"} - marks)
    for carried in itertools.product([False, True], repeat=len(others)):
        if eval(chosen.strip(), {}, dict.fromkeys(marks, True) | dict(zip(others, carried, strict=True))):
            return None
    return True


def pytest_collection_finish() -> None:
    """What has been imported stays: a collection of garbage need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with more logical CPUs than the machine has, and two fake GPUs of each of two types."""
    import ray

    ray.init(
        address="local",  # not one that happens to run on this machine
        num_cpus=16,
        num_gpus=4,
        resources={"accelerator_type:A100": 2, "accelerator_type:H100": 2},
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session", params=["ray"])
def lane(request: pytest.FixtureRequest, ray_cluster: None) -> str:
    """The lane that calls travel on: every test of the contract runs once on each."""
    return str(request.param)


@pytest.fixture
def make_app(ray_cluster: None) -> Iterator[Callable[[], Any]]:
    """Makes apps with names of their own; they are stopped, without draining, when the test ends."""
    import gworker as gw

    made: list[gw.App] = []

    def make() -> gw.App:
        app = gw.App(f"test-{os.getpid()}-{next(_numbers)}")
        made.append(app)
        return app

    yield make
    for app in made:
        app.stop(drain=False)


@pytest.fixture
def app(make_app: Callable[[], Any]) -> Any:
    """An app of the test's own."""
    return make_app()


class Ledger:
    """Lines that workers append to a file: an account of what ran, independent of what callers were told."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def write(self, line: str) -> None:
        """Append a line; one `write` call, so that lines of several processes do not mix."""
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, (line + "\n").encode())
        finally:
            os.close(fd)

    def lines(self) -> list[str]:
        """What has been written so far."""
        try:
            return Path(self.path).read_text().splitlines()
        except FileNotFoundError:
            return []


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger in a file of the test's own. It travels to workers by pickle."""
    return Ledger(tmp_path / "ledger")


class Gate:
    """Holds up code in workers until the test opens it: a file that appears. Waiting is bounded, so nothing hangs."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self._arrivals = Ledger(Path(f"{path}-arrivals"))

    def open(self) -> None:
        """Let everybody through."""
        Path(self.path).touch()

    @property
    def is_open(self) -> bool:
        """Whether it has been opened."""
        return os.path.exists(self.path)

    @property
    def arrivals(self) -> int:
        """How many have come to the gate, those included who went through."""
        return len(self._arrivals.lines())

    def wait(self, timeout_s: float = 30.0) -> None:
        """Block this thread until the gate opens."""
        self._arrivals.write("sync")
        eventually(lambda: self.is_open, timeout_s)

    async def wait_async(self, timeout_s: float = 30.0) -> None:
        """The same for a coroutine."""
        self._arrivals.write("async")
        end = time.monotonic() + timeout_s
        while not self.is_open:
            assert time.monotonic() < end, f"the gate was not opened within {timeout_s:g} s"
            await asyncio.sleep(0.005)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate of the test's own, opened at its end. It travels to workers by pickle."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


def eventually(condition: Callable[[], Any], timeout_s: float = 20.0, *, every_s: float = 0.02) -> Any:
    """Wait until `condition` returns something true, and return it; fail when it does not within `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not (seen := condition()):
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {condition!r} still returns {seen!r}"
        time.sleep(every_s)
    return seen


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., Any]:
    """The function `eventually`, for tests."""
    return eventually
