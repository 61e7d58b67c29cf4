"""Routes that speak as OpenAI's do, so that clients made for it can call an app unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gworker import checks
from gworker.errors import InvalidDefinition
from gworker.handle import Cls, UnboundMethod

__all__ = ["Embeddings", "embeddings"]


@dataclass(frozen=True)
class Embeddings:
    """A method that answers for one model at `POST /v1/embeddings`."""

    cls: Cls
    method: str
    model: str


_served: dict[str, dict[str, Embeddings]] = {}


def embeddings(method: Any, *, model: str) -> Embeddings:
    """Serve a method as OpenAI's `POST /v1/embeddings`: `gw.openai.embeddings(Embedder.embed, model="minilm")`.

    Written once beside the class; gateways of its app that this process makes then have the route. The method takes a
    text and returns its vector if it is batched, else a list of texts, returning a list (or array) of vectors.

    Raises InvalidDefinition for what is no such method.
    """
    where = "gw.openai.embeddings"
    if not isinstance(method, UnboundMethod):
        raise InvalidDefinition(
            f"{where}({checks.shown(method)}): expected a method of a decorated class, named through the class: write "
            f'{where}(Embedder.embed, model="all-MiniLM-L6-v2")'
        )
    if not isinstance(model, str) or not model.strip():
        raise InvalidDefinition(f'{where}: model={checks.shown(model)} was given; write a name, such as model="minilm"')
    spec = method.cls.spec.methods[method.name]
    required = [p.name for p in spec.signature.parameters.values() if p.default is p.empty]
    if spec.is_generator or len(required) != 1:
        raise InvalidDefinition(
            f"{where}: {method.cls.name}.{spec} cannot serve: expected a method that takes texts, nothing else "
            "without a default, and returns their vectors"
        )
    made = Embeddings(method.cls, method.name, model)
    _served.setdefault(method.cls.app.name, {})[model] = made
    return made


def embeddings_of(app_name: str) -> dict[str, Embeddings]:
    """The models that an app serves, by name."""
    return dict(_served.get(app_name, {}))
