"""What one method takes and gives over HTTP: pydantic checks and documents it from the type hints."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import NotRequired, Required, TypedDict

from gworker.functions import MethodSpec
from gworker.http.problems import Problem, invalid
from gworker.http.values import json_type
from gworker.parameters import MISSING, Parameter

_EMPTY = inspect.Signature.empty
_POSITIONAL_ONLY = inspect.Parameter.POSITIONAL_ONLY
_VAR_POSITIONAL = inspect.Parameter.VAR_POSITIONAL
_BY_POSITION = (_POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, _VAR_POSITIONAL)
_VAR_KEYWORD = inspect.Parameter.VAR_KEYWORD

Arguments = tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]


class MethodSchema:
    """The JSON body of one method. `parameters_key` is its field for class parameters, "" for a class without any."""

    def __init__(
        self, label: str, method: MethodSpec, hints: Mapping[str, Any], parameters: Mapping[str, Parameter]
    ) -> None:
        self.label = label
        self.method = method
        self.summary, self.description = _texts(hints.get("__doc__"))
        taken = method.signature.parameters
        self.parameters_key = parameters_key(taken) if parameters else ""
        # What comes before *args can only be given by position.
        has_rest = any(p.kind is _VAR_POSITIONAL for p in taken.values())
        by_position = _BY_POSITION if has_rest else (_POSITIONAL_ONLY,)
        self._spread = [p for p in taken.values() if p.kind in by_position]
        self.defaults = {p.name: p.default for p in taken.values() if p.default is not _EMPTY}
        self.parameter_defaults = {p.name: p.default for p in parameters.values() if p.default is not MISSING}
        fields = {name: _field(p, self._hint(name, hints)) for name, p in taken.items() if p.kind is not _VAR_KEYWORD}
        if parameters:
            required = any(p.default is MISSING for p in parameters.values())
            values = _typed_dict(
                f"{label.replace('.', '_')}_parameters", {n: _parameter(p) for n, p in parameters.items()}
            )
            fields[self.parameters_key] = Required[values] if required else NotRequired[values]
        open_ended = any(p.kind is _VAR_KEYWORD for p in taken.values())
        self.adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(
            _typed_dict(label.replace(".", "_"), fields, extra="allow" if open_ended else "forbid")
        )
        self.result: TypeAdapter[Any] = _adapter_or_any(json_type(self._result_hint(hints)))

    def read(self, body: bytes) -> Arguments:
        """Positional arguments, named arguments and class parameters of a request. Raises Problem, naming the field."""
        try:
            named = self.adapter.validate_json(body or b"{}")
        except ValidationError as error:
            raise _problem(error) from None
        parameters = named.pop(self.parameters_key, {}) if self.parameters_key else {}
        if not self._spread:
            return (), named, parameters
        return tuple(self._positional(named)), named, parameters

    def _positional(self, named: dict[str, Any]) -> Iterator[Any]:
        for param in self._spread:
            if param.kind is _VAR_POSITIONAL:
                yield from named.pop(param.name, ())
            else:
                yield named.pop(param.name, param.default)

    def _hint(self, name: str, hints: Mapping[str, Any]) -> Any:
        hint = hints.get(name, Any)
        return _element(hint) if self.method.batch is not None else hint

    def _result_hint(self, hints: Mapping[str, Any]) -> Any:
        hint = hints.get("return", Any)
        # Of a stream the item is documented, of a batch what one input gets.
        return _element(hint) if self.method.batch is not None or self.method.is_generator else hint


def parameters_key(arguments: typing.Container[str]) -> str:
    """The field for class parameters: `parameters`, or the first of `class_parameters`, … that is no argument."""
    key = "parameters"
    while key in arguments:
        key = f"class_{key}"
    return key


def resolve_hints(function: Any) -> dict[str, Any]:
    """The annotations of a function, with its docstring under `__doc__`; Any for one that cannot be resolved."""
    function = inspect.unwrap(function)
    known = dict(getattr(function, "__globals__", {}))
    known.update(inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {})
    hints = {name: _resolve(raw, known) for name, raw in getattr(function, "__annotations__", {}).items()}
    return {**hints, "__doc__": inspect.getdoc(function)}


def hints_from_texts(signature: inspect.Signature) -> dict[str, Any]:
    """The same from a signature whose annotations have become texts: what builtins, typing and numpy can say."""
    known: dict[str, Any] = {**vars(typing), "typing": typing}
    texts = [str(p.annotation) for p in signature.parameters.values()] + [str(signature.return_annotation)]
    if any("numpy" in text or "np." in text or "NDArray" in text for text in texts):
        import numpy as np
        import numpy.typing as npt

        known.update({"numpy": np, "np": np, "npt": npt, "NDArray": npt.NDArray})
    hints = {p.name: _resolve(p.annotation, known) for p in signature.parameters.values()}
    return {**hints, "return": _resolve(signature.return_annotation, known)}


def _resolve(raw: Any, known: dict[str, Any]) -> Any:
    if raw is _EMPTY:
        return Any
    try:
        return typing.get_type_hints(
            type("_", (), {"__annotations__": {"it": raw}}), known, known, include_extras=True
        )["it"]
    except Exception:
        return Any


def _texts(doc: str | None) -> tuple[str, str]:
    first, _, rest = (doc or "").partition("\n")
    return first.strip(), rest.strip()


def _element(hint: Any) -> Any:
    """A in `list[A]`, `Iterator[A]`, `Sequence[A]`, …; Any for what does not say."""
    args = get_args(hint)
    if get_origin(hint) is None or not args or hasattr(get_origin(hint), "dtype"):
        return Any
    return args[0]


def _field(param: inspect.Parameter, hint: Any) -> Any:
    kind = json_type(hint)
    if param.kind is _VAR_POSITIONAL:
        return NotRequired[list[_known(kind)]]  # type: ignore[misc]
    return (Required if param.default is _EMPTY else NotRequired)[_known(kind)]


def _parameter(param: Parameter) -> Any:
    kind = _known(json_type(param.annotation))
    return (Required if param.default is MISSING else NotRequired)[kind]


def _known(hint: Any) -> Any:
    """`hint` if pydantic can check and document it, else Any."""
    try:
        TypeAdapter(hint).json_schema()
    except Exception:
        return Any
    return hint


def _adapter_or_any(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(_known(hint))


def _typed_dict(name: str, fields: Mapping[str, Any], extra: typing.Literal["allow", "forbid"] = "forbid") -> Any:
    # A TypedDict, because it validates to what `**` takes, leaves out what was left out, and allows any field name.
    make: Any = TypedDict
    made = make(name, dict(fields))
    made.__pydantic_config__ = ConfigDict(extra=extra)
    return made


def _problem(error: ValidationError) -> Problem:
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    if errors[0]["type"] == "json_invalid":
        return Problem(400, "invalid-json", "The body is not valid JSON", errors[0]["msg"])
    return invalid([{"pointer": _pointer(e["loc"]), "detail": _message(e), "type": e["type"]} for e in errors[:20]])


def _message(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such field"
    return str(error["msg"]).removeprefix("Value error, ")


def _pointer(loc: tuple[int | str, ...]) -> str:
    return "#" + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in loc)
