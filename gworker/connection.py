"""One end of a direct connection: the handshake first, then frames, with backpressure. An asyncio protocol."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any, cast

from gworker.blocks import NO_MEMORY, Memory
from gworker.frames import FrameReader, encode_frame, encode_return
from gworker.loans import Loans, PeerGoneError, can_read, own_memory
from gworker.mailbox import Turn, turn_of
from gworker.wire import Down, Up, to_plain

# A handshake is smaller than this; what an unknown peer sends beyond it is not read.
_HANDSHAKE_BYTES = 1024
# A connection whose peer does not take what was written does not take in more than this.
HIGH_WATER_BYTES = 4 * 2**20
# A peer on another node that vanished without a word is noticed after about this long.
_SILENCE_MS = 10_000


class Connection(asyncio.BufferedProtocol):
    """Subclasses carry out the handshake in `on_handshake`, then call `open_frames`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.writable = True
        self._reader: FrameReader | None = None
        self._handshake = bytearray(_HANDSHAKE_BYTES)
        self._descriptor = -1
        self._turn: Turn | None = None
        self._memory = NO_MEMORY
        self._loans: Loans | None = None

    # --- for subclasses -------------------------------------------------------------------------------------------

    def on_connected(self) -> None:
        """The connection is there."""

    def on_handshake(self, data: bytes) -> None:
        """Bytes that belong to the handshake. May raise ProtocolError."""

    def on_frame(self, content: Any) -> None:
        """A frame has come, with a bundle in plain tuples; what this raises ends the connection."""

    def on_writable(self) -> None:
        """The peer takes more again."""

    def on_failed(self, error: Exception) -> None:
        """What came could not be read, or handling it failed; the connection will be aborted."""

    def on_lost(self, error: BaseException | None) -> None:
        """The connection has ended."""

    # --- memory that both can read ----------------------------------------------------------------------------------

    @property
    def memory(self) -> Memory:
        """The memory of this process, to tell the peer; NO_MEMORY where the peer may be on another node."""
        return self._memory

    def try_to_read(self, peer: Memory) -> bool:
        """Whether this process can read the peer's memory. To be asked once, when the peer has proved itself."""
        if self._memory == NO_MEMORY:
            return False
        reads = can_read(peer)
        self._loans = Loans(peer if reads else None, self._give_back)
        return reads

    def begin_to_lend(self) -> None:
        """The peer can read the memory of this process."""
        if self._loans is not None:
            self._loans.begin_to_lend()

    def say_it_reads(self) -> None:
        """Tell the peer that this process can read its memory."""
        self._give_back()

    def _give_back(self) -> None:
        if self._loans is not None:
            self.write_raw(encode_return(self._loans))

    # --- frames ---------------------------------------------------------------------------------------------------

    def open_frames(self, rest: bytes = b"") -> None:
        """The handshake is over; `rest` came behind it."""
        self._reader = FrameReader(self._on_frame, self._loans)
        while rest:
            room = self._reader.get_buffer()
            count = min(room.nbytes, len(rest))
            room[:count] = rest[:count]
            self._reader.filled(count)
            rest = rest[count:]

    def _on_frame(self, content: Any) -> None:
        assert self._turn is not None
        with self._turn:
            self.on_frame(content)

    def write(self, bundle: Up | Down) -> None:
        """Send a bundle as one frame."""
        if self.transport is None or self.transport.is_closing():
            return
        parts = encode_frame(to_plain(bundle), self._loans)
        if len(parts) == 1:
            self.transport.write(parts[0])
        else:
            self.transport.writelines(parts)

    def write_raw(self, data: bytes) -> None:
        """Send a piece of the handshake."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def abort(self) -> None:
        """End the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    # --- asyncio.BufferedProtocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's are none by name
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._turn = turn_of(asyncio.get_running_loop())
        connected = transport.get_extra_info("socket")
        tune(connected)
        if connected is not None and connected.family == socket.AF_UNIX:
            self._memory = own_memory()
        self._descriptor = keep_from_children(connected)
        self.on_connected()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        _kept.discard(self._descriptor)
        if self._loans is not None:
            self._loans.end()
        self.on_lost(exc)

    def get_buffer(self, sizehint: int) -> bytearray | memoryview:
        return self._handshake if self._reader is None else self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            if self._reader is None:
                self.on_handshake(bytes(self._handshake[:nbytes]))
            else:
                self._reader.filled(nbytes)
        except PeerGoneError:  # it ends as if the socket had said so first
            self.abort()
        except Exception as error:  # garbage, or a fault of ours: this connection ends, no other
            self.on_failed(error)
            self.abort()

    def eof_received(self) -> None:
        return None

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self.on_writable()


# Sockets that a forked child must not hold open: their peers would not learn of this process's end.
_kept: set[int] = set()


def keep_from_children(opened: Any) -> int:
    """See that no forked child holds this socket; returns its descriptor. One that runs another program never does."""
    descriptor: int = opened.fileno()
    _kept.add(descriptor)
    return descriptor


def give_to_children(opened: Any) -> None:
    """The socket is about to be closed: its number may soon be another's."""
    _kept.discard(opened.fileno())


def _let_go() -> None:
    # Not closed: what the child inherited of the loop may close the number once more, when it is another's.
    if _kept:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in _kept:
            os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)
        _kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def tune(connected: Any) -> None:
    """No waiting for more to send, and no waiting for ever for a machine that is gone."""
    if connected is None or connected.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", _SILENCE_MS)
    ):  # fmt: skip
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
