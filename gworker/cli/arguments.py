"""The options of a target: one for each argument of the method and each parameter of the class, typed by annotation.

Text stays text; `bool` is a flag; everything else is read as JSON where it is JSON, and as pydantic reads text
otherwise (dates, enums, paths).
"""

from __future__ import annotations

import builtins
import collections.abc
import datetime
import decimal
import inspect
import json
import pathlib
import types
import typing
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gworker.cli.exits import Failed
from gworker.cli.output import to_json

if TYPE_CHECKING:
    from gworker.functions import MethodSpec
    from gworker.spec import ClassSpec

_EMPTY = inspect.Parameter.empty


@dataclass(frozen=True)
class Argument:
    """One option. `kind` says whether a value is the method's or a parameter of the class."""

    name: str
    annotation: Any
    default: Any
    kind: str
    option: str
    positional: bool = False
    star: str = ""

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is _EMPTY

    @property
    def is_flag(self) -> bool:
        """Whether it is given as `--x` or `--no-x`."""
        return self.annotation is bool or _members(self.annotation) == {bool}

    @property
    def metavar(self) -> str:
        """What stands for the value in a help text."""
        return type_text(self.annotation)

    @property
    def takes_text(self) -> bool:
        """Whether text is passed on as it was given."""
        return not self.star and str in _members(self.annotation)

    @cached_property
    def _adapter(self) -> Any:
        from pydantic import ConfigDict, TypeAdapter

        wanted = Any if self.annotation is _EMPTY else self.annotation
        if self.star:
            wanted = list[wanted] if self.star == "*" else dict[str, wanted]  # type: ignore[valid-type]
        try:
            return TypeAdapter(wanted)
        except Exception:  # an array, a class of the user's: plain JSON is passed on
            pass
        try:
            return TypeAdapter(wanted, config=ConfigDict(arbitrary_types_allowed=True))
        except Exception:
            return TypeAdapter(Any)

    def read(self, text: str) -> Any:
        """The value that a text on the command line stands for. Raises Failed."""
        if self.takes_text:
            return text
        if text.startswith("@") and not _is_plain_text(self.annotation):
            return self._read_file(text[1:])
        try:
            given = json.loads(text)
        except ValueError:
            return self._check(text, from_text=True)
        return self._check(given, from_text=False, text=text)

    def check(self, value: Any) -> Any:
        """A value that came as JSON, as the annotation has it. Raises Failed."""
        return self._check(value, from_text=False)

    def _read_file(self, path: str) -> Any:
        try:
            data = pathlib.Path(path).read_bytes()
        except OSError as error:
            raise Failed(f"{self.option} @{path}: {error.strerror}: {path!r}") from None
        return data if bytes in _members(self.annotation) else self.read(data.decode())

    def _check(self, value: Any, *, from_text: bool, text: str | None = None) -> Any:
        from pydantic import ValidationError

        adapter = self._adapter
        if self.annotation is _EMPTY or self.annotation is Any:
            return value
        if _is_array(self.annotation) and not from_text:
            import numpy as np

            return np.asarray(value)
        try:
            return adapter.validate_strings(value) if from_text else adapter.validate_json(json.dumps(value))
        except ValidationError as error:
            if text is not None and not isinstance(value, (list, dict)):
                try:
                    return adapter.validate_strings(text)  # an enum of digits, a date such as 20260131
                except ValidationError:
                    pass
            if _is_own_class(self.annotation):
                return value
            what = "; ".join(line["msg"] for line in error.errors(include_url=False)[:2])
            raise Failed(
                f"{self.option} {text if text is not None else to_json(value)}: expected {self.metavar}: {what}. "
                f"Write for example {self.option} {self._example(value)}"
            ) from None

    def _example(self, given: Any) -> str:
        origin = typing.get_origin(self.annotation) or self.annotation
        if origin is list or self.star == "*" or origin is collections.abc.Sequence:
            item = given if isinstance(given, str) else "..."
            return "'" + to_json([item]) + "'"
        if isinstance(self.default, (int, float)) and not isinstance(self.default, bool):
            return str(self.default)
        return {int: "3", float: "0.5", dict: "'{\"key\": 1}'"}.get(origin, f"{self.metavar} as JSON")


