"""The Ray cluster that this process uses: one that is there, or a local one that gworker starts."""

from __future__ import annotations

import logging
import os

import ray

from gworker.errors import NotFound

log = logging.getLogger("gworker")

# Whether this process's Ray was started by gworker, because there was none.
_started_here = False


def have_ray() -> None:
    """Connect to the cluster there is (RAY_ADDRESS, or one started on this machine), or start a local one."""
    global _started_here
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        ray.init(logging_level=logging.WARNING)
        return
    log.info("starting a local Ray")
    ray.init(include_dashboard=False, logging_level=logging.WARNING)
    _started_here = is_ours_alone()


def attach() -> None:
    """Connect to the cluster there is. Raises NotFound where there is none."""
    if ray.is_initialized():
        return
    try:
        if os.environ.get("RAY_ADDRESS") == "local":
            raise ConnectionError("RAY_ADDRESS=local asks for a Ray of one's own")
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), logging_level=logging.WARNING)
    except ConnectionError as error:
        raise NotFound(
            "no Ray cluster was found, and so no deployed app: start one (ray start --head), or set RAY_ADDRESS"
        ) from error


def started_here() -> bool:
    """Whether gworker started the Ray that this process uses."""
    return _started_here


def is_ours_alone() -> bool:
    """Whether this process started the Ray it uses: one machine, to which no node will come."""
    from ray._private import worker

    node = worker._global_node
    return node is not None and bool(node.is_head())
