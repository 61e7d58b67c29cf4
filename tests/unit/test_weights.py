"""`gw.shared_weights`: how weights lie in shared memory, and what a worker does with what it is told."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import mmap
import multiprocessing
import pickle
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorUnavailableError, ObjectLostError

import gworker as gw
from gworker import context
from gworker.router.membership import PoolKey
from gworker.router.reference import ActorReference
from gworker.weights import shared
from gworker.weights.claims import Load, Private, Shared, Wait
from gworker.weights.layout import SMALL_BYTES, pack, unpack
from gworker.weights.room import explain

LARGE = SMALL_BYTES  # elements


class Store:
    """An object store: memory that is shared, into which objects are written as Ray writes them."""

    def __init__(self, size: int = 2**21) -> None:
        self.memory = mmap.mmap(-1, size)
        self.used = 192

    def put(self, value: Any) -> Any:
        """What reading the object gives: its buffers are read-only views of the store."""
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        views = []
        for buffer in buffers:
            raw = buffer.raw()
            end = self.used + raw.nbytes
            self.memory[self.used : end] = raw
            views.append(memoryview(self.memory)[self.used : end].toreadonly())
            self.used = -(-end // 64) * 64
        return pickle.loads(data, buffers=views)

    def holds(self, array: Any) -> bool:
        """Whether an array has its bytes here: what is written here shows there."""
        marker = b"\x5a" * 8
        at = self.memory.find(array.tobytes())
        assert at >= 0, "the array is not in the store at all"
        before, self.memory[at : at + 8] = self.memory[at : at + 8], marker
        shows = array.tobytes().startswith(marker)
        self.memory[at : at + 8] = before
        return bool(shows)


@pytest.fixture
def store() -> Store:
    return Store()


def through(store: Store, value: Any) -> Any:
    return unpack(store.put(pack(value).parts))


# --- layout ------------------------------------------------------------------------------------------------------


def test_large_arrays_are_views_of_the_store_and_cannot_be_written(store: Store) -> None:
    value = {"a": np.arange(LARGE), "deep": [{"b": np.arange(LARGE, dtype=np.float32)}], "name": "model"}
    again = through(store, value)
    assert again["name"] == "model"
    for old, new in [(value["a"], again["a"]), (value["deep"][0]["b"], again["deep"][0]["b"])]:  # type: ignore[index]
        assert np.array_equal(old, new) and old.dtype == new.dtype
        assert store.holds(new)
        with pytest.raises(ValueError, match="read-only"):
            new[0] = 1


def test_small_arrays_are_copies_of_ones_own(store: Store) -> None:
    again = through(store, {"bias": np.ones(3), "none": np.empty((0, 4)), "scalar": np.array(2.5)})
    again["bias"][:] = 7
    assert again["none"].shape == (0, 4) and again["scalar"] == 2.5 and again["scalar"].shape == ()


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.asfortranarray(np.arange(LARGE).reshape(64, -1)),
        lambda: np.arange(3 * LARGE).reshape(3, 64, -1).transpose(1, 0, 2),
        lambda: np.arange(LARGE)[::2],
        lambda: np.arange(LARGE)[::-1],
        lambda: np.broadcast_to(np.arange(8), (LARGE, 8)),
        lambda: np.arange(LARGE, dtype=">f8"),
        lambda: np.zeros(LARGE, dtype=[("x", "f4"), ("y", "i8")]),
        lambda: np.zeros(LARGE, dtype="S7"),
    ],
    ids=["fortran", "transposed", "strided", "reversed", "broadcast", "big-endian", "structured", "texts"],
)
def test_arrays_of_every_layout_are_shared_as_they_are(store: Store, make: Callable[[], Any]) -> None:
    array = make()
    again = through(store, array)
    assert np.array_equal(again, array) and again.dtype == array.dtype and again.shape == array.shape
    assert not again.flags.writeable


def test_a_dense_layout_is_kept_and_costs_no_copy() -> None:
    array = np.arange(LARGE).reshape(64, -1).T
    packed = pack(array)
    assert packed.leaves[0].strides == array.strides
    assert np.shares_memory(np.frombuffer(packed.buffers[1], array.dtype), array)


def test_what_lies_in_the_same_memory_is_stored_once_and_lies_in_the_same_memory_again(store: Store) -> None:
    base = np.arange(LARGE)
    packed = pack({"embed": base, "head": base, "view": base.reshape(2, -1), "half": base[LARGE // 2 :]})
    assert packed.nbytes < 1.1 * base.nbytes
    again = unpack(store.put(packed.parts))
    assert again["embed"] is again["head"]
    assert np.shares_memory(again["embed"], again["view"]) and np.shares_memory(again["embed"], again["half"])
    assert np.array_equal(again["half"], base[LARGE // 2 :])


def test_files_that_are_mapped_and_arrays_of_objects_work_too(store: Store, tmp_path: Any) -> None:
    np.save(tmp_path / "weights.npy", np.arange(LARGE))
    again = through(store, {"file": np.load(tmp_path / "weights.npy", mmap_mode="r"), "objects": np.array([{}, None])})
    assert store.holds(again["file"]) and type(again["file"]) is np.ndarray
    assert again["objects"].tolist() == [{}, None]


def test_memory_stays_as_long_as_a_view_of_it(store: Store) -> None:
    address = np.frombuffer(store.memory, np.uint8).__array_interface__["data"][0]

    def mappings() -> int:
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        (inode,) = [line[4] for line in lines if line[0].startswith(f"{address:x}-")]
        return sum(line[4] == inode for line in lines)

    assert mappings() == 1
    gc.disable()  # memory is not to wait for a collection
    try:
        view = through(store, {"a": np.arange(LARGE)})["a"][5:10]
        assert view.tolist() == [5, 6, 7, 8, 9]
        assert mappings() == 2
        del view
        assert mappings() == 1
    finally:
        gc.enable()


def test_what_was_packed_is_let_go_at_once() -> None:
    array = np.arange(LARGE)
    seen = weakref.ref(array)
    gc.disable()
    try:
        packed = pack({"a": array})
        del array
        assert seen() is not None
        del packed
        assert seen() is None
    finally:
        gc.enable()


def _write(array: Any) -> None:
    import faulthandler

    faulthandler.disable()
    array[0] = 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child does nothing but to die
def test_a_write_that_is_forced_ends_the_process_that_tries_and_changes_nothing(store: Store) -> None:
    array = through(store, np.arange(LARGE))
    array.setflags(write=True)
    child = multiprocessing.get_context("fork").Process(target=_write, args=(array,))
    child.start()
    child.join(20)
    assert child.exitcode == -signal.SIGSEGV
    assert array[0] == 0


def test_memory_that_is_not_shared_is_used_as_it_is() -> None:
    """Ray sends small objects with its messages."""
    value = np.arange(LARGE)
    skeleton, leaves, buffers = pack(value).parts
    again = unpack((skeleton, leaves, [bytes(buffer) for buffer in buffers]))
    assert np.array_equal(again, value) and not again.flags.writeable


def test_without_tensors_torch_is_not_imported(store: Store) -> None:
    before = "torch" in sys.modules
    through(store, {"a": np.arange(LARGE)})
    assert ("torch" in sys.modules) == before


def test_a_full_store_is_told_of_before_ray_writes_to_disk() -> None:
    gb = 10**9
    assert explain(2 * gb, 5 * gb, 10 * gb) is None
    told = explain(4 * gb, 5 * gb, 10 * gb)
    assert told is not None
    assert "4.00 GB" in told and "10.00 GB with 5.00 GB in use" in told and "object_store_memory" in told


# --- what a worker does ------------------------------------------------------------------------------------------


class Asked:
    """A question to the controller, or an object in the store: what comes of it."""

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome

    def future(self) -> concurrent.futures.Future[Any]:
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        if isinstance(self._outcome, Exception):
            done.set_exception(self._outcome)
        else:
            done.set_result(self._outcome)
        return done


class Controller:
    """Answers as it is told, and takes over what it is offered. `asked` has the questions."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.answers: list[Any] = [Load()]
        self.offer: Any = None
        self.asked: list[str] = []

    def __getattr__(self, question: str) -> Any:
        controller = self

        class Method:
            def remote(self, claim: Any, *about: Any) -> Asked:
                controller.asked.append(" ".join((question, *map(str, about))))
                if question == "claim_weights":
                    return Asked(controller.answers.pop(0))
                if question == "offer_weights":
                    parts, _ = shared.offered(claim.name)
                    taken = Shared(1, Asked(controller.store.put(parts)))
                    return Asked(taken if controller.offer is None else controller.offer)
                return Asked(False)

        return Method()


