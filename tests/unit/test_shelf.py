"""Shared weights: who loads, who waits, who is handed what; with a clock of the test's own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gworker.control.shelf import PRIVATE_S, Shelf
from gworker.router.membership import PoolKey
from gworker.weights.claims import Claim, Load, Private, Shared, Wait, WeightsName

POOL = PoolKey("Model")
NAME = WeightsName("weights", None, POOL)


def by(worker: str, *, node: str = "node", name: WeightsName = NAME, attempt: int = 1) -> Claim:
    return Claim(worker, attempt, node, name)


def nobody(worker: str) -> bool:
    return False


def everybody(worker: str) -> bool:
    return True


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def loaded(shelf: Shelf, worker: str = "a", **where: Any) -> Shared:
    """Weights that a worker has loaded."""
    claim = by(worker, **where)
    assert shelf.claim(claim, claim.name.pool or POOL, 0.0) == Load()
    return shelf.store(claim, claim.name.pool or POOL, f"loaded by {worker}")


def test_the_first_loads_the_others_wait_and_then_get_the_same(shelf: Shelf) -> None:
    assert isinstance(shelf.claim(by("a"), POOL, 0.0), Load)
    assert isinstance(shelf.claim(by("b"), POOL, 0.0), Wait)
    assert isinstance(shelf.claim(by("a", attempt=2), POOL, 0.0), Wait), "another thread of the worker that loads"
    stored = shelf.store(by("a"), POOL, "reference")
    assert stored.reference == "reference"
    assert shelf.claim(by("b"), POOL, 1.0) == shelf.claim(by("c"), POOL, 2.0) == stored


def test_a_claim_that_is_made_again_because_its_answer_was_lost_does_not_wait_for_itself(shelf: Shelf) -> None:
    assert isinstance(shelf.claim(by("a"), POOL, 0.0), Load)
    assert isinstance(shelf.claim(by("a"), POOL, 1.0), Load)


def test_each_node_loads_for_itself(shelf: Shelf) -> None:
    loaded(shelf, node="one")
    assert isinstance(shelf.claim(by("b", node="two"), POOL, 0.0), Load)


def test_a_new_version_of_the_class_and_another_key_load_for_themselves(shelf: Shelf) -> None:
    loaded(shelf)
    newer = PoolKey("Model", generation=2)
    assert isinstance(shelf.claim(by("b", name=WeightsName("weights", None, newer)), newer, 0.0), Load)
    assert isinstance(shelf.claim(by("b", name=WeightsName("other", None, POOL)), POOL, 0.0), Load)


@pytest.mark.parametrize("end", ["it dies", "load raises"])
def test_where_a_worker_does_not_finish_loading_the_next_one_does(shelf: Shelf, end: str) -> None:
    shelf.claim(by("a"), POOL, 0.0)
    assert isinstance(shelf.claim(by("b"), POOL, 0.0), Wait)
    if end == "it dies":
        shelf.gone("a", nobody)
    else:
        shelf.release(by("a"), 0.0, private=False)
    assert isinstance(shelf.claim(by("b"), POOL, 0.0), Load)
    assert isinstance(shelf.claim(by("c"), POOL, 0.0), Wait)


def test_what_cannot_be_shared_is_not_tried_again_for_a_while(shelf: Shelf) -> None:
    shelf.claim(by("a"), POOL, 10.0)
    shelf.release(by("a"), 10.0, private=True)
    assert isinstance(shelf.claim(by("b"), POOL, 10.0), Private)
    assert isinstance(shelf.claim(by("c"), POOL, 9.9 + PRIVATE_S), Private)
    assert isinstance(shelf.claim(by("d"), POOL, 10.0 + PRIVATE_S), Load)


def test_a_release_by_somebody_who_does_not_load_any_more_changes_nothing(shelf: Shelf) -> None:
    shelf.claim(by("a"), POOL, 0.0)
    shelf.gone("a", nobody)
    shelf.claim(by("b"), POOL, 0.0)
    shelf.release(by("a"), 0.0, private=True)
    assert isinstance(shelf.claim(by("c"), POOL, 0.0), Wait)


def test_weights_outlive_the_worker_that_loaded_them(shelf: Shelf) -> None:
    stored = loaded(shelf)
    shelf.gone("a", everybody)
    assert shelf.claim(by("b"), POOL, 0.0) == stored


def test_weights_that_no_worker_has_come_up_with_go_with_one_that_fails_to_start(shelf: Shelf) -> None:
    loaded(shelf)
    shelf.gone("a", nobody)
    assert isinstance(shelf.claim(by("b"), POOL, 0.0), Load)


def test_weights_that_another_worker_serves_with_are_not_blamed_for_a_failed_start(shelf: Shelf) -> None:
    stored = loaded(shelf)
    shelf.claim(by("b"), POOL, 0.0)
    shelf.gone("b", lambda worker: worker == "a")
    assert shelf.claim(by("c"), POOL, 0.0) == stored
    shelf.gone("a", lambda worker: worker == "a")
    shelf.gone("c", nobody)
    assert shelf.claim(by("d"), POOL, 0.0) == stored, "proven is proven"


def test_weights_that_a_worker_could_not_read_are_loaded_again_once(shelf: Shelf) -> None:
    lost = loaded(shelf)
    shelf.claim(by("b"), POOL, 0.0)
    assert isinstance(shelf.claim(by("b"), POOL, 0.0, lost.number), Load)
    assert isinstance(shelf.claim(by("c"), POOL, 0.0, lost.number), Wait)
    anew = shelf.store(by("b"), POOL, "anew")
    assert shelf.claim(by("c"), POOL, 0.0, lost.number) == anew != lost


def test_of_two_that_have_loaded_the_same_the_first_is_kept(shelf: Shelf) -> None:
    """A controller that was restarted knows nothing of who was loading."""
    shelf.claim(by("b"), POOL, 0.0)
    first = shelf.store(by("a"), POOL, "by a")
    assert shelf.store(by("b"), POOL, "by b") == first
    assert shelf.claim(by("c"), POOL, 0.0) == first


def test_weights_go_with_the_last_pool_that_used_them(shelf: Shelf) -> None:
    vouched = WeightsName("weights", "v1", None)
    other = PoolKey("Other")
    stored = loaded(shelf, name=vouched)
    assert shelf.claim(by("b", name=vouched), other, 0.0) == stored
    shelf.forget(POOL)
    assert shelf.claim(by("c", name=vouched), other, 0.0) == stored
    shelf.forget(other)
    assert isinstance(shelf.claim(by("d", name=vouched), POOL, 0.0), Load)


def test_room_is_made_of_what_no_worker_of_the_node_uses(shelf: Shelf) -> None:
    assert not shelf.make_room("node")
    stored = loaded(shelf)
    elsewhere = loaded(shelf, node="elsewhere")
    assert not shelf.make_room("node"), "a worker uses them"
    shelf.gone("a", everybody)
    assert shelf.make_room("node")
    assert isinstance(shelf.claim(by("b"), POOL, 0.0), Load)
    assert shelf.claim(by("b", node="elsewhere"), POOL, 0.0) == elsewhere != stored


class Node:
    """Workers of one node, each of which does as it is told; what happens to them is drawn."""

    def __init__(self) -> None:
        self.shelf = Shelf()
        self.waiting: set[str] = set()
        self.loading: set[str] = set()
        self.served: set[str] = set()
        self.now = 0.0

    def asks(self, worker: str) -> None:
        answer = self.shelf.claim(by(worker), POOL, self.now)
        self.waiting.discard(worker)
        if isinstance(answer, Load):
            self.loading.add(worker)
        elif isinstance(answer, Wait):
            self.waiting.add(worker)
        else:
            self.served.add(worker)

    def happens(self, what: str, worker: str) -> None:
        if what == "ask" and worker not in self.loading | self.served:
            self.asks(worker)
        elif what == "die":
            for where in (self.waiting, self.loading, self.served):
                where.discard(worker)
            self.shelf.gone(worker, self.served.__contains__)
        elif worker in self.loading:
            self.loading.discard(worker)
            if what == "load":
                self.shelf.store(by(worker), POOL, worker)
            else:
                self.shelf.release(by(worker), self.now, private=what == "no room")
        for waiter in sorted(self.waiting):  # the lender asks again for each
            self.asks(waiter)
        self.now += 1.0


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "die", "load", "raise", "no room"]), st.sampled_from(["a", "b", "c", "d"]))
    )
)
def test_whatever_happens_one_loads_at_a_time_and_nobody_waits_for_nothing(steps: list[tuple[str, str]]) -> None:
    node = Node()
    for step in steps:
        node.happens(*step)
        assert len(node.loading) <= 1
        assert not node.waiting or node.loading
