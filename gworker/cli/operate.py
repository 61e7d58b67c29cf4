"""Commands on deployed apps: deploy, status, scale, stop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gworker.cli import cluster, gateways, output
from gworker.cli.exits import Failed, say
from gworker.cli.serving import Serving
from gworker.cli.target import load

if TYPE_CHECKING:
    from gworker.app import App
    from gworker.observe.status import AppStatus

# How often `status --watch` looks.
WATCH_EVERY_S = 1.0


def deploy(target: str, name: str | None, http: tuple[Serving, int] | None, *, as_json: bool) -> None:
    """Deploy the app of a file, and its HTTP servers if wished."""
    output.reserve_stdout()
    if name is not None and not name.strip():
        raise Failed("--name '' was given: write for example --name inference-server")
    app = load(target, packed=True).app
    if not app.classes:
        raise Failed(f"{target}: the app {app.name!r} has no classes: put @app.cls() above one")
    cluster.attach()
    app.deploy(name=name)
    name = name or app.name
    urls: list[str] = []
    if http is not None:
        serving, count = http
        urls = gateways.start(name, gateways.Wish(serving.host, serving.port, count, serving.token()))
    if as_json:
        output.emit(output.data({"app": name, "classes": _methods(app), "urls": urls}))
        return
    output.emit(f"deployed {name}: {', '.join(app.classes)}")
    for url in urls:
        output.emit(f"  {url}")
    output.emit(first_steps(name, app))


def _methods(app: App) -> dict[str, list[str]]:
    return {class_name: list(cls.spec.methods) for class_name, cls in app.classes.items()}


def first_steps(name: str, app: App) -> str:
    """How to call a deployed app, for a person who just deployed it."""
    class_name, cls = next(iter(app.classes.items()))
    method = next(iter(cls.spec.methods))
    return (
        f"  from Python    gw.Cls.from_name({name!r}, {class_name!r})().{method}\n"
        f"  from a shell   gworker call {name} {class_name}.{method} --help\n"
        f"  watch it       gworker status {name} --watch\n"
        f"  stop it        gworker stop {name}"
    )


def status(app_name: str | None, *, watch: bool, as_json: bool) -> None:
    """Show one app, or all, once or again and again."""
    output.reserve_stdout()
    if app_name is not None:
        cluster.deployed(app_name)
    if not watch:
        _show(_status(app_name), as_json=as_json)
        return
    if as_json:
        while True:
            _show(_status(app_name), as_json=True)
            time.sleep(WATCH_EVERY_S)
    from rich.live import Live

    with Live(_drawn(_status(app_name)), screen=output.at_terminal(), auto_refresh=False, console=_console()) as live:
        while True:
            time.sleep(WATCH_EVERY_S)
            live.update(_drawn(_status(app_name)), refresh=True)


def _status(app_name: str | None) -> AppStatus | list[AppStatus]:
    if app_name is not None:
        return _status_of(app_name)
    return [_status_of(name) for name in cluster.deployed_apps()]


def _status_of(app_name: str) -> AppStatus:
    import ray

    from gworker.router.client import ANSWER_S

    found: AppStatus = ray.get(cluster.deployed(app_name).controller.status.remote(), timeout=ANSWER_S)
    return found


def _show(found: AppStatus | list[AppStatus], *, as_json: bool) -> None:
    if as_json:
        output.emit(output.data(found))
    elif output.at_terminal():
        _console().print(_drawn(found))
    elif isinstance(found, list):
        output.emit("\n".join("  ".join(row) for row in _rows(found)) or "nothing is deployed")
    else:
        output.emit(str(found))


def _drawn(found: AppStatus | list[AppStatus]) -> Any:
    """What rich shows."""
    if not isinstance(found, list):
        return found
    if not found:
        return "nothing is deployed: gworker deploy app.py"
    from rich.table import Table
    from rich.text import Text

    table = Table("app", "class", "state", "workers", "queued", "running")
    for row in _rows(found):
        table.add_row(*map(Text, row))
    return table


def _rows(apps: list[AppStatus]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for app in apps:
        rows += [
            (app.name, p.name, p.state, f"{p.ready}/{p.desired}", str(p.queued), str(p.running)) for p in app.pools
        ] or [(app.name, "", "idle", "0/0", "0", "0")]
    return rows


def _console() -> Any:
    from rich.console import Console

    return Console(file=output.stream())


def scale(app_name: str, class_name: str, least: int | None, most: int | None, *, as_json: bool) -> None:
    """Change the bounds of a deployed class."""
    output.reserve_stdout()
    if least is None and most is None:
        raise Failed(f"say how many: gworker scale {app_name} {class_name} --min 1 --max 4")
    cluster.deployed_class(app_name, class_name)
    low, high = cluster.deployed(app_name).scale(class_name, "", least, most)
    if as_json:
        output.emit(output.data({"app": app_name, "class": class_name, "min_workers": low, "max_workers": high}))
    else:
        output.emit(f"{app_name} {class_name}: {low} to {high} workers")


def stop(app_name: str, *, drain: bool) -> None:
    """Stop a deployed app and its HTTP servers."""
    from gworker.app import App

    output.reserve_stdout()
    cluster.deployed(app_name)
    say(f"{'draining' if drain else 'stopping'} {app_name} ...")
    gateways.stop(app_name)
    App(app_name).stop(drain)
    output.emit(f"stopped {app_name}")
