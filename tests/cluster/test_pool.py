"""A pool has the workers it should have: its floor, what demand asks for, and none that nobody needs."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from typing import Any

import pytest
import ray

import gworker as gw

pytestmark = pytest.mark.cluster


def test_run_begins_with_the_whole_floor_up_and_ends_with_no_process_left(
    app: Any, ledger: Any, pids: Any, gone: Any, eventually: Any
) -> None:
    @app.cls(cpu=0.1, min_workers=2)
    class Kept:
        @gw.on_enter()
        def load(self) -> None:
            ledger.write(f"enter {os.getpid()}")

        @gw.on_exit()
        def unload(self) -> None:
            ledger.write(f"exit {os.getpid()}")

        @gw.method()
        def pid(self) -> int:
            return os.getpid()

    with app.run():
        floor = pids(app, "Kept")
        assert len(floor) == 2
        assert Kept().pid.remote() in floor
    assert eventually(lambda: gone(*floor))
    assert sorted(ledger.lines()) == sorted([f"{word} {pid}" for word in ("enter", "exit") for pid in floor])
    assert not app.status().running


def test_the_first_call_starts_a_worker_and_later_ones_find_it_until_the_app_is_stopped(app: Any, pids: Any) -> None:
    @app.cls(cpu=0.1)
    class Lazy:
        @gw.method()
        def pid(self) -> int:
            return os.getpid()

    assert not app.status().running
    first = Lazy().pid.remote()
    assert [Lazy().pid.remote() for _ in range(5)] == [first] * 5
    assert pids(app, "Lazy") == [first]
    app.stop()
    assert not app.status().running
    assert Lazy().pid.remote() != first, "a later call starts it again"


def test_a_worker_imports_nothing_that_only_callers_and_controllers_need(app: Any) -> None:
    @app.cls(cpu=0.1)
    class Lean:
        @gw.on_enter()
        def load(self) -> None:
            self.imported = set(sys.modules)

        @gw.method()
        def modules(self) -> set[str]:
            return self.imported

    ours = {name for name in Lean().modules.remote() if name.partition(".")[0] == "gworker"}
    unwanted = {"gworker.control", "gworker.http", "gworker.cli", "gworker.router.client", "gworker.router.router"}
    assert not ours & unwanted
    assert len(ours) <= 66, "each costs a start half a millisecond, two where there is no byte code"
    ready = next(e for e in app.status().events if e.action == "ready")
    assert re.search(r"[\d.]+ s until its process was up, [\d.]+ s to load, [\d.]+ s in on_enter", ready.reason)


def test_workers_are_added_with_demand_and_never_beyond_max_workers(
    shared_app: Any, gate: Any, pids: Any, eventually: Any
) -> None:
    @shared_app.cls(cpu=0.1, max_workers=3)
    class Growing:
        @gw.method()
        def wait(self) -> int:
            gate.wait()
            return os.getpid()

    calls = [Growing().wait.spawn() for _ in range(9)]
    three = eventually(lambda: len(found := pids(shared_app, "Growing")) == 3 and found)
    pool = shared_app.status().pool("Growing")
    assert (pool.desired, pool.starting) == (3, 0)
    eventually(lambda: (pool := shared_app.status().pool("Growing")) and (pool.queued, pool.running) == (6, 3))
    gate.open()
    assert {call.get() for call in calls} == set(three)


def test_demand_that_lasts_adds_a_worker_beside_one_that_serves(
    shared_app: Any, gate: Any, pids: Any, eventually: Any
) -> None:
    @shared_app.cls(cpu=0.1)
    @gw.concurrent(max_inputs=4, target_inputs=2)
    class Lasting:
        @gw.method()
        async def wait(self) -> int:
            await gate.wait_async()
            return os.getpid()

    calls = [Lasting().wait.spawn()]
    (first,) = eventually(lambda: pids(shared_app, "Lasting"))
    calls += [Lasting().wait.spawn() for _ in range(3)]
    assert first in eventually(lambda: len(found := pids(shared_app, "Lasting")) == 2 and found)
    assert shared_app.status().pool("Lasting").desired == 2
    gate.open()
    assert {call.get() for call in calls} == {first}, "there was room in the first worker all the time"


def test_an_idle_worker_leaves_after_the_window_and_takes_its_process_along(
    shared_app: Any, ledger: Any, pids: Any, gone: Any, eventually: Any
) -> None:
    @shared_app.cls(cpu=0.1, scaledown_window_s=1.5)
    class Brief:
        @gw.on_exit()
        def unload(self) -> None:
            ledger.write(f"exit {os.getpid()}")

        @gw.method()
        def pid(self) -> int:
            return os.getpid()

    first = Brief().pid.remote()
    threading.Event().wait(0.7)  # less than the window: it is still there
    assert Brief().pid.remote() == first
    assert eventually(lambda: gone(first))
    assert ledger.lines() == [f"exit {first}"]
    assert not shared_app.status().pool("Brief").workers
    assert Brief().pid.remote() != first


def test_the_window_leaves_the_floor_alone(shared_app: Any, pids: Any, gate: Any, eventually: Any) -> None:
    @shared_app.cls(cpu=0.1, min_workers=1, max_workers=2, scaledown_window_s=0.5)
    class Windowed:
        @gw.method()
        def wait(self) -> int:
            gate.wait()
            return os.getpid()

    calls = [Windowed().wait.spawn() for _ in range(2)]
    eventually(lambda: len(pids(shared_app, "Windowed")) == 2)
    gate.open()
    served = gw.gather(*calls)
    (floor,) = eventually(lambda: len(found := pids(shared_app, "Windowed")) == 1 and found)
    assert floor in served
    threading.Event().wait(1.0)  # two windows more
    assert pids(shared_app, "Windowed") == [floor]


def test_a_worker_that_is_killed_is_replaced_at_once_and_the_floor_is_kept(
    shared_app: Any, pids: Any, eventually: Any
) -> None:
    @shared_app.cls(cpu=0.1, min_workers=2)
    class Killed:
        @gw.method()
        def pid(self) -> int:
            return os.getpid()

    Killed().pid.remote()
    first, second = eventually(lambda: len(found := pids(shared_app, "Killed")) == 2 and found)
    os.kill(first, signal.SIGKILL)
    now = eventually(lambda: len(found := pids(shared_app, "Killed")) == 2 and first not in found and found)
    assert second in now
    assert shared_app.status().pool("Killed").restarts == 1
    assert {Killed().pid.remote() for _ in range(10)} <= set(now)


def test_a_crash_loses_only_what_ran_in_that_worker(shared_app: Any, ledger: Any, gate: Any, eventually: Any) -> None:
    @shared_app.cls(cpu=0.1, max_workers=1)
    class Fragile:
        @gw.method()
        def work(self, name: str) -> str:
            ledger.write(f"{name} {os.getpid()}")
            if name == "victim":
                gate.wait()
            return name

    victim = Fragile().work.spawn("victim")
    (started,) = eventually(ledger.lines)
    queued = [Fragile().work.spawn(f"queued {i}") for i in range(3)]
    os.kill(int(started.split()[1]), signal.SIGKILL)
    with pytest.raises(gw.WorkerLost, match="may have started"):
        victim.get(30)
    assert gw.gather(*queued) == ["queued 0", "queued 1", "queued 2"]
    names = [line.rsplit(" ", 1)[0] for line in ledger.lines()]
    assert sorted(names) == ["queued 0", "queued 1", "queued 2", "victim"], "each ran once"


def test_stop_finishes_what_runs_ends_what_waits_and_runs_on_exit_afterwards(
    app: Any, ledger: Any, gate: Any, gone: Any, eventually: Any
) -> None:
    @app.cls(cpu=0.1, max_workers=1)
    class Slow:
        @gw.on_exit()
        async def unload(self) -> None:
            ledger.write("exit")

        @gw.method()
        def wait(self, name: str) -> int:
            ledger.write(name)
            gate.wait()
            ledger.write(f"{name} done")
            return os.getpid()

    running = Slow().wait.spawn("running")
    eventually(ledger.lines)
    waiting = Slow().wait.spawn("waiting")
    controller = app.client().controller
    stopping = threading.Thread(target=app.stop)
    stopping.start()
    eventually(lambda: ray.get(controller.status.remote()).pool("Slow").draining)
    assert not running.done()
    gate.open()
    pid = running.get(10)
    stopping.join(20)
    assert not stopping.is_alive()
    with pytest.raises(gw.PoolUnavailable, match="stopped"):
        waiting.get(10)
    assert eventually(lambda: gone(pid))
    assert ledger.lines() == ["running", "running done", "exit"]


def test_a_drain_does_not_wait_longer_than_drain_timeout_s(app: Any, ledger: Any, gone: Any, eventually: Any) -> None:
    @app.cls(cpu=0.1, drain_timeout_s=0.5)
    @gw.concurrent(max_inputs=2)
    class Endless:
        @gw.on_exit()
        def unload(self) -> None:
            ledger.write("exit")

        @gw.method()
        def run(self) -> None:
            ledger.write(str(os.getpid()))
            threading.Event().wait(60)

    call = Endless().run.spawn()
    (pid,) = eventually(ledger.lines)
    app.stop()
    assert eventually(lambda: gone(int(pid)))
    assert ledger.lines() == [pid, "exit"]
    with pytest.raises((gw.WorkerLost, gw.PoolUnavailable)):
        call.get(5)


def test_on_exit_hooks_run_in_reverse_each_even_if_another_raises(app: Any, ledger: Any) -> None:
    class Base:
        @gw.on_enter()
        def base_in(self) -> None:
            ledger.write("base in")

        @gw.on_exit()
        def base_out(self) -> None:
            ledger.write("base out")

    @app.cls(cpu=0.1)
    class Derived(Base):
        @gw.on_enter()
        async def derived_in(self) -> None:
            ledger.write("derived in")

        @gw.on_exit()
        async def first_out(self) -> None:
            ledger.write("first out")

        @gw.on_exit()
        def second_out(self) -> None:
            ledger.write("second out")
            raise RuntimeError("cannot leave")

        @gw.method()
        def work(self) -> None:
            ledger.write("work")

    Derived().work.remote()
    app.stop()
    assert ledger.lines() == ["base in", "derived in", "work", "second out", "first out", "base out"]


def test_each_set_of_worker_scoped_values_has_a_pool_that_is_dropped_when_idle(
    shared_app: Any, gone: Any, eventually: Any
) -> None:
    @shared_app.cls(cpu=0.1, scaledown_window_s=0.5)
    class Model:
        size: str = gw.parameter(default="small", scope="worker")

        @gw.on_enter()
        def load(self) -> None:
            self.loaded = self.size

        @gw.method()
        def loaded_in(self) -> tuple[str, int]:
            return self.loaded, os.getpid()

    small, large = Model().loaded_in.remote(), Model(size="large").loaded_in.remote()
    assert (small[0], large[0]) == ("small", "large")
    assert small[1] != large[1]
    assert eventually(lambda: gone(small[1], large[1]))
    assert Model(size="large").loaded_in.remote()[0] == "large"
