"""Runtime parameters: marked on the class, checked when a handle is made, read as plain attributes in a worker.

`views` says how one instance can show different values to calls that run at the same time.
"""

from __future__ import annotations

import copy
import inspect
import sys
import types
import typing
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

from gworker import checks, views
from gworker.errors import InvalidDefinition
from gworker.fingerprint import digest
from gworker.views import bind_instance, check_bindable, check_viewable, create_instance, entering, guard_del, make_view

__all__ = [
    "MISSING",
    "Parameter",
    "ParameterValues",
    "bind_instance",
    "bind_parameters",
    "check_bindable",
    "check_viewable",
    "collect_parameters",
    "create_instance",
    "entering",
    "guard_del",
    "make_view",
    "parameter",
]

T = TypeVar("T")
Scope = Literal["call", "worker"]


class _Missing:
    """The absence of a value; there is one, in every process."""

    def __repr__(self) -> str:
        return "MISSING"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()


@overload
def parameter(*, default: T, scope: Scope = "call") -> T: ...
@overload
def parameter(*, scope: Scope = "call") -> Any: ...
def parameter(*positional: Any, default: Any = MISSING, scope: Scope = "call") -> Any:
    """A value that callers choose: `threshold: float = gw.parameter(default=0.5)`, then `Classifier(threshold=0.7)`.

    The annotation is the type that values must have. Without `default` every caller must give one. With `scope="call"`
    the value travels with each call and calls with different values share a worker; with `scope="worker"` each set of
    values has a pool of workers of its own, and `on_enter` can read them, for example to choose a model.
    Parameters are read-only in the class.
    """
    if positional:
        given = ", ".join(checks.shown(value) for value in positional)
        raise InvalidDefinition(
            f"gw.parameter({given}): it takes keyword arguments only: write gw.parameter(default={given})"
        )
    checks.choice("gw.parameter", "scope", scope, ("call", "worker"))
    return Parameter(MISSING if default is ... else default, scope)


