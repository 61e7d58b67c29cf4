"""What travels: arrays, tensors, large values, classes of modules, functions and `__main__`; and what cannot."""

from __future__ import annotations

import collections
import enum
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import gworker as gw
from tests.conftest import Gate

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("module_app")]

app = gw.App("contract-values")
ROOT = Path(__file__).parents[2]

# Sizes in float64: inside the pickle, out of band, and too large for Ray to send inline.
SMALL, MIDDLE, LARGE = 10, 2_000, 200_000


class Colour(enum.Enum):
    """Compared by identity."""

    RED = "red"
    BLUE = "blue"


@dataclass
class Box:
    """A dataclass of an importable module."""

    colour: Colour
    content: Any = field(default_factory=list)


class Point(NamedTuple):
    """A named tuple."""

    x: int
    y: int


class WrongColourError(ValueError):
    """An exception with state."""

    def __init__(self, box: Box) -> None:
        super().__init__(box)
        self.box = box


class Bomb:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_explode, ())


def _explode() -> None:
    raise ValueError("cannot be made again")


@app.cls(max_workers=1, cpu=0.1)
class Echo:
    """Gives values back, and looks at them."""

    @gw.on_enter()
    def prepare(self) -> None:
        self.kept: Any = None
        self.scratch = np.zeros(MIDDLE)

    @gw.method()
    def echo(self, x: Any) -> Any:
        return x

    @gw.method()
    @gw.batched(max_batch_size=8)
    def echo_batch(self, xs: list[Any]) -> list[Any]:
        return xs

    @gw.method()
    def overwrite(self, x: Any) -> Any:
        """Write to the argument, and return it."""
        x[...] = 7
        return x

    @gw.method()
    def keep(self, x: Any) -> Any:
        self.kept = x
        return x

    @gw.method()
    def what_was_kept(self) -> Any:
        return self.kept

    @gw.method()
    def reuse_scratch(self, x: float) -> Any:
        """Return the same preallocated array each time."""
        self.scratch[:] = x
        return self.scratch

    @gw.method()
    def scratch_stream(self, n: int) -> Iterator[Any]:
        for x in range(n):
            self.scratch[:] = x
            yield self.scratch

    @gw.method()
    @gw.batched(max_batch_size=4, wait_ms=5000)
    def rows(self, xs: list[Any]) -> Any:
        """One tensor for the whole batch, a row for each input."""
        return torch.stack(xs).to(torch.bfloat16) * 2

    @gw.method()
    @gw.batched(max_batch_size=4, wait_ms=5000)
    def numpy_rows(self, xs: list[Any]) -> Any:
        return np.stack(xs) * 2

    @gw.method()
    def is_red(self, box: Box) -> tuple[bool, bool]:
        return isinstance(box, Box), box.colour is Colour.RED

    @gw.method()
    def refuse(self, box: Box) -> None:
        raise WrongColourError(box)

    @gw.method()
    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    @gw.method()
    def wait_and_sum(self, gate: Gate, x: Any) -> float:
        gate.wait()
        return float(x.sum())

    @gw.method()
    def lock(self, inside: str) -> Any:
        return {"value": threading.Lock(), "list": [threading.Lock()]}[inside]

    @gw.method()
    def lock_stream(self) -> Iterator[Any]:
        yield 1
        yield threading.Lock()

    @gw.method()
    @gw.batched(max_batch_size=2, wait_ms=5000)
    def lock_for_negative(self, xs: list[int]) -> list[Any]:
        return [threading.Lock() if x < 0 else x for x in xs]

    @gw.method()
    def bomb(self) -> Bomb:
        return Bomb()

    @gw.method()
    def pid(self) -> int:
        return os.getpid()


# --- numpy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [SMALL, MIDDLE, LARGE])
@pytest.mark.parametrize("method", ["echo", "echo_batch"])
def test_arrays_come_back_equal_writable_and_independent_of_each_other(length: int, method: str) -> None:
    sent = np.arange(length, dtype=np.float64)
    calls = [getattr(Echo(), method).spawn(sent) for _ in range(2)]
    first, second = gw.gather(*calls)
    for back in (first, second):
        assert back.dtype == sent.dtype
        assert np.array_equal(back, sent)
        assert back.flags.writeable
    first[:] = -1
    assert np.array_equal(second, np.arange(length))
    assert np.array_equal(sent, np.arange(length))


