"""Who may hand an input to this worker now: strict capacity, shared fairly between callers. No clock, no loop.

A worker holds at most `capacity` inputs. A caller with more to send says how many; one that is refused waits for a
place, too. A place that becomes free is offered to the waiting caller that has the fewest, and of equals to that which
has waited longest since it last had one. It is kept for that one for a moment. So a caller gets its share of the places
whatever the others send and however fast they answer, and all of them where it is alone.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict

from gworker.least import Least

# How long a free place is kept for the caller it was offered to: some round trips of a busy machine.
OFFER_S = 0.25


class Admission:
    """The places of one worker. Callers are named by any hashable key."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held = 0
        self._promised = 0
        # Places that a caller holds or is offered, and those it would like to have besides.
        self._has: dict[str, int] = {}
        self._waiting: dict[str, int] = {}
        self._refused: dict[str, int] = {}
        self._offers: OrderedDict[str, tuple[int, float]] = OrderedDict()  # the first to lapse is the first
        self._turns = itertools.count()
        self._since: dict[str, int] = {}
        self._line: Least[str] = Least(lambda caller: self._has.get(caller, 0), self._since.__getitem__)

    @property
    def free(self) -> int:
        """Places that no input holds, offered ones included."""
        return self.capacity - self.held

    @property
    def awaited(self) -> bool:
        """Whether any caller waits for a place, or has the offer of one."""
        return bool(self._waiting or self._offers)

    def concerns(self, caller: str) -> bool:
        """Whether it makes a difference that `caller` says it wants nothing: it waits, was refused or has an offer."""
        return caller in self._waiting or caller in self._refused or caller in self._offers

    def take(self, caller: str, now: float) -> bool:
        """Take a place for an input of `caller`; False when there is none for it."""
        self._forget_stale_offers(now)
        offer = self._offers.get(caller)
        if offer is not None:
            count, until = offer
            if count > 1:
                self._offers[caller] = (count - 1, until)
            else:
                del self._offers[caller]
            self._promised -= 1
            self.held += 1
            return True
        if self._unpromised <= 0:
            return False
        self._hold(caller)
        return True

    def take_unpromised(self, caller: str, now: float) -> bool:
        """Take a place for an input that is here already; False when none is free but those offered to callers."""
        self._forget_stale_offers(now)
        if self._unpromised <= 0:
            return False
        self._hold(caller)
        return True

    def _hold(self, caller: str) -> None:
        self.held += 1
        self._has[caller] = self._has.get(caller, 0) + 1

    def release(self, caller: str) -> None:
        """An input of `caller` has left; its place is free."""
        self.held -= 1
        self._has_less(caller, 1)

    def _has_less(self, caller: str, count: int) -> None:
        left = self._has[caller] - count
        if left:
            self._has[caller] = left
        else:
            del self._has[caller]
        if len(self._waiting) > 1 and caller in self._waiting:
            self._stand_in_line(caller)

    def _stand_in_line(self, caller: str) -> None:
        """Wait behind those that have as many, or from now on among those that have fewer."""
        self._since[caller] = next(self._turns)
        self._line.put(caller)

    def refuse(self, caller: str) -> None:
        """An input of `caller` was sent back: it is one more that waits, whatever the caller said; see `wait`."""
        self._refused[caller] = self._refused.get(caller, 0) + 1

    def wait(self, caller: str, count: int) -> None:
        """`caller` would send `count` more inputs, besides those that were refused since it last said so.

        Where there are neither it withdraws, offers included.
        """
        count += self._refused.pop(caller, 0)
        if count > 0:
            is_new = caller not in self._waiting
            if is_new and len(self._waiting) == 1:  # which, alone, had no need to stand where it belongs
                self._stand_in_line(next(iter(self._waiting)))
            self._waiting[caller] = count
            if is_new:
                self._stand_in_line(caller)
            return
        if self._waiting.pop(caller, None) is not None:
            self._leave_line(caller)
        if (offer := self._offers.pop(caller, None)) is not None:
            self._promised -= offer[0]
            self._has_less(caller, offer[0])

    def leave(self, caller: str) -> None:
        """`caller` is gone: it wants nothing any more, whatever was refused to it."""
        self._refused.pop(caller, None)
        self.wait(caller, 0)

    def _leave_line(self, caller: str) -> None:
        self._line.drop(caller)
        del self._since[caller]

    def room_for(self, caller: str, now: float) -> int:
        """How many inputs `caller` may send now and be taken in."""
        self._forget_stale_offers(now)
        offered = self._offers[caller][0] if caller in self._offers else 0
        others_wait = len(self._waiting) > (caller in self._waiting)
        return offered + (0 if others_wait else self._unpromised)

    def offer(self, now: float) -> list[str]:
        """Offer the free places to the callers that wait; returns who got some and should be told."""
        self._forget_stale_offers(now)
        told: dict[str, None] = {}
        while (spare := self._unpromised) > 0 and (caller := self._line.first()) is not None:
            wanted = self._waiting[caller]
            grant = min(wanted, spare) if len(self._waiting) == 1 else 1
            offered = self._offers.pop(caller, (0, 0.0))[0]
            self._offers[caller] = (offered + grant, now + OFFER_S)
            self._promised += grant
            self._has[caller] = self._has.get(caller, 0) + grant
            told[caller] = None
            if wanted > grant:
                self._waiting[caller] = wanted - grant
                self._stand_in_line(caller)
            else:
                del self._waiting[caller]
                self._leave_line(caller)
        return list(told)

    def next_expiry(self) -> float | None:
        """When the first unused offer lapses, so that its place can be offered again; None without offers."""
        for _, until in self._offers.values():
            return until
        return None

    @property
    def _unpromised(self) -> int:
        return self.capacity - self.held - self._promised

    def _forget_stale_offers(self, now: float) -> None:
        while self._offers:
            caller, (count, until) = next(iter(self._offers.items()))
            if until > now:
                return
            del self._offers[caller]
            self._promised -= count
            self._has_less(caller, count)
