"""What travels between a router and a worker: values, exceptions, and the messages that carry them.

Values are pickled once, by the side that owns them, with large buffers out of band; they are unpickled once, by the
thread that needs them, so that no user code runs on a loop that carries traffic. A number or a short text cannot change
and runs no code: it travels as it is, in the pickle of its bundle. Both directions of a lane carry sequences of the
messages below. `docs/architecture.md` draws the exchange.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import io
import itertools
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

import cloudpickle

from gworker import blocks
from gworker.errors import DeadlineExceeded, RemoteError, RemoteTraceback

if TYPE_CHECKING:
    from gworker.context import WaitingPool

# Below this size a buffer is cheaper inside the pickle than as an object of its own.
INLINE_BUFFER_BYTES = 4096


class Payload:
    """A pickled value with large buffers: the pickle itself, and the buffers (arrays, tensors) it left out of band."""

    __slots__ = ("buffers", "data")

    def __init__(self, data: bytes, buffers: Sequence[Any] = ()) -> None:
        self.data = data
        self.buffers = buffers

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if not self.buffers:
            return (Payload, (self.data,))
        return (Payload, (self.data, [pickle.PickleBuffer(b) for b in self.buffers]))


# A value on its way: in a tuple of one as it is, as a pickle, or as a pickle with buffers beside it.
Packed: TypeAlias = "tuple[Any] | bytes | Payload"


def packed_bytes(packed: Packed) -> int:
    """About how many bytes the value has on the wire."""
    if isinstance(packed, tuple):
        return _PLAIN_BYTES
    if isinstance(packed, bytes):
        return len(packed)
    return len(packed.data) + sum(memoryview(b).nbytes for b in packed.buffers)


def _rebuild_tensor(buffer: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    import torch

    kind: torch.dtype = getattr(torch, dtype)
    if memoryview(buffer).nbytes == 0:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(buffer, dtype=kind).reshape(shape)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle ships no types
    """cloudpickle, and torch tensors as one buffer each: torch's own reduction copies them into the pickle."""

    def reducer_override(self, obj: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is not None and type(obj) is torch.Tensor and obj.layout == torch.strided and not obj.is_quantized:
            tensor = obj.detach().resolve_conj().resolve_neg().cpu().contiguous()
            dtype = str(tensor.dtype).removeprefix("torch.")
            # Through uint8, because numpy knows no bfloat16.
            raw = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
            return _rebuild_tensor, (pickle.PickleBuffer(raw), dtype, tuple(tensor.shape))
        numpy = sys.modules.get("numpy")
        if numpy is not None and type(obj) is numpy.ndarray and not obj.flags.writeable:
            return obj.copy().__reduce_ex__(5)  # a read-only buffer would be read-only again at the other end
        return super().reducer_override(obj)


def pack(value: Any, *, once: bool = False) -> Packed:
    """Make `value` ready to travel, as it is now: the owner may change it, or write to its buffers, again at once.

    `once` is for what is sent and dropped, results for one: its buffers may be lent, which keeps a block from others.
    Classes and functions of importable modules travel by reference, those of `__main__` and of notebooks by value.
    Raises whatever pickling raises.
    """
    packed = (value,)
    return packed if _are_atoms(packed) else _pickled(value, once)


def pack_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Packed:
    """The same for the arguments of a call: of `(args, kwargs)`, or of `(args,)`; the dict is kept.

    Tuples of atoms alone are nothing to the collector of garbage, however many calls are under way.
    """
    value: Any = (args, kwargs) if kwargs else (args,)
    if len(args) + len(kwargs) > _PLAIN_ITEMS or not _are_atoms(args):
        return _pickled(value, True)
    if kwargs:
        for name in kwargs:
            if type(name) is not str:  # but of a class of somebody's
                return _pickled(value, True)
        if not _are_atoms(kwargs.values()):
            return _pickled(value, True)
    return (value,)


def unpack_arguments(packed: Packed) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments again, `(args, kwargs)`."""
    value = unpack(packed)
    return value if len(value) == 2 else (value[0], {})


def _pickled(value: Any, once: bool) -> Packed:
    if _is_plain(value, _PLAIN_DEPTH):
        return pickle.dumps(value, protocol=5)
    views: list[memoryview] = []

    def keep_out(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous: the pickle copies it
            return True
        if view.nbytes < INLINE_BUFFER_BYTES:
            return True
        views.append(view)
        return False

    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=keep_out).dump(value)
    data = file.getvalue()
    return Payload(data, _copies(views, once)) if views else data


def _copies(views: list[memoryview], once: bool) -> Sequence[Any]:
    # Copies: a method may return the same preallocated array each time, and an iterator fill one array for .map.
    if once and blocks.pool.has_readers and sum(view.nbytes for view in views) >= blocks.LEAST_BYTES:
        lent = blocks.pool.copy(views)
        if lent is not None:
            return lent
    # Not as `bytes`, which pickle would have arrive read-only, so that the receiver had to copy it once more.
    return [bytearray(view) for view in views]


def pack_by_value(value: Any, modules: Iterable[ModuleType]) -> Packed:
    """Pickle `value` for processes that cannot import these modules: their classes and functions travel by value."""
    known = {"__main__", *cloudpickle.list_registry_pickle_by_value()}
    added = list({module.__name__: module for module in modules if module.__name__ not in known}.values())
    for module in added:
        cloudpickle.register_pickle_by_value(module)
    try:
        return pack(value)
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)


def importable(cls: type) -> Any:
    """What another process finds where `cls` says it is defined; None where such classes travel by value."""
    module = sys.modules.get(cls.__module__)
    if cls.__module__ == "__main__" or module is None or getattr(module, "__spec__", None) is None:
        return None
    parts = cls.__module__.split(".")
    by_value = cloudpickle.list_registry_pickle_by_value()
    if any(".".join(parts[: i + 1]) in by_value for i in range(len(parts))):
        return None
    return look_up(module, cls.__qualname__)


def look_up(module: Any, qualname: str) -> Any:
    """What a module holds under this name, or None."""
    found = module
    for part in qualname.split("."):
        found = found.__dict__.get(part) if hasattr(found, "__dict__") else None
    return found


_PLAIN = frozenset((type(None), bool, int, float, str, bytes))
_PLAIN_DEPTH = 3
_PLAIN_ITEMS = 32
# What travels as it is: no more than this many characters, or bytes, and numbers this large; and what it counts for.
_ATOM_LENGTH = 1024
_ATOM_NUMBER = 2**63
_PLAIN_BYTES = 256


def _are_atoms(values: Iterable[Any]) -> bool:
    """Whether these cannot change, are small together, and take no code of anybody's to pickle and unpickle."""
    left = _ATOM_LENGTH
    for value in values:
        kind = type(value)
        if kind is str or kind is bytes:
            left -= len(value)
            if left < 0:
                return False
        elif kind is int:
            if not -_ATOM_NUMBER <= value < _ATOM_NUMBER:
                return False
        elif kind is not float and kind is not bool and value is not None:
            return False
    return True


def _is_plain(value: Any, depth: int) -> bool:
    """Whether `value` is a little plain data, which the C pickler writes at a tenth of cloudpickle's cost."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if depth == 0 or kind not in (tuple, list, dict) or len(value) > _PLAIN_ITEMS:
        return False
    items = value.values() if kind is dict else value
    if kind is dict and not all(type(key) in _PLAIN for key in value):
        return False
    return all(_is_plain(item, depth - 1) for item in items)


def unpack(packed: Packed) -> Any:
    """The value again. Its arrays are writable and belong to the caller: read-only buffers are copied."""
    if isinstance(packed, tuple):
        return packed[0]
    if isinstance(packed, bytes):
        return pickle.loads(packed)
    return pickle.loads(packed.data, buffers=[_own(b) for b in packed.buffers])


def _own(buffer: Any) -> Any:
    # A copy, unless the direct lane has read the buffer into memory of its own, or mapped it privately: within one
    # process the sender may still hold it or lend it again, and Ray's object store is read-only.
    if not isinstance(buffer, memoryview) or buffer.readonly or blocks.origin(buffer) is not None:
        return bytearray(buffer)
    return buffer


def encode(bundle: Up | Down | None) -> bytes | tuple[bytes, list[pickle.PickleBuffer]]:
    """A bundle as one pickle, and the large buffers of its payloads beside it where there are any."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(bundle and to_plain(bundle), protocol=5, buffer_callback=buffers.append)
    return (data, buffers) if buffers else data


def decode(encoded: bytes | tuple[bytes, Sequence[Any]], kind: type[B]) -> B | None:
    """The bundle that `encode` was given."""
    data, buffers = (encoded, ()) if isinstance(encoded, bytes) else encoded
    plain = pickle.loads(data, buffers=buffers)
    return None if plain is None else from_plain(kind, plain)


# --- exceptions --------------------------------------------------------------------------------------------------

# Raised as they are in a caller, these would end its loops, its tasks or its process instead of reporting a failure.
_CONTROL_FLOW = (
    StopIteration,
    StopAsyncIteration,
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
)


class Failure(NamedTuple):
    """An exception on its way to a caller. `pickled` is None where it cannot, or must not, be raised as it is.

    `mro` holds "module.qualname" of its class and their bases; of a `RemoteError` that is passed on, also those of what
    it stands for. `final` says that another attempt cannot help: the time of the whole call is over.
    """

    pickled: Packed | None
    type_name: str
    message: str
    traceback: str
    mro: tuple[str, ...]
    final: bool = False


def pack_exception(error: BaseException) -> Failure:
    """Describe `error` so that the caller can raise it, or read what it was.

    An exception that does not survive pickling both ways, and one that would change the caller's control flow, is
    sent as text and arrives as `RemoteError`.
    """
    pickled: Packed | None = None
    if isinstance(error, Exception) and not isinstance(error, _CONTROL_FLOW):
        try:
            candidate = pack(error)
            again = unpack(candidate)
            if type(again) is type(error):
                pickled = candidate
        except BaseException:  # user code: __reduce__ and __init__ may raise anything
            pickled = None
    try:
        message = str(error)
    except BaseException as nested:
        message = f"<{type(nested).__name__} from its own __str__>"
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException:
        text = f"{type(error).__qualname__}: {message}\n"
    return Failure(
        pickled=pickled,
        type_name=type(error).__qualname__,
        message=message,
        traceback=text,
        mro=(
            *(f"{c.__module__}.{c.__qualname__}" for c in type(error).__mro__),
            *(error.mro if isinstance(error, RemoteError) else ()),
        ),
        final=isinstance(error, DeadlineExceeded) and vars(error).get("limit") == "deadline_s",
    )


def unpack_exception(failure: Failure) -> BaseException:
    """The exception to raise in the caller, with the worker's traceback as its `__cause__`.

    Runs user code, which may block: never on a loop that carries traffic.
    """
    error: BaseException | None = None
    if failure.pickled is not None:
        try:
            error = unpack(failure.pickled)
        except BaseException:  # the caller lacks what the worker had
            error = None
    if not isinstance(error, Exception):
        error = RemoteError(failure.type_name, failure.message, failure.traceback, failure.mro)
    error.__cause__ = RemoteTraceback(failure.traceback)
    return error


# --- messages ----------------------------------------------------------------------------------------------------


class Submit(NamedTuple):
    """Router to worker: run this input. `call_id` is the router's own number, `name` the public id of the call.

    `waiting` are the pools that wait for it, and so cannot serve it where a worker is all they have.
    """

    call_id: int
    name: str
    method: str
    arguments: Packed
    parameters: Packed | None
    parameters_key: Any
    attempt: int
    deadline_left_s: float | None
    timeout_s: float | None
    batch_cap: int
    credit: int
    waiting: tuple[WaitingPool, ...] = ()


class Cancel(NamedTuple):
    """Router to worker: nobody waits for this input any more."""

    call_id: int


class Credit(NamedTuple):
    """Router to worker: the consumer of this stream has room for `more` more items."""

    call_id: int
    more: int


class Started(NamedTuple):
    """Worker to router: a staged input began to run."""

    call_id: int


class Busy(NamedTuple):
    """Worker to router: not taken in, never started; keep it or send it elsewhere."""

    call_id: int


class Returned(NamedTuple):
    """Worker to router: the result. `wait_s` and `run_s`: see `Raised`."""

    call_id: int
    result: Packed
    wait_s: float = 0.0
    run_s: float = 0.0


class Raised(NamedTuple):
    """Worker to router: the input failed, alone or in a batch of `batch_size` inputs.

    `blame` is "system" where not user code raised it: an execution that passed its limit, a fault of gworker itself;
    of a batch only one input carries that blame. "nobody" says nothing about the worker.
    `wait_s` is how long the worker held it before its invocation began, `run_s` how long that took; None where it was
    not held, or did not begin. `limit` names the time limit that passed, where that is the failure.
    """

    call_id: int
    failure: Failure
    batch_size: int
    blame: Literal["user", "system", "nobody"] = "user"
    wait_s: float | None = None
    run_s: float | None = None
    limit: Literal["", "timeout_s", "deadline_s"] = ""


class Item(NamedTuple):
    """Worker to router: the next item of a stream."""

    call_id: int
    item: Packed


class Ended(NamedTuple):
    """Worker to router: a stream is complete. `wait_s` and `run_s`: see `Raised`."""

    call_id: int
    wait_s: float = 0.0
    run_s: float = 0.0


class Up(NamedTuple):
    """One bundle from a router, numbered from 0. `waiting` is how many more inputs the router would send if it could.

    `acknowledged` is the last of the worker's bundles that the router has handled, -1 before the first.
    `stages` says that the lane delivers start reports before the start, so that inputs may be staged behind others.
    """

    session: str
    sequence: int
    acknowledged: int
    waiting: int
    stages: bool
    messages: Sequence[Submit | Cancel | Credit]


class Down(NamedTuple):
    """One bundle from a worker, numbered from 0. `room` is what the worker still takes from this router.

    It counts everything up to the router's bundle `acknowledged` as received. A worker that drains asks for one more
    bundle in return, so that it knows its last results have arrived before it goes.
    """

    sequence: int
    acknowledged: int
    room: int
    draining: bool
    messages: Sequence[Started | Busy | Returned | Raised | Item | Ended]


# One for each call: made from all of their fields at once, without a call of Python's.
submit: Callable[[tuple[Any, ...]], Submit] = functools.partial(tuple.__new__, Submit)
returned: Callable[[tuple[Any, ...]], Returned] = functools.partial(tuple.__new__, Returned)

B = TypeVar("B", Up, Down)
# As plain tuples, each message with the number of its class before it, pickling takes a tenth of the time.
_CLASSES: tuple[Any, ...] = (Submit, Cancel, Credit, Started, Busy, Returned, Raised, Item, Ended)
_NUMBERS = {each: number for number, each in enumerate(_CLASSES)}
_LENGTHS = tuple(len(each._fields) for each in _CLASSES)
_new = tuple.__new__


def to_plain(bundle: Up | Down) -> tuple[Any, ...]:
    """A bundle in plain tuples."""
    return (*bundle[:-1], [(_NUMBERS[type(message)], tuple(message)) for message in bundle.messages])


def from_plain(kind: type[B], plain: Any) -> B:
    """The bundle of this kind again. Raises ValueError, or TypeError, where `plain` is none."""
    *head, messages = plain
    if len(head) != len(kind._fields) - 1:
        raise ValueError(f"{len(head)} fields are no {kind.__name__}")
    made = []
    for number, fields in messages:
        if len(fields) != _LENGTHS[number]:
            raise ValueError(f"{len(fields)} fields are no {_CLASSES[number].__name__}")
        made.append(_new(_CLASSES[number], fields))  # as _make does it, without a call of Python's for each
    return kind._make([*head, made])


# Which field of a message is its payload, if it has a large one.
_PAYLOAD_OF = {Submit: 3, Returned: 1, Item: 1}


def count_within(messages: Iterable[Any], most: int, most_bytes: int) -> int:
    """How many of these messages make one bundle: `most`, or as many as have `most_bytes`, but one at least."""
    count = total = 0
    for message in itertools.islice(messages, most):
        field = _PAYLOAD_OF.get(type(message))
        if field is not None:
            packed = message[field]
            total += _PLAIN_BYTES if type(packed) is tuple else packed_bytes(packed)
        if total > most_bytes and count:
            break
        count += 1
    return count


class InOrder:
    """Puts numbered bundles back into order: a transport may deliver one before its predecessor."""

    def __init__(self) -> None:
        self._next = 0
        self._early: dict[int, Any] = {}

    def feed(self, sequence: int, bundle: Any) -> list[Any]:
        """The bundles that can be handled now that `bundle` has come, in order."""
        if sequence == self._next and not self._early:  # nearly always
            self._next += 1
            return [bundle]
        if sequence >= self._next:  # one that was sent again may be known
            self._early[sequence] = bundle
        ready = []
        while self._next in self._early:
            ready.append(self._early.pop(self._next))
            self._next += 1
        return ready

    @property
    def last(self) -> int:
        """Number of the last bundle handed out, -1 before the first."""
        return self._next - 1
