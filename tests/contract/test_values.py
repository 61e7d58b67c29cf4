"""What travels: arrays and tensors that belong to their receivers, and classes that are the same on both sides."""

from __future__ import annotations

import dataclasses
import enum
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import ray

import gworker as gw
from tests.conftest import Gate
from tests.contract import importable

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("module_app")]

app = gw.App("contract-values")


class Person(pydantic.BaseModel):
    """A model that travels."""

    name: str
    age: int = 0


@app.cls(max_workers=1, cpu=0.1)
@gw.concurrent(max_inputs=8)
class Post:
    @gw.on_enter()
    def setup(self) -> None:
        self.kept: Any = None

    @gw.method()
    def echo(self, value: Any) -> Any:
        return value

    @gw.method()
    async def echo_async(self, value: Any) -> Any:
        return value

    @gw.method()
    def describe(self, value: Any) -> tuple[str, Any]:
        return f"{type(value).__module__}.{type(value).__qualname__}", value

    @gw.method()
    def writable(self, array: Any) -> bool:
        """Writes into what it was given."""
        array[...] = 7
        return bool((array == 7).all())

    @gw.method()
    def keep(self, array: Any) -> None:
        self.kept = array

    @gw.method()
    def kept_sum(self) -> int:
        return int(self.kept.sum())

    @gw.method()
    def stream(self, count: int) -> Iterator[Any]:
        for i in range(count):
            yield np.full(50_000, i)

    @gw.method()
    def sum_when_open(self, gate: Gate, array: Any) -> int:
        gate.wait()
        return int(array.sum())

    @gw.method()
    def call(self, function: Any, *args: Any) -> Any:
        return function(*args)

    @gw.method()
    @gw.batched(max_batch_size=8, wait_ms=200)
    def as_tensor(self, items: list[int]) -> Any:
        import torch

        return torch.tensor(items) * 2

    @gw.method()
    @gw.batched(max_batch_size=8, wait_ms=200)
    def as_rows(self, items: list[int]) -> Any:
        import torch

        return torch.tensor(items, dtype=torch.bfloat16).reshape(-1, 1).expand(-1, 3000)


@app.cls(max_workers=1, cpu=0.1)
class Reuser:
    """Returns the same memory every time, as models with an output buffer do."""

    @gw.on_enter()
    def setup(self) -> None:
        self.buffer = np.zeros(200_000, dtype=np.int64)

    @gw.method()
    def fill(self, value: int) -> Any:
        self.buffer[:] = value
        return self.buffer

    @gw.method()
    @gw.batched(max_batch_size=4)
    def rows(self, values: list[int]) -> Any:
        out = self.buffer.reshape(4, -1)[: len(values)]
        out[:] = np.array(values)[:, None]
        return out


# --- arrays ----------------------------------------------------------------------------------------------------------

