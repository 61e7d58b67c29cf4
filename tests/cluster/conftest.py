"""What the cluster tests share: an app for each file, doors that workers wait at, scripts in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
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

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def shared_app(request: pytest.FixtureRequest, ray_cluster: None) -> Iterator[Any]:
    """One app for the tests of a file that neither stop it nor ask for all of its pools: it saves a second for each."""
    import gworker as gw

    app = gw.App(f"{request.module.__name__.rsplit('.', 1)[-1]}-{os.getpid()}")
    yield app
    app.stop(drain=False)


class Gate:
    """A door that code in workers waits at until a test opens it. It is a file, and travels to workers by pickle."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def open(self) -> None:
        """Let all through."""
        Path(self.path).touch()

    def shut(self) -> None:
        """Let nobody through any more."""
        Path(self.path).unlink(missing_ok=True)

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return os.path.exists(self.path)

    def wait(self, timeout_s: float = 60.0) -> None:
        """Stand at the door; give up after `timeout_s`, so that no test leaves a worker standing there."""
        end = time.monotonic() + timeout_s
        while not self.is_open and time.monotonic() < end:
            time.sleep(0.005)

    async def wait_async(self, timeout_s: float = 60.0) -> None:
        """The same for a coroutine."""
        end = time.monotonic() + timeout_s
        while not self.is_open and time.monotonic() < end:  # noqa: ASYNC110  # another process opens it
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