class Parameter:
    """One parameter of a class: a descriptor that reads the value that belongs to the object at hand."""

    def __init__(self, default: Any, scope: Scope) -> None:
        self.name = ""
        self.owner = ""
        self.annotation: Any = MISSING
        self.default = default
        self.scope: Scope = scope
        self._adapter: Any = None
        self._settled = False

    def __repr__(self) -> str:
        default = "" if self.default is MISSING else f"default={checks.shown(self.default)}, "
        return f'gw.parameter({default}scope="{self.scope}")'

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_adapter": None}

    def __set_name__(self, owner: type, name: str) -> None:
        if self.name:  # one object under two names: collect_parameters reports it
            return
        self.name = name
        self.owner = owner.__qualname__.rpartition("<locals>.")[2]
        raw = _own_annotations(owner).get(name, MISSING)
        try:
            # Now, because a name may be known only in the function that defines the class.
            self.annotation = _resolve(raw, owner, sys._getframe(1))
        except Exception:
            self.annotation = raw

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if instance is None:
            return self
        bound = views.binding_of(instance)
        values = None if bound is None else bound.worker if self.scope == "worker" else bound.call
        if values is not None:
            value = values.get(self.name, MISSING)
            if value is not MISSING:
                return value
        elif self.scope == "call" and views.is_entering(instance):
            raise self._read_too_early(instance)
        return self._default_for_reader(instance)

    def __set__(self, instance: object, value: object) -> None:
        raise AttributeError(self._read_only(instance, f"{self.name} = {checks.shown(value)}"))

    def __delete__(self, instance: object) -> None:
        raise AttributeError(self._read_only(instance, f"del {self.name}"))

    def validate(self, value: Any) -> Any:
        """`value` as the annotation has it, converted where pydantic would; raises InvalidDefinition."""
        return self._validate(value, strict=None)

    def check_definition(self, owner: type) -> None:
        """Settle the annotation and check the default against it; raises InvalidDefinition."""
        if self._settled:  # by a base class, or before a pickle; validators need not bear a second run
            return
        label = f"{owner.__name__}.{self.name}"
        if self.annotation is MISSING:
            example = "float" if self.default is MISSING else type(self.default).__name__
            raise InvalidDefinition(
                f"{label}: the parameter has no annotation, so values cannot be checked: write "
                f"{self.name}: {example} = {self!r}"
            )
        home = next((c for c in owner.__mro__ if c.__dict__.get(self.name) is self), owner)
        try:
            self.annotation = _resolve(self.annotation, home, sys._getframe(1))
        except Exception as error:
            raise InvalidDefinition(
                f"{label}: the annotation {checks.shown(self.annotation)} cannot be resolved ({error}): import or "
                "define what it names where the class is defined, not only under TYPE_CHECKING"
            ) from error
        self._build_adapter(label)
        if self.default is not MISSING:
            self.default = self._validate(self.default, strict=True)
        self._settled = True

    def _validate(self, value: Any, strict: bool | None) -> Any:
        from pydantic import ValidationError

        adapter = self._adapter or self._build_adapter(f"{self.owner}.{self.name}")
        try:
            return adapter.validate_python(value, strict=strict)
        except ValidationError as error:
            what = "; ".join(
                ".".join(str(part) for part in line["loc"]) + (": " if line["loc"] else "") + line["msg"]
                for line in error.errors(include_url=False)[:3]
            )
            given = f"{self.name}={checks.shown(value)} ({type(value).__name__})"
            if strict:
                raise InvalidDefinition(
                    f"{self.owner}.{self.name}: the default {checks.shown(value)} ({type(value).__name__}) is not of "
                    f"the annotated type {self.type_name}: {what}. Write a default of that type, or annotate the "
                    f"parameter as {self.type_name} | {type(value).__name__}"
                ) from None
            example = "..." if self.default is MISSING else checks.shown(self.default)
            raise InvalidDefinition(
                f"{self.owner}({given}): expected {self.type_name}: {what}. Write for example "
                f"{self.owner}({self.name}={example})"
            ) from None

    def _build_adapter(self, label: str) -> Any:
        from pydantic import ConfigDict, TypeAdapter
        from pydantic.errors import PydanticSchemaGenerationError

        try:
            try:
                self._adapter = TypeAdapter(self.annotation)
            except PydanticSchemaGenerationError:  # a class pydantic does not know: an isinstance check
                self._adapter = TypeAdapter(self.annotation, config=ConfigDict(arbitrary_types_allowed=True))
        except Exception as error:
            raise InvalidDefinition(
                f"{label}: values cannot be checked against the annotation {self.type_name} "
                f"({str(error).splitlines()[0]}): annotate it with a type that pydantic understands, such as float or "
                "list[str]"
            ) from error
        return self._adapter

    @property
    def type_name(self) -> str:
        """The annotation as people write it."""
        if isinstance(self.annotation, type) and not hasattr(self.annotation, "__args__"):
            return self.annotation.__qualname__.rpartition("<locals>.")[2]
        return str(self.annotation).replace("typing.", "")

    def _default_for_reader(self, instance: object) -> Any:
        if self.default is MISSING:
            where = "outside a call" if self.scope == "call" else "here"
            raise AttributeError(
                f"{type(instance).__name__}.{self.name} has no value {where} and no default: write "
                f"{self.name}: {self.type_name} = gw.parameter(default=..., scope={self.scope!r}) with a default"
            )
        # A fresh one: what one reader appends must not be there for the next.
        return copy.deepcopy(self.default) if isinstance(self.default, (list, dict, set)) else self.default

    def _read_too_early(self, instance: object) -> InvalidDefinition:
        default = "" if self.default is MISSING else f"default={checks.shown(self.default)}, "
        return InvalidDefinition(
            f"{type(instance).__name__}.{self.name} was read while the worker starts (in on_enter or __init__), but "
            "its value comes with each call and differs between calls. If the start-up depends on it, write "
            f'{self.name}: {self.type_name} = gw.parameter({default}scope="worker"); otherwise read it in the method'
        )

    def _read_only(self, instance: object, attempt: str) -> str:
        name = type(instance).__name__
        return (
            f"{name}: self.{attempt} failed: {self.name} is a parameter and parameters are read-only in the class. "
            f"Callers choose it, as in {name}({self.name}=...); keep state of your own under another name"
        )


