"""The arguments of calls: from options, and from lines of JSON, one call each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gworker.cli.exits import Failed
from gworker.cli.target import near

if TYPE_CHECKING:
    from gworker.cli.arguments import Argument
    from gworker.functions import MethodSpec


def call_arguments(method: MethodSpec, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
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


def read_lines(
    lines: Iterable[str], source: str, takes: Mapping[str, Argument], fixed: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The arguments by name of one call for each line, with where it stands, for messages; empty lines are none.

    `takes` are the arguments that lines may give, `fixed` the values that options gave. Raises Failed for a line that
    cannot be a call.
    """
    free = [name for name in takes if name not in fixed]
    if not free:
        raise Failed(f"every argument was given by an option: nothing is left to read from {source}")
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"line {number} of {source}"
            yield where, {**fixed, **_by_name(where, line, free, takes)}


def _by_name(where: str, line: str, free: Sequence[str], takes: Mapping[str, Argument]) -> dict[str, Any]:
    """A line is an object with the arguments by name; where one argument is left, it may be the bare value."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise Failed(
            f'{where} is not JSON ({error}): {line.strip()[:80]!r}. Write a text in quotes, as in "{free[0]}"'
        ) from None
    by_name = isinstance(value, dict) and (len(free) > 1 or set(value) == {free[0]})
    if not by_name:
        if len(free) > 1:
            names = ", ".join(f'"{name}": ...' for name in free)
            raise Failed(f"{where} is {line.strip()[:80]}; expected an object: {{{names}}}")
        value = {free[0]: value}
    for name in value:
        if name not in takes:
            raise Failed(f"{where}: there is no argument {name!r}{near(name, takes)}")
    try:
        return {name: takes[name].check(item) for name, item in value.items()}
    except Failed as error:
        raise Failed(f"{where}: {error}") from None