@pytest.fixture
def controller(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Controller]:
    """This process is a worker of this controller."""
    found = Controller(store)
    worker = context.WorkerProcess("app", PoolKey("Model"), ActorReference(found), True, 1, worker_id="Model-1")
    monkeypatch.setattr(context, "_worker", worker)
    monkeypatch.setattr(shared, "_node_id", lambda: "node")
    monkeypatch.setattr(shared, "lacking_room", lambda nbytes: None)
    monkeypatch.setattr(shared, "ASK_AGAIN_S", 0.001)
    yield found
    assert not shared._offers, "what was loaded is let go"


def weights() -> dict[str, Any]:
    return {"a": np.arange(LARGE)}


def never() -> Any:
    raise AssertionError("it must not be loaded here")


def test_who_loads_uses_the_shared_copy_as_well(controller: Controller, store: Store) -> None:
    found = gw.shared_weights("w", weights)
    assert store.holds(found["a"])
    assert controller.asked == ["claim_weights None", "offer_weights"]


def test_who_is_handed_the_weights_does_not_load(controller: Controller, store: Store) -> None:
    controller.answers = [Wait(), Wait(), Shared(1, Asked(store.put(pack(weights()).parts)))]
    assert store.holds(gw.shared_weights("w", never)["a"])


def test_what_load_raises_is_raised_and_the_claim_is_released(controller: Controller) -> None:
    def load() -> Any:
        raise FileNotFoundError("weights.bin")

    with pytest.raises(FileNotFoundError, match=r"weights\.bin"):
        gw.shared_weights("w", load)
    assert controller.asked == ["claim_weights None", "release_weights False"]


