"""Results as JSON: one line for a program, laid out for a person at a terminal."""

from __future__ import annotations

import base64
import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any, TextIO

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
    """Print one result: JSON on one line, or in colours where a person reads it."""
    if as_json or not at_terminal():
        emit(to_json(value))
        return
    from rich.console import Console

    Console(file=stream()).print_json(to_json(value), ensure_ascii=False)


def to_json(value: Any) -> str:
    """A value as JSON on one line.

    Arrays and tensors become lists, bytes base64, enums their values, dataclasses and pydantic models objects, sets
    lists, and what JSON has no word for (NaN, infinities) null. Anything else becomes its `str`.

    >>> to_json({"a": (1, 2.5, None), "b": b"hi"})
    '{"a": [1, 2.5, null], "b": "aGk="}'
    """
    return json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False)


def jsonable(value: Any) -> Any:  # noqa: C901  # one case for each kind of value
    """The value in JSON's own types."""
    import enum

    if isinstance(value, enum.Enum):
        return jsonable(value.value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {_key(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):
        return jsonable(dump())
    if callable(tolist := getattr(value, "tolist", None)):  # numpy arrays and scalars, torch tensors
        return jsonable(tolist())
    if isinstance(value, BaseException):
        return {"type": type(value).__name__, "message": str(value)}
    try:
        from pydantic_core import to_jsonable_python

        return to_jsonable_python(value)  # dates, UUIDs, paths, decimals
    except Exception:
        return str(value)


def _key(key: Any) -> str:
    converted = jsonable(key)
    return converted if isinstance(converted, str) else json.dumps(converted)
