"""The cluster's nodes: one that refuses a connection is lost, and passed over until Ray knows it too."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from gworker import clock
from gworker.control import nodes as nodes_module
from gworker.control.nodes import LOOK_S, LOST_S, Nodes


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
    assert await nodes.why_lost("a") == ""
    assert nodes.totals() == [{"CPU": 4}, {"CPU": 8}]
    assert nodes.actor_options() == {}

    assert not await nodes.any_lost()
    cluster.lose("a")
    passing(2 * LOOK_S)
    assert await nodes.any_lost()
    assert await nodes.why_lost("a") == "node lost: nobody listens at the address of its node a"
    assert nodes.totals() == [{"CPU": 8}]
    assert nodes.actor_options() == {"label_selector": {"ray.io/node-id": "!in(a)"}}
    cluster.lose("b")
    passing(2 * LOOK_S)
    assert await nodes.why_lost("b") != ""
    assert nodes.actor_options() == {"label_selector": {"ray.io/node-id": "!in(a,b)"}}


async def test_a_node_that_ray_does_not_know_any_more_is_lost(cluster: Cluster, passing: Any) -> None:
    nodes = Nodes()
    assert await nodes.why_lost("a") == ""
    cluster.told["a"]["Alive"] = False
    passing(2 * LOOK_S)
    assert await nodes.why_lost("a") == "node lost: Ray has marked its node a dead"
    assert nodes.actor_options() == {}
    assert nodes.totals() == [{"CPU": 8}]


async def test_a_lost_node_that_ray_still_takes_for_alive_after_long_is_used_again(
    cluster: Cluster, passing: Any
) -> None:
    nodes = Nodes()
    cluster.lose("a")
    assert await nodes.why_lost("a")
    passing(LOST_S - 1)
    assert nodes.actor_options() != {} and len(nodes.totals()) == 1
    passing(2)
    assert nodes.actor_options() == {} and len(nodes.totals()) == 2


async def test_a_node_that_listens_again_is_not_lost_any_more(cluster: Cluster, passing: Any) -> None:
    nodes = Nodes()
    address = cluster.listening["a"].getsockname()
    cluster.lose("a")
    assert await nodes.why_lost("a")
    cluster.listening["a"] = socket.create_server(address)
    passing(2 * LOOK_S)
    assert await nodes.why_lost("a") == ""
    assert nodes.actor_options() == {}


async def test_a_look_from_before_a_death_clears_nobody(cluster: Cluster, passing: Any) -> None:
    nodes = Nodes()
    assert await nodes.why_lost("a") == ""
    cluster.lose("a")
    passing(LOOK_S / 2)
    assert await nodes.why_lost("a") == ""
    assert await nodes.why_lost("a", at_most_old_s=0.0) != ""


async def test_a_node_that_joined_after_the_last_answer_is_not_dead(
    cluster: Cluster, passing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = Nodes()
    assert await nodes.why_lost("a") == ""
    cluster.add("c", CPU=1)
    passing(600)
    monkeypatch.setattr(nodes_module.ray, "nodes", list)
    assert await nodes.why_lost("c") == ""


async def test_an_actor_whose_node_ray_does_not_tell_is_on_none(cluster: Cluster) -> None:
    nodes = Nodes()
    assert await nodes.node_of(object()) == ""
    assert await nodes.why_lost("") == ""


async def test_a_node_that_does_not_answer_at_all_is_not_lost(
    cluster: Cluster, passing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cut_off(*_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(nodes_module, "REFUSAL_S", 0.05)
    monkeypatch.setattr(nodes_module.asyncio, "open_connection", cut_off)
    nodes = Nodes()
    assert await nodes.why_lost("a") == ""
    assert nodes.actor_options() == {}


async def test_a_head_node_that_does_not_answer_makes_no_node_a_lost_one_and_holds_up_nobody(
    cluster: Cluster, passing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = Nodes()
    assert await nodes.why_lost("a") == ""

    def refuses() -> Any:
        raise RuntimeError("GCS is unavailable")

    monkeypatch.setattr(nodes_module.ray, "nodes", refuses)
    passing(2 * LOOK_S)
    assert await nodes.why_lost("a") == ""

    over = threading.Event()
    monkeypatch.setattr(nodes_module.ray, "nodes", over.wait)
    monkeypatch.setattr(nodes_module, "ANSWER_S", 0.05)
    passing(2 * LOOK_S)
    assert await nodes.why_lost("a") == ""
    over.set()


async def test_many_who_ask_share_one_look(cluster: Cluster, passing: Any) -> None:
    nodes = Nodes()
    for _ in range(10):
        nodes.actor_options()
    assert cluster.asked == 0
    for _ in range(10):
        nodes.totals()
    assert cluster.asked == 1
    cluster.asked = 0
    assert await asyncio.gather(*(nodes.why_lost("a") for _ in range(100))) == [""] * 100
    assert await nodes.why_lost("b") == ""
    assert cluster.asked == 1
    passing(2 * LOOK_S)
    await nodes.why_lost("b")
    assert cluster.asked == 2
