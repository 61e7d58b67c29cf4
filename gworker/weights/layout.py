"""Weights as they lie in the object store: a pickle, and the memory of tensors and arrays beside it.

Each stretch of memory is there once, however many tensors lie in it. What is smaller than a page is put together and
copied by whoever takes it out.
"""

from __future__ import annotations

import ctypes
import io
import math
import pickle
import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import cloudpickle

from gworker.weights.pages import Pages

# Below this size memory is not shared.
SMALL_BYTES = 4096
# Where a small stretch may begin: no element of a tensor needs more.
_ALIGN = 64


class Leaf(NamedTuple):
    """A tensor or an array: where it lies, and what it looks like. `buffer` 0 holds the small ones, which are copied.

    `strides` are in bytes. `dtype` is a name for torch, the dtype itself for numpy.
    """

    kind: Literal["torch", "numpy"]
    buffer: int
    offset: int
    dtype: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool = False


class Packed(NamedTuple):
    """Weights ready for the store. The buffers are their own memory, and keep it."""

    skeleton: bytes
    leaves: tuple[Leaf, ...]
    buffers: tuple[Any, ...]

    @property
    def nbytes(self) -> int:
        """About what they take in the store."""
        return len(self.skeleton) + sum(memoryview(buffer).nbytes for buffer in self.buffers)

    @property
    def parts(self) -> tuple[bytes, tuple[Leaf, ...], list[pickle.PickleBuffer]]:
        """What is stored: one object, whose buffers are copied once, straight to where they stay."""
        return self.skeleton, self.leaves, [pickle.PickleBuffer(buffer) for buffer in self.buffers]


def pack(value: Any) -> Packed:
    """Take the tensors and arrays out of `value`, wherever in it they are. Raises what pickling the rest raises."""
    file = io.BytesIO()
    pickler = _Pickler(file, protocol=5)
    pickler.dump(value)
    small = bytearray()
    large: list[Any] = []
    where: dict[int, tuple[int, int]] = {}
    for start, end, members in _stretches(pickler.spans):
        memory: Any = (ctypes.c_ubyte * (end - start)).from_address(start)
        memory.kept = pickler.kept
        if end - start < SMALL_BYTES:
            small += bytes(-len(small) % _ALIGN)
            place, base = 0, len(small)
            small += memory
        else:
            large.append(memoryview(memory))
            place, base = len(large), 0
        where |= {number: (place, base + pickler.spans[number][0] - start) for number in members}
    leaves = tuple(
        leaf._replace(buffer=where[n][0], offset=where[n][1]) if n in where else leaf
        for n, leaf in enumerate(pickler.leaves)
    )
    return Packed(file.getvalue(), leaves, (small or b"\0", *large))


def unpack(parts: tuple[bytes, Sequence[Leaf], Sequence[Any]]) -> Any:
    """The value again, its large tensors and arrays being views of the store's memory, which they keep there."""
    skeleton, leaves, (small, *large) = parts
    return _Unpickler(skeleton, leaves, small, Pages(large) if large else None).load()


