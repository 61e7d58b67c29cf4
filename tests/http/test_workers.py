"""A gateway before real workers: calls, clients that go away, workers that die, deployed apps, applications."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import gworker as gw

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return tmp_path_factory.mktemp("http")


def define_model(app: Any, tell: Any) -> None:
    @app.cls(cpu=0, max_workers=1, max_pending=1)
    class Model:
        threshold: float = gw.parameter(default=0.5)

        @gw.method()
        def double(self, x: int) -> int:
            return 2 * x

        @gw.method()
        def pid(self) -> int:
            return os.getpid()

        @gw.method()
        def setting(self) -> float:
            return self.threshold

        @gw.method()
        async def wait(self, s: float) -> None:
            tell("waiting")
            try:
                await asyncio.sleep(s)
            except asyncio.CancelledError:
                tell("cancelled")
                raise

        @gw.method()
        async def forever(self) -> AsyncIterator[int]:
            try:
                while True:
                    yield 1
                    await asyncio.sleep(0.01)
            finally:
                tell("closed")

        @gw.method()
        def fails(self) -> None:
            raise LookupError("nothing there")


def define_site(app: Any, tell: Any) -> None:
    @app.cls(cpu=0, resources={"moon": 1})
    class Elsewhere:
        @gw.method()
        def run(self) -> int:
            return 1

    @app.cls(cpu=0)
    @gw.concurrent(max_inputs=4)
    class Site:
        @gw.on_exit()
        def leave(self) -> None:
            tell("left")

        @gw.asgi_app()
        def web(self) -> FastAPI:
            @contextlib.asynccontextmanager
            async def lifespan(_: FastAPI) -> Any:
                tell("up")
                yield
                tell("down")

            api = FastAPI(lifespan=lifespan)

            @api.get("/hello/{name}")
            async def hello(name: str) -> dict[str, Any]:
                return {"hello": name, "pid": os.getpid()}

            return api


@pytest.fixture(scope="module")
def site(shared_app: Any, folder: Path) -> Any:
    """A gateway of the module's app; the client."""
    from gworker.http import GatewayServer, create_gateway

    told = str(folder / "told")

    def tell(line: str) -> None:
        with open(told, "a") as file:
            file.write(line + "\n")

    define_model(shared_app, tell)
    define_site(shared_app, tell)
    with (
        GatewayServer(create_gateway(shared_app), port=0, drain_s=1) as server,
        httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client,
    ):
        yield client


@pytest.fixture
def told(folder: Path) -> Any:
    """How often the workers have told something."""
    file = folder / "told"
    return lambda line: file.read_text().splitlines().count(line) if file.exists() else 0


def leave_in_the_middle(client: httpx.Client, path: str, body: dict[str, Any], until: Any) -> None:
    data = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
    ]
    with socket.create_connection((client.base_url.host, client.base_url.port), 10) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + data)
        until(connection)


def test_calls_go_to_workers(site: Any) -> None:
    assert site.post("/v1/Model/double", json={"x": 4}).json() == {"result": 8}
    assert site.post("/v1/Model/setting", json={"parameters": {"threshold": 0.9}}).json() == {"result": 0.9}
    assert site.post("/v1/Model/pid").json()["result"] != os.getpid()


def test_what_a_method_raises_is_500(site: Any, problem: Any) -> None:
    assert problem(site.post("/v1/Model/fails"), 500, "method-raised")["detail"] == "LookupError: nothing there"


def test_a_client_that_disconnects_cancels_its_input_in_the_worker(site: Any, told: Any, eventually: Any) -> None:
    before = told("cancelled")
    waiting = told("waiting")
    leave_in_the_middle(site, "/v1/Model/wait", {"s": 60}, lambda _: eventually(lambda: told("waiting") > waiting))
    eventually(lambda: told("cancelled") == before + 1)
    assert site.post("/v1/Model/double", json={"x": 1}).json() == {"result": 2}, "the worker's place is free again"


def test_a_client_that_disconnects_closes_its_stream_in_the_worker(site: Any, told: Any, eventually: Any) -> None:
    def read(connection: socket.socket) -> None:
        seen = b""
        while seen.count(b"data: 1") < 20:
            seen += connection.recv(4096)

    before = told("closed")
    leave_in_the_middle(site, "/v1/Model/forever", {}, read)
    eventually(lambda: told("closed") == before + 1)


def test_a_call_that_takes_too_long_is_504(site: Any, problem: Any, told: Any, eventually: Any) -> None:
    before = told("cancelled")
    answer = site.post("/v1/Model/wait", json={"s": 60}, headers={"Request-Timeout": "0.3"})
    assert "deadline_s" in problem(answer, 504, "deadline-exceeded")["detail"]
    eventually(lambda: told("cancelled") == before + 1)


