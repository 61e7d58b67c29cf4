"""`gworker run` and `gworker call`: one call, a stream, or a call for each line of standard input."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gworker.cli import output
from gworker.cli.arguments import Argument, arguments_of
from gworker.cli.cluster import deployed_class, drain
from gworker.cli.exits import Code, Failed, described, say
from gworker.cli.inputs import call_arguments, read_lines
from gworker.cli.options import Given, parse
from gworker.cli.target import choices, load_method, method_of

if TYPE_CHECKING:
    from gworker.functions import MethodSpec
    from gworker.handle import Cls

_STDIN = "standard input"


def run(target: str, rest: Sequence[str], before: Mapping[str, Any]) -> Code:
    """Run a method of a class in a file: its app starts, serves this call, and is drained."""
    output.reserve_stdout()
    app, cls, method = load_method(target)
    given = _given(f"gworker run {target}", cls, method, rest, before)
    try:
        return _perform(cls, method, given)
    finally:
        drain(app)


def call(app_name: str, name: str, rest: Sequence[str], before: Mapping[str, Any]) -> Code:
    """Call a method of a deployed class."""
    output.reserve_stdout()
    class_name, _, method_name = name.partition(".")
    cls = deployed_class(app_name, class_name)
    method = method_of(cls, method_name)
    if method is None:
        raise Failed(f"{name} names no method; say which one:\n{choices(app_name, ' ', [cls])}")
    return _perform(cls, method, _given(f"gworker call {app_name} {name}", cls, method, rest, before))


def _given(prog: str, cls: Cls, method: MethodSpec, rest: Sequence[str], before: Mapping[str, Any]) -> Given:
    given = parse(arguments_of(cls, method), rest, prog=prog, about=about(cls, method), method=method, before=before)
    if given.stdin and method.is_generator:
        raise Failed(f"{cls.name}.{method.name} is a generator: it cannot be mapped over standard input")
    return given


def about(cls: Cls, method: MethodSpec) -> str:
    """The first line of the method's docstring, where this process has its class."""
    function = getattr(cls.user_cls, method.name, None)
    return "" if function is None else (inspect.getdoc(function) or "").partition("\n")[0]


def _perform(cls: Cls, method: MethodSpec, given: Given) -> Code:
    handle = cls(**given.parameters)
    bound = getattr(handle, method.name).with_options(deadline_s=given.deadline_s)
    if given.stdin:
        return _map(bound, arguments_of(cls, method), method, given)
    args, kwargs = call_arguments(method, given.values)
    if method.is_generator:
        for item in bound.stream(*args, **kwargs):
            output.emit(output.to_json(item))
    else:
        output.show(bound.remote(*args, **kwargs), as_json=given.as_json)
    return Code.OK


# --- standard input ----------------------------------------------------------------------------------------------


def _map(bound: Any, arguments: Sequence[Argument], method: MethodSpec, given: Given) -> Code:
    """A line of JSON in, a line of JSON out, in order. What fails is a line with "error", and the exit code is 1."""
    takes = {a.name: a for a in arguments if a.kind == "argument" and not a.star}
    failed = 0
    inputs = (
        _positional(method, values, where) for where, values in read_lines(sys.stdin, _STDIN, takes, given.values)
    )
    for result in bound.starmap(inputs, return_exceptions=True, progress=True):
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


def _positional(method: MethodSpec, values: Mapping[str, Any], where: str) -> tuple[Any, ...]:
    """The values in the order of the signature, defaults filled in: `.starmap` takes tuples."""
    args = []
    for p in method.signature.parameters.values():
        if p.kind is p.KEYWORD_ONLY and p.name in values:
            raise Failed(f"the argument {p.name!r} is given by name only, and a line cannot give it")
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.KEYWORD_ONLY):
            continue
        if p.name not in values and p.default is p.empty:
            raise Failed(f"{where} lacks {p.name!r}")
        args.append(values.get(p.name, p.default))
    return tuple(args)
