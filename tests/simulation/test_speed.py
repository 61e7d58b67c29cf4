"""DESIGN §7: a control tick of 1,000 workers takes 10 ms of CPU time at most, and the cost grows linearly or better.

CPU time, too, depends on the machine and on what else runs there. So the bound is counted in rounds of a plain loop
that is timed in turn with the ticks, and the best of each is taken: what disturbs a tick only ever makes it dearer.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from benchmarks.control import serving_ms, starting_ms, troubled_ms

TICKS = 15
ROUNDS = 5
# How many such loops take 10 ms on the two cores of the figures in DESIGN §7.
LOOPS = 130


class Thing:
    """Something to look at."""

    def __init__(self, number: int) -> None:
        self.name = f"thing-{number}"
        self.number = number
        self.odd = bool(number % 2)


THINGS = {f"thing-{number}": Thing(number) for number in range(1000)}


def loop_ms() -> float:
    """CPU time of a loop over a thousand objects that does what ticks do: look things up, compare, count."""
    began = time.process_time()
    for _ in range(10):
        counts: dict[str, int] = {}
        for thing in THINGS.values():
            if thing.odd and THINGS.get(thing.name) is thing:
                counts[thing.name] = counts.get(thing.name, 0) + thing.number
    return (time.process_time() - began) * 100


@pytest.mark.parametrize("tick_ms", [serving_ms, starting_ms, troubled_ms])
def test_a_tick_of_a_thousand_workers_is_cheap_and_grows_no_faster_than_the_pool(
    tick_ms: Callable[[int, int], float],
) -> None:
    rounds = [(loop_ms(), tick_ms(100, TICKS), tick_ms(1000, TICKS)) for _ in range(ROUNDS)]
    loop, hundred, thousand = map(min, zip(*rounds, strict=True))
    assert thousand <= LOOPS * loop, rounds
    assert thousand <= 15 * hundred, rounds
