"""The one that has the least: against looking at everybody, while what they have changes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gworker.least import Least

NAMES = "abcde"

operations = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["put", "drop"]), st.sampled_from(NAMES), st.just(0)),
        st.tuples(st.just("grow"), st.sampled_from(NAMES), st.integers(1, 5)),
        st.tuples(st.just("fall"), st.sampled_from(NAMES), st.integers(1, 5)),
        st.tuples(st.just("look"), st.just("a"), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=200)
@given(operations)
def test_the_first_is_one_that_has_the_least_of_those_that_compete(operations: list[tuple[str, str, int]]) -> None:
    has = dict.fromkeys(NAMES, 0)
    least: Least[str] = Least(lambda name: has[name], lambda name: 0.0)
    competing: set[str] = set()
    for what, name, count in operations:
        if what == "put":
            competing.add(name)
            least.put(name)
        elif what == "drop":
            assert least.drop(name) == (name in competing)
            competing.discard(name)
        elif what == "grow":
            has[name] += count  # nobody is told
        elif what == "fall":
            has[name] -= count
            if name in competing:
                least.put(name)
        else:
            first = least.first()
            assert (first is None) == (not competing)
            assert first is None or (first in competing and has[first] == min(has[n] for n in competing))
        assert len(least) == len(competing) and set(least) == competing


def test_equals_come_in_the_order_of_their_tie_as_it_was_when_they_were_put() -> None:
    ties = {"a": 3.0, "b": 1.0, "c": 2.0}
    least: Least[str] = Least(lambda name: 0.0, ties.__getitem__)
    for name in "abc":
        least.put(name)
    ties["b"] = 9.0
    assert least.first() == "b"
    least.put("b")
    assert least.first() == "c"


def test_it_keeps_no_more_than_a_few_entries_that_are_out_of_date() -> None:
    has = dict.fromkeys(NAMES, 100)
    least: Least[str] = Least(lambda name: has[name], lambda name: 0.0)
    for name in NAMES:
        least.put(name)
    for turn in range(1000):
        has[NAMES[turn % 5]] -= 1
        least.put(NAMES[turn % 5])
    assert len(least._heap) <= 2 * len(NAMES) + 17
