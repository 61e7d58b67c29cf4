"""The OpenAPI document of a gateway: every method with its types, an example, and the problems that can be answered."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from gworker.http.catalog import Catalog, Endpoint

_REF = "#/components/schemas/{model}"
_PROBLEM = {
    "type": "object",
    "description": "What went wrong (RFC 9457).",
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "format": "uri"},
        "code": {"type": "string", "description": "for programs to match"},
        "retryable": {"type": "boolean", "description": "whether the same request can succeed later"},
    },
    "required": ["type", "title", "status", "detail", "code", "retryable"],
    "examples": [
        {
            "type": "urn:gworker:problem:queue-full",
            "title": "Queue full",
            "status": 429,
            "detail": "10000 calls already wait in this process (max_pending=10000)",
            "instance": "urn:gworker:request:4f2a-17",
            "code": "queue-full",
            "retryable": True,
        }
    ],
}
# Each with the answers that can come of any request for a method.
_PROBLEMS = {
    400: "the body is no JSON, or a header or the query cannot be followed",
    401: "no token, or the wrong one",
    403: "a page of another site, or a host that is not served",
    404: "no such class or method",
    405: "methods are called with POST",
    406: "a stream in a form that there is none of",
    408: "the body or the headers came too slowly",
    413: "the body is too large",
    415: "the body is not declared as JSON",
    422: "the arguments do not fit; the field is named",
    429: "too many calls wait already",
    499: "the call was cancelled",
    500: "the method raised an exception, or its result is nothing that JSON can hold",
    502: "the worker died during the call",
    503: "no worker is ready, or can be",
    504: "the time for the call, or for its execution, has passed",
}


class OpenApi:
    """The document, made at first use and again after `forget`."""

    def __init__(self, catalog: Catalog, *, with_token: bool) -> None:
        self._catalog = catalog
        self._with_token = with_token
        self._made: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self.extra_paths: dict[str, Any] = {}

    def forget(self) -> None:
        """The app's classes have changed."""
        self._made = None

    def document(self) -> dict[str, Any]:
        """The OpenAPI document."""
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _make(self) -> dict[str, Any]:
        endpoints = list(self._catalog.endpoints.values())
        inputs: list[Any] = []
        for endpoint in endpoints:
            inputs.append(((endpoint.name, "in"), "validation", endpoint.schema.adapter))
            inputs.append(((endpoint.name, "out"), "serialization", endpoint.schema.result))
        schemas, definitions = TypeAdapter.json_schemas(inputs, ref_template=_REF)
        components = {**definitions.get("$defs", {}), "Problem": _PROBLEM}
        paths: dict[str, Any] = {}
        for endpoint in endpoints:
            body = _resolved(schemas[(endpoint.name, "in"), "validation"], components)
            result = schemas[(endpoint.name, "out"), "serialization"]
            paths[endpoint.path] = {"post": self._operation(endpoint, body, result, components)}
        document: dict[str, Any] = {
            "openapi": "3.1.0",
            "info": {
                "title": self._catalog.name,
                "version": "1",
                "description": "Methods of this app's classes. Generated from their type hints by gworker.",
            },
            "paths": {**paths, **self.extra_paths, **_OWN_PATHS},
            "components": {"schemas": components, "responses": _responses()},
        }
        if self._with_token:
            document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"token": []}]
        return document

    def _operation(
        self, endpoint: Endpoint, body: dict[str, Any], result: Any, components: dict[str, Any]
    ) -> dict[str, Any]:
        schema = endpoint.schema
        _add_defaults(body, schema.defaults)
        values: dict[str, Any] = {}
        if schema.parameters_key:
            held = body["properties"][schema.parameters_key]
            values = _resolved(held, components)
            _add_defaults(values, schema.parameter_defaults)
            values.pop("title", None)
            body["properties"][schema.parameters_key] = {
                **values,
                "description": f"class parameters of {endpoint.cls.name}",
            }
        body["title"] = endpoint.name
        example = Example(components).of(body)
        if schema.parameters_key:
            example[schema.parameters_key] = Example(components).of(values)
        description = schema.description
        if endpoint.method.batch is not None:
            description += "\n\nTakes one input; inputs that come together are run as one batch."
        return {
            "operationId": endpoint.name.replace(".", "_"),
            "summary": schema.summary or endpoint.name,
            "description": description.strip(),
            "tags": [endpoint.cls.name],
            "parameters": _PARAMETERS,
            "requestBody": {
                "required": bool(body.get("required")),
                "content": {"application/json": {"schema": body, "example": example}},
            },
            "responses": {"200": _answer(endpoint, result, components), **_problem_refs()},
        }


