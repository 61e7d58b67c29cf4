"""`.local`: the class in this process, hooks included, without Ray."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import gworker as gw

_numbers = itertools.count(1)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def app() -> gw.App:
    """An app of the test's own that never runs, and so needs no Ray."""
    return gw.App(f"contract-local-{next(_numbers)}")


def run_python(program: str, tmp_path: Path) -> list[str]:
    """The lines that `program` prints to its end, in an interpreter of its own."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


class RefusedError(Exception):
    """What the methods below raise."""


# --- hooks -----------------------------------------------------------------------------------------------------------


def test_hooks_run_once_before_the_first_call_base_class_first_and_in_order(app: gw.App) -> None:
    class Base:
        @gw.on_enter()
        def zero(self) -> None:
            self.log = ["base"]

    @app.cls()
    class Logged(Base):
        @gw.on_enter()
        async def first(self) -> None:
            await asyncio.sleep(0)
            self.log.append("first")

        @gw.on_enter()
        def second(self) -> None:
            self.log.append("second")

        @gw.method()
        def seen(self) -> list[str]:
            return list(self.log)

    assert Logged().seen.local() == ["base", "first", "second"]
    assert Logged().seen.local() == ["base", "first", "second"]


def test_nothing_runs_before_the_first_call(app: gw.App) -> None:
    made: list[int] = []

    @app.cls()
    class Eager:
        def __init__(self) -> None:
            made.append(1)

        @gw.method()
        def ping(self) -> str:
            return "pong"

    method = Eager().ping
    assert made == []
    assert method.local() == "pong"
    assert made == [1]


def test_what_on_enter_raises_is_raised_by_the_call_and_the_next_one_tries_again(app: gw.App) -> None:
    tries = itertools.count(1)

    @app.cls()
    class Shy:
        @gw.on_enter()
        def load(self) -> None:
            if next(tries) == 1:
                raise RefusedError("not yet")

        @gw.method()
        def ping(self) -> str:
            return "pong"

    with pytest.raises(RefusedError, match="not yet"):
        Shy().ping.local()
    assert Shy().ping.local() == "pong"


def test_threads_that_come_at_once_share_one_instance_whose_hooks_run_once(app: gw.App) -> None:
    entered: list[int] = []
    together = threading.Barrier(4)

    @app.cls()
    class Shared:
        @gw.on_enter()
        def load(self) -> None:
            entered.append(1)

        @gw.method()
        def me(self) -> int:
            return id(self)

    def call(_: int) -> int:
        together.wait(10)
        return Shared().me.local()

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(call, range(4)))) == 1
    assert entered == [1]


def test_an_asynchronous_hook_may_use_another_class_locally(app: gw.App) -> None:
    @app.cls()
    class Inner:
        @gw.method()
        def name(self) -> str:
            return "inner"

    @app.cls()
    class Outer:
        @gw.on_enter()
        async def load(self) -> None:
            self.loaded = Inner().name.local()

        @gw.method()
        def seen(self) -> str:
            return self.loaded

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(Outer().seen.local).result(10) == "inner"


@pytest.mark.slow
def test_on_exit_hooks_run_at_interpreter_exit_in_reverse_each_even_if_another_raised(tmp_path: Path) -> None:
    lines = run_python(
        """
        import gworker as gw

        app = gw.App("leaving")
        ready = []

        class Base:
            @gw.on_exit()
            def last(self):
                print("base left")

        @app.cls()
        class Model(Base):
            @gw.on_enter()
            def load(self):
                if not ready:
                    ready.append(1)
                    raise OSError("not yet")

            @gw.on_exit()
            def second(self):
                print("second left")

            @gw.on_exit()
            async def first(self):
                print("first left")
                raise ValueError("for nobody")

            @gw.method()
            def ping(self):
                return "pong"

        @app.cls()
        class Unused:
            @gw.on_exit()
            def leave(self):
                print("never entered, so it never leaves")

            @gw.method()
            def ping(self):
                return "pong"

        try:
            Model().ping.local()
        except OSError:
            print("refused")
        print(Model().ping.local())
        print("end of the program")
        """,
        tmp_path,
    )
    assert lines == ["refused", "pong", "end of the program", "first left", "second left", "base left"]


@pytest.mark.slow
def test_local_calls_neither_start_ray_nor_connect_to_one(tmp_path: Path) -> None:
    lines = run_python(
        """
        import asyncio
        import sys
        import gworker as gw

        app = gw.App("without-ray")

        @app.cls(gpu=gw.Gpu("A100"), min_workers=2)
        class Model:
            size: int = gw.parameter(default=1, scope="worker")

            @gw.method()
            def sync(self, x):
                return x

            @gw.method()
            async def coroutine(self, x):
                return x

            @gw.method()
            @gw.batched(max_batch_size=8)
            def batched(self, xs):
                return xs

            @gw.method()
            def stream(self, x):
                yield x

        model = Model(size=2)
        print(model.sync.local(1), asyncio.run(model.coroutine.local(2)), model.batched.local(3))
        print(list(model.stream.local(4)))
        ray = sys.modules.get("ray")
        print(ray is not None and ray.is_initialized())
        """,
        tmp_path,
    )
    assert lines == ["1 2 3", "[4]", "False"]


# --- plain methods ---------------------------------------------------------------------------------------------------


def test_arguments_are_checked_as_for_a_remote_call(app: gw.App) -> None:
    @app.cls()
    class Adder:
        @gw.method()
        def add(self, a: int, b: int = 10) -> int:
            return a + b

    assert Adder().add.local(1) == 11
    assert Adder().add.local(1, b=2) == 3
    with pytest.raises(TypeError, match=r"Adder\.add"):
        Adder().add.local()
    with pytest.raises(TypeError, match=r"Adder\.add.*c"):
        Adder().add.local(1, c=2)


def test_values_are_not_copied_and_exceptions_are_raised_as_they_are(app: gw.App) -> None:
    error = RefusedError("this very one")

    @app.cls()
    class Same:
        @gw.method()
        def echo(self, x: Any) -> Any:
            return x

        @gw.method()
        def refuse(self) -> None:
            raise error

    unpicklable = threading.Lock()
    assert Same().echo.local(unpicklable) is unpicklable
    with pytest.raises(RefusedError) as caught:
        Same().refuse.local()
    assert caught.value is error
    assert error.__cause__ is None


def test_state_is_kept_between_calls_and_methods_call_each_other_on_self(app: gw.App) -> None:
    @app.cls()
    class Counter:
        def __init__(self) -> None:
            self.n = 0

        @gw.method()
        def add(self, by: int) -> int:
            self.n += by
            return self.n

        @gw.method()
        def twice(self, by: int) -> int:
            self.add(by)
            return self.add(by)

    assert Counter().add.local(1) == 1
    assert Counter().twice.local(2) == 5


async def test_current_call_works_in_a_local_call_and_only_there(app: gw.App) -> None:
    @app.cls()
    class Witness:
        tag: str = gw.parameter(default="none")

        @gw.method()
        def look(self) -> Any:
            call = gw.current_call()
            return call.method, gw.current_attempt_number(), call.deadline, call.cancelled, call.parameters["tag"]

        @gw.method()
        async def look_async(self) -> Any:
            await asyncio.sleep(0)
            return self.look()

        @gw.method()
        def look_stream(self) -> Iterator[str]:
            yield gw.current_call().method

        @gw.method()
        @gw.batched(max_batch_size=8)
        def look_batch(self, xs: list[int]) -> list[str]:
            return [call.method for call in gw.current_call().inputs]

    assert Witness(tag="a").look.local() == ("look", 1, None, False, "a")
    assert await Witness(tag="b").look_async.local() == ("look_async", 1, None, False, "b")
    items = Witness().look_stream.local()
    assert next(items) == "look_stream"
    assert Witness().look_batch.local(1) == "look_batch"
    with pytest.raises(RuntimeError, match="outside a call"):
        gw.current_call()


# --- asynchronous methods --------------------------------------------------------------------------------------------


async def test_an_asynchronous_method_gives_an_awaitable_and_runs_on_the_loop_of_its_hooks(app: gw.App) -> None:
    @app.cls()
    class Looped:
        @gw.on_enter()
        async def load(self) -> None:
            self.loop = asyncio.get_running_loop()
            self.open = asyncio.Event()

        @gw.method()
        async def wait(self) -> str:
            await self.open.wait()
            return "open"

        @gw.method()
        async def let_in(self) -> bool:
            self.open.set()
            return asyncio.get_running_loop() is self.loop

    waiting = asyncio.ensure_future(Looped().wait.local())
    assert await Looped().let_in.local() is True
    assert await asyncio.wait_for(waiting, 10) == "open"


def test_the_awaitable_can_be_given_to_asyncio_run(app: gw.App) -> None:
    @app.cls()
    class Sleeper:
        @gw.method()
        async def double(self, x: int) -> int:
            await asyncio.sleep(0)
            return 2 * x

        @gw.method()
        async def refuse(self) -> None:
            raise RefusedError("no")

    assert asyncio.run(Sleeper().double.local(4)) == 8
    assert asyncio.run(Sleeper().double.local(5)) == 10
    with pytest.raises(RefusedError):
        asyncio.run(Sleeper().refuse.local())


async def test_cancelling_the_task_that_awaits_it_cancels_the_method(app: gw.App) -> None:
    started, ended = threading.Event(), threading.Event()

    @app.cls()
    class Holder:
        @gw.method()
        async def hold(self) -> None:
            started.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.set()
                raise

    task = asyncio.ensure_future(Holder().hold.local())
    assert await asyncio.to_thread(started.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(ended.wait, 10)


# --- batched methods -------------------------------------------------------------------------------------------------


async def test_a_batched_method_takes_one_input_and_runs_a_batch_of_one(app: gw.App) -> None:
    @app.cls()
    class Embedder:
        @gw.method()
        @gw.batched(max_batch_size=8, wait_ms=60_000)
        def embed(self, texts: list[str], scales: list[int] = 3) -> list[Any]:  # type: ignore[assignment]
            return [(len(texts), text, scale) for text, scale in zip(texts, scales, strict=True)]

        @gw.method()
        @gw.batched(max_batch_size=8, wait_ms=60_000)
        async def embed_async(self, texts: list[str]) -> tuple[Any, ...]:
            return tuple((len(texts), text) for text in texts)

    assert Embedder().embed.local("a") == (1, "a", 3)
    assert Embedder().embed.local("a", scales=5) == (1, "a", 5)
    assert await Embedder().embed_async.local("b") == (1, "b")
    with pytest.raises(TypeError, match=r"Embedder\.embed"):
        Embedder().embed.local()


async def test_an_exception_in_place_of_the_result_is_raised(app: gw.App) -> None:
    @app.cls()
    class Careful:
        @gw.method()
        @gw.batched(max_batch_size=8)
        def check(self, xs: list[int]) -> list[Any]:
            return [RefusedError(x) for x in xs]

        @gw.method()
        @gw.batched(max_batch_size=8)
        async def check_async(self, xs: list[int]) -> list[Any]:
            return [RefusedError(x) for x in xs]

    with pytest.raises(RefusedError, match="7"):
        Careful().check.local(7)
    with pytest.raises(RefusedError, match="8"):
        await Careful().check_async.local(8)


@pytest.mark.parametrize(
    ("result", "named"), [([], "0 results"), ([1, 2], "2 results"), ("a", "str"), ({0: 1}, "dict"), (None, "NoneType")]
)
async def test_a_batch_result_that_a_worker_would_refuse_is_refused_here_too(
    app: gw.App, result: Any, named: str
) -> None:
    @app.cls()
    class Sloppy:
        @gw.method()
        @gw.batched(max_batch_size=8)
        def embed(self, xs: list[int]) -> Any:
            return result

        @gw.method()
        @gw.batched(max_batch_size=8)
        async def embed_async(self, xs: list[int]) -> Any:
            return result

    with pytest.raises(gw.BatchResultError, match=rf"Sloppy\.embed\(\).*{named}"):
        Sloppy().embed.local(1)
    with pytest.raises(gw.BatchResultError, match=rf"Sloppy\.embed_async\(\).*{named}"):
        await Sloppy().embed_async.local(1)


# --- generators ------------------------------------------------------------------------------------------------------


async def test_generators_are_lazy_and_closing_the_iterator_closes_them(app: gw.App) -> None:
    log: list[Any] = []

    @app.cls()
    class Counter:
        @gw.on_enter()
        def load(self) -> None:
            self.step = 2

        @gw.method()
        def count(self) -> Iterator[int]:
            try:
                for x in itertools.count():
                    log.append(x)
                    yield x * self.step
            finally:
                log.append("closed")

        @gw.method()
        async def count_async(self) -> AsyncIterator[int]:
            try:
                for x in itertools.count():
                    await asyncio.sleep(0)
                    log.append(x)
                    yield x * self.step
            finally:
                log.append("closed")

    items = Counter().count.local()
    assert log == []
    assert [next(items), next(items)] == [0, 2]
    assert log == [0, 1]
    items.close()  # type: ignore[attr-defined]
    assert log == [0, 1, "closed"]

    log.clear()
    later: Any = Counter().count_async.local()
    assert log == []
    assert [await later.__anext__(), await later.__anext__()] == [0, 2]
    await later.aclose()
    assert log == [0, 1, "closed"]


async def test_generators_end_and_raise_as_they_are(app: gw.App) -> None:
    @app.cls()
    class Short:
        @gw.method()
        def count(self, n: int, *, fail: bool = False) -> Iterator[int]:
            yield from range(n)
            if fail:
                raise RefusedError("after all")

        @gw.method()
        async def count_async(self, n: int, *, fail: bool = False) -> AsyncIterator[int]:
            for x in range(n):
                yield x
            if fail:
                raise RefusedError("after all")

    assert list(Short().count.local(3)) == [0, 1, 2]
    assert [x async for x in Short().count_async.local(3)] == [0, 1, 2]  # type: ignore[attr-defined]
    got: list[int] = []
    with pytest.raises(RefusedError):
        got.extend(Short().count.local(2, fail=True))
    items: Any = Short().count_async.local(2, fail=True)
    with pytest.raises(RefusedError):
        got.extend([x async for x in items])
    assert got == [0, 1]


# --- parameters ------------------------------------------------------------------------------------------------------


def test_call_scoped_values_share_the_instance_and_each_call_sees_its_own(app: gw.App) -> None:
    entered: list[int] = []

    @app.cls()
    class Classifier:
        threshold: float = gw.parameter(default=0.5)

        @gw.on_enter()
        def load(self) -> None:
            entered.append(1)
            self.calls = 0

        @gw.method()
        def classify(self, score: float) -> tuple[bool, int]:
            self.calls += 1
            return score > self.threshold, self.calls

        @gw.method()
        def stream(self) -> Iterator[float]:
            yield self.threshold
            yield self.threshold

    strict, lax = Classifier(threshold=0.9), Classifier(threshold=0.1)
    assert strict.classify.local(0.5) == (False, 1)
    assert lax.classify.local(0.5) == (True, 2)
    mixed = zip(strict.stream.local(), lax.stream.local(), strict=True)
    assert list(mixed) == [(0.9, 0.1), (0.9, 0.1)]
    assert entered == [1]
    with pytest.raises(gw.InvalidDefinition, match="threshold"):
        Classifier(threshold="high")


def test_each_set_of_worker_scoped_values_has_an_instance_whose_hooks_see_them(app: gw.App) -> None:
    @app.cls()
    class Model:
        name: str = gw.parameter(default="small", scope="worker")

        @gw.on_enter()
        def load(self) -> None:
            self.loaded = f"weights of {self.name}"

        @gw.method()
        def what(self) -> str:
            return self.loaded

    assert Model().what.local() == "weights of small"
    assert Model(name="large").what.local() == "weights of large"
    assert Model(name="small").what.local() == "weights of small"


def test_reading_a_call_scoped_parameter_in_on_enter_is_refused_with_advice(app: gw.App) -> None:
    @app.cls()
    class Early:
        name: str = gw.parameter(default="small")

        @gw.on_enter()
        def load(self) -> None:
            self.loaded = self.name

        @gw.method()
        def what(self) -> str:
            return self.loaded

    with pytest.raises(gw.InvalidDefinition, match='scope="worker"'):
        Early().what.local()


def test_parameters_without_a_default_have_the_value_that_was_given(app: gw.App) -> None:
    @app.cls()
    class Needy:
        name: str = gw.parameter()

        @gw.method()
        def what(self) -> str:
            return self.name

    assert Needy(name="given").what.local() == "given"
    with pytest.raises(gw.InvalidDefinition, match="name"):
        Needy()
