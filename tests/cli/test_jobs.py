"""Jobs: `ray job submit -- python app.py` on a real head node, started and ended here, on loopback."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

REPOSITORY = Path(__file__).parent.parent.parent
START_S = 90.0

JOB = """
    import os
    import sys
    import time
    from pathlib import Path

    import gworker as gw

    FOLDER = Path(__file__).parent
    app = gw.App("job-app")

    def note(*words):
        with (FOLDER / "notes").open("a") as notes:
            notes.write(" ".join(map(str, words)) + "\\n")

    @app.cls(cpu=0.1, min_workers=2, max_workers=2)
    class Worker:
        @gw.on_enter()
        def enter(self):
            note("enter", os.getpid())

        @gw.on_exit()
        async def leave(self):
            note("exit", os.getpid())

        @gw.method()
        async def work(self, seconds: float) -> float:
            import asyncio

            note("start", seconds)
            await asyncio.sleep(seconds)
            note("done", seconds)
            return seconds

    if __name__ == "__main__":
        def go_on(seconds):
            while True:
                Worker().work.spawn(seconds).get()

        if sys.argv[1] == "deploy":
            app.deploy()
        elif sys.argv[1] == "by-itself":
            go_on(4.0)
        else:
            with app.run():
                go_on(float(sys.argv[1]))
"""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Head:
    """A head node of the test's own, and the command lines that go with it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gw-", dir="/tmp"))  # Ray's sockets need a short path
        gcs, dashboard, client, agent, agent_grpc, metrics = free_ports(6)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PYTHONPATH": str(REPOSITORY),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": os.urandom(32).hex(),
        }
        self._process = self._ray(
            "start", "--head", "--block", "--num-cpus=8", "--num-gpus=0", "--node-ip-address=127.0.0.1",
            f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}", f"--metrics-export-port={metrics}",
            f"--temp-dir={self.folder / 'ray'}", "--disable-usage-stats",
        )  # fmt: skip
        self.environment |= {
            "RAY_ADDRESS": f"127.0.0.1:{gcs}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        }
        (self.folder / "job.py").write_text(textwrap.dedent(JOB))

    def _ray(self, *args: str) -> subprocess.Popen[str]:
        with (self.folder / "head.log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *args],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                text=True,
            )

    def job(self, *args: str) -> str:
        """`ray job ...`, once the head node takes jobs."""
        end = time.monotonic() + START_S
        environment = {**self.environment, "RAY_ADDRESS": self.environment["RAY_API_SERVER_ADDRESS"]}
        while True:
            done = subprocess.run(
                [sys.executable, "-m", "ray.scripts.scripts", "job", *args],
                env=environment,
                cwd=self.folder,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            if done.returncode == 0:
                return done.stdout + done.stderr
            assert time.monotonic() < end, done.stdout + done.stderr + (self.folder / "head.log").read_text()
            time.sleep(0.5)

    def command(self, argument: str) -> list[str]:
        """The entry point of the job."""
        return [sys.executable, str(self.folder / "job.py"), argument]

    def submit(self, argument: str, **options: Any) -> str:
        """Submit the job, as `ray job submit` does; its id."""
        submitted = self.api("POST", "", {"entrypoint": shlex.join(self.command(argument)), **options})
        return str(submitted["submission_id"])

    def api(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """What `ray job` asks, without its start-up time."""
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        url = f"{self.environment['RAY_API_SERVER_ADDRESS']}/api/jobs/{path}"
        answer = httpx.request(method, url, json=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def notes(self, first: str) -> list[str]:
        """What the job's processes have written down with this first word."""
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1] for line in lines if line.split()[0] == first]

    def end(self) -> None:
        """Leave no process of it behind: `ray start --block` ends what it started when it is told to end."""
        family = [self._process.pid]
        with contextlib.suppress(psutil.Error):
            family += [p.pid for p in psutil.Process(self._process.pid).children(recursive=True)]
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        for pid in family:
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).kill()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    started = Head()
    yield started
    started.end()


@pytest.fixture(autouse=True)
def _fresh_notes(head: Head) -> None:
    (head.folder / "notes").unlink(missing_ok=True)


@pytest.fixture
def submit(head: Head, eventually: Any) -> Callable[..., str]:
    def start(name: str, argument: str, *options: str) -> str:
        head.job(
            "submit",
            "--submission-id",
            name,
            "--no-wait",
            *options,
            "--",
            sys.executable,
            str(head.folder / "job.py"),
            argument,
        )
        return name

    return start


def test_a_stopped_job_drains_within_its_grace_and_leaves_no_process(
    head: Head, eventually: Any, gone: Callable[..., bool]
) -> None:
    job = "drains"
    head.job("submit", "--submission-id", job, "--no-wait", "--", *head.command("0.5"))
    eventually(lambda: len(head.notes("done")) >= 2, 60)
    head.job("stop", job)
    workers = head.notes("enter")
    assert sorted(head.notes("exit")) == sorted(workers) and len(workers) == 2
    assert len(head.notes("done")) == len(head.notes("start"))  # what ran was finished
    eventually(lambda: gone(*map(int, workers)))
    assert head.api("GET", job)["status"] == "STOPPED"


def test_the_grace_can_be_lengthened(head: Head, eventually: Any, gone: Callable[..., bool]) -> None:
    environment = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "15"}}
    job = head.submit("by-itself", runtime_env=environment)
    eventually(lambda: head.notes("start") and len(head.notes("enter")) == 2, 60)
    head.api("POST", f"{job}/stop")
    eventually(lambda: head.api("GET", job)["status"] == "STOPPED")
    assert head.notes("done") == head.notes("start")  # twice what a job is left without asking
    assert sorted(head.notes("exit")) == sorted(head.notes("enter"))
    eventually(lambda: gone(*map(int, head.notes("enter"))))


def test_an_app_that_a_job_deploys_outlives_it(head: Head, eventually: Any, gone: Callable[..., bool]) -> None:
    job = head.submit("deploy")
    eventually(lambda: head.api("GET", job)["status"] == "SUCCEEDED", 60)

    def gworker(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "gworker", *args],
            env=head.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert gworker("call", "job-app", "Worker.work", "--seconds", "0.25") == "0.25\n"
    assert "only from this machine" in gworker("doctor")
    workers = head.notes("enter")
    gworker("stop", "job-app")
    assert sorted(head.notes("exit")) == sorted(workers) and len(workers) == 2
    eventually(lambda: gone(*map(int, workers)))
