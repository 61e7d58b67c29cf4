"""When the calls of an open loop are due: at random or evenly, and the same every time.

Calls of many users who know nothing of each other come as a Poisson process: the times between them are exponential,
so they bunch. Evenly spaced ones are kinder to a server than users are.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from gworker.cli.benchmark.plan import Arrival, Open


def arrivals(load: Open) -> Iterator[float]:
    """Seconds from the start, ascending, without end.

    >>> list(itertools.islice(arrivals(Open(4.0, Arrival.CONSTANT)), 5))
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if load.arrival is Arrival.CONSTANT:
        return (number / load.rate_per_s for number in itertools.count())
    draw = random.Random(load.seed)
    return itertools.accumulate(draw.expovariate(load.rate_per_s) for _ in itertools.count())
