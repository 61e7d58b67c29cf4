"""The cluster's nodes: what they have, and which of them are lost before Ray knows it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from gworker import clock

log = logging.getLogger("gworker.controller")

# How long what is known of the cluster's nodes is good for.
NODES_S = 0.3
# The same for whether somebody listens there.
LOOK_S = 1.0
# How long Ray may take to name the nodes: its head may be away.
ANSWER_S = 3.0
# How long a lost node may take to refuse a connection.
REFUSAL_S = 1.0
# How long a lost node is passed over: Ray knows of it after 15 s, with its defaults.
LOST_S = 60.0


def node_totals() -> list[dict[str, float]]:
    """The resources of each node that is alive, by Ray's names."""
    return list(_alive().values())


class Nodes:
    """The cluster's nodes, for many who ask again and again: Ray is asked once in a while, and so are the nodes.

    A node is lost where nobody listens at its address. One that does not even refuse may be cut off for a moment, and
    so may Ray's head node: what it does not tell proves nothing.
    """

    def __init__(self) -> None:
        self._totals: dict[str, dict[str, float]] = {}
        self._asked_at = float("-inf")
        self._addresses: dict[str, tuple[str, int]] | None = None
        self._lost: dict[str, float] = {}
        self._look: asyncio.Task[None] | None = None
        self._looked_at = float("-inf")
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="gworker-nodes")

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

    async def why_lost(self, node_id: str) -> str:
        """Why a node is taken for lost; nothing where it is not."""
        await self._look_soon()
        if node_id in self._lost:
            return f"node lost: nobody listens at the address of its node {node_id}"
        if self._addresses is not None and node_id not in self._addresses:
            return f"node lost: Ray has marked its node {node_id} dead"
        return ""

    async def lost_since(self, instant: float) -> bool:
        """Whether any node was found to be lost at or after an instant of `clock.now()`."""
        await self._look_soon()
        return any(at >= instant for at in self._lost.values())

    async def _look_soon(self) -> None:
        """Look whether somebody listens at each node, together with whoever asks now, and for whoever asks soon."""
        if self._look is None and clock.now() - self._looked_at >= LOOK_S:
            self._look = asyncio.ensure_future(self._look_at_all())
        if self._look is not None:
            await asyncio.shield(self._look)

    async def _look_at_all(self) -> None:
        try:
            with contextlib.suppress(Exception):
                asked = asyncio.get_running_loop().run_in_executor(self._asking, _listening)
                self._addresses = await asyncio.wait_for(asked, ANSWER_S)
            known = list((self._addresses or {}).items())
            for (node_id, _), refused in zip(
                known, await asyncio.gather(*(_refuses(*a) for _, a in known)), strict=True
            ):
                if refused:
                    self._lost.setdefault(node_id, clock.now())
        finally:
            self._looked_at, self._look = clock.now(), None

    def _still_lost(self) -> Collection[str]:
        now = clock.now()
        self._lost = {node_id: at for node_id, at in self._lost.items() if now - at < LOST_S}
        return self._lost


def _alive() -> dict[str, dict[str, float]]:
    return {node["NodeID"]: dict(node["Resources"]) for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]


def _listening() -> dict[str, tuple[str, int]]:
    """Where the nodes that Ray takes for alive listen."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"]) for node in nodes if node["Alive"]}


async def _refuses(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), REFUSAL_S)
    except ConnectionRefusedError:
        return True
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return False
