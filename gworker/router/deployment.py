"""What there is of deployed apps in a cluster: actors that no process owns, found by name, and the code they run."""

from __future__ import annotations

import urllib.parse
from collections.abc import Collection
from typing import Any

import ray
from ray.experimental import internal_kv
from ray.util import list_named_actors

from gworker.code import CodePackage

NAMESPACE = "gworker"
KV_NAMESPACE = b"gworker"


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
    return sorted(name.removeprefix("app/") for name in _names() if name.startswith("app/"))


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
    for name in _names():
        worker_id = name.removeprefix(prefix)
        if name.startswith(prefix) and worker_id not in known:
            if (found := _find(name)) is not None:
                ray.kill(found)
            reaped.append(worker_id)
    return reaped


def store_code(app_name: str, package: CodePackage) -> None:
    """Keep a version's code where every worker of the cluster finds it."""
    key = _code_key(app_name, package.digest)
    if not internal_kv._internal_kv_exists(key, namespace=KV_NAMESPACE):
        internal_kv._internal_kv_put(key, package.data, overwrite=True, namespace=KV_NAMESPACE)


def stored_code(app_name: str, digest: str) -> CodePackage:
    """The code of a version. Raises LookupError when it is not kept any more."""
    data = internal_kv._internal_kv_get(_code_key(app_name, digest), namespace=KV_NAMESPACE)
    if data is None:
        raise LookupError(f"the code {digest} of the app {app_name!r} is not in the cluster any more: deploy it again")
    return CodePackage(digest, data)


def drop_code(app_name: str, kept: Collection[str]) -> None:
    """Forget the code of versions that no pool has any more."""
    for key in internal_kv._internal_kv_list(_code_key(app_name, ""), namespace=KV_NAMESPACE):
        if key.decode().rpartition("/")[2] not in kept:
            internal_kv._internal_kv_del(key, namespace=KV_NAMESPACE)


def kv_key(app_name: str, name: str) -> bytes:
    """Where something of an app stands in the key-value store of Ray's head node."""
    return f"gworker/{urllib.parse.quote(app_name, safe='')}/{name}".encode()


def this_actor() -> Any:
    """The handle of the actor that asks."""
    return ray.get_runtime_context().current_actor


def _names() -> list[str]:
    found: Any = list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in found if actor["namespace"] == NAMESPACE]


def _find(name: str) -> Any:
    try:
        return ray.get_actor(name, NAMESPACE)
    except ValueError:
        return None


def _controller_name(app_name: str) -> str:
    return f"app/{app_name}"


def _code_key(app_name: str, digest: str) -> bytes:
    return kv_key(app_name, f"code/{digest}")


def _worker_prefix(app_name: str) -> str:
    return f"worker/{urllib.parse.quote(app_name, safe='')}/"
