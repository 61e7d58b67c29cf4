"""How long to wait before the next try: at once, then doubling, spread by full jitter. Pure."""

from __future__ import annotations

import random

FIRST_S = 1.0
LONGEST_S = 60.0
# A worker that has been healthy this long starts again with a clean record.
FORGET_S = 600.0


class Backoff:
    """Delays of one series of failures: 0, then uniformly from [0, 1 s], [0, 2 s], ... [0, 60 s].

    Full jitter after Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._failures = 0
        self._last: float | None = None

    @property
    def failures(self) -> int:
        """Failures in a row."""
        return self._failures

    def next_delay_s(self, now: float) -> float:
        """Count a failure at `now`; how long to wait before the next try."""
        if self._last is not None and now - self._last >= FORGET_S:
            self._failures = 0
        self._last = now
        self._failures += 1
        if self._failures == 1:
            return 0.0
        ceiling = min(LONGEST_S, FIRST_S * 2.0 ** min(self._failures - 2, 16))
        return self._rng.uniform(0.0, ceiling)
