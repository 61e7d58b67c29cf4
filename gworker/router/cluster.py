"""The Ray cluster that this process uses: one that is there, or a local one that gworker starts."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from pathlib import Path
from typing import Any

import ray
from ray._private import services

from gworker import termination
from gworker.errors import NotFound

log = logging.getLogger("gworker")

# How long a cluster may take to say that it is there, and how long to be connected to.
ANSWER_S = 5.0
CONNECT_S = 3.0
# Names the Ray that a process of gworker's own started for this one.
_LENT = "GWORKER_LENT_RAY"
# Whether this process's Ray was started by gworker, because there was none.
_started_here = False


def have_ray() -> None:
    """Connect to the cluster there is (RAY_ADDRESS, or one started on this machine), or start a local one."""
    global _started_here
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        _init()
        return
    log.info("starting a local Ray")
    gone = "" if "RAY_ADDRESS" in os.environ else _address_of_the_dead()
    if gone:
        log.warning("the Ray that was started on this machine, at %s, is gone: a new one is started", gone)
    _init(include_dashboard=False, **({"address": "local"} if gone else {}))
    _started_here = is_ours_alone()


def attach() -> None:
    """Connect to the cluster there is. Raises NotFound where there is none."""
    if ray.is_initialized():
        return
    try:
        if os.environ.get("RAY_ADDRESS") == "local":
            raise ConnectionError("RAY_ADDRESS=local asks for a Ray of one's own")
        if "RAY_ADDRESS" not in os.environ and not clusters_here() and (gone := _address_of_the_dead()):
            raise ConnectionError(f"the Ray that was started on this machine, at {gone}, is gone")
        _init(address=os.environ.get("RAY_ADDRESS", "auto"))
    except ConnectionError as error:
        raise NotFound(
            "no Ray cluster was found, and so no deployed app: start one (ray start --head), or set RAY_ADDRESS; "
            "one that wants a token is reached with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error


def _address_of_the_dead() -> str:
    """Where Ray would look for a cluster that has ended without saying so; nothing where it has not.

    It would try for a quarter of an hour to reach the address that such a cluster has left in a file.
    """
    address = services.find_bootstrap_address(None) or ""
    return "" if why_unreachable(address) is None else address


def why_unreachable(address: str) -> str | None:
    """Why nobody answers there; None where somebody does, or where the address is not a host and a port."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        return f"cannot be reached: {error}"
    return None


def clusters_here() -> list[str]:
    """The addresses of the clusters that run on this machine."""
    return sorted(services.find_gcs_addresses())  # type: ignore[no-untyped-call]


def _init(**options: Any) -> None:
    with termination.kept_from_ray():
        ray.init(logging_level=logging.WARNING, **options)


def lend() -> dict[str, str]:
    """The environment in which a process uses this one's Ray as if it had started it itself, if this one has."""
    address = ray.get_runtime_context().gcs_address
    return {"RAY_ADDRESS": address, **({_LENT: address} if _started_here else {})}


def started_here() -> bool:
    """Whether gworker started the Ray that this process uses."""
    return _started_here or _is_lent()


def is_ours_alone() -> bool:
    """Whether this process started the Ray it uses: one machine, to which no node will come."""
    from ray._private import worker

    node = worker._global_node
    return _is_lent() or (node is not None and bool(node.is_head()))


def logs_folder() -> Path:
    """Where Ray keeps the logs of its session on this node."""
    from ray._private import worker

    node = worker._global_node
    assert node is not None
    return Path(node.get_logs_dir_path())


def is_alive() -> bool:
    """Whether Ray still runs: on this machine, where this process started it; else, whether the cluster answers."""
    from ray._private import worker

    node = worker._global_node
    if node is not None and node.is_head():
        return not node.dead_processes()
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):
            here = ray.get_runtime_context().get_node_id()
            if any(n["NodeID"] == here and n["Alive"] for n in ray.nodes()):  # type: ignore[no-untyped-call]
                answered.set()

    threading.Thread(target=ask, name="gworker-is-ray-there", daemon=True).start()  # it may block for a minute
    return answered.wait(ANSWER_S)


def _is_lent() -> bool:
    return ray.is_initialized() and os.environ.get(_LENT) == ray.get_runtime_context().gcs_address
