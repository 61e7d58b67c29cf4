"""Checks of what users write: numbers, names, choices.

Every message says what was given, what was expected and what to write instead.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

from gworker.errors import InvalidDefinition


def shown(value: object, limit: int = 80) -> str:
    """`repr(value)`, shortened, and safe from a `__repr__` that raises."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence, after a space, that names the nearest of the known names, or lists them if none is near."""
    import difflib  # a worker seldom needs it, and takes a moment less to start

    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(names)}." if names else ""


def whole(where: str, name: str, value: Any, *, least: int = 0, example: int | None = None) -> int:
    """`value` as an int that is at least `least`; bools, floats and texts are refused."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        write = example if example is not None else max(least, 1)
        raise InvalidDefinition(
            f"{where}: {name}={shown(value)} ({type(value).__name__}) was given; expected a whole number of at least "
            f"{least}: write for example {name}={write}"
        )
    return int(value)


def number(
    where: str, name: str, value: Any, *, least: float = 0.0, above: bool = False, example: float = 10, unit: str = ""
) -> float:
    """`value` as a finite float that is at least `least`, or greater with `above`; bools and texts are refused."""
    valid = not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)
    if not valid or value < least or (above and value <= least):
        bound = f"greater than {least:g}" if above else f"of at least {least:g}"
        raise InvalidDefinition(
            f"{where}: {name}={shown(value)} ({type(value).__name__}) was given; expected a finite number "
            f"{bound}{f' ({unit})' if unit else ''}: write for example {name}={example:g}"
        )
    return float(value)


def choice(where: str, name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """`value`, which must be one of the allowed texts."""
    if not isinstance(value, str) or value not in allowed:
        options = " or ".join(f'{name}="{text}"' for text in allowed)
        hint = nearest(value, allowed) if isinstance(value, str) else ""
        raise InvalidDefinition(f"{where}: {name}={shown(value)} was given; write {options}.{hint}")
    return value
