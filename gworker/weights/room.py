"""Whether Ray's object store on this node has room for weights."""

from __future__ import annotations

import logging

import ray

log = logging.getLogger("gworker.worker")

# From this share on Ray writes objects to disk (its `object_spilling_threshold`).
FULL = 0.8


def lacking_room(nbytes: int) -> str | None:
    """What the store of this node lacks for an object of `nbytes`, and what to do; None where it fits.

    None as well where Ray does not tell: then it has to see how it gets on.
    """
    try:
        used, capacity = _used_and_capacity()
    except Exception:
        log.debug("the object store of this node does not tell how full it is", exc_info=True)
        return None
    return explain(nbytes, used, capacity)


def explain(nbytes: int, used: int, capacity: int) -> str | None:
    """Why `nbytes` do not go into a store that holds `used` of `capacity`; None where they do."""
    if used + nbytes <= FULL * capacity:
        return None
    return (
        f"they take {_gb(nbytes)}, and Ray's object store on this node, {_gb(capacity)} with {_gb(used)} in use, is to "
        f"be filled to {FULL:.0%} only. Give it more with ray.init(object_store_memory=...) or `ray start "
        "--object-store-memory=...`, in bytes, and /dev/shm as much"
    )


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"


def _used_and_capacity() -> tuple[int, int]:
    from ray._private.internal_api import node_stats

    here = ray.get_runtime_context().get_node_id()
    node = next(n for n in ray.nodes() if n["NodeID"] == here)  # type: ignore[no-untyped-call]
    address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
    stats = node_stats(address, port, include_memory_info=False).store_stats  # type: ignore[no-untyped-call]
    return int(stats.object_store_bytes_used), int(stats.object_store_bytes_avail)
