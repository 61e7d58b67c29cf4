"""The OpenAPI document is complete, and the gateway keeps what it says."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import BaseModel, Field, TypeAdapter

import gworker as gw


class Point(BaseModel):
    x: float = Field(examples=[1.25])
    y: float = 0.0


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


def define(fake: Any) -> None:
    @fake.app.cls()
    class Model:
        threshold: float = gw.parameter(default=0.5)
        size: Literal["small", "large"] = gw.parameter(default="small", scope="worker")

        @gw.method()
        async def nearest(
            self, points: list[Point], color: Color = Color.RED, limit: int | None = None
        ) -> Point | None:
            """The nearest point.

            Of those there are.
            """
            return points[0] if points else None

        @gw.method()
        @gw.batched(max_batch_size=8)
        def embed(self, texts: list[str]) -> list[list[float]]:
            return [[1.0] for _ in texts]

        @gw.method()
        def scale(self, array: np.ndarray, data: bytes, factor: float = 2.0) -> dict[str, Any]:
            return {"n": array.size * factor, "bytes": data}

        @gw.method()
        def count(self, n: Literal[1, 2, 3]) -> Iterator[int]:
            yield from range(n)

        @gw.method()
        def anything(self, value, other=None):
            return value

    gw.openai.embeddings(Model.embed, model="toy")


@pytest.fixture
def client(fake: Any, serve: Any) -> Any:
    define(fake)
    return serve(fake.app)


@pytest.fixture
def document(client: Any) -> Any:
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def operation(document: Any, method: str) -> tuple[Any, Any, Any]:
    """The operation of a method, the schema of its body, and the example."""
    found = document["paths"][f"/v1/Model/{method}"]["post"]
    content = found["requestBody"]["content"]["application/json"]
    return found, content["schema"], content["example"]


def test_every_method_is_there_with_its_words_and_types(document: Any) -> None:
    found, schema, example = operation(document, "nearest")
    assert (found["summary"], found["description"]) == ("The nearest point.", "Of those there are.")
    assert schema["required"] == ["points"] and schema["additionalProperties"] is False
    assert schema["properties"]["points"]["items"] == {"$ref": "#/components/schemas/Point"}
    assert schema["properties"]["color"]["default"] == "red"
    assert schema["properties"]["parameters"]["properties"]["threshold"]["default"] == 0.5
    assert example["points"] == [{"x": 1.25}]
    assert example["parameters"] == {"threshold": 0.5, "size": "small"}
    assert set(found["responses"]) >= {"200", "401", "408", "413", "415", "422", "429", "500", "503", "504"}


def test_a_batched_method_is_documented_with_one_item(document: Any) -> None:
    found, schema, _ = operation(document, "embed")
    assert schema["properties"]["texts"]["type"] == "string"
    answer = found["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["properties"]["result"] == {"type": "array", "items": {"type": "number"}}


def test_the_examples_are_good_calls(client: Any, document: Any) -> None:
    posts = {path: item["post"] for path, item in document["paths"].items() if "post" in item}
    assert len(posts) == 6
    for path, found in posts.items():
        example = found["requestBody"]["content"]["application/json"]["example"]
        if path == "/v1/embeddings":
            example = example | {"model": "toy"}
        answer = client.post(path, json=example)
        assert answer.status_code == 200, (path, example, answer.text)


def test_a_token_is_documented_where_there_is_one(fake: Any, serve: Any) -> None:
    define(fake)
    with_token = serve(fake.app, token="sesame", headers={"Authorization": "Bearer sesame"}).get("/openapi.json").json()
    assert with_token["security"] == [{"token": []}]
    assert with_token["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def test_the_documentation_page_is_there(client: Any) -> None:
    answer = client.get("/docs", headers={"Accept": "text/html"})
    assert answer.status_code == 200 and "/openapi.json" in answer.text


def test_a_deployed_class_that_cannot_be_imported_is_documented_from_its_texts(fake: Any) -> None:
    from gworker.http.schema import MethodSchema, hints_from_texts

    define(fake)
    spec = fake.app.classes["Model"].spec.interface()
    method = spec.methods["scale"]
    assert isinstance(method.signature.parameters["array"].annotation, str)
    schema = MethodSchema("Model.scale", method, hints_from_texts(method.signature), spec.parameters)
    args, kwargs, _ = schema.read(b'{"array": [1, 2], "data": {"base64": "AA=="}}')
    assert args == () and kwargs["data"] == b"\0" and isinstance(kwargs["array"], np.ndarray)
    unknown = spec.methods["nearest"]
    schema = MethodSchema("Model.nearest", unknown, hints_from_texts(unknown.signature), {})
    assert schema.read(b'{"points": [{"x": 1}]}')[1] == {"points": [{"x": 1}]}
    assert TypeAdapter.json_schemas([("in", "validation", schema.adapter)])


@pytest.mark.slow
def test_no_request_that_the_schema_allows_or_forbids_makes_a_5xx(client: Any, document: Any) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of schemathesis and what it brings; not of gworker
        import schemathesis
        from hypothesis import HealthCheck, Phase, given, settings
        from schemathesis import GenerationMode

        statuses: dict[str, set[int]] = {}
        for result in schemathesis.openapi.from_dict(document).get_all_operations():
            tried = result.ok()
            takes_nothing = tried.method == "get"  # and so nothing wrong either
            for mode in [GenerationMode.POSITIVE] if takes_nothing else list(GenerationMode):

                @settings(
                    max_examples=12, deadline=None, database=None, derandomize=True,
                    phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                @given(case=tried.as_strategy(generation_mode=mode))
                def check(case: Any) -> None:
                    case.headers.pop("Request-Timeout", None)  # a short one is answered with 504, rightly
                    answer = case.call(base_url=str(client.base_url), timeout=10)
                    statuses.setdefault(case.path, set()).add(answer.status_code)
                    assert answer.status_code < 500, (case.as_curl_command(), answer.text)
                    documented = case.operation.definition.raw["responses"]
                    assert str(answer.status_code) in documented, (case.as_curl_command(), answer.text)

                check()
    assert 200 in statuses["/v1/Model/anything"] and 422 in statuses["/v1/Model/nearest"]