def collect_parameters(cls: type) -> dict[str, Parameter]:
    """The parameters of a class, those of its bases first, checked; raises InvalidDefinition."""
    found: dict[str, Parameter] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Parameter):
                if value.name != name:
                    raise InvalidDefinition(
                        f"{cls.__name__}: one gw.parameter() is used for both {value.name} and {name}: write one "
                        "for each"
                    )
                found[name] = value
            else:
                found.pop(name, None)
    swallowed = [name for name, field in _foreign_fields(cls) if isinstance(field, Parameter)]
    if found or swallowed:
        check_bindable(cls)
    for param in found.values():
        param.check_definition(cls)
    return found


@dataclass(frozen=True, eq=False)
class ParameterValues:
    """The parameter values of one handle, by scope, with what tells them from those of other handles.

    `call_key` and `worker_key` are equal exactly for equal values of equal types, in every process. `worker_key` is ""
    for a class without worker-scoped parameters.
    """

    call: Mapping[str, Any]
    worker: Mapping[str, Any]
    call_key: Hashable
    worker_key: str

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ParameterValues):
            return NotImplemented
        return self.call_key == other.call_key and self.worker_key == other.worker_key

    def __hash__(self) -> int:
        return hash((self.call_key, self.worker_key))


def bind_parameters(class_name: str, params: Mapping[str, Parameter], given: Mapping[str, Any]) -> ParameterValues:
    """The values for a handle: defaults applied, each checked. Raises InvalidDefinition."""
    for name in given:
        if name not in params:
            advice = (
                checks.nearest(name, params)
                if params
                else f" It has no parameters: mark one in the class with {name}: <type> = gw.parameter(default=...)."
            )
            raise InvalidDefinition(f"{class_name}({name}=...): {class_name} has no parameter {name!r}.{advice}")
    values: dict[Scope, dict[str, Any]] = {"call": {}, "worker": {}}
    for name, param in params.items():
        if name in given:
            value = param.validate(given[name])
        elif param.default is MISSING:
            raise InvalidDefinition(
                f"{class_name}(): the parameter {name!r} has no default and must be given: write "
                f"{class_name}({name}=...)"
            )
        else:
            value = param.default
        values[param.scope][name] = value
    call, worker = values["call"], values["worker"]
    return ParameterValues(call, worker, _key(class_name, call), _key(class_name, worker))


def _key(class_name: str, values: dict[str, Any]) -> str:
    if not values:
        return ""
    try:
        return digest(values)
    except Exception as error:
        given = ", ".join(f"{name}={checks.shown(value)}" for name, value in values.items())
        raise InvalidDefinition(
            f"{class_name}({given}): a parameter value cannot be sent to a worker ({type(error).__name__}: {error}): "
            "give values that can be pickled"
        ) from error


# --- annotations -------------------------------------------------------------------------------------------------


def _own_annotations(cls: type) -> Mapping[str, Any]:
    try:
        return inspect.get_annotations(cls)
    except Exception:
        return {}


def _resolve(annotation: Any, owner: type, frame: types.FrameType | None) -> Any:
    """What an annotation that may be a text, or hold one, stands for, as seen from where its class is defined."""
    frames = [f for f in _frames(frame) if f.f_globals.get("__name__") == owner.__module__]
    module = sys.modules.get(owner.__module__)
    known: dict[str, Any] = dict(frames[0].f_globals if frames else vars(module) if module is not None else {})
    scopes = [f.f_locals for f in frames if f.f_locals is not f.f_globals]
    for names in reversed(scopes):
        known.update(names)
    known.update((n, v) for n, v in vars(owner).items() if not isinstance(v, Parameter))
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    return typing.get_type_hints(holder, known, known, include_extras=True)["it"]


def _frames(frame: types.FrameType | None) -> Iterator[types.FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _foreign_fields(cls: type) -> Iterator[tuple[str, Any]]:
    """The defaults that dataclasses, attrs and pydantic keep for fields, where they took parameters for theirs."""
    fields = getattr(cls, "__dataclass_fields__", None) or getattr(cls, "__pydantic_fields__", None) or {}
    yield from ((name, getattr(field, "default", None)) for name, field in fields.items())
    yield from ((field.name, field.default) for field in getattr(cls, "__attrs_attrs__", ()))
