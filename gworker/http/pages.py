"""The gateway's own pages: health, metrics, status, documentation."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from dataclasses import asdict
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from gworker.http.exchange import Exchange
from gworker.http.health import not_ready, readiness, status_document

if TYPE_CHECKING:
    from gworker.http.gateway import GatewayState

PATHS = frozenset(("/", "/docs", "/livez", "/readyz", "/metrics", "/openapi.json", "/v1/status"))
_PAGES = {"/": "status.html", "/docs": "docs.html"}
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_to(gateway: FastAPI, state: GatewayState) -> None:
    """Give a gateway its own pages."""

    async def livez(request: Request) -> Response:
        return _json({"status": "alive"})

    async def readyz(request: Request) -> Response:
        status = await state.status.get()
        pools = readiness(status)
        if not status.running or not all(pool.ready for pool in pools):
            raise not_ready(status.name, pools)
        return _json({"ready": True, "pools": [asdict(pool) for pool in pools]})

    async def metrics(request: Request) -> Response:
        try:
            status = await state.status.get()
        except Exception:  # what the gateway itself counts is told whether or not the app answers
            status = None
        return Response(state.metrics.page(status), media_type=_METRICS_TYPE)

    async def status(request: Request) -> Response:
        document = status_document(await state.status.get(), debug=state.debug)
        lines = state.metrics.history.lines(time.perf_counter())
        document["gateway"] = {"in_flight": state.metrics.in_flight, **lines}
        return _json(document)

    async def openapi(request: Request) -> Response:
        return _json(gateway.openapi())

    async def page(request: Request) -> Response:
        return _page(request.url.path)

    routes: dict[str, Any] = {
        "/livez": livez, "/readyz": readyz, "/metrics": metrics, "/v1/status": status, "/openapi.json": openapi,
        "/": page, "/docs": page,
    }  # fmt: skip
    for path, endpoint in routes.items():
        gateway.add_route(path, endpoint, methods=["GET"], include_in_schema=False)


def wants_page(exchange: Exchange) -> bool:
    """Whether a browser asks for one of the pages."""
    accept = exchange.headers.get(b"accept", b"")
    return exchange.scope["path"] in _PAGES and exchange.scope["method"] == "GET" and b"text/html" in accept


async def send_page(exchange: Exchange, status: int, headers: dict[str, str]) -> None:
    """Answer with the page of the request's path. It holds no data: its script fetches them, with the token."""
    response = _page(exchange.scope["path"], status)
    response.headers.update(headers)
    await response(exchange.scope, exchange.receive, exchange.send)


def _json(document: Any) -> Response:
    return Response(
        to_json(document, inf_nan_mode="null"), media_type="application/json", headers={"Cache-Control": "no-store"}
    )


def _page(path: str, status: int = 200) -> Response:
    html, policy = _load(_PAGES[path])
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return Response(html, status, headers, "text/html")


@cache
def _load(name: str) -> tuple[bytes, str]:
    """A page and the policy that lets its own scripts and styles run, and nothing else."""
    html = resources.files("gworker.http").joinpath(name).read_text(encoding="utf-8")
    scripts = " ".join(_hashes("script", html))
    styles = " ".join(_hashes("style", html))
    others = _OTHERS.get(name, {})
    directives = {
        "default-src": "'none'",
        "script-src": f"{scripts} {others.get('script', '')}".strip(),
        "style-src": others.get("style") or styles,
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return html.encode(), "; ".join(f"{name} {value}" for name, value in directives.items())


# Swagger UI comes from a CDN, at one version, and writes its own styles.
_OTHERS = {"docs.html": {"script": "https://cdn.jsdelivr.net", "style": "https://cdn.jsdelivr.net 'unsafe-inline'"}}


def _hashes(tag: str, html: str) -> list[str]:
    texts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts]
