"""`@gw.asgi_app()`: routes of the user's own, answered in the worker."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, StreamingResponse

import gworker as gw
from gworker.errors import InvalidDefinition
from gworker.worker.asgi import AsgiHost


def site() -> FastAPI:
    api = FastAPI()

    @api.get("/hello/{name}")
    async def hello(name: str, q: int = 1) -> dict[str, Any]:
        return {"hello": name, "q": q}

    @api.post("/echo")
    async def echo(request: Request) -> PlainTextResponse:
        body = await request.body()
        return PlainTextResponse(body, headers={"x-had-token": str("authorization" in request.headers)})

    @api.get("/fails")
    async def fails() -> None:
        raise ValueError("inside the application")

    @api.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> Any:
            for i in range(3):
                yield f"{i}\n"

        return StreamingResponse(parts())

    return api


@pytest.fixture
def client(fake: Any, serve: Any) -> Any:
    @fake.app.cls()
    class Site:
        @gw.asgi_app()
        def web(self) -> FastAPI:
            return site()

        @gw.method()
        async def ping(self) -> str:
            return "pong"

    return serve(fake.app, token="sesame", headers={"Authorization": "Bearer sesame"}, max_body_mb=1)


def test_paths_below_the_class_reach_the_application(client: Any) -> None:
    assert client.get("/v1/Site/hello/bob?q=3").json() == {"hello": "bob", "q": 3}
    assert client.get("/v1/Site/nothing").json() == {"detail": "Not Found"}
    assert client.get("/v1/Site/openapi.json").json()["servers"] == [{"url": "/v1/Site"}]


def test_bodies_go_in_and_streams_come_out(client: Any) -> None:
    answer = client.post("/v1/Site/echo", content=b"x" * 100_000)
    assert answer.content == b"x" * 100_000
    assert client.get("/v1/Site/stream").text == "0\n1\n2\n"


def test_the_gateway_s_token_does_not_reach_it(client: Any) -> None:
    assert client.post("/v1/Site/echo", content=b"").headers["x-had-token"] == "False"


def test_methods_of_the_class_come_first(client: Any) -> None:
    assert client.post("/v1/Site/ping").json() == {"result": "pong"}


def test_the_gateway_s_limits_hold_for_it(client: Any, problem: Any) -> None:
    problem(client.post("/v1/Site/echo", content=b"x" * 2_000_000), 413, "content-too-large")
    problem(client.get("/v1/Site/hello/x", headers={"Authorization": "Bearer no"}), 401, "authentication-error")


def test_it_is_no_method_of_its_own(client: Any) -> None:
    assert "/v1/Site/web" not in client.get("/openapi.json").json()["paths"]
    assert client.get("/v1/Site/web").json() == {"detail": "Not Found"}


# --- in the worker -----------------------------------------------------------------------------------------------


async def respond(host: AsgiHost, path: str) -> list[Any]:
    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": b"", "headers": [], "root_path": "",
    }  # fmt: skip
    return [message async for message in host.handle(scope, b"")]


async def test_its_lifespan_runs_with_the_worker_and_its_state_reaches_requests() -> None:
    told = []

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        told.append("up")
        yield {"model": "loaded"}
        told.append("down")

    api = FastAPI(lifespan=lifespan)

    @api.get("/state")
    async def state(request: Request) -> str:
        return str(request.state.model)

    host = AsgiHost(api)
    await host.start()
    assert told == ["up"]
    start, body, *_ = await respond(host, "/state")
    assert start["status"] == 200 and body["body"] == b'"loaded"'
    await host.stop()
    assert told == ["up", "down"]


async def test_a_lifespan_that_fails_fails_the_start() -> None:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        raise OSError("no disk")
        yield

    with pytest.raises(RuntimeError, match="startup of the ASGI application failed"):
        await AsgiHost(FastAPI(lifespan=lifespan)).start()


async def test_an_application_without_a_lifespan_is_as_good() -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    host = AsgiHost(bare)
    await host.start()
    assert [m["type"] for m in await respond(host, "/")] == ["http.response.start", "http.response.body"]
    await host.stop()


async def test_what_it_raises_is_raised() -> None:
    host = AsgiHost(site())
    await host.start()
    with pytest.raises(ValueError, match="inside the application"):
        await respond(host, "/fails")
    await host.stop()


async def test_a_client_that_goes_away_cancels_the_request() -> None:
    cancelled = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        except asyncio.CancelledError:
            cancelled.set()
            raise

    messages = AsgiHost(endless).handle({"type": "http"}, b"")
    assert (await messages.__anext__())["status"] == 200
    await messages.aclose()
    assert cancelled.is_set()


# --- definition errors -------------------------------------------------------------------------------------------


def refuse(define: Any, words: str) -> None:
    with pytest.raises(InvalidDefinition, match=words):
        gw.App("http-definitions").cls()(define())


def test_mistakes_come_to_light_at_the_definition() -> None:
    with pytest.raises(InvalidDefinition, match="without parentheses"):

        @gw.asgi_app
        def web(self: Any) -> Any: ...

    for other in (gw.method(), gw.batched(max_batch_size=2), gw.on_enter(), gw.on_exit()):
        for first, second in ((other, gw.asgi_app()), (gw.asgi_app(), other)):
            with pytest.raises(InvalidDefinition, match="cannot be on one function"):
                first(second(lambda self: None))

    class WithArguments:
        @gw.asgi_app()
        def web(self, port): ...

    class WithYield:
        @gw.asgi_app()
        def web(self):
            yield

    class Two:
        @gw.asgi_app()
        def web(self): ...

        @gw.asgi_app()
        def other(self): ...

    refuse(lambda: WithArguments, r"takes arguments \(port\)")
    refuse(lambda: WithYield, "contains yield")
    refuse(lambda: Two, "a class has one application")


def test_a_class_may_have_nothing_else_and_describes_it() -> None:
    app = gw.App("http-described")

    @app.cls()
    class Site:
        @gw.asgi_app()
        def web(self) -> Any:
            return site()

    assert "web   [ASGI application below /v1/Site/]" in Site.describe()
    with pytest.raises(TypeError, match="behind the gateway only"):
        Site().web.local({}, b"")
