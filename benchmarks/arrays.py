"""Large arrays: from 10 kB to 100 MB there and back, and one way each, with gworker and a bare Ray actor.

The median time of one blocking call after another. gworker is measured by its direct lane, and by actor calls
(`GWORKER_LANE=ray`). What arrives by gworker is the receiver's own and writable (from 512 kB on a private mapping of
shared memory, by the direct lane); what a Ray actor is given, and what its caller gets, is read-only and in shared
memory.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import ray
from apart import Measure
from figures import Row, times
from harness import Benchmark, Contender, environment, start_ray

import gworker as gw

SIZES = {"10 kB": 10_000, "100 kB": 100_000, "1 MB": 1_000_000, "10 MB": 10_000_000, "100 MB": 100_000_000}
WAYS = {"both": "there and back", "there": "there", "back": "back"}
ROWS = [
    Row(f"{way} {size}", f"{size} {text}", "ms", (times(0.7, "Ray actor"),) if (size, way) == ("10 MB", "both") else ())
    for size in SIZES
    for way, text in WAYS.items()
]


class Arrays:
    """Takes arrays, gives arrays, or both."""

    def both(self, array: Any) -> Any:
        return array

    def there(self, array: Any) -> int:
        return int(array.nbytes)

    def back(self, nbytes: int) -> Any:
        return np.ones(nbytes, np.uint8)


app = gw.App("bench-arrays")


@app.cls(max_workers=1, cpu=0, scaledown_window_s=3600)
class Ours:
    @gw.method()
    def both(self, array: Any) -> Any:
        return array

    @gw.method()
    def there(self, array: Any) -> int:
        return int(array.nbytes)

    @gw.method()
    def back(self, nbytes: int) -> Any:
        return np.ones(nbytes, np.uint8)


def measured(calls: Mapping[str, Callable[[Any], Any]], for_s: float) -> Measure:
    """Measures a way (the key of a call) and a size for so long, three calls at least."""

    def measure(case: tuple[str, str]) -> Mapping[str, float]:
        way, size = case
        given: Any = SIZES[size] if way == "back" else np.ones(SIZES[size], np.uint8)
        calls[way](given)
        taken: list[float] = []
        until = time.perf_counter() + for_s
        while len(taken) < 3 or time.perf_counter() < until:
            start = time.perf_counter()
            result = calls[way](given)
            taken.append(time.perf_counter() - start)
            del result
        return {f"{way} {size}": statistics.median(taken) * 1000}

    return measure


@contextlib.contextmanager
def ours(lane: str, for_s: float) -> Iterator[Measure]:
    """One worker, reached by this lane."""
    start_ray()
    handle = (Ours if lane == "direct" else Ours.with_options(max_pending=9_000))()  # a variant has a pool of its own
    with environment(GWORKER_LANE=lane):
        handle.there.remote(np.zeros(1))  # the lane is chosen when a router first reaches a worker
    yield measured({way: getattr(handle, way).remote for way in WAYS}, for_s)


@contextlib.contextmanager
def bare(for_s: float) -> Iterator[Measure]:
    """A bare Ray actor."""
    start_ray()
    actor = ray.remote(num_cpus=0)(Arrays).remote()

    def call(way: str) -> Callable[[Any], Any]:
        return lambda given: ray.get(getattr(actor, way).remote(given))

    yield measured({way: call(way) for way in WAYS}, for_s)
    ray.kill(actor)


def main() -> None:
    """Run the benchmark."""
    bench = Benchmark(__doc__, ROWS, rounds=4)
    for_s = 0.1 if bench.quick else 0.3
    contenders = [
        Contender("gworker", lambda: ours("direct", for_s)),
        Contender("gworker (ray lane)", lambda: ours("ray", for_s)),
        Contender("Ray actor", lambda: bare(for_s)),
    ]
    with app.run():
        bench.run(contenders, [(way, size) for size in SIZES for way in WAYS])
    bench.finish()


if __name__ == "__main__":
    main()
