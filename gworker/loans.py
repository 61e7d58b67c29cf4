"""Blocks lent over one connection: both directions, by the number of the block's file descriptor in its owner.

The receiver maps a block privately, so what it writes is its own, and gives the number back when its last view of it is
gone. Until then the owner does not write to the block again; what was lent over a connection that is lost it never
does, for whoever was at the other end may have it mapped for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Sequence

from gworker import blocks
from gworker.blocks import NO_MEMORY, TOKEN_BYTES, Lease, Memory
from gworker.frames import Part, ProtocolError

# What a receiver no longer uses it says with its next frame, or with one of its own after this long.
GIVE_BACK_S = 0.05


class PeerGoneError(ConnectionError):
    """The memory of the peer cannot be reached any more: its process has ended."""


def own_memory() -> Memory:
    """What to tell a peer on the same node; NO_MEMORY where this process shares none."""
    if os.environ.get("GWORKER_SHARED_MEMORY") == "off" or sys.platform != "linux":
        return NO_MEMORY
    try:
        return blocks.pool.memory()
    except OSError:
        return NO_MEMORY


def can_read(memory: Memory) -> bool:
    """Whether this process can read the memory of another: it tries."""
    if memory.pid <= 0 or own_memory() == NO_MEMORY:
        return False
    try:
        opened = _open(memory.pid, memory.fd, TOKEN_BYTES)
    except OSError:  # another namespace, another user
        return False
    try:
        return os.pread(opened, TOKEN_BYTES, 0) == memory.token
    finally:
        os.close(opened)


class Loans:
    """The books of one connection. Used on its loop, except that mappings end in any thread.

    `peer` is the peer's memory where it can be read, `give_back` is called on the loop when numbers wait in `owed`.
    """

    def __init__(self, peer: Memory | None, give_back: Callable[[], None]) -> None:
        self.owed: deque[int] = deque()
        self._peer = peer
        self._give_back = give_back
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._lent: dict[int, list[Lease]] = {}
        self._lends = False
        self._waking = False
        self._timer: asyncio.TimerHandle | None = None
        self._over = False

    # --- what is lent -----------------------------------------------------------------------------------------------

    def begin_to_lend(self) -> None:
        """The peer has shown that it can read the memory of this process."""
        if not self._lends and not self._over:
            self._lends = True
            blocks.pool.count_reader(1)

    def lend(self, views: Sequence[memoryview]) -> list[Part]:
        """How the peer gets at each of these buffers."""
        parts: list[Part] = []
        last = Part(0, 0, -1)
        for view in views:
            found = blocks.origin(view) if self._lends else None
            if found is None:
                part = Part(view.nbytes, 0, -1)
            else:
                lease, start = found
                part = Part(view.nbytes, start, lease.block.fd)
                if not _goes_on(last, part):
                    self._lent.setdefault(part.fd, []).append(lease)
            parts.append(last := part)
        return parts

    def take_back(self, number: int) -> None:
        """The peer has given a block back, never to be written again where the number is negative (`~fd`).

        Raises ProtocolError where it does not have it.
        """
        fd = number if number >= 0 else ~number
        leases = self._lent.get(fd)
        if not leases:
            raise ProtocolError(f"the peer gives back {fd}, which it does not have")
        if number < 0:
            leases[-1].block.spoiled = True
        leases.pop()
        if not leases:
            del self._lent[fd]

    def end(self) -> None:
        """The connection is lost."""
        if self._over:
            return
        self._over = True
        if self._lends:
            blocks.pool.count_reader(-1)
        for leases in self._lent.values():
            leases[-1].block.spoiled = True
        self._lent.clear()
        self.owed.clear()
        if self._timer is not None:
            self._timer.cancel()

    # --- what is borrowed -------------------------------------------------------------------------------------------

    def borrow(self, parts: Sequence[Part]) -> list[memoryview | None]:
        """The buffers of a frame; None for those that it carries itself. Raises ProtocolError, PeerGoneError."""
        found: list[memoryview | None] = []
        first = 0
        while first < len(parts):
            last = parts[first]
            if last.fd < 0:
                found.append(None)
                first += 1
                continue
            end = first + 1
            while end < len(parts) and _goes_on(last, parts[end]):
                last = parts[end]
                end += 1
            memory = self._map(last.fd, last.start + last.nbytes)
            found += [memory[part.start : part.start + part.nbytes] for part in parts[first:end]]
            first = end
        return found

    def _map(self, fd: int, nbytes: int) -> memoryview:
        if self._peer is None:
            raise ProtocolError("the peer lends what it was not asked for")
        try:
            opened = _open(self._peer.pid, fd, nbytes)
        except OSError as error:
            if not can_read(self._peer):
                raise PeerGoneError("the process of the peer has ended") from None
            raise ProtocolError(f"the peer lends {nbytes} bytes of {fd}, which cannot be: {error}") from error
        try:
            try:
                address = blocks.map_file(opened, nbytes, mmap.MAP_PRIVATE | _NO_RESERVE)
            except OSError:  # too many mappings, for one
                copy = memoryview(bytearray(nbytes))
                _read_into(opened, copy)
                self._owe(fd)
                return copy
        finally:
            os.close(opened)
        array = blocks.memory_at(address, nbytes)
        weakref.finalize(array, _unmap, address, nbytes, self, fd, _forks).atexit = False  # a thread may still read
        view = memoryview(array).cast("B")[:nbytes]
        numpy = blocks.numpy_if_imported()
        # The garbage collector does not look into arrays of numpy. If it saw the mapping in a cycle, it would end it
        # before it calls the `__del__` of what else is in that cycle, and may read it.
        return view if numpy is None else memoryview(numpy.frombuffer(view, "u1"))

    def _owe(self, number: int) -> None:
        if self._over or self._pid != os.getpid():  # a forked child owes nobody
            return
        self.owed.append(number)
        if not self._waking:
            self._waking = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._wait)

    def _wait(self) -> None:
        if not self._over:
            self._timer = self._loop.call_later(GIVE_BACK_S, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        self._waking = False
        if self.owed:
            self._give_back()


_NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which `mmap` does not know: hardly any of it will be written


def _goes_on(last: Part, part: Part) -> bool:
    """Whether a part is in the same mapping as the one before it: both sides count mappings, and must agree."""
    return part.fd >= 0 and part.fd == last.fd and part.start >= last.start + last.nbytes


def _open(pid: int, fd: int, nbytes: int) -> int:
    """Open a file of another process. Raises OSError where it is no memfd, or not for ever of at least this size."""
    import fcntl

    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    opened = os.open(f"/proc/{pid}/fd/{fd}", flags)
    try:
        if not fcntl.fcntl(opened, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise OSError("it might shrink")
        size = os.fstat(opened).st_size
        if not 0 < nbytes <= size:
            raise OSError(f"it has {size} bytes")
    except OSError:
        os.close(opened)
        raise
    return opened


def _read_into(opened: int, target: memoryview) -> None:
    done = 0
    while done < target.nbytes:
        done += os.preadv(opened, [target[done:]], done)


def _unmap(address: int, nbytes: int, loans: Loans, fd: int, forks: int) -> None:
    blocks.libc().munmap(address, nbytes)
    # A child that was forked meanwhile has it mapped, and reads what its owner would write.
    loans._owe(fd if forks == _forks else ~fd)


_forks = 0


def _before_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)
