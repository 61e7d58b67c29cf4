"""Who may hand an input to this worker now: strict capacity, shared fairly between callers. No clock, no loop.

A worker holds at most `capacity` inputs. A caller with more to send says how many it is waiting to send; when a place
becomes free it is offered to the waiting callers in turn, and kept for the one it was offered to for a moment. So a
caller that answers faster does not starve another.
"""

from __future__ import annotations

from collections import OrderedDict

# How long a free place is kept for the caller it was offered to: some round trips of a busy machine.
OFFER_S = 0.25


class Admission:
    """The places of one worker. Callers are named by any hashable key."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held = 0
        self._waiting: OrderedDict[str, int] = OrderedDict()
        self._offers: dict[str, tuple[int, float]] = {}

    @property
    def free(self) -> int:
        """Places that no input holds, offered ones included."""
        return self.capacity - self.held

    def take(self, caller: str, now: float) -> bool:
        """Take a place for an input of `caller`; False when there is none for it."""
        self._forget_stale_offers(now)
        count, until = self._offers.get(caller, (0, 0.0))
        if count == 0 and self._unpromised() <= 0:
            return False
        if self.free <= 0:
            return False
        if count > 1:
            self._offers[caller] = (count - 1, until)
        elif count == 1:
            del self._offers[caller]
        self.held += 1
        return True

    def take_unpromised(self, now: float) -> bool:
        """Take a place for an input that is here already; False when none is free but those offered to callers."""
        self._forget_stale_offers(now)
        if self._unpromised() <= 0:
            return False
        self.held += 1
        return True

    def release(self) -> None:
        """An input has left; its place is free."""
        self.held -= 1

    def wait(self, caller: str, count: int) -> None:
        """`caller` would send `count` more inputs; 0 withdraws, offers included."""
        if count <= 0:
            self._waiting.pop(caller, None)
            self._offers.pop(caller, None)
        else:
            self._waiting[caller] = count

    def room_for(self, caller: str, now: float) -> int:
        """How many inputs `caller` may send now and be taken in."""
        self._forget_stale_offers(now)
        offered = self._offers.get(caller, (0, 0.0))[0]
        others_wait = any(name != caller for name in self._waiting)
        return offered + (0 if others_wait else max(0, self._unpromised()))

    def offer(self, now: float) -> list[str]:
        """Offer the free places to the callers that wait, in turn; returns who got one and should be told."""
        self._forget_stale_offers(now)
        told: dict[str, None] = {}
        while self._waiting and (spare := self._unpromised()) > 0:
            caller, wanted = self._waiting.popitem(last=False)
            grant = min(wanted, spare) if not self._waiting else 1
            offered = self._offers.get(caller, (0, 0.0))[0]
            self._offers[caller] = (offered + grant, now + OFFER_S)
            told[caller] = None
            if wanted > grant:
                self._waiting[caller] = wanted - grant
        return list(told)

    def next_expiry(self) -> float | None:
        """When the first unused offer lapses, so that its place can be offered again; None without offers."""
        return min((until for _, until in self._offers.values()), default=None)

    def _unpromised(self) -> int:
        offered = sum(count for count, _ in self._offers.values()) if self._offers else 0
        return self.capacity - self.held - offered

    def _forget_stale_offers(self, now: float) -> None:
        if self._offers:
            for caller in [c for c, (_, until) in self._offers.items() if until <= now]:
                del self._offers[caller]
