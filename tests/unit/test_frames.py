"""The wire format of the direct lane: frames in any pieces, a handshake that lets in nobody who lacks the secret."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gworker import frames
from gworker.frames import (
    GREETING_BYTES,
    MAGIC,
    MAX_SESSION_BYTES,
    VERSION,
    FrameReader,
    Hello,
    ProtocolError,
    RouterHandshake,
    Welcome,
    WorkerHandshake,
    encode_frame,
    new_secret,
)
from gworker.wire import Payload, Returned, Submit, Up, pack, unpack

WHAT_GARBAGE_RAISES = (ValueError, EOFError, TypeError, KeyError, IndexError, AttributeError, ImportError)
MINE = Hello("12-abcd", 7, is_new=False)


def on_the_wire(*bundles: Any) -> bytes:
    return b"".join(bytes(part) for bundle in bundles for part in encode_frame(bundle))


def feed(reader: FrameReader, data: bytes, pieces: Iterator[int]) -> None:
    """Give the reader `data` in pieces of at most these sizes, as a socket does."""
    view = memoryview(data)
    while view.nbytes:
        room = reader.get_buffer()
        assert room.nbytes, "a socket cannot read into nothing"
        count = min(room.nbytes, view.nbytes, next(pieces))
        room[:count] = view[:count]
        reader.filled(count)
        view = view[count:]


def read(data: bytes, pieces: Sequence[int] = (2**40,)) -> list[Any]:
    found: list[Any] = []
    feed(FrameReader(found.append), data, itertools.cycle(pieces))
    return found


def payload(*sizes: int) -> Payload:
    return Payload(b"head", [bytearray(random.Random(size).randbytes(size)) for size in sizes])


def same(bundle: Any, other: Any) -> bool:
    """Whether two bundles carry the same, buffers included."""
    return plain(bundle) == plain(other)


def plain(value: Any) -> Any:
    if isinstance(value, Payload):
        return value.data, [bytes(buffer) for buffer in value.buffers]
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    return value


def submit(number: int, arguments: Payload) -> Submit:
    return Submit(number, f"call-{number}", "embed", arguments, None, "", 1, None, None, 0, 0)


# --- frames ------------------------------------------------------------------------------------------------------

_payloads = st.builds(
    Payload,
    st.binary(max_size=200),
    st.lists(st.binary(max_size=300) | st.sampled_from([b"", b"x" * 70_000]), max_size=6),
)
_bundles = st.builds(
    lambda payloads: Up("me", 1, 2, 3, False, tuple(submit(n, p) for n, p in enumerate(payloads))),
    st.lists(_payloads, max_size=4),
)


@given(bundles=st.lists(_bundles, max_size=4), pieces=st.lists(st.integers(1, 5000), min_size=1, max_size=8))
def test_any_bundles_come_through_in_whatever_pieces_they_arrive(bundles: list[Up], pieces: list[int]) -> None:
    data = on_the_wire(*bundles)
    smallest = len(data) // 2000  # or the test would take seconds
    assert same(read(data, [smallest + piece for piece in pieces]), bundles)


def test_a_bundle_that_arrives_byte_by_byte_is_handed_on_with_its_last_byte() -> None:
    found: list[Any] = []
    reader = FrameReader(found.append)
    data = on_the_wire(("a", payload(10, 0, 20)))
    feed(reader, data[:-1], itertools.repeat(1))
    assert found == []
    feed(reader, data[-1:], itertools.repeat(1))
    assert same(found, [("a", payload(10, 0, 20))])


def test_several_frames_in_one_read_are_handed_on_in_order() -> None:
    bundles = [(number, payload(number)) for number in range(100)]
    assert same(read(on_the_wire(*bundles)), bundles)


def test_buffers_arrive_writable_and_each_in_memory_of_its_own() -> None:
    (first, second) = read(on_the_wire(("a", payload(100_000, 5000)), ("b", payload(5000))))
    buffers = [*first[1].buffers, *second[1].buffers]
    before = [bytes(b) for b in buffers]
    for buffer in buffers:
        view = memoryview(buffer)
        assert not view.readonly
        assert view.nbytes == len(memoryview(view.obj)), "no part of something larger that it would keep alive"
    memoryview(buffers[0])[:] = bytes(100_000)
    assert [bytes(b) for b in buffers[1:]] == before[1:]


def test_an_array_is_not_copied_once_more_by_its_receiver() -> None:
    (found,) = read(on_the_wire(pack(np.arange(10_000))))
    array = unpack(found)
    (buffer,) = found.buffers
    array[3] = 77
    assert np.frombuffer(buffer, array.dtype)[3] == 77, "it stands where the socket put it"


@pytest.mark.parametrize("sizes", [(0,), (0, 0, 0), (0, 9, 0), (9, 0)])
@pytest.mark.parametrize("pieces", [(2**40,), (1,), (7,)])
def test_empty_buffers_arrive_empty(sizes: tuple[int, ...], pieces: tuple[int, ...]) -> None:
    bundles = [("a", payload(*sizes)), "next"]
    assert same(read(on_the_wire(*bundles), pieces), bundles)


def test_nothing_empty_is_written() -> None:
    assert all(len(part) for part in encode_frame(("a", payload(0, 5, 0))))


@pytest.mark.parametrize("count", [4000, 35_000])
def test_thousands_of_buffers_travel_beside_the_pickle(count: int) -> None:
    bundle = Payload(b"", [b"%d" % number for number in range(count)])
    data = on_the_wire(bundle, "next")
    for pieces in ((2**40,), (1000, 3, 70_000)):
        assert same(read(data, pieces), [bundle, "next"])


def test_more_buffers_than_a_frame_can_count_travel_inside_the_pickle() -> None:
    bundle = Payload(b"", [b"x"] * 70_000)
    parts = encode_frame(bundle)
    assert len(parts) <= 2
    assert same(read(b"".join(parts)), [bundle])


@pytest.mark.parametrize("size", [2**16, 2**18 - 1, 2**18, 2**18 + 1, 3_000_000])
def test_large_pickles_and_large_buffers_come_through(size: int) -> None:
    bundles = ["before", Payload(b"y" * size), Payload(b"", [b"z" * size, b"w" * size]), "after"]
    data = on_the_wire(*bundles)
    for pieces in ((2**40,), (200_000, 1, 2**17)):
        assert same(read(data, pieces), bundles)


def test_a_large_pickle_is_not_copied_to_be_sent() -> None:
    head, data = encode_frame(Payload(b"y" * 1_000_000))
    assert len(head) < 100 < len(data)


def test_a_pickle_larger_than_4_gib_can_be_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 5 * 2**30

    monkeypatch.setattr(pickle, "dumps", lambda *_, **__: Huge(b"x"))
    head, _ = encode_frame("a")
    found: list[Any] = []
    reader = FrameReader(found.append)
    monkeypatch.setattr(frames, "_spare_bytes", lambda: 2**30)
    with pytest.raises(ProtocolError, match=str(5 * 2**30)):
        feed(reader, head, itertools.repeat(100))


def test_a_large_buffer_is_read_straight_into_its_place() -> None:
    found: list[Any] = []
    reader = FrameReader(found.append)
    data = on_the_wire(Payload(b"", [b"z" * 1_000_000]))
    feed(reader, data[:-900_000], itertools.repeat(2**40))
    assert reader.get_buffer().nbytes == 900_000


def test_many_small_buffers_are_read_together() -> None:
    found: list[Any] = []
    reader = FrameReader(found.append)
    data = on_the_wire(Payload(b"", [b"z" * 5000] * 40))
    reads = 0
    view = memoryview(data)
    while view.nbytes:
        room = reader.get_buffer()
        count = min(room.nbytes, view.nbytes)
        room[:count] = view[:count]
        reader.filled(count)
        view, reads = view[count:], reads + 1
    assert reads <= 2 and len(found) == 1


@pytest.mark.parametrize("lengths", [[2**50], [2**33, 2**33], [2**62] * 4])
def test_a_frame_larger_than_the_memory_there_is_is_refused_before_any_is_taken(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "_spare_bytes", lambda: 2**33)
    head = frames._HEAD.pack(10, len(lengths), 0) + b"".join(frames._PART.pack(length, 0, -1) for length in lengths)
    with pytest.raises(ProtocolError, match="more than this process has memory for"):
        read(head)


@given(data=st.binary(max_size=400), pieces=st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_garbage_raises_or_waits_for_more_and_nothing_else(data: bytes, pieces: list[int]) -> None:
    with contextlib.suppress(ProtocolError, pickle.UnpicklingError, *WHAT_GARBAGE_RAISES):
        read(data, pieces)


def test_the_chunk_does_not_grow_with_what_has_passed_through() -> None:
    found: list[Any] = []
    reader = FrameReader(found.append)
    for number in range(300):
        feed(reader, on_the_wire(("a" * 3000, number)), itertools.repeat(2**40))
    assert len(found) == 300
    assert len(reader._chunk) == frames._CHUNK_BYTES


# --- the handshake -----------------------------------------------------------------------------------------------


class Handshake:
    """Both sides of one handshake, step by step."""

    def __init__(self, worker_secret: bytes, router_secret: bytes | None = None, mine: Hello = MINE) -> None:
        self.worker = WorkerHandshake(worker_secret)
        self.router = RouterHandshake(worker_secret if router_secret is None else router_secret)
        self.greeting = self.worker.greeting()
        self.hello = self.router.hello(self.greeting, mine)


@pytest.fixture
def secret() -> bytes:
    return new_secret()


@pytest.mark.parametrize(
    "mine", [MINE, Hello("", -1, is_new=True), Hello("x" * MAX_SESSION_BYTES, 2**40, is_new=False)]
)
@pytest.mark.parametrize("piece", [1, 10, 1000])
def test_both_sides_learn_of_each_other_once_both_have_proved_themselves(
    mine: Hello, piece: int, secret: bytes
) -> None:
    shake = Handshake(secret, mine=mine)
    data = shake.hello + b"frames behind it"
    found = None
    rest = b""
    for start in range(0, len(data), piece):
        if found is None:
            found = shake.worker.feed(data[start : start + piece])
        else:
            rest += data[start : start + piece]
    assert found is not None
    assert found[0] == mine
    assert found[1] + rest == b"frames behind it"
    for answer in (Welcome(True, 12), Welcome(False, -1)):
        assert shake.router.welcomed(shake.worker.welcome(answer)) == answer


def test_a_router_without_the_secret_is_turned_away(secret: bytes) -> None:
    shake = Handshake(secret, new_secret())
    with pytest.raises(ProtocolError, match="does not know the secret"):
        shake.worker.feed(shake.hello)


def test_a_worker_without_the_secret_is_found_out(secret: bytes) -> None:
    shake = Handshake(secret)
    impostor = WorkerHandshake(new_secret())
    impostor._nonce, impostor._router_nonce = shake.worker._nonce, shake.router._nonce
    with pytest.raises(ProtocolError, match="does not know the secret"):
        shake.router.welcomed(impostor.welcome(Welcome(True, 3)))


def test_a_proof_cannot_be_sent_back_as_ones_own(secret: bytes) -> None:
    shake = Handshake(secret)
    proof = shake.hello[1:33]
    answer = bytearray(shake.worker.welcome(Welcome(True, 3)))
    answer[:32] = proof
    with pytest.raises(ProtocolError, match="does not know the secret"):
        shake.router.welcomed(bytes(answer))


def test_a_hello_that_was_listened_to_is_worth_nothing_on_another_connection(secret: bytes) -> None:
    shake = Handshake(secret)
    with pytest.raises(ProtocolError, match="does not know the secret"):
        WorkerHandshake(secret).feed(shake.hello)


def test_a_welcome_that_was_listened_to_is_worth_nothing_to_another_router(secret: bytes) -> None:
    shake = Handshake(secret)
    shake.worker.feed(shake.hello)
    welcome = shake.worker.welcome(Welcome(True, 3))
    other = RouterHandshake(secret)
    other.hello(shake.greeting, MINE)
    with pytest.raises(ProtocolError, match="does not know the secret"):
        other.welcomed(welcome)


@given(data=st.data())
def test_nothing_in_a_hello_or_a_welcome_can_be_changed_on_the_way(data: st.DataObject) -> None:
    shake = Handshake(b"secret")
    hello = bytearray(shake.hello)
    position = data.draw(st.integers(0, len(hello) - 1))
    hello[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ProtocolError):
        assert shake.worker.feed(hello) is None, "at most it waits for a longer name"
    shake = Handshake(b"secret")
    shake.worker.feed(shake.hello)
    welcome = bytearray(shake.worker.welcome(Welcome(True, 3)))
    position = data.draw(st.integers(0, len(welcome) - 1))
    changed = welcome[position] ^ data.draw(st.integers(1, 255))
    welcome[position] = changed
    with contextlib.suppress(ProtocolError):
        assert shake.router.welcomed(bytes(welcome)) == Welcome(True, 3)
        assert position == 32, "a truth in another spelling"


def test_another_version_is_told_apart_by_both_sides(secret: bytes) -> None:
    shake = Handshake(secret)
    with pytest.raises(ProtocolError, match=f"version {VERSION + 1}"):
        shake.worker.feed(bytes([VERSION + 1]) + shake.hello[1:])
    greeting = MAGIC + bytes([VERSION + 1]) + bytes(16)
    with pytest.raises(ProtocolError, match="no worker of this version"):
        RouterHandshake(secret).hello(greeting, MINE)


def test_something_that_is_no_worker_is_told_apart(secret: bytes) -> None:
    with pytest.raises(ProtocolError, match="SSH-2"):
        RouterHandshake(secret).hello(b"SSH-2.0-OpenSSH_9.6 and more"[:GREETING_BYTES], MINE)


def test_a_session_name_that_is_too_long_is_refused_before_it_has_come(secret: bytes) -> None:
    shake = Handshake(secret)
    hello = bytearray(shake.hello[: frames._HELLO.size])
    hello[-1] = MAX_SESSION_BYTES + 1
    with pytest.raises(ProtocolError, match=f"a session name of {MAX_SESSION_BYTES + 1} bytes"):
        shake.worker.feed(hello)


def test_a_hello_that_breaks_off_is_waited_for(secret: bytes) -> None:
    shake = Handshake(secret)
    for end in range(len(shake.hello)):
        assert WorkerHandshake(secret).feed(shake.hello[:end]) is None


def test_secrets_and_nonces_are_new_each_time() -> None:
    assert len({new_secret() for _ in range(10)}) == 10
    assert len({WorkerHandshake(b"s").greeting() for _ in range(10)}) == 10
    assert len({Handshake(b"s").router._nonce for _ in range(10)}) == 10


def test_a_large_result_is_one_frame_that_unpacks_to_what_was_sent() -> None:
    (found,) = read(on_the_wire([Returned(1, payload(10_000))]))
    assert same(found, [Returned(1, payload(10_000))])
