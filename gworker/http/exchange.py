"""One request and its answer: headers, body within its limits, the answer in one piece, a client that goes away."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import os
import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from gworker.http.problems import MEDIA_TYPE, Problem, status_problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Headers = list[tuple[bytes, bytes]]

# What is smaller gains nothing by gzip.
GZIP_FROM_BYTES = 1024
# Calls that end sooner need nobody who watches for their client.
_WATCH_AFTER_S = 0.05

_numbers = itertools.count(1)
_process = os.urandom(4).hex()
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class ClientGone(Exception):  # noqa: N818 - nobody is told of it as an error
    """The client has closed its connection and waits for nothing any more."""


class Exchange:
    """A request on its way through the gateway. `status` is 0 until an answer has begun."""

    __slots__ = ("_receive", "_send", "body_timeout_s", "headers", "max_body", "request_id", "route", "scope", "status")

    def __init__(self, scope: Scope, receive: Any, send: Any, max_body: int, body_timeout_s: float) -> None:
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.max_body = max_body
        self.body_timeout_s = body_timeout_s
        self.status = 0
        self.route = "other"
        self._receive = receive
        self._send = send
        given = self.headers.get(b"x-request-id")
        # An id that could break a log line or a header is replaced, not refused.
        self.request_id = given.decode() if given and _REQUEST_ID.fullmatch(given) else f"{_process}-{next(_numbers)}"

    async def send(self, message: Message) -> None:
        """Pass a message of the answer on, with the request's id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
        await self._send(message)

    async def receive(self) -> Message:
        """The next message of the request."""
        message: Message = await self._receive()
        return message

    async def body(self) -> bytes:
        """The whole body. Raises Problem when it is too large or too slow, and ClientGone."""
        declared = self.headers.get(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > self.max_body:
            raise self._too_large()
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            body: bytes = message.get("body", b"")
            if len(body) > self.max_body:
                raise self._too_large()
            return body
        return await self._rest_of_body(message)

    async def _rest_of_body(self, message: Message) -> bytes:
        parts, size = [], 0
        while True:
            if message["type"] == "http.disconnect":
                raise ClientGone
            part: bytes = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > self.max_body:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)
            message = await self._receive()

    def _too_large(self) -> Problem:
        # The connection stays: closing it on a client that still sends would reset it, and lose it this answer.
        limit = f"{self.max_body / 2**20:.3g} MB"
        return status_problem(413, f"the body is larger than the {limit} that are accepted")

    async def answer(
        self, status: int, body: bytes, media_type: bytes, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        """Send a whole answer, compressed where that helps and the client can read it."""
        fields: Headers = [(b"content-type", media_type), *headers]
        if len(body) >= GZIP_FROM_BYTES:
            fields.append((b"vary", b"accept-encoding"))
            if accepts_gzip(self.headers):
                body = gzip.compress(body, 1) if len(body) < 2**20 else await asyncio.to_thread(gzip.compress, body, 1)
                fields.append((b"content-encoding", b"gzip"))
        fields.append((b"content-length", b"%d" % len(body)))
        fields.append((b"x-request-id", self.request_id.encode()))
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": fields})
        await self._send({"type": "http.response.body", "body": body if self.scope["method"] != "HEAD" else b""})

    async def problem(self, problem: Problem) -> None:
        """Answer with problem details."""
        headers = [
            (name.lower().encode(), value.encode("latin-1", "replace")) for name, value in problem.headers.items()
        ]
        await self.answer(problem.status, problem.body(self.request_id), MEDIA_TYPE, headers)


class Watch:
    """Looks after one request: cancels its task when its body does not come in time, or when its client goes away.

    It costs the request a timer; a task that listens for the client only when the call takes a while.
    """

    __slots__ = ("_body_timeout_s", "_exchange", "_has_body", "_listener", "_loop", "_task", "_timer", "gone", "slow")

    def __init__(self, exchange: Exchange) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.gone = False
        self.slow = False
        self._has_body = False
        self._exchange = exchange
        self._task = task
        self._loop = task.get_loop()
        self._listener: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(_WATCH_AFTER_S, self._look)

    def body_came(self) -> None:
        """The body is complete: from now on the client may only go away."""
        self._has_body = True
        if self._listener is None and self._timer.when() < self._loop.time():
            self._listen()

    def stop(self) -> None:
        """Watch no longer."""
        self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()

    def why_cancelled(self) -> Exception | None:
        """What a cancellation of the task means, if it was this watch that cancelled it; takes it back."""
        if not self.gone and not self.slow:
            return None
        if (uncancel := getattr(self._task, "uncancel", None)) is not None:  # Python 3.11 counts cancellations
            uncancel()
        if self.gone:
            return ClientGone()
        limit_s = self._exchange.body_timeout_s
        return status_problem(408, f"the body was not complete after {limit_s:g} s", {"Connection": "close"})

    def _look(self) -> None:
        if self._has_body:
            self._listen()
        else:
            self._timer = self._loop.call_later(self._exchange.body_timeout_s - _WATCH_AFTER_S, self._too_slow)

    def _too_slow(self) -> None:
        if not self._has_body:
            self.slow = True
            self._task.cancel()

    def _listen(self) -> None:
        self._listener = self._loop.create_task(self._wait_for_disconnect())

    async def _wait_for_disconnect(self) -> None:
        while (await self._exchange.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._task.cancel()


def accepts_gzip(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the client reads gzip."""
    accepted = headers.get(b"accept-encoding", b"")
    return b"gzip" in accepted and not re.search(rb"gzip\s*;\s*q=0(\.0*)?\s*(,|$)", accepted)
