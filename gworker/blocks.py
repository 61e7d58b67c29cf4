"""Blocks: memory that other processes of this node can map, used again and again because new pages are dear.

A block is a memfd, mapped once, of a size that is a power of two. `Pool.copy` fills one with the large buffers of a
value and leases it: the views it returns hold the lease, and the block comes back to the pool when the last of them is
gone. `loans` tells what has been lent to whom.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gworker import clock

# Buffers that come to less travel in the frame.
LEAST_BYTES = 512 * 1024
# The most blocks that hold a value at a time, or are mapped by somebody. Each costs a file descriptor.
MOST_OUT = 256
# So much memory may wait for the next value, and for so long.
MOST_IDLE_BYTES = 256 * 2**20
IDLE_S = 10.0
_TIDY_S = 1.0
# Buffers begin at multiples of this, as CPUs and torch like them.
_ALIGNMENT = 64
# From twice this on two threads copy, each a half: one alone does not use up what the memory can do.
_HALF_BYTES = 4 * 2**20
TOKEN_BYTES = 16
_MADV_DONTFORK = 10


class Memory(NamedTuple):
    """How another process finds the memory of this one: its id, and a file that holds a token, to try with."""

    pid: int
    fd: int
    token: bytes


# What a process says that shares none.
NO_MEMORY = Memory(0, -1, bytes(TOKEN_BYTES))


class Block:
    """One memfd and where it is mapped. `used` is how much of it has pages; `spoiled`: it must not be written again."""

    __slots__ = ("address", "fd", "idle_since", "size", "spoiled", "used")

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self.spoiled = False
        self.idle_since = 0.0
        self.fd = new_file("gworker-block", size)
        try:
            self.address = map_file(self.fd, size, mmap.MAP_SHARED)
        except OSError:
            os.close(self.fd)
            raise
        libc().madvise(self.address, size, _MADV_DONTFORK)  # a forked child would write into what is lent

    def close(self) -> None:
        """Give it back to the system, which keeps the memory for as long as others have it mapped."""
        libc().munmap(self.address, self.size)
        os.close(self.fd)


class Lease:
    """Somebody uses a block: held by every view of it, and by the books of each connection it was lent over."""

    __slots__ = ("__weakref__", "block")

    def __init__(self, block: Block) -> None:
        self.block = block


class Pool:
    """The blocks of a process. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: set[Block] = set()
        self._idle: dict[int, list[Block]] = {}
        self._idle_count = 0
        self._idle_bytes = 0
        # Where leases end, in any thread and also during a garbage collection, no lock can be taken.
        self._returned: deque[Block] = deque()
        self._tidying = False
        self._readers = 0
        self._memory: Memory | None = None

    def count_reader(self, change: int) -> None:
        """A connection has come (1), or gone (-1), whose peer can read the memory of this process."""
        with self._lock:
            self._readers += change

    @property
    def has_readers(self) -> bool:
        """Whether there is anybody to lend to."""
        return self._readers > 0

    @property
    def out(self) -> int:
        """How many blocks are leased."""
        with self._lock:
            doomed = self._collect()
            out = len(self._blocks) - self._idle_count
        _close(doomed)
        return out

    @property
    def idle_bytes(self) -> int:
        """How much memory waits for the next value."""
        return self._idle_bytes

    def memory(self) -> Memory:
        """What to tell a peer. Raises OSError where this system has no such memory."""
        with self._lock:
            if self._memory is None:
                token = os.urandom(TOKEN_BYTES)
                fd = new_file("gworker-token", TOKEN_BYTES)
                os.pwrite(fd, token, 0)
                self._memory = Memory(os.getpid(), fd, token)
            return self._memory

    def copy(self, views: Sequence[memoryview]) -> list[memoryview] | None:
        """Copies of these buffers in one block, for nobody to write to; None where there is none to be had."""
        starts: list[int] = []
        end = 0
        for view in views:
            starts.append(start := -(-end // _ALIGNMENT) * _ALIGNMENT)
            end = start + view.nbytes
        lease = self._take(end)
        if lease is None:
            return None
        block = lease.block
        return [_copied(view, lease, block.address, start) for view, start in zip(views, starts, strict=True)]

    def _take(self, nbytes: int) -> Lease | None:
        size = max(mmap.PAGESIZE, 1 << (nbytes - 1).bit_length())
        block: Block | None = None
        with self._lock:
            doomed = self._collect()
            if idle := self._idle.get(size):
                block = idle.pop()  # the one used last: its pages may still be in a cache
                self._idle_count -= 1
                self._idle_bytes -= block.used
            elif len(self._blocks) - self._idle_count < most_out():
                with contextlib.suppress(OSError):
                    block = Block(size)
                    self._blocks.add(block)
                    self._begin_to_tidy()
        _close(doomed)
        if block is None:
            return None
        block.used = max(block.used, nbytes)
        lease = Lease(block)
        weakref.finalize(lease, self._returned.append, block).atexit = False
        return lease

    def _collect(self) -> list[Block]:
        """Take in what has come back; returns what is to be closed: too much, unused for too long, or spoiled."""
        now = clock.now()
        doomed: list[Block] = []
        while self._returned:
            block = self._returned.popleft()
            if block.spoiled:
                doomed.append(block)
                self._blocks.discard(block)
                continue
            block.idle_since = now
            self._idle.setdefault(block.size, []).append(block)
            self._idle_count += 1
            self._idle_bytes += block.used
        while self._idle_count:
            oldest = min((each[0] for each in self._idle.values() if each), key=lambda block: block.idle_since)
            if self._idle_bytes <= MOST_IDLE_BYTES and now - oldest.idle_since < IDLE_S:
                break
            self._idle[oldest.size].pop(0)
            self._idle_count -= 1
            self._idle_bytes -= oldest.used
            self._blocks.discard(oldest)
            doomed.append(oldest)
        return doomed

    def _begin_to_tidy(self) -> None:
        if not self._tidying:
            with contextlib.suppress(RuntimeError):  # as many threads as there may be, or the interpreter is ending
                threading.Thread(target=self._tidy, name="gworker-blocks", daemon=True).start()
                self._tidying = True

    def _tidy(self) -> None:
        while True:
            time.sleep(_TIDY_S)
            with self._lock:
                doomed = self._collect()
                over = not self._blocks
                self._tidying = not over
            _close(doomed)
            if over:
                return

    def leave_to_parent(self) -> None:
        """In a forked child: nothing of this is ours."""
        while self._blocks:
            os.close(self._blocks.pop().fd)
        if self._memory is not None:
            os.close(self._memory.fd)
            self._memory = None


def origin(view: memoryview) -> tuple[Lease, int] | None:
    """The lease that a view was copied under, and where it begins in the block; None for other memory."""
    piece: Any = view.obj
    while type(piece) is memoryview:
        piece = piece.obj
    lease = getattr(piece, "lease", None)
    return None if lease is None else (lease, piece.start)


def memory_at(address: int, nbytes: int) -> Any:
    """A ctypes array at this address, of at least so many bytes: no more than them may be touched."""
    return _array_type((nbytes - 1).bit_length()).from_address(address)


def new_file(name: str, size: int) -> int:
    """A memfd of this size, which nobody can make smaller. Raises OSError."""
    if sys.platform != "linux":
        raise OSError("this system has no memfd")
    import fcntl

    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError:
        os.close(fd)
        raise
    return fd


def map_file(fd: int, nbytes: int, flags: int) -> int:
    """Map a file, to read and write. Raises OSError."""
    # Not by `mmap.mmap`, which keeps a file descriptor of its own for each mapping.
    address: int | None = libc().mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return address


def numpy_if_imported() -> Any:
    """The module numpy; None where nobody has imported it, or another thread is about to."""
    numpy = sys.modules.get("numpy")
    return numpy if hasattr(numpy, "frombuffer") and hasattr(numpy, "copyto") else None


@functools.cache
def libc() -> Any:
    """The C library, with what is used of it here."""
    library = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mmap.argtypes, library.mmap.restype = (pointer, size, number, number, number, ctypes.c_long), pointer
    library.munmap.argtypes = (pointer, size)
    library.madvise.argtypes = (pointer, size, number)
    return library


@functools.cache
def most_out() -> int:
    """How many blocks may be leased at a time: a small part of the file descriptors that a process may have."""
    if sys.platform == "win32":
        return 0
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_OUT if soft == resource.RLIM_INFINITY else min(MOST_OUT, soft // 8)


@functools.cache
def _array_type(bits: int) -> Any:
    # Powers of two only: ctypes keeps something for each length that it was ever asked for.
    return ctypes.c_ubyte * (1 << bits)


def _copied(view: memoryview, lease: Lease, address: int, start: int) -> memoryview:
    piece = memory_at(address + start, view.nbytes)
    piece.lease, piece.start = lease, start
    copy = memoryview(piece).cast("B")[: view.nbytes]
    numpy = numpy_if_imported()
    if numpy is None:
        copy[:] = view
    else:
        _copy_without_gil(numpy.copyto, numpy.frombuffer(copy, "u1"), numpy.frombuffer(view, "u1"))
    return copy


def _copy_without_gil(copyto: Callable[[Any, Any], None], target: Any, source: Any) -> None:
    half = len(source) // 2
    if half < _HALF_BYTES:
        copyto(target, source)
        return
    helper = threading.Thread(target=copyto, args=(target[half:], source[half:]), name="gworker-copy", daemon=True)
    try:
        helper.start()
    except RuntimeError:  # as many threads as there may be, or the interpreter is ending
        copyto(target, source)
        return
    copyto(target[:half], source[:half])
    helper.join()


def _close(blocks: Sequence[Block]) -> None:
    for block in blocks:
        block.close()


pool = Pool()


def _after_fork() -> None:
    global pool
    pool.leave_to_parent()
    pool = Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
