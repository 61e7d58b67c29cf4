"""The cluster's nodes: what they have, and which of them are lost before Ray knows it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Collection
from typing import Any

import ray

from gworker import clock

log = logging.getLogger("gworker.controller")

# How long what is known of the cluster's nodes is good for.
NODES_S = 0.3
# How long a lost node may take to refuse a connection.
REFUSAL_S = 1.0
# How long a lost node is passed over: Ray knows of it after 15 s, with its defaults.
LOST_S = 60.0


def node_totals() -> list[dict[str, float]]:
    """The resources of each node that is alive, by Ray's names."""
    return list(_alive().values())


class Nodes:
    """The cluster's nodes, for many who ask again and again: Ray is asked once in `NODES_S`."""

    def __init__(self) -> None:
        self._totals: dict[str, dict[str, float]] = {}
        self._asked_at = float("-inf")
        self._lost: dict[str, float] = {}

    def totals(self) -> list[dict[str, float]]:
        """The resources of each node that is alive, by Ray's names."""
        now = clock.now()
        if now - self._asked_at >= NODES_S:
            self._totals, self._asked_at = _alive(), now
        lost = self._still_lost()
        return [resources for node_id, resources in self._totals.items() if node_id not in lost]

    def actor_options(self) -> dict[str, Any]:
        """What keeps an actor off lost nodes. Ray would place it there, and hear of that when it learns of the loss."""
        lost = self._still_lost()
        return {"label_selector": {"ray.io/node-id": f"!in({','.join(lost)})"}} if lost else {}

    async def is_lost(self, node_id: str) -> bool:
        """Whether a node is gone: nobody listens at its address.

        One that does not even refuse may be cut off for a moment, and so may Ray's head node: what it does not tell
        proves nothing.
        """
        try:
            address = (await asyncio.to_thread(_addresses)).get(node_id)
        except Exception:
            log.debug("Ray does not tell its nodes", exc_info=True)
            return False
        if address is None:
            return True
        if await asyncio.to_thread(_refuses, *address):
            self._lost[node_id] = clock.now()
            return True
        return False

    def _still_lost(self) -> Collection[str]:
        now = clock.now()
        self._lost = {node_id: at for node_id, at in self._lost.items() if now - at < LOST_S}
        return self._lost


def _alive() -> dict[str, dict[str, float]]:
    return {node["NodeID"]: dict(node["Resources"]) for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]


def _addresses() -> dict[str, tuple[str, int]]:
    """Where the nodes that Ray takes for alive listen."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"]) for node in nodes if node["Alive"]}


def _refuses(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=REFUSAL_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False