@pytest.mark.parametrize("length", [SMALL, MIDDLE, LARGE])
def test_a_worker_may_write_to_its_argument_and_the_caller_does_not_see_it(length: int) -> None:
    sent = np.zeros(length)
    assert np.array_equal(Echo().overwrite.remote(sent), np.full(length, 7.0))
    assert not sent.any()


@pytest.mark.parametrize("length", [SMALL, MIDDLE, LARGE])
def test_what_the_worker_keeps_is_not_what_the_caller_got(length: int) -> None:
    got = Echo().keep.remote(np.zeros(length))
    got[:] = 5
    assert not Echo().what_was_kept.remote().any()


@pytest.mark.parametrize("length", [SMALL, MIDDLE, LARGE])
def test_an_argument_is_taken_as_it_is_at_the_call(length: int, gate: Gate) -> None:
    reused = np.ones(length)
    busy = Echo().wait_and_sum.spawn(gate, reused)
    queued = Echo().wait_and_sum.spawn(gate, reused)
    reused[:] = 100
    gate.open()
    assert gw.gather(busy, queued) == [length, length]


def test_an_array_that_a_method_returns_again_and_again_gives_each_caller_its_own_values() -> None:
    calls = [Echo().reuse_scratch.spawn(x) for x in range(8)]
    assert [set(result) for result in gw.gather(*calls)] == [{float(x)} for x in range(8)]
    assert [set(item) for item in Echo().scratch_stream.stream(30)] == [{float(x)} for x in range(30)]


def test_an_array_that_an_iterator_fills_again_and_again_is_sent_as_it_was() -> None:
    def refill() -> Iterator[Any]:
        array = np.zeros(MIDDLE)
        for x in range(40):
            array[:] = x
            yield array

    assert [back[0] for back in Echo().echo.map(refill())] == list(range(40))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6_000.0).reshape(60, 100).T,
        np.asfortranarray(np.arange(6_000.0).reshape(60, 100)),
        np.arange(20_000)[::3],
        np.array(3.5),
        np.empty((0, 4)),
        np.array([(1, 2.0)] * 1000, dtype=[("a", "i4"), ("b", "f8")]),
        np.array([None, {"a": 1}, "x"], dtype=object),
        np.array(["text"] * 1000),
        np.array(["2024-01-01"], dtype="datetime64[D]"),
    ],
    ids=["transposed", "fortran", "strided", "scalar", "empty", "structured", "objects", "strings", "dates"],
)
def test_arrays_of_every_layout_and_type_survive_and_are_writable(array: Any) -> None:
    array = array.copy(order="K") if array.base is None else array
    back = Echo().echo.remote({"deep": [array]})["deep"][0]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tolist() == array.tolist()
    assert back.flags.writeable


@pytest.mark.parametrize("length", [SMALL, MIDDLE, LARGE])
def test_a_read_only_array_arrives_writable(length: int) -> None:
    sent = np.zeros(length)
    sent.flags.writeable = False
    assert np.array_equal(Echo().overwrite.remote(sent), np.full(length, 7.0))
    assert Echo().echo.remote(sent).flags.writeable


def test_the_rows_of_a_batched_array_belong_to_their_callers() -> None:
    calls = [Echo().numpy_rows.spawn(np.full(MIDDLE, x)) for x in range(4)]
    rows = gw.gather(*calls)
    for x, row in enumerate(rows):
        assert row.flags.writeable
        assert set(row) == {2 * x}
        row[:] = -1


# --- torch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "float32", "float64", "int8", "uint8", "int64", "bool", "complex64"]
)
@pytest.mark.parametrize("length", [SMALL, LARGE])
def test_tensors_of_every_type_come_back_equal_and_writable(dtype: str, length: int) -> None:
    sent = torch.arange(length).remainder(2).to(getattr(torch, dtype))
    back = Echo().echo.remote(sent)
    assert back.dtype == sent.dtype
    assert torch.equal(back, sent)
    back.zero_()
    assert sent[1] == 1


