"""How a command ends: its exit code, and what a person reads when it fails. No traceback of gworker's own."""

from __future__ import annotations

import enum
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

import typer

P = ParamSpec("P")
R = TypeVar("R")


class Code(enum.IntEnum):
    """The exit codes of all commands."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    INTERRUPTED = 130


class Failed(Exception):  # noqa: N818  # `raise Failed(...)` says what happens to the command
    """Ends a command with a message: what was given, what was expected, what to write instead."""

    def __init__(self, message: str, code: Code = Code.USAGE, *, user_traceback: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.user_traceback = user_traceback


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Have a command end with the exit code, and the words, that its errors stand for."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:  # `| head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
            raise typer.Exit(Code.FAILED) from None
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(Code.INTERRUPTED) from None
        except Exception as error:
            end(error)

    return run


def end(error: Exception) -> NoReturn:
    """Say what went wrong and raise the exit that belongs to it."""
    if os.environ.get("GWORKER_DEBUG"):
        traceback.print_exception(error, file=sys.__stderr__)
    else:
        say(described(error))
    raise typer.Exit(code_of(error)) from None


def say(text: str) -> None:
    """A message for people, on standard error."""
    stderr = sys.__stderr__
    if stderr is not None:
        stderr.write(f"{text.rstrip()}\n")
        stderr.flush()


def code_of(error: BaseException) -> Code:
    """The exit code that an error stands for."""
    from gworker.errors import InvalidDefinition, NotFound

    if isinstance(error, Failed):
        return error.code
    if isinstance(error, InvalidDefinition):
        return Code.USAGE
    return Code.NOT_FOUND if isinstance(error, NotFound) else Code.FAILED


def described(error: BaseException) -> str:
    """An error in words: the user's own frames where it comes from user code, one line where it does not."""
    from gworker.errors import GWorkerError, RemoteTraceback

    if isinstance(error, Failed):
        return f"{error.user_traceback}{'' if error.user_traceback else 'Error: '}{error}"
    if isinstance(error.__cause__, RemoteTraceback):
        return own_frames(error.__cause__.text)
    name = type(error).__name__
    if isinstance(error, GWorkerError):
        return f"{name}: {own_frames(str(error))}"
    return f"{name}: {error}\n(GWORKER_DEBUG=1 in the environment shows where)"


_PACKAGE = Path(__file__).parent.parent
_FRAME = re.compile(r'^ +File "(?P<path>[^"]+)", line \d+')
# What stands between gworker and user code in a traceback.
_MACHINERY = re.compile(r"concurrent/futures/|asyncio/|/threading\.py|importlib/|<frozen |<string>|/typer/|runpy")


def own_frames(text: str) -> str:
    """A traceback without the frames of gworker, and of what it called user code through.

    >>> print(own_frames('''Traceback (most recent call last):
    ...   File "/x/gworker/worker/execution.py", line 9, in run
    ...     call()
    ...   File "/home/me/app.py", line 3, in embed
    ...     raise ValueError("no")
    ... ValueError: no'''))
    Traceback (most recent call last):
      File "/home/me/app.py", line 3, in embed
        raise ValueError("no")
    ValueError: no
    """
    kept: list[str] = []
    hiding = started = False
    for line in text.splitlines():
        frame = _FRAME.match(line)
        if frame is not None:
            ours = _is_ours(frame["path"])
            hiding = ours or (not started and _MACHINERY.search(frame["path"]) is not None)
            started = started or not hiding
        elif not line.startswith(" " * 4) or not line.strip():
            hiding = False
            started = started and not line.startswith("Traceback")
        if not hiding:
            kept.append(line)
    return "\n".join(kept)


def _is_ours(path: str) -> bool:
    """Whether a file belongs to gworker, here or on another machine."""
    _, package, inside = path.rpartition("/gworker/")
    return bool(package) and (_PACKAGE / inside).is_file()