def test_more_calls_than_may_wait_are_429(site: Any, problem: Any, told: Any, eventually: Any) -> None:
    waiting = told("waiting")
    answers: list[httpx.Response] = []

    def ask() -> None:
        body, headers = {"s": 60}, {"Request-Timeout": "3"}
        answers.append(httpx.post(f"{site.base_url}/v1/Model/wait", json=body, headers=headers, trust_env=False))

    asking = [threading.Thread(target=ask) for _ in range(5)]
    asking[0].start()
    eventually(lambda: told("waiting") > waiting)
    for thread in asking[1:]:
        thread.start()
    for thread in asking:
        thread.join()
    full = [answer for answer in answers if answer.status_code == 429]
    assert len(full) == 3, [answer.status_code for answer in answers]
    assert problem(full[0], 429, "queue-full")["retryable"] and full[0].headers["retry-after"] == "1"


def test_what_no_node_can_hold_is_503(site: Any, problem: Any) -> None:
    answer = site.post("/v1/Elsewhere/run")
    assert "moon" in problem(answer, 503, "unschedulable")["detail"]
    document = problem(site.get("/readyz"), 503, "not-ready")
    assert "Elsewhere" in document["detail"] and "moon" in document["detail"]


def test_a_worker_that_dies_is_502_and_the_next_call_is_served(
    site: Any, problem: Any, told: Any, eventually: Any
) -> None:
    pid = site.post("/v1/Model/pid").json()["result"]
    waiting = told("waiting")

    def kill() -> None:
        eventually(lambda: told("waiting") > waiting)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    answer = site.post("/v1/Model/wait", json={"s": 60})
    killer.join()
    problem(answer, 502, "worker-lost")
    assert site.post("/v1/Model/pid").json()["result"] != pid


def test_status_and_metrics_show_the_pools(site: Any, shared_app: Any) -> None:
    document = site.get("/v1/status").json()
    assert document["name"] == shared_app.name and document["running"]
    assert {"Model", "Site"} <= {pool["class_name"] for pool in document["pools"]}
    assert f'gworker_workers{{app="{shared_app.name}",pool="Model",state="ready"}} 1.0' in site.get("/metrics").text


def test_an_application_runs_in_the_worker_with_its_lifespan(site: Any, shared_app: Any, told: Any) -> None:
    answer = site.get("/v1/Site/hello/bob").json()
    assert answer["hello"] == "bob" and answer["pid"] != os.getpid()
    assert told("up") == 1
    shared_app.stop()
    assert (told("down"), told("left")) == (1, 1)


def test_a_deployed_app_is_served_by_its_name_and_its_new_versions_too(
    make_app: Any, problem: Any, eventually: Any
) -> None:
    from gworker.http import GatewayServer, create_gateway

    app = make_app()

    def define(answer: str) -> None:
        app.classes.clear()

        @app.cls(cpu=0, max_workers=1)
        class Model:
            @gw.method()
            def say(self, words: list[str]) -> str:
                return " ".join([answer, *words])

            if answer == "second":

                @gw.method()
                def more(self) -> int:
                    return 2

    define("first")
    app.deploy()
    with (
        GatewayServer(create_gateway(app.name), port=0, drain_s=1) as server,
        httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client,
    ):
        assert client.post("/v1/Model/say", json={"words": ["a"]}).json() == {"result": "first a"}
        problem(client.post("/v1/Model/say", json={"words": "a"}), 422, "invalid-arguments")
        problem(client.post("/v1/Model/more"), 404, "not-found")
        define("second")
        app.deploy()
        assert eventually(lambda: client.post("/v1/Model/more").status_code == 200)
        assert client.post("/v1/Model/say", json={"words": ["a"]}).json() == {"result": "second a"}
    with pytest.raises(gw.NotFound, match="no app 'nobody' is deployed"):
        create_gateway("nobody")


SERVED = """
import os, sys
import gworker as gw
from gworker.http import create_gateway, serve

app = gw.App("served")
FOLDER = os.environ["FOLDER"]  # the workers of a shared Ray have another environment

@app.cls(cpu=0, min_workers=1)
class Model:
    @gw.on_exit()
    def leave(self):
        open(os.path.join(FOLDER, "left"), "w").close()

    @gw.method()
    async def wait(self, s: float) -> str:
        import asyncio
        open(os.path.join(FOLDER, "waiting"), "w").close()
        await asyncio.sleep(s)
        return "done"

with app.run():
    serve(create_gateway(app), port=int(os.environ["PORT"]))
print("drained")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_serving_once_requests_are_answered_and_workers_have_left(
    script: Any, address: str, tmp_path: Path, eventually: Any, number: int
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = script(SERVED, address=address, PORT=str(port))
    url = f"http://127.0.0.1:{port}"

    def up() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/livez", trust_env=False).status_code == 200
        assert served.process.poll() is None, served.err
        return False

    eventually(up, 60)
    answers: list[httpx.Response] = []
    body = {"s": 1}
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{url}/v1/Model/wait", json=body, timeout=30, trust_env=False))
    )
    asking.start()
    eventually((tmp_path / "waiting").exists)
    served.process.send_signal(number)
    asking.join()
    assert answers[0].json() == {"result": "done"}
    assert served.wait() == 0, served.err
    assert "drained" in served.out and (tmp_path / "left").exists()
