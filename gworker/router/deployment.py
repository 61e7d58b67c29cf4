"""The actors of deployed apps: how they are named, found and reaped. They are detached: no process owns them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import ray
from ray.util import list_named_actors

NAMESPACE = "gworker"


def controller_options(app_name: str) -> dict[str, Any]:
    """Ray options of the controller of a deployed app."""
    return {
        "name": _controller_name(app_name),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
    }


def worker_options(app_name: str, worker_id: str) -> dict[str, Any]:
    """Ray options of a worker of a deployed app, beside its resources."""
    return {"name": _worker_prefix(app_name) + worker_id, "namespace": NAMESPACE, "lifetime": "detached"}


def find_controller(app_name: str) -> Any:
    """The controller of a deployed app, None where there is none. A blocking round trip."""
    return _find(_controller_name(app_name))


def deployed_apps() -> list[str]:
    """The names of the apps that are deployed in this cluster."""
    names = [a["name"] for a in list_named_actors(all_namespaces=True) if a["namespace"] == NAMESPACE]
    return sorted(name.removeprefix("app/") for name in names if name.startswith("app/"))


def find_worker(app_name: str, worker_id: str) -> Any:
    """The actor of a worker; raises ValueError where it is gone. A blocking round trip."""
    actor = _find(_worker_prefix(app_name) + worker_id)
    if actor is None:
        raise ValueError("it was gone before the controller was back")
    return actor


def reap_workers(app_name: str, known: Collection[str]) -> list[str]:
    """Kill the workers of the app that are not `known`; their ids."""
    prefix = _worker_prefix(app_name)
    reaped = []
    for actor in list_named_actors(all_namespaces=True):
        worker_id = actor["name"].removeprefix(prefix)
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(prefix) and worker_id not in known:
            if (found := _find(actor["name"])) is not None:
                ray.kill(found)
            reaped.append(worker_id)
    return reaped


def this_actor() -> Any:
    """The handle of the actor that asks."""
    return ray.get_runtime_context().current_actor


def _find(name: str) -> Any:
    try:
        return ray.get_actor(name, NAMESPACE)
    except ValueError:
        return None


def _controller_name(app_name: str) -> str:
    return f"app/{app_name}"


def _worker_prefix(app_name: str) -> str:
    return f"worker/{app_name}/"
