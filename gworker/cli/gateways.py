"""HTTP servers on the cluster: detached actors in front of a deployed app, spread over the nodes.

Those of one node share a port: the kernel hands each connection to one of them. A gateway ends with its app.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gworker.cli import output
from gworker.cli.exits import Code, Failed, say
from gworker.cli.serving import Serving, greet
from gworker.cli.target import load

if TYPE_CHECKING:
    from gworker.app import App

log = logging.getLogger("gworker.http")

# How often a gateway looks whether its app is still deployed, and how often in a row it must be missing.
APP_THERE_EVERY_S = 5.0
MISSING_TIMES = 3
# How long a gateway may take to start, and to finish what is under way when it stops.
START_S = 60.0
STOP_S = 45.0


@dataclass(frozen=True)
class Wish:
    """What gateways are to be like."""

    host: str
    port: int
    count: int
    token: str | None
    debug: bool = False


class GatewayActor:
    """One HTTP server for a deployed app."""

    def __init__(self, app_name: str, wish: Wish, port: int) -> None:
        from gworker.http.gateway import create_gateway
        from gworker.http.server import GatewayServer

        self._app_name = app_name
        self._wish = wish
        gateway = create_gateway(app_name, token=wish.token, debug=wish.debug)
        self._server = GatewayServer(gateway, host=wish.host, bound=_bind(wish.host, port))
        self._server.start()
        threading.Thread(target=self._end_with_the_app, name="gworker-app-there", daemon=True).start()

    def url(self) -> str:
        """Where it is, as other machines see it where they can."""
        import ray

        if self._wish.host in ("0.0.0.0", "::"):  # noqa: S104  # compared, not bound
            node_ip: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            return f"http://{node_ip}:{self._server.port}"
        return self._server.url

    def port(self) -> int:
        """Its port."""
        return self._server.port

    def wish(self) -> Wish:
        """What it was started as."""
        return self._wish

    def stop(self) -> None:
        """Finish what is under way; the process may then be killed."""
        self._server.stop()

    def _end_with_the_app(self) -> None:
        import ray

        from gworker.router import deployment

        missing = 0
        while missing < MISSING_TIMES:
            time.sleep(APP_THERE_EVERY_S)
            with contextlib.suppress(Exception):  # Ray may be busy; a gateway that cannot ask stays
                missing = missing + 1 if deployment.find_controller(self._app_name) is None else 0
        log.info("the app %s is gone: its gateway ends", self._app_name)
        self._server.stop()
        ray.kill(ray.get_runtime_context().current_actor)


def _bind(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host.strip("[]"), port))
    return bound


def start(app_name: str, wish: Wish) -> list[str]:
    """Have gateways like this; those that are there already stay. Returns their URLs."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from gworker.http.guard import check_binding
    from gworker.router.deployment import NAMESPACE

    check_binding(wish.host, open_to_all=wish.token is None)
    there = _running(app_name)
    if there and len(there) == wish.count and all(w == wish for w in ray.get([a.wish.remote() for a in there])):
        return _urls(there)
    _stop(there)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    ports: dict[str, int] = {}
    actors = []
    actor_class: Any = ray.remote(GatewayActor)
    try:
        for number, node in zip(range(wish.count), itertools.cycle(nodes), strict=False):
            actor = actor_class.options(
                name=f"{_prefix(app_name)}{number}",
                namespace=NAMESPACE,
                lifetime="detached",
                num_cpus=0,
                max_restarts=-1,
                max_concurrency=8,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            ).remote(app_name, wish, ports.get(node, wish.port))
            actors.append(actor)
            if node not in ports:
                ports[node] = ray.get(actor.port.remote(), timeout=START_S)
        return _urls(actors)
    except (RayError, TimeoutError) as error:
        for actor in actors:
            ray.kill(actor)
        cause = getattr(error, "cause", None) or error
        raise Failed(f"the HTTP servers did not start: {str(cause).strip().splitlines()[-1]}", Code.FAILED) from None


def _urls(actors: list[Any]) -> list[str]:
    import ray

    return sorted(set(ray.get([actor.url.remote() for actor in actors], timeout=START_S)))


def stop(app_name: str) -> None:
    """Drain and end the gateways of an app."""
    _stop(_running(app_name))


def _stop(actors: list[Any]) -> None:
    import ray

    if actors:
        ray.wait([actor.stop.remote() for actor in actors], num_returns=len(actors), timeout=STOP_S)
    for actor in actors:
        ray.kill(actor)


def _running(app_name: str) -> list[Any]:
    import ray
    from ray.util import list_named_actors

    from gworker.router.deployment import NAMESPACE

    named: list[Any] = list_named_actors(all_namespaces=True)
    names = [a["name"] for a in named if a["namespace"] == NAMESPACE]
    return [ray.get_actor(name, NAMESPACE) for name in names if name.startswith(_prefix(app_name))]


def _prefix(app_name: str) -> str:
    return f"gateway/{app_name}/"


def serve_deployed(serving: Serving, count: int) -> Code:
    """`gworker serve --gateways N`: the app deployed under a name of its own, and stopped at the end."""
    import os

    from gworker import termination
    from gworker.router import cluster

    app: App = load(serving.target, packed=True).app
    token = serving.token()
    cluster.have_ray()
    termination.obey()
    name = f"{app.name}-serve-{os.getpid()}"
    logging.getLogger("gworker").setLevel(logging.ERROR)  # that it ends with this process is what is wanted
    app.deploy(name=name)
    try:
        urls = start(name, Wish(serving.host, serving.port, count, token, serving.debug))
        greet(urls[0], app, guarded=token is not None)
        output.emit(f"  {count} HTTP servers: {', '.join(urls)}")
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
        say(f"draining {app.name} ... (Ctrl-C stops at once)")
    finally:
        with termination.undisturbed():
            stop(name)
        app.stop()
    return Code.OK
