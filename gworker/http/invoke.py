"""A request for a method: its body becomes arguments, the call is made, and its result or items become the answer."""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from typing import Any
from urllib.parse import parse_qs

from gworker.bound import BoundGenerator, BoundMethod
from gworker.errors import DeadlineExceeded
from gworker.http.catalog import Bound, Endpoint
from gworker.http.exchange import Exchange, Watch
from gworker.http.problems import Problem, problem_of, status_problem
from gworker.http.values import Arrays, to_json

# The time that is left for the call, in seconds. Like gRPC's grpc-timeout it is a duration, so that clocks need not
# agree and a service can pass on what is left of its own time; seconds, as in Retry-After.
DEADLINE_HEADER = "Request-Timeout"
_JSON = b"application/json"
_SSE = "text/event-stream"
_NDJSON = ("application/x-ndjson", "application/jsonl", "application/ndjson")


async def invoke(endpoint: Endpoint, exchange: Exchange, *, debug: bool = False) -> None:
    """Answer one request. Raises what `problem_of` makes a problem of, as long as no answer has begun."""
    if exchange.scope["method"] != "POST":
        raise status_problem(405, f"{endpoint.path} is called with POST", {"Allow": "POST"})
    arrays = _arrays(exchange)
    framing = _framing(exchange) if endpoint.method.is_generator else None
    watch = Watch(exchange)
    try:
        body = await exchange.body()
        watch.body_came()
        if body:
            check_media_type(exchange)
        args, kwargs, parameters = endpoint.schema.read(body)
        bound = endpoint.kept(parameters)
        if bound is None:
            bound = await asyncio.to_thread(endpoint.make, parameters)
        bound = with_deadline(bound, exchange)
        if framing is not None:
            assert isinstance(bound, BoundGenerator)
            await framing(exchange, arrays, debug).send(bound.stream.aio(*args, **kwargs))
            return
        assert isinstance(bound, BoundMethod)
        try:
            result = await bound.remote.aio(*args, **kwargs)
        except Exception as error:
            raise problem_of(error, debug=debug) from error
        watch.stop()
        await exchange.answer(200, b'{"result":' + to_json(result, arrays) + b"}", _JSON)
    except asyncio.CancelledError:
        reason = watch.why_cancelled()
        if reason is None:
            raise
        raise reason from None
    finally:
        watch.stop()


def check_media_type(exchange: Exchange) -> None:
    """Refuse a body that is not declared to be JSON: a browser sends anything else to any site without asking it."""
    media_type = exchange.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_type != _JSON and not media_type.endswith(b"+json"):
        given = media_type.decode("latin-1") or "none"
        raise status_problem(
            415,
            f"the body's Content-Type is {given}; send JSON, with Content-Type: application/json",
            {"Accept-Post": "application/json"},
        )


def with_deadline(bound: Bound, exchange: Exchange) -> Bound:
    """The method with the time that the request allows it; the gateway's own default where it says nothing."""
    given = exchange.headers.get(b"request-timeout")
    if given is None:
        return bound
    try:
        left_s = float(given)
    except ValueError:
        left_s = math.nan
    if not 0 <= left_s < math.inf:
        raise Problem(
            400,
            "invalid-deadline",
            "The time limit is no duration",
            f"{DEADLINE_HEADER}: {given.decode('latin-1')} was given; expected seconds, for example 2.5",
        )
    if left_s == 0:
        raise DeadlineExceeded(
            f"{DEADLINE_HEADER} is 0: no time is left for the call", limit="deadline_s", where="gateway"
        )
    return bound.with_options(deadline_s=left_s)


def _arrays(exchange: Exchange) -> Arrays:
    query = exchange.scope["query_string"]
    if not query:
        return "lists"
    chosen = parse_qs(query.decode("latin-1")).get("arrays", ["lists"])[-1]
    if chosen == "base64":
        return "base64"
    if chosen == "lists":
        return "lists"
    raise Problem(
        400,
        "invalid-query",
        "The query cannot be followed",
        f"arrays={chosen[:40]!r}; write arrays=lists or arrays=base64",
    )


# --- streams -----------------------------------------------------------------------------------------------------


class _Stream:
    """Sends items as they come. What is raised before the first one is the answer; later it is the last event."""

    media_type = b""

    def __init__(self, exchange: Exchange, arrays: Arrays, debug: bool) -> None:
        self._exchange = exchange
        self._arrays: Arrays = arrays
        self._debug = debug

    def item(self, value: Any) -> bytes:
        """One item, framed."""
        raise NotImplementedError

    def error(self, document: bytes) -> bytes:
        """The problem that ended the stream, framed."""
        raise NotImplementedError

    def end(self, items: int) -> bytes:
        """What says that these were all."""
        raise NotImplementedError

    async def send(self, items: Any) -> None:
        """Answer with the items."""
        sent = 0
        async with aclosing(items):
            try:
                async for item in items:
                    framed = self.item(item)
                    if not sent:
                        await self._begin()
                    sent += 1
                    await self._exchange.send({"type": "http.response.body", "body": framed, "more_body": True})
                if not sent:
                    await self._begin()
                last = self.end(sent)
            except Exception as error:
                problem = problem_of(error, debug=self._debug)
                if not sent:
                    raise problem from error
                last = self.error(problem.body(self._exchange.request_id))
        await self._exchange.send({"type": "http.response.body", "body": last, "more_body": False})

    async def _begin(self) -> None:
        headers = [
            (b"content-type", self.media_type),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # a proxy that collects the answer would defeat the stream
        ]
        await self._exchange.send({"type": "http.response.start", "status": 200, "headers": headers})


class _Events(_Stream):
    """Items as server-sent events: each item a message; an `error` event or an `end` event comes last."""

    media_type = _SSE.encode()

    def item(self, value: Any) -> bytes:
        return b"data: " + to_json(value, self._arrays) + b"\n\n"

    def error(self, document: bytes) -> bytes:
        return b"event: error\ndata: " + document + b"\n\n"

    def end(self, items: int) -> bytes:
        return b'event: end\ndata: {"items":%d}\n\n' % items


class _Lines(_Stream):
    """Items as lines of JSON, `{"item": …}`; after an error `{"error": …}` comes last."""

    media_type = _NDJSON[0].encode()

    def item(self, value: Any) -> bytes:
        return b'{"item":' + to_json(value, self._arrays) + b"}\n"

    def error(self, document: bytes) -> bytes:
        return b'{"error":' + document + b"}\n"

    def end(self, items: int) -> bytes:
        return b""


class _Whole(_Stream):
    """All items in one answer, for a client that reads JSON only."""

    async def send(self, items: Any) -> None:
        """Answer when the stream has ended."""
        async with aclosing(items):
            try:
                framed = [to_json(item, self._arrays) async for item in items]
            except Exception as error:
                raise problem_of(error, debug=self._debug) from error
        await self._exchange.answer(200, b'{"result":[' + b",".join(framed) + b"]}", _JSON)


_FRAMINGS: dict[str, type[_Stream]] = {
    **dict.fromkeys((_SSE, "text/*", "*/*", ""), _Events),
    **dict.fromkeys((*_NDJSON, "application/*"), _Lines),
    "application/json": _Whole,
}


def _framing(exchange: Exchange) -> type[_Stream]:
    accept = exchange.headers.get(b"accept", b"*/*").decode("latin-1").lower()
    for part in accept.split(","):
        framing = _FRAMINGS.get(part.partition(";")[0].strip())
        if framing is not None:
            return framing
    raise status_problem(
        406,
        f"a stream comes as {_SSE}, {_NDJSON[0]} or application/json, and the request accepts {accept[:80]} only",
    )
