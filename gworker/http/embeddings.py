"""`POST /v1/embeddings` and `GET /v1/models` as OpenAI's clients expect them."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from gworker import clock
from gworker.bound import BoundMethod
from gworker.http.catalog import Target
from gworker.http.exchange import Exchange, Watch
from gworker.http.invoke import check_media_type, with_deadline
from gworker.http.problems import Problem, invalid, problem_of, status_problem
from gworker.openai import Embeddings

_JSON = b"application/json"
# OpenAI's own limit on the texts of one request.
MAX_TEXTS = 2048


class EmbeddingRequest(BaseModel):
    """The body of a request. What only steers OpenAI's own service is taken and not used."""

    model_config = ConfigDict(
        extra="ignore", json_schema_extra={"examples": [{"model": "minilm", "input": ["a text"]}]}
    )

    model: str
    input: str | list[str] = Field(description="a text, or up to 2048 of them; arrays of tokens are not taken")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, gt=0)
    user: str | None = None


class EmbeddingRoutes:
    """Answers for the models of an app."""

    def __init__(self, models: Mapping[str, Embeddings], default_deadline_s: float, *, debug: bool) -> None:
        self._targets = {
            name: Target(served.cls, served.cls.spec.methods[served.method], default_deadline_s)
            for name, served in models.items()
        }
        self._debug = debug
        self._created = int(clock.time_of_day())

    async def models(self, exchange: Exchange) -> None:
        """`GET /v1/models`."""
        _only(exchange, "GET", "HEAD")
        listed = [
            {"id": name, "object": "model", "created": self._created, "owned_by": "gworker"} for name in self._targets
        ]
        await exchange.answer(200, to_json({"object": "list", "data": listed}), _JSON)

    async def embeddings(self, exchange: Exchange) -> None:
        """`POST /v1/embeddings`."""
        _only(exchange, "POST")
        watch = Watch(exchange)
        try:
            body = await exchange.body()
            watch.body_came()
            check_media_type(exchange)
            request = _read(body)
            target = self._targets.get(request.model)
            if target is None:
                known = ", ".join(self._targets)
                raise _problem(404, "model-not-found", "No such model", f"model {request.model!r}; there are: {known}")
            texts = [request.input] if isinstance(request.input, str) else request.input
            vectors = await self._embed(target, texts, exchange)
            watch.stop()
            await exchange.answer(200, _answer(request, texts, vectors), _JSON)
        except asyncio.CancelledError:
            reason = watch.why_cancelled()
            if reason is None:
                raise
            raise reason from None
        except Problem as problem:
            raise _as_openai(problem) from problem.__cause__
        finally:
            watch.stop()

    async def _embed(self, target: Target, texts: list[str], exchange: Exchange) -> list[list[float]]:
        bound = target.kept({})
        if bound is None:
            bound = await asyncio.to_thread(target.make, {})
        bound = with_deadline(bound, exchange)
        assert isinstance(bound, BoundMethod)
        try:
            if target.method.batch is None:
                vectors = await bound.remote.aio(texts)
            else:
                vectors = await _all(bound, texts)
        except Exception as error:
            raise problem_of(error, debug=self._debug) from error
        if not hasattr(vectors, "__len__") or len(vectors) != len(texts):
            raise Problem(
                500, "result-no-vectors", "The result is no list of vectors", f"{target.name} got {len(texts)} texts"
            )
        return [_floats(target, vector) for vector in vectors]


async def _all(bound: BoundMethod[..., Any], texts: list[str]) -> list[Any]:
    """One call for each text; the first that fails ends the others."""
    calls = [asyncio.ensure_future(bound.remote.aio(text)) for text in texts]
    try:
        return await asyncio.gather(*calls)
    finally:
        for call in calls:
            call.cancel()


def _floats(target: Target, vector: Any) -> list[float]:
    try:
        return [float(x) for x in (vector.tolist() if hasattr(vector, "tolist") else vector)]
    except (TypeError, ValueError):
        raise Problem(
            500,
            "result-no-vectors",
            "The result is no list of vectors",
            f"{target.name} returned a {type(vector).__qualname__} for a text; expected its vector, a list of numbers",
        ) from None


def _only(exchange: Exchange, *methods: str) -> None:
    if exchange.scope["method"] not in methods:
        raise status_problem(405, f"{exchange.scope['path']} is asked with {methods[0]}", {"Allow": ", ".join(methods)})


def _read(body: bytes) -> EmbeddingRequest:
    try:
        request = EmbeddingRequest.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        if errors[0]["type"] == "json_invalid":
            raise Problem(400, "invalid-json", "The body is not valid JSON", errors[0]["msg"]) from None
        if any(e["loc"][:1] == ("input",) for e in errors):
            detail = "expected a text or a list of texts; arrays of tokens are not taken: send the text itself"
            raise invalid([{"pointer": "#/input", "detail": detail, "type": "input"}]) from None
        raise invalid(
            [{"pointer": "#/" + "/".join(map(str, e["loc"])), "detail": e["msg"], "type": e["type"]} for e in errors]
        ) from None
    count = 1 if isinstance(request.input, str) else len(request.input)
    if not 1 <= count <= MAX_TEXTS:
        detail = f"{count} texts were given; expected 1 to {MAX_TEXTS}"
        raise invalid([{"pointer": "#/input", "detail": detail, "type": "input"}])
    if request.dimensions is not None:
        detail = "the length of this model's vectors cannot be chosen: leave dimensions out"
        raise invalid([{"pointer": "#/dimensions", "detail": detail, "type": "dimensions"}])
    return request


def _answer(request: EmbeddingRequest, texts: list[str], vectors: list[list[float]]) -> bytes:
    def encoded(vector: list[float]) -> Any:
        if request.encoding_format == "float":
            return vector
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()

    # The model's own tokens are unknown here; words are what can be counted.
    words = sum(len(text.split()) for text in texts)
    return to_json(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": encoded(v)} for i, v in enumerate(vectors)],
            "model": request.model,
            "usage": {"prompt_tokens": words, "total_tokens": words},
        },
        inf_nan_mode="null",
    )


def _problem(status: int, code: str, title: str, detail: str) -> Problem:
    return Problem(status, code, title, detail)


def _as_openai(problem: Problem) -> Problem:
    """With the member `error`, in which OpenAI's clients look for what went wrong."""
    problem.members["error"] = {
        "message": problem.detail,
        "type": "invalid_request_error" if problem.status < 500 else "server_error",
        "param": None,
        "code": problem.code,
    }
    return problem


def paths() -> dict[str, Any]:
    """These routes in the OpenAPI document."""
    schema = EmbeddingRequest.model_json_schema()
    example = schema.pop("examples")[0]
    answers = {
        str(status): {"$ref": f"#/components/responses/Problem{status}"}
        for status in (400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 499, 500, 502, 503, 504)
    }
    ok = {"200": {"description": "Vectors, as OpenAI's API gives them.", "content": {"application/json": {}}}}
    models = {"200": {"description": "The models there are.", "content": {"application/json": {}}}}
    return {
        "/v1/embeddings": {
            "post": {
                "summary": "Vectors of texts, as OpenAI's API",
                "tags": ["openai"],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": schema, "example": example}},
                },
                "responses": {**ok, **answers},
            }
        },
        "/v1/models": {
            "get": {
                "summary": "The models that are served",
                "tags": ["openai"],
                "responses": {**models, **{status: answers[status] for status in ("401", "403")}},
            }
        },
    }
