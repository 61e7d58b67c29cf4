"""The gateway's outermost layer: lets requests in, sends each where it belongs, and turns what is raised into answers.

Methods are called from here directly: what frameworks do for each request costs more than the call itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import RayError

from gworker.errors import AuthenticationError, GWorkerError, PoolUnavailable
from gworker.http import pages
from gworker.http.catalog import Catalog, Target
from gworker.http.exchange import ClientGone, Exchange, Scope
from gworker.http.guard import Guard, challenge
from gworker.http.invoke import invoke
from gworker.http.metrics import Metrics
from gworker.http.mounts import pass_on
from gworker.http.problems import Problem, problem_of

log = logging.getLogger("gworker.http")

Handler = Callable[[Exchange], Awaitable[None]]


class Edge:
    """An ASGI application around another one, which has the gateway's own pages.

    `handlers` answer single paths. What is neither a method nor a handler's path goes to `app`.
    """

    def __init__(
        self,
        app: Any,
        *,
        catalog: Catalog,
        guard: Guard,
        metrics: Metrics,
        handlers: dict[str, Handler],
        max_body: int,
        body_timeout_s: float,
        debug: bool,
    ) -> None:
        self._app = app
        self._catalog = catalog
        self._guard = guard
        self._metrics = metrics
        self._handlers = handlers
        self._max_body = max_body
        self._body_timeout_s = body_timeout_s
        self._debug = debug

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer a request; pass on what the server says of its own life."""
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003, "reason": "no route takes web sockets"})
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Any, send: Any) -> None:
        started = time.perf_counter()
        metrics = self._metrics
        metrics.in_flight += 1
        exchange = Exchange(scope, receive, send, self._max_body, self._body_timeout_s)
        try:
            self._guard.check(exchange)
            endpoint = self._catalog.endpoints.get(scope["path"])
            if endpoint is not None:
                exchange.route = endpoint.name
                await invoke(endpoint, exchange, debug=self._debug)
            else:
                await self._elsewhere(exchange)
        except ClientGone:
            exchange.status = exchange.status or 499  # nobody reads it; the metrics do
        except Exception as error:
            await self._failed(exchange, error)
        finally:
            metrics.in_flight -= 1
            metrics.count(exchange.route, exchange.status or 499, started)

    async def _elsewhere(self, exchange: Exchange) -> None:
        path: str = exchange.scope["path"]
        handler = self._handlers.get(path)
        if handler is not None:
            exchange.route = path
            await handler(exchange)
        elif (target := self._mount(path)) is not None:
            exchange.route = target.name
            # The gateway's own token is nothing for the application to know.
            await pass_on(target, exchange, keep_token=not self._guard.asks_for_token, debug=self._debug)
        elif path.startswith("/v1/") and path not in pages.PATHS:
            raise unknown(self._catalog, path)
        else:
            if path in pages.PATHS:
                exchange.route = path
            exchange.scope["gworker.request_id"] = exchange.request_id
            await self._app(exchange.scope, exchange.receive, exchange.send)

    def _mount(self, path: str) -> Target | None:
        if not self._catalog.mounts or not path.startswith("/v1/"):
            return None
        return self._catalog.mounts.get(path.split("/", 3)[2])

    async def _failed(self, exchange: Exchange, error: Exception) -> None:
        problem = self._problem(exchange, error)
        if problem.status >= 500:
            log.warning("%s: %d %s (request %s)", exchange.route, problem.status, problem.detail, exchange.request_id)
        if exchange.status:
            raise error  # the answer has begun: the server breaks the connection, which is all that is left to say
        if problem.status == 401 and pages.wants_page(exchange):
            # A browser shows the body of a refusal: a page that asks for the token, and knows nothing else.
            await pages.send_page(exchange, 401, {"WWW-Authenticate": problem.headers["WWW-Authenticate"]})
            return
        await exchange.problem(problem)

    def _problem(self, exchange: Exchange, error: Exception) -> Problem:
        if isinstance(error, AuthenticationError):
            problem = problem_of(error)
            problem.headers["WWW-Authenticate"] = challenge(error)
            return problem
        if isinstance(error, (Problem, GWorkerError)):
            return problem_of(error, debug=self._debug)
        if isinstance(error, RayError):
            return problem_of(PoolUnavailable(f"Ray does not answer: {type(error).__name__}"), debug=self._debug)
        log.error("%s: a fault of the gateway (request %s)", exchange.route, exchange.request_id, exc_info=error)
        detail = f"{type(error).__name__}: {error}" if self._debug else "a fault of the gateway; its log has more"
        return Problem(500, "internal-error", "Internal error", detail)


def unknown(catalog: Catalog, path: str) -> Problem:
    """The 404 for a path below /v1/ that is no method, with those there are."""
    class_name = path.split("/")[2]
    cls = catalog.classes.get(class_name)
    if cls is None:
        known = ", ".join(sorted(catalog.classes)) or "none"
        detail = f"the app {catalog.name!r} has no class {class_name!r}; it has: {known}"
        return Problem(404, "not-found", "Not found", detail, classes=sorted(catalog.classes))
    methods = sorted(name for name, method in cls.spec.methods.items() if not method.asgi)
    detail = f"{class_name} has no method {path.split('/', 3)[-1]!r}; it has: {', '.join(methods)}"
    return Problem(404, "not-found", "Not found", detail, methods=methods)