class _Unpickler(pickle.Unpickler):
    """Puts tensors and arrays in again."""

    def __init__(self, skeleton: bytes, leaves: Sequence[Leaf], small: Any, pages: Pages | None) -> None:
        super().__init__(io.BytesIO(skeleton))
        self._leaves = leaves
        self._small = small
        self._pages = pages
        self._made: dict[int, Any] = {}

    def persistent_load(self, pid: Any) -> Any:
        if pid not in self._made:
            self._made[pid] = _view(self._leaves[pid], self._small, self._pages)
        return self._made[pid]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle ships no types
    """Leaves out tensors and arrays. `spans` has the first address of each leaf, and the one behind its last."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol=protocol)
        self.leaves: list[Leaf] = []
        self.spans: dict[int, tuple[int, int]] = {}
        self.kept: list[Any] = []
        self._known: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        if torch is not None and type(obj) is torch.Tensor and obj.layout == torch.strided:
            if obj.is_meta or obj.is_quantized:
                return None
        elif numpy is None or type(obj) not in (numpy.ndarray, numpy.memmap) or obj.dtype.hasobject:
            return None
        number = self._known.get(id(obj))
        if number is None:
            number = self._known[id(obj)] = len(self.leaves)
            self.kept.append(obj)
            is_array = numpy is not None and isinstance(obj, numpy.ndarray)
            self.leaves.append(self._array(number, obj) if is_array else self._tensor(number, obj))
        return number

    def _tensor(self, number: int, tensor: Any) -> Leaf:
        plain = tensor.detach().resolve_conj().resolve_neg().cpu()
        size = plain.element_size()
        if not _is_dense(tuple(plain.shape), tuple(stride * size for stride in plain.stride()), size):
            plain = plain.contiguous()
        self._keep(number, plain, plain.data_ptr(), plain.numel() * size)
        strides = tuple(stride * size for stride in plain.stride())
        dtype = str(plain.dtype).removeprefix("torch.")
        return Leaf("torch", 0, 0, dtype, tuple(plain.shape), strides, tensor.requires_grad)

    def _array(self, number: int, array: Any) -> Leaf:
        if not _is_dense(array.shape, array.strides, array.itemsize):
            array = array.copy()
        self._keep(number, array, array.__array_interface__["data"][0], array.nbytes)
        return Leaf("numpy", 0, 0, array.dtype, array.shape, array.strides)

    def _keep(self, number: int, owner: Any, address: int, nbytes: int) -> None:
        self.kept.append(owner)
        if nbytes:
            self.spans[number] = (address, address + nbytes)


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether the elements fill a stretch of memory without gaps, in whatever order of the dimensions."""
    expected = itemsize
    for stride, length in sorted(
        (stride, length) for stride, length in zip(strides, shape, strict=True) if length != 1
    ):
        if stride != expected:
            return False
        expected *= length
    return True


def _stretches(spans: dict[int, tuple[int, int]]) -> list[tuple[int, int, list[int]]]:
    """Stretches of memory that have no byte in common, each with the leaves that lie in it."""
    found: list[tuple[int, int, list[int]]] = []
    for number, (start, end) in sorted(spans.items(), key=lambda item: item[1]):
        if found and start < found[-1][1]:
            first, last, members = found[-1]
            found[-1] = (first, max(last, end), [*members, number])
        else:
            found.append((start, end, [number]))
    return found


def _view(leaf: Leaf, small: Any, pages: Pages | None) -> Any:
    """A tensor or an array over the store's memory, or over a copy of its own."""
    count = math.prod(leaf.shape)
    if leaf.kind == "numpy":
        import numpy as np

        memory, offset = _memory(leaf, count * leaf.dtype.itemsize, small, pages)
        if memory is not None and leaf.buffer:
            memory = memoryview(memory).toreadonly()
        return np.ndarray(leaf.shape, leaf.dtype, memory, offset, leaf.strides)
    import torch

    dtype: torch.dtype = getattr(torch, leaf.dtype)
    memory, offset = _memory(leaf, count * dtype.itemsize, small, pages)
    if memory is None:
        return torch.empty(leaf.shape, dtype=dtype, requires_grad=leaf.requires_grad)
    flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=offset)
    view = flat.as_strided(leaf.shape, [stride // dtype.itemsize for stride in leaf.strides])
    return view.requires_grad_() if leaf.requires_grad else view


def _memory(leaf: Leaf, nbytes: int, small: Any, pages: Pages | None) -> tuple[Any, int]:
    """The memory of a leaf and where in it to begin; None for one that has no elements."""
    if not nbytes:
        return None, 0
    if leaf.buffer:
        assert pages is not None
        return pages.memory, pages.starts[leaf.buffer - 1] + leaf.offset
    return bytearray(memoryview(small)[leaf.offset : leaf.offset + nbytes]), 0
