"""How a worker's process, or a controller's, ended, in one line: Ray's errors come with pages of advice."""

from __future__ import annotations

import re

# What Ray says, and what it means; the first that matches counts.
_KNOWN = (
    (re.compile(r"OUT_OF_MEMORY|OutOfMemory|memory pressure|low on memory"), "out of memory"),
    (re.compile(r"its node has died|node was terminated|NodeDied"), "node lost"),
    (re.compile(r"killed by `?ray\.kill"), "killed"),
)
_EXIT_CODE = re.compile(r"exit code (-?\d+)")


def death_reason(error: BaseException) -> str:
    """Why the process is gone: out of memory, node lost, its exit code where Ray knows it, else what Ray says."""
    text = str(error).strip() or type(error).__name__
    line = _telling_line(text)
    for pattern, meaning in _KNOWN:
        if pattern.search(text):
            return f"{meaning}: {line}"
    code = _EXIT_CODE.search(line)
    return f"exit code {code[1]}: {line}" if code else line


def _telling_line(text: str) -> str:
    for line in text.splitlines():
        if re.search(r"The actor (is dead|died) because|exit detail", line):
            return line.strip().split(". Some common causes")[0]
    return text.splitlines()[0]
