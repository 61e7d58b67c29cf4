"""The wire format of the direct lane: frames on a byte stream, and the handshake before the first of them.

A frame is one bundle: its pickle, and the large buffers of its payloads beside it, each read straight into memory of
its own. Nothing is unpickled, and no more than a few bytes are kept, before the peer has proved that it knows the
worker's secret:

    worker -> router   MAGIC, version, nonce of the worker
    router -> worker   version, HMAC(secret, "router" + both nonces), nonce of the router, last bundle it has, session
    worker -> router   HMAC(secret, "worker" + both nonces), whether it knows the session, last bundle it has

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
from typing import Any

MAGIC = b"gworker"
VERSION = 2
NONCE_BYTES = 16
SECRET_BYTES = 32
_DIGEST_BYTES = 32
MAX_SESSION_BYTES = 128

# A frame says how long its pickle is, how many buffers follow, and how long each of them is.
_HEAD = struct.Struct("!QH")
_LENGTH = struct.Struct("!Q")
_MAX_BUFFERS = 2**16 - 1
# What is read at a time where no buffer of its own waits to be filled.
_CHUNK_BYTES = 256 * 1024
# From this size on a write, or a read, of its own is cheaper than a copy.
_LARGE_BYTES = 64 * 1024


class ProtocolError(ConnectionError):
    """The peer does not keep to the protocol, or does not know the secret."""


# --- frames ------------------------------------------------------------------------------------------------------


def encode_frame(bundle: Any) -> list[Any]:
    """A bundle as byte strings and memory views, to be written one after another."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(bundle, protocol=5, buffer_callback=buffers.append)
    if len(buffers) > _MAX_BUFFERS:  # they travel inside the pickle instead
        data, buffers = pickle.dumps(bundle, protocol=5), []
    if not buffers and len(data) < _LARGE_BYTES:  # nearly always
        return [_HEAD.pack(len(data), 0) + data]
    views = [buffer.raw() for buffer in buffers]
    head = _HEAD.pack(len(data), len(views)) + b"".join(_LENGTH.pack(view.nbytes) for view in views)
    first = [head + data] if len(data) < _LARGE_BYTES else [head, data]
    return [*first, *(view for view in views if view.nbytes)]


class FrameReader:
    """Turns a byte stream into bundles, whatever pieces it comes in.

    `get_buffer` says where the next bytes are to be put, `filled` that so many have been: the interface of
    `asyncio.BufferedProtocol`. Raises ProtocolError for a frame that is too large.
    """

    def __init__(self, on_bundle: Callable[[Any], None]) -> None:
        self._on_bundle = on_bundle
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
        pickle_bytes, count = _HEAD.unpack_from(self._view, self._start)
        if not count and available >= _HEAD.size + pickle_bytes:  # nearly always: small, and here
            start = self._start + _HEAD.size
            self._start = start + pickle_bytes
            self._on_bundle(pickle.loads(self._view[start : self._start]))
            return True
        head_bytes = _HEAD.size + count * _LENGTH.size
        if available < head_bytes:
            return self._grow(head_bytes)
        lengths = [
            _LENGTH.unpack_from(self._view, self._start + _HEAD.size + n * _LENGTH.size)[0] for n in range(count)
        ]
        self._start += head_bytes
        if (wanted := pickle_bytes + sum(lengths)) > _CHUNK_BYTES and wanted > _spare_bytes():
            raise ProtocolError(f"a frame of {wanted} bytes is more than this process has memory for")
        self._pickle = bytearray(pickle_bytes)
        self._buffers = [memoryview(bytearray(length)) for length in lengths]
        self._targets.extend(part for part in (memoryview(self._pickle), *self._buffers) if part.nbytes)
        self._take_from_chunk()
        if self._targets:
            return False
        self._finish()
        return True

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


@dataclass(frozen=True)
class Welcome:
    """The worker's answer: whether it knows the session, and the last of the router's bundles that it has."""

    known: bool
    last: int


_GREETING = struct.Struct(f"!{len(MAGIC)}sB{NONCE_BYTES}s")
_HELLO = struct.Struct(f"!B{_DIGEST_BYTES}s{NONCE_BYTES}sq?B")
_WELCOME = struct.Struct(f"!{_DIGEST_BYTES}s?q")
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
        version, proof, nonce, last, is_new, length = _HELLO.unpack_from(self._received)
        if version != VERSION:
            raise ProtocolError(f"version {version} of the protocol; this worker speaks {VERSION}")
        if length > MAX_SESSION_BYTES:
            raise ProtocolError(f"a session name of {length} bytes")
        if len(self._received) < _HELLO.size + length:
            return None
        name = bytes(self._received[_HELLO.size : _HELLO.size + length])
        signed = self._nonce + nonce + struct.pack("!q?", last, is_new) + name
        if not hmac.compare_digest(proof, _proof(self._secret, b"router", signed)):
            raise ProtocolError("the peer does not know the secret of this worker")
        self._router_nonce = nonce
        return Hello(name.decode("ascii", "replace"), last, is_new), bytes(self._received[_HELLO.size + length :])

    def welcome(self, answer: Welcome) -> bytes:
        """What the worker answers to a good hello."""
        signed = self._nonce + self._router_nonce + struct.pack("!?q", answer.known, answer.last)
        return _WELCOME.pack(_proof(self._secret, b"worker", signed), answer.known, answer.last)


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
        signed = self._worker_nonce + self._nonce + struct.pack("!q?", mine.last, mine.is_new) + name
        proof = _proof(self._secret, b"router", signed)
        return _HELLO.pack(VERSION, proof, self._nonce, mine.last, mine.is_new, len(name)) + name

    def welcomed(self, data: bytes) -> Welcome:
        """What the worker says. Raises ProtocolError where it does not know its own secret."""
        proof, known, last = _WELCOME.unpack(data)
        signed = self._worker_nonce + self._nonce + struct.pack("!?q", known, last)
        if not hmac.compare_digest(proof, _proof(self._secret, b"worker", signed)):
            raise ProtocolError("the peer does not know the secret of the worker it claims to be")
        return Welcome(known, last)


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
