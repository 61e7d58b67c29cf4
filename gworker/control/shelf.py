"""Decides who loads which weights on which node, and how long they are kept. Pure: see `lender.py` for its shell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gworker.router.membership import PoolKey
from gworker.weights.claims import Answer, Claim, Load, Private, Shared, Wait, WeightsName

# For how long the others of a node do not even try to share what one of them could not.
PRIVATE_S = 60.0


@dataclass
class _Place:
    """Weights on one node.

    `loader` is the claim of who loads them now. `users` are the workers that were given them, `pools` those that have
    asked. `proven`: a worker has come up with them.
    """

    loader: Claim | None = None
    stored: Shared | None = None
    proven: bool = False
    private_until: float = 0.0
    users: set[str] = field(default_factory=set)
    pools: set[PoolKey] = field(default_factory=set)

    def drop(self) -> None:
        """What is stored is not handed out any more; who has it keeps it."""
        self.stored, self.proven = None, False
        self.users.clear()


class Shelf:
    """The weights of one app, by node and name."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, WeightsName], _Place] = {}
        self._last_number = 0

    def claim(self, claim: Claim, pool: PoolKey, now: float, lost: int | None = None) -> Answer:
        """What a worker of `pool` is told that asks for weights. `lost` is the number of those it could not read."""
        place = self._places.setdefault((claim.node, claim.name), _Place())
        place.pools.add(pool)
        if place.stored is not None and place.stored.number == lost:
            place.drop()
        if place.stored is not None:
            place.users.add(claim.worker)
            return place.stored
        if place.loader == claim:  # its answer was lost on the way
            return Load()
        if place.loader is not None:
            return Wait()
        if now < place.private_until:
            return Private()
        place.loader = claim
        return Load()

    def store(self, claim: Claim, pool: PoolKey, reference: Any) -> Shared:
        """The worker has loaded the weights; what it is to use from now on.

        Not its own where another one was faster, which the books of a controller that was restarted allow.
        """
        place = self._places.setdefault((claim.node, claim.name), _Place())
        place.pools.add(pool)
        place.users.add(claim.worker)
        if place.loader == claim:
            place.loader = None
        if place.stored is None:
            self._last_number += 1
            place.stored = Shared(self._last_number, reference)
        return place.stored

    def release(self, claim: Claim, now: float, *, private: bool) -> None:
        """The worker has nothing to offer: loading failed, or, `private`, what it has loaded cannot be shared."""
        place = self._places.get((claim.node, claim.name))
        if place is None or place.loader != claim:
            return
        place.loader = None
        if private:
            place.private_until = now + PRIVATE_S

    def gone(self, worker: str, has_come_up: Callable[[str], bool]) -> None:
        """A worker has ended. `has_come_up` tells whether a worker, this one included, ever finished its on_enter.

        What no worker has come up with yet may be why this one has not: it is not handed out again.
        """
        for place in self._places.values():
            if place.loader is not None and place.loader.worker == worker:
                place.loader = None
            if worker not in place.users:
                continue
            place.proven = place.proven or any(has_come_up(user) for user in place.users)
            place.users.discard(worker)
            if not place.proven:
                place.drop()

    def make_room(self, node: str) -> bool:
        """Drop what no worker of a node uses; whether there was something."""
        idle = [place for (at, _), place in self._places.items() if at == node and place.stored and not place.users]
        for place in idle:
            place.drop()
        return bool(idle)

    def forget(self, pool: PoolKey) -> None:
        """A pool is no more: weights that no other one has asked for go with it."""
        for where, place in list(self._places.items()):
            place.pools.discard(pool)
            if not place.pools:
                del self._places[where]

    def clear(self) -> None:
        """Nothing is needed any more."""
        self._places.clear()
