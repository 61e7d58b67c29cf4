"""Memory of Ray's object store, mapped once more and read-only.

Ray maps its store writable, and torch has no tensors that cannot be written: without this, a stray `tensor.add_(1)`
would change the weights of every worker of the node. With it, it ends the one process that tries.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from collections.abc import Sequence
from typing import Any

_MREMAP_MAYMOVE = 1
_PROT_READ = 1
# Between two buffers of one object in the store there is less than this.
_GAP = 64 + 4096


class Pages:
    """The buffers of one object, as one stretch of memory: `memory` is what views are made of, and keeps it alive.

    `starts` tells where each buffer begins in it. `protected` is False where the memory could not be mapped again
    (another system than Linux, an object that is not in shared memory).
    """

    def __init__(self, buffers: Sequence[Any]) -> None:
        spans = [_span(buffer) for buffer in buffers]
        first = min(start for start, _ in spans)
        size = max(start + nbytes for start, nbytes in spans) - first
        compact = size <= sum(nbytes + _GAP for _, nbytes in spans)
        again = _map_again(first, size) if compact else None
        self.protected = again is not None
        memory: Any = (ctypes.c_ubyte * size).from_address(first if again is None else again)
        memory.kept = buffers
        self.memory = memory
        if again is not None:
            start, end = _whole_pages(again, size)
            # Not at exit: a thread may still read when the interpreter ends.
            weakref.finalize(self.memory, _libc().munmap, start, end - start).atexit = False
        self.starts = [start - first for start, _ in spans]


def give_back_memory() -> None:
    """Return to the system what this process has freed (many small tensors, above all), where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _span(buffer: Any) -> tuple[int, int]:
    import numpy as np

    array = np.frombuffer(buffer, np.uint8)
    return array.__array_interface__["data"][0], array.nbytes


def _whole_pages(start: int, size: int) -> tuple[int, int]:
    page = mmap.PAGESIZE
    return start // page * page, -(-(start + size) // page) * page


def _map_again(first: int, size: int) -> int | None:
    """Where the `size` bytes at `first` are mapped again, read-only; None where that cannot be."""
    if sys.platform != "linux":
        return None
    start, end = _whole_pages(first, size)
    libc = _libc()
    # An old size of 0 leaves the old mapping as it is. Linux refuses it for memory that is not shared.
    again: int | None = libc.mremap(start, 0, end - start, _MREMAP_MAYMOVE)
    if again is None or again == ctypes.c_void_p(-1).value:
        return None
    if libc.mprotect(again, end - start, _PROT_READ):
        libc.munmap(again, end - start)
        return None
    return again + first - start


def _libc() -> Any:
    libc = ctypes.CDLL(None)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    libc.mremap.argtypes, libc.mremap.restype = (pointer, size, size, ctypes.c_int), pointer
    libc.mprotect.argtypes = (pointer, size, ctypes.c_int)
    libc.munmap.argtypes = (pointer, size)
    return libc
