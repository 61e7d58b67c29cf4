"""Results as JSON: one line for a program, laid out for a person at a terminal."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from gworker.cli.exits import Code, Failed

# Where results go. Everything else, prints of user code among it, goes to standard error: see `reserve_stdout`.
_results: TextIO | None = None


def reserve_stdout() -> None:
    """Keep standard output for results: what modules and workers print goes to standard error from now on."""
    global _results
    if _results is None:
        _results, sys.stdout = sys.stdout, sys.stderr


def stream() -> TextIO:
    """Where results go."""
    return _results or sys.stdout


def emit(text: str) -> None:
    """One line of results."""
    stream().write(text + "\n")
    stream().flush()


def at_terminal() -> bool:
    """Whether a person reads the results."""
    return stream().isatty()


def show(value: Any, *, as_json: bool) -> None:
    """Print one result: JSON on one line, or laid out in colours where a person reads it."""
    if as_json or not at_terminal():
        emit(to_json(value))
        return
    from rich.console import Console
    from rich.pretty import Pretty

    console = Console(file=stream())
    try:
        console.print_json(to_json(value), ensure_ascii=False)
    except Failed:  # a person can read what JSON cannot hold
        console.print(Pretty(value))


def to_json(value: Any) -> str:
    """A result as JSON on one line, as the HTTP gateway writes it. Raises Failed for what JSON cannot hold."""
    from gworker.http import values
    from gworker.http.problems import Problem

    try:
        return values.to_json(value).decode()
    except Problem as problem:
        raise Failed(f"{problem.title}: {problem.detail}", Code.FAILED) from None


def data(value: Any) -> str:
    """What a command has to tell a program, as JSON on one line: dataclasses, dates, plain data."""
    from pydantic_core import to_json as plain

    return plain(value, inf_nan_mode="null").decode()
