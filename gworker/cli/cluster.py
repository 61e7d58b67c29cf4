"""What commands on deployed apps share: the cluster they ask, and the apps in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gworker.cli.exits import Code, Failed
from gworker.cli.target import listed, near

if TYPE_CHECKING:
    from gworker.app import App
    from gworker.handle import Cls
    from gworker.router.client import AppClient


def attach() -> None:
    """Connect to the Ray cluster there is. Raises NotFound."""
    from gworker.router import cluster

    cluster.attach()


def is_deployed(app: App) -> bool:
    """Whether the calls of this process go to an app of that name which is deployed, instead of one of its own."""
    return app._running is not None and app._running.deployed


def drain(app: App) -> None:
    """Stop an app that this process has started. One that is deployed goes on: others use it."""
    if app._running is not None and not is_deployed(app):
        app.stop()


def deployed_apps() -> list[str]:
    """The apps of the cluster."""
    from gworker.router import deployment

    attach()
    return deployment.deployed_apps()


def deployed(app_name: str) -> AppClient:
    """A deployed app. Raises NotFound, or Failed with the nearest name."""
    from gworker.router.client import deployed_client

    known = deployed_apps()
    if app_name not in known:
        raise Failed(
            f"no app {app_name!r} is deployed{near(app_name, known)}; deployed are: {listed(known)}. Deploy one with "
            "gworker deploy app.py",
            Code.NOT_FOUND,
        )
    return deployed_client(app_name)


def deployed_class(app_name: str, class_name: str) -> Cls:
    """A class of a deployed app. Raises NotFound, or Failed with the nearest name."""
    from gworker.handle import Cls

    known = deployed(app_name).generations()
    if class_name not in known:
        raise Failed(
            f"the app {app_name!r} has no class {class_name!r}{near(class_name, known)}; it has: {listed(known)}",
            Code.NOT_FOUND,
        )
    return Cls.from_name(app_name, class_name)
