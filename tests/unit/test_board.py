"""What routers are told of the pools behind a key."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from gworker.control.board import WATCH_S, Board
from gworker.router.membership import PoolChange, PoolKey, PoolState, PoolView, WorkerView
from gworker.router.roster import Roster

KEY = PoolKey("Model")


def pool_of(*workers: str) -> Any:
    return SimpleNamespace(view=PoolView(1, PoolState.READY, tuple(WorkerView(w, None, 1, True) for w in workers)))


async def test_a_router_hears_of_changes_and_after_a_while_that_there_are_none(timeline: Any) -> None:
    board, roster = Board("me"), Roster()
    pool = pool_of("a")
    board.show(KEY, pool)
    roster.take(await board.next_view("router", KEY, roster.known))
    pool.view = pool_of("a", "b").view
    route = board.route(KEY)
    assert route is not None
    route.refresh()
    change = await board.next_view("router", KEY, roster.known)
    assert isinstance(change, PoolChange) and [w.id for w in change.workers] == ["b"]
    roster.take(change)
    asking = asyncio.ensure_future(board.next_view("router", KEY, roster.known))
    await asyncio.sleep(0)  # asking says that it acts on what it knows
    await route.seen_by_all()
    await timeline.advance(WATCH_S + 0.1)
    nothing = await asking
    assert isinstance(nothing, PoolChange) and nothing.since == nothing.version and not nothing.workers


async def test_a_pool_that_is_made_anew_is_not_taken_for_the_one_before(timeline: Any) -> None:
    # Both have counted to the same version, and the router has not been told that the first was forgotten.
    board, roster = Board("me"), Roster()
    board.show(KEY, pool_of("old"))
    roster.take(await board.next_view("router", KEY, roster.known))
    board.forget(KEY)
    board.show(KEY, pool_of("new"))
    told = await board.next_view("router", KEY, roster.known)
    differences = roster.take(told)
    assert differences is not None and differences.left == ("old",)
    assert set(roster.workers) == {"new"}
