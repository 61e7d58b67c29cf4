"""Weights that workers of a node share, on a real Ray: who loads, what dies when, what stays behind."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import ray

import gworker as gw
from gworker.router import deployment

pytestmark = pytest.mark.cluster

MB = 2**20
SIZE_MB = 24


def bytes_in_store() -> int:
    """What the object store of this node holds."""
    from gworker.weights import room

    return room._used_and_capacity()[0]


def mapped_from(array: Any) -> tuple[str, int]:
    """Which file, and where in it, the memory of an array belongs to: equal in two processes for the same memory."""
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, rights, offset, device, inode, *_ = line.split()
            start, end = (int(part, 16) for part in span.split("-"))
            if start <= address < end:
                assert rights == "r--s", f"mapped as {rights}"
                return f"{device} {inode}", int(offset, 16) + address - start
    raise AssertionError("the array is mapped nowhere")


def define(app: Any, ledger: Any, gate: Any = None, **options: Any) -> Any:
    """A class whose weights a worker loads, says so, and waits at the gate if there is one."""

    @app.cls(**{"cpu": 0.1, "min_workers": 2, "max_workers": 2, **options})
    class Model:
        @gw.on_enter()
        def enter(self) -> None:
            self.weights = gw.shared_weights("model", self.load)

        def load(self) -> dict[str, Any]:
            ledger.write(f"load {os.getpid()}")
            if gate is not None:
                gate.wait()
            return {"layer": np.full(SIZE_MB * MB // 8, os.getpid()), "bias": np.zeros(3)}

        @gw.method()
        def look(self) -> dict[str, Any]:
            time.sleep(0.05)
            layer = self.weights["layer"]
            self.weights["bias"] += 1  # a small one is the worker's own
            try:
                layer[0] = 0
            except ValueError as error:
                return {"pid": os.getpid(), "loaded_by": int(layer[-1]), "at": mapped_from(layer), "error": str(error)}
            raise AssertionError("the weights can be written")

    return Model


def looks(model: Any, count: int) -> dict[int, Any]:
    """What each of `count` workers sees, by process id."""
    seen: dict[int, Any] = {}
    end = time.monotonic() + 30
    while len(seen) < count:
        assert time.monotonic() < end, f"only {len(seen)} of {count} workers have answered"
        seen |= {look["pid"]: look for look in gw.gather(*[model().look.spawn() for _ in range(4 * count)])}
    return seen


@pytest.fixture
def app(make_app: Callable[[], Any]) -> Iterator[Any]:
    """An app of the test's own; deployed ones are stopped, too."""
    made = make_app()
    yield made
    made.stop(drain=False)


def test_one_loads_all_share_its_memory_and_nothing_is_left(
    app: Any, ledger: Any, pids: Any, gone: Any, eventually: Any
) -> None:
    before = bytes_in_store()
    model = define(app, ledger)
    app.run().__enter__()
    seen = looks(model, 2)
    (loader,) = {look["loaded_by"] for look in seen.values()}
    assert ledger.lines() == [f"load {loader}"]
    (place,) = {look["at"] for look in seen.values()}
    assert place[0] != "00:00 0", "memory of one's own belongs to no file"
    assert all("read-only" in look["error"] for look in seen.values())

    os.kill(loader, signal.SIGKILL)
    eventually(lambda: len({*pids(app, "Model")} - {loader}) == 2, 30)
    again = looks(model, 2)
    assert {look["at"] for look in again.values()} == {place}, "they outlive the worker that loaded them"
    assert len(ledger.lines()) == 1

    used = bytes_in_store() - before
    assert SIZE_MB * MB <= used < 1.1 * SIZE_MB * MB, "one copy, and no more"
    app.stop()
    assert eventually(lambda: gone(*again))
    eventually(lambda: bytes_in_store() <= before)


