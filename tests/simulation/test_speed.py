"""DESIGN §7: a control tick of 1,000 workers takes 10 ms of CPU time at most, and the cost grows linearly or better."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.control import serving_ms, starting_ms, troubled_ms

TICKS = 40


@pytest.mark.parametrize("tick_ms", [serving_ms, starting_ms, troubled_ms])
def test_a_tick_of_a_thousand_workers_is_cheap_and_grows_no_faster_than_the_pool(
    tick_ms: Callable[[int, int], float],
) -> None:
    figures = {workers: tick_ms(workers, TICKS) for workers in (10, 100, 1000)}
    assert figures[1000] <= 10.0, figures
    assert figures[1000] <= 15 * figures[100], figures
