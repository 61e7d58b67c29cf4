"""A place in a pool that is to have a worker: what became of those it had, and when the next may start. Pure.

After Erlang's supervisor: each place may restart `INTENSITY` times within `PERIOD_S`; one that needs more is held at
the longest backoff, while the others go on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from gworker.control.backoff import LONGEST_S, Backoff

INTENSITY = 5
PERIOD_S = 300.0


@dataclass(frozen=True)
class SlotRecord:
    """A slot as it is written down; times are seconds before, or after, the moment of writing."""

    number: int
    worker_id: str | None
    restarts: int
    recent_ages_s: tuple[float, ...]
    backoff_failures: int
    wait_s: float
    reason: str


class Slot:
    """One place. `worker_id` names the worker that fills it, None while there is none."""

    def __init__(self, number: int, rng: random.Random | None = None) -> None:
        self.number = number
        self.worker_id: str | None = None
        self.restarts = 0
        self.start_allowed_at = float("-inf")
        self.reason = ""
        self._backoff = Backoff(rng)
        self._recent: list[float] = []

    def failed(self, reason: str, now: float, *, healthy_s: float = 0.0) -> None:
        """Its worker did not start, crashed or had to be killed, after `healthy_s` seconds of good service."""
        self.worker_id = None
        self.restarts += 1
        self.reason = reason
        self._recent.append(now)
        delay_s = self._backoff.next_delay_s(healthy_s)
        if self.held(now):
            delay_s = LONGEST_S
        self.start_allowed_at = max(self.start_allowed_at, now + delay_s)

    def held(self, now: float) -> bool:
        """Whether it has restarted so often lately that it is tried at the longest intervals only."""
        if len(self._recent) < INTENSITY:
            return False
        self._recent = [at for at in self._recent if now - at < PERIOD_S]
        return len(self._recent) >= INTENSITY

    def record(self, now: float) -> SlotRecord:
        """What a successor of the supervisor has to know."""
        return SlotRecord(
            number=self.number,
            worker_id=self.worker_id,
            restarts=self.restarts,
            recent_ages_s=tuple(now - at for at in self._recent),
            backoff_failures=self._backoff.failures,
            wait_s=max(0.0, self.start_allowed_at - now),
            reason=self.reason,
        )

    @classmethod
    def restored(cls, record: SlotRecord, elapsed_s: float, now: float, rng: random.Random | None = None) -> Slot:
        """The slot that was written down `elapsed_s` seconds ago."""
        slot = cls(record.number, rng)
        slot.worker_id = record.worker_id
        slot.restarts = record.restarts
        slot.reason = record.reason
        slot._backoff.failures = record.backoff_failures
        slot._recent = [now - elapsed_s - age_s for age_s in record.recent_ages_s]
        slot.start_allowed_at = now + record.wait_s - elapsed_s
        return slot
