"""The plain ways to call: remote, aio, spawn, local; handles, calls, and the context of one."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import gworker as gw
from tests.conftest import Gate, Ledger, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("module_app")]

app = gw.App("contract-remote")


class Animal:
    """Not decorated: gives methods and hooks to those that derive from it."""

    @gw.on_enter()
    def wake(self) -> None:
        self.log = ["Animal.wake"]

    @gw.on_exit()
    def sleep(self) -> None:
        self.ledger.write("Animal.sleep")  # type: ignore[attr-defined]

    @gw.method()
    def speak(self) -> str:
        return "..."


@app.cls(max_workers=1, cpu=0.1)
class Dog(Animal):
    ledger: Ledger

    def __init__(self) -> None:
        self.count = 0

    @gw.on_enter()
    async def fetch(self) -> None:
        await asyncio.sleep(0.05)
        self.log.append("Dog.fetch")

    @gw.on_enter()
    def sit(self) -> None:
        self.log.append("Dog.sit")

    @gw.method()
    def speak(self) -> str:
        return "woof"

    @gw.method()
    def history(self) -> list[str]:
        return self.log

    @gw.method()
    def add(self, a: int, b: int = 10, *, c: int = 100) -> int:
        return a + b + c

    @gw.method()
    def everything(self, *args: int, **kwargs: int) -> tuple[Any, Any]:
        return args, kwargs

    @gw.method()
    async def add_async(self, a: int, b: int = 10) -> int:
        await asyncio.sleep(0)
        return a + b

    @gw.method()
    def increment(self) -> int:
        self.count += 1
        return self.count

    @gw.method()
    def pid(self) -> int:
        return os.getpid()

    @gw.method()
    def context(self) -> tuple[str, int, float | None, str, bool]:
        call = gw.current_call()
        assert gw.current_attempt_number() == call.attempt
        return call.id, call.attempt, call.deadline, call.method, call.cancelled

    @gw.method()
    async def context_async(self) -> tuple[str, str, str]:
        outer = gw.current_call().id
        in_a_task = await asyncio.create_task(self._id())
        return outer, in_a_task, gw.current_call().id

    async def _id(self) -> str:
        return gw.current_call().id

    @gw.method()
    def context_in_a_thread(self) -> str:
        seen: list[str] = []

        def look() -> None:
            try:
                gw.current_call()
            except RuntimeError as error:
                seen.append(str(error))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return seen[0]

    @gw.method()
    def hold(self, gate: Gate) -> str:
        gate.wait()
        return "held"


async def test_every_way_to_call_a_method_gives_its_result() -> None:
    add = Dog().add
    assert add.remote(1, 2, c=3) == 6
    assert await add.remote.aio(1, 2, c=3) == 6
    call = add.spawn(1, 2, c=3)
    assert call.get() == 6
    assert await call == 6
    assert list(add.map([1, 2])) == [111, 112]
    assert await Dog().add_async.remote.aio(1) == 11
    assert Dog().add_async.remote(1, b=2) == 3


def test_arguments_arrive_as_python_would_pass_them() -> None:
    dog = Dog()
    assert dog.add.remote(1) == 111
    assert dog.add.remote(b=1, a=2) == 103
    assert dog.everything.remote() == ((), {})
    assert dog.everything.remote(1, 2, x=3, self_=4) == ((1, 2), {"x": 3, "self_": 4})


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "missing a required argument: 'a'"),
        ((1, 2, 3), {}, "too many positional"),
        ((1,), {"d": 1}, "unexpected keyword argument 'd'"),
        ((1,), {"a": 1}, "multiple values"),
    ],
)
def test_wrong_arguments_are_a_type_error_at_the_call_before_anything_is_started(
    args: tuple[Any, ...], kwargs: dict[str, Any], says: str, make_app: Any
) -> None:
    own = make_app()
    unused = own.cls()(Dog.user_cls)  # type: ignore[attr-defined]
    for call in (unused().add.remote, unused().add.spawn):
        with pytest.raises(TypeError, match=rf"Dog\.add.*{says}.*its signature is add\(a"):
            call(*args, **kwargs)
    assert not own.status().running


def test_there_is_one_instance_and_its_state_persists() -> None:
    counts = [Dog().increment.remote() for _ in range(5)]
    assert counts == list(range(counts[0], counts[0] + 5))
    assert len({Dog().pid.remote() for _ in range(5)}) == 1
    assert Dog().pid.remote() != os.getpid()


def test_hooks_run_before_the_first_input_base_first_then_in_order_of_definition() -> None:
    assert Dog().history.remote() == ["Animal.wake", "Dog.fetch", "Dog.sit"]


def test_an_overridden_method_takes_the_place_of_the_base_s() -> None:
    assert Dog().speak.remote() == "woof"


def test_many_threads_may_call_one_handle() -> None:
    add = Dog().add
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(add.remote, range(100))) == list(range(110, 210))


def test_calls_from_several_event_loops_each_get_their_answer() -> None:
    async def several(start: int) -> list[int]:
        return list(await asyncio.gather(*(Dog().add_async.remote.aio(start + i, b=0) for i in range(10))))

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda start: asyncio.run(several(start)), [0, 100, 200, 300]))
    assert results == [list(range(start, start + 10)) for start in (0, 100, 200, 300)]


# --- calls -----------------------------------------------------------------------------------------------------------


async def test_a_spawned_call_is_there_at_once_and_can_be_asked_again_and_again(gate: Gate) -> None:
    begun = time.monotonic()
    call = Dog().hold.spawn(gate)
    assert time.monotonic() - begun < 0.5
    assert not call.done() and "running" in repr(call) and call.id in repr(call)
    with pytest.raises(TimeoutError, match=r"Dog\.hold.*no result after 0\.05 s"):
        call.get(timeout_s=0.05)
    gate.open()
    assert call.get(timeout_s=10) == "held"
    assert [call.get(), await call, await call] == ["held"] * 3
    assert call.done() and "returned" in repr(call)


async def test_gather_waits_for_all_and_keeps_their_order() -> None:
    calls = [Dog().add.spawn(i) for i in range(10)]
    assert gw.gather(*calls) == list(range(110, 120))
    assert await gw.gather.aio(*calls) == list(range(110, 120))
    assert gw.gather() == []


def test_the_id_of_a_call_is_the_same_on_both_sides() -> None:
    call = Dog().context.spawn()
    assert call.get() == (call.id, 1, None, "context", False)
    assert Dog().context.spawn().id != call.id


def test_the_current_call_is_known_in_tasks_and_not_in_threads_that_a_method_starts() -> None:
    call = Dog().context_async.spawn()
    assert call.get() == (call.id,) * 3
    assert "outside a call" in Dog().context_in_a_thread.remote()


def test_outside_a_call_there_is_no_current_call() -> None:
    for ask in (gw.current_call, gw.current_attempt_number):
        with pytest.raises(RuntimeError, match=r"outside a call.*@gw\.method\(\)"):
            ask()


# --- handles ---------------------------------------------------------------------------------------------------------


def test_a_handle_starts_nothing_and_survives_a_pickle() -> None:
    handle = pickle.loads(pickle.dumps(Dog()))
    assert handle == Dog() and hash(handle) == hash(Dog())
    assert handle.add.remote(1) == 111


def test_a_method_is_called_on_an_instance_and_by_one_of_the_ways() -> None:
    with pytest.raises(TypeError, match=r"Dog\(\)\.add\.remote"):
        Dog.add.remote(1)  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"Dog\.add\.remote\(\.\.\.\)"):
        Dog().add(1)
    with pytest.raises(AttributeError, match=r"'ad'.*did you mean add\?"):
        _ = Dog().ad  # type: ignore[attr-defined]


def test_a_variant_has_workers_of_its_own_and_leaves_the_class_alone() -> None:
    variant = Dog.with_options(scaledown_window_s=7)  # type: ignore[attr-defined]
    assert variant().pid.remote() != Dog().pid.remote()
    assert variant().pid.remote() == Dog.with_options(scaledown_window_s=7)().pid.remote()  # type: ignore[attr-defined]
    assert "7 s" in variant.describe() and "7 s" not in Dog.describe()  # type: ignore[attr-defined]


def test_limits_of_a_method_stack_and_leave_the_method_alone() -> None:
    limited = Dog().context.with_options(deadline_s=30).with_options(timeout_s=20)
    assert limited.remote()[2] is not None
    assert Dog().context.remote()[2] is None


# --- the app around --------------------------------------------------------------------------------------------------


def test_a_stopped_app_ends_waiting_calls_and_starts_again_at_the_next_one(make_app: Any, gate: Gate) -> None:
    own = make_app()
    dog = own.cls(max_workers=1, cpu=0.1, drain_timeout_s=0)(Dog.user_cls)  # type: ignore[attr-defined]
    assert not own.status().running
    before = dog().pid.remote()
    running = dog().hold.spawn(gate)
    eventually(lambda: gate.arrivals == 1)
    waiting = dog().pid.spawn()
    own.stop(drain=False)
    for call in (running, waiting):
        with pytest.raises(gw.GWorkerError):
            call.get(timeout_s=5)
    assert not own.status().running
    assert dog().pid.spawn().get(timeout_s=20) != before


def test_leaving_run_finishes_spawned_calls_and_runs_the_exit_hooks_in_reverse(make_app: Any, ledger: Ledger) -> None:
    own = make_app()

    @own.cls(min_workers=1, max_workers=1, cpu=0.1)
    class Cat(Animal):
        @gw.on_enter()
        def first(self) -> None:
            self.ledger = ledger

        @gw.on_exit()
        async def broken(self) -> None:
            self.ledger.write("Cat.broken")
            raise RuntimeError("on the way out")

        @gw.on_exit()
        def last(self) -> None:
            self.ledger.write("Cat.last")

        @gw.method()
        def nap(self) -> str:
            time.sleep(0.2)
            return "rested"

    with own.run():
        assert own.status().pool("Cat").ready == 1
        calls = [Cat().nap.spawn() for _ in range(3)]
    assert [call.get(timeout_s=0) for call in calls] == ["rested"] * 3
    assert ledger.lines() == ["Cat.last", "Cat.broken", "Animal.sleep"]
