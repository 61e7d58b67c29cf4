"""Hands the weights that one worker of a node has loaded to the others there: the shell round `Shelf`.

1. A worker claims weights. It is told to load them, or handed them, or its claim waits while another one loads.
2. Who has loaded offers them: the lender calls `hand_over_weights` on it, and what that returns, in the object store of
   the worker's node, belongs to the controller from then on. It never comes here.
3. Who could not load, or not share, releases its claim, and one that waits takes over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from gworker import clock
from gworker.control.prober import result_of
from gworker.control.shelf import Shelf
from gworker.router.membership import PoolKey
from gworker.weights.claims import Answer, Claim, Private, Wait

log = logging.getLogger("gworker.controller")

# A claim is answered after this long even when it has to wait on: the next one shows that its worker lives.
CLAIM_S = 10.0


class Borrower(NamedTuple):
    """A worker, as far as weights go."""

    actor: Any
    pool: PoolKey


class Lender:
    """The weights of one app. `find` gives a worker that is there, None for one that has gone."""

    def __init__(self, find: Callable[[str], Borrower | None]) -> None:
        self.shelf = Shelf()
        self._find = find
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Something has become of weights, or of a worker: claims that wait are looked at again."""
        self._changed.set()

    async def claim(self, claim: Claim, lost: int | None) -> Answer:
        """See `Shelf.claim`; `Wait` comes after a while only."""
        end = clock.now() + CLAIM_S
        while (borrower := self._find(claim.worker)) is not None:
            answer = self.shelf.claim(claim, borrower.pool, clock.now(), lost)
            left_s = end - clock.now()
            if not isinstance(answer, Wait) or left_s <= 0:
                return answer
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left_s)
        return Private()  # nobody is there to hear it

    async def offer(self, claim: Claim) -> Answer:
        """Take over what a worker has loaded; what it is to use from now on."""
        borrower = self._find(claim.worker)
        if borrower is None:
            return Private()
        try:
            hand_over = borrower.actor.hand_over_weights.options(num_returns=2)
            # The second result comes with the first, which is not to be fetched.
            reference, done = hand_over.remote(claim.name)
            await result_of(done)
        except Exception as error:
            log.warning("the weights %s of %s could not be taken over: %s", claim.name, claim.worker, error)
            self.release(claim, private=True)
            return Private()
        if self._find(claim.worker) is None:  # it has died since, and its claim is another's
            return Private()
        answer = self.shelf.store(claim, borrower.pool, reference)
        self.changed()
        return answer

    def release(self, claim: Claim, *, private: bool) -> None:
        """See `Shelf.release`."""
        self.shelf.release(claim, clock.now(), private=private)
        self.changed()
