"""Time as gworker uses it: a monotonic clock, and the time that is left until a deadline.

A deadline never travels as a wall-clock instant: the sender says how many seconds are left, the receiver
anchors them to its own monotonic clock.
"""

from __future__ import annotations

import time

now = time.monotonic

# Seconds since the epoch, as everybody's clock shows them. It may jump: no limit is ever measured with it.
time_of_day = time.time


def deadline_after(left_s: float | None) -> float | None:
    """The monotonic instant `left_s` seconds from now; None where there is no limit."""
    return None if left_s is None else now() + left_s


def left_until(deadline: float | None) -> float | None:
    """Seconds from now until `deadline`, never negative; None where there is no limit."""
    return None if deadline is None else max(0.0, deadline - now())


def earliest(*deadlines: float | None) -> float | None:
    """The earliest of the deadlines that are set; None where none is."""
    set_ones = [d for d in deadlines if d is not None]
    return min(set_ones) if set_ones else None
