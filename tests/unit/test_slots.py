"""DESIGN §4: a worker holds at most `max_inputs` inputs, and callers that wait for room get it in turn."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gworker.worker.slots import OFFER_S, Admission

CALLERS = ("a", "b", "c")

operations = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.sampled_from(CALLERS), st.just(0)),
        st.tuples(st.just("take_any"), st.sampled_from(CALLERS), st.just(0)),
        st.tuples(st.just("release"), st.sampled_from(CALLERS), st.just(0)),
        st.tuples(st.just("refuse"), st.sampled_from(CALLERS), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from(CALLERS), st.integers(0, 5)),
        st.tuples(st.just("offer"), st.just(""), st.just(0)),
        st.tuples(st.just("pass"), st.just(""), st.integers(1, 40)),
    ),
    max_size=60,
)


@settings(max_examples=80)
@given(capacity=st.integers(1, 4), operations=operations)
def test_never_over_capacity_and_what_a_caller_is_told_it_may_send_is_taken_in(
    capacity: int, operations: list[tuple[str, str, int]]
) -> None:
    admission = Admission(capacity)
    now, holds = 0.0, Counter[str]()
    for what, caller, count in operations:
        if what == "take":
            holds[caller] += admission.take(caller, now)
        elif what == "take_any":
            holds[caller] += admission.take_unpromised(caller, now)
        elif what == "release" and holds[caller]:
            admission.release(caller)
            holds[caller] -= 1
        elif what == "refuse":
            admission.refuse(caller)
        elif what == "wait":
            admission.wait(caller, count)
        elif what == "offer":
            admission.offer(now)
        elif what == "pass":
            now += count / 100
        held = holds.total()
        assert admission.held == held
        assert 0 <= held <= capacity
        room = {caller: admission.room_for(caller, now) for caller in CALLERS}
        assert all(0 <= each <= capacity - held for each in room.values())
    # Whoever is told first is believed: its sends are taken in, all of them.
    for caller in CALLERS:
        for _ in range(admission.room_for(caller, now)):
            assert admission.take(caller, now)
    assert admission.held <= capacity


@given(
    capacity=st.integers(1, 8),
    wanted=st.lists(st.one_of(st.integers(0, 3), st.just(1000)), min_size=1, max_size=5),
    first=st.integers(0, 4),
    ends=st.lists(st.integers(0, 7), min_size=30, max_size=60),
)
def test_the_places_are_shared_so_that_nobody_could_have_more_without_one_that_has_less_losing_some(
    capacity: int, wanted: list[int], first: int, ends: list[int]
) -> None:
    # Max-min fairness: whoever came first and took all, inputs end one by one, and each caller sends what it may.
    admission = Admission(capacity)
    callers = [str(n) for n in range(len(wanted))]
    demand = dict(zip(callers, wanted, strict=True))
    hot = callers[first % len(callers)]
    demand[hot] = 1000
    running = [hot] * capacity
    for _ in range(capacity):
        assert admission.take(hot, 0.0)
    for end in [*ends, *range(4 * capacity)]:
        ended = running.pop(end % len(running))
        admission.release(ended)
        for caller in callers:
            admission.wait(caller, demand[caller] - running.count(caller))
        for told in admission.offer(0.0):
            for _ in range(admission.room_for(told, 0.0)):
                if running.count(told) < demand[told]:
                    assert admission.take(told, 0.0)
                    running.append(told)
    shares = {caller: running.count(caller) for caller in callers}
    for caller, share in shares.items():
        if share < demand[caller]:
            assert all(other <= share + 1 for other in shares.values()), (shares, demand)


def test_one_place_goes_round() -> None:
    admission = Admission(1)
    assert admission.take("hot", 0.0)
    served: list[str] = []
    running = "hot"
    for caller in ("hot", "light", "other"):
        admission.wait(caller, 99)
    for _ in range(9):
        admission.release(running)
        (running,) = admission.offer(0.0)
        assert admission.take(running, 0.0)
        served.append(running)
    assert served == ["light", "other", "hot"] * 3


def test_a_caller_that_has_none_is_next_whatever_the_others_want() -> None:
    admission = Admission(4)
    for _ in range(4):
        assert admission.take("hot", 0.0)
    admission.wait("hot", 10_000)
    assert not admission.take("light", 0.0)
    admission.refuse("light")
    admission.wait("light", 0)  # what it said before it knew
    admission.release("hot")
    assert admission.offer(0.0) == ["light"]
    assert not admission.take("hot", 0.0)
    assert admission.take("light", 0.0)


def test_one_that_was_refused_and_needs_no_place_any_more_gives_it_back_with_a_word() -> None:
    admission = Admission(1)
    assert admission.take("hot", 0.0)
    admission.refuse("light")
    admission.wait("light", 0)
    admission.wait("hot", 5)
    admission.release("hot")
    assert admission.offer(0.0) == ["light"]
    admission.wait("light", 0)
    assert admission.offer(0.0) == ["hot"]


def test_places_that_become_free_together_are_shared() -> None:
    admission = Admission(5)
    for caller, wanted in (("a", 9), ("b", 9), ("c", 1)):
        admission.wait(caller, wanted)
    assert sorted(admission.offer(0.0)) == ["a", "b", "c"]
    assert [admission.room_for(caller, 0.0) for caller in CALLERS] == [2, 2, 1]


def test_a_place_offered_to_one_caller_is_kept_from_the_others_for_a_moment() -> None:
    admission = Admission(1)
    assert admission.take("a", 0.0)
    admission.wait("b", 1)
    admission.release("a")
    assert admission.offer(0.0) == ["b"]
    assert not admission.take("a", 0.1)
    assert admission.room_for("a", 0.1) == 0
    assert admission.room_for("b", 0.1) == 1
    assert admission.take("b", 0.1)


def test_an_offer_that_is_not_used_lapses_and_its_place_is_free_for_all() -> None:
    admission = Admission(1)
    admission.wait("a", 1)
    assert admission.offer(0.0) == ["a"]
    assert admission.next_expiry() == pytest.approx(OFFER_S)
    assert not admission.take("b", OFFER_S - 0.01)
    assert admission.take("b", OFFER_S)
    assert admission.next_expiry() is None


def test_a_caller_that_gives_up_gives_back_what_it_was_offered() -> None:
    admission = Admission(2)
    admission.wait("a", 2)
    assert admission.offer(0.0) == ["a"]
    admission.wait("a", 0)
    assert admission.room_for("b", 0.0) == 2
    assert admission.next_expiry() is None


def test_a_caller_that_waits_alone_is_offered_all_it_wants_at_once() -> None:
    admission = Admission(8)
    admission.wait("a", 5)
    assert admission.offer(0.0) == ["a"]
    assert admission.room_for("a", 0.0) == 8
    assert admission.room_for("b", 0.0) == 3


def test_a_caller_that_does_not_wait_is_told_of_no_room_while_others_wait() -> None:
    admission = Admission(2)
    admission.wait("a", 9)
    assert admission.room_for("b", 0.0) == 0
    assert admission.room_for("a", 0.0) == 2


def test_an_input_that_is_here_already_gets_no_place_that_was_promised() -> None:
    admission = Admission(2)
    admission.wait("a", 1)
    admission.offer(0.0)
    assert admission.take_unpromised("c", 0.0)
    assert not admission.take_unpromised("c", 0.0)
    assert admission.take("a", 0.0)
