"""The policies of one pool: CPU time of what a controller does, without Ray and without a cluster.

Medians for 10, 100 and 1,000 workers: of a tick (`Pool.plan` and `Pool.refresh`, a few times a second) of a pool that
serves, of one whose workers wait for room, and of one in trouble (each tick two workers in a thousand crash, and a
third of them are not ready); of telling routers after one event (`Pool.refresh`), and of writing the state down
(`Pool.record`).
"""

from __future__ import annotations

import contextlib
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

from apart import Measure
from figures import Row, times, value
from harness import Benchmark, Contender

import gworker as gw
from gworker.control.pool import Pool, Start, Stop
from gworker.control.workers import Worker
from gworker.options import Options
from gworker.probe import Verdict
from gworker.router.membership import Demand, PoolDefinition, PoolKey
from gworker.wire import Payload

SIZES = (10, 100, 1000)
ROUTERS = 10
TICK_S = 0.25
ALIVE = gw.Probe.on("alive")
WARM = gw.Probe.on("warm", kind="readiness", failures=1)


class Bench:
    """A pool of so many workers, whose routers report what they have in each."""

    def __init__(self, workers: int, *, start: bool = True) -> None:
        options = {"max_workers": 2 * workers, "min_workers": workers, "probes": [ALIVE, WARM]}
        definition = PoolDefinition(
            key=PoolKey("Model"),
            cls=Payload(b""),
            worker_values=Payload(b""),
            options=Options.build(options, where="benchmark"),
            max_inputs=4,
            target_inputs=3,
        )
        self.pool = Pool(definition, 0.0, rng=random.Random(1))
        self.now = 1.0
        self._dice = random.Random(2)
        self._numbers = itertools.count(1)
        self.carry_out(start=start)

    def carry_out(self, *, start: bool = True) -> None:
        """A tick, and what it asks for happens at once."""
        for action in self.pool.plan(self.now):
            if isinstance(action, Stop):
                self.pool.lost(self.pool.workers[action.worker_id], "drained", self.now)
            elif isinstance(action, Start):
                number = next(self._numbers)
                worker = self.pool.add(action.slot, f"Model-{number}", number, self.now)
                worker.pending = "" if start else "waiting for GPU A100 x1"
                if start:
                    self.pool.started(worker, number, "node", self.now)
                    self.probe(worker, Verdict.PASSED)

    def probe(self, worker: Worker, warm: Verdict) -> None:
        """Both probes of a worker have run."""
        for probe, verdict in ((ALIVE, Verdict.PASSED), (WARM, warm)):
            self.pool.probed(worker, probe, verdict, 0.01, "", self.now)

    def next(self) -> None:
        """Time passes, and the routers report."""
        self.now += TICK_S
        ids = list(self.pool.workers)
        for n in range(ROUTERS):
            inflight = tuple((worker_id, 1) for worker_id in ids[n::ROUTERS])
            self.pool.report(f"router-{n}", Demand(2, len(inflight), inflight), self.now)

    def trouble(self) -> None:
        """Some workers crash, some say that they are not ready, some that they are again."""
        for worker in list(self.pool.workers.values()):
            fate = self._dice.random()
            if fate < 0.002:
                self.pool.lost(worker, "exit code 1", self.now)
            elif fate < 0.05 and worker.serving:
                self.probe(worker, self._dice.choice([Verdict.PASSED, Verdict.PASSED, Verdict.FAILED]))

    def tick(self) -> None:
        """What a controller does when nothing else happens."""
        self.pool.plan(self.now)
        self.pool.refresh(self.now)


def median_ms(work: Callable[[], object], between: Callable[[], object], times: int) -> float:
    """CPU time of `work`, in milliseconds; what is done in between is not counted."""
    spent = []
    for _ in range(times):
        between()
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return statistics.median(spent) * 1000


def serving_ms(workers: int, ticks: int) -> float:
    """A tick of a pool whose workers all serve."""
    bench = Bench(workers)
    return median_ms(bench.tick, bench.next, ticks)


def starting_ms(workers: int, ticks: int) -> float:
    """A tick of a pool whose workers all wait for room."""
    bench = Bench(workers, start=False)
    return median_ms(bench.tick, bench.next, ticks)


def troubled_ms(workers: int, ticks: int) -> float:
    """A tick of a pool in trouble."""
    bench = Bench(workers)

    def between() -> None:
        bench.carry_out()
        bench.next()
        bench.trouble()

    return median_ms(bench.tick, between, ticks)


def telling_ms(workers: int, ticks: int) -> float:
    """What one event costs before routers are told."""
    bench = Bench(workers)
    return median_ms(lambda: bench.pool.refresh(bench.now), bench.next, ticks)


def recording_ms(workers: int, ticks: int) -> float:
    """Writing the state down, as the controller of a deployed app does."""
    bench = Bench(workers)
    return median_ms(lambda: bench.pool.record(bench.now), bench.next, ticks)


MEASURED: dict[str, Callable[[int, int], float]] = {
    "a tick, all serve": serving_ms,
    "a tick, all wait for room": starting_ms,
    "a tick, in trouble": troubled_ms,
    "one event": telling_ms,
    "the record": recording_ms,
}


def rows() -> Iterator[Row]:
    """Every work at every size; a tick has a bound at 1,000 workers, and grows no faster than their number."""
    for name in MEASURED:
        for size in SIZES:
            promised = (value(10), times(100, "gworker", row=f"{name} 10")) if size == 1000 and "tick" in name else ()
            yield Row(f"{name} {size}", f"{name}, {size:,} workers", "ms", promised)


@contextlib.contextmanager
def policies(ticks: int) -> Iterator[Measure]:
    """There is nothing to open."""

    def measure(case: tuple[str, int]) -> Mapping[str, float]:
        name, size = case
        return {f"{name} {size}": MEASURED[name](size, ticks)}

    yield measure


def main() -> None:
    """Run the benchmark."""
    bench = Benchmark(__doc__, list(rows()), rounds=3)
    contender = Contender("gworker", lambda: policies(30 if bench.quick else 100))
    bench.run([contender], [(name, size) for name in MEASURED for size in SIZES])
    bench.finish()


if __name__ == "__main__":
    main()
