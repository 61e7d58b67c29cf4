"""Workers on another node of the cluster: calls come by TCP, weights are there once, and the node may be lost."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

import gworker as gw
from tests.chaos.account import Book, Receipt
from tests.chaos.test_direct import lanes_of
from tests.conftest import eventually

pytestmark = pytest.mark.cluster


class Node:
    """One more node of the Ray that tests share, as `ray start` makes it, with 8 of a resource called `far`."""

    def __init__(self, address: str, log: Path) -> None:
        self.id = ""
        self._log = log
        self._before = alive_nodes()
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={address}"]
        command += ["--num-cpus=4", "--num-gpus=0", f"--resources={json.dumps({'far': 8})}"]
        command += [f"--object-store-memory={200 * 1024 * 1024}"]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)

    def come_up(self) -> None:
        """Wait until Ray knows it."""
        end = time.monotonic() + 60
        while not (new := alive_nodes() - self._before):
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < end, f"the node did not come up: {self._log.read_text()}"
            time.sleep(0.05)
        (self.id,) = new

    def kill(self) -> None:
        """Take all of its processes down at once, its workers included: the machine is gone."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (
                psutil.Process(self.process.pid),
                *psutil.Process(self.process.pid).children(recursive=True),
            ):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()

    def leave(self) -> None:
        """Have it say goodbye to Ray, which else needs a quarter of a minute to see that it has gone."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children():
                if process.name() == "raylet":
                    process.terminate()
        eventually(lambda: self.id not in alive_nodes(), 60)
        self.kill()


def alive_nodes() -> set[str]:
    """The ids of the nodes that Ray takes to be alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


@pytest.fixture
def make_node(ray_cluster: None, address: str, tmp_path: Path) -> Iterator[Callable[[], Node]]:
    """Starts nodes. When the test ends all are stopped, and Ray knows of none any more."""
    made: list[Node] = []

    def make() -> Node:
        made.append(Node(address, tmp_path / f"node-{len(made)}"))
        made[-1].come_up()
        return made[-1]

    yield make
    for node in made:
        node.leave()


def define(app: Any, **options: Any) -> Any:
    """A class whose workers live on the other node."""

    @app.cls(**{"cpu": 0.1, "resources": {"far": 1}, "min_workers": 1, "max_workers": 1, **options})
    @gw.concurrent(max_inputs=64)
    class Far:
        @gw.method()
        def where(self) -> tuple[str, int]:
            return ray.get_runtime_context().get_node_id(), os.getpid()

        @gw.method()
        def double(self, array: Any) -> Any:
            array *= 2  # it is the worker's own
            return array

        @gw.method()
        async def plus_one(self, number: int) -> int:
            return number + 1

        @gw.method()
        def count(self, most: int) -> Iterator[int]:
            yield from range(most)

        @gw.method()
        def sell(self, book: Book, number: int, takes_s: float) -> Receipt:
            with book.execution(number) as receipt:
                time.sleep(takes_s)
            return receipt

    return Far


def connections_of(app: Any) -> list[socket.socket]:
    """The sockets of this process's direct lanes that are connected."""
    wires = [lane._wire for lane in lanes_of(app) if lane._wire is not None]
    return [wire.transport.get_extra_info("socket") for wire in wires if wire.transport is not None]


def test_calls_to_another_node_go_by_tcp(app: Any, make_node: Callable[[], Node]) -> None:
    node = make_node()
    far = define(app)()
    there, _ = far.where.remote()
    assert there == node.id != ray.get_runtime_context().get_node_id()
    assert [connected.family for connected in connections_of(app)] == [socket.AF_INET]

    for size in (10, 1_000_000):  # the larger one would be in shared memory, were it on one node
        array = np.arange(size, dtype=np.float64)
        doubled = far.double.remote(array)
        assert np.array_equal(doubled, 2 * np.arange(size))
        doubled[0] = 1  # it is the caller's own
        assert array[1] == 1, "what the worker does with its own is not seen here"
    [way] = eventually(lambda: list(far._router().express._idle))
    assert way._socket.family == socket.AF_INET
    assert [far.plus_one.remote(number) for number in range(20)] == list(range(1, 21))
    assert way._sequence >= 20, "a thread that waits for its only call needs no other thread"
    assert list(far.plus_one.map(range(2_000))) == list(range(1, 2_001))
    assert list(far.count.stream(500)) == list(range(500))
    assert [connected.family for connected in connections_of(app)] == [socket.AF_INET]


