"""A text that is the same for equal values in every process, and different for 1, 1.0 and True.

Parameter values are told apart by it: equal ones share batches and pools.
"""

from __future__ import annotations

import hashlib
import sys
import types
from typing import Any

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def digest(value: Any) -> str:
    """16 hexadecimal digits that stand for `value`."""
    return hashlib.blake2b(fingerprint(value).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def fingerprint(value: Any) -> str:
    """The canonical text of `value`. Raises what pickling it raises, where that is the only way to look into it."""
    return _text(value, ())


def _text(value: Any, inside: tuple[int, ...]) -> str:
    kind = type(value)
    if kind in _PLAIN:
        return f"{kind.__name__}:{value!r}"
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return _importable(value)
    if id(value) in inside:
        return f"^{len(inside) - inside.index(id(value))}"
    inside = (*inside, id(value))
    if kind in (list, tuple):
        return f"{kind.__name__}({','.join(_text(v, inside) for v in value)})"
    if kind in (set, frozenset):
        return f"{kind.__name__}({','.join(sorted(_text(v, inside) for v in value))})"
    if kind in (dict, types.MappingProxyType):
        return f"dict({','.join(sorted(f'{_text(k, inside)}={_text(v, inside)}' for k, v in value.items()))})"
    if hasattr(kind, "__pydantic_fields__"):
        # Not by its reduction: that remembers which fields were set explicitly.
        parts = (value.__dict__, value.__pydantic_extra__, value.__pydantic_private__)
        return f"{_path(kind)}({','.join(_text(part, inside) for part in parts)})"
    return _reduced(value, inside)


def _reduced(value: Any, inside: tuple[int, ...]) -> str:
    """By what pickle would write: the function that makes the object again, and its arguments."""
    reduction = value.__reduce_ex__(4)
    if isinstance(reduction, str):
        return f"{_path(type(value))}.{reduction}"
    make, arguments, *rest = reduction
    # State, then the items of list-like and dict-like objects.
    rest = [list(part) if hasattr(part, "__next__") else part for part in rest]
    return f"{_path(type(value))}({_text(make, inside)},{_text(tuple(arguments), inside)},{_text(rest, inside)})"


def _importable(value: Any) -> str:
    """A class or function by its name, if that name leads to it; else by its code."""
    found: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is value:
        return _path(value)
    import cloudpickle  # here, because only functions without a name need it

    return f"{_path(value)}#{hashlib.blake2b(cloudpickle.dumps(value), digest_size=8).hexdigest()}"


def _path(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
