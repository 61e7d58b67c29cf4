"""`gworker serve --reload`: edits are taken over while requests are served.

1. This process binds the socket, and has the Ray that all versions share.
2. Each version is a process: it loads the file, raises its floors, then listens on the socket beside the old one.
3. When it is ready, the old one is told to drain. One that fails is shown, and the old one serves on.
4. Where both do not fit, on one GPU, the old one drains first: requests wait in the socket's queue meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gworker.cli.exits import Code, say
from gworker.cli.serving import Serving, bind
from gworker.cli.target import Target
from gworker.cli.version import Orders

# Requests that may wait while one version replaces another.
BACKLOG = 2048


@dataclass(frozen=True)
class Edit:
    """Files of the app have changed."""

    files: tuple[str, ...]


@dataclass(frozen=True)
class News:
    """What became of a version: "ready", "crowded", "failed" or "ended"."""

    version: int
    what: str
    message: str = ""


class Versions:
    """Which version serves and which is to come: told what happened, it starts and drains versions. Pure."""

    def __init__(self, start: Callable[[int], None], drain: Callable[[int], None], tell: Callable[[str], None]) -> None:
        self._start, self._drain, self._tell = start, drain, tell
        self._last = 0
        self.serving: int | None = None
        self.coming: int | None = None

    def begin(self) -> None:
        """Start the next version."""
        if self.coming is not None:
            self._drain(self.coming)
        self._last += 1
        self.coming = self._last
        self._start(self._last)

    def hear(self, event: Edit | News) -> None:
        """Act on what happened."""
        if isinstance(event, Edit):
            self._tell(f"changed: {', '.join(event.files)}")
            self.begin()
        elif event.version == self.coming:
            self._coming_says(event)
        elif event.version == self.serving and event.what == "ended":
            self.serving = None
            self._tell("the server ended by itself and is started again")
            if self.coming is None:
                self.begin()

    def _coming_says(self, event: News) -> None:
        if event.what == "ready":
            old, self.serving, self.coming = self.serving, self.coming, None
            if self.serving != 1:
                self._tell(f"version {self.serving} serves")
            if old is not None:
                self._drain(old)
        elif event.what == "crowded" and self.serving is not None:
            self._tell("there is no room for both versions: the old one drains first, and requests wait")
            self._drain(self.serving)
            self.serving = None
        elif event.what in ("failed", "ended"):
            self.coming = None
            if event.message:
                self._tell(event.message)
            rest = "the version before serves on" if self.serving is not None else "nothing serves"
            self._tell(f"version {event.version} did not start: {rest} until the next edit")


class _Processes:
    """The processes of the versions."""

    def __init__(
        self,
        serving: Serving,
        listening: socket.socket,
        events: queue.SimpleQueue[Any],
        environment: dict[str, str],
    ) -> None:
        self._serving = serving
        self._socket = listening
        self._events = events
        self._environment = environment
        self._running: dict[int, subprocess.Popen[str]] = {}

    def start(self, version: int) -> None:
        read_fd, write_fd = os.pipe()
        fd, serving = self._socket.fileno(), self._serving
        orders = Orders(
            socket_fd=fd,
            news_fd=write_fd,
            target=serving.target,
            host=serving.host,
            port=self._socket.getsockname()[1],
            token_file=None if serving.token_file is None else str(serving.token_file),
            debug=serving.debug,
            greets=version == 1,
        )
        process = subprocess.Popen(  # noqa: S603  # this Python, with our own arguments
            [sys.executable, "-m", "gworker.cli.version", orders.to_text()],
            stdin=subprocess.PIPE,
            text=True,
            pass_fds=(fd, write_fd),
            env={**os.environ, **self._environment},
            start_new_session=True,
        )
        os.close(write_fd)
        self._running[version] = process
        threading.Thread(target=self._listen, args=(version, read_fd), daemon=True).start()

    def _listen(self, version: int, fd: int) -> None:
        with os.fdopen(fd) as news:
            for line in news:
                told = json.loads(line)
                self._events.put(News(version, told["news"], told["message"]))
        self._running[version].wait()
        self._events.put(News(version, "ended"))

    def drain(self, version: int) -> None:
        stdin = self._running[version].stdin
        assert stdin is not None
        with contextlib.suppress(OSError):
            stdin.close()

    def drain_all(self) -> None:
        for version in self._running:
            self.drain(version)
        for process in self._running.values():
            process.wait()

    def kill_all(self) -> None:
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def serve_reloading(serving: Serving) -> Code:
    """Serve the file, and what becomes of it, until Ctrl-C."""
    from gworker import termination
    from gworker.router import cluster

    folder = _folder_of(serving.target)
    events: queue.SimpleQueue[Edit | News] = queue.SimpleQueue()
    listening = bind(serving)
    listening.listen(BACKLOG)
    cluster.have_ray()
    termination.obey()
    processes = _Processes(serving, listening, events, cluster.lend())
    versions = Versions(processes.start, processes.drain, say)
    threading.Thread(target=_watch, args=(folder, events.put), name="gworker-watch", daemon=True).start()
    try:
        versions.begin()
        while True:
            versions.hear(events.get())
    except KeyboardInterrupt:
        say("draining ... (Ctrl-C stops at once)")
    finally:
        with termination.undisturbed():
            try:
                processes.drain_all()
            except KeyboardInterrupt:
                processes.kill_all()
                raise
    return Code.OK


def _folder_of(target: str) -> Path:
    """Where edits are looked for: the folder of the file, or of the module's package."""
    parsed = Target.parse(target)
    if parsed.is_file:
        return Path(parsed.source).resolve().parent
    folder = Path.cwd() / parsed.source.split(".")[0]
    return folder if folder.is_dir() else Path.cwd()


def _watch(folder: Path, put: Callable[[Edit], object]) -> None:
    import watchfiles

    for changes in watchfiles.watch(
        folder, watch_filter=watchfiles.PythonFilter(), debounce=300, raise_interrupt=False
    ):
        put(Edit(tuple(sorted({os.path.relpath(path, folder) for _, path in changes}))))
