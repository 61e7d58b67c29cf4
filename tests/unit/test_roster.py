"""Routers are told what has changed: whatever is lost, comes twice or late, they end with what the controller knows."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gworker.control import viewlog
from gworker.control.viewlog import ViewLog
from gworker.router.membership import PoolChange, PoolState, PoolView, WorkerView
from gworker.router.roster import NOTHING_KNOWN, Roster

NAMES = "abcdef"

operations = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["join", "leave", "turn", "renew"]), st.sampled_from(NAMES)),
        st.tuples(st.just("say"), st.sampled_from(["", "GPUs", "CPUs"])),
        st.tuples(st.sampled_from(["tell", "lose", "late", "again", "restart"]), st.just("")),
    ),
    max_size=80,
)


class Pool:
    """The controller's side: workers that come, go and turn, and the log of their view."""

    def __init__(self) -> None:
        self.epoch = 0
        self.workers: dict[str, WorkerView] = {}
        self.waiting_for = ""
        self.restart()

    def restart(self) -> None:
        self.epoch += 1
        self.log = ViewLog(f"epoch-{self.epoch}")
        self.show()

    def show(self) -> bool:
        return self.log.record(PoolView(0, PoolState.READY, tuple(self.workers.values()), self.waiting_for))

    def change(self, what: str, about: str) -> None:
        worker = self.workers.get(about)
        if what == "say":
            self.waiting_for = about
        elif what == "join":
            self.workers.setdefault(about, WorkerView(about, object(), 4, True))
        elif what == "leave":
            self.workers.pop(about, None)
        elif worker is not None:
            renewed = {"actor": object()} if what == "renew" else {"ready": not worker.ready}
            self.workers[about] = replace(worker, **renewed)  # type: ignore[arg-type]
        self.show()


@pytest.mark.parametrize("kept", [1, 5, 1000])
@settings(max_examples=100)
@given(operations)
def test_whatever_is_lost_or_late_a_router_ends_with_the_view(kept: int, operations: list[tuple[str, str]]) -> None:
    before, viewlog.KEPT = viewlog.KEPT, kept
    try:
        pool, roster = Pool(), Roster()
        acted_on: dict[str, WorkerView] = {}
        told: list[PoolView] = []

        def take(news: PoolView) -> None:
            differences = roster.take(news)
            if differences is not None:
                acted_on.update((worker.id, worker) for worker in differences.changed)
                for worker_id in differences.left:
                    del acted_on[worker_id]
            assert acted_on == roster.workers

        for what, about in operations:
            if what == "restart":
                pool.restart()
            elif what == "tell":
                told.append(pool.log.since(roster.known))
                take(told[-1])
            elif what == "lose":
                told.append(pool.log.since(roster.known))
            elif what in {"late", "again"}:
                if told:
                    take(told[-1] if what == "again" else told[len(told) // 2])
            else:
                pool.change(what, about)
        for _ in range(2):  # what does not follow is asked for as a whole
            take(pool.log.since(roster.known))
        assert roster.workers == pool.workers
        assert roster.known == (pool.log.view.epoch, pool.log.view.version)
        assert roster.view is not None and roster.view.says_the_same_as(pool.log.view)
    finally:
        viewlog.KEPT = before


def test_a_router_is_told_the_whole_at_first_and_then_what_has_changed() -> None:
    pool, roster = Pool(), Roster()
    for name in NAMES:
        pool.change("join", name)
    first = pool.log.since(roster.known)
    assert not isinstance(first, PoolChange) and len(first.workers) == len(NAMES)
    roster.take(first)
    pool.change("turn", "b")
    pool.change("leave", "c")
    pool.change("join", "x")
    change: Any = pool.log.since(roster.known)
    assert isinstance(change, PoolChange)
    assert [w.id for w in change.workers] == ["x"]
    assert change.turned == (("b", False),)
    assert change.left == ("c",)
    differences = roster.take(change)
    assert differences is not None
    assert [(w.id, w.ready) for w in differences.changed] == [("x", True), ("b", False)]
    assert differences.left == ("c",)


def test_where_nothing_has_changed_nothing_is_told() -> None:
    pool, roster = Pool(), Roster()
    pool.change("join", "a")
    roster.take(pool.log.since(None))
    assert not pool.show()
    change: Any = pool.log.since(roster.known)
    assert (change.workers, change.turned, change.left) == ((), (), ())
    assert roster.take(change) == ((), ())


def test_changes_that_do_not_follow_are_not_acted_on_and_the_whole_is_asked_for() -> None:
    pool, roster = Pool(), Roster()
    roster.take(pool.log.since(None))
    pool.change("join", "a")
    known = (pool.log.view.epoch, pool.log.view.version)
    pool.change("join", "b")
    assert roster.take(pool.log.since(known)) is None
    assert roster.known == NOTHING_KNOWN and not roster.workers
    whole = pool.log.since(roster.known)
    assert not isinstance(whole, PoolChange)
    roster.take(whole)
    assert set(roster.workers) == {"a", "b"}


def test_a_controller_that_was_restarted_and_a_pool_that_was_made_anew_tell_the_whole() -> None:
    pool, roster = Pool(), Roster()
    for name in NAMES:
        pool.change("join", name)
    roster.take(pool.log.since(None))
    pool.workers.pop("a")
    pool.restart()
    whole = pool.log.since(roster.known)
    assert not isinstance(whole, PoolChange)
    differences = roster.take(whole)
    assert differences is not None and differences.left == ("a",)


def test_a_pool_that_is_not_kept_any_more_is_not_known_any_more() -> None:
    pool, roster = Pool(), Roster()
    pool.change("join", "a")
    roster.take(pool.log.since(None))
    gone = PoolView(0, PoolState.READY, (), epoch=pool.log.view.epoch, forgotten=True)
    differences = roster.take(gone)
    assert differences is not None and differences.left == ("a",)
    assert roster.known is None


def test_what_one_more_worker_costs_on_the_wire_does_not_grow_with_the_others() -> None:
    def nbytes(count: int) -> int:
        pool, roster = Pool(), Roster()
        pool.workers = {str(n): WorkerView(str(n), b"x" * 300, 4, True) for n in range(count)}
        pool.show()
        roster.take(pool.log.since(None))
        pool.workers["new"] = WorkerView("new", b"x" * 300, 4, True)
        pool.show()
        return len(pickle.dumps(pool.log.since(roster.known)))

    assert nbytes(1000) < nbytes(10) + 20
