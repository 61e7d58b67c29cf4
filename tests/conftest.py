"""What tests share: one local Ray with fake GPUs, apps, doors that workers wait at, scripts in their own processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

REPOSITORY = Path(__file__).parent.parent

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray has its workers, and so our controllers, yield to every other process. Where the machine has something else to do,
# one of the other tests, say, they get hardly any time: five starts then take longer than a minute.
os.environ.setdefault("RAY_worker_niceness", "0")

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


def pytest_configure() -> None:
    """Ctrl-C interrupts, also what tests start: a shell has its background processes, and all of theirs, ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(scope="module")
def shared_app(request: pytest.FixtureRequest, ray_cluster: None) -> Iterator[Any]:
    """One app for the tests of a file that neither stop it nor ask for all of its pools: it saves a second for each."""
    import gworker as gw

    app = gw.App(f"{request.module.__name__.rsplit('.', 1)[-1]}-{os.getpid()}")
    yield app
    app.stop(drain=False)


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
    """A door that code in workers waits at until a test opens it: a file that appears. It travels by pickle.

    Waiting is bounded, so that no test leaves a worker standing there for good.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self._arrivals = Ledger(Path(f"{path}-arrivals"))

    def open(self) -> None:
        """Let everybody through."""
        Path(self.path).touch()

    def shut(self) -> None:
        """Let nobody through any more."""
        Path(self.path).unlink(missing_ok=True)

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
def make_gate(tmp_path: Path) -> Iterator[Callable[[str], Gate]]:
    """Makes gates by name; all are opened when the test ends."""
    made: list[Gate] = []

    def make(name: str) -> Gate:
        made.append(Gate(tmp_path / f"gate-{name}"))
        return made[-1]

    yield make
    for gate in made:
        gate.open()


@pytest.fixture
def gate(make_gate: Callable[[str], Gate]) -> Gate:
    """A gate of the test's own, shut at first."""
    return make_gate("keeper")


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


def pids(app: Any, class_name: str, *states: str) -> list[int]:
    """The process ids of the workers of a class that are in one of `states` (READY)."""
    with contextlib.suppress(KeyError):
        return [w.pid for w in app.status().pool(class_name).workers if w.state in (states or ("READY",))]
    return []


@pytest.fixture(name="pids")
def pids_fixture() -> Callable[..., list[int]]:
    """The function `pids`, for tests."""
    return pids


def gone(*processes: int) -> bool:
    """Whether none of these processes is alive. One that has ended and was not waited for is not."""
    for pid in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return False
    return True


@pytest.fixture(name="gone")
def gone_fixture() -> Callable[..., bool]:
    """The function `gone`, for tests."""
    return gone


class Script:
    """A Python script in a process group of its own, as a terminal would run it."""

    def __init__(self, folder: Path, source: str, environment: dict[str, str]) -> None:
        self.folder = folder
        (folder / "script.py").write_text(textwrap.dedent(source))
        with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "script.py"],
                cwd=folder,
                env={"RAY_USAGE_STATS_ENABLED": "0", **os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        """What it has printed."""
        return (self.folder / "stdout").read_text()

    @property
    def err(self) -> str:
        """What it has written to standard error."""
        return (self.folder / "stderr").read_text()

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for its end; returns the exit code."""
        return self.process.wait(timeout_s)

    def interrupt(self) -> None:
        """Ctrl-C: the whole process group of the terminal gets it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> None:
        """Leave nothing of it behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., Script]]:
    """Starts scripts in `tmp_path`; `address` is the Ray to attach to, by default one that the script starts itself."""
    started: list[Script] = []

    def start(source: str, address: str = "local", **environment: str) -> Script:
        folder = tmp_path / f"script-{len(started)}"
        folder.mkdir()
        started.append(Script(folder, source, {"RAY_ADDRESS": address, "FOLDER": str(tmp_path), **environment}))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture
def address(ray_cluster: None) -> str:
    """The address of the Ray that the tests share."""
    import ray

    found: str = ray.get_runtime_context().gcs_address
    return found
