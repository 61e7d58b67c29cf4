"""Values in JSON, in both directions: numbers, arrays, tensors, bytes.

| Python | JSON out | JSON in, where the annotation says so |
|---|---|---|
| `bytes` | `{"base64": "…"}` | the same |
| array, tensor | nested lists; with `?arrays=base64` `{"base64": …, "dtype": …, "shape": …}` | either |
| NaN, infinity | `null` | `null` in a float array is NaN; `"NaN"` and `"Infinity"` for a float |
"""

from __future__ import annotations

import base64
import binascii
import math
import sys
import types
import typing
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticSerializationError
from pydantic_core import to_json as _to_json

from gworker.http.problems import Problem

Arrays = Literal["lists", "base64"]

_BYTES_SCHEMA = {
    "type": "object",
    "title": "Bytes",
    "description": "bytes, as base64",
    "properties": {"base64": {"type": "string", "contentEncoding": "base64"}},
    "required": ["base64"],
    "additionalProperties": False,
    "examples": [{"base64": "aGVsbG8="}],
}
_ARRAY_SCHEMA = {
    "title": "Array",
    "description": "an array: nested lists of numbers, or its bytes in C order as base64",
    "anyOf": [
        {"type": "array", "items": {}},
        {
            "type": "object",
            "properties": {
                "base64": {"type": "string", "contentEncoding": "base64"},
                "dtype": {"type": "string", "examples": ["float32"]},
                "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            },
            "required": ["base64", "dtype", "shape"],
            "additionalProperties": False,
        },
    ],
    "examples": [[[0.5, 1.5], [2.5, 3.5]]],
}

# --- out ---------------------------------------------------------------------------------------------------------

_LEAVES = frozenset((str, int, float, bool, type(None)))


def to_json(value: Any, arrays: Arrays = "lists") -> bytes:
    """A result as JSON that every parser accepts. Raises Problem for what JSON cannot hold."""
    fallback = _array_envelope if arrays == "base64" else _array_lists
    try:
        return _to_json(
            value if type(value) in _LEAVES else _with_envelopes(value),
            inf_nan_mode="null",
            bytes_mode="base64",
            fallback=fallback,
        )
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise Problem(
            500,
            "result-not-json",
            "The result cannot be written as JSON",
            f"a value of type {type(value).__qualname__}: {error}. Return plain data, pydantic models, dataclasses, "
            "arrays, tensors or bytes",
        ) from error


def _with_envelopes(value: Any) -> Any:
    """`value` with each `bytes` in its lists and dicts in an envelope; the same object where there is none."""
    kind = type(value)
    if kind in (bytes, bytearray, memoryview):
        return {"base64": base64.b64encode(value).decode()}
    if kind in (list, tuple):
        if all(type(item) in _LEAVES for item in value):
            return value
        return [_with_envelopes(item) for item in value]
    if kind is dict:
        return {key: _with_envelopes(item) for key, item in value.items()}
    return value


def _array_lists(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return _without_complex(value).tolist()
    raise TypeError(f"JSON knows nothing like a {type(value).__qualname__}")


def _array_envelope(value: Any) -> Any:
    numpy = _numpy()
    if not hasattr(value, "tolist"):
        raise TypeError(f"JSON knows nothing like a {type(value).__qualname__}")
    if isinstance(value, numpy.generic):
        return _without_complex(value).tolist()
    array = numpy.ascontiguousarray(value if isinstance(value, numpy.ndarray) else _tensor_to_array(value))
    if array.dtype.hasobject:
        raise TypeError("an array of Python objects has no bytes of its own")
    shape = list(getattr(value, "shape", array.shape))  # ascontiguousarray makes (1,) of ()
    return {"base64": base64.b64encode(array.tobytes()).decode(), "dtype": array.dtype.name, "shape": shape}


def _without_complex(value: Any) -> Any:
    if getattr(getattr(value, "dtype", None), "kind", "") == "c" or str(getattr(value, "dtype", "")).startswith(
        "torch.complex"
    ):
        raise TypeError("JSON has no complex numbers: return the real and imaginary parts, or ask for ?arrays=base64")
    return value


def _tensor_to_array(tensor: Any) -> Any:
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) in ("torch.bfloat16", "torch.float8_e4m3fn", "torch.float8_e5m2"):
        tensor = tensor.float()  # numpy has no such type
    return tensor.resolve_conj().resolve_neg().numpy()


# --- in ----------------------------------------------------------------------------------------------------------


def json_type(annotation: Any) -> Any:
    """`annotation` with bytes, arrays and tensors in it replaced by what reads them from JSON."""
    if annotation in (bytes, bytearray):
        return Annotated[Any, PlainValidator(partial(_read_bytes, annotation)), WithJsonSchema(_BYTES_SCHEMA)]
    reader = _array_reader(annotation)
    if reader is not None:
        return Annotated[Any, PlainValidator(reader), WithJsonSchema(_ARRAY_SCHEMA)]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        annotated: Any = Annotated
        inner = (json_type(args[0]), *annotation.__metadata__)
        return annotated[inner]
    if origin in (Union, types.UnionType):
        return Union[tuple(json_type(arg) for arg in args)]  # noqa: UP007 - made from a tuple
    if origin is not None and args and origin not in (Literal, typing.Callable, Callable):
        rewritten = tuple(arg if arg is Ellipsis or isinstance(arg, list) else json_type(arg) for arg in args)
        return annotation if rewritten == args else origin[rewritten]
    return annotation


def _array_reader(annotation: Any) -> Callable[[Any], Any] | None:
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    kind = get_origin(annotation) or annotation
    if numpy is not None and kind is numpy.ndarray:
        return partial(_read_array, _dtype_of(annotation))
    if torch is not None and kind is torch.Tensor:
        return _read_tensor
    return None


def _dtype_of(annotation: Any) -> Any:
    """The element type in `NDArray[np.float32]`, None where none is said."""
    for arg in get_args(annotation)[1:]:
        for element in get_args(arg):
            try:
                return _numpy().dtype(element)
            except TypeError:
                return None
    return None


def _read_bytes(kind: type, value: Any) -> Any:
    return kind(_decode(value, {"base64"}, 'bytes are written {"base64": "aGVsbG8="}'))


def _decode(value: Any, names: set[str], hint: str) -> bytes:
    if not isinstance(value, dict) or set(value) != names or not isinstance(value["base64"], str):
        raise ValueError(hint)
    try:
        return base64.b64decode(value["base64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"this is no base64 ({error}); {hint}") from None


def _read_array(dtype: Any, value: Any) -> Any:
    numpy = _numpy()
    if isinstance(value, dict):
        array = _from_envelope(value)
        return array if dtype is None else array.astype(dtype, copy=False)
    if not isinstance(value, (list, int, float)):
        raise ValueError("expected nested lists of numbers")
    try:
        array = numpy.array(value, dtype=dtype)
        if array.dtype.kind == "O":  # null among numbers is NaN
            array = numpy.array(value, dtype=float)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"expected nested lists of numbers, all of one length: {error}") from None
    if array.dtype.kind not in "biuf":
        raise ValueError("expected nested lists of numbers")
    return array


def _from_envelope(value: dict[str, Any]) -> Any:
    numpy = _numpy()
    hint = 'an array is written as nested lists, or {"base64": "…", "dtype": "float32", "shape": [2, 3]}'
    raw = _decode(value, {"base64", "dtype", "shape"}, hint)
    name, shape = value["dtype"], value["shape"]
    try:
        dtype = numpy.dtype(name if isinstance(name, str) else "")
    except TypeError:
        raise ValueError(f"dtype {name!r} is unknown; {hint}") from None
    if dtype.kind not in "biufc":
        raise ValueError(f"dtype {name!r} is no type of numbers; {hint}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"shape {shape!r} is no list of sizes; {hint}")
    if len(shape) > 32 or math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes do not make an array of shape {shape} and dtype {name}")
    return numpy.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


def _read_tensor(value: Any) -> Any:
    import torch

    array = _read_array(None, value)
    tensor = torch.from_numpy(array)
    # What torch itself makes of a list of Python numbers.
    return (
        tensor.to(torch.get_default_dtype()) if isinstance(value, (list, float)) and array.dtype.kind == "f" else tensor
    )


def _numpy() -> Any:
    import numpy as np

    return np
