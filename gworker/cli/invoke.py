"""`gworker run` and `gworker call`: one call, a stream, or a call for each line of standard input."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gworker.cli import output
from gworker.cli.arguments import Argument, arguments_of
from gworker.cli.exits import Code, Failed, described, say
from gworker.cli.options import Given, parse
from gworker.cli.target import load, method_of, near

if TYPE_CHECKING:
    from gworker.functions import MethodSpec
    from gworker.handle import Cls


def run(target: str, rest: Sequence[str], before: Mapping[str, Any]) -> Code:
    """Run a method of a class in a file: its app starts, serves this call, and is drained."""
    output.reserve_stdout()
    loaded = load(target)
    if loaded.cls is None or loaded.method is None:
        classes = [loaded.cls] if loaded.cls is not None else loaded.app.classes.values()
        raise Failed(f"{target} names no method; say which one:\n{_choices(loaded.target.source, '::', classes)}")
    prog = f"gworker run {target}"
    given = _given(prog, loaded.cls, loaded.method, rest, before)
    try:
        return _perform(loaded.cls, loaded.method, given)
    finally:
        loaded.app.stop()


def call(app_name: str, name: str, rest: Sequence[str], before: Mapping[str, Any]) -> Code:
    """Call a method of a deployed class."""
    from gworker.cli.cluster import deployed_class

    output.reserve_stdout()
    class_name, _, method_name = name.partition(".")
    cls = deployed_class(app_name, class_name)
    method = method_of(cls, method_name)
    if method is None:
        raise Failed(f"{name} names no method; say which one:\n{_choices(app_name, ' ', [cls])}")
    return _perform(cls, method, _given(f"gworker call {app_name} {name}", cls, method, rest, before))


def _choices(source: str, separator: str, classes: Iterable[Cls]) -> str:
    return "\n".join(
        f"  {source}{separator}{cls.name}.{method}" for cls in classes for method in cls.spec.methods.values()
    )


def _given(prog: str, cls: Cls, method: MethodSpec, rest: Sequence[str], before: Mapping[str, Any]) -> Given:
    function = getattr(cls.user_cls, method.name, None)
    about = "" if function is None else (inspect.getdoc(function) or "").partition("\n")[0]
    given = parse(arguments_of(cls, method), rest, prog=prog, about=about, method=method, before=before)
    if given.stdin and method.is_generator:
        raise Failed(f"{cls.name}.{method.name} is a generator: it cannot be mapped over standard input")
    return given


def _perform(cls: Cls, method: MethodSpec, given: Given) -> Code:
    handle = cls(**given.parameters)
    bound = getattr(handle, method.name).with_options(deadline_s=given.deadline_s)
    if given.stdin:
        return _map(bound, arguments_of(cls, method), method, given)
    args, kwargs = _call_arguments(method, given.values)
    if method.is_generator:
        for item in bound.stream(*args, **kwargs):
            output.emit(output.to_json(item))
    else:
        output.show(bound.remote(*args, **kwargs), as_json=given.as_json)
    return Code.OK


def _call_arguments(method: MethodSpec, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The values as a call gives them: positional-only ones, *args and **kwargs in their places."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    spread = any(p.kind is p.VAR_POSITIONAL and values.get(p.name) for p in method.signature.parameters.values())
    for p in method.signature.parameters.values():
        if p.name not in values:
            continue
        if p.kind is p.VAR_POSITIONAL:
            args += values[p.name]
        elif p.kind is p.VAR_KEYWORD:
            kwargs |= values[p.name]
        elif p.kind is p.POSITIONAL_ONLY or (spread and p.kind is p.POSITIONAL_OR_KEYWORD):
            args.append(values[p.name])
        else:
            kwargs[p.name] = values[p.name]
    return tuple(args), kwargs


# --- standard input ----------------------------------------------------------------------------------------------


def _map(bound: Any, arguments: Sequence[Argument], method: MethodSpec, given: Given) -> Code:
    """A line of JSON in, a line of JSON out, in order. What fails is a line with "error", and the exit code is 1."""
    takes = {a.name: a for a in arguments if a.kind == "argument" and not a.star}
    failed = 0
    for result in bound.starmap(_inputs(sys.stdin, takes, method, given.values), return_exceptions=True, progress=True):
        if isinstance(result, Exception):
            failed += 1
            if failed == 1:
                say(described(result))
            output.emit(output.to_json({"error": {"type": type(result).__name__, "message": str(result)}}))
        else:
            output.emit(output.to_json(result))
    if failed:
        say(f'{failed} of the calls failed: their lines hold "error"')
    return Code.FAILED if failed else Code.OK


def _inputs(
    lines: Iterable[str], takes: Mapping[str, Argument], method: MethodSpec, fixed: Mapping[str, Any]
) -> Iterator[tuple[Any, ...]]:
    """The arguments of one call for each line. Raises Failed for a line that cannot be one."""
    free = [name for name in takes if name not in fixed]
    if not free:
        raise Failed("every argument was given by an option: nothing is left to read from standard input")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _positional(method, {**fixed, **_by_name(number, line, free, takes)}, number)


def _by_name(number: int, line: str, free: Sequence[str], takes: Mapping[str, Argument]) -> dict[str, Any]:
    """A line is an object with the arguments by name; where one argument is left, it may be the bare value."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise Failed(
            f"line {number} of standard input is not JSON ({error}): {line.strip()[:80]!r}. Write a text in quotes, "
            f'as in "{free[0]}"'
        ) from None
    by_name = isinstance(value, dict) and (len(free) > 1 or set(value) == {free[0]})
    if not by_name:
        if len(free) > 1:
            names = ", ".join(f'"{name}": ...' for name in free)
            raise Failed(f"line {number} of standard input is {line.strip()[:80]}; expected an object: {{{names}}}")
        value = {free[0]: value}
    for name in value:
        if name not in takes:
            raise Failed(f"line {number} of standard input: there is no argument {name!r}{near(name, takes)}")
    try:
        return {name: takes[name].check(item) for name, item in value.items()}
    except Failed as error:
        raise Failed(f"line {number} of standard input: {error}") from None


def _positional(method: MethodSpec, values: Mapping[str, Any], number: int) -> tuple[Any, ...]:
    """The values in the order of the signature, defaults filled in: `.starmap` takes tuples."""
    args = []
    for p in method.signature.parameters.values():
        if p.kind is p.KEYWORD_ONLY and p.name in values:
            raise Failed(f"the argument {p.name!r} is given by name only, and a line cannot give it")
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.KEYWORD_ONLY):
            continue
        if p.name not in values and p.default is p.empty:
            raise Failed(f"line {number} of standard input lacks {p.name!r}")
        args.append(values.get(p.name, p.default))
    return tuple(args)
