"""Arrays, tensors, bytes and numbers that JSON does not know, in both directions."""

from __future__ import annotations

import base64
import json
import math
from typing import Annotated, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from gworker.http.problems import Problem
from gworker.http.values import json_type, to_json


def out(value: Any, arrays: Any = "lists") -> Any:
    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(to_json(value, arrays), parse_constant=refuse)


def read(annotation: Any, value: Any) -> Any:
    return TypeAdapter(json_type(annotation)).validate_json(json.dumps(value))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        ([1.0, math.inf, -math.inf], [1.0, None, None]),
        (b"hello", {"base64": "aGVsbG8="}),
        ({"a": [b"hello", (b"",)]}, {"a": [{"base64": "aGVsbG8="}, [{"base64": ""}]]}),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([1.5, math.nan], dtype=np.float32), [1.5, None]),
        (np.float32(0.5), 0.5),
        ({"x": np.int64(3), "y": [np.zeros((0, 2))]}, {"x": 3, "y": [[]]}),
        (np.array(["a", "b"]), ["a", "b"]),
        ({1: "one"}, {"1": "one"}),
        ({"s"}, ["s"]),
        (None, None),
    ],
)
def test_results_become_json_that_every_parser_reads(value: Any, expected: Any) -> None:
    assert out(value) == expected


def test_arrays_can_be_had_as_their_bytes() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    envelope = out({"v": array}, "base64")["v"]
    assert (envelope["dtype"], envelope["shape"]) == ("float32", [2, 3])
    assert base64.b64decode(envelope["base64"]) == array.tobytes()
    assert np.array_equal(read(np.ndarray, envelope), array)
    transposed = read(np.ndarray, out(array.T, "base64"))
    assert np.array_equal(transposed, array.T)


@pytest.mark.parametrize("value", [object(), np.array([1j]), {"a": lambda: 0}, "\ud800"])
def test_what_json_cannot_hold_is_said_plainly(value: Any) -> None:
    with pytest.raises(Problem) as raised:
        to_json(value)
    assert (raised.value.status, raised.value.code) == (500, "result-not-json")


def test_a_list_that_contains_itself_is_no_result() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(Problem):
        to_json(value)


def test_bytes_are_read_from_their_envelope_only() -> None:
    assert read(bytes, {"base64": "aGVsbG8="}) == b"hello"
    assert read(dict[str, list[bytes] | None], {"a": [{"base64": ""}], "b": None}) == {"a": [b""], "b": None}
    for bad in ("aGVsbG8=", {"base64": "%"}, {"base64": 1}, {"base64": "", "x": 1}, [1]):
        with pytest.raises(ValidationError, match="base64"):
            read(bytes, bad)


def test_arrays_are_read_from_lists_of_the_type_they_are_annotated_with() -> None:
    assert read(NDArray[np.float32], [[1, 2], [3, None]]).dtype == np.float32
    assert np.array_equal(read(np.ndarray, [1, None]), [1, math.nan], equal_nan=True)
    assert read(np.ndarray | None, None) is None
    assert read(np.ndarray, 3.5).shape == ()
    assert read(np.ndarray, []).shape == (0,)


@pytest.mark.parametrize(
    "bad",
    [
        "text",
        [["a"]],
        [[1, 2], [3]],
        [{"x": 1}],
        {"base64": "AAAA", "dtype": "float32", "shape": [1]},
        {"base64": "", "dtype": "O", "shape": [0]},
        {"base64": "", "dtype": "nonsense", "shape": [0]},
        {"base64": "", "dtype": "f4", "shape": [-1]},
        {"base64": "", "dtype": "f4", "shape": [10**30, 0, 10**30]},
        {"base64": "", "dtype": "f4"},
    ],
)
def test_what_makes_no_array_is_refused(bad: Any) -> None:
    if isinstance(bad, dict) and bad.get("shape") == [10**30, 0, 10**30]:
        with pytest.raises((ValidationError, ValueError, OverflowError)):
            read(np.ndarray, bad)
        return
    with pytest.raises(ValidationError):
        read(np.ndarray, bad)


def test_constraints_survive() -> None:
    assert read(list[Annotated[int, Field(gt=0)]], [1]) == [1]
    with pytest.raises(ValidationError):
        read(list[Annotated[int, Field(gt=0)]], [0])


@pytest.mark.slow
def test_tensors_go_both_ways() -> None:
    import torch

    assert out(torch.tensor([[1.5, math.nan]])) == [[1.5, None]]
    assert out(torch.tensor([1.5], dtype=torch.bfloat16), "base64")["dtype"] == "float32"
    given = read(torch.Tensor, [[1, 2], [3, 4]])
    assert given.dtype == torch.int64 and given.shape == (2, 2)
    assert read(torch.Tensor, [0.5]).dtype == torch.float32