def _answer(endpoint: Endpoint, result: Any, components: dict[str, Any]) -> dict[str, Any]:
    if endpoint.method.is_generator:
        text = (
            "The items as they come. Server-sent events: each item is the data of a message; `end`, or `error` with a "
            'problem, comes last. With Accept: application/x-ndjson each line is {"item": …}, or {"error": …} '
            "at the end; with Accept: application/json all items come in one answer."
        )
        whole = {"type": "object", "properties": {"result": {"type": "array", "items": result}}, "required": ["result"]}
        content: dict[str, Any] = {
            "application/json": {"schema": whole},
            "text/event-stream": {"schema": {"type": "string"}},
            "application/x-ndjson": {"schema": {"type": "string"}},
        }
        return {"description": text, "headers": _REQUEST_ID, "content": content}
    schema = {"type": "object", "properties": {"result": result}, "required": ["result"]}
    example = {"result": Example(components).of(result)}
    return {
        "description": "What the method returned.",
        "headers": _REQUEST_ID,
        "content": {"application/json": {"schema": schema, "example": example}},
    }


def _resolved(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """A copy of `schema`, or of what it refers to."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return dict(components.pop(name) if name else schema)


def _add_defaults(schema: dict[str, Any], defaults: dict[str, Any]) -> None:
    properties = schema["properties"] = dict(schema.get("properties", {}))
    for name, default in defaults.items():
        if name in properties and default is not None:
            with contextlib.suppress(Exception):  # a default that JSON cannot hold is not shown
                value = to_jsonable_python(default, inf_nan_mode="null")
                properties[name] = {**properties[name], "default": value}


class Example:
    """Makes an example of a JSON schema: its own, its default, or something of its type."""

    def __init__(self, components: dict[str, Any]) -> None:
        self._components = components

    def of(self, schema: Any, depth: int = 0) -> Any:
        """An example of what `schema` allows."""
        if not isinstance(schema, dict) or depth > 6:
            return None
        if "$ref" in schema:
            return self.of(self._components.get(schema["$ref"].rpartition("/")[2]), depth + 1)
        for found in (
            schema.get("examples"),
            [schema[k] for k in ("example", "const", "default") if k in schema],
            schema.get("enum"),
        ):
            if found:
                return found[0]
        for choice in ("anyOf", "oneOf", "allOf"):
            if choice in schema:
                return self.of(schema[choice][0], depth + 1)
        return self._of_type(schema, depth)

    def _of_type(self, schema: dict[str, Any], depth: int) -> Any:
        kind = schema.get("type")
        if kind == "object":
            properties = schema.get("properties", {})
            shown = schema.get("required", []) if depth else [*properties]
            return {name: self.of(properties[name], depth + 1) for name in shown if name in properties}
        if kind == "array":
            if "prefixItems" in schema:
                return [self.of(item, depth + 1) for item in schema["prefixItems"]]
            return [self.of(schema.get("items", {}), depth + 1)]
        if kind == "integer":
            return int(
                schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1 if "exclusiveMinimum" in schema else 1)
            )
        if kind == "number":
            return schema.get("minimum", 0.5)
        return {"string": "text", "boolean": True}.get(str(kind))


_REQUEST_ID = {"X-Request-ID": {"schema": {"type": "string"}, "description": "the request's id, its own if it had one"}}
_PARAMETERS = [
    {
        "name": "Request-Timeout",
        "in": "header",
        "description": "seconds that are left for the call; the gateway's default applies without it",
        "schema": {"type": "number", "exclusiveMinimum": 0},
        "example": 30,
    },
    {
        "name": "arrays",
        "in": "query",
        "description": "how arrays in the result are written: nested lists, or their bytes as base64",
        "schema": {"type": "string", "enum": ["lists", "base64"], "default": "lists"},
    },
]


def _problem_refs() -> dict[str, Any]:
    return {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in _PROBLEMS}


def _responses() -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    made: dict[str, Any] = {}
    for status, description in _PROBLEMS.items():
        made[f"Problem{status}"] = {"description": description[0].upper() + description[1:] + ".", "content": content}
        if status in (429, 503):
            made[f"Problem{status}"]["headers"] = {
                "Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}
            }
    return made


def _own(summary: str, *media_types: str, problems: tuple[int, ...] = (401, 403)) -> dict[str, Any]:
    answers: dict[str, Any] = {"200": {"description": summary, "content": {kind: {} for kind in media_types}}}
    for status in problems:
        answers[str(status)] = {"$ref": f"#/components/responses/Problem{status}"}
    return {"get": {"summary": summary, "tags": ["gateway"], "responses": answers}}


_OWN_PATHS: dict[str, Any] = {
    "/livez": {**_own("The gateway is alive", "application/json", problems=())},
    "/readyz": _own("Every pool can serve", "application/json", problems=(401, 403, 503)),
    "/metrics": _own("Metrics of the gateway and of the app's pools, for Prometheus", "text/plain"),
    "/v1/status": _own("Pools, workers and the latest events", "application/json", problems=(401, 403, 503)),
}
_OWN_PATHS["/livez"]["get"]["security"] = []