def test_where_there_is_no_room_the_worker_keeps_its_copy_and_says_why_once(
    controller: Controller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared, "lacking_room", lambda nbytes: "the store is small")
    loaded = weights()
    with caplog.at_level(logging.WARNING):
        assert gw.shared_weights("w", lambda: loaded) is loaded
    (record,) = caplog.records
    assert "w are not shared: the store is small" in record.message
    assert controller.asked == ["claim_weights None", "make_room_for_weights", "release_weights True"]


@pytest.mark.parametrize("why", ["it cannot be pickled", "the controller does not take it over"])
def test_what_cannot_be_shared_stays_where_it_was_loaded(
    controller: Controller, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    value: dict[str, Any] = weights()
    if why == "it cannot be pickled":
        value["generator"] = (n for n in range(3))
    else:
        controller.offer = Private()
    assert gw.shared_weights("w", lambda: value) is value
    assert "cannot be shared" in caplog.text
    assert controller.asked[-1] == "release_weights True"


def test_weights_that_are_lost_are_asked_for_anew(controller: Controller, store: Store) -> None:
    controller.answers = [Shared(7, Asked(ObjectLostError("00" * 28, "", ""))), Load()]
    assert store.holds(gw.shared_weights("w", weights)["a"])
    assert controller.asked == ["claim_weights None", "claim_weights 7", "offer_weights"]


def test_a_controller_that_is_being_replaced_is_asked_again(controller: Controller, store: Store) -> None:
    controller.answers = [ActorUnavailableError("restarting", None), Load()]
    assert store.holds(gw.shared_weights("w", weights)["a"])


def test_without_a_controller_the_worker_loads_for_itself(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "ANSWER_S", 0.0)
    controller.answers = [ActorUnavailableError("gone", None)] * 3
    loaded = weights()
    assert gw.shared_weights("w", lambda: loaded) is loaded


def test_a_loader_that_asks_for_itself_is_told_so(controller: Controller) -> None:
    controller.answers = [Load(), Load()]
    with pytest.raises(RuntimeError, match="asks for them itself"):
        gw.shared_weights("w", lambda: gw.shared_weights("w", weights))


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_in_async_code_the_loop_goes_on_while_weights_are_loaded(
    controller: Controller, store: Store, kind: str
) -> None:
    loop, went_on = asyncio.get_running_loop(), asyncio.Event()

    def load() -> Any:
        asyncio.run_coroutine_threadsafe(_set(went_on), loop).result(20)  # would hang on the loop
        return weights()

    async def load_async() -> Any:
        await _set(went_on)
        return weights()

    found = await gw.shared_weights.aio("w", load if kind == "sync" else load_async)
    assert went_on.is_set() and store.holds(found["a"])


async def _set(event: asyncio.Event) -> None:
    event.set()


# --- outside a worker, and in error ------------------------------------------------------------------------------


async def test_outside_a_worker_it_is_what_load_returns_each_time() -> None:
    made: list[Any] = []

    def load() -> dict[str, Any]:
        made.append(weights())
        return made[-1]

    async def load_async() -> dict[str, Any]:
        return load()

    assert gw.shared_weights("w", load) is made[0]
    assert gw.shared_weights("w", load, version="1") is made[1]
    assert await gw.shared_weights.aio("w", load) is made[2]
    assert await gw.shared_weights.aio("w", load_async) is made[3]


async def _coroutine() -> None: ...


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", weights), "expected a key"),
        ((weights, "w"), "expected a key"),
        (("w", {"a": 1}), "pass the function, do not call it"),
        (("w", _coroutine), r"await gw\.shared_weights\.aio"),
    ],
)
def test_a_wrong_use_is_told_what_to_write(arguments: Any, message: str) -> None:
    with pytest.raises(gw.InvalidDefinition, match=message):
        gw.shared_weights(*arguments)


def test_a_version_is_a_text() -> None:
    with pytest.raises(gw.InvalidDefinition, match="version=3"):
        gw.shared_weights("w", weights, version=3)  # type: ignore[arg-type]
