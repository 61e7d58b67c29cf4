"""HTTP echo: gworker's gateway beside a bare FastAPI route and Ray Serve, interleaved in one run.

    python benchmarks/http_echo.py [--rounds 3] [--seconds 3] [--no-serve] [--json FILE]

Requests per second and the p50 of one request at 1 and 32 connections, as medians over the rounds, with the CPU time
that the server takes for one request, all its processes together. Each server and the load generator is a process of
its own; gworker and Ray Serve have one replica that takes many inputs at once, and FastAPI answers by itself. Ray Serve
needs `pip install "ray[serve]"`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

CONNECTIONS = (1, 32)
BODY = b'{"x": 5}'
PATHS = {"gworker": "/v1/Echo/echo", "fastapi": "/echo", "serve": "/echo"}


# --- the servers -------------------------------------------------------------------------------------------------


def serve_gworker(port: int) -> None:
    """Our gateway, before one worker."""
    import ray

    import gworker as gw
    from gworker.http import create_gateway, serve

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="WARNING", log_to_driver=False)
    app = gw.App("bench-http")

    @app.cls(max_workers=1, min_workers=1, cpu=0)
    @gw.concurrent(max_inputs=256)
    class Echo:
        @gw.method()
        async def echo(self, x: int) -> int:
            return x

    with app.run():
        serve(create_gateway(app), port=port, drain_s=1)


def serve_fastapi(port: int) -> None:
    """The peer that does nothing but HTTP."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Body(BaseModel):
        x: int

    class Answer(BaseModel):
        result: int

    Body.model_rebuild()
    app = FastAPI()

    async def echo(body: Any) -> Any:
        return Answer(result=body.x)

    echo.__annotations__ = {"body": Body, "return": Answer}
    app.post("/echo")(echo)
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning")


def serve_ray_serve(port: int) -> None:
    """The peer that does the same on Ray."""
    import ray
    from ray import serve
    from starlette.requests import Request

    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="WARNING", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})

    class Echo:
        async def __call__(self, request: Request) -> dict[str, int]:
            return {"result": (await request.json())["x"]}

    Echo.__call__.__annotations__["request"] = Request
    deployment = serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})(Echo)
    serve.run(deployment.bind(), route_prefix="/echo", blocking=False)
    while True:
        time.sleep(3600)


SERVERS = {"gworker": serve_gworker, "fastapi": serve_fastapi, "serve": serve_ray_serve}


# --- the load ----------------------------------------------------------------------------------------------------


async def one_connection(port: int, request: bytes, until: float, times: list[float]) -> None:
    """One request after another on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        start = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the answer was {head!r}")
        length = head.lower().find(b"content-length:") + 15
        if length < 15:  # Ray Serve sends chunks
            while await reader.readuntil(b"\r\n") != b"0\r\n":
                await reader.readuntil(b"\r\n")
            await reader.readuntil(b"\r\n")
        else:
            await reader.readexactly(int(head[length : head.index(b"\r\n", length)]))
        times.append(time.perf_counter() - start)
    writer.close()


async def load(port: int, path: str, connections: int, seconds: float) -> dict[str, float]:
    """Requests per second, and the median time of one in ms."""
    fields = ["Host: 127.0.0.1", "Content-Type: application/json", f"Content-Length: {len(BODY)}"]
    head = "\r\n".join([f"POST {path} HTTP/1.1", *fields, "", ""])
    times: list[float] = []
    start = time.perf_counter()
    until = start + seconds
    await asyncio.gather(*[one_connection(port, head.encode() + BODY, until, times) for _ in range(connections)])
    return {"req_s": len(times) / (time.perf_counter() - start), "p50_ms": statistics.median(times) * 1000}


def measure(
    name: str, process: subprocess.Popen[bytes], port: int, connections: int, seconds: float
) -> dict[str, float]:
    """The same from a process of its own, with the CPU time of the server's processes in µs for one request."""
    before = cpu_s(process.pid)
    command = [sys.executable, __file__, "--load", str(port), PATHS[name], str(connections), str(seconds)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=seconds + 60)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.decode()}")
    found: dict[str, float] = json.loads(done.stdout)
    used_s = cpu_s(process.pid) - before
    return {**found, "cpu_us": used_s / (found["req_s"] * seconds) * 1e6}


def cpu_s(pid: int) -> float:
    """CPU time of a process and of all it has started."""
    server = psutil.Process(pid)
    return sum(sum(each.cpu_times()[:2]) for each in [server, *server.children(recursive=True)])


# --- the run -----------------------------------------------------------------------------------------------------


def start(name: str, port: int) -> subprocess.Popen[bytes]:
    """Start a server in a process of its own and wait until it answers."""
    command = [sys.executable, __file__, "--server", name, str(port)]
    process = subprocess.Popen(command, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}, start_new_session=True)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{PATHS[name]}", BODY, {"Content-Type": "application/json"}, method="POST"
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(240):
        try:
            with direct.open(request, timeout=10) as answer:
                answer.read()
            return process
        except OSError:
            if process.poll() is not None:
                raise SystemExit(f"{name} did not start") from None
            time.sleep(0.5)
    raise SystemExit(f"{name} does not answer")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and what it started."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in started:
        if child.is_running():
            child.kill()


def run(rounds: int, seconds: float, with_serve: bool) -> dict[str, Any]:
    """All figures of each round, by server and number of connections."""
    names = [name for name in SERVERS if with_serve or name != "serve"]
    servers = {}
    rows: dict[str, Any] = {}
    try:
        for i, name in enumerate(names):
            servers[name] = (start(name, 18400 + i), 18400 + i)
        for _ in range(rounds):
            for connections in CONNECTIONS:
                for name, (process, port) in servers.items():
                    measured = measure(name, process, port, connections, seconds)
                    rows.setdefault(name, {}).setdefault(str(connections), []).append(measured)
    finally:
        for process, _ in servers.values():
            stop(process)
    return rows


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--no-serve", action="store_true", help="leave Ray Serve out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--server", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.server:
        SERVERS[given.server[0]](int(given.server[1]))
        return
    if given.load:
        import uvloop

        port, path, connections, seconds = given.load
        print(json.dumps(uvloop.run(load(int(port), path, int(connections), float(seconds)))))
        return
    rows = run(given.rounds, given.seconds, not given.no_serve)
    medians = {
        name: {
            connections: {key: statistics.median(m[key] for m in measured) for key in measured[0]}
            for connections, measured in by_connections.items()
        }
        for name, by_connections in rows.items()
    }
    ratios = {
        f"{connections} connections, req/s to {peer}": medians["gworker"][connections]["req_s"]
        / medians[peer][connections]["req_s"]
        for connections in map(str, CONNECTIONS)
        for peer in medians
        if peer != "gworker"
    }
    print(f"{'connections':14}{'server':12}{'req/s':>10}{'p50 (ms)':>10}{'CPU (µs)':>10}")
    for connections in map(str, CONNECTIONS):
        for name, found in medians.items():
            row = found[connections]
            print(f"{connections:14}{name:12}{row['req_s']:10.0f}{row['p50_ms']:10.2f}{row['cpu_us']:10.0f}")
    for what, ratio in ratios.items():
        print(f"{what:40}{ratio:8.2f}")
    if given.json:
        import ray

        import gworker as gw

        machine = {
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "ray": ray.__version__,
            "gworker": gw.__version__,
        }
        report = {"machine": machine, "rounds": rows, "medians": medians, "ratios": ratios}
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
