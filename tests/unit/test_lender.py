"""The shell round the shelf: claims that wait, workers that hand over or die while they do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gworker.control.lender import CLAIM_S, Borrower, Lender
from gworker.router.membership import PoolKey
from gworker.weights.claims import Claim, Load, Private, Shared, Wait, WeightsName

POOL = PoolKey("Model")
NAME = WeightsName("weights", None, POOL)


class Worker:
    """A worker's actor; `fails` is what ends its handing over, which waits for `ready`."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.ready.set()
        self.fails: Exception | None = None

    @property
    def hand_over_weights(self) -> Worker:
        return self

    def options(self, num_returns: int) -> Worker:
        assert num_returns == 2
        return self

    def remote(self, name: WeightsName) -> tuple[str, asyncio.Future[bool]]:
        return f"reference to {name}", asyncio.ensure_future(self._done())

    async def _done(self) -> bool:
        await self.ready.wait()
        if self.fails is not None:
            raise self.fails
        return True


@pytest.fixture
def workers() -> dict[str, Worker]:
    return {"a": Worker(), "b": Worker()}


@pytest.fixture
def lender(workers: dict[str, Worker]) -> Lender:
    return Lender(lambda worker: Borrower(workers[worker], POOL) if worker in workers else None)


def by(worker: str) -> Claim:
    return Claim(worker, 1, "node", NAME)


async def test_a_claim_waits_until_what_another_worker_loads_is_there(timeline: Any, lender: Lender) -> None:
    assert await lender.claim(by("a"), None) == Load()
    waits = asyncio.ensure_future(lender.claim(by("b"), None))
    await timeline.advance(CLAIM_S / 2)
    assert not waits.done()
    stored = await lender.offer(by("a"))
    assert stored == Shared(1, "reference to weights")
    assert await waits == stored


async def test_a_claim_is_answered_now_and_then_so_that_its_worker_shows_that_it_lives(
    timeline: Any, lender: Lender
) -> None:
    await lender.claim(by("a"), None)
    waits = asyncio.ensure_future(lender.claim(by("b"), None))
    await timeline.advance(CLAIM_S)
    assert isinstance(waits.result(), Wait)


async def test_who_has_died_while_waiting_is_not_chosen_to_load(
    timeline: Any, lender: Lender, workers: dict[str, Worker]
) -> None:
    await lender.claim(by("a"), None)
    waits = asyncio.ensure_future(lender.claim(by("b"), None))
    await timeline.settle()
    del workers["b"]
    lender.release(by("a"), private=False)
    await timeline.settle()
    assert isinstance(waits.result(), Private)
    assert isinstance(await lender.claim(by("a"), None), Load)


async def test_a_worker_that_dies_while_it_hands_over_makes_way(
    timeline: Any, lender: Lender, workers: dict[str, Worker]
) -> None:
    workers["a"].ready.clear()
    workers["a"].fails = ConnectionError("the process has died")
    await lender.claim(by("a"), None)
    offers = asyncio.ensure_future(lender.offer(by("a")))
    waits = asyncio.ensure_future(lender.claim(by("b"), None))
    await timeline.settle()
    lender.shelf.gone("a", lambda worker: False)
    lender.changed()
    await timeline.settle()
    assert isinstance(waits.result(), Load), "at once, and not when the call to the dead one has failed"
    workers["a"].ready.set()
    assert isinstance(await offers, Private)
    assert isinstance(await lender.offer(by("b")), Shared)


async def test_where_handing_over_fails_the_others_load_for_themselves(
    timeline: Any, lender: Lender, workers: dict[str, Worker]
) -> None:
    workers["a"].fails = MemoryError("the store is full")
    await lender.claim(by("a"), None)
    assert isinstance(await lender.offer(by("a")), Private)
    assert isinstance(await lender.claim(by("b"), None), Private)
