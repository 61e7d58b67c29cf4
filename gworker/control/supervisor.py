"""What follows from a failed start or a crash: when to try again, and when to say that there is no hope. Pure.

The complete supervision (intensity windows, kill budgets, panic routing, passive health) grows here.
"""

from __future__ import annotations

import random

from gworker.control.backoff import Backoff

# A pool without hope is tried again this often.
RETRY_FAILED_S = 60.0


class Supervisor:
    """The record of starts and losses of one pool."""

    def __init__(self, floor: int, rng: random.Random | None = None) -> None:
        self._patience = max(3, min(3 * floor, 20))
        self._backoff = Backoff(rng)
        self._failed_starts = 0
        self._ever_started = False
        self.restarts = 0
        self.start_allowed_at = float("-inf")
        self.last_error: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the first starts all failed, so that waiting callers are told instead of kept."""
        return not self._ever_started and self._failed_starts >= self._patience

    def start_succeeded(self) -> None:
        """A worker is ready."""
        self._ever_started = True
        self._failed_starts = 0
        self.last_error = None

    def start_failed(self, error: str, now: float) -> None:
        """A start failed; `error` is the traceback."""
        self._failed_starts += 1
        self.last_error = error
        delay_s = RETRY_FAILED_S if self.failed else self._backoff.next_delay_s(now)
        self.start_allowed_at = max(self.start_allowed_at, now + delay_s)

    def lost(self, now: float) -> None:
        """A worker that served has crashed or was killed; it is replaced at once, then ever more slowly."""
        self.restarts += 1
        self.start_allowed_at = max(self.start_allowed_at, now + self._backoff.next_delay_s(now))
