"""`gworker serve`: the app of a file over HTTP, in the foreground.

Without `--reload` this process is everything. With it, each version is a process of its own, and this one keeps the
socket and the Ray that they share; see `reloading`. With several gateways the app is deployed, and they are actors.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gworker.cli import output
from gworker.cli.exits import Code, Failed, say
from gworker.cli.target import load

if TYPE_CHECKING:
    from gworker.app import App


@dataclass(frozen=True)
class Serving:
    """What is served where, and how."""

    target: str
    host: str
    port: int
    token_file: Path | None = None
    debug: bool = False

    def token(self) -> str | None:
        """The bearer token, from the file or the environment; None where there is none."""
        from gworker.http.guard import read_token

        return read_token(self.token_file)


def serve(serving: Serving, *, reload: bool, gateways: int) -> Code:
    """Serve until Ctrl-C or SIGTERM."""
    output.reserve_stdout()
    if reload and gateways > 1:
        raise Failed("--reload and --gateways were both given: --reload is for one server, on one's own machine")
    if gateways > 1:
        from gworker.cli.gateways import serve_deployed

        return serve_deployed(serving, gateways)
    if reload:
        from gworker.cli.reloading import serve_reloading

        return serve_reloading(serving)
    app = load(serving.target).app
    server = server_for(serving, app)
    with app.run():
        greet(server.url, app, guarded=serving.token() is not None)
        server.run()
        say(f"draining {app.name} ... (Ctrl-C stops at once)")
    return Code.OK


def server_for(serving: Serving, app: App, bound: socket.socket | None = None) -> Any:
    """The HTTP server of an app, bound, and not yet answering. Raises what its options cannot be, or Failed."""
    from gworker.http.gateway import create_gateway
    from gworker.http.server import GatewayServer

    gateway = create_gateway(app, token=serving.token(), debug=serving.debug)
    return GatewayServer(gateway, host=serving.host, port=serving.port, bound=bound or bind(serving))


def bind(serving: Serving) -> socket.socket:
    """The socket to serve on. Raises Failed where the port is taken."""
    from gworker.http import server
    from gworker.http.guard import check_binding

    check_binding(serving.host, open_to_all=serving.token() is None)
    try:
        return server.bind(serving.host, serving.port)
    except OSError as error:
        raise Failed(
            f"{error}. Is something else serving there? Write --port {serving.port + 1}, or --port 0"
        ) from None


def greet(url: str, app: App, *, guarded: bool) -> None:
    """Say where the app is, what it answers, and how to begin."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=output.stream(), highlight=False, soft_wrap=True)
    console.print(Text.assemble(("gworker ", "bold"), f"serves {app.name} at ", (url, "bold cyan")))
    for name, cls in app.classes.items():
        for method in cls.spec.methods.values():
            console.print(Text(f"  POST {url}/v1/{name}/{method.name}   {method}"))
    console.print(Text(f"  GET  {url}/        status page\n  GET  {url}/docs    every route, with examples"))
    if (example := _first_request(url, app, guarded=guarded)) is not None:
        console.print(Text(f"\n  {example}\n"))
    stream = output.stream()
    stream.flush()


def _first_request(url: str, app: App, *, guarded: bool) -> str | None:
    """A curl command for the first method."""
    found = next(((name, cls) for name, cls in app.classes.items() if cls.spec.methods), None)
    if found is None:
        return None
    name, cls = found
    method = next(iter(cls.spec.methods.values()))
    values = {p.name: _example(p.annotation, batched=method.batch is not None) for p in _required(method)}
    token = ' -H "Authorization: Bearer $GWORKER_TOKEN"' if guarded else ""
    return f"curl {url}/v1/{name}/{method.name}{token} -H 'Content-Type: application/json' -d '{json.dumps(values)}'"


def _required(method: Any) -> list[Any]:
    return [p for p in method.signature.parameters.values() if p.default is p.empty and p.kind not in (2, 4)]


def _example(annotation: Any, *, batched: bool) -> Any:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    if not isinstance(annotation, str) and getattr(annotation, "__args__", None):
        text = str(annotation)
    if batched and text.startswith("list["):
        text = text[5:-1]
    for start, value in (("list[str", ["hello"]), ("list[", [1]), ("str", "hello"), ("int", 1), ("float", 0.5)):
        if text.startswith(start):
            return value
    return {} if text.startswith("dict") else True if text == "bool" else None
