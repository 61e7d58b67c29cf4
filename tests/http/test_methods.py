"""DESIGN: `POST /v1/{Class}/{method}` takes the arguments by name and answers with the result."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from pydantic import BaseModel

import gworker as gw


class Box(BaseModel):
    x: float
    label: str = "none"


def define(fake: Any) -> None:
    @fake.app.cls()
    class Model:
        threshold: float = gw.parameter(default=0.5)
        size: Literal["small", "large"] = gw.parameter(default="small", scope="worker")

        @gw.method()
        def add(self, a: int, b: int = 2) -> int:
            """Add two numbers."""
            return a + b

        @gw.method()
        @gw.batched(max_batch_size=8)
        def embed(self, texts: list[str]) -> list[list[float]]:
            return [[float(len(text))] for text in texts]

        @gw.method()
        async def settings(self) -> dict[str, Any]:
            await asyncio.sleep(0)
            return {"threshold": self.threshold, "size": self.size}

        @gw.method()
        def boxes(self, boxes: list[Box]) -> Box:
            assert all(isinstance(box, Box) for box in boxes)
            return boxes[0]

        @gw.method()
        def odd(self, parameters: int, /, json: str = "j", *rest: int, **more: str) -> Any:
            return [parameters, json, rest, more]

        @gw.method()
        def fails(self, how: str) -> None:
            if how == "status":
                error = ValueError("teapots only")
                error.http_status = 418
                raise error
            raise ValueError("no such how")


@pytest.fixture
def client(fake: Any, serve: Any) -> Any:
    define(fake)
    return serve(fake.app)


def test_arguments_go_in_by_name_and_the_result_comes_out(client: Any) -> None:
    assert client.post("/v1/Model/add", json={"a": 1, "b": 5}).json() == {"result": 6}
    assert client.post("/v1/Model/add", json={"a": 1}).json() == {"result": 3}


def test_a_batched_method_takes_one_item_and_gives_one_result(client: Any) -> None:
    assert client.post("/v1/Model/embed", json={"texts": "abc"}).json() == {"result": [3.0]}


def test_class_parameters_of_both_scopes_travel_in_parameters(client: Any, fake: Any) -> None:
    def ask(**parameters: Any) -> Any:
        return client.post("/v1/Model/settings", json={"parameters": parameters}).json()["result"]

    assert client.post("/v1/Model/settings").json()["result"] == {"threshold": 0.5, "size": "small"}
    assert ask(threshold=0.7) == {"threshold": 0.7, "size": "small"}
    assert ask(size="large", threshold=0.1) == {"threshold": 0.1, "size": "large"}
    assert ask(size="large", threshold=0.2) == {"threshold": 0.2, "size": "large"}
    assert len(fake.client.routers) == 2


def test_pydantic_models_are_made_from_json_and_written_as_json(client: Any) -> None:
    answer = client.post("/v1/Model/boxes", json={"boxes": [{"x": 1.5}, {"x": 2}]})
    assert answer.json() == {"result": {"x": 1.5, "label": "none"}}


def test_an_argument_named_parameters_is_the_arguments_and_class_parameters_move(client: Any) -> None:
    body = {"parameters": 3, "json": "k", "rest": [4, 5], "free": "x", "class_parameters": {"threshold": 0.9}}
    assert client.post("/v1/Model/odd", json=body).json() == {"result": [3, "k", [4, 5], {"free": "x"}]}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "#/a"),
        ({"a": "one"}, "#/a"),
        ({"a": 1, "c": 2}, "#/c"),
        ({"a": 1, "parameters": {"threshold": "high"}}, "#/parameters/threshold"),
        ({"a": 1, "parameters": {"size": "medium"}}, "#/parameters/size"),
        ({"a": 1, "parameters": {"speed": 1}}, "#/parameters/speed"),
        ([1], "#"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_naming_the_field(
    client: Any, problem: Any, body: Any, pointer: str
) -> None:
    document = problem(client.post("/v1/Model/add", json=body), 422, "invalid-arguments")
    assert [error["pointer"] for error in document["errors"]] == [pointer]
    assert document["retryable"] is False


def test_what_is_no_json_is_refused(client: Any, problem: Any) -> None:
    headers = {"content-type": "application/json"}
    problem(client.post("/v1/Model/add", content=b'{"a": 1', headers=headers), 400, "invalid-json")


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_what_is_not_declared_as_json_is_refused(client: Any, problem: Any, media_type: str | None) -> None:
    headers = {"content-type": media_type} if media_type else {}
    problem(client.post("/v1/Model/add", content=b'{"a": 1}', headers=headers), 415, "unsupported-media-type")


def test_an_unknown_class_or_method_is_told_which_there_are(client: Any, problem: Any) -> None:
    document = problem(client.post("/v1/Modell/add", json={}), 404, "not-found")
    assert document["classes"] == ["Model"] and "it has: Model" in document["detail"]
    document = problem(client.post("/v1/Model/sub", json={}), 404, "not-found")
    assert document["methods"] == ["add", "boxes", "embed", "fails", "odd", "settings"]
    problem(client.get("/elsewhere"), 404, "not-found")


def test_other_http_methods_are_told_which_one_it_is(client: Any, problem: Any) -> None:
    answer = client.get("/v1/Model/add")
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"
    problem(client.post("/livez"), 405, "method-not-allowed")


def test_what_a_method_raises_is_told_without_a_traceback(client: Any, problem: Any) -> None:
    document = problem(client.post("/v1/Model/fails", json={"how": "x"}), 500, "method-raised")
    assert document["detail"] == "ValueError: no such how"
    assert "traceback" not in document and "Traceback" not in str(document)


def test_an_exception_may_choose_its_status(client: Any, problem: Any) -> None:
    problem(client.post("/v1/Model/fails", json={"how": "status"}), 418, "method-raised")


def test_with_debug_the_worker_s_traceback_is_told(fake: Any, serve: Any, problem: Any) -> None:
    define(fake)
    client = serve(fake.app, debug=True)
    document = problem(client.post("/v1/Model/fails", json={"how": "x"}), 500, "method-raised")
    assert "raise ValueError" in document["traceback"]


def test_a_request_keeps_its_id_and_gets_one_where_it_has_none(client: Any) -> None:
    given = client.post("/v1/Model/add", json={"a": 1}, headers={"X-Request-ID": "abc-123"})
    assert given.headers["x-request-id"] == "abc-123"
    ids = {client.post("/v1/Model/add", json={"a": 1}).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    bad = client.post("/v1/Model/add", json={"a": 1}, headers={"X-Request-ID": "a b" + "x" * 200})
    assert " " not in bad.headers["x-request-id"]


def test_large_answers_are_compressed_for_clients_that_read_gzip(client: Any) -> None:
    body = {"parameters": 3, "json": "k" * 5000}
    answer = client.post("/v1/Model/odd", json=body)
    assert answer.headers["content-encoding"] == "gzip"
    plain = client.post("/v1/Model/odd", json=body, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.json() == answer.json()


def test_handles_are_kept_for_parameters_that_come_again(client: Any, fake: Any, monkeypatch: Any) -> None:
    from gworker.http.catalog import Target

    made = []
    real = Target.make
    monkeypatch.setattr(Target, "make", lambda self, p: made.append(dict(p)) or real(self, p))
    for _ in range(3):
        client.post("/v1/Model/settings", json={"parameters": {"threshold": 0.25}})
    assert made == [{"threshold": 0.25}]
