"""`gw.shared_weights`: what one worker of a node loads, the others map.

A worker asks the controller, and loads, waits or maps as it is told. Whatever fails on the way, short of `load` itself,
ends in a copy of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from gworker import clock, context
from gworker.errors import InvalidDefinition
from gworker.weights.claims import Claim, Load, Private, Shared, WeightsName
from gworker.weights.layout import Packed, pack, unpack
from gworker.weights.pages import give_back_memory
from gworker.weights.room import lacking_room
from gworker.worker.threads import run_on_own_thread

T = TypeVar("T")
log = logging.getLogger("gworker.worker")

# How long a controller that is being replaced may keep a worker waiting for its weights.
ANSWER_S = 30.0
# How often it is asked again meanwhile.
ASK_AGAIN_S = 0.2
# How long Ray may take to free what the controller has dropped to make room.
FREED_S = 2.0

_attempts = itertools.count(1)
# What this process has loaded, until the controller has had it taken over.
_offers: dict[WeightsName, Packed] = {}
_loading: contextvars.ContextVar[tuple[WeightsName, ...]] = contextvars.ContextVar("gworker_loading", default=())


class SharedWeights:
    """Load weights once on each node, and share them among the workers there, without a copy for each.

    `gw.shared_weights(key, load, version=None)` belongs into an `on_enter` hook. The first worker of a node runs
    `load`, the others wait for it; then all of them, the first included, get the same memory, in Ray's object store. A
    worker that starts later, or in place of one that has crashed, gets it as well, without loading. In async code write
    `await gw.shared_weights.aio(key, load)`, where `load` may be a coroutine function; one that is not runs on a thread
    of its own.

    Args:
        key: names the weights in the class. Without `version` they are shared among the workers of one pool: one class,
            one set of options and of worker-scoped values, one version of a deployed app. After an update they are
            loaded anew.
        load: takes no arguments and returns tensors or arrays, in dicts, lists and the like, such as a state dict.
            Tensors are brought to the CPU. What it raises is raised, and another worker tries itself.
        version: says that `key` and `version` together name the content, as a revision or a hash does: all classes of
            the app share it then, and an update does not load it again. Change it when the weights change.

    Returns:
        What `load` returned, with tensors and arrays that cannot be written: numpy raises ValueError, but a write to a
        torch tensor ends the worker with a segmentation fault. Copy what is to change (`tensor.clone()`,
        `.to("cuda")`). Those below 4 KB are copies already.

    Where Ray's object store has no room, or the value cannot be pickled, the worker keeps a copy of its own, and a
    warning says why. Outside a worker, in `.local()` too, it returns what `load()` returns, each time.

    >>> import gworker as gw
    >>> import numpy as np
    >>> gw.shared_weights("ones", lambda: {"weight": np.ones(3)})["weight"].tolist()
    [1.0, 1.0, 1.0]
    """

    def __call__(self, key: str, load: Callable[[], T], *, version: str | None = None) -> T:
        """See the class."""
        _check(key, load, version)
        if inspect.iscoroutinefunction(load):
            raise InvalidDefinition(
                f"gw.shared_weights({key!r}, load): load is a coroutine function; write `await gw.shared_weights.aio"
                f"({key!r}, load)` in an async hook"
            )
        worker = context.this_worker()
        return load() if worker is None else cast("T", _Search(worker, key, version).run(load))

    async def aio(self, key: str, load: Callable[[], T | Awaitable[T]], *, version: str | None = None) -> T:
        """The same for async code: the event loop goes on meanwhile."""
        _check(key, load, version)
        loop = asyncio.get_running_loop()

        def load_here() -> Any:
            if not inspect.iscoroutinefunction(load):
                return load()
            return asyncio.run_coroutine_threadsafe(load(), loop).result()

        worker = context.this_worker()
        search = load_here if worker is None else functools.partial(_Search(worker, key, version).run, load_here)
        found = run_on_own_thread(functools.partial(contextvars.copy_context().run, search), "gworker-weights")
        return cast("T", await asyncio.wrap_future(found))


shared_weights = SharedWeights()


def offered(name: WeightsName) -> tuple[Any, bool]:
    """What this worker has to hand over, in two parts: the weights, and a sign that they are there."""
    return _offers[name].parts, True


def _check(key: Any, load: Any, version: Any) -> None:
    if not isinstance(key, str) or not key:
        raise InvalidDefinition(
            f"gw.shared_weights({key!r}, ...): expected a key, a string that is not empty, and a function that loads: "
            'write gw.shared_weights("my-model", self.load_weights)'
        )
    if not callable(load):
        raise InvalidDefinition(
            f"gw.shared_weights({key!r}, load): load is a {type(load).__name__}; expected a function without arguments "
            "that returns the weights: pass the function, do not call it"
        )
    if version is not None and (not isinstance(version, str) or not version):
        raise InvalidDefinition(
            f"gw.shared_weights({key!r}, ..., version={version!r}): expected a string, such as a revision or a hash, "
            "or None"
        )


class _Search:
    """One worker's way to weights."""

    def __init__(self, worker: context.WorkerProcess, key: str, version: str | None) -> None:
        self._controller = worker.controller.get()
        self.name = WeightsName(key, version, worker.pool if version is None else None)
        self._claim = Claim(worker.worker_id, next(_attempts), _node_id(), self.name)

    def run(self, load: Callable[[], Any]) -> Any:
        """The weights, shared if that can be. Raises what `load` raises."""
        if self.name in _loading.get():
            raise RuntimeError(f"the function that loads the shared weights {self.name} asks for them itself")
        lost: int | None = None
        began = clock.now()
        while True:
            answer = self._ask("claim_weights", lost)
            if isinstance(answer, Shared):
                try:
                    found = unpack(_result_of(answer.reference))
                except RayError as error:
                    log.info("the shared weights %s are lost (%s)", self.name, error)
                    lost = answer.number
                    continue
                log.info("the weights %s are shared on this node: %.3f s", self.name, clock.now() - began)
                return found
            if isinstance(answer, Load):
                found = self._load(load)
                give_back_memory()  # what was loaded is free by now, but stays with the process
                return found
            if answer is None or isinstance(answer, Private):
                log.info("the weights %s are not shared on this node", self.name)
                return load()

    def _load(self, load: Callable[[], Any]) -> Any:
        token = _loading.set((*_loading.get(), self.name))
        try:
            value = load()
        except BaseException:
            self._ask("release_weights", False)
            raise
        finally:
            _loading.reset(token)
        try:
            return self._share(value)
        except Exception as error:
            log.warning("%s; this worker keeps a copy of its own", self._why_private(error))
            self._ask("release_weights", True)
        return value

    def _share(self, value: Any) -> Any:
        """The value in shared memory. Raises _NoRoomError, or what went wrong."""
        packed = pack(value)
        self._find_room(packed.nbytes)
        _offers[self.name] = packed
        try:
            answer = self._ask("offer_weights")
        finally:
            del _offers[self.name]
        if not isinstance(answer, Shared):
            raise RuntimeError("the controller did not take them over")
        return unpack(_result_of(answer.reference))

    def _find_room(self, nbytes: int) -> None:
        lacking = lacking_room(nbytes)
        if lacking and self._ask("make_room_for_weights"):
            end = clock.now() + FREED_S
            while (lacking := lacking_room(nbytes)) and clock.now() < end:
                time.sleep(0.05)
        if lacking:
            raise _NoRoomError(lacking)

    def _why_private(self, error: Exception) -> str:
        if isinstance(error, _NoRoomError):
            return f"the weights {self.name} are not shared: {error}"
        return f"the weights {self.name} cannot be shared ({type(error).__name__}: {error})"

    def _ask(self, question: str, *about: Any) -> Any:
        """What the controller answers; None where it does not."""
        end = clock.now() + ANSWER_S
        while True:
            try:
                return _result_of(getattr(self._controller, question).remote(self._claim, *about))
            except RayError as error:
                if isinstance(error, RayTaskError) or not isinstance(error, RayActorError) or clock.now() > end:
                    log.warning("the controller could not be asked for the weights %s: %s", self.name, error)
                    return None
            time.sleep(ASK_AGAIN_S)


def _node_id() -> str:
    found: str = ray.get_runtime_context().get_node_id()
    return found


def _result_of(reference: Any) -> Any:
    """What a reference leads to. Not by `ray.get`, which warns of loops that it would block: this is a thread."""
    return reference.future().result()


class _NoRoomError(Exception):
    """The object store of this node is too small; the message says for what, and what to do."""
