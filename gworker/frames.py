"""The wire format of the direct lane: frames on a byte stream, and the handshake before the first of them.

A frame is one bundle: its pickle, and the large buffers of its payloads beside it, each read straight into memory of
its own, or mapped where the sender has lent it (`loans`). It also gives back what its sender has borrowed, and may do
only that; a frame of nothing says that its sender can read the memory of its receiver.

Nothing is unpickled, and no more than a few bytes are kept, before the peer has proved that it knows the worker's
secret:

    worker -> router   MAGIC, version, nonce of the worker
    router -> worker   version, HMAC(secret, "router" + both nonces), nonce of the router, last bundle it has, its
                       memory, session
    worker -> router   HMAC(secret, "worker" + both nonces), whether it knows the session, last bundle it has, its
                       memory, whether it can read the router's

Both sides prove themselves. HMAC-SHA256, RFC 2104.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import pickle
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from gworker.blocks import NO_MEMORY, TOKEN_BYTES, Memory

if TYPE_CHECKING:
    from gworker.loans import Loans

MAGIC = b"gworker"
VERSION = 4
NONCE_BYTES = 16
SECRET_BYTES = 32
_DIGEST_BYTES = 32
MAX_SESSION_BYTES = 128

# A frame says how long its pickle is, how many buffers it has and how many blocks it gives back, then which.
_HEAD = struct.Struct("!QHH")
_PART = struct.Struct("!QQi")
_NUMBER = struct.Struct("!i")
_MAX_COUNT = 2**16 - 1
# What is read at a time where no buffer of its own waits to be filled.
_CHUNK_BYTES = 256 * 1024
# From this size on a write, or a read, of its own is cheaper than a copy.
_LARGE_BYTES = 64 * 1024


class ProtocolError(ConnectionError):
    """The peer does not keep to the protocol, or does not know the secret."""


# --- frames ------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A buffer of a frame: in the frame itself where `fd` is -1, else in this block of the sender, from `start` on."""

    nbytes: int
    start: int
    fd: int


def encode_frame(bundle: Any, loans: Loans | None = None) -> list[Any]:
    """A bundle as byte strings and memory views, to be written one after another; `loans` is of their connection."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(bundle, protocol=5, buffer_callback=buffers.append)
    if not buffers and (loans is None or not loans.owed):  # the usual case
        head = _HEAD.pack(len(data), 0, 0)
        return [head + data] if len(data) < _LARGE_BYTES else [head, data]
    if len(buffers) > _MAX_COUNT:  # they travel inside the pickle instead
        data, buffers = pickle.dumps(bundle, protocol=5), []
    head, views = _encode_parts(len(data), [buffer.raw() for buffer in buffers], loans)
    return [head + data, *views] if len(data) < _LARGE_BYTES else [head, data, *views]


def encode_return(loans: Loans) -> bytes:
    """A frame that gives back what is owed. Where that is nothing, it says that the peer's memory can be read."""
    return _encode_parts(0, [], loans)[0]


def _encode_parts(pickle_bytes: int, views: list[memoryview], loans: Loans | None) -> tuple[bytes, list[memoryview]]:
    """The head of a frame, and the buffers that it has to carry."""
    if loans is None:
        parts, returned = [Part(view.nbytes, 0, -1) for view in views], []
    else:
        parts = loans.lend(views)
        returned = [loans.owed.popleft() for _ in range(min(len(loans.owed), _MAX_COUNT))]
    head = [_HEAD.pack(pickle_bytes, len(parts), len(returned))]
    head += [_PART.pack(*part) for part in parts]
    head += [_NUMBER.pack(number) for number in returned]
    return b"".join(head), [view for view, part in zip(views, parts, strict=True) if part.fd < 0 and part.nbytes]


