"""Calls that workers make themselves: to other classes of the app, to their own, with the time that is left."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import gworker as gw
from tests.conftest import Gate, Ledger, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("module_app")]

app = gw.App("contract-nested")


class LeafError(Exception):
    """What the inner class raises."""


@app.cls(max_workers=1, cpu=0.1)
@gw.concurrent(max_inputs=64)
class Leaf:
    """The class that is called by others."""

    factor: int = gw.parameter(default=2)

    @gw.method()
    def multiply(self, x: int) -> int:
        return self.factor * x

    @gw.method()
    async def multiply_async(self, x: int) -> int:
        return self.factor * x

    @gw.method()
    def pid(self) -> int:
        return os.getpid()

    @gw.method()
    def left_s(self, _: int = 0) -> float | None:
        return gw.current_call().deadline_left_s

    @gw.method()
    def stream_left_s(self) -> Iterator[float | None]:
        yield gw.current_call().deadline_left_s

    @gw.method()
    def refuse(self, x: int) -> None:
        raise LeafError(x)

    @gw.method()
    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    @gw.method()
    async def hold(self, gate: Gate, ledger: Ledger) -> str:
        try:
            await gate.wait_async()
        except asyncio.CancelledError:
            ledger.write("inner cancelled")
            raise
        return "held"


@app.cls(max_workers=1, cpu=0.1)
@gw.concurrent(max_inputs=16)
class Outer:
    """The class that calls others, and itself where it has room."""

    @gw.method()
    def quadruple(self, x: int) -> int:
        return Leaf().multiply.remote(Leaf().multiply.remote(x))

    @gw.method()
    async def quadruple_async(self, x: int) -> int:
        return await Leaf().multiply.remote.aio(await Leaf().multiply_async.remote.aio(x))

    @gw.method()
    def pids(self) -> tuple[int, int]:
        return os.getpid(), Leaf().pid.remote()

    @gw.method()
    def many_ways(self) -> list[Any]:
        leaf = Leaf()
        calls = [leaf.multiply.spawn(x) for x in range(3)]
        return [gw.gather(*calls), list(leaf.multiply.map(range(3))), list(leaf.count.stream(3))]

    @gw.method()
    async def many_ways_async(self) -> list[Any]:
        leaf = Leaf()
        calls = [leaf.multiply.spawn(x) for x in range(3)]
        return [
            await gw.gather.aio(*calls),
            [y async for y in leaf.multiply.map.aio(range(3))],
            [y async for y in leaf.count.stream.aio(3)],
        ]

    @gw.method()
    def stream_on(self, n: int) -> Iterator[int]:
        for x in Leaf().count.stream(n):
            yield 10 * x

    @gw.method()
    async def stream_on_async(self, n: int) -> AsyncIterator[int]:
        async for x in Leaf().count.stream.aio(n):
            yield 10 * x

    @gw.method()
    def through(self, handle: Any, x: int) -> int:
        return handle.multiply.remote(x)

    @gw.method()
    async def through_all_async(self, handles: dict[str, Any], x: int) -> dict[str, int]:
        return {name: await handle.multiply.remote.aio(x) for name, handle in handles.items()}

    @gw.method()
    def give_back(self, handle: Any) -> Any:
        return handle

    @gw.method()
    def catch(self, x: int) -> str:
        try:
            Leaf().refuse.remote(x)
        except LeafError as error:
            return f"caught {error}"
        return "nothing"

    @gw.method()
    def pass_on(self, x: int) -> None:
        Leaf().refuse.remote(x)

    @gw.method()
    def countdown(self, n: int) -> list[int]:
        return [n, *Outer().countdown.remote(n - 1)] if n else [0]

    @gw.method()
    async def countdown_async(self, n: int) -> list[int]:
        return [n, *await Outer().countdown_async.remote.aio(n - 1)] if n else [0]

    # --- time

    @gw.method()
    def left_s(self, own_s: float | None) -> tuple[float | None, float | None]:
        inner = Leaf().left_s.with_options(deadline_s=own_s).remote()
        return gw.current_call().deadline_left_s, inner

    @gw.method()
    async def left_s_async(self, own_s: float | None) -> tuple[float | None, float | None]:
        inner = await Leaf().left_s.with_options(deadline_s=own_s).remote.aio()
        return gw.current_call().deadline_left_s, inner

    @gw.method()
    def left_s_every_way(self) -> dict[str, float | None]:
        leaf = Leaf()
        return {
            "spawn": leaf.left_s.spawn().get(),
            "map": next(leaf.left_s.map([0])),
            "starmap": next(leaf.left_s.starmap([(0,)])),
            "stream": next(leaf.stream_left_s.stream()),
            "two levels": Outer().left_s.remote(None)[1],
        }

    @gw.method()
    async def left_s_every_way_async(self) -> dict[str, float | None]:
        leaf = Leaf()
        return {
            "spawn": await leaf.left_s.spawn(),
            "task": await asyncio.create_task(leaf.left_s.remote.aio()),
            "thread": await asyncio.to_thread(leaf.left_s.remote),
            "map": await anext(leaf.left_s.map.aio([0])),
            "stream": await anext(leaf.stream_left_s.stream.aio()),
            "two levels": (await Outer().left_s_async.remote.aio(None))[1],
        }

    @gw.method()
    def hold(self, gate: Gate, ledger: Ledger) -> str:
        try:
            return Leaf().hold.remote(gate, ledger)
        except gw.DeadlineExceeded:
            ledger.write("outer was told")
            raise

    @gw.method()
    async def hold_async(self, gate: Gate, ledger: Ledger) -> str:
        return await Leaf().hold.remote.aio(gate, ledger)

    # --- what would block the loop

    @gw.method()
    async def block(self, way: str) -> str:
        leaf = Leaf()
        ways = {
            "remote": lambda: leaf.multiply.remote(1),
            "map": lambda: list(leaf.multiply.map([1])),
            "starmap": lambda: list(leaf.multiply.starmap([(1,)])),
            "for_each": lambda: leaf.multiply.for_each([1]),
            "stream": lambda: list(leaf.count.stream(1)),
            "get": lambda: Outer().quadruple_async.spawn(1).get(),
            "gather": lambda: gw.gather(Outer().quadruple_async.spawn(1)),
        }
        with pytest.raises(RuntimeError) as refused:
            ways[way]()
        return str(refused.value)

    @gw.method()
    async def get_what_is_there(self) -> int:
        call = Leaf().multiply.spawn(4)
        await call
        return call.get()


# --- between classes -------------------------------------------------------------------------------------------------


def test_a_method_calls_another_class_of_the_app_which_runs_in_a_worker_of_its_own() -> None:
    assert Outer().quadruple.remote(3) == 12
    here, there = Outer().pids.remote()
    assert len({here, there, os.getpid()}) == 3


async def test_an_asynchronous_method_calls_another_class_with_aio() -> None:
    assert await Outer().quadruple_async.remote.aio(3) == 12


def test_every_way_to_call_works_from_within_a_worker() -> None:
    expected = [[0, 2, 4], [0, 2, 4], [0, 1, 2]]
    assert Outer().many_ways.remote() == expected
    assert Outer().many_ways_async.remote() == expected


def test_a_generator_can_pass_on_what_another_one_streams() -> None:
    assert list(Outer().stream_on.stream(40)) == [10 * x for x in range(40)]
    assert list(Outer().stream_on_async.stream(40)) == [10 * x for x in range(40)]


def test_many_nested_calls_at_once_are_all_answered_and_none_mixed_up() -> None:
    assert list(Outer().quadruple.map(range(100))) == [4 * x for x in range(100)]
    assert list(Outer().quadruple_async.map(range(200))) == [4 * x for x in range(200)]


def test_an_exception_of_the_inner_class_can_be_caught_by_its_type_in_the_outer_and_in_the_driver() -> None:
    assert Outer().catch.remote(5) == "caught 5"
    with pytest.raises(LeafError, match="6") as caught:
        Outer().pass_on.remote(6)
    assert "pass_on" in str(caught.value.__cause__)


def test_a_class_with_room_in_its_worker_may_call_itself() -> None:
    assert Outer().countdown.remote(4) == [4, 3, 2, 1, 0]
    assert Outer().countdown_async.remote(4) == [4, 3, 2, 1, 0]


# --- handles as values -----------------------------------------------------------------------------------------------


def test_a_handle_passed_as_an_argument_keeps_its_parameters() -> None:
    assert Outer().through.remote(Leaf(factor=7), 3) == 21
    handles = {"five": Leaf(factor=5), "default": Leaf()}
    assert Outer().through_all_async.remote(handles, 2) == {"five": 10, "default": 4}


def test_a_handle_that_comes_back_equals_the_one_that_was_sent_and_can_be_called() -> None:
    sent = Leaf(factor=3)
    back = Outer().give_back.remote(sent)
    assert back == sent
    assert hash(back) == hash(sent)
    assert back.multiply.remote(5) == 15


def test_a_handle_of_a_class_of_a_function_can_be_passed_too(app: Any) -> None:
    @app.cls(cpu=0.1)
    class Adder:
        amount: int = gw.parameter(default=1)

        @gw.method()
        def multiply(self, x: int) -> int:
            return x + self.amount

    @app.cls(cpu=0.1)
    class User:
        @gw.method()
        def use(self, handle: Any, x: int) -> tuple[int, int]:
            return handle.multiply.remote(x), Adder(amount=100).multiply.remote(x)

    assert User().use.remote(Adder(amount=10), 1) == (11, 101)


# --- deadlines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["left_s", "left_s_async"])
@pytest.mark.parametrize(
    ("outer_s", "own_s", "at_most_s"), [(100, None, 100), (100, 900, 100), (900, 100, 100), (None, 100, 100)]
)
def test_a_nested_call_has_the_smaller_of_its_own_deadline_and_the_time_left(
    method: str, outer_s: float | None, own_s: float | None, at_most_s: float
) -> None:
    outer, inner = getattr(Outer(), method).with_options(deadline_s=outer_s).remote(own_s)
    assert (outer is None) == (outer_s is None)
    assert at_most_s - 60 < inner <= at_most_s


def test_without_any_deadline_a_nested_call_has_none() -> None:
    assert Outer().left_s.remote(None) == (None, None)


@pytest.mark.parametrize("method", ["left_s_every_way", "left_s_every_way_async"])
def test_whichever_way_the_nested_call_is_made_it_inherits_the_deadline(method: str) -> None:
    left_s = getattr(Outer(), method).with_options(deadline_s=100).remote()
    assert {way: left is not None and 40 < left <= 100 for way, left in left_s.items()} == dict.fromkeys(left_s, True)


def test_when_the_outer_deadline_passes_the_nested_call_ends_too(gate: Gate, ledger: Ledger) -> None:
    Outer().quadruple.remote(1)  # both classes have a worker
    with pytest.raises(gw.DeadlineExceeded):
        Outer().hold.with_options(deadline_s=2).remote(gate, ledger)
    eventually(lambda: sorted(ledger.lines()) == ["inner cancelled", "outer was told"])


def test_cancelling_an_asynchronous_call_cancels_the_call_it_waits_for(gate: Gate, ledger: Ledger) -> None:
    call = Outer().hold_async.spawn(gate, ledger)
    eventually(lambda: gate.arrivals == 1)
    call.cancel()
    with pytest.raises(gw.CallCancelled):
        call.get(10)
    eventually(lambda: ledger.lines() == ["inner cancelled"])


# --- what would wait for ever ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["remote", "map", "starmap", "for_each", "stream"])
def test_blocking_on_the_event_loop_of_a_worker_raises_at_once_and_names_the_asynchronous_way(way: str) -> None:
    method = "count" if way == "stream" else "multiply"
    said = Outer().block.with_options(deadline_s=60).remote(way)
    assert f"Leaf.{method}.{way}(...)" in said
    awaiting = "await" if way in {"remote", "for_each"} else "async for ... in"
    assert f"{awaiting} Leaf.{method}.{way}.aio(...)" in said


@pytest.mark.parametrize(("way", "instead"), [("get", "await call"), ("gather", "gather.aio")])
def test_waiting_for_a_spawned_call_on_the_event_loop_of_a_worker_is_refused_too(way: str, instead: str) -> None:
    said = Outer().block.with_options(deadline_s=60).remote(way)
    assert "Outer.quadruple_async" in said
    assert instead in said
    assert Outer().get_what_is_there.remote() == 8


@app.cls(max_workers=1, cpu=0.1)
class Alone:
    """One worker that runs one input at a time."""

    size: int = gw.parameter(default=1, scope="worker")

    @gw.method()
    def echo(self, x: Any) -> Any:
        return x

    @gw.method()
    def count(self) -> Iterator[int]:
        yield 1

    @gw.method()
    def call_itself(self, way: str) -> Any:
        alone = Alone()
        if way == "map":
            return list(alone.echo.map([1]))
        return next(alone.count.stream()) if way == "stream" else alone.echo.remote(1)

    @gw.method()
    async def call_itself_async(self, way: str) -> Any:
        alone = Alone()
        if way == "map":
            return [y async for y in alone.echo.map.aio([1])]
        if way == "stream":
            return [y async for y in alone.count.stream.aio()]
        return await alone.echo.remote.aio(1)

    @gw.method()
    def call_its_method(self) -> Any:
        return self.echo("by self")

    @gw.method()
    def leave_for_later(self, ledger: Ledger) -> None:
        Alone().note.spawn(ledger)
        ledger.write("first")

    @gw.method()
    def note(self, ledger: Ledger) -> None:
        ledger.write("second")

    @gw.method()
    def call_another_pool(self) -> Any:
        return Alone(size=2).echo.remote("elsewhere")


@pytest.mark.parametrize("way", ["remote", "map", "stream"])
@pytest.mark.parametrize("method", ["call_itself", "call_itself_async"])
def test_a_class_with_one_worker_that_calls_itself_is_told_so_at_once(method: str, way: str) -> None:
    with pytest.raises(RuntimeError, match=r"Alone\.\w+.*wait for itself.*max_workers.*gw\.concurrent"):
        getattr(Alone(), method).with_options(deadline_s=60).remote(way)


def test_what_such_a_class_can_do_instead(ledger: Ledger) -> None:
    assert Alone().call_its_method.with_options(deadline_s=60).remote() == "by self"
    Alone().leave_for_later.with_options(deadline_s=60).remote(ledger)
    eventually(lambda: ledger.lines() == ["first", "second"])


def test_calling_a_pool_of_the_same_class_with_other_parameters_is_no_deadlock() -> None:
    assert Alone().call_another_pool.with_options(deadline_s=60).remote() == "elsewhere"


def test_a_batched_method_of_the_only_worker_that_calls_its_class_is_told_so(app: Any) -> None:
    @app.cls(max_workers=1, cpu=0.1)
    class Batches:
        @gw.method()
        @gw.batched(max_batch_size=4)
        def embed(self, xs: list[int]) -> list[int]:
            return [Batches().plain.remote(x) for x in xs]

        @gw.method()
        def plain(self, x: int) -> int:
            return x

    with pytest.raises(RuntimeError, match="wait for itself"):
        Batches().embed.with_options(deadline_s=60).remote(1)


def test_a_class_that_may_have_a_second_worker_may_call_itself(app: Any) -> None:
    @app.cls(max_workers=2, cpu=0.1)
    class Two:
        @gw.method()
        def outer(self) -> tuple[int, int]:
            return os.getpid(), Two().inner.remote()

        @gw.method()
        def inner(self) -> int:
            return os.getpid()

    here, there = Two().outer.with_options(deadline_s=60).remote()
    assert here != there


# --- what would wait for ever, by a detour ---------------------------------------------------------------------------


@app.cls(max_workers=1, cpu=0.1)
class Ping:
    """One worker, one input at a time; calls Pong, which calls back."""

    @gw.method()
    def echo(self, x: Any) -> Any:
        return x

    @gw.method()
    def count(self) -> Iterator[int]:
        yield 1

    @gw.method()
    def via(self, way: str, back: str) -> Any:
        pong = Pong()
        if way == "map":
            return list(pong.back.map([back]))
        if way == "stream":
            return list(pong.back_stream.stream(back))
        if way == "far":
            return Far().on.remote(back)
        return pong.back.remote(back)

    @gw.method()
    async def via_async(self, way: str, back: str) -> Any:
        pong = Pong()
        if way == "map":
            return [y async for y in pong.back_async.map.aio([back])]
        if way == "stream":
            return [y async for y in pong.back_stream.stream.aio(back)]
        if way == "far":
            return await Far().on.remote.aio(back)
        return await pong.back_async.remote.aio(back)

    @gw.method()
    @gw.batched(max_batch_size=2)
    def via_batch(self, ways: list[str]) -> list[Any]:
        return [Pong().back.remote(way) for way in ways]

    @gw.method()
    def note(self, line: str, ledger: Ledger) -> None:
        ledger.write(line)

    @gw.method()
    def leave_for_later(self, ledger: Ledger) -> None:
        Pong().call_and_wait.spawn(ledger)
        ledger.write("first")

    @gw.method()
    async def leave_to_a_task(self, ledger: Ledger) -> None:
        self.task = asyncio.create_task(Pong().call_and_wait.remote.aio(ledger))
        await asyncio.sleep(0)
        ledger.write("first")

    @gw.method()
    def wait_for_itself(self) -> Any:
        return Ping().echo.spawn(1).get()

    @gw.method()
    async def wait_for_itself_async(self) -> Any:
        return await gw.gather.aio(Ping().echo.spawn(1))

    @gw.method()
    def wait_a_little(self) -> str:
        try:
            Ping().echo.spawn(1).get(timeout_s=0.1)
        except TimeoutError:
            return "not for ever"
        return "served"


@app.cls(max_workers=1, cpu=0.1)
class Pong:
    """Calls Ping."""

    @gw.method()
    def back(self, way: str) -> Any:
        ping = Ping()
        if way == "map":
            return list(ping.echo.map([1]))
        if way == "stream":
            return list(ping.count.stream())
        if way == "get":
            return ping.echo.spawn(1).get()
        if way == "spawn":
            ping.echo.spawn(1)
            return "spawned"
        return ping.echo.remote(1)

    @gw.method()
    async def back_async(self, way: str) -> Any:
        ping = Ping()
        if way == "get":
            return await ping.echo.spawn(1)
        return await ping.echo.remote.aio(1)

    @gw.method()
    def back_stream(self, way: str) -> Iterator[Any]:
        yield self.back(way)

    @gw.method()
    def call_and_wait(self, ledger: Ledger) -> None:
        Ping().note.remote("second", ledger)


@app.cls(max_workers=2, cpu=0.1)
class Far:
    """Is between the two, and has room itself."""

    @gw.method()
    def on(self, way: str) -> Any:
        return Pong().back.remote(way)


@pytest.mark.parametrize("back", ["remote", "map", "stream", "get"])
@pytest.mark.parametrize("way", ["remote", "map", "stream"])
def test_a_call_that_would_wait_for_a_caller_of_its_caller_is_told_so_at_once(way: str, back: str) -> None:
    with pytest.raises(RuntimeError, match=r"Ping\.\w+.*/Ping -> \S*/Pong -> \S*/Ping\).*wait for itself.*max_workers"):
        Ping().via.with_options(deadline_s=60).remote(way, back)


@pytest.mark.parametrize("back", ["remote", "get"])
@pytest.mark.parametrize("way", ["remote", "map", "stream"])
def test_so_is_one_that_awaits(way: str, back: str) -> None:
    with pytest.raises(RuntimeError, match=r"Ping\.\w+.*/Ping -> \S*/Pong -> \S*/Ping\).*wait for itself"):
        Ping().via_async.with_options(deadline_s=60).remote(way, back)


@pytest.mark.parametrize("method", ["via", "via_async"])
def test_the_whole_chain_is_named_also_where_a_class_in_it_has_room(method: str) -> None:
    with pytest.raises(RuntimeError, match=r"/Ping -> \S*/Far -> \S*/Pong -> \S*/Ping\)"):
        getattr(Ping(), method).with_options(deadline_s=60).remote("far", "remote")


def test_the_callers_of_all_inputs_of_a_batch_wait_for_what_it_calls() -> None:
    with pytest.raises(RuntimeError, match=r"/Ping -> \S*/Pong -> \S*/Ping\)"):
        Ping().via_batch.with_options(deadline_s=60).remote("remote")


@pytest.mark.parametrize("method", ["wait_for_itself", "wait_for_itself_async"])
def test_waiting_for_a_spawned_call_that_needs_the_worker_which_waits_is_refused_too(method: str) -> None:
    with pytest.raises(RuntimeError, match=r"the result of Ping\.echo .*wait for itself"):
        getattr(Ping(), method).with_options(deadline_s=60).remote()


def test_what_does_not_wait_for_ever_is_not_refused() -> None:
    assert Ping().via.with_options(deadline_s=60).remote("remote", "spawn") == "spawned"
    assert Ping().wait_a_little.with_options(deadline_s=60).remote() == "not for ever"


@pytest.mark.parametrize("method", ["leave_for_later", "leave_to_a_task"])
def test_a_call_whose_caller_does_not_wait_may_call_back(method: str, ledger: Ledger) -> None:
    getattr(Ping(), method).with_options(deadline_s=60).remote(ledger)
    eventually(lambda: ledger.lines() == ["first", "second"])


@pytest.mark.parametrize(("options", "inputs"), [({"max_workers": 2}, 1), ({"max_workers": 1}, 2)])
def test_a_class_that_has_or_may_have_room_can_be_called_back(app: Any, options: Any, inputs: int) -> None:
    @app.cls(cpu=0.1, **options)
    @gw.concurrent(max_inputs=inputs)
    class There:
        @gw.method()
        def start(self) -> int:
            return Back().again.remote()

        @gw.method()
        def end(self) -> int:
            return 7

    @app.cls(cpu=0.1, max_workers=1)
    class Back:
        @gw.method()
        def again(self) -> int:
            return There().end.remote()

    assert There().start.with_options(deadline_s=60).remote() == 7


# --- the call that runs ----------------------------------------------------------------------------------------------


def seen(call: gw.CallContext) -> tuple[str, int, str, dict[str, Any]]:
    """What a call context says."""
    return call.id, call.attempt, call.method, dict(call.parameters)


@app.cls(max_workers=1, cpu=0.1)
class Witness:
    """Looks at `current_call()` from everywhere."""

    tag: str = gw.parameter(default="none")

    @gw.on_enter()
    def look_in_the_hook(self) -> None:
        self.in_hook = self.look_or_say()

    def look_or_say(self) -> str:
        try:
            return gw.current_call().method
        except RuntimeError as error:
            return f"RuntimeError: {error}"

    @gw.method()
    def outside(self) -> dict[str, str]:
        told: list[str] = []
        thread = threading.Thread(target=lambda: told.append(self.look_or_say()))
        thread.start()
        thread.join()
        return {"hook": self.in_hook, "thread": told[0]}

    @gw.method()
    def look(self) -> Any:
        return seen(gw.current_call())

    @gw.method()
    async def look_async(self) -> Any:
        before = seen(gw.current_call())
        await asyncio.sleep(0)
        assert seen(gw.current_call()) == before
        return before

    @gw.method()
    def look_stream(self) -> Iterator[Any]:
        yield seen(gw.current_call())
        yield seen(gw.current_call())

    @gw.method()
    async def look_stream_async(self) -> AsyncIterator[Any]:
        yield seen(gw.current_call())
        await asyncio.sleep(0)
        yield seen(gw.current_call())

    @gw.method()
    def fail_until(self, attempt: int) -> int:
        if gw.current_attempt_number() < attempt:
            raise LeafError(gw.current_attempt_number())
        return gw.current_attempt_number()

    @gw.method()
    async def fail_until_async(self, attempt: int) -> int:
        if gw.current_attempt_number() < attempt:
            raise LeafError(gw.current_attempt_number())
        return gw.current_attempt_number()

    @gw.method()
    @gw.batched(max_batch_size=3, wait_ms=5000)
    def look_batch(self, xs: list[int]) -> list[Any]:
        call = gw.current_call()
        left_s = Leaf().left_s.remote()
        return [(call.method, call.deadline_left_s, seen(i), i.deadline_left_s, left_s) for i in call.inputs]

    @gw.method()
    @gw.batched(max_batch_size=3, wait_ms=5000)
    async def look_batch_async(self, xs: list[int]) -> list[Any]:
        call = gw.current_call()
        left_s = await Leaf().left_s.remote.aio()
        return [(call.method, call.deadline_left_s, seen(i), i.deadline_left_s, left_s) for i in call.inputs]

    @gw.method()
    @gw.batched(max_batch_size=1)
    def batch_attempt(self, attempts: list[int]) -> list[int]:
        (one,) = gw.current_call().inputs
        if one.attempt < attempts[0]:
            raise LeafError(one.attempt)
        return [one.attempt]


@pytest.mark.parametrize("method", ["look", "look_async"])
def test_current_call_tells_id_attempt_method_and_parameters(method: str) -> None:
    call = getattr(Witness(tag="mine"), method).spawn()
    assert call.get() == (call.id, 1, method, {"tag": "mine"})


@pytest.mark.parametrize("method", ["look_stream", "look_stream_async"])
def test_current_call_holds_throughout_a_generator(method: str) -> None:
    first, second = getattr(Witness(), method).stream()
    assert first == second
    assert first[1:] == (1, method, {"tag": "none"})


@pytest.mark.parametrize("method", ["fail_until", "fail_until_async", "batch_attempt"])
def test_current_attempt_number_counts_the_tries_from_one(method: str) -> None:
    bound = getattr(Witness(), method)
    retries = gw.Retries(max_retries=2, initial_delay_s=0.0)
    assert bound.remote(1) == 1
    assert bound.with_options(retries=retries).remote(3) == 3
    with pytest.raises(LeafError, match="3"):
        bound.with_options(retries=retries).remote(4)


@pytest.mark.parametrize("method", ["look_batch", "look_batch_async"])
def test_in_a_batch_current_call_is_the_batchs_with_its_inputs_and_the_latest_deadline(method: str) -> None:
    bound = getattr(Witness(tag="all"), method)
    limits = [100, 300, 200]
    calls = [bound.with_options(deadline_s=limit).spawn(x) for x, limit in enumerate(limits)]
    for call, limit, result in zip(calls, limits, gw.gather(*calls), strict=True):
        name, batch_left_s, own, own_left_s, nested_left_s = result
        assert name == method
        assert own == (call.id, 1, method, {"tag": "all"})
        assert limit - 60 < own_left_s <= limit
        assert 240 < batch_left_s <= 300
        assert 240 < nested_left_s <= 300


def test_a_batch_with_an_input_that_has_no_deadline_has_none() -> None:
    bound = Witness().look_batch
    calls = [bound.with_options(deadline_s=100).spawn(0), bound.spawn(1), bound.spawn(2)]
    results = gw.gather(*calls)
    assert [batch_left_s for _, batch_left_s, *_ in results] == [None] * 3
    assert [nested_left_s for *_, nested_left_s in results] == [None] * 3


def test_outside_a_call_both_raise_and_say_where_they_work() -> None:
    for ask in (gw.current_call, gw.current_attempt_number):
        with pytest.raises(RuntimeError, match=r"outside a call.*@gw\.method"):
            ask()
    told = Witness().outside.remote()
    assert all(said.startswith("RuntimeError") and "outside a call" in said for said in told.values()), told
