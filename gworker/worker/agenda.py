"""What waits in a worker, and which of it starts next. Pure: it is told the time, and when invocations begin and end.

Without `@gw.concurrent` something may start when nothing runs. With it, plain inputs start as they come, and a batched
method needs one of its permits; two that share the main thread need that, too. Of what may start, that goes first whose
first input has the lowest turn, and of equals the one that has waited longest: the callers' inputs start in turn.
"""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, Any

from gworker.functions import MethodSpec
from gworker.spec import ClassSpec
from gworker.worker.batcher import BatchQueue
from gworker.worker.turns import Turns

if TYPE_CHECKING:
    from gworker.worker.engine import Input


class Agenda:
    """The inputs of one worker that have not started."""

    def __init__(self, spec: ClassSpec) -> None:
        self._spec = spec
        self._concurrent = spec.concurrent
        self._on_main = frozenset(method.name for method in spec.methods.values() if _needs_main(spec, method))
        self._turns = Turns()
        self._numbers = itertools.count()
        self._plain: list[tuple[int, int, Input]] = []  # a heap
        self._queues: dict[tuple[str, Any], BatchQueue[Input]] = {}
        self._running = 0
        self._running_batches: dict[str, int] = {}
        self._main_taken = False

    def add(self, given: Input, now: float) -> None:
        """An input waits from now on. Its weight is known."""
        given.turn = self._turns.next(given.session.name)
        if given.method.batch is None:
            heapq.heappush(self._plain, (given.turn, next(self._numbers), given))
            return
        key = _key(given)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = BatchQueue(given.method.batch)
        queue.add(given, now, weight=given.weight, cap=given.call.batch_cap, turn=given.turn, deadline=given.deadline)

    def remove(self, given: Input) -> None:
        """An input that has been answered waits no more."""
        self._turns.give_back(given.session.name, given.turn)
        queue = self._queues.get(_key(given))
        if queue is not None:
            queue.remove(given)
            self._tidy(_key(given))
        # A plain one is passed over when its turn comes.

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._plain or self._queues)

    def take(self, now: float) -> list[Input]:
        """The inputs of the invocation that starts next, taken out; none where nothing may start now."""
        while self._plain and self._plain[0][2].answered:
            heapq.heappop(self._plain)
        best: tuple[str, Any] | None = None
        first: tuple[float, float] | None = None
        if self._plain and self._may_start(self._plain[0][2].method):
            first = self._plain[0][0], self._plain[0][2].arrived
        for key, queue in self._queues.items():
            place = queue.turn, queue.oldest
            if (
                (first is None or place < first)
                and queue.ready_at() <= now
                and self._may_start(self._spec.methods[key[0]])
            ):
                best, first = key, place
        if first is None:
            return []
        if best is None:
            chosen = [heapq.heappop(self._plain)[2]]
        else:
            chosen = self._queues[best].close(now)
            self._tidy(best)
        self._turns.begin(chosen[0].turn if len(chosen) == 1 else max(given.turn for given in chosen))
        return chosen

    def next_start(self) -> float | None:
        """When the first window that is open, and whose batch could run, closes."""
        if not self._queues:
            return None
        return min(
            (q.ready_at() for (name, _), q in self._queues.items() if self._may_start(self._spec.methods[name])),
            default=None,
        )

    def begin(self, method: MethodSpec) -> bool:
        """An invocation begins; True if it is for the main thread."""
        self._running += 1
        if method.batch is not None:
            self._running_batches[method.name] = self._running_batches.get(method.name, 0) + 1
        if method.name not in self._on_main:
            return False
        self._main_taken = True
        return True

    def end(self, method: MethodSpec) -> None:
        """An invocation has ended."""
        self._running -= 1
        if method.name in self._on_main:
            self._main_taken = False
        if method.batch is not None:
            self._running_batches[method.name] -= 1

    def _may_start(self, method: MethodSpec) -> bool:
        if not self._concurrent:
            return not self._running
        if self._main_taken and method.name in self._on_main:
            return False
        if method.batch is not None:
            return self._running_batches.get(method.name, 0) < method.batch.max_concurrent_batches
        return True

    def _tidy(self, key: tuple[str, Any]) -> None:
        if not self._queues[key]:
            del self._queues[key]


def _needs_main(spec: ClassSpec, method: MethodSpec) -> bool:
    """Sync code of which only one invocation can run at a time keeps to the thread of the sync hooks."""
    if method.is_async:
        return False
    if not spec.concurrent or spec.max_inputs == 1:
        return True
    return method.batch is not None and method.batch.max_concurrent_batches == 1


def _key(given: Input) -> tuple[str, Any]:
    return given.method.name, given.call.parameters_key
