"""What many workers cost a router and its controller: CPU time and bytes, without Ray and without workers.

    python benchmarks/scheduling.py [--calls 20000] [--json FILE]

Reports, for 1, 10, 100 and 1,000 workers, the time of one choice by `Choice` beside that of looking at every
worker, the peer, in the same run: when calls end one by one and each end makes room for the next (saturated), and
when one call after the other finds all workers idle. Then what it takes to tell one router of as many workers that
join one by one, by changes and by whole views: bytes, and CPU time on both sides together.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gworker as gw
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
    """The best of three: what else runs can only add."""
    times = []
    for _ in range(3):
        choice, workers = rule(), [Worker() for _ in range(count)]
        for worker in workers:
            choice.add(worker)
        times.append(measure(choice, workers, calls if rule is Choice else max(100, calls // count)))
    return min(times)


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


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    found: dict[str, dict[str, dict[int, float]]] = {}
    print(f"{'CPU time of a choice, ns':34}" + "".join(f"{n:>10} workers" for n in SIZES))
    for name, measure in (("saturated", saturated_ns), ("idle", idle_ns)):
        for rule in (LookAtAll, Choice):
            by_size = {n: ns(measure, rule, n, given.calls) for n in SIZES}
            found.setdefault(name, {})[rule.__name__] = by_size
            print(f"{name + ', ' + rule.__name__:34}" + "".join(f"{by_size[n]:18,.0f}" for n in SIZES))
    told: dict[str, dict[int, tuple[float, float]]] = {}
    print(f"\n{'workers that join: MB, CPU s':34}" + "".join(f"{n:>10} workers" for n in SIZES))
    for name, whole in (("whole views", True), ("changes", False)):
        told[name] = {n: joining(n, whole=whole) for n in SIZES}
        print(f"{name:34}" + "".join(f"{b / 1e6:10.3f} {s:7.3f}" for b, s in told[name].values()))
    if given.json:
        machine = {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "gworker": gw.__version__,
        }
        given.json.write_text(json.dumps({"machine": machine, "choice_ns": found, "joining": told}, indent=2) + "\n")


if __name__ == "__main__":
    main()
