"""How long to wait before the next try: at once, then doubling, spread by full jitter. Pure."""

from __future__ import annotations

import random

FIRST_S = 1.0
LONGEST_S = 60.0
# A worker that has been healthy this long leaves a clean record.
FORGET_S = 600.0


class Backoff:
    """Delays of one series of failures: 0, then uniformly from [0, 1 s], [0, 2 s], ... [0, 60 s].

    Full jitter after Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
    """

    def __init__(self, rng: random.Random | None = None, failures: int = 0) -> None:
        self._rng = rng or random.Random()
        self.failures = failures

    def next_delay_s(self, healthy_s: float = 0.0) -> float:
        """Count a failure that came after `healthy_s` seconds of health; how long to wait before the next try."""
        if healthy_s >= FORGET_S:
            self.failures = 0
        self.failures += 1
        if self.failures == 1:
            return 0.0
        ceiling = min(LONGEST_S, FIRST_S * 2.0 ** min(self.failures - 2, 16))
        return self._rng.uniform(0.0, ceiling)
