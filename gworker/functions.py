"""The methods and hooks of a class: found by their marks, checked, and described for those who call them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from gworker import checks
from gworker.decorators import BatchSpec, FunctionMarks, marks_of
from gworker.errors import InvalidDefinition

# Of most calls; nobody writes to it.
_NO_KWARGS: dict[str, Any] = {}
_POSITIONAL_OR_KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD
_POSITIONAL_ONLY = inspect.Parameter.POSITIONAL_ONLY
_KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
# How the gateway passes a request on.
_ASGI_SIGNATURE = inspect.Signature(
    [inspect.Parameter("scope", _POSITIONAL_OR_KEYWORD), inspect.Parameter("body", _POSITIONAL_OR_KEYWORD)]
)
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class HookSpec:
    """One `on_enter` or `on_exit` hook."""

    name: str
    is_async: bool


@dataclass(frozen=True)
class _Shape:
    """The arguments of a function without *args, **kwargs and positional-only ones: by position, all, required."""

    names: tuple[str, ...]
    all: tuple[str, ...]
    required: tuple[str, ...]

    @cached_property
    def only(self) -> int:
        """How many arguments by position there must be where none is given by name; -1 where that varies."""
        return len(self.all) if self.names == self.all == self.required else -1

    def fits(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """True if a call with these arguments is good."""
        by_position = self.names[: len(args)]
        if len(by_position) < len(args):
            return False
        for name in kwargs:
            if name not in self.all or name in by_position:
                return False
        return all(name in by_position or name in kwargs for name in self.required)


@dataclass(frozen=True)
class MethodSpec:
    """One remote method. `signature` is without self; `batch` is None for a method that is not batched.

    `asgi` marks the hidden one that stands for an `@gw.asgi_app()` function: it takes a request and streams the answer.
    """

    name: str
    is_async: bool
    is_generator: bool
    batch: BatchSpec | None
    signature: inspect.Signature
    asgi: bool = False

    def bind(
        self, class_name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Check the arguments of one call; raises TypeError, naming the method, if they do not fit.

        The arguments of a batched method are those of one input. They come back by name, defaults applied, in the order
        of the signature, so that batches can be put together by name; others come back as they were given.
        """
        # Signature.bind takes several times as long as this, and every call comes by here.
        shape = self._shape
        if shape is not None and ((not kwargs and shape.only == len(args)) or shape.fits(args, kwargs)):
            if self.batch is None:
                return args, dict(kwargs) if kwargs else _NO_KWARGS
            return (), {**self._defaults, **dict(zip(shape.names, args, strict=False)), **kwargs}
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(self._explain(class_name, str(error), kwargs)) from None
        if self.batch is None:
            return args, dict(kwargs)
        bound.apply_defaults()
        return (), dict(bound.arguments)

    def _explain(self, class_name: str, problem: str, kwargs: Mapping[str, Any]) -> str:
        unknown = next((name for name in kwargs if name not in self.signature.parameters), None)
        hint = checks.nearest(unknown, self.signature.parameters) if unknown and "unexpected" in problem else ""
        one = " Pass the arguments of one input: the library makes the batch." if self.batch is not None else ""
        return f"{class_name}.{self.name}() {problem}; its signature is {self}.{hint}{one}"

    def without_types(self) -> MethodSpec:
        """The same for callers that may lack the types and functions of its definition: types become their names."""
        signature = self.signature
        params = [p.replace(annotation=_type_text(p.annotation)) for p in signature.parameters.values()]
        signature = signature.replace(parameters=params, return_annotation=_type_text(signature.return_annotation))
        batch = None if self.batch is None else replace(self.batch, weight=None)
        return replace(self, signature=signature, batch=batch)

    def __str__(self) -> str:
        return f"{self.name}{_readable(self.signature)}"

    @cached_property
    def _shape(self) -> _Shape | None:
        params = list(self.signature.parameters.values())
        if any(p.kind not in (_POSITIONAL_OR_KEYWORD, _KEYWORD_ONLY) for p in params):
            return None
        names = tuple(p.name for p in params if p.kind is _POSITIONAL_OR_KEYWORD)
        required = tuple(p.name for p in params if p.default is p.empty)
        return _Shape(names, tuple(self.signature.parameters), required)

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        # Required names too, so that the order is the signature's: they are always overwritten.
        return {p.name: p.default for p in self.signature.parameters.values()}


