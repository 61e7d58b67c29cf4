"""Parameters as workers see them: values that travel with calls, values that have workers of their own."""

from __future__ import annotations

import asyncio
import enum
import gc
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Optional

import pydantic
import pytest

import gworker as gw
from tests.conftest import Gate, Ledger, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("module_app")]

app = gw.App("contract-parameters")


class Size(enum.Enum):
    """A parameter type that is compared by identity."""

    SMALL = "s"
    LARGE = "l"


class Style(pydantic.BaseModel):
    """A parameter type that is checked field by field."""

    bold: bool = False
    width: int = 1


@app.cls(max_workers=1, cpu=0.1)
@gw.concurrent(max_inputs=16)
class Classifier:
    threshold: float = gw.parameter(default=0.5)
    label: str = gw.parameter(default="positive")

    @gw.on_enter()
    def setup(self) -> None:
        self.calls = 0
        self.callback: Callable[[], float] = lambda: self.threshold
        self.kept: list[Callable[[], float]] = []
        self.meeting = threading.Barrier(3)

    @gw.method()
    def classify(self, score: float) -> str:
        return self.label if score > self.threshold else "negative"

    @gw.method()
    def pid(self) -> int:
        return os.getpid()

    @gw.method()
    def meet(self) -> float:
        self.meeting.wait(10)
        return self.threshold

    @gw.method()
    async def interleave(self) -> list[float]:
        seen = []
        for _ in range(20):
            await asyncio.sleep(0)
            seen.append(self.threshold)
        return seen

    @gw.method()
    def stream(self) -> Iterator[float]:
        for _ in range(3):
            yield self.threshold

    @gw.method()
    async def stream_async(self) -> AsyncIterator[float]:
        for _ in range(3):
            yield self.threshold
            await asyncio.sleep(0)

    @gw.method()
    def from_threads(self) -> list[float]:
        seen: list[float] = []
        threads = [threading.Thread(target=lambda: seen.append(self.threshold)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with ThreadPoolExecutor(2) as pool:
            return seen + list(pool.map(lambda _: self.threshold, range(3)))

    @gw.method()
    def keep_a_closure(self) -> None:
        self.kept.append(lambda: self.threshold)

    @gw.method()
    def call_the_closures(self) -> list[float]:
        return [closure() for closure in self.kept]

    @gw.method()
    def call_back(self) -> tuple[float, float]:
        return self.callback(), self.threshold

    @gw.method()
    def count(self) -> int:
        self.calls += 1
        return self.calls

    @gw.method()
    def assign(self) -> None:
        self.threshold = 0.9

    @gw.method()
    def through_another_method(self) -> str:
        return self.classify(0.6)

    @gw.method()
    def in_the_context(self) -> dict[str, Any]:
        return dict(gw.current_call().parameters)


def test_the_value_travels_with_the_call_and_the_worker_is_not_replaced() -> None:
    assert Classifier().classify.remote(0.6) == "positive"
    assert Classifier(threshold=0.7).classify.remote(0.6) == "negative"
    assert Classifier(threshold=0.1, label="good").classify.remote(0.2) == "good"
    assert len({Classifier(threshold=t).pid.remote() for t in (0.1, 0.2, 0.3)}) == 1


def test_callers_with_different_values_share_a_worker_at_the_same_time() -> None:
    calls = [Classifier(threshold=t).meet.spawn() for t in (0.1, 0.2, 0.3)]
    assert gw.gather(*calls) == [0.1, 0.2, 0.3]


def test_asynchronous_methods_that_interleave_each_see_their_own_value() -> None:
    thresholds = [i / 10 for i in range(10)]
    calls = [Classifier(threshold=t).interleave.spawn() for t in thresholds]
    assert gw.gather(*calls) == [[t] * 20 for t in thresholds]


def test_generators_see_their_own_value_at_every_item() -> None:
    assert list(Classifier(threshold=0.1).stream.stream()) == [0.1] * 3
    assert list(Classifier(threshold=0.2).stream_async.stream()) == [0.2] * 3


def test_threads_that_a_method_starts_see_the_value_of_its_call() -> None:
    calls = [Classifier(threshold=t).from_threads.spawn() for t in (0.1, 0.2, 0.3)]
    assert gw.gather(*calls) == [[t] * 6 for t in (0.1, 0.2, 0.3)]


def test_a_closure_that_outlives_its_call_still_sees_the_value_of_that_call() -> None:
    for threshold in (0.1, 0.2):
        Classifier(threshold=threshold).keep_a_closure.remote()
    assert Classifier(threshold=0.9).call_the_closures.remote() == [0.1, 0.2]


def test_outside_a_call_a_parameter_reads_as_its_default() -> None:
    assert Classifier(threshold=0.9).call_back.remote() == (0.5, 0.9)


def test_attributes_that_a_method_sets_are_shared_by_all_calls() -> None:
    counts = [Classifier(threshold=t).count.remote() for t in (0.1, 0.2, 0.1)]
    assert counts == [counts[0], counts[0] + 1, counts[0] + 2]


def test_a_method_called_on_self_sees_the_value_of_the_call() -> None:
    assert Classifier(threshold=0.7).through_another_method.remote() == "negative"
    assert Classifier(threshold=0.5).through_another_method.remote() == "positive"


def test_parameters_are_read_only_in_methods() -> None:
    with pytest.raises(AttributeError, match=r"threshold.*read-only"):
        Classifier().assign.remote()
    assert Classifier().call_back.remote() == (0.5, 0.5)


def test_the_current_call_knows_its_parameters() -> None:
    assert Classifier(threshold=0.1).in_the_context.remote() == {"threshold": 0.1, "label": "positive"}


def test_a_value_of_the_wrong_type_is_refused_when_the_handle_is_made() -> None:
    with pytest.raises(gw.InvalidDefinition, match=r"threshold='high' \(str\).*float"):
        Classifier(threshold="high")  # type: ignore[arg-type]
    with pytest.raises(gw.InvalidDefinition, match="threshold"):
        Classifier(treshold=0.1)  # type: ignore[call-arg]


@app.cls(max_workers=1, cpu=0.1)
class Typed:
    size: Size = gw.parameter(default=Size.SMALL)
    style: Style = gw.parameter(default=Style())
    mode: Literal["fast", "good"] = gw.parameter(default="fast")
    limit: Optional[int] = gw.parameter(default=None)  # noqa: UP045 - the spelling is under test
    tags: list[str] = gw.parameter(default=[])
    table: dict[str, float] = gw.parameter(default={})
    raw: bytes = gw.parameter(default=b"")

    @gw.method()
    def all(self) -> tuple[Any, ...]:
        assert self.size is Size.SMALL or self.size is Size.LARGE
        assert isinstance(self.style, Style)
        return self.size, self.style, self.mode, self.limit, self.tags, self.table, self.raw

    @gw.method()
    def spoil(self) -> list[str]:
        self.tags.append("spoilt")
        return self.tags


def test_values_arrive_as_what_they_are_annotated_to_be() -> None:
    assert Typed().all.remote() == (Size.SMALL, Style(), "fast", None, [], {}, b"")
    handle = Typed(
        size="l",  # type: ignore[arg-type]  # converted as pydantic would
        style={"bold": True},  # type: ignore[arg-type]
        mode="good",
        limit=3,
        tags=["a"],
        table={"x": 1},
        raw=b"\0",
    )
    got = handle.all.remote()
    assert got == (Size.LARGE, Style(bold=True), "good", 3, ["a"], {"x": 1.0}, b"\0")
    assert got[0] is Size.LARGE and isinstance(got[1], Style)


def test_what_a_method_does_to_a_value_is_not_seen_by_the_next_call() -> None:
    handle = Typed(tags=["a"])
    assert [handle.spoil.remote() for _ in range(2)] == [["a", "spoilt"]] * 2
    assert [Typed().spoil.remote() for _ in range(2)] == [["spoilt"]] * 2


# --- what a view must not do -----------------------------------------------------------------------------------------


class Connection:
    """Shared state that must be closed once, at the end."""

    def __init__(self) -> None:
        self.closed = False

    def query(self) -> str:
        assert not self.closed, "closed while in use"
        return "row"


class Countable:
    """Counts the classes derived from it."""

    derived = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Countable.derived += 1


@app.cls(max_workers=1, cpu=0.1)
@gw.concurrent(max_inputs=8)
class Careful(Countable):
    limit: int = gw.parameter(default=1)
    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.connection = Connection()
        self.others: list[Any] = []

    def __del__(self) -> None:
        self.connection.closed = True

    @gw.method()
    def query(self) -> tuple[str, int]:
        return self.connection.query(), self.limit

    @gw.method()
    def make_cycle(self) -> None:
        mine = [self]
        mine.append(mine)  # type: ignore[arg-type]

    @gw.method()
    def collect(self) -> bool:
        gc.collect()
        return self.connection.closed

    @gw.method()
    def life(self) -> tuple[int, int, bool]:
        return type(self).made, Countable.derived, isinstance(self, Careful.user_cls)  # type: ignore[attr-defined]


def test_a_user_del_that_closes_shared_state_runs_for_no_view() -> None:
    results = [Careful(limit=i).query.remote() for i in range(50)]
    assert results == [("row", i) for i in range(50)]
    for i in range(5):
        Careful(limit=i).make_cycle.remote()
    assert Careful(limit=9).collect.remote() is False
    assert Careful().query.remote() == ("row", 1)


def test_views_run_neither_init_nor_init_subclass() -> None:
    for i in range(5):
        Careful(limit=i).query.remote()
    made, derived, is_instance = Careful(limit=2).life.remote()
    assert made == 1
    assert derived == 1
    assert is_instance


# --- inheritance -----------------------------------------------------------------------------------------------------


class Base:
    """Not decorated: gives its parameter to those that derive from it."""

    scale: int = gw.parameter(default=2)

    @gw.method()
    def scaled(self, x: int) -> int:
        return self.scale * x


@app.cls(max_workers=1, cpu=0.1)
class Derived(Base):
    @gw.method()
    def twice(self, x: int) -> int:
        return self.scaled(self.scaled(x))


@app.cls(max_workers=1, cpu=0.1)
class Further(Classifier):  # type: ignore[misc]  # derives from a decorated class
    extra: int = gw.parameter(default=1)

    @gw.method()
    def both(self) -> tuple[float, int]:
        return self.threshold, self.extra


def test_a_subclass_without_parameters_of_its_own_keeps_those_of_its_base() -> None:
    assert Derived().scaled.remote(5) == 10
    assert Derived(scale=3).scaled.remote(5) == 15
    assert Derived(scale=3).twice.remote(5) == 45


def test_a_subclass_of_a_decorated_class_adds_to_its_parameters() -> None:
    assert Further(threshold=0.7, extra=5).both.remote() == (0.7, 5)
    assert Further(threshold=0.7).classify.remote(0.6) == "negative"


# --- scope="worker" --------------------------------------------------------------------------------------------------


@app.cls(max_workers=1, cpu=0.1)
class Model:
    weights: str = gw.parameter(scope="worker")
    revision: int = gw.parameter(default=1, scope="worker")
    temperature: float = gw.parameter(default=0.0)

    @gw.on_enter()
    def load(self) -> None:
        self.loaded = f"{self.weights}@{self.revision}"

    @gw.method()
    def generate(self) -> tuple[str, str, float, int]:
        return self.loaded, self.weights, self.temperature, os.getpid()

    @gw.method()
    def from_a_thread(self) -> str:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: self.weights).result()


def test_each_set_of_worker_scoped_values_has_workers_of_its_own() -> None:
    a = Model(weights="a").generate.remote()
    b = Model(weights="b").generate.remote()
    c = Model(weights="a", revision=2).generate.remote()
    assert [a[:3], b[:3], c[:3]] == [("a@1", "a", 0.0), ("b@1", "b", 0.0), ("a@2", "a", 0.0)]
    assert len({a[3], b[3], c[3]}) == 3
    pools = [pool for pool in app.status().pools if pool.class_name == "Model"]
    assert len(pools) == 3 and all(pool.ready == 1 for pool in pools)


def test_equal_worker_scoped_values_share_a_worker_whatever_travels_with_the_call() -> None:
    a = Model(weights="a", revision=1).generate.remote()
    hot = Model(weights="a", temperature=0.9).generate.remote()
    assert a[3] == hot[3]
    assert hot[2] == 0.9
    assert Model(weights="a").from_a_thread.remote() == "a"


def test_a_pool_of_worker_scoped_values_is_dropped_when_idle(make_app: Any) -> None:
    own = make_app()

    @own.cls(scaledown_window_s=0.5, cpu=0.1)
    class Brief:
        which: int = gw.parameter(scope="worker")

        @gw.method()
        def get(self) -> int:
            return self.which

    assert [Brief(which=i).get.remote() for i in range(2)] == [0, 1]
    eventually(lambda: sum(len(pool.workers) for pool in own.status().pools) == 0, 15)
    assert Brief(which=0).get.remote() == 0  # and it comes back


def test_reading_a_call_scoped_parameter_in_on_enter_fails_the_start_and_advises_the_worker_scope(
    make_app: Any,
) -> None:
    own = make_app()

    @own.cls(max_workers=1, cpu=0.1)
    class TooEarly:
        weights: str = gw.parameter(default="a")

        @gw.on_enter()
        def load(self) -> None:
            self.loaded = self.weights

        @gw.method()
        def get(self) -> str:
            return self.loaded

    with pytest.raises(gw.StartupFailed) as caught:
        TooEarly(weights="b").get.spawn().get(timeout_s=30)
    assert 'scope="worker"' in str(caught.value) and "weights" in str(caught.value)


def test_probes_see_the_defaults(make_app: Any, ledger: Ledger, gate: Gate) -> None:
    own = make_app()

    @own.cls(max_workers=1, cpu=0.1, probes=[gw.Probe.on("health", period_s=0.1)])
    @gw.concurrent(max_inputs=2)
    class Probed:
        threshold: float = gw.parameter(default=0.5)

        @gw.method()
        def health(self) -> None:
            ledger.write(str(self.threshold))

        @gw.method()
        def hold(self) -> float:
            gate.wait()
            return self.threshold

    call = Probed(threshold=0.9).hold.spawn()
    eventually(lambda: gate.arrivals == 1 and len(ledger.lines()) > 3)
    gate.open()
    assert call.get() == 0.9
    assert set(ledger.lines()) == {"0.5"}
