"""The gateway: an ASGI application that serves the methods of an app over HTTP.

    gateway = create_gateway(app)          # or the name of a deployed app
    serve(gateway, port=8000)

`POST /v1/{Class}/{method}` calls a method; `/docs` documents them; `/livez`, `/readyz`, `/metrics` and `/v1/status`
tell how the app is; `/` shows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gworker import checks
from gworker.app import App
from gworker.errors import GWorkerError
from gworker.http import embeddings, pages
from gworker.http.catalog import Catalog
from gworker.http.edge import Edge, Handler
from gworker.http.embeddings import EmbeddingRoutes
from gworker.http.guard import Guard, check_token, read_token
from gworker.http.health import StatusSource
from gworker.http.metrics import Metrics
from gworker.http.openapi import OpenApi
from gworker.http.problems import MEDIA_TYPE, Problem, problem_of, status_problem
from gworker.openai import embeddings_of

log = logging.getLogger("gworker.http")

# How often a deployed app is asked whether it was deployed anew: new classes and signatures are then served.
_REFRESH_S = 2.0


@dataclass(frozen=True)
class GatewayState:
    """What a gateway consists of; found at `gateway.state.gworker`."""

    catalog: Catalog
    guard: Guard
    metrics: Metrics
    status: StatusSource
    openapi: OpenApi
    debug: bool


def create_gateway(
    app: App | str,
    *,
    token: str | None = None,
    debug: bool = False,
    cors_origins: Sequence[str] = (),
    allowed_hosts: Sequence[str] = (),
    max_body_mb: float = 16,
    body_timeout_s: float = 30,
    default_deadline_s: float = 60,
) -> Gateway:
    """The gateway in front of an app: an ASGI application, for `serve` or any ASGI server.

    Args:
        app: an app of this process, or the name of a deployed one (found in the Ray cluster, at once).
        token: the bearer token that every request but `/livez` must carry; the environment's GWORKER_TOKEN by default.
            Without any, only requests to a loopback address are answered, and none of another site's web pages.
        debug: put the workers' tracebacks into answers.
        cors_origins: sites whose pages may call, such as "https://app.example.com"; none by default.
        allowed_hosts: names this gateway is known by, beside loopback addresses, where there is no token.
        max_body_mb: the largest body that is read, in MB (16); a larger one is answered with 413.
        body_timeout_s: seconds a client may take to send its body (30), or it is answered with 408.
        default_deadline_s: seconds a call may take where the request sets no Request-Timeout (60).

    Raises:
        InvalidDefinition: for options that cannot work.
        NotFound: no such app is deployed.
    """
    where = "create_gateway"
    max_body_mb = checks.number(where, "max_body_mb", max_body_mb, above=True, example=16, unit="MB")
    body_timeout_s = checks.number(where, "body_timeout_s", body_timeout_s, above=True, example=30, unit="seconds")
    default_deadline_s = checks.number(
        where, "default_deadline_s", default_deadline_s, above=True, example=60, unit="seconds"
    )
    token = check_token(token) if token is not None else read_token()
    catalog = Catalog(app, default_deadline_s)
    state = GatewayState(
        catalog=catalog,
        guard=Guard(token, cors_origins, allowed_hosts),
        metrics=Metrics(),
        status=StatusSource(catalog.status),
        openapi=OpenApi(catalog, with_token=token is not None),
        debug=debug,
    )
    handlers: dict[str, Handler] = {}
    models = embeddings_of(catalog.name)
    if models:
        routes = EmbeddingRoutes(models, default_deadline_s, debug=debug)
        handlers |= {"/v1/embeddings": routes.embeddings, "/v1/models": routes.models}
        state.openapi.extra_paths |= embeddings.paths()

    gateway = Gateway(
        title=catalog.name, docs_url=None, redoc_url=None, openapi_url=None, lifespan=lambda _: _lifespan(state)
    )
    gateway.state.gworker = state
    gateway.openapi = state.openapi.document  # type: ignore[method-assign]
    pages.add_to(gateway, state)
    for kind in (HTTPException, Problem, GWorkerError):
        gateway.add_exception_handler(kind, _as_problem)
    entry: ASGIApp = Edge(
        gateway.own_pages,
        catalog=catalog,
        guard=state.guard,
        metrics=state.metrics,
        handlers=handlers,
        max_body=int(max_body_mb * 2**20),
        body_timeout_s=body_timeout_s,
        debug=debug,
    )
    if cors_origins:
        entry = CORSMiddleware(
            entry,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Request-Timeout", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    gateway.entry = entry
    return gateway


class Gateway(FastAPI):
    """A FastAPI application whose requests come in through `entry`; FastAPI has the gateway's own pages."""

    entry: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a request in."""
        await self.entry(scope, receive, send)

    async def own_pages(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What a FastAPI application does with a request."""
        await super().__call__(scope, receive, send)


@contextlib.asynccontextmanager
async def _lifespan(state: GatewayState) -> AsyncIterator[None]:
    await asyncio.to_thread(state.catalog.warm)
    refresher = asyncio.create_task(_follow(state))
    try:
        yield
    finally:
        refresher.cancel()


async def _follow(state: GatewayState) -> None:
    """Serve new definitions of the app's classes when there are some."""
    while True:
        await asyncio.sleep(_REFRESH_S)
        try:
            if await asyncio.to_thread(state.catalog.load):
                await asyncio.to_thread(state.catalog.warm)
                state.openapi.forget()
        except Exception as error:  # a controller that is being replaced; what is known is served meanwhile
            log.info("the app %s could not be asked for its classes: %s", state.catalog.name, error)


async def _as_problem(request: Request, error: Exception) -> Response:
    """The answer to a request for one of the gateway's own pages that was refused or failed."""
    if isinstance(error, HTTPException):
        error = status_problem(error.status_code, f"{request.method} {request.url.path}: {error.detail}", error.headers)
    problem = problem_of(error)
    body = problem.body(request.scope["gworker.request_id"])
    return Response(body, problem.status, problem.headers, MEDIA_TYPE.decode())
