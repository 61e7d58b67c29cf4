"""Blocks: used again when nobody has them, never before, and given back to the system when nobody needs them."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gworker import blocks, clock
from gworker.blocks import Pool, origin
from gworker.wire import Payload, pack, pack_arguments, unpack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux's")

MB = 2**20


class Time:
    """The time of a test."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now(self) -> float:
        return self.now_s


@pytest.fixture
def time_of_test(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(clock, "now", time.now)
    return time


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """A pool of the test's own, in a process that has somebody to lend to."""
    monkeypatch.setattr(blocks, "_TIDY_S", 3600.0)
    made = Pool()
    made.count_reader(1)
    monkeypatch.setattr(blocks, "pool", made)
    yield made
    made.leave_to_parent()


def views(*sizes: int, fill: int = 7) -> list[memoryview]:
    return [memoryview(bytes([fill + n]) * size) for n, size in enumerate(sizes)]


def copied(pool: Pool, *sizes: int, fill: int = 7) -> list[memoryview]:
    found = pool.copy(views(*sizes, fill=fill))
    assert found is not None
    return found


def fd_of(view: memoryview) -> int:
    found = origin(view)
    assert found is not None
    return found[0].block.fd


def test_the_buffers_of_a_value_stand_in_one_block_each_at_a_round_address(pool: Pool) -> None:
    copies = copied(pool, 100, 5000, 1, 64, 200_000)
    assert [bytes(c) for c in copies] == [bytes(v) for v in views(100, 5000, 1, 64, 200_000)]
    assert len({fd_of(c) for c in copies}) == 1
    assert all(np.frombuffer(c, "u1").ctypes.data % 64 == 0 for c in copies)
    assert pool.out == 1


def test_a_block_is_used_again_when_the_last_view_of_it_is_gone(pool: Pool) -> None:
    first, second = copied(pool, 1000, 1000)
    fd = fd_of(first)
    del first
    other = copied(pool, 2000)
    assert fd_of(other[0]) != fd
    del second
    again = copied(pool, 2000)
    assert fd_of(again[0]) == fd
    assert pool.out == 2


def test_a_spoiled_block_is_closed_and_never_used_again(pool: Pool) -> None:
    (view,) = copied(pool, 5000)
    lease, _ = origin(view) or (None, 0)
    assert lease is not None
    lease.block.spoiled = True
    fd = fd_of(view)
    del view, lease
    assert pool.out == 0
    assert pool.idle_bytes == 0
    with pytest.raises(OSError):
        os.fstat(fd)


def test_what_is_idle_is_bounded_and_the_oldest_goes(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, time_of_test: Time
) -> None:
    monkeypatch.setattr(blocks, "MOST_IDLE_BYTES", 5 * MB)
    many = [copied(pool, 2 * MB - 100) for _ in range(4)]
    fds = [fd_of(each[0]) for each in many]
    while many:
        time_of_test.now_s += 1
        del many[0]
        assert pool.out == len(many)
    assert pool.idle_bytes <= 5 * MB
    assert fd_of(copied(pool, 2 * MB)[0]) == fds[-1]
    for fd in fds[:2]:
        with pytest.raises(OSError):
            os.fstat(fd)


def test_what_was_not_used_for_long_goes(pool: Pool, time_of_test: Time) -> None:
    copied(pool, MB)
    assert pool.out == 0
    time_of_test.now_s += blocks.IDLE_S - 1
    copied(pool, 4 * MB)
    assert pool.out == 0
    assert pool.idle_bytes == 5 * MB
    time_of_test.now_s += 2
    assert pool.out == 0
    assert pool.idle_bytes == 4 * MB


def test_idle_blocks_go_even_if_nobody_asks_for_any(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setattr(blocks, "_TIDY_S", 0.01)
    monkeypatch.setattr(blocks, "IDLE_S", 0.05)
    copied(pool, MB)
    eventually(lambda: not pool._blocks and not pool._tidying, timeout_s=5.0)
    copied(pool, MB)
    assert pool._tidying


def test_no_more_blocks_are_out_than_may_be(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "most_out", lambda: 3)
    held = [copied(pool, 5000) for _ in range(3)]
    assert pool.copy(views(5000)) is None
    held.pop()
    assert pool.copy(views(5000)) is not None


def test_few_of_the_file_descriptors_of_a_process_are_for_blocks() -> None:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 0 < blocks.most_out() <= min(256, soft // 8)


def test_a_system_without_memory_to_share_has_no_blocks(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError("not here")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert pool.copy(views(5000)) is None


@pytest.mark.parametrize("size", [3 * blocks._HALF_BYTES + 1])
def test_very_large_buffers_are_copied_whole(pool: Pool, size: int) -> None:
    sent = np.random.default_rng(1).integers(0, 256, size, np.uint8)
    (copy,) = pool.copy([memoryview(sent)]) or ()
    assert np.array_equal(np.frombuffer(copy, "u1"), sent)


def test_without_numpy_it_is_the_same(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "numpy_if_imported", lambda: None)
    assert [bytes(c) for c in copied(pool, 100, 5000)] == [bytes(v) for v in views(100, 5000)]


def test_threads_do_not_get_the_same_block(pool: Pool, switching: None) -> None:
    wrong: list[str] = []

    def work(number: int) -> None:
        for _ in range(150):
            (view,) = copied(pool, 4096, fill=number)
            if bytes(view) != bytes([number]) * 4096:
                wrong.append("another thread has written to it")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.out == 0
    assert len(pool._blocks) <= 9, "two for each thread, as one is taken before the other is let go"


def test_a_lease_that_ends_during_a_garbage_collection_takes_no_lock(pool: Pool) -> None:
    cycle: list[Any] = [copied(pool, 5000)]
    cycle.append(cycle)
    del cycle
    with pool._lock:
        gc.collect()
    assert pool.out == 0


def test_a_forked_child_neither_has_the_blocks_nor_disturbs_those_of_its_parent(pool: Pool) -> None:
    (view,) = copied(pool, 5000)
    fd = fd_of(view)
    child = os.fork()
    if child == 0:
        wrong = 0
        try:
            os.fstat(fd)
            wrong = 1
        except OSError:
            blocks.pool.count_reader(1)
            (other,) = copied(blocks.pool, 5000, fill=99)
            wrong = 0 if bytes(other) == bytes([99]) * 5000 else 2
        finally:
            os._exit(wrong)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bytes(view) == bytes([7]) * 5000
    assert fd_of(view) == fd and os.fstat(fd).st_size


# --- packing -----------------------------------------------------------------------------------------------------


def lends(packed: Any) -> bool:
    return isinstance(packed, Payload) and all(origin(buffer) is not None for buffer in map(memoryview, packed.buffers))


def test_large_buffers_of_arguments_and_results_are_lent_and_others_are_not(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = np.zeros(blocks.LEAST_BYTES, np.uint8)
    assert lends(pack(large, once=True))
    assert lends(pack_arguments((1, large), {}))
    assert lends(pack_arguments((), {"x": [large[:5000], large[5000:]]})), "what counts is their sum"
    assert not lends(pack(large)), "it may be kept"
    assert not lends(pack(large[:-1], once=True))
    pool.count_reader(-1)
    assert not lends(pack(large, once=True)), "nobody can read it"
    pool.count_reader(1)
    monkeypatch.setattr(blocks, "most_out", lambda: 0)
    pool.leave_to_parent()
    monkeypatch.setattr(blocks, "pool", full := Pool())
    full.count_reader(1)
    assert not lends(pack(large, once=True))


def test_where_no_thread_can_be_started_blocks_are_used_all_the_same(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as exhausted:
        exhausted.setattr(threading.Thread, "start", refuse)
        packed = pack(np.zeros(blocks.LEAST_BYTES, np.uint8), once=True)
        assert lends(packed)
    del packed
    assert pool.out == 0
    pack(np.zeros(4 * blocks.LEAST_BYTES, np.uint8), once=True)
    assert "gworker-blocks" in [thread.name for thread in threading.enumerate()]


def test_what_was_packed_is_as_it_was_then_and_unpacks_to_copies(pool: Pool) -> None:
    sent = np.arange(100_000)
    packed = pack(sent, once=True)
    sent[:] = 0
    first, second = unpack(packed), unpack(packed)
    first[:] = 1
    assert np.array_equal(second, np.arange(100_000))
    assert np.array_equal(unpack(packed), np.arange(100_000))
    del packed
    assert pool.out == 0
    pack(np.full(100_000, 5), once=True)
    assert np.array_equal(second, np.arange(100_000)), "it is no part of the block, which holds something else now"


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.asfortranarray(np.arange(90_000.0).reshape(300, 300)),
        lambda: np.frombuffer(bytes(range(256)) * 3000, np.uint8),
        lambda: [np.arange(50_000), np.zeros(0), np.arange(3), np.full((200, 200), 2.5)],
        lambda: np.arange(400_000)[::2],
    ],
)
def test_arrays_of_every_kind_unpack_equal_and_writable(pool: Pool, make: Callable[[], Any]) -> None:
    value = make()
    again = unpack(pack(value, once=True))
    pairs = zip(value, again, strict=True) if isinstance(value, list) else [(value, again)]
    for sent, back in pairs:
        assert np.array_equal(sent, back)
        assert back.flags.writeable


def test_tensors_are_lent_too(pool: Pool) -> None:
    torch = pytest.importorskip("torch")
    sent = torch.arange(400_000, dtype=torch.float32).to(torch.bfloat16)
    packed = pack({"x": sent, "y": torch.zeros(0)}, once=True)
    assert lends(packed)
    again = unpack(packed)
    assert torch.equal(again["x"], sent) and again["x"].dtype == torch.bfloat16
    assert again["y"].numel() == 0
