"""Sees that nothing of a worker outlives it: a process that waits for the worker's end, however it comes.

A worker that is killed cannot tidy up, and the processes that user code started (data loaders, engines of their own)
would go on holding GPU memory. Neither a process group nor a parent id finds them all; what they inherit does: a mark
in their environment. Nor can it remove the files it leaves; the guardian is told which.
"""

from __future__ import annotations

import os
import subprocess
import sys

_MARK = "GWORKER_WORKER_PROCESS"

# Runs in a bare interpreter. It takes the worker's pid, the mark, and what to remove, and ends within moments of the
# worker.
_WATCH = """
import os, select, shutil, signal, sys
worker, mark = int(sys.argv[1]), sys.argv[2].encode()
try:
    poll = select.poll()
    poll.register(os.pidfd_open(worker), select.POLLIN)
    poll.poll()
except ProcessLookupError:
    pass
for _ in range(3):  # one that is being forked may be missed the first time
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (os.getpid(), worker):
            try:
                with open(f"/proc/{name}/environ", "rb") as environ:
                    if mark in environ.read().split(b"\\0"):
                        os.kill(int(name), signal.SIGKILL)
            except OSError:
                pass
for path in sys.argv[3:]:
    shutil.rmtree(path, ignore_errors=True)
"""

# Ray kills the children of a worker that it stops. The guardian is none: a shell starts it, and is gone in a moment.
_APART = ("/bin/sh", "-c", '"$@" &', "sh")


def guard_this_process(*folders: str) -> None:
    """Start the guardian of this process, where the system has what it needs (Linux 5.3 and /proc).

    `folders` are removed once the process has ended.
    """
    if not hasattr(os, "pidfd_open") or not os.path.isdir("/proc/self") or not os.path.exists(_APART[0]):
        return
    mark = f"{os.getpid()}-{os.urandom(8).hex()}"
    environment = {name: value for name, value in os.environ.items() if name != _MARK}
    os.environ[_MARK] = mark
    subprocess.run(  # noqa: S603  # what runs is the constant above
        [*_APART, sys.executable, "-I", "-S", "-c", _WATCH, str(os.getpid()), f"{_MARK}={mark}", *folders],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # neither Ctrl-C nor the end of the worker's group ends it
        check=False,
    )
