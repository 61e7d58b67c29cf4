"""What the supervisor and the autoscaler did, and why: a bounded log that can be followed."""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# How many events an app remembers.
REMEMBERED = 1000


@dataclass(frozen=True)
class Event:
    """One thing that was done: when, to which pool and worker (empty where the whole pool is meant), and why.

    `number` counts the events of an app from 1; `action` is one word or two, such as "started" or "scaled up".
    """

    number: int
    time: dt.datetime
    pool: str
    worker: str
    action: str
    reason: str = ""

    def __str__(self) -> str:
        subject = self.worker or self.pool
        why = f": {self.reason}" if self.reason else ""
        return f"{self.time.astimezone():%H:%M:%S} {subject} {self.action}{why}"


def _utc() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)


class EventLog:
    """The latest events of an app. `now` gives the time of day, for people; nothing is decided by it."""

    def __init__(self, remembered: int = REMEMBERED, now: Callable[[], dt.datetime] = _utc) -> None:
        self._events: deque[Event] = deque(maxlen=remembered)
        self._now = now
        self.last = 0

    def add(self, pool: str, worker: str, action: str, reason: str) -> Event:
        """Remember one more event; the oldest is forgotten when there are too many."""
        self.last += 1
        event = Event(self.last, self._now(), pool, worker, action, reason)
        self._events.append(event)
        return event

    def restore(self, events: Iterable[Event]) -> None:
        """Go on from the events that an earlier log remembered."""
        self._events.extend(events)
        self.last = max(self.last, self._events[-1].number if self._events else 0)

    def after(self, number: int) -> tuple[Event, ...]:
        """The events that are remembered and came after event `number`, oldest first."""
        if number >= self.last:
            return ()
        return tuple(event for event in self._events if event.number > number)
