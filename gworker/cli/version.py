"""One version of a served app, in a process of its own: `python -m gworker.cli.version`, started by `reloading`.

It says what becomes of it in lines of JSON on one pipe, and drains when its standard input says so, or ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gworker.cli import output
from gworker.cli.exits import Code, Failed, described
from gworker.cli.serving import Serving, greet, server_for
from gworker.cli.target import load

if TYPE_CHECKING:
    from gworker.app import App

# A floor that lacks a place for this long lacks it because of the version before.
CROWDED_S = 3.0

News = Literal["ready", "crowded", "failed"]


@dataclass(frozen=True)
class Orders:
    """What a version is started with: two inherited file descriptors, and what to serve. `greets`: it is the first."""

    socket_fd: int
    news_fd: int
    target: str
    host: str
    port: int
    token_file: str | None
    debug: bool
    greets: bool

    def to_text(self) -> str:
        """As an argument of the process."""
        return json.dumps(asdict(self))

    @property
    def serving(self) -> Serving:
        """What to serve."""
        token_file = None if self.token_file is None else Path(self.token_file)
        return Serving(self.target, self.host, self.port, token_file=token_file, debug=self.debug)


class _Version:
    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._news = os.fdopen(orders.news_fd, "w", buffering=1)
        self._told_to_end = threading.Event()
        self._server: Any = None

    def tell(self, news: News, message: str = "") -> None:
        self._news.write(json.dumps({"news": news, "message": message}) + "\n")

    def run(self) -> Code:
        orders = self._orders
        threading.Thread(target=self._obey, name="gworker-orders", daemon=True).start()
        try:
            app = load(orders.target).app
            bound = socket.socket(fileno=orders.socket_fd)
            server = server_for(orders.serving, app, bound)
            watcher = threading.Thread(target=self._watch_for_room, args=(app,), daemon=True)
            watcher.start()
            app.run().__enter__()
        except Exception as error:
            self.tell("failed", described(error))
            return Code.FAILED
        try:
            if not self._told_to_end.is_set():
                self._server = server.start()
                if orders.greets:
                    greet(server.url, app, guarded=orders.serving.token() is not None)
                self.tell("ready")
                self._told_to_end.wait()
                server.stop()
        finally:
            app.stop()
        return Code.OK

    def _obey(self) -> None:
        """End when told to, or when the process that could tell is gone."""
        sys.stdin.readline()
        self._told_to_end.set()

    def _watch_for_room(self, app: App) -> None:
        """Say it, once, when the floors find no place."""
        since: float | None = None
        while self._server is None and not self._told_to_end.is_set():
            time.sleep(0.25)
            pending = False
            with contextlib.suppress(Exception):  # it is only just starting, or ending
                pending = app._running is not None and _lacks_room(app)
            since = (since or time.monotonic()) if pending else None
            if since is not None and time.monotonic() - since > CROWDED_S:
                self.tell("crowded")
                return


def _lacks_room(app: App) -> bool:
    """Whether workers wait for a place, and for nothing else: what a worker of their class needs is not free."""
    import ray

    from gworker.control.placement import how_often, requirement

    waiting = {pool.class_name for pool in app.status().pools if pool.pending}
    whole, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
    for name in waiting:
        # A GPU that the cluster does not have at all has been waived, or nothing will ever give it.
        needs = {what: n for what, n in requirement(app.classes[name].spec.options).items() if what in whole}
        if how_often(needs, free) == 0:
            return True
    return False


def main() -> None:
    """Serve one version, as the orders on the command line say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the process that started this one
    output.reserve_stdout()
    orders = Orders(**json.loads(sys.argv[1]))
    try:
        code = _Version(orders).run()
    except (BrokenPipeError, Failed):
        code = Code.FAILED
    sys.exit(code)


if __name__ == "__main__":
    main()
