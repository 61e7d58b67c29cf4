"""Batched methods: what shares a batch, when it leaves, what comes back to whom."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

import gworker as gw
from tests.conftest import Gate, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("module_app")]

app = gw.App("contract-batching")


class BadItemError(Exception):
    """What methods put in the place of a result, or raise."""


class BadWeightError(Exception):
    """What the weight function below raises."""


def weigh(item: Any) -> Any:
    """The item itself, which may be no weight."""
    if item == "raise":
        raise BadWeightError(item)
    if item == "exit":
        raise SystemExit(3)
    return item


class Unreadable:
    """Pickles, and raises when it is unpickled."""

    def __reduce__(self) -> Any:
        return (int, ("not a number",))


@app.cls(max_workers=1, cpu=0.1)
class Batcher:
    @gw.on_enter()
    def setup(self) -> None:
        self.thread = threading.get_ident()
        self.running = 0

    @gw.method()
    @gw.batched(max_batch_size=8, wait_ms=0)
    def sizes(self, gates: list[Gate | None]) -> list[int]:
        """The size of its batch, to each."""
        for gate in gates:
            if gate is not None:
                gate.wait()
        return [len(gates)] * len(gates)

    @gw.method()
    @gw.batched(max_batch_size=4, wait_ms=60_000)
    def patient(self, items: list[int]) -> list[tuple[int, int]]:
        return [(len(items), item) for item in items]

    @gw.method()
    @gw.batched(max_batch_size=8, wait_ms=300)
    def within_a_window(self, items: list[Any]) -> list[Any]:
        return [(len(items), item) for item in items]

    @gw.method()
    @gw.batched(max_batch_size=8, wait_ms=200)
    def columns(self, a: list[int], b: list[str], c: list[int]) -> list[Any]:
        assert len(a) == len(b) == len(c)
        return list(zip(a, b, c, strict=True))

    @gw.method()
    @gw.batched(max_batch_size=8, wait_ms=200)
    def with_default(self, a: list[int], b: list[int] = 7) -> list[int]:  # type: ignore[assignment]
        return [x + y for x, y in zip(a, b, strict=True)]

    @gw.method()
    @gw.batched(max_batch_size=8, wait_ms=100)
    def returning(self, items: list[Any]) -> Any:
        """Whatever the first input asks for, made from all."""
        return SHAPES[items[0]](len(items))

    @gw.method()
    @gw.batched(max_batch_size=8, wait_ms=100)
    def raising(self, errors: list[type[BaseException] | None]) -> list[str]:
        for error in errors:
            if error is not None:
                raise error("out of the batch")
        return ["fine"] * len(errors)

    @gw.method()
    @gw.batched(max_batch_size=8, wait_ms=100)
    async def raising_async(self, errors: list[type[BaseException] | None]) -> list[str]:
        await asyncio.sleep(0)
        for error in errors:
            if error is not None:
                raise error("out of the batch")
        return ["fine"] * len(errors)

    @gw.method()
    @gw.batched(max_batch_size=8, wait_ms=200)
    def one_bad(self, items: list[int]) -> list[Any]:
        return [BadItemError(item) if item == 3 else (item, len(items)) for item in items]

    @gw.method()
    @gw.batched(max_batch_size=100, wait_ms=500, weight=weigh, max_weight=10)
    def weighed(self, items: list[Any]) -> list[list[Any]]:
        """The batch, to each of its members."""
        return [items] * len(items)

    @gw.method()
    @gw.batched(max_batch_size=8, wait_ms=200)
    def contexts(self, items: list[int]) -> list[Any]:
        batch = gw.current_call()
        assert len(batch.inputs) == len(items)
        return [(batch.id, batch.method, call.id, call.attempt) for call in batch.inputs]

    @gw.method()
    def plain(self, gate: Gate | None = None) -> int:
        if gate is not None:
            gate.wait()
        return threading.get_ident()

    @gw.method()
    @gw.batched(max_batch_size=2)
    def threads(self, items: list[int]) -> list[bool]:
        return [threading.get_ident() == self.thread] * len(items)


SHAPES: dict[str, Any] = {
    "list": lambda n: list(range(n)),
    "tuple": lambda n: tuple(range(n)),
    "range": range,
    "array": np.arange,
    "matrix": lambda n: np.arange(3 * n, dtype=np.float32).reshape(n, 3),
    # wrong
    "short": lambda n: list(range(n - 1)),
    "long": lambda n: list(range(n + 1)),
    "None": lambda n: None,
    "int": lambda n: n,
    "str": lambda n: "x" * n,
    "bytes": lambda n: b"x" * n,
    "dict": lambda n: dict.fromkeys(range(n)),
    "set": lambda n: set(range(n)),
    "generator": lambda n: (i for i in range(n)),
    "scalar array": lambda n: np.array(n),
}


def together(method: Any, items: list[Any]) -> list[Any]:
    """The outcomes of calls that are made at once: results, or exceptions."""
    return list(method.map(items, return_exceptions=True))


def held_inputs() -> int:
    """Inputs that the worker of Batcher holds, gathered or running."""
    return app.status().pool("Batcher").workers[0].inflight


# --- gathering -------------------------------------------------------------------------------------------------------


def test_arrivals_during_a_running_batch_form_one_batch(gate: Gate) -> None:
    first = Batcher().sizes.spawn(gate)
    eventually(lambda: gate.arrivals == 1)
    others = []
    for _ in range(7):
        others.append(Batcher().sizes.spawn(None))
        time.sleep(0.02)  # they come one by one, not in one bundle
    gate.open()
    assert first.get() == 1
    assert gw.gather(*others) == [7] * 7


def test_a_batch_is_never_larger_than_its_maximum_and_full_while_enough_wait(gate: Gate) -> None:
    first = Batcher().sizes.spawn(gate)
    eventually(lambda: gate.arrivals == 1)
    others = [Batcher().sizes.spawn(None) for _ in range(24)]
    gate.open()
    sizes = gw.gather(*others)
    assert first.get() == 1
    assert max(sizes) == 8
    assert sizes.count(8) >= 16  # all but what is on its way when a batch closes


def test_a_full_batch_leaves_at_once_however_long_the_window() -> None:
    begun = time.monotonic()
    assert list(Batcher().patient.map(range(8))) == [(4, i) for i in range(8)]
    assert time.monotonic() - begun < 20


def test_a_batch_that_is_not_full_leaves_when_its_window_ends() -> None:
    begun = time.monotonic()
    assert list(Batcher().within_a_window.map(range(5))) == [(5, i) for i in range(5)]
    assert 0.3 <= time.monotonic() - begun < 10


def test_without_a_window_a_single_input_does_not_wait() -> None:
    Batcher().sizes.remote(None)
    begun = time.monotonic()
    for _ in range(20):
        assert Batcher().sizes.remote(None) == 1
    assert time.monotonic() - begun < 5


def test_status_shows_the_mean_batch_size() -> None:
    variant = Batcher.with_options(scaledown_window_s=100)  # type: ignore[attr-defined]
    variant().patient.for_each(range(12))
    (pool,) = (pool for pool in app.status().pools if "scaledown" in pool.name)
    assert pool.workers[0].batch_sizes == {"patient": 4.0}


# --- arguments -------------------------------------------------------------------------------------------------------


def test_each_argument_becomes_a_list_by_name() -> None:
    columns = Batcher().columns
    calls = [columns.spawn(1, "x", 10), columns.spawn(2, c=20, b="y"), columns.spawn(c=30, a=3, b="z")]  # type: ignore[arg-type,call-arg]
    assert gw.gather(*calls) == [(1, "x", 10), (2, "y", 20), (3, "z", 30)]


def test_a_default_applies_to_each_input_that_does_not_give_the_argument() -> None:
    calls = [
        Batcher().with_default.spawn(1),
        Batcher().with_default.spawn(1, 1),
        Batcher().with_default.spawn(b=2, a=2),
    ]  # type: ignore[arg-type]
    assert gw.gather(*calls) == [8, 2, 4]


def test_wrong_arguments_fail_their_caller_before_anything_is_sent_and_nobody_else() -> None:
    good = [Batcher().columns.spawn(i, "x", 0) for i in range(3)]  # type: ignore[arg-type]
    for args, kwargs in [((1, "x"), {}), ((1, "x", 2, 3), {}), ((1,), {"b": "x", "d": 3})]:
        with pytest.raises(TypeError, match=r"Batcher\.columns\(\).*arguments of one input"):
            Batcher().columns.spawn(*args, **kwargs)
    assert gw.gather(*good) == [(i, "x", 0) for i in range(3)]


def test_an_argument_that_cannot_be_read_in_the_worker_fails_its_caller_and_nobody_else() -> None:
    outcomes = together(Batcher().within_a_window, [1, Unreadable(), 2])
    assert isinstance(outcomes[1], ValueError) and "not a number" in str(outcomes[1])
    assert [outcomes[0], outcomes[2]] == [(2, 1), (2, 2)]


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["list", "tuple", "range", "array"])
def test_any_sized_sequence_of_the_same_length_is_a_result(shape: str) -> None:
    results = together(Batcher().returning, [shape] * 3)
    assert [int(r) for r in results] == [0, 1, 2]


def test_rows_of_an_array_come_apart_and_belong_to_their_receivers() -> None:
    rows = together(Batcher().returning, ["matrix"] * 3)
    assert [row.tolist() for row in rows] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert all(row.flags.writeable and row.dtype == np.float32 for row in rows)
    rows[0][:] = 9
    assert rows[1].tolist() == [3, 4, 5]


@pytest.mark.parametrize(("shape", "says"), [("short", "2 results"), ("long", "4 results")])
def test_a_wrong_length_is_an_error_to_all_of_that_batch_that_names_both_lengths(shape: str, says: str) -> None:
    outcomes = together(Batcher().returning, [shape] * 3)
    assert [type(outcome) for outcome in outcomes] == [gw.BatchResultError] * 3
    assert "Batcher.returning" in str(outcomes[0]) and "3 inputs" in str(outcomes[0]) and says in str(outcomes[0])


@pytest.mark.parametrize("shape", ["None", "int", "str", "bytes", "dict", "set", "generator", "scalar array"])
def test_a_result_that_is_no_sequence_is_an_error_to_all_of_that_batch(shape: str) -> None:
    outcomes = together(Batcher().returning, [shape] * 3)
    assert [type(outcome) for outcome in outcomes] == [gw.BatchResultError] * 3
    kind = {"None": "NoneType", "scalar array": "ndarray"}.get(shape, shape)
    assert "Batcher.returning" in str(outcomes[0]) and kind in str(outcomes[0])


def test_an_exception_among_the_results_is_raised_for_that_caller_alone() -> None:
    outcomes = together(Batcher().one_bad, range(6))
    assert isinstance(outcomes[3], BadItemError) and outcomes[3].args == (3,)
    assert [outcomes[i] for i in (0, 1, 2, 4, 5)] == [(i, 6) for i in (0, 1, 2, 4, 5)]


# --- what user code does ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["raising", "raising_async"])
@pytest.mark.parametrize(
    "error", [BadItemError, SystemExit, KeyboardInterrupt, StopIteration, asyncio.CancelledError, GeneratorExit]
)
def test_what_a_batch_raises_reaches_each_member_and_the_next_batch_runs(
    method: str, error: type[BaseException]
) -> None:
    outcomes = together(getattr(Batcher(), method), [None, error, None])
    for outcome in outcomes:
        if error is BadItemError:
            assert type(outcome) is BadItemError
        elif (method, error) == ("raising_async", StopIteration):
            assert type(outcome) is RuntimeError  # Python's own doing: a coroutine cannot raise StopIteration
        else:
            assert type(outcome) is gw.RemoteError and outcome.type_name == error.__name__
        assert "out of the batch" in str(outcome.__cause__)
    assert together(getattr(Batcher(), method), [None] * 3) == ["fine"] * 3


def test_batches_are_packed_by_weight_like_inputs_together() -> None:
    batches = [tuple(b) for b in together(Batcher().weighed, [4, 4, 3, 8, 2, 1, 50, 5, 5])]
    assert list(dict.fromkeys(batches)) == [(4, 4), (3, 2), (8,), (1,), (50,), (5, 5)]


@pytest.mark.parametrize("weight", ["raise", "exit", "text", None, -1, float("nan"), float("inf"), True])
def test_a_bad_weight_fails_its_caller_alone(weight: Any) -> None:
    outcomes = together(Batcher().weighed, [5, weight, 5])
    assert [outcomes[0], outcomes[2]] == [[5, 5], [5, 5]]
    if weight == "raise":
        assert type(outcomes[1]) is BadWeightError
    elif weight == "exit":
        assert type(outcomes[1]) is gw.RemoteError and outcomes[1].type_name == "SystemExit"
    else:
        assert isinstance(outcomes[1], ValueError)
        assert "weight function of Batcher.weighed" in str(outcomes[1]) and repr(weight) in str(outcomes[1])


# --- leaving ---------------------------------------------------------------------------------------------------------


def test_an_input_that_is_cancelled_before_the_batch_closes_is_not_in_it(gate: Gate) -> None:
    first = Batcher().sizes.spawn(gate)
    eventually(lambda: gate.arrivals == 1)
    calls = [Batcher().sizes.spawn(None) for _ in range(4)]
    eventually(lambda: held_inputs() == 5)
    calls[1].cancel()
    with pytest.raises(gw.CallCancelled):
        calls[1].get()
    eventually(lambda: held_inputs() == 4)
    gate.open()
    first.get()
    assert gw.gather(calls[0], calls[2], calls[3]) == [3] * 3


def test_an_input_whose_deadline_passes_before_the_batch_closes_is_not_in_it(gate: Gate) -> None:
    first = Batcher().sizes.spawn(gate)
    eventually(lambda: gate.arrivals == 1)
    late = Batcher().sizes.with_options(deadline_s=0.3).spawn(None)
    others = [Batcher().sizes.spawn(None) for _ in range(3)]
    with pytest.raises(gw.DeadlineExceeded) as caught:
        late.get()
    assert caught.value.limit == "deadline_s"
    gate.open()
    first.get()
    assert gw.gather(*others) == [3] * 3


def test_cancelling_a_member_of_a_running_batch_discards_its_result_and_touches_nobody(gate: Gate) -> None:
    plug = Gate(gate.path + "-plug")
    first = Batcher().sizes.spawn(plug)
    eventually(lambda: plug.arrivals == 1)
    calls = [Batcher().sizes.spawn(gate) for _ in range(4)]
    eventually(lambda: held_inputs() == 5)
    plug.open()
    assert first.get() == 1  # now the four run, as one batch
    eventually(lambda: gate.arrivals == 1)
    calls[2].cancel()
    with pytest.raises(gw.CallCancelled):
        calls[2].get()
    gate.open()
    assert gw.gather(calls[0], calls[1], calls[3]) == [4] * 3


# --- around ----------------------------------------------------------------------------------------------------------


def test_in_a_batch_the_current_call_is_the_batch_with_its_inputs() -> None:
    calls = [Batcher().contexts.spawn(i) for i in range(3)]
    seen = gw.gather(*calls)
    assert len({batch for batch, *_ in seen}) == 1
    assert [(method, call, attempt) for _, method, call, attempt in seen] == [("contexts", c.id, 1) for c in calls]


def test_batched_and_other_methods_of_a_plain_class_run_one_at_a_time_on_one_thread(gate: Gate) -> None:
    running = Batcher().plain.spawn(gate)
    eventually(lambda: gate.arrivals == 1)
    waiting = [Batcher().sizes.spawn(None), Batcher().threads.spawn(1), Batcher().plain.spawn()]
    with pytest.raises(TimeoutError):
        waiting[0].get(timeout_s=0.3)
    assert not any(call.done() for call in waiting)
    gate.open()
    assert running.get() == waiting[2].get()
    assert waiting[1].get() is True


@app.cls(max_workers=1, cpu=0.1)
@gw.concurrent(max_inputs=32)
class Concurrent:
    @gw.on_enter()
    def setup(self) -> None:
        self.thread = threading.get_ident()
        self.now = 0
        self.peak = 0
        self.lock = threading.Lock()
        self.pair = threading.Barrier(2)

    def _run(self, items: list[Any]) -> list[int]:
        with self.lock:
            self.now += 1
            self.peak = max(self.peak, self.now)
        time.sleep(0.02)
        with self.lock:
            self.now -= 1
        return [self.peak] * len(items)

    @gw.method()
    @gw.batched(max_batch_size=2)
    def one_by_one(self, items: list[int]) -> list[tuple[int, bool]]:
        peaks = self._run(items)
        return [(peak, threading.get_ident() == self.thread) for peak in peaks]

    @gw.method()
    @gw.batched(max_batch_size=4, max_concurrent_batches=2, wait_ms=60_000)
    def two_by_two(self, items: list[int]) -> list[int]:
        self.pair.wait(10)  # only two batches together get past this
        return [len(items)] * len(items)

    @gw.method()
    @gw.batched(max_batch_size=1)
    async def meet_a(self, gates: list[tuple[Gate, Gate]]) -> list[bool]:
        mine, other = gates[0]
        mine.open()
        await other.wait_async(10)
        return [True]

    @gw.method()
    @gw.batched(max_batch_size=1)
    async def meet_b(self, gates: list[tuple[Gate, Gate]]) -> list[bool]:
        mine, other = gates[0]
        mine.open()
        await other.wait_async(10)
        return [True]

    @gw.method()
    @gw.batched(max_batch_size=4)
    def hold(self, gates: list[Gate]) -> list[int]:
        for gate in gates:
            gate.wait()
        return [len(gates)] * len(gates)

    @gw.method()
    def plain(self, x: int) -> int:
        return x


def test_a_concurrent_class_still_runs_one_batch_of_a_method_at_a_time_on_the_thread_of_its_hooks() -> None:
    assert list(Concurrent().one_by_one.map(range(40))) == [(1, True)] * 40


def test_max_concurrent_batches_lets_that_many_run_together() -> None:
    assert list(Concurrent().two_by_two.map(range(16))) == [4] * 16


def test_plain_inputs_of_a_concurrent_class_run_beside_a_batch(gate: Gate) -> None:
    held = Concurrent().hold.spawn(gate)
    eventually(lambda: gate.arrivals == 1)
    assert Concurrent().plain.spawn(5).get(timeout_s=10) == 5
    assert not held.done()
    gate.open()
    assert held.get() == 1


def test_batches_of_different_methods_of_a_concurrent_class_run_together(gate: Gate) -> None:
    a, b = Gate(gate.path + "a"), Gate(gate.path + "b")
    calls = [Concurrent().meet_a.spawn((a, b)), Concurrent().meet_b.spawn((b, a))]
    assert gw.gather(*calls) == [True, True]


@app.cls(max_workers=1, cpu=0.1)
@gw.concurrent(max_inputs=16)
class Labelled:
    label: str = gw.parameter(default="none")

    @gw.method()
    @gw.batched(max_batch_size=8, wait_ms=300)
    def seen(self, items: list[int]) -> list[tuple[str, list[int]]]:
        return [(self.label, items)] * len(items)


def test_batches_are_split_by_parameter_values() -> None:
    calls = [Labelled(label=label).seen.spawn(i) for i in range(4) for label in ("a", "b")]
    assert gw.gather(*calls) == [("a", [0, 1, 2, 3]), ("b", [0, 1, 2, 3])] * 4


def test_describe_says_that_parameters_make_batches_small() -> None:
    assert "small batches" in Labelled.describe()  # type: ignore[attr-defined]


@app.cls(max_workers=1, cpu=0.1)
class Instanced:
    which: str = gw.parameter(scope="worker")

    @gw.method()
    @gw.batched(max_batch_size=4, wait_ms=60_000)
    def seen(self, items: list[str]) -> list[tuple[str, list[str]]]:
        return [(self.which, items)] * len(items)


def test_two_instances_of_a_class_do_not_share_a_batcher() -> None:
    calls = [Instanced(which=w).seen.spawn(w) for _ in range(4) for w in ("a", "b")]
    assert gw.gather(*calls) == [("a", ["a"] * 4), ("b", ["b"] * 4)] * 4
