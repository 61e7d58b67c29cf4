"""The cluster's nodes: one that refuses a connection is lost, and passed over until Ray knows it too."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from gworker import clock
from gworker.control import nodes as nodes_module
from gworker.control.nodes import LOST_S, Nodes


class Cluster:
    """What `ray.nodes` tells; a node that is up listens."""

    def __init__(self) -> None:
        self.told: dict[str, dict[str, Any]] = {}
        self.listening: dict[str, socket.socket] = {}
        self.asked = 0

    def add(self, name: str, **resources: float) -> None:
        listening = self.listening[name] = socket.create_server(("127.0.0.1", 0))
        host, port = listening.getsockname()
        self.told[name] = {
            "NodeID": name, "Alive": True, "Resources": resources, "NodeManagerAddress": host, "NodeManagerPort": port,
        }  # fmt: skip

    def lose(self, name: str) -> None:
        self.listening.pop(name).close()

    def nodes(self) -> list[dict[str, Any]]:
        self.asked += 1
        return list(self.told.values())


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    cluster = Cluster()
    monkeypatch.setattr(nodes_module.ray, "nodes", cluster.nodes)
    cluster.add("a", CPU=4)
    cluster.add("b", CPU=8)
    yield cluster
    for listening in cluster.listening.values():
        listening.close()


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets time pass for `clock`."""
    now = [clock.now()]
    monkeypatch.setattr(clock, "now", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


async def test_a_node_is_lost_once_nobody_listens_there(cluster: Cluster, passing: Any) -> None:
    nodes = Nodes()
    assert not await nodes.is_lost("a")
    assert nodes.totals() == [{"CPU": 4}, {"CPU": 8}]
    assert nodes.actor_options() == {}

    cluster.lose("a")
    assert await nodes.is_lost("a")
    assert nodes.totals() == [{"CPU": 8}]
    assert nodes.actor_options() == {"label_selector": {"ray.io/node-id": "!in(a)"}}
    cluster.lose("b")
    assert await nodes.is_lost("b")
    assert nodes.actor_options() == {"label_selector": {"ray.io/node-id": "!in(a,b)"}}


async def test_a_node_that_ray_does_not_know_any_more_is_lost(cluster: Cluster, passing: Any) -> None:
    nodes = Nodes()
    cluster.told["a"]["Alive"] = False
    assert await nodes.is_lost("a")
    assert nodes.actor_options() == {}
    assert nodes.totals() == [{"CPU": 8}]


async def test_a_lost_node_that_ray_still_takes_for_alive_after_long_is_used_again(
    cluster: Cluster, passing: Any
) -> None:
    nodes = Nodes()
    cluster.lose("a")
    assert await nodes.is_lost("a")
    passing(LOST_S - 1)
    assert nodes.actor_options() != {} and len(nodes.totals()) == 1
    passing(2)
    assert nodes.actor_options() == {} and len(nodes.totals()) == 2


async def test_a_node_that_does_not_answer_at_all_is_not_lost(
    cluster: Cluster, passing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: Any, **__: Any) -> socket.socket:
        raise TimeoutError("timed out")

    monkeypatch.setattr(nodes_module.socket, "create_connection", cut_off)
    nodes = Nodes()
    assert not await nodes.is_lost("a")
    assert nodes.actor_options() == {}


async def test_a_head_node_that_does_not_answer_makes_no_node_a_lost_one(
    cluster: Cluster, passing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_reach() -> Any:
        raise RuntimeError("GCS is unavailable")

    monkeypatch.setattr(nodes_module.ray, "nodes", out_of_reach)
    assert not await Nodes().is_lost("a")


async def test_ray_is_asked_once_for_many_and_not_at_all_where_nothing_is_lost(cluster: Cluster, passing: Any) -> None:
    nodes = Nodes()
    for _ in range(10):
        nodes.actor_options()
    assert cluster.asked == 0
    for _ in range(10):
        nodes.totals()
    assert cluster.asked == 1