class FrameReader:
    """Turns a byte stream into bundles, whatever pieces it comes in.

    `get_buffer` says where the next bytes are to be put, `filled` that so many have been: the interface of
    `asyncio.BufferedProtocol`. Raises ProtocolError for a frame that is too large, or refers to what it cannot.
    """

    def __init__(self, on_bundle: Callable[[Any], None], loans: Loans | None = None) -> None:
        self._on_bundle = on_bundle
        self._loans = loans
        self._chunk = bytearray(_CHUNK_BYTES)
        self._view = memoryview(self._chunk)
        self._start = 0
        self._end = 0
        self._pickle: bytearray | None = None
        self._buffers: list[memoryview] = []
        self._targets: deque[memoryview] = deque()
        self._direct = False

    def get_buffer(self) -> memoryview:
        """Where the next bytes go: straight into the part of a frame that is being filled, or into the chunk."""
        self._direct = bool(self._targets) and self._targets[0].nbytes >= _LARGE_BYTES
        if self._direct:
            return self._targets[0]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._chunk):
            rest = bytes(self._view[self._start : self._end])
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return self._view[self._end :]

    def filled(self, count: int) -> None:
        """`count` bytes have been put where `get_buffer` said."""
        if self._direct:
            self._advance(count)
        else:
            self._end += count
            if self._targets:
                self._take_from_chunk()
        if self._targets:
            return
        if self._pickle is not None:
            self._finish()
        while self._start < self._end and self._begin():
            pass

    def _begin(self) -> bool:
        """Begin the next frame in the chunk; False if it is not complete, or goes on beyond the chunk."""
        available = self._end - self._start
        if available < _HEAD.size:
            return False
        pickle_bytes, count, returned = _HEAD.unpack_from(self._view, self._start)
        if pickle_bytes and not count and not returned and available - _HEAD.size >= pickle_bytes:
            start = self._start + _HEAD.size  # the usual case: small, and here
            self._start = start + pickle_bytes
            self._on_bundle(pickle.loads(self._view[start : self._start]))
            return True
        head_bytes = _HEAD.size + count * _PART.size + returned * _NUMBER.size
        if available < head_bytes:
            return self._grow(head_bytes)
        end_of_parts = self._start + _HEAD.size + count * _PART.size
        parts = list(map(Part._make, _PART.iter_unpack(self._view[self._start + _HEAD.size : end_of_parts])))
        self._start += head_bytes
        if returned or not pickle_bytes:
            self._settle([number for (number,) in _NUMBER.iter_unpack(self._view[end_of_parts : self._start])])
        if not pickle_bytes:
            if count:
                raise ProtocolError("a frame with buffers, and without a bundle")
            return True
        self._open(pickle_bytes, parts)
        self._take_from_chunk()
        if self._targets:
            return False
        self._finish()
        return True

    def _settle(self, returned: list[int]) -> None:
        """The peer gives these blocks back, or, without any, says that it can read what is lent to it."""
        if self._loans is None:
            raise ProtocolError("a frame without a bundle, or with blocks that the peer was not lent")
        if not returned:
            self._loans.begin_to_lend()
        for number in returned:
            self._loans.take_back(number)

    def _open(self, pickle_bytes: int, parts: list[Part]) -> None:
        """Have room for what a frame carries, and map what it refers to."""
        wanted = pickle_bytes + sum(part.nbytes for part in parts if part.fd < 0)
        if wanted > _CHUNK_BYTES and wanted > _spare_bytes():
            raise ProtocolError(f"a frame of {wanted} bytes is more than this process has memory for")
        lent: list[memoryview | None]
        if self._loans is not None:
            lent = self._loans.borrow(parts)
        elif all(part.fd < 0 for part in parts):
            lent = [None] * len(parts)
        else:
            raise ProtocolError("the peer lends memory that was not agreed upon")
        self._pickle = bytearray(pickle_bytes)
        self._buffers = [
            memoryview(bytearray(part.nbytes)) if view is None else view for part, view in zip(parts, lent, strict=True)
        ]
        carried = (buffer for buffer, view in zip(self._buffers, lent, strict=True) if view is None)
        self._targets.extend(target for target in (memoryview(self._pickle), *carried) if target.nbytes)

    def _grow(self, head_bytes: int) -> bool:
        """Make room for a head that is larger than the chunk."""
        if head_bytes > len(self._chunk):
            rest = bytes(self._view[self._start : self._end])
            self._view.release()
            self._chunk = bytearray(head_bytes)
            self._view = memoryview(self._chunk)
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return False

    def _take_from_chunk(self) -> None:
        while self._targets and self._start < self._end:
            target = self._targets[0]
            count = min(target.nbytes, self._end - self._start)
            target[:count] = self._view[self._start : self._start + count]
            self._start += count
            self._advance(count)

    def _advance(self, count: int) -> None:
        target = self._targets[0]
        if count == target.nbytes:
            self._targets.popleft()
        else:
            self._targets[0] = target[count:]

    def _finish(self) -> None:
        assert self._pickle is not None
        data, self._pickle = self._pickle, None
        buffers, self._buffers = self._buffers, []
        self._on_bundle(pickle.loads(data, buffers=buffers))


# --- the handshake -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hello:
    """What a router says of itself: its session, and the last of the worker's bundles that it has; -1 for none."""

    session: str
    last: int
    is_new: bool
    memory: Memory = NO_MEMORY


@dataclass(frozen=True)
class Welcome:
    """The worker's answer: whether it knows the session, and the last of the router's bundles that it has.

    `reads` says that it can read the memory of the router.
    """

    known: bool
    last: int
    memory: Memory = NO_MEMORY
    reads: bool = False