def test_a_worker_that_is_killed_while_it_loads_makes_way_for_the_one_that_waits(
    app: Any, ledger: Any, gate: Any, eventually: Any, pids: Any
) -> None:
    model = define(app, ledger, gate)
    calls = [model().look.spawn() for _ in range(2)]
    first = int(eventually(ledger.lines)[0].split()[1])
    eventually(lambda: len(pids(app, "Model", "STARTING")) == 2)
    os.kill(first, signal.SIGKILL)
    second = int(eventually(lambda: len(ledger.lines()) > 1 and ledger.lines()[1]).split()[1])
    assert second != first
    gate.open()
    assert {call.get(30)["loaded_by"] for call in calls} == {second}
    assert len(ledger.lines()) == 2


def test_what_load_raises_is_why_the_start_failed(app: Any, ledger: Any) -> None:
    @app.cls(cpu=0.1)
    class Broken:
        @gw.on_enter()
        async def enter(self) -> None:
            self.weights = await gw.shared_weights.aio("model", self.read_the_file)

        async def read_the_file(self) -> Any:
            ledger.write("load")
            raise FileNotFoundError("/models/llama-3 is not there")

        @gw.method()
        def work(self) -> None: ...

    with pytest.raises(gw.StartupFailed) as failure:
        Broken().work.remote()
    assert "FileNotFoundError: /models/llama-3 is not there" in str(failure.value)
    assert "in read_the_file" in str(failure.value)
    assert len(ledger.lines()) == 3, "each start tries itself"


def test_an_update_loads_anew_and_a_version_that_the_user_vouches_for_is_kept(
    app: Any, ledger: Any, pids: Any, eventually: Any
) -> None:
    @app.cls(cpu=0.1, min_workers=1, max_workers=1)
    class Model:
        @gw.on_enter()
        async def enter(self) -> None:
            self.own = await gw.shared_weights.aio("model", lambda: self.load("own"))
            self.vouched = await gw.shared_weights.aio("model", lambda: self.load("vouched"), version="1")

        def load(self, which: str) -> Any:
            ledger.write(which)
            return np.full(MB, len(ledger.lines()))

        @gw.method()
        def look(self) -> tuple[int, int, int]:
            return os.getpid(), int(self.own[-1]), int(self.vouched[-1])

    app.deploy()
    first, own, vouched = Model().look.remote()
    assert (own, vouched) == (1, 2)
    app.deploy()
    second, own, vouched = Model().look.remote()
    assert second != first and (own, vouched) == (3, 2)
    assert ledger.lines() == ["own", "vouched", "own"]

    # The controller owns them: with it they go, but not from the workers that have them.
    controller = deployment.find_controller(app.name)
    report: Callable[[Any], int] = lambda self: os.getpid()  # noqa: E731  # travels by value
    os.kill(ray.get(controller.__ray_call__.remote(report)), signal.SIGKILL)
    eventually(lambda: "controller restarted" in [event.action for event in app.status().events], 30)
    assert Model().look.remote() == (second, 3, 2)
    os.kill(second, signal.SIGKILL)
    third, own, vouched = Model().look.with_options(retries=3).remote()
    assert third != second and (own, vouched) == (4, 5)


def test_where_the_store_has_no_room_each_worker_has_its_own_copy_and_one_says_why(app: Any, ledger: Any) -> None:
    @app.cls(cpu=0.1, min_workers=2, max_workers=2)
    class Model:
        @gw.on_enter()
        def enter(self) -> None:
            from gworker.weights import room

            room.FULL = 0.0
            handler = logging.Handler(logging.WARNING)
            handler.emit = lambda record: ledger.write(record.getMessage())  # type: ignore[method-assign]
            logging.getLogger("gworker.worker").addHandler(handler)
            self.weights = gw.shared_weights("model", lambda: np.full(MB, os.getpid()))

        @gw.method()
        def mine(self) -> int:
            time.sleep(0.05)
            self.weights[0] = 1
            return int(self.weights[-1] == os.getpid()) * os.getpid()

    with app.run():
        pids = {*gw.gather(*[Model().mine.spawn() for _ in range(8)])}
    assert len(pids) == 2 and 0 not in pids
    (told,) = ledger.lines()
    assert "the weights model are not shared: they take 0.01 GB" in told and "object_store_memory" in told
