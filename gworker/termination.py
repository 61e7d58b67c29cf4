"""SIGTERM: the process ends as `sys.exit` would end it, so that its apps drain, within the time that is left.

1. `obey` installs the handler, where nobody else handles the signal.
2. The signal raises SystemExit in the main thread; exit hooks run, and apps stop.
3. What runs in workers gets half of the grace that there is until SIGKILL; the other half is for on_exit hooks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from gworker import clock

# What a process ends with after the signal, as a shell has it.
EXIT_CODE = 128 + signal.SIGTERM
# What `ray job stop` leaves between SIGTERM and SIGKILL, if RAY_JOB_STOP_WAIT_TIME_S does not say otherwise.
JOB_GRACE_S = 3.0

_asked_at: float | None = None
_undisturbed = 0


def obey() -> None:
    """Have SIGTERM end this process in order. Does nothing where a handler of somebody else's is set.

    Only the main thread can set one; from another, the process keeps what it has.
    """
    if threading.current_thread() is threading.main_thread() and not _is_anybodys(handler()):
        signal.signal(signal.SIGTERM, _end)


def handler() -> Any:
    """What handles SIGTERM now."""
    return signal.getsignal(signal.SIGTERM)


@contextlib.contextmanager
def kept_from_ray() -> Iterator[None]:
    """Put back what handled SIGTERM before: `ray.init` sets a handler of its own, whatever there is."""
    before = handler()
    try:
        yield
    finally:
        if _is_anybodys(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let no further SIGTERM end what is done here: it is what the first one asked for."""
    global _undisturbed
    _undisturbed += 1
    try:
        yield
    finally:
        _undisturbed -= 1


def asked() -> bool:
    """Whether the process was told to end."""
    return _asked_at is not None


def left_for_inputs_s() -> float | None:
    """Seconds that running inputs may still take; None where the signal has not come, or nothing is said of SIGKILL."""
    grace_s = _grace_s(os.environ)
    if _asked_at is None or grace_s is None:
        return None
    return max(0.0, _asked_at + grace_s / 2 - clock.now())


def _grace_s(environment: Any) -> float | None:
    """Seconds between SIGTERM and SIGKILL: GWORKER_STOP_GRACE_S, or a job's; None where nobody says."""
    given = environment.get("GWORKER_STOP_GRACE_S")
    if given is None and "RAY_JOB_CONFIG_JSON_ENV_VAR" in environment:
        given = environment.get("RAY_JOB_STOP_WAIT_TIME_S", JOB_GRACE_S)
    try:
        return None if given is None else float(given)
    except ValueError:
        return JOB_GRACE_S


def _is_anybodys(found: Any) -> bool:
    """Whether a handler is a program's own: neither the default, nor Ray's, nor ours, nor one that is not Python's."""
    ours = found is _end or getattr(found, "__module__", "").startswith("ray.")
    return found is signal.SIG_IGN or (callable(found) and found is not signal.SIG_DFL and not ours)


def _end(number: int, frame: Any) -> None:
    global _asked_at
    if _undisturbed:
        return
    if _asked_at is None:
        _asked_at = clock.now()
    raise SystemExit(EXIT_CODE)