_GREETING = struct.Struct(f"!{len(MAGIC)}sB{NONCE_BYTES}s")
# Of each, the first fields are not signed, as the proof is one of them; all that is said is, in the order it has here.
_MEMORY = f"ii{TOKEN_BYTES}s"
_SAID_BY_ROUTER = struct.Struct(f"!q?{_MEMORY}")
_SAID_BY_WORKER = struct.Struct(f"!?q{_MEMORY}?")
_HELLO = struct.Struct(f"!B{_DIGEST_BYTES}s{NONCE_BYTES}s{_SAID_BY_ROUTER.size}sB")
_WELCOME = struct.Struct(f"!{_DIGEST_BYTES}s{_SAID_BY_WORKER.size}s")
GREETING_BYTES = _GREETING.size
WELCOME_BYTES = _WELCOME.size


def new_secret() -> bytes:
    """A secret for one worker."""
    return os.urandom(SECRET_BYTES)


class WorkerHandshake:
    """The worker's side. Feed it what comes; it says when the router has proved itself."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._nonce = os.urandom(NONCE_BYTES)
        self._received = bytearray()
        self._router_nonce = b""

    def greeting(self) -> bytes:
        """What the worker sends first."""
        return _GREETING.pack(MAGIC, VERSION, self._nonce)

    def feed(self, data: bytes | memoryview) -> tuple[Hello, bytes] | None:
        """The router's hello, and what came behind it; None while it is not complete. Raises ProtocolError."""
        self._received += data
        if len(self._received) < _HELLO.size:
            return None
        version, proof, nonce, said, length = _HELLO.unpack_from(self._received)
        if version != VERSION:
            raise ProtocolError(f"version {version} of the protocol; this worker speaks {VERSION}")
        if length > MAX_SESSION_BYTES:
            raise ProtocolError(f"a session name of {length} bytes")
        if len(self._received) < _HELLO.size + length:
            return None
        name = bytes(self._received[_HELLO.size : _HELLO.size + length])
        if not hmac.compare_digest(proof, _proof(self._secret, b"router", self._nonce + nonce + said + name)):
            raise ProtocolError("the peer does not know the secret of this worker")
        self._router_nonce = nonce
        last, is_new, *memory = _SAID_BY_ROUTER.unpack(said)
        hello = Hello(name.decode("ascii", "replace"), last, is_new, Memory(*memory))
        return hello, bytes(self._received[_HELLO.size + length :])

    def welcome(self, answer: Welcome) -> bytes:
        """What the worker answers to a good hello."""
        said = _SAID_BY_WORKER.pack(answer.known, answer.last, *answer.memory, answer.reads)
        return _WELCOME.pack(_proof(self._secret, b"worker", self._nonce + self._router_nonce + said), said)


class RouterHandshake:
    """The router's side: `hello` answers the greeting, `welcomed` reads the answer to that."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._nonce = os.urandom(NONCE_BYTES)
        self._worker_nonce = b""

    def hello(self, greeting: bytes, mine: Hello) -> bytes:
        """What to answer. Raises ProtocolError where the peer is no worker, or speaks another version."""
        magic, version, self._worker_nonce = _GREETING.unpack(greeting)
        if magic != MAGIC or version != VERSION:
            raise ProtocolError(f"the peer greets with {greeting[: len(MAGIC) + 1]!r}: no worker of this version")
        name = mine.session.encode("ascii")
        said = _SAID_BY_ROUTER.pack(mine.last, mine.is_new, *mine.memory)
        proof = _proof(self._secret, b"router", self._worker_nonce + self._nonce + said + name)
        return _HELLO.pack(VERSION, proof, self._nonce, said, len(name)) + name

    def welcomed(self, data: bytes) -> Welcome:
        """What the worker says. Raises ProtocolError where it does not know its own secret."""
        proof, said = _WELCOME.unpack(data)
        if not hmac.compare_digest(proof, _proof(self._secret, b"worker", self._worker_nonce + self._nonce + said)):
            raise ProtocolError("the peer does not know the secret of the worker it claims to be")
        known, last, *memory, reads = _SAID_BY_WORKER.unpack(said)
        return Welcome(known, last, Memory(*memory), reads)


def _proof(secret: bytes, role: bytes, signed: bytes) -> bytes:
    return hmac.new(secret, role + signed, hashlib.sha256).digest()


def _spare_bytes() -> int:
    """Half of the memory that the machine has to spare: what one frame may ask for."""
    try:
        with open("/proc/meminfo", "rb") as meminfo:
            for line in meminfo:
                if line.startswith(b"MemAvailable:"):
                    return int(line.split()[1]) * 512
    except OSError:
        pass
    return 2**40
