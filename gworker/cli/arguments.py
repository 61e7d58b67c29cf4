"""The options of a target: one for each argument of the method and parameter of the class, typed by annotation.

Text stays text; `bool` is a flag; everything else is read as JSON where it is JSON, as the HTTP gateway reads it, and
as pydantic reads text otherwise (dates, enums, paths).
"""

from __future__ import annotations

import collections.abc
import inspect
import json
import pathlib
import types
import typing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gworker.cli.exits import Failed

if TYPE_CHECKING:
    from gworker.functions import MethodSpec
    from gworker.handle import Cls

_EMPTY = inspect.Parameter.empty


@dataclass(frozen=True, eq=False)
class Argument:
    """One option. `kind` says whether a value is the method's or a parameter of the class.

    `positional`: it may be given without its name; `star` is "*" or "**" for what takes further values.
    """

    name: str
    annotation: Any
    default: Any
    kind: typing.Literal["argument", "parameter"]
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
        return not self.star and _members(self.annotation) == {bool}

    @property
    def takes_text(self) -> bool:
        """Whether text is passed on as it was given."""
        return not self.star and str in _members(self.annotation)

    @property
    def metavar(self) -> str:
        """What stands for the value in a help text."""
        return {"*": "JSON list", "**": "JSON object"}.get(self.star) or type_text(self.annotation)

    def read(self, text: str) -> Any:
        """The value that a text on the command line stands for. Raises Failed."""
        if self.takes_text:
            return text
        if text.startswith("@") and pathlib.Path not in _members(self.annotation):
            return self._read_file(text[1:])
        try:
            given = json.loads(text)
        except ValueError:
            return text if self._is_open else self._checked(text, text, _from_text)
        if isinstance(given, (list, dict)):
            return self._checked(given, text, _from_json)
        return self._checked(given, text, _from_json, _from_text)  # an enum of digits, a date such as 20260131

    def check(self, value: Any) -> Any:
        """A value that came as JSON, as the annotation has it. Raises Failed."""
        return self._checked(value, json.dumps(value), _from_json)

    def _read_file(self, path: str) -> Any:
        try:
            content = pathlib.Path(path).read_bytes()
        except OSError as error:
            raise Failed(f"{self.option} @{path}: {error.strerror}: {path!r}") from None
        if _members(self.annotation) & {bytes, bytearray}:
            return content
        text = content.decode(errors="replace")
        return text if self._is_open and not text.lstrip().startswith(("[", "{")) else self.read(text.strip())

    def _checked(self, value: Any, text: str, *ways: typing.Callable[[Any, Any, str], Any]) -> Any:
        from pydantic import ValidationError

        problems: list[str] = []
        for way in ways:
            try:
                return way(self._adapter, value, text)
            except ValidationError as error:
                problems += [
                    "".join(f"{part}: " for part in line["loc"]) + line["msg"].removeprefix("Value error, ")
                    for line in error.errors(include_url=False)[:2]
                ]
        shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
        raise Failed(
            f"{self.option} {shown}: expected {self.metavar}: {problems[0]}. Write for example "
            f"{self.option} {self._example(value)}"
        )

    @property
    def _is_open(self) -> bool:
        """Whether any value will do."""
        return not self.star and self.annotation in (_EMPTY, Any)

    @cached_property
    def _adapter(self) -> Any:
        from pydantic import TypeAdapter

        from gworker.http.values import json_type

        wanted: Any = Any if self.annotation is _EMPTY else json_type(self.annotation)
        if self.star:
            wanted = list.__class_getitem__(wanted) if self.star == "*" else dict.__class_getitem__((str, wanted))
        try:
            return TypeAdapter(wanted)
        except Exception:  # a class of the user's, which only isinstance could check: the method gets plain JSON
            return TypeAdapter(Any)

    def _example(self, given: Any) -> str:
        origin = typing.get_origin(self.annotation) or self.annotation
        if origin in _LISTS or self.star == "*":
            return f"'{json.dumps([given if isinstance(given, str) else '...'])}'"
        if hasattr(origin, "__members__"):
            return str(next(iter(origin)).value)
        if isinstance(self.default, (int, float)) and not isinstance(self.default, bool):
            return str(self.default)
        examples = {int: "3", float: "0.5", dict: "'{\"key\": 1}'", bytes: "@file"}
        return examples.get(origin, "@file, a file that holds the JSON")


# As much of a value as a message quotes.
_SHOWN = 80
_LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)


def _from_json(adapter: Any, value: Any, _: str) -> Any:
    return adapter.validate_json(json.dumps(value))


def _from_text(adapter: Any, _: Any, text: str) -> Any:
    return adapter.validate_strings(text)


def arguments_of(cls: Cls, method: MethodSpec) -> list[Argument]:
    """The arguments of the method and the parameters of the class, the method's first.

    A parameter that is called like an argument is `--Class.name`.
    """
    from gworker.parameters import MISSING

    hints = _hints(cls, method)
    found = []
    for p in method.signature.parameters.values():
        annotation = _EMPTY if p.annotation is _EMPTY else hints.get(p.name, Any)
        star = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
        found.append(
            Argument(
                name=p.name,
                annotation=_one_of(annotation) if method.batch else annotation,
                default=None if star else p.default,
                kind="argument",
                option=_option(p.name),
                positional=p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD),
                star=star,
            )
        )
    names = {argument.name for argument in found}
    for parameter in cls.spec.parameters.values():
        option = _option(parameter.name)
        if parameter.name in names:
            option = f"--{cls.name}.{option.removeprefix('--')}"
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


def _members(annotation: Any) -> set[Any]:
    """The types that an annotation allows, None aside."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return {m for a in typing.get_args(annotation) if a is not type(None) for m in _members(a)}
    try:
        return {annotation}
    except TypeError:  # it cannot be hashed: a Literal of lists, for example
        return {object}


def _one_of(annotation: Any) -> Any:
    """The type of one input of a batched method, whose arguments are lists of them."""
    if typing.get_origin(annotation) in _LISTS and typing.get_args(annotation):
        return typing.get_args(annotation)[0]
    return Any


def _hints(cls: Cls, method: MethodSpec) -> typing.Mapping[str, Any]:
    """The types of the arguments: from the class where this process can have it, else what the signature says."""
    from gworker.handle import DeployedCls
    from gworker.http.schema import hints_from_texts, resolve_hints

    user_cls: Any = cls.user_cls
    if isinstance(cls, DeployedCls):
        try:
            from gworker.wire import unpack

            user_cls = unpack(cls.packed()).user_cls
        except Exception:  # its module is not here
            user_cls = None
    function = getattr(user_cls, method.name, None)
    return hints_from_texts(method.signature) if function is None else resolve_hints(function)