class _Verbatim:
    """Shows a text without quotes."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _type_text(annotation: Any) -> Any:
    if annotation is inspect.Signature.empty or isinstance(annotation, str):
        return annotation
    return inspect.formatannotation(annotation)


def _readable(signature: inspect.Signature) -> str:
    """The signature with annotations as their author wrote them, not as quoted texts."""

    def plain(annotation: Any) -> Any:
        return _Verbatim(annotation) if isinstance(annotation, str) else annotation

    params = [p.replace(annotation=plain(p.annotation)) for p in signature.parameters.values()]
    return str(signature.replace(parameters=params, return_annotation=plain(signature.return_annotation)))


@dataclass(frozen=True)
class Functions:
    """What the marks in a class and its bases amount to."""

    methods: dict[str, MethodSpec]
    enter_hooks: tuple[HookSpec, ...]
    exit_hooks: tuple[HookSpec, ...]


def collect_functions(cls: type) -> Functions:
    """Methods and hooks of a class, base first, then in order of definition; raises InvalidDefinition.

    A function that overrides a marked one takes its place and, unless it is marked itself, its marks.
    """
    methods: dict[str, MethodSpec] = {}
    enter: list[HookSpec] = []
    leave: list[HookSpec] = []
    for name, marks in _marked(cls).items():
        function = inspect.getattr_static(cls, name)
        label = f"{cls.__name__}.{name}"
        signature = _without_self(label, function)
        is_async, is_generator = _nature(function)
        if marks.method:
            methods[name] = MethodSpec(name, is_async, is_generator, marks.batch, signature)
            _check_method(label, methods[name])
        elif marks.batch is not None:
            raise InvalidDefinition(f"{label} is batched but not a method: write @gw.method() above @gw.batched(...)")
        if marks.asgi:
            _check_asgi(label, signature, is_generator, [m.name for m in methods.values() if m.asgi])
            methods[name] = MethodSpec(name, True, True, None, _ASGI_SIGNATURE, asgi=True)
        if marks.enter or marks.exit:
            _check_hook(label, "on_enter" if marks.enter else "on_exit", signature, is_generator)
        if marks.enter:
            enter.append(HookSpec(name, is_async))
        if marks.exit:
            leave.append(HookSpec(name, is_async))
    return Functions(methods, tuple(enter), tuple(reversed(leave)))


def _marked(cls: type) -> dict[str, FunctionMarks]:
    found: dict[str, FunctionMarks] = {}
    for base in reversed(cls.__mro__):
        for name, value in sorted(vars(base).items(), key=_order_of_definition):
            if isinstance(value, (staticmethod, classmethod, property)):
                _refuse_wrapped_marks(f"{base.__name__}.{name}", value)
                found.pop(name, None)
            elif not (callable(value) and hasattr(value, "__get__")):
                found.pop(name, None)
            elif (marks := marks_of(value)) is not None:
                found[name] = marks
    return found


def _order_of_definition(item: tuple[str, Any]) -> int:
    marks = marks_of(item[1])
    return 0 if marks is None else marks.order


def _refuse_wrapped_marks(label: str, value: Any) -> None:
    inner = value.fget if isinstance(value, property) else value.__func__
    if marks_of(inner) is not None:
        kind = type(value).__name__
        raise InvalidDefinition(
            f"{label}: @{kind} and a gworker decorator cannot be on one function: methods and hooks are plain "
            f"functions that take self; remove @{kind}"
        )


def _without_self(label: str, function: Any) -> inspect.Signature:
    name = label.rpartition(".")[2]
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise InvalidDefinition(
            f"{label} has no signature that Python can tell ({error}): write def {name}(self, ...) that calls it"
        ) from error
    params = list(signature.parameters.values())
    if params and params[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return signature
    if not params or params[0].kind not in (_POSITIONAL_OR_KEYWORD, _POSITIONAL_ONLY):
        raise InvalidDefinition(f"{label} takes no self: write def {name}(self, ...)")
    return signature.replace(parameters=params[1:])


def _nature(function: Any) -> tuple[bool, bool]:
    """Whether it is asynchronous and whether a generator. A plain wrapper around one returns what that returns."""
    for layer in dict.fromkeys((function, inspect.unwrap(function))):
        if inspect.isasyncgenfunction(layer):
            return True, True
        if inspect.iscoroutinefunction(layer):
            return True, False
        if inspect.isgeneratorfunction(layer):
            return False, True
    return False, False


def _check_hook(label: str, kind: str, signature: inspect.Signature, is_generator: bool) -> None:
    name = label.rpartition(".")[2]
    required = [p.name for p in _required(signature)]
    if required:
        raise InvalidDefinition(
            f"{label} is an @gw.{kind}() hook and takes arguments ({', '.join(required)}), but nobody passes any: "
            f"write def {name}(self), and read values that callers choose from gw.parameter()"
        )
    if is_generator:
        raise InvalidDefinition(
            f"{label} is an @gw.{kind}() hook and contains yield, so calling it would run nothing: split it into an "
            "@gw.on_enter() and an @gw.on_exit() function"
        )


def _check_asgi(label: str, signature: inspect.Signature, is_generator: bool, others: list[str]) -> None:
    name = label.rpartition(".")[2]
    required = [p.name for p in _required(signature)]
    if required:
        raise InvalidDefinition(
            f"{label} is under @gw.asgi_app() and takes arguments ({', '.join(required)}), but nobody passes any: "
            f"write def {name}(self), and return the application"
        )
    if is_generator:
        raise InvalidDefinition(
            f"{label} is under @gw.asgi_app() and contains yield: write def {name}(self) that returns the application; "
            "what must be closed at the end goes into its lifespan, or into @gw.on_exit()"
        )
    if others:
        raise InvalidDefinition(
            f"{label}: {others[0]} is under @gw.asgi_app() already, and a class has one application: mount one in the "
            "other"
        )


def _required(signature: inspect.Signature) -> Iterator[inspect.Parameter]:
    return (p for p in signature.parameters.values() if p.default is p.empty and p.kind not in _VARIABLE)


def _check_method(label: str, method: MethodSpec) -> None:
    if method.name.startswith("__") and method.name.endswith("__"):
        raise InvalidDefinition(
            f"{label}: a special method cannot be called by name: write @gw.method() on a function with a name of its "
            f"own, for example def {method.name.strip('_') or 'run'}(self, ...)"
        )
    if method.batch is None:
        return
    if method.is_generator:
        raise InvalidDefinition(
            f"{label} is batched and a generator: a batch has one result for each input, not a stream. Return a list, "
            "or remove @gw.batched"
        )
    params = list(method.signature.parameters.values())
    for param in params:
        if param.kind in _VARIABLE or param.kind is _POSITIONAL_ONLY:
            stars = {param.VAR_POSITIONAL.value: "*", param.VAR_KEYWORD.value: "**"}.get(param.kind.value, "")
            what = "positional-only" if not stars else "of variable number"
            raise InvalidDefinition(
                f"{label} is batched and its argument {stars}{param.name} is {what}: a batched method receives each "
                f"argument as a list, by name. Write def {method.name}(self, {param.name}: list[...])"
            )
        if param.default is param.empty and param.annotation in _SCALARS:
            kind = getattr(param.annotation, "__name__", param.annotation)
            raise InvalidDefinition(
                f"{label} is batched and its argument {param.name} is annotated {kind}, but it receives a list with "
                f"one {kind} for each input: write {param.name}: list[{kind}]"
            )
    if not params:
        raise InvalidDefinition(
            f"{label} is batched and takes no arguments, so a batch would be nothing: write "
            f"def {method.name}(self, items: list[...]), or remove @gw.batched"
        )
    _check_weight(label, method)


_SCALARS = frozenset(("str", "bytes", "int", "float", "bool", str, bytes, int, float, bool))


def _check_weight(label: str, method: MethodSpec) -> None:
    assert method.batch is not None
    weight = method.batch.weight
    if weight is None:
        return
    names = list(method.signature.parameters)
    try:
        signature = inspect.signature(weight)
    except (TypeError, ValueError):  # some builtins do not tell
        return
    try:
        signature.bind(*names)
    except TypeError as error:
        raise InvalidDefinition(
            f"{label}: weight={checks.shown(weight)} cannot be called with the arguments of one input ({error}): write "
            f"for example weight=lambda {', '.join(names)}: len({names[0]})"
        ) from None