def test_a_worker_may_write_to_its_tensor_and_the_caller_does_not_see_it() -> None:
    for length in (SMALL, MIDDLE, LARGE):
        sent = torch.zeros(length)
        assert torch.equal(Echo().overwrite.remote(sent), torch.full((length,), 7.0))
        assert not sent.any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor(3.5),
        lambda: torch.empty(0, 4),
        lambda: torch.arange(6_000.0).reshape(60, 100).T,
        lambda: torch.arange(20_000)[::3],
        lambda: torch.tensor([1 + 2j, 3 - 4j]).conj(),
        lambda: torch.ones(2, 3).expand(5, 2, 3),
    ],
    ids=["scalar", "empty", "transposed", "strided", "conjugate", "expanded"],
)
def test_tensors_of_every_layout_survive(make: Callable[[], Any]) -> None:
    back = Echo().echo.remote([make()])[0]
    assert back.shape == make().shape
    assert back.dtype == make().dtype
    assert torch.equal(back, make())
    back.add_(1)  # no two elements share memory


def test_the_rows_of_a_batched_bfloat16_tensor_are_tensors_of_their_own() -> None:
    calls = [Echo().rows.spawn(torch.full((MIDDLE,), float(x))) for x in range(4)]
    for x, row in enumerate(gw.gather(*calls)):
        assert row.dtype == torch.bfloat16
        assert torch.equal(row, torch.full((MIDDLE,), 2.0 * x, dtype=torch.bfloat16))
        assert row.untyped_storage().nbytes() == MIDDLE * 2  # and not the whole batch
        row.zero_()


# --- large and plain values ------------------------------------------------------------------------------------------


def test_a_hundred_megabytes_travel_there_and_back() -> None:
    sent = np.arange(100 * 2**20 // 8, dtype=np.int64)
    back = Echo().echo.remote(sent)
    assert np.array_equal(back, sent)
    back[0] = -1
    assert sent[0] == 0


def test_large_bytes_and_text_travel_too() -> None:
    data, text = os.urandom(10 * 2**20), "ü" * 2**20
    assert Echo().echo.remote((data, text)) == (data, text)
    assert Echo().echo.remote(bytearray(data)) == data


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1,
        1.0,
        10**40,
        1j,
        "",
        "ü",
        b"",
        (),
        [],
        {},
        set(),
        frozenset({1}),
        (1, [2, {"a": (None,)}]),
        range(3),
    ],
    ids=repr,
)
def test_plain_values_come_back_equal_and_of_the_same_type(value: Any) -> None:
    back = Echo().echo.remote(value)
    assert back == value
    assert type(back) is type(value)


def test_subclasses_of_plain_types_keep_their_type_and_shared_objects_stay_shared() -> None:
    values = [Point(1, 2), collections.OrderedDict(a=1), collections.defaultdict(list, a=[1])]
    back = Echo().echo.remote(values)
    assert back == values
    assert [type(v) for v in back] == [type(v) for v in values]
    one: list[Any] = [1]
    first, second = Echo().echo.remote([one, one])
    assert first is second
    loop: list[Any] = []
    loop.append(loop)
    back = Echo().echo.remote(loop)
    assert back[0] is back


# --- classes and functions -------------------------------------------------------------------------------------------


def test_classes_of_a_module_are_the_same_on_both_sides() -> None:
    box = Box(Colour.RED, content=np.arange(MIDDLE))
    assert Echo().is_red.remote(box) == (True, True)
    back = Echo().echo.remote(box)
    assert type(back) is Box
    assert back.colour is Colour.RED
    assert np.array_equal(back.content, box.content)
    with pytest.raises(WrongColourError) as caught:
        Echo().refuse.remote(Box(Colour.BLUE))
    assert type(caught.value) is WrongColourError
    assert caught.value.box == Box(Colour.BLUE)
    assert caught.value.box.colour is Colour.BLUE


def test_classes_of_a_function_are_the_same_on_both_sides(app: Any) -> None:
    class Shade(enum.Enum):
        DARK = 1

    @dataclass
    class Crate:
        shade: Shade

    class CrateError(Exception):
        pass

    @app.cls(cpu=0.1)
    class Packer:
        @gw.method()
        def pack(self, crate: Crate) -> tuple[bool, bool, Crate]:
            return isinstance(crate, Crate), crate.shade is Shade.DARK, Crate(Shade.DARK)

        @gw.method()
        def refuse(self, crate: Crate) -> None:
            raise CrateError(crate)

    same_class, same_member, made = Packer().pack.remote(Crate(Shade.DARK))
    assert same_class
    assert same_member
    assert type(made) is Crate
    assert made.shade is Shade.DARK
    with pytest.raises(CrateError) as caught:
        Packer().refuse.remote(Crate(Shade.DARK))
    assert caught.value.args == (Crate(Shade.DARK),)


