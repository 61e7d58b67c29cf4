"""Requests for an application that runs in workers: they travel as calls, and their answers come back as streams."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

from gworker.bound import BoundGenerator
from gworker.http.catalog import Target
from gworker.http.exchange import Exchange, Watch
from gworker.http.invoke import with_deadline
from gworker.http.problems import Problem, problem_of

# What of a request's scope the application is told.
_TOLD = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "client", "server")


async def pass_on(target: Target, exchange: Exchange, *, keep_token: bool, debug: bool = False) -> None:
    """Have the application of a class answer a request. Its body is read first, within the gateway's limits."""
    watch = Watch(exchange)
    try:
        body = await exchange.body()
        watch.body_came()
        bound = target.kept({})
        if bound is None:
            bound = await asyncio.to_thread(target.make, {})
        bound = with_deadline(bound, exchange)
        assert isinstance(bound, BoundGenerator)
        async with aclosing(bound.stream.aio(_scope(target, exchange, keep_token), body)) as messages:  # type: ignore[type-var]
            await _answer(messages, exchange, debug)
    except asyncio.CancelledError:
        reason = watch.why_cancelled()
        if reason is None:
            raise
        raise reason from None
    finally:
        watch.stop()


async def _answer(messages: Any, exchange: Exchange, debug: bool) -> None:
    complete = False
    try:
        async for message in messages:
            await exchange.send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
    except Exception as error:
        raise problem_of(error, debug=debug) from error
    if not complete:
        raise Problem(500, "no-answer", "No answer", "the application ended without a complete answer")


def _scope(target: Target, exchange: Exchange, keep_token: bool) -> dict[str, Any]:
    scope = exchange.scope
    headers = [(name, value) for name, value in scope["headers"] if keep_token or name != b"authorization"]
    if b"x-request-id" not in exchange.headers:
        headers.append((b"x-request-id", exchange.request_id.encode()))
    told = {name: scope[name] for name in _TOLD if name in scope}
    return {**told, "headers": headers, "root_path": f"/v1/{target.cls.name}"}
