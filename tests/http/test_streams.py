"""Generators over HTTP, deadlines, and clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from gworker.errors import CallCancelled, PoolUnavailable, QueueFull, StartupFailed, Unschedulable, WorkerLost

ENDED: list[str] = []


@pytest.fixture
def client(fake: Any, serve: Any) -> Any:
    ENDED.clear()

    @fake.app.cls()
    class Model:
        @gw_method()
        async def count(self, n: int, fail_at: int = -1) -> AsyncIterator[int]:
            for i in range(n):
                if i == fail_at:
                    raise ValueError(f"no {i}")
                yield i

        @gw_method()
        def lines(self, n: int) -> Iterator[str]:
            yield from (f"line {i}" for i in range(n))

        @gw_method()
        async def forever(self) -> AsyncIterator[int]:
            try:
                while True:
                    yield 1
                    await asyncio.sleep(0.02)
            finally:
                ENDED.append("forever")

        @gw_method()
        async def slow(self, s: float = 30) -> str:
            try:
                await asyncio.sleep(s)
            except asyncio.CancelledError:
                ENDED.append("slow")
                raise
            return "done"

    return serve(fake.app)


def gw_method() -> Any:
    import gworker as gw

    return gw.method()


def events(text: str) -> list[tuple[str, Any]]:
    """The server-sent events in a text: type and data."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields.get("event", "message"), json.loads(fields["data"])))
    return found


def test_items_come_as_server_sent_events_by_default(client: Any) -> None:
    answer = client.post("/v1/Model/count", json={"n": 2}, headers={"Accept": "text/event-stream"})
    assert answer.headers["content-type"] == "text/event-stream"
    assert events(answer.text) == [("message", 0), ("message", 1), ("end", {"items": 2})]
    assert events(client.post("/v1/Model/lines", json={"n": 1}).text)[0] == ("message", "line 0")


def test_or_as_lines_of_json_or_all_at_once(client: Any) -> None:
    answer = client.post("/v1/Model/count", json={"n": 2}, headers={"Accept": "application/x-ndjson"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in answer.text.splitlines()] == [{"item": 0}, {"item": 1}]
    whole = client.post("/v1/Model/count", json={"n": 2}, headers={"Accept": "application/json"})
    assert whole.json() == {"result": [0, 1]}
    assert client.post("/v1/Model/count", json={"n": 0}, headers={"Accept": "application/x-ndjson"}).text == ""


def test_in_no_other_form(client: Any, problem: Any) -> None:
    problem(client.post("/v1/Model/count", json={"n": 2}, headers={"Accept": "image/png"}), 406, "not-acceptable")


def test_an_error_before_the_first_item_is_the_answer(client: Any, problem: Any) -> None:
    for accept in ("text/event-stream", "application/x-ndjson", "application/json"):
        answer = client.post("/v1/Model/count", json={"n": 2, "fail_at": 0}, headers={"Accept": accept})
        assert problem(answer, 500, "method-raised")["detail"] == "ValueError: no 0"


def test_an_error_after_the_first_item_is_the_last_event(client: Any) -> None:
    answer = client.post("/v1/Model/count", json={"n": 3, "fail_at": 1})
    assert answer.status_code == 200
    (kind, item), (last, document) = events(answer.text)
    assert (kind, item, last) == ("message", 0, "error")
    assert (document["code"], document["detail"]) == ("method-raised", "ValueError: no 1")
    headers = {"Accept": "application/x-ndjson"}
    lines = client.post("/v1/Model/count", json={"n": 3, "fail_at": 1}, headers=headers).text.splitlines()
    assert json.loads(lines[-1])["error"]["status"] == 500


def raw_post(client: Any, path: str, body: bytes = b"{}") -> socket.socket:
    connection = socket.create_connection((client.base_url.host, client.base_url.port), 10)
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return connection


def test_a_client_that_disconnects_cancels_its_call(client: Any, fake: Any, eventually: Any) -> None:
    with raw_post(client, "/v1/Model/slow"):
        eventually(lambda: fake.client.routers and fake.router("Model").calls)
        time.sleep(0.1)
        assert ENDED == []
    eventually(lambda: ENDED == ["slow"], 5)
    assert fake.router("Model").cancelled == ["slow"]
    metrics = eventually(
        lambda: [x for x in client.get("/metrics").text.splitlines() if "total" in x and '"499"' in x], 5
    )
    assert metrics == ['gworker_http_requests_total{route="Model.slow",status="499"} 1.0']


def test_a_client_that_disconnects_ends_its_stream(client: Any, eventually: Any) -> None:
    with raw_post(client, "/v1/Model/forever") as connection:
        assert b"200 OK" in connection.recv(1000)
        assert b"data: 1" in connection.recv(1000)
    eventually(lambda: ENDED == ["forever"], 5)


def test_a_client_that_stays_does_not(client: Any) -> None:
    assert client.post("/v1/Model/slow", json={"s": 0.2}).json() == {"result": "done"}
    assert ENDED == []


def test_the_time_that_is_left_is_the_call_s_deadline(client: Any, fake: Any, problem: Any) -> None:
    started = time.monotonic()
    answer = client.post("/v1/Model/slow", json={}, headers={"Request-Timeout": "0.15"})
    problem(answer, 504, "deadline-exceeded")
    assert 0.1 < time.monotonic() - started < 5
    assert ENDED == ["slow"]


def test_without_one_it_is_sixty_seconds(client: Any, fake: Any) -> None:
    from gworker import clock

    client.post("/v1/Model/slow", json={"s": 0})
    (call,) = fake.router("Model").calls
    assert 50 < call.deadline - clock.now() <= 60


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "inf", "1s", ""])
def test_a_time_limit_that_is_none_is_refused(client: Any, problem: Any, given: str) -> None:
    answer = client.post("/v1/Model/slow", json={"s": 0}, headers={"Request-Timeout": given})
    problem(answer, 400, "invalid-deadline")