def test_classes_of_main_are_the_same_on_both_sides(tmp_path: Path) -> None:
    program = """
        import enum
        from dataclasses import dataclass

        import gworker as gw

        app = gw.App("values-of-main")

        class Colour(enum.Enum):
            RED = 1

        @dataclass
        class Box:
            colour: Colour

        class BoxError(Exception):
            pass

        def helper(x):
            return scale * x

        scale = 3

        @app.cls()
        class Echo:
            @gw.method()
            def check(self, box):
                return isinstance(box, Box), box.colour is Colour.RED, Box(Colour.RED)

            @gw.method()
            def refuse(self, box):
                raise BoxError(box)

            @gw.method()
            def help(self, x):
                return helper(x)

            @gw.method()
            def call(self, function, x):
                return function(x)

        same_class, same_member, made = Echo().check.remote(Box(Colour.RED))
        print("in the worker", same_class, same_member)
        print("in the driver", isinstance(made, Box), made.colour is Colour.RED, made == Box(Colour.RED))
        try:
            Echo().refuse.remote(Box(Colour.RED))
        except BoxError as error:
            print("caught", error.args == (Box(Colour.RED),))
        print(Echo().help.remote(2), Echo().call.remote(lambda x: helper(x) + 1, 2))
        """
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=os.environ | {"RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    expected = ["in the worker True True", "in the driver True True True", "caught True", "6 7"]
    assert done.stdout.splitlines() == expected, done.stderr


def test_lambdas_and_closures_travel_both_ways() -> None:
    amount = 5
    assert Echo().call.remote(lambda x: x + amount, 1) == 6
    assert Echo().echo.remote(lambda x: x * amount)(3) == 15
    assert Echo().call.remote(np.add, 1, 2) == 3


# --- what cannot travel ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [threading.Lock(), [threading.Lock()], (x for x in ())], ids=["lock", "deep", "generator"]
)
async def test_an_argument_that_cannot_be_pickled_is_named_before_anything_is_sent(value: Any) -> None:
    kind = type(value).__qualname__
    with pytest.raises(TypeError, match=rf"Echo\.echo: argument 'x' of type {kind} cannot be pickled"):
        Echo().echo.remote(value)
    with pytest.raises(TypeError, match=r"argument 'x'"):
        Echo().echo.spawn(x=value)
    with pytest.raises(TypeError, match=r"argument 'x'"):
        await Echo().echo.remote.aio(value)
    with pytest.raises(TypeError, match=r"Echo\.echo_batch: argument 'xs'"):
        Echo().echo_batch.remote(value)
    with pytest.raises(TypeError, match=r"Echo\.call.*cannot be pickled"):
        Echo().call.remote(max, 1, value)


@pytest.mark.parametrize("inside", ["value", "list"])
def test_a_result_that_cannot_be_pickled_is_a_type_error_that_says_whose_and_the_worker_lives_on(inside: str) -> None:
    pid = Echo().pid.remote()
    with pytest.raises(TypeError, match=r"Echo\.lock\(\) returned a value of type \w+ that cannot be pickled.*lock"):
        Echo().lock.remote(inside)
    assert Echo().pid.remote() == pid


def test_an_item_that_cannot_be_pickled_ends_its_stream_after_the_items_before_it() -> None:
    items = Echo().lock_stream.stream()
    assert next(items) == 1
    with pytest.raises(TypeError, match=r"Echo\.lock_stream\(\) returned a value of type lock"):
        next(items)


def test_a_batch_element_that_cannot_be_pickled_fails_its_own_caller_alone() -> None:
    good, bad = Echo().lock_for_negative.spawn(1), Echo().lock_for_negative.spawn(-1)
    assert good.get(20) == 1
    with pytest.raises(TypeError, match=r"Echo\.lock_for_negative\(\) returned a value of type lock"):
        bad.get(20)


def test_a_value_that_cannot_be_unpickled_raises_where_it_arrives_and_harms_nobody() -> None:
    pid = Echo().pid.remote()
    with pytest.raises(ValueError, match="cannot be made again"):
        Echo().echo.remote(Bomb())
    with pytest.raises(ValueError, match="cannot be made again"):
        Echo().bomb.remote()
    good, bad = Echo().echo_batch.spawn(1), Echo().echo_batch.spawn(Bomb())
    with pytest.raises(ValueError, match="cannot be made again"):
        bad.get(20)
    assert good.get(20) == 1
    assert Echo().pid.remote() == pid
