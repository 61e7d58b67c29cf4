"""The cluster's nodes: what they have, and which of them are lost before Ray knows it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
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
    return list(_totals().values())


class Nodes:
    """The cluster's nodes, for many who ask again and again: Ray is asked once in a while, and so are the nodes.

    A node is lost where nobody listens at its address. One that does not even refuse may be cut off for a moment, and
    so may Ray's head node: what it does not tell proves nothing.
    """

    def __init__(self) -> None:
        self._totals: dict[str, dict[str, float]] = {}
        self._asked_at = float("-inf")
        self._lost: dict[str, float] = {}
        self._seen: set[str] = set()
        self._dead: set[str] = set()
        self._look: asyncio.Task[None] | None = None
        self._began_at = float("-inf")
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="gworker-nodes")

    def totals(self) -> list[dict[str, float]]:
        """The resources of each node that is alive, by Ray's names."""
        now = clock.now()
        if now - self._asked_at >= NODES_S:
            self._totals, self._asked_at = _totals(), now
        lost = self._still_lost()
        return [resources for node_id, resources in self._totals.items() if node_id not in lost]

    def actor_options(self) -> dict[str, Any]:
        """What keeps an actor off lost nodes. Ray would place it there, and hear of that when it learns of the loss."""
        lost = self._still_lost()
        return {"label_selector": {"ray.io/node-id": f"!in({','.join(lost)})"}} if lost else {}

    async def why_lost(self, node_id: str, *, at_most_old_s: float = LOOK_S) -> str:
        """Why a node is taken for lost; nothing where it is not, or was not so many seconds ago."""
        if not node_id:
            return ""
        await self._look_since(clock.now() - at_most_old_s)
        if node_id in self._still_lost():
            return f"node lost: nobody listens at the address of its node {node_id}"
        return f"node lost: Ray has marked its node {node_id} dead" if node_id in self._dead else ""

    async def any_lost(self) -> bool:
        """Whether any node is lost that Ray takes for alive."""
        await self._look_since(clock.now() - LOOK_S)
        return bool(self._still_lost())

    async def node_of(self, actor: Any) -> str:
        """The id of the node that Ray has put an actor on; nothing where it does not tell, or has not yet."""
        found: str = await self._ask(_node_of, actor) or ""
        return found

    async def _look_since(self, instant: float) -> None:
        """Wait for a look that began at this instant or later."""
        while self._began_at < instant:
            if self._look is None:
                self._look = asyncio.ensure_future(self._look_at_all())
            await asyncio.shield(self._look)

    async def _look_at_all(self) -> None:
        """Look whether somebody listens at each node, for all who ask now or soon."""
        began_at = clock.now()
        try:
            addresses: dict[str, tuple[str, int]] = await self._ask(_addresses) or {}
            if addresses:
                self._seen |= addresses.keys()
                self._dead = self._seen - addresses.keys()
            refused = await asyncio.gather(*(_refuses(*address) for address in addresses.values()))
            for node_id, refuses in zip(addresses, refused, strict=True):
                if refuses:
                    self._lost.setdefault(node_id, clock.now())
                elif refuses is False:
                    self._lost.pop(node_id, None)
        finally:
            self._began_at, self._look = began_at, None

    async def _ask(self, question: Callable[..., Any], *about: Any) -> Any:
        """What Ray answers; None where it does not in time."""
        asked = asyncio.get_running_loop().run_in_executor(self._asking, question, *about)
        try:
            return await asyncio.wait_for(asked, ANSWER_S)
        except Exception:
            log.debug("Ray does not tell its nodes", exc_info=True)
            return None

    def _still_lost(self) -> Collection[str]:
        now = clock.now()
        self._lost = {node_id: at for node_id, at in self._lost.items() if now - at < LOST_S}
        return self._lost


def _alive() -> list[dict[str, Any]]:
    """The nodes that Ray takes for alive."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _totals() -> dict[str, dict[str, float]]:
    return {node["NodeID"]: dict(node["Resources"]) for node in _alive()}


def _addresses() -> dict[str, tuple[str, int]]:
    return {node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"]) for node in _alive()}


def _node_of(actor: Any) -> str:
    from ray._private.state import actors  # internal to Ray; its public way asks the dashboard

    found: str = actors(actor._actor_id.hex())["Address"]["NodeID"]
    return found


async def _refuses(host: str, port: int) -> bool | None:
    """Whether nobody listens there; None where it does not say."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), REFUSAL_S)
    except ConnectionRefusedError:
        return True
    except (OSError, asyncio.TimeoutError):
        return None
    writer.close()
    return False
