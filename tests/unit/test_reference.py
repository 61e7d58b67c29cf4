"""A reference travels without the handle being made."""

from __future__ import annotations

import pickle
from typing import Any

from gworker.router.reference import ActorReference

made: list[int] = []


class Handle:
    """Notes when one is unpacked, as Ray would import what its class needs."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (self.number,)


def _make(number: int) -> Handle:
    made.append(number)
    return Handle(number)


def test_the_handle_is_made_where_it_is_asked_for_and_once() -> None:
    made.clear()
    arrived = pickle.loads(pickle.dumps(ActorReference(Handle(1))))
    assert made == []
    assert arrived.get().number == 1
    assert arrived.get() is arrived.get()
    assert made == [1]


def test_it_can_be_sent_on_without_being_made() -> None:
    made.clear()
    there = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(ActorReference(Handle(2))))))
    assert made == []
    assert there.get().number == 2


def test_where_it_was_made_it_gives_the_handle_itself() -> None:
    handle = Handle(3)
    assert ActorReference(handle).get() is handle
