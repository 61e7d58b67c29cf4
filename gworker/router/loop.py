"""The event loop all routers of a process share, on a daemon thread started at first use."""

from __future__ import annotations

import asyncio
import os
import threading

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_pid = 0


def io_loop() -> asyncio.AbstractEventLoop:
    """The loop; a forked child gets one of its own."""
    global _loop, _pid
    if _loop is None or os.getpid() != _pid:
        with _lock:
            if _loop is None or os.getpid() != _pid:
                _loop, _pid = new_loop(), os.getpid()
                threading.Thread(target=_loop.run_forever, name="gworker-io", daemon=True).start()
    return _loop


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop of the fastest kind that there is here."""
    try:
        import uvloop
    except ImportError:  # it comes with gworker, but not everywhere
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
