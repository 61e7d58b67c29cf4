"""A contender in a process of its own, with an environment of its own: it is told cases and answers figures.

Both speak JSON, one line a message, over the child's standard input and output. What the child prints once it answers
goes to its standard error, which is kept, and told when something goes wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import psutil

Measure = Callable[[Any], Mapping[str, float]]

FLAG = "--contender"
START_S = 90.0
CASE_S = 120.0
STOP_S = 20.0


@contextlib.contextmanager
def apart(script: str, name: str, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[Measure]:
    """Start `script` as the contender `name`; what is yielded measures there. Raises RuntimeError."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, script, FLAG, name, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        try:
            _answer(process, errors, START_S)

            def measure(case: Any) -> Mapping[str, float]:
                assert process.stdin is not None
                process.stdin.write(json.dumps(case).encode() + b"\n")
                process.stdin.flush()
                return _answer(process, errors, CASE_S)

            yield measure
        finally:
            stop(process)


def answer(opened: AbstractContextManager[Measure]) -> None:
    """The child's side: open the contender, then measure one case after another until the parent has no more."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with opened as measure:
        replies.write(json.dumps({"values": {}}) + "\n")
        for line in sys.stdin:
            reply: dict[str, Any]
            try:
                reply = {"values": dict(measure(json.loads(line)))}
            except Exception as error:
                reply = {"failed": why(error)}
            replies.write(json.dumps(reply) + "\n")


def why(error: BaseException) -> str:
    """An error in a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process by the end of its input and SIGTERM, and kill what is left of it and of what it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
        if process.stdin is not None:
            process.stdin.close()
        else:
            process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in psutil.wait_procs(started, timeout=3)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    if process.stdout is not None:
        process.stdout.close()


def _answer(process: subprocess.Popen[bytes], errors: Any, limit_s: float) -> Mapping[str, float]:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], limit_s)
    line = process.stdout.readline() if ready else b""
    if not line:
        errors.seek(0)
        last = " ".join(errors.read().decode(errors="replace").split()[-40:])
        raise RuntimeError(f"{'it ended' if ready else f'no answer within {limit_s:g} s'}: {last}"[:400])
    reply = json.loads(line)
    if "failed" in reply:
        raise RuntimeError(reply["failed"])
    found: Mapping[str, float] = reply["values"]
    return found