ARRAYS = {
    "small": np.arange(10),
    "large": np.arange(100_000, dtype=np.float64),
    "matrix": np.arange(60_000, dtype=np.int32).reshape(200, 300),
    "fortran": np.asfortranarray(np.arange(60_000).reshape(200, 300)),
    "slice": np.arange(100_000)[::7],
    "rows": np.arange(100_000).reshape(1000, 100)[10:20],
    "transposed": np.arange(60_000).reshape(200, 300).T,
    "empty": np.empty((0, 5)),
    "scalar": np.array(3.5),
    "structured": np.array([(1, 2.0)] * 2000, dtype=[("a", "i4"), ("b", "f8")]),
    "strings": np.array(["some", "text"] * 2000),
    "objects": np.array([{"a": 1}, None, "x"], dtype=object),
    "bools": np.zeros(10_000, dtype=bool),
    "complex": np.arange(5000) * 1j,
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_comes_back_equal_writable_and_its_own(kind: str) -> None:
    array = ARRAYS[kind]
    before = array.copy()
    got = Post().echo.remote(array)
    np.testing.assert_array_equal(got, before)
    assert got.dtype == array.dtype and got.shape == array.shape
    assert got.flags.writeable
    assert not np.shares_memory(got, array)
    got[...] = got[:1] if got.size and got.ndim else got
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("size", [10, 100_000])
def test_an_array_is_writable_in_the_worker_and_the_callers_stays_as_it_was(size: int) -> None:
    array = np.zeros(size)
    assert Post().writable.remote(array)
    assert not array.any()


def test_a_read_only_array_of_the_sender_is_writable_for_the_receiver() -> None:
    array = np.zeros(100_000)
    array.setflags(write=False)
    assert Post().writable.remote(array)
    assert Post().echo.remote(array).flags.writeable


def test_what_a_worker_keeps_is_its_own_for_good() -> None:
    Post().keep.remote(np.ones(500_000, dtype=np.int64))
    for i in range(20):
        Post().echo.remote(np.full(500_000, i))
    assert Post().kept_sum.remote() == 500_000


def test_results_stay_as_they_were_while_later_ones_come() -> None:
    results = list(Post().echo.map(np.full(50_000, i) for i in range(50)))
    assert all((result == i).all() for i, result in enumerate(results))


def test_the_items_of_a_stream_are_arrays_of_the_consumer() -> None:
    items = list(Post().stream.stream(20))
    assert all(item.flags.writeable and (item == i).all() for i, item in enumerate(items))


def test_arrays_inside_other_values_are_writable_too() -> None:
    got = Post().echo.remote({"a": [np.zeros(10_000)], "b": (np.zeros(3), {"c": np.zeros((100, 100))})})
    assert got["a"][0].flags.writeable and got["b"][0].flags.writeable and got["b"][1]["c"].flags.writeable


def test_what_the_caller_does_to_an_argument_after_the_call_does_not_change_it(gate: Gate) -> None:
    array = np.ones(500_000, dtype=np.int64)
    calls = []
    for i in range(8):
        array[:] = i
        calls.append(Post().sum_when_open.spawn(gate, array))
    array[:] = 99
    gate.open()
    assert gw.gather(*calls) == [500_000 * i for i in range(8)]


def test_what_the_worker_does_to_a_result_after_returning_it_does_not_change_it() -> None:
    results = list(Reuser().fill.map(range(40)))
    assert [(int(r.min()), int(r.max())) for r in results] == [(i, i) for i in range(40)]
    rows = list(Reuser().rows.map(range(40)))
    assert [(int(r.min()), int(r.max())) for r in rows] == [(i, i) for i in range(40)]


def test_a_hundred_megabytes_there_and_back() -> None:
    array = np.arange(100 * 2**20 // 8, dtype=np.int64)
    got = Post().echo.remote(array)
    assert got.nbytes == 100 * 2**20
    assert got.flags.writeable
    np.testing.assert_array_equal(got, array)


def test_the_values_of_many_calls_at_once_do_not_mix() -> None:
    calls = [Post().echo.spawn((i, np.full(5000, i))) for i in range(200)]
    assert all(number == i and (array == i).all() for i, (number, array) in enumerate(gw.gather(*calls)))


# --- tensors ---------------------------------------------------------------------------------------------------------


def test_tensors_come_back_equal_writable_and_their_own() -> None:
    torch = pytest.importorskip("torch")
    tensors = [
        torch.arange(10),
        torch.arange(100_000, dtype=torch.float32),
        torch.arange(100_000).to(torch.bfloat16),
        torch.ones(300, 300, dtype=torch.float16).t(),
        torch.arange(60_000).reshape(200, 300)[:, ::3],
        torch.zeros(0, 5, dtype=torch.bfloat16),
        torch.tensor(3.5),
        torch.tensor(2.0, dtype=torch.bfloat16),
        torch.ones(5000, dtype=torch.bool),
        torch.ones(5000, dtype=torch.complex64).conj(),
        torch.ones(10, 10).expand(5, 10, 10),
    ]
    got = Post().echo.remote(tensors)
    for before, after in zip(tensors, got, strict=True):
        assert type(after) is torch.Tensor
        assert after.dtype == before.dtype and after.shape == before.shape
        assert torch.equal(after, before)
        after.zero_()
    assert tensors[1].sum() > 0 and tensors[2].sum() > 0
    assert Post().writable.remote(torch.zeros(100_000))
    assert Post().writable.remote(torch.zeros(100_000, dtype=torch.bfloat16))


def test_a_tensor_that_carries_a_gradient_and_a_parameter_of_a_model_arrive_as_values() -> None:
    torch = pytest.importorskip("torch")
    leaf = torch.ones(2000, requires_grad=True)
    assert torch.equal(Post().echo.remote(leaf * 2), torch.full((2000,), 2.0))
    parameter = torch.nn.Parameter(torch.ones(2000))
    assert torch.equal(Post().echo.remote(parameter), parameter)
    state = torch.nn.Linear(50, 50).state_dict()
    got = Post().echo.remote(state)
    assert all(torch.equal(got[name], state[name]) for name in state)


def test_tensors_as_results_of_a_batch() -> None:
    torch = pytest.importorskip("torch")
    assert [int(r) for r in Post().as_tensor.map(range(5))] == [0, 2, 4, 6, 8]
    rows = list(Post().as_rows.map(range(4)))
    assert all(
        row.shape == (3000,) and row.dtype == torch.bfloat16 and bool((row == i).all()) for i, row in enumerate(rows)
    )
    rows[0][:] = 9
    assert bool((rows[1] == 1).all())


# --- other values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [None, True, 0, 2**200, 1.5, float("inf"), "", "text", b"", bytes(5_000_000), (), [1, [2, (3,)]], {"a": {1, 2}}],
    ids=lambda value: type(value).__name__,
)
async def test_plain_values_come_back_equal_and_of_the_same_type(value: Any) -> None:
    got = Post().echo.remote(value)
    assert got == value and type(got) is type(value)
    assert await Post().echo_async.remote.aio(value) == value


def test_functions_and_closures_travel() -> None:
    base = 10
    assert Post().call.remote(lambda x: base + x, 5) == 15
    assert Post().echo.remote(lambda x: base * x)(2) == 20


def test_models_and_bytearrays_travel() -> None:
    kind, person = Post().describe.remote(Person(name="Ada", age=36))
    assert kind.endswith("Person")
    assert isinstance(person, Person) and person == Person(name="Ada", age=36)
    assert Post().echo.remote(bytearray(b"x" * 10_000)) == bytearray(b"x" * 10_000)


def test_an_argument_that_cannot_be_pickled_is_named_before_anything_is_sent() -> None:
    with pytest.raises(TypeError, match=r"Post\.echo.*'?value'?.*lock"):
        Post().echo.spawn(threading.Lock())
    with pytest.raises(TypeError, match=r"Post\.call.*function"):
        Post().call.spawn(function=(x for x in ()))


# --- classes ---------------------------------------------------------------------------------------------------------


def test_a_class_of_an_importable_module_is_the_same_on_both_sides() -> None:
    try:
        painted = importable.Shop().paint.remote(importable.Item("cup", importable.Colour.RED))
        assert isinstance(painted, importable.Item)
        assert painted.colour is importable.Colour.BLUE
        with pytest.raises(importable.ShopError, match="closed"):
            importable.Shop().refuse.remote()
        loaded_in, runs_in = importable.Shop().where.remote()
        assert loaded_in == runs_in != os.getpid()  # the worker imported the module
    finally:
        importable.app.stop(drain=False)


def test_a_class_made_in_a_function_is_the_same_on_both_sides(make_app: Any) -> None:
    own = make_app()

    class Colour(enum.Enum):
        RED = 1
        BLUE = 2

    class ShopError(Exception):
        pass

    @dataclasses.dataclass
    class Item:
        name: str
        colour: Colour

    @own.cls(max_workers=1, cpu=0.1)
    class Shop:
        @gw.method()
        def paint(self, item: Item) -> Item:
            assert isinstance(item, Item)
            assert item.colour is Colour.RED
            return Item(item.name, Colour.BLUE)

        @gw.method()
        def catch(self, error: Exception) -> str:
            try:
                raise error
            except ShopError:
                return "recognised"

        @gw.method()
        def refuse(self) -> None:
            raise ShopError("closed")

    painted = Shop().paint.remote(Item("cup", Colour.RED))
    assert isinstance(painted, Item) and painted.colour is Colour.BLUE
    with pytest.raises(ShopError, match="closed"):
        Shop().refuse.remote()
    assert Shop().catch.remote(ShopError()) == "recognised"


def test_a_class_of_the_main_module_is_the_same_on_both_sides() -> None:
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("main_script.py")), ray.get_runtime_context().gcs_address],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().endswith("all is well")
