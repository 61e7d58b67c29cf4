"""What workers print and log: a file of lines for each worker on its node, beside Ray's logs, and its readers.

A line is a JSON object: when, which worker, in which call, on which stream, and the text. The files outlive the workers
and the app, so that what a worker said before it crashed can be read; Ray's session ends them.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gworker import clock

# A file that has grown to this size is set aside as FILE.1, in place of an earlier one.
ROTATE_BYTES = 10 * 1024 * 1024
# A text this long without a line's end becomes a line.
LONGEST_LINE = 64 * 1024

Stream = Literal["out", "err"]


@dataclass(frozen=True)
class LogLine:
    """One line. `time` is the time of day, `call` the id of the call that wrote it, or "" outside calls."""

    time: float
    worker: str
    call: str
    stream: Stream
    text: str


def folder_of(ray_logs: Path, app_name: str) -> Path:
    """Where the lines of an app's workers stand on a node."""
    return ray_logs / "gworker" / urllib.parse.quote(app_name, safe="")


def apps_in(ray_logs: Path) -> list[str]:
    """The apps whose workers have written on a node."""
    folder = ray_logs / "gworker"
    return sorted(urllib.parse.unquote(path.name) for path in folder.iterdir()) if folder.is_dir() else []


# --- in the worker -----------------------------------------------------------------------------------------------


class LogFile:
    """The lines of one worker, for writing. Thread-safe; what goes wrong with the disk is not the worker's business."""

    def __init__(self, folder: Path, worker: str, rotate_bytes: int = ROTATE_BYTES) -> None:
        self.path = folder / f"{urllib.parse.quote(worker, safe='')}.{os.getpid()}.jsonl"
        self._worker = worker
        self._rotate_bytes = rotate_bytes
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._fd = self._open()

    def write(self, stream: Stream, call: str, text: str) -> None:
        """Add a line."""
        line = [round(clock.time_of_day(), 6), self._worker, call, stream, text]
        data = json.dumps(line, ensure_ascii=False).encode(errors="replace") + b"\n"
        try:
            with self._lock:
                if os.write(self._fd, data) and os.fstat(self._fd).st_size > self._rotate_bytes:
                    os.replace(self.path, f"{self.path}.1")
                    os.close(self._fd)
                    self._fd = self._open()
        except OSError:
            pass

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


class Tee:
    """A stream that also hands complete lines to `record`, with the call that is running where they are written.

    Lines of several threads and calls that print at the same time do not mix.
    """

    def __init__(self, stream: Any, record: Callable[[str, str], object], running_call: Callable[[], str]) -> None:
        self._stream = stream
        self._record = record
        self._running_call = running_call
        self._partial: dict[tuple[int, str], str] = {}

    def write(self, text: str) -> int:
        """Write to the stream; remember what is not yet a line."""
        written: int = self._stream.write(text)
        call = self._running_call()
        key = (threading.get_ident(), call)
        *lines, rest = (self._partial.pop(key, "") + text).split("\n")
        if len(rest) > LONGEST_LINE:
            lines, rest = [*lines, rest], ""
        if rest:
            self._partial[key] = rest
        for line in lines:
            self._record(call, line)
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def record_this_process(file: LogFile, running_call: Callable[[], str]) -> None:
    """Have `print`, logging and tracebacks of this process go to `file` besides where they go already."""
    sys.stdout = Tee(sys.stdout, lambda call, text: file.write("out", call, text), running_call)
    sys.stderr = Tee(sys.stderr, lambda call, text: file.write("err", call, text), running_call)


# --- for readers -------------------------------------------------------------------------------------------------


class LogReader:
    """Reads the lines of an app on one node, those of all classes or of one. Remembers how far it has read."""

    def __init__(self, ray_logs: Path, app_name: str, class_name: str | None = None) -> None:
        self._folder = folder_of(ray_logs, app_name)
        self._class_name = class_name
        self._offsets: dict[str, int] = {}

    def exists(self) -> bool:
        """Whether a worker of the app has ever been here."""
        return self._folder.is_dir()

    def latest(self, count: int) -> list[LogLine]:
        """The latest lines, oldest first. `more` goes on after them."""
        lines = [line for path in self._paths("*.jsonl.1") for line in _parsed(path.read_bytes())]
        return sorted([*lines, *self.more()], key=lambda line: line.time)[-count:] if count else self.more()[:0]

    def more(self) -> list[LogLine]:
        """The lines that have come since the last time, oldest first."""
        lines: list[LogLine] = []
        for path in self._paths("*.jsonl"):
            start = self._offsets.get(path.name, 0)
            try:
                if path.stat().st_size < start:  # it was set aside: what had not been read of it stands there
                    lines += _parsed(_from(Path(f"{path}.1"), start)[0])
                    start = 0
                data, end = _from(path, start)
            except OSError:
                continue
            self._offsets[path.name] = end
            lines += _parsed(data)
        return sorted(lines, key=lambda line: line.time)

    def _paths(self, pattern: str) -> list[Path]:
        wanted = self._class_name
        paths = self._folder.glob(pattern) if self._folder.is_dir() else []
        return [p for p in paths if wanted is None or _class_of(p) == wanted]


def _class_of(path: Path) -> str:
    """Worker ids are the class and a number."""
    return urllib.parse.unquote(path.name.split(".jsonl")[0].rpartition(".")[0]).rpartition("-")[0]


def _from(path: Path, start: int) -> tuple[bytes, int]:
    """The complete lines from an offset on, and the offset after them."""
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    data = data[: data.rfind(b"\n") + 1]
    return data, start + len(data)


def _parsed(data: bytes) -> list[LogLine]:
    lines = []
    for line in data.splitlines():
        try:
            at, worker, call, stream, text = json.loads(line)
        except ValueError:
            continue
        lines.append(LogLine(at, worker, call, stream, text))
    return lines
