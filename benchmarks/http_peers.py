"""The HTTP servers that are measured beside each other, each a process of its own, and how one is measured."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from apart import Measure, stop
from harness import Contender

HERE = Path(__file__).parent
START_S = 90.0


@dataclass(frozen=True)
class Server:
    """A script in `servers/`, the paths that are not `/echo` and `/embed`, and the environment it needs.

    `direct`: what is measured is the port of Ray Serve's replica itself, which it has in its throughput mode.
    """

    name: str
    script: str
    paths: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    direct: bool = False


THROUGHPUT = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_DEFAULT_HTTP_HOST": "127.0.0.1"}
SERVERS = [
    Server("gworker", "gworker_server.py", {"echo": "/v1/Echo/echo", "embed": "/v1/Embedder/embed"}),
    Server("FastAPI", "fastapi_server.py"),
    Server("Ray Serve", "serve_server.py"),
    Server("Ray Serve (throughput)", "serve_server.py", env=THROUGHPUT),
    Server("Ray Serve (throughput, direct)", "serve_server.py", env=THROUGHPUT, direct=True),
    Server("LitServe", "litserve_server.py"),
    Server("mosec", "mosec_server.py"),
]


def contenders(which: str, bodies: Sequence[bytes], seconds: float, *, without: Sequence[str] = ()) -> list[Contender]:
    """Every server that has the route `which`. A case is a number of connections."""

    def contender(server: Server) -> Contender:
        return Contender(server.name, lambda: served(server, which, bodies, seconds))

    return [contender(server) for server in SERVERS if server.name not in without]


@contextlib.contextmanager
def served(server: Server, which: str, bodies: Sequence[bytes], seconds: float) -> Iterator[Measure]:
    """Start a server, and measure it with so many connections for so long; its figures end in their number."""
    port = free_port()
    path = server.paths.get(which, f"/{which}")
    own = port if server.direct else port + 1
    with tempfile.TemporaryFile() as log, tempfile.NamedTemporaryFile() as file:
        file.write(b"\n".join(bodies))
        file.flush()
        command = [sys.executable, str(HERE / "servers" / server.script), which, str(port)]
        env = {
            **os.environ,
            **server.env,
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(own),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(own + 100),
        }
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        try:
            url = wait_for(process, log, f"http://127.0.0.1:{port}{path}", bodies[0])

            def measure(connections: int) -> Mapping[str, float]:
                found = under_load(process.pid, url, connections, seconds, file.name)
                return {f"{key}_{connections}": value for key, value in found.items()}

            under_load(process.pid, url, 8, min(1.0, seconds), file.name)
            yield measure
        finally:
            stop(process)


def under_load(pid: int, url: str, connections: int, seconds: float, bodies: str) -> dict[str, float]:
    """What the client has seen, and the CPU time of the server's processes, all together, in µs for one request."""
    command = [sys.executable, str(HERE / "http_load.py"), url, str(connections), str(seconds), bodies]
    before = cpu_s(pid)
    done = subprocess.run(command, capture_output=True, check=False, timeout=seconds + 60)
    if done.returncode:
        raise RuntimeError(done.stderr.decode().strip().splitlines()[-1])
    found: dict[str, float] = json.loads(done.stdout)
    if found["client_busy"] > 0.9:
        raise RuntimeError("the client was busy all the time: it is not the server that was measured")
    return {**found, "cpu_us": (cpu_s(pid) - before) / found["requests"] * 1e6}


def cpu_s(pid: int) -> float:
    """CPU time of a process and of all it has started."""
    server = psutil.Process(pid)
    total = 0.0
    for each in [server, *server.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(each.cpu_times()[:2])
    return total


def wait_for(process: subprocess.Popen[bytes], log: Any, url: str, body: bytes) -> str:
    """Where the server answers: at `url`. Raises RuntimeError with its last words where it never does."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + START_S
    why = ""
    while time.monotonic() < until and process.poll() is None:
        try:
            with direct.open(request, timeout=30) as answer:
                answer.read()
            return url
        except urllib.error.HTTPError as error:
            why = f"{error.code} {error.read()[:200]!r}"
        except OSError as error:
            why = str(error)
        time.sleep(0.2)
    log.seek(0)
    last = " ".join(log.read().decode(errors="replace").split()[-40:])
    raise RuntimeError(f"{url} does not answer ({why}): {last}")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port