def test_no_time_left_is_a_deadline_that_has_passed(client: Any, problem: Any) -> None:
    problem(client.post("/v1/Model/slow", json={}, headers={"Request-Timeout": "0"}), 504, "deadline-exceeded")


@pytest.mark.parametrize(
    ("error", "status", "code", "retryable", "retry_after"),
    [
        (QueueFull("10 calls wait"), 429, "queue-full", True, "1"),
        (PoolUnavailable("no worker"), 503, "pool-unavailable", True, "2"),
        (
            StartupFailed("broken: Traceback (most recent call last):\n  x\nValueError: y"),
            503,
            "startup-failed",
            False,
            "60",
        ),
        (Unschedulable("needs GPU"), 503, "unschedulable", False, "60"),
        (WorkerLost("gone"), 502, "worker-lost", True, None),
        (CallCancelled("stopped"), 499, "call-cancelled", False, None),
    ],
)
def test_errors_of_calls_have_the_status_of_the_contract(
    client: Any, fake: Any, problem: Any, error: Any, status: int, code: str, retryable: bool, retry_after: str | None
) -> None:
    client.post("/v1/Model/slow", json={"s": 0})
    fake.router("Model").fail = error
    answer = client.post("/v1/Model/slow", json={"s": 0})
    document = problem(answer, status, code)
    assert document["retryable"] is retryable
    assert answer.headers.get("retry-after") == retry_after
    assert "Traceback" not in document["detail"]


def test_a_full_queue_is_told_at_once(client: Any, fake: Any, problem: Any) -> None:
    client.post("/v1/Model/slow", json={"s": 0})
    fake.router("Model").refuse = QueueFull("10000 calls wait")
    for path in ("slow", "forever"):
        answer = client.post(f"/v1/Model/{path}", json={})
        problem(answer, 429, "queue-full")
        assert answer.headers["retry-after"] == "1"


async def test_a_server_that_stops_does_not_take_a_cancellation_for_a_client_s(fake: Any) -> None:
    from gworker.http.exchange import Exchange, Watch

    class Never:
        async def __call__(self) -> Any:
            await asyncio.Event().wait()

    async def handle() -> Any:
        watch = Watch(Exchange({"headers": [], "method": "POST"}, Never(), None, 10, 10))
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            return watch.why_cancelled()
        finally:
            watch.stop()

    task = asyncio.create_task(handle())
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        assert await task is None