def arguments_of(spec: ClassSpec, method: MethodSpec) -> list[Argument]:
    """The arguments of the method and the parameters of the class, the method's first.

    A parameter that is called like an argument is `--Class.name`.
    """
    from gworker.parameters import MISSING

    hints = _hints(spec, method)
    found = [
        Argument(
            name=p.name,
            annotation=_one_of(hints.get(p.name, p.annotation)) if method.batch else hints.get(p.name, p.annotation),
            default=p.default if not _is_variable(p) else None,
            kind="argument",
            option=_option(p.name),
            positional=p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD),
            star={p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, ""),
        )
        for p in method.signature.parameters.values()
    ]
    names = {argument.name for argument in found}
    for parameter in spec.parameters.values():
        option = _option(parameter.name)
        if parameter.name in names:
            option = f"--{spec.name}.{option.removeprefix('--')}"
        default = _EMPTY if parameter.default is MISSING else parameter.default
        found.append(Argument(parameter.name, parameter.annotation, default, "parameter", option))
    return found


def type_text(annotation: Any) -> str:
    """An annotation as people write it.

    >>> type_text(list[str]), type_text(str | None)
    ('list[str]', 'str | None')
    """
    if annotation is _EMPTY or annotation is Any:
        return "JSON or text"
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _option(name: str) -> str:
    return "--" + name.strip("_").replace("_", "-")


def _is_variable(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def _members(annotation: Any) -> set[Any]:
    """The types that an annotation allows, None aside."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return {m for a in typing.get_args(annotation) if a is not type(None) for m in _members(a)}
    return {annotation}


def _is_plain_text(annotation: Any) -> bool:
    return bool(_members(annotation) & {str, pathlib.Path})


def _is_array(annotation: Any) -> bool:
    origin = typing.get_origin(annotation) or annotation
    return getattr(origin, "__module__", "").split(".")[0] == "numpy" and getattr(origin, "__name__", "") == "ndarray"


def _is_own_class(annotation: Any) -> bool:
    """A class that pydantic only knows by isinstance: the method gets the JSON as it is."""
    return isinstance(annotation, type) and annotation.__module__ not in ("builtins", "enum") and not (
        hasattr(annotation, "model_fields") or hasattr(annotation, "__dataclass_fields__") or _is_enum(annotation)
    ) and annotation not in (datetime.date, datetime.datetime, datetime.timedelta, decimal.Decimal, uuid.UUID)


def _is_enum(annotation: Any) -> bool:
    return hasattr(annotation, "__members__")


_LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)


def _one_of(annotation: Any) -> Any:
    """The type of one input of a batched method, whose arguments are lists of them."""
    if typing.get_origin(annotation) in _LISTS and typing.get_args(annotation):
        return typing.get_args(annotation)[0]
    return Any


_KNOWN: dict[str, Any] = {
    **vars(builtins),
    **{name: getattr(typing, name) for name in typing.__all__},
    **{name: getattr(collections.abc, name) for name in collections.abc.__all__},
    "typing": typing,
    "collections": collections,
    "datetime": datetime,
    "decimal": decimal,
    "pathlib": pathlib,
    "Path": pathlib.Path,
    "uuid": uuid,
}


def _hints(spec: ClassSpec, method: MethodSpec) -> Mapping[str, Any]:
    """The annotations of the method's arguments, each resolved where it can be."""
    known = dict(_KNOWN)
    function = inspect.getattr_static(spec.user_cls, method.name, None)
    if function is not None:
        function = inspect.unwrap(function)
        known.update(getattr(function, "__globals__", {}))
    hints = {}
    for parameter in method.signature.parameters.values():
        annotation = parameter.annotation
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, known)  # noqa: S307  # it is code of the app, as its annotations are
            except Exception:
                annotation = Any
        hints[parameter.name] = annotation
    return hints