def test_a_lost_node_is_seen_and_passed_over_before_ray_knows_of_it(
    app: Any, make_node: Callable[[], Node], tmp_path: Path
) -> None:
    book = Book(tmp_path / "book")
    nodes = {node.id: node for node in (make_node(), make_node())}
    far = define(app, retries=1)()
    there, _ = far.where.remote()
    calls = [far.sell.spawn(book, number, 1.0) for number in range(8)]
    eventually(lambda: len(book.all()) == 8)
    nodes[there].kill()

    receipts = [call.get(60) for call in calls]
    assert {receipt.attempt for receipt in receipts} == {2}, "none was given to the lost worker once more"
    assert len(book.all()) == 16
    (elsewhere,) = set(nodes) - {there}
    assert far.where.remote()[0] == elsewhere
    events = [(event.worker, event.action, event.reason) for event in app.status().events]
    assert [action for _, action, _ in events] == ["starting", "ready", "crashed", "starting", "ready"]
    assert events[2] == ("Far-1", "crashed", f"node lost: nobody listens at the address of its node {there}")


def test_a_node_that_is_lost_while_a_worker_starts_there_is_no_failed_start(
    app: Any, make_node: Callable[[], Node], ledger: Any, gate: Any
) -> None:
    nodes = {node.id: node for node in (make_node(), make_node())}

    @app.cls(cpu=0.1, resources={"far": 1})
    class Slow:
        @gw.on_enter()
        def enter(self) -> None:
            ledger.write(ray.get_runtime_context().get_node_id())
            gate.wait(60)

        @gw.method()
        def where(self) -> str:
            return ray.get_runtime_context().get_node_id()

    call = Slow().where.spawn()
    (first,) = eventually(ledger.lines)
    nodes[first].kill()
    second = eventually(lambda: ledger.lines()[1:], 40)
    gate.open()
    assert [call.get(30)] == second == list(set(nodes) - {first})
    actions = [event.action for event in app.status().events]
    assert actions == ["scaled up", "starting", "crashed", "starting", "ready"]


def test_calls_are_told_what_went_with_a_node_until_another_one_comes(
    app: Any, make_node: Callable[[], Node], tmp_path: Path
) -> None:
    book = Book(tmp_path / "book")
    node = make_node()
    far = define(app)()
    assert far.where.remote()[0] == node.id
    running = far.sell.spawn(book, 1, 30.0)
    eventually(book.all)
    node.kill()
    with pytest.raises(gw.WorkerLost, match="Far-1 was lost"):
        running.get(30)
    with pytest.raises(gw.Unschedulable, match="Far needs far x1"):
        far.where.remote()

    other = make_node()
    eventually(lambda: app.status().pool("Far").ready == 1)
    assert far.where.remote()[0] == other.id


def test_each_node_has_the_weights_once(app: Any, make_node: Callable[[], Node], ledger: Any) -> None:
    make_node()

    class Model:
        @gw.on_enter()
        def enter(self) -> None:
            self.weights = gw.shared_weights("model", self.load, version="1")

        def load(self) -> dict[str, Any]:
            node = ray.get_runtime_context().get_node_id()
            ledger.write(f"load {node}")
            return {"layer": np.full(1_000_000, 7.0), "node": node}

        @gw.method()
        def look(self) -> tuple[str, str, float]:
            node = ray.get_runtime_context().get_node_id()
            return node, self.weights["node"], float(self.weights["layer"].sum())

    two = {"cpu": 0.1, "min_workers": 2, "max_workers": 2}
    far = app.cls(**two, resources={"far": 1})(type("Far", (Model,), {}))
    near = app.cls(**two, gpu=gw.Gpu("A100", 0.1))(type("Near", (Model,), {}))
    app.run().__enter__()
    for handle in (far(), near()):
        for node, loaded_on, total in handle.look.starmap([()] * 20):
            assert (loaded_on, total) == (node, 7e6)
    assert len(ledger.lines()) == len(set(ledger.lines())) == 2
