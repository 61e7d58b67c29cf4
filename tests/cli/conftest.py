"""The command as people run it, in a process of its own, or, where that is all the same and faster, in this one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent


@dataclass
class Ended:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


class Command:
    """Runs `python -m gworker` in a folder, attached to a Ray."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": address,
            "FOLDER": str(folder),
        }
        self._started: list[subprocess.Popen[str]] = []

    def write(self, name: str, source: str) -> Path:
        """A file in the folder, put there in one move."""
        path = self.folder / name
        path.with_suffix(".new").write_text(textwrap.dedent(source))
        path.with_suffix(".new").replace(path)
        return path

    def __call__(self, *args: str, stdin: str = "", **environment: str) -> Ended:
        """Run it to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "gworker", *args],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=self.folder,
            env={**self.environment, **environment},
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str, **environment: str) -> subprocess.Popen[str]:
        """Start it, in a process group of its own as a terminal would; its output goes to the file `output`."""
        with (self.folder / "output").open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "gworker", *args],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=self.folder,
                env={**self.environment, **environment},
                start_new_session=True,
            )
        self._started.append(process)
        return process

    @property
    def output(self) -> str:
        """What the process that was started last has said."""
        return (self.folder / "output").read_text()

    def end(self) -> None:
        """Leave nothing running."""
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


@pytest.fixture
def gworker(tmp_path: Path, address: str) -> Iterator[Command]:
    """The command, attached to the Ray that the tests share."""
    command = Command(tmp_path, address)
    yield command
    command.end()


@pytest.fixture
def here(ray_cluster: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command in this process, which is attached to the shared Ray already."""
    from gworker.cli import main, output

    def run(*args: str) -> Ended:
        with monkeypatch.context() as patch:
            patch.setattr(output, "_results", None)
            patch.setattr(sys, "stdout", sys.stdout)
            capfd.readouterr()
            code = 0
            try:
                main.main(list(args))
            except SystemExit as ended:
                code = int(ended.code or 0)
        said = capfd.readouterr()
        return Ended(code, said.out, said.err)

    return run
