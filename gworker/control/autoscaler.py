"""How many workers a pool should have. Pure: demand and time in, a number out.

desired = ceil(demand / target_inputs) + buffer while there is demand, within [min_workers, max_workers]. Upwards at
once from zero, else when the need has lasted `SUSTAIN_S`; downwards after `window_s` without need.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

# A need that lasts this long is more than a ripple.
SUSTAIN_S = 1.0


@dataclass(frozen=True)
class ScalePolicy:
    """The numbers a pool is scaled by; see `App.cls`.

    A pool without `floor_when_idle` has its floor only while there is demand: one of many sets of parameter values.
    """

    min_workers: int
    max_workers: int
    buffer_workers: int
    target_inputs: int
    window_s: float
    floor_when_idle: bool = True


class Autoscaler:
    """The wanted size of one pool, remembered from tick to tick."""

    def __init__(self, policy: ScalePolicy) -> None:
        self._policy = policy
        self._needs: deque[tuple[float, int]] = deque()
        self.desired = policy.min_workers if policy.floor_when_idle else 0

    def begin_at(self, size: int) -> None:
        """Go on from a size that something else decided; what was needed before counts no more."""
        self._needs.clear()
        self.desired = size

    def rescale(self, policy: ScalePolicy) -> None:
        """Go by other numbers from now on, at once."""
        self._policy = policy
        self._needs.clear()  # they were counted within the old bounds
        floor = policy.min_workers if policy.floor_when_idle or self.desired else 0
        self.desired = min(max(self.desired, floor), policy.max_workers)

    def need(self, demand: int) -> int:
        """Workers for `demand` inputs, were it to stay."""
        policy = self._policy
        wanted = math.ceil(demand / policy.target_inputs)
        if demand > 0:
            wanted += policy.buffer_workers
        elif not policy.floor_when_idle:
            return 0
        return min(max(wanted, policy.min_workers), policy.max_workers)

    def tick(self, demand: int, now: float, *, at_least: int = 0) -> int:
        """The wanted number of workers now that `demand` inputs are queued or running; so many are needed anyway."""
        need = max(self.need(demand), at_least)
        if not self._needs or self._needs[-1][1] != need:
            self._needs.append((now, need))  # a need lasts until the next one
        horizon = now - max(self._policy.window_s, SUSTAIN_S)
        while len(self._needs) > 1 and self._needs[1][0] <= horizon:
            self._needs.popleft()
        if need > self.desired:
            if self.desired == 0:
                self.desired = need
            elif self._needs[0][0] <= now - SUSTAIN_S:
                self.desired = max(self.desired, self._lowest_since(now - SUSTAIN_S))
        elif need < self.desired and self._needs[0][0] <= now - self._policy.window_s:
            # A spike in the window keeps workers, it does not add any.
            self.desired = min(self.desired, max(n for _, n in self._needs))
        return self.desired

    def _lowest_since(self, since: float) -> int:
        # The need at `since` is that of the last change before it.
        lowest = self._needs[-1][1]
        for at, need in reversed(self._needs):
            lowest = min(lowest, need)
            if at <= since:
                break
        return lowest
