"""Scheduling: what many workers cost a router and its controller, without Ray and without workers.

For 1, 10, 100 and 1,000 workers, the CPU time of one choice by `Choice` beside that of looking at every worker: when
calls end one by one and each end makes room for the next (saturated), and when one call after the other finds all
workers idle. Then what it takes to tell one router of as many workers that join one by one, by changes and by whole
views: bytes, and CPU time on both sides together.
"""

from __future__ import annotations

import os
import pickle
import random
import time
from collections.abc import Callable
from typing import Any

from figures import OURS, Row
from harness import Benchmark

from gworker.control.viewlog import ViewLog
from gworker.router.choice import Choice
from gworker.router.lanes import Room
from gworker.router.membership import DirectAddress, PoolState, PoolView, WorkerView
from gworker.router.roster import Roster

SIZES = (1, 10, 100, 1000)
CAPACITY = 4
# The size of a pickled actor handle of Ray 2.60.
HANDLE_BYTES = 285


class Worker:
    """A worker as a router sees it, with the room that a lane would tell."""

    def __init__(self) -> None:
        self.calls = 0
        self.ready = True
        self.broken = False
        self._room = Room(CAPACITY)

    @property
    def load(self) -> float:
        return self.calls / CAPACITY

    def has_room(self) -> bool:
        return self._room.left(idle=True) - self.calls > 0


class LookAtAll:
    """The rule without an index: the least loaded of all that have room."""

    def __init__(self) -> None:
        self._links: dict[int, Worker] = {}

    def add(self, link: Worker) -> None:
        self._links[id(link)] = link

    def pick(self) -> Worker | None:
        best: Worker | None = None
        for link in self._links.values():
            if link.ready and not link.broken and link.has_room() and (best is None or link.load < best.load):
                best = link
        return best

    def heard(self, link: Worker) -> None:
        pass

    def ask(self, waiting: int) -> None:
        pass


def saturated_ns(choice: Any, workers: list[Worker], calls: int) -> float:
    """Each end of a call is followed by the choice for the next one, and by one that finds no room."""
    while (picked := choice.pick()) is not None:
        picked.calls += 1
    choice.ask(len(workers))
    ended = random.Random(1).choices(workers, k=calls)
    start = time.process_time_ns()
    for worker in ended:
        worker.calls -= 1
        choice.heard(worker)
        while (picked := choice.pick()) is not None:
            picked.calls += 1
        choice.ask(1)
    return (time.process_time_ns() - start) / calls


def idle_ns(choice: Any, workers: list[Worker], calls: int) -> float:
    """One call after the other."""
    start = time.process_time_ns()
    for _ in range(calls):
        picked = choice.pick()
        picked.calls += 1
        picked.calls -= 1
        choice.heard(picked)
    return (time.process_time_ns() - start) / calls


def ns(measure: Callable[[Any, list[Worker], int], float], rule: type, count: int, calls: int) -> float:
    """The time of one choice among `count` workers."""
    choice, workers = rule(), [Worker() for _ in range(count)]
    for worker in workers:
        choice.add(worker)
    return measure(choice, workers, calls if rule is Choice else max(100, calls // count))


def joining(count: int, *, whole: bool) -> tuple[float, float]:
    """Bytes, and CPU seconds of making, packing, unpacking and taking the news, until a router knows all workers."""
    views = [
        WorkerView(
            f"Model-{n}",
            os.urandom(HANDLE_BYTES),
            CAPACITY,
            True,
            DirectAddress("n" * 56, f"/tmp/gworker-{n}-abcdefgh/direct", n, os.urandom(32)),
        )
        for n in range(count)
    ]
    log, roster = ViewLog("epoch"), Roster()
    nbytes = 0
    start = time.process_time()
    for n in range(count):
        log.record(PoolView(0, PoolState.SCALING, tuple(views[: n + 1])))
        packed = pickle.dumps(log.since(None if whole else roster.known), protocol=5)
        nbytes += len(packed)
        roster.take(pickle.loads(packed))
    spent_s = time.process_time() - start
    assert len(roster.workers) == count
    return nbytes, spent_s


CHOICES = {"saturated": saturated_ns, "idle": idle_ns}
RULES = {OURS: Choice, "a look at all workers": LookAtAll}
NEWS = {OURS: False, "whole views": True}
ROWS = [
    *(Row(f"{name}_{n}", f"a choice among {n:,}, {name}", "ns") for name in CHOICES for n in SIZES),
    *(Row(f"mb_{n}", f"{n:,} workers join, news", "MB") for n in SIZES),
    *(Row(f"cpu_{n}", f"{n:,} workers join, CPU time", "s") for n in SIZES),
]


def main() -> None:
    """Run the benchmark."""
    bench = Benchmark(__doc__, ROWS, rounds=3, quick_rounds=1)
    calls = 2_000 if bench.quick else 20_000
    for _ in range(bench.rounds):
        for n in SIZES:
            for name, measure in CHOICES.items():
                for rule, cls in RULES.items():
                    bench.record(f"{name}_{n}", ns(measure, cls, n, calls), contender=rule)
            for news, whole in NEWS.items():
                nbytes, spent_s = joining(n, whole=whole)
                bench.record(f"mb_{n}", nbytes / 1e6, contender=news)
                bench.record(f"cpu_{n}", spent_s, contender=news)
    bench.finish()


if __name__ == "__main__":
    main()
