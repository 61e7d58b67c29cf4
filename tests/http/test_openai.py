"""`gw.openai.embeddings`: OpenAI's own client calls it unchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gworker as gw
from gworker.errors import InvalidDefinition


def define(fake: Any) -> Any:
    @fake.app.cls()
    class Embedder:
        @gw.method()
        @gw.batched(max_batch_size=8)
        def embed(self, texts: list[str]) -> Any:
            return np.array([[len(text), 0.5] for text in texts], dtype=np.float32)

        @gw.method()
        def all(self, texts: list[str]) -> list[list[float]]:
            if "fail" in texts:
                raise ValueError("no such text")
            return [[float(len(text))] for text in texts]

        @gw.method()
        def wrong(self, texts: list[str]) -> list[str]:
            return ["x"]

        @gw.method()
        def two(self, texts: list[str], other: int) -> list[str]:
            return texts

        @gw.method()
        def stream(self, texts: list[str]) -> Any:
            yield texts

    return Embedder


@pytest.fixture
def client(fake: Any, serve: Any) -> Any:
    embedder = define(fake)
    gw.openai.embeddings(embedder.embed, model="toy")
    gw.openai.embeddings(embedder.all, model="toy-lists")
    gw.openai.embeddings(embedder.wrong, model="wrong")
    return serve(fake.app, token="sesame", headers={"Authorization": "Bearer sesame"})


@pytest.mark.slow
def test_the_public_client_calls_it_unchanged(client: Any) -> None:
    import openai

    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="sesame", max_retries=0) as theirs:
        one = theirs.embeddings.create(model="toy", input="abc")  # it asks for base64 by default
        assert one.data[0].embedding == [3.0, 0.5]
        many = theirs.embeddings.create(model="toy-lists", input=["a b", "ccc"], encoding_format="float")
        assert [d.embedding for d in many.data] == [[3.0], [3.0]] and [d.index for d in many.data] == [0, 1]
        assert many.usage.prompt_tokens == many.usage.total_tokens == 3
        assert {m.id for m in theirs.models.list()} == {"toy", "toy-lists", "wrong"}
        with pytest.raises(openai.NotFoundError, match="there are: toy"):
            theirs.embeddings.create(model="none", input="abc")
        with pytest.raises(openai.UnprocessableEntityError, match="arrays of tokens are not taken"):
            theirs.embeddings.create(model="toy", input=[1, 2, 3])
    stranger = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.embeddings.create(model="toy", input="abc")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "toy", "input": [[1, 2], [3]]}, 422, "invalid-arguments"),
        ({"model": "toy", "input": []}, 422, "invalid-arguments"),
        ({"model": "toy", "input": ["x"] * 2049}, 422, "invalid-arguments"),
        ({"model": "toy", "input": "x", "dimensions": 8}, 422, "invalid-arguments"),
        ({"model": "toy", "input": "x", "encoding_format": "int8"}, 422, "invalid-arguments"),
        ({"input": "x"}, 422, "invalid-arguments"),
        ({"model": "none", "input": "x"}, 404, "model-not-found"),
        ({"model": "wrong", "input": "x"}, 500, "result-no-vectors"),
        ({"model": "wrong", "input": ["x", "y"]}, 500, "result-no-vectors"),
        ({"model": "toy-lists", "input": "fail"}, 500, "method-raised"),
    ],
)
def test_what_cannot_be_answered_is_a_problem_that_openai_s_clients_read(
    client: Any, problem: Any, body: Any, status: int, code: str
) -> None:
    document = problem(client.post("/v1/embeddings", json=body), status, code)
    assert document["error"]["message"] == document["detail"]


def test_the_other_method_is_told_which_one_it_is(client: Any, problem: Any) -> None:
    problem(client.get("/v1/embeddings"), 405, "method-not-allowed")
    problem(client.post("/v1/models"), 405, "method-not-allowed")


def test_an_app_without_models_has_no_such_route(fake: Any, serve: Any, problem: Any) -> None:
    define(fake)
    problem(serve(fake.app).post("/v1/embeddings", json={}), 404, "not-found")


@pytest.mark.parametrize("method", ["two", "stream"])
def test_a_method_that_cannot_serve_is_refused_where_it_is_named(fake: Any, method: str) -> None:
    with pytest.raises(InvalidDefinition, match="cannot serve"):
        gw.openai.embeddings(getattr(define(fake), method), model="toy")


def test_so_is_what_is_no_method(fake: Any) -> None:
    embedder = define(fake)
    for wrong in (embedder, embedder().embed, len):
        with pytest.raises(InvalidDefinition, match="named through the class"):
            gw.openai.embeddings(wrong, model="toy")
    with pytest.raises(InvalidDefinition, match="model"):
        gw.openai.embeddings(embedder.embed, model="")
