"""Loans: what is lent arrives without a copy, is the receiver's own, and comes back when the receiver is done."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import mmap
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gworker import blocks, loans
from gworker.blocks import NO_MEMORY, Memory, Pool
from gworker.frames import _HEAD, _NUMBER, _PART, FrameReader, ProtocolError, encode_frame, encode_return
from gworker.loans import Loans, PeerGoneError, can_read, own_memory
from gworker.wire import Payload, pack, unpack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux's")

WHAT_GARBAGE_RAISES = (ValueError, EOFError, TypeError, KeyError, IndexError, AttributeError, ImportError)
LARGE = 70_000  # of eight bytes each: more than the least that is lent


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.setattr(blocks, "_TIDY_S", 3600.0)
    monkeypatch.setattr(blocks, "pool", made := Pool())
    yield made
    made.leave_to_parent()


class Ends:
    """Both ends of a connection in one process: one lends, the other borrows."""

    def __init__(self, peer: Memory | None = None) -> None:
        self.returns = 0
        self.lender = Loans(None, lambda: None)
        self.borrower = Loans(peer or own_memory(), self.give_back)
        self.found: list[Any] = []
        self.reader = FrameReader(self.found.append, self.borrower)
        self.back = FrameReader(self.found.append, self.lender)
        feed(self.back, encode_return(self.borrower))  # the one that says it can read

    def carried(self, bundle: Any) -> int:
        """Take a bundle over; how many bytes that took."""
        data = b"".join(encode_frame(bundle, self.lender))
        feed(self.reader, data)
        return len(data)

    def sent(self, value: Any) -> Any:
        self.carried(pack(value, once=True))
        return unpack(self.found.pop())

    def give_back(self) -> None:
        self.returns += 1
        feed(self.back, encode_return(self.borrower))

    def end(self) -> None:
        self.lender.end()
        self.borrower.end()
        self.found.clear()


def feed(reader: FrameReader, data: bytes) -> None:
    view = memoryview(data)
    while view.nbytes:
        room = reader.get_buffer()
        count = min(room.nbytes, view.nbytes)
        room[:count] = view[:count]
        reader.filled(count)
        view = view[count:]


@pytest.fixture
async def ends() -> Any:
    made = Ends()
    yield made
    made.end()
    await asyncio.sleep(0)


def private_mappings() -> int:
    with open("/proc/self/maps") as maps:
        return sum("gworker-block" in line and line.split()[1].endswith("p") for line in maps)


async def test_what_is_lent_does_not_travel_and_arrives_writable(ends: Ends) -> None:
    sent = np.arange(LARGE)
    assert ends.carried(pack(sent, once=True)) < 1000
    array = unpack(ends.found.pop())
    assert np.array_equal(array, sent)
    array[:] = 3
    assert private_mappings() == 1


async def test_each_receiver_has_a_copy_of_its_own(ends: Ends) -> None:
    sent = np.arange(LARGE)
    packed = pack(sent, once=True)
    others = Ends()
    for each in (ends, others, ends):
        each.carried(packed)
    sent[:] = -1
    first, second = (unpack(found) for found in ends.found)
    third = unpack(others.found.pop())
    first[:] = 1
    third[:100] = 2
    assert np.array_equal(second, np.arange(LARGE))
    assert np.array_equal(third[100:], np.arange(100, LARGE))
    assert np.array_equal(unpack(packed), np.arange(LARGE))
    others.end()


async def test_what_is_held_does_not_change_while_many_more_come(ends: Ends, pool: Pool) -> None:
    held: list[Any] = []
    for number in range(60):
        array = ends.sent(np.full(LARGE, number))
        if number % 3 == 0:
            held.append(array)
        del array
        ends.give_back()
    assert [int(array.min()) for array in held] == [int(array.max()) for array in held] == list(range(0, 60, 3))
    assert pool.out == len(held)
    assert len(pool._blocks) <= len(held) + 2
    held.clear()
    ends.give_back()
    assert pool.out == 0
    assert private_mappings() == 0


async def test_a_block_comes_back_by_itself_when_nothing_else_is_said(ends: Ends, pool: Pool) -> None:
    arrays = [ends.sent(np.zeros(LARGE)) for _ in range(20)]
    assert pool.out == 20
    del arrays
    assert ends.returns == 0
    await asyncio.sleep(0.2)
    assert ends.returns == 1, "once for all of them"
    assert pool.out == 0


async def test_a_block_comes_back_with_the_next_frame(ends: Ends, pool: Pool) -> None:
    array = ends.sent(np.zeros(LARGE))
    del array
    feed(ends.back, b"".join(encode_frame(("news",), ends.borrower)))
    assert ends.found == [("news",)]
    assert pool.out == 0


async def test_arrays_that_die_in_other_threads_and_in_garbage_come_back(ends: Ends, pool: Pool) -> None:
    cycle: list[Any] = [ends.sent(np.zeros(LARGE))]
    cycle.append(cycle)
    box = [ends.sent(np.zeros(LARGE))]
    await asyncio.to_thread(box.clear)
    del cycle
    gc.collect()
    await asyncio.sleep(0.2)
    assert pool.out == 0


async def test_what_reads_an_array_of_its_own_garbage_can(ends: Ends) -> None:
    seen: list[int] = []

    class Last:
        def __init__(self, buffer: Any) -> None:
            self.buffer = buffer
            self.me = self

        def __del__(self) -> None:
            seen.append(self.buffer[1000])

    ends.carried(pack(np.full(600_000, 9, np.uint8), once=True))
    last = Last(ends.found.pop().buffers[0])
    del last
    gc.collect()
    assert seen == [9]


async def test_several_buffers_of_a_value_share_a_mapping_and_all_of_them_have_to_go(ends: Ends, pool: Pool) -> None:
    value = {"a": np.arange(LARGE), "b": np.ones(700), "c": np.zeros(0), "d": np.arange(9), "e": np.full(LARGE, 4.0)}
    back = ends.sent(value)
    assert private_mappings() == 1
    for name, array in value.items():
        assert np.array_equal(back[name], array)
        back[name] += 1
    one = back.pop("b")
    del back
    ends.give_back()
    assert pool.out == 1
    assert np.array_equal(one, np.full(700, 2.0))
    del one
    ends.give_back()
    assert pool.out == 0


async def test_values_beside_each_other_in_a_bundle_are_told_apart(ends: Ends, pool: Pool) -> None:
    same = pack(np.arange(LARGE), once=True)
    small = Payload(b"", [bytearray(b"x" * 5000), b""])
    packed = [same, small, pack([np.ones(LARGE), np.ones(LARGE)], once=True), pack(np.zeros(LARGE), once=True)]
    ends.carried((*packed, same))
    (found,) = ends.found
    ends.found.clear()
    assert [unpack(found[n]).tolist() for n in (0, 3)] == [list(range(LARGE)), [0.0] * LARGE]
    assert [bytes(b) for b in found[1].buffers] == [b"x" * 5000, b""]
    assert found[4] is found[0]
    del found, packed, same
    ends.give_back()
    assert pool.out == 0


async def test_thousands_of_mappings_cost_no_file_descriptors(ends: Ends) -> None:
    before = len(os.listdir("/proc/self/fd"))
    packed = pack(np.arange(LARGE), once=True)
    arrays = []
    for _ in range(2000):
        ends.carried(packed)
        arrays.append(unpack(ends.found.pop()))
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert all(array[7] == 7 for array in arrays)


async def test_where_memory_cannot_be_mapped_it_is_read(
    ends: Ends, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(np.arange(LARGE), once=True)
    original = blocks.map_file

    def refuse(fd: int, nbytes: int, flags: int) -> int:
        if flags & mmap.MAP_PRIVATE:
            raise OSError("too many mappings")
        return original(fd, nbytes, flags)

    monkeypatch.setattr(blocks, "map_file", refuse)
    ends.carried(packed)
    array = unpack(ends.found.pop())
    array[0] = 5
    del packed
    ends.give_back()
    assert pool.out == 0
    assert np.array_equal(array[1:], np.arange(1, LARGE))


async def test_what_was_lent_over_a_lost_connection_is_never_written_again(ends: Ends, pool: Pool) -> None:
    packed = pack(np.arange(LARGE), once=True)
    ends.carried(packed)
    array = unpack(ends.found.pop())
    ends.end()
    again = Ends()
    again.carried(packed)  # as after a reconnect
    second = unpack(again.found.pop())
    del packed
    again.sent(np.zeros(LARGE))
    del second
    again.give_back()
    for _ in range(5):
        again.sent(np.zeros(LARGE))
        again.give_back()
    assert np.array_equal(array, np.arange(LARGE))
    assert pool.out == 0
    again.end()


async def test_what_a_forked_child_may_still_read_is_never_written_again(ends: Ends, pool: Pool) -> None:
    array = ends.sent(np.full(LARGE, 5))
    go, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.read(go[0], 1)
        os.write(done[1], b"1" if (array == 5).all() else b"0")
        os._exit(0)
    del array
    ends.give_back()
    assert pool.out == 0
    assert pool.idle_bytes == 0
    for _ in range(3):
        ends.sent(np.full(LARGE, 6))
        ends.give_back()
    os.write(go[1], b"1")
    assert os.read(done[0], 1) == b"1"
    os.waitpid(child, 0)  # noqa: ASYNC222  # it has ended
    for fd in (*go, *done):
        os.close(fd)


# --- whom to believe ---------------------------------------------------------------------------------------------


async def test_only_who_can_read_is_lent_to(pool: Pool) -> None:
    lender = Loans(own_memory(), lambda: None)
    assert not pool.has_readers
    packed = pack(np.arange(LARGE), once=True)
    assert not any(blocks.origin(memoryview(b)) for b in packed.buffers)  # type: ignore[union-attr]
    lender.begin_to_lend()
    lender.begin_to_lend()
    assert pool.has_readers
    lender.end()
    lender.end()
    assert not pool.has_readers
    lent = blocks.pool.copy([memoryview(bytes(5000))])
    assert lent is not None
    assert len(b"".join(encode_frame(Payload(b"", lent), Loans(None, lambda: None)))) > 5000, "it travels in the frame"


def test_memory_is_readable_where_the_token_is_what_the_peer_says(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = own_memory()
    assert can_read(mine)
    assert not can_read(mine._replace(token=bytes(16)))
    assert not can_read(mine._replace(fd=9999))
    assert not can_read(mine._replace(pid=2**30))
    assert not can_read(NO_MEMORY)
    pipe = os.pipe()
    assert not can_read(mine._replace(fd=pipe[0])), "and it does not wait for it"
    for fd in pipe:
        os.close(fd)
    monkeypatch.setenv("GWORKER_SHARED_MEMORY", "off")
    assert own_memory() == NO_MEMORY
    assert not can_read(mine)


def unsealed() -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 100_000)
    return fd


@pytest.mark.parametrize("kind", ["closed", "pipe", "file", "directory", "device", "unsealed", "short", "negative"])
async def test_what_is_no_block_is_refused(ends: Ends, tmp_path: Any, kind: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))
    pipe = os.pipe()
    fd = {
        "closed": lambda: 9999,
        "pipe": lambda: pipe[0],
        "file": lambda: os.open(path, os.O_RDWR),
        "directory": lambda: os.open(tmp_path, os.O_RDONLY),
        "device": lambda: os.open("/dev/zero", os.O_RDWR),
        "unsealed": unsealed,
        "short": lambda: blocks.new_file("test", 4096),
        "negative": lambda: -2,
    }[kind]()
    frame = _HEAD.pack(2, 1, 0) + _PART.pack(5000, 0, fd) + b"N."
    if kind == "negative":
        feed(ends.reader, frame)
        assert ends.found == [], "it waits for the bytes"
    else:
        with pytest.raises(ProtocolError):
            feed(ends.reader, frame)
    for each in {*pipe, fd} - {9999, -2}:
        os.close(each)


@pytest.mark.parametrize(
    ("nbytes", "start"), [(2**64 - 1, 2**64 - 1), (2**63, 0), (1, 2**63), (8193, 0), (1, 8192), (0, 0)]
)
async def test_what_is_beyond_a_block_is_refused(ends: Ends, pool: Pool, nbytes: int, start: int) -> None:
    held = pool.copy([memoryview(bytes(8000))])
    assert held is not None
    lease, _ = blocks.origin(held[0]) or (None, 0)
    assert lease is not None and lease.block.size == 8192
    with pytest.raises(ProtocolError):
        feed(ends.reader, _HEAD.pack(2, 1, 0) + _PART.pack(nbytes, start, lease.block.fd) + b"N.")


@pytest.mark.parametrize("number", [0, 5, 9999, -1, -6, 2**31 - 1, -(2**31)])
async def test_what_was_not_lent_cannot_be_given_back(ends: Ends, number: int) -> None:
    with pytest.raises(ProtocolError, match="gives back"):
        feed(ends.back, _HEAD.pack(0, 0, 1) + _NUMBER.pack(number))


async def test_nothing_can_be_given_back_twice(ends: Ends, pool: Pool) -> None:
    array = ends.sent(np.zeros(LARGE))
    (fd,) = ends.lender._lent
    del array
    ends.give_back()
    with pytest.raises(ProtocolError, match="gives back"):
        feed(ends.back, _HEAD.pack(0, 0, 1) + _NUMBER.pack(fd))


@pytest.mark.parametrize("frame", [_HEAD.pack(0, 0, 0), _HEAD.pack(0, 0, 1) + _NUMBER.pack(3)])
def test_a_connection_that_shares_no_memory_takes_no_frame_about_any(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        feed(FrameReader(print), frame)
    with pytest.raises(ProtocolError):
        feed(FrameReader(print), _HEAD.pack(2, 1, 0) + _PART.pack(5000, 0, 3) + b"N.")


async def test_a_peer_whose_memory_was_not_asked_for_cannot_lend() -> None:
    receiver = Loans(None, lambda: None)
    with pytest.raises(ProtocolError):
        feed(FrameReader(print, receiver), _HEAD.pack(2, 1, 0) + _PART.pack(5000, 0, 3) + b"N.")


@settings(max_examples=200)
@given(
    parts=st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 20_000), st.integers(-3, 40)), max_size=5),
    returned=st.lists(st.integers(-50, 50), max_size=3),
    rest=st.binary(max_size=50),
)
def test_garbage_about_memory_raises_or_waits_and_nothing_else(parts: Any, returned: list[int], rest: bytes) -> None:
    async def read() -> None:
        both = Loans(own_memory(), lambda: None)
        head = _HEAD.pack(2, len(parts), len(returned)) + b"".join(_PART.pack(*part) for part in parts)
        data = head + b"".join(map(_NUMBER.pack, returned)) + b"N." + rest
        with contextlib.suppress(ProtocolError, pickle.UnpicklingError, *WHAT_GARBAGE_RAISES):
            feed(FrameReader(lambda _: None, both), data)
        both.end()

    asyncio.run(read())


DOOMED = """
import numpy as np
from gworker import blocks
held = blocks.pool.copy([memoryview(bytes([7]) * 50_000)])
print(*blocks.pool.memory()[:2], blocks.pool.memory().token.hex(), blocks.origin(held[0])[0].block.fd, flush=True)
input()
"""


@pytest.mark.parametrize("reaped", [True, False])
async def test_the_memory_of_a_dead_peer_stays_mapped_and_no_more_of_it_can_be(reaped: bool) -> None:
    with subprocess.Popen(  # noqa: ASYNC220  # nothing else runs on this loop
        [sys.executable, "-c", DOOMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as peer:
        assert peer.stdout is not None
        pid, token_fd, token, fd = peer.stdout.readline().split()
        memory = Memory(int(pid), int(token_fd), bytes.fromhex(token))
        assert can_read(memory)
        ends = Ends(memory)
        frame = _HEAD.pack(2, 1, 0) + _PART.pack(50_000, 0, int(fd))
        (view,) = ends.borrower.borrow([loans.Part(50_000, 0, int(fd))])
        assert view is not None and view[10] == 7
        peer.send_signal(signal.SIGKILL)
        if reaped:
            peer.wait()
        else:
            os.waitid(os.P_PID, peer.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
        assert bytes(view) == bytes([7]) * 50_000
        view[0] = 1
        with pytest.raises(PeerGoneError):
            feed(ends.reader, frame + b"N.")
        ends.end()
