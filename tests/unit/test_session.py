"""One caller as a worker sees it: bundles in order, news to send, and what happens when the caller is gone."""

from __future__ import annotations

from typing import Any

import pytest

from gworker import clock
from gworker.wire import Busy, Cancel, Credit, Down, Ended, Payload, Returned, Submit, Up
from gworker.worker.session import ARRIVED_S, SILENT_S, Session


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


class FakeEngine:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.draining = False
        self.room = 3

    def submit(self, session: Session, call: Submit) -> None:
        session.inputs[call.call_id] = call  # type: ignore[assignment]
        self.asked.append(("submit", call.call_id))

    def cancel(self, session: Session, call_id: int) -> None:
        session.inputs.pop(call_id, None)
        self.asked.append(("cancel", call_id))

    def credit(self, session: Session, call_id: int, count: int) -> None:
        self.asked.append(("credit", call_id, count))

    def caller_waits(self, session: str, count: int) -> None:
        self.asked.append(("waits", session, count))

    def caller_left(self, session: str) -> None:
        self.asked.append(("left", session, 0))

    def room_for(self, session: str) -> int:
        return self.room


class Caller:
    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.wakes = 0
        self.session = Session("caller", self.engine, self._wake)  # type: ignore[arg-type]
        self._sequence = 0

    def _wake(self) -> None:
        self.wakes += 1

    def up(self, *messages: Any, waiting: int = 0, acknowledged: int = -1, stages: bool = False) -> Up:
        self._sequence += 1
        return Up("caller", self._sequence - 1, acknowledged, waiting, stages, messages)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(clock, "now", fake)
    return fake


@pytest.fixture
def caller(now: Clock) -> Caller:
    return Caller()


def submit(call_id: int) -> Submit:
    return Submit(call_id, "name", "embed", b"", None, "", 1, None, None, 0, 0)


def test_messages_are_handed_on_in_the_order_they_were_sent_and_the_wait_is_told_last(caller: Caller) -> None:
    caller.session.receive(caller.up(submit(1), Cancel(1), Credit(2, 8), waiting=5))
    assert caller.engine.asked == [("submit", 1), ("cancel", 1), ("credit", 2, 8), ("waits", "caller", 5)]


def test_a_bundle_that_came_early_waits_for_the_one_before_it(caller: Caller) -> None:
    first, second = caller.up(submit(1)), caller.up(Cancel(1))
    caller.session.receive(second)
    assert caller.engine.asked == []
    caller.session.receive(first)
    assert [a[:2] for a in caller.engine.asked if a[0] != "waits"] == [("submit", 1), ("cancel", 1)]


def test_a_lane_that_stages_says_so_with_each_bundle(caller: Caller) -> None:
    assert not caller.session.stages
    caller.session.receive(caller.up(stages=True))
    assert caller.session.stages


def test_all_news_leave_as_one_numbered_bundle(caller: Caller) -> None:
    caller.session.receive(caller.up(submit(1)))
    caller.session.send(Ended(1))
    caller.session.send(Busy(2))
    assert caller.session.has_news and caller.wakes == 2
    assert caller.session.take() == Down(0, 0, 3, False, [Ended(1), Busy(2)])
    assert not caller.session.has_news
    assert caller.session.take() == Down(1, 0, 3, False, [])


def test_large_news_leave_in_bundles_of_about_the_size_asked_for(caller: Caller) -> None:
    for number in range(5):
        caller.session.send(Returned(number, b"x" * 100))
    caller.session.send(Returned(5, Payload(b"", [b"x" * 1000])))
    caller.session.send(Ended(6))
    taken = [caller.session.take(250).messages for _ in range(4)]
    assert [[m.call_id for m in messages] for messages in taken] == [[0, 1], [2, 3], [4], [5]]
    assert caller.session.has_news
    assert caller.session.take(250).messages == [Ended(6)]


def test_a_bundle_acknowledges_only_what_has_come_without_gaps(caller: Caller) -> None:
    caller.session.receive(caller.up())
    caller.up()  # lost or late
    caller.session.receive(caller.up())
    assert caller.session.take().acknowledged == 0


def test_a_nudge_is_news_without_a_message(caller: Caller) -> None:
    caller.session.nudge()
    assert caller.session.has_news and caller.wakes == 1
    assert caller.session.take().messages == []
    assert not caller.session.has_news


def test_every_bundle_tells_the_room_and_whether_the_worker_drains(caller: Caller) -> None:
    caller.engine.draining, caller.engine.room = True, 0
    down = caller.session.take()
    assert (down.draining, down.room) == (True, 0)


def test_it_is_settled_when_the_caller_acknowledged_all_that_was_sent(caller: Caller) -> None:
    assert caller.session.settled
    caller.session.send(Ended(1))
    assert not caller.session.settled
    caller.session.take()
    assert not caller.session.settled
    caller.session.receive(caller.up(acknowledged=0))
    assert caller.session.settled


def test_it_is_settled_when_all_was_sent_long_enough_ago_to_have_arrived(caller: Caller, now: Clock) -> None:
    caller.session.send(Ended(1))
    caller.session.take()
    now.now += ARRIVED_S
    assert not caller.session.settled
    now.now += 0.01
    assert caller.session.settled


def test_results_that_nobody_fetches_do_not_hold_up_a_drain_for_ever(caller: Caller, now: Clock) -> None:
    caller.session.send(Ended(1))
    now.now += SILENT_S
    assert not caller.session.settled
    now.now += 0.01
    assert caller.session.settled


def test_a_caller_that_is_gone_waits_for_nothing_and_its_inputs_are_cancelled(caller: Caller) -> None:
    caller.session.receive(caller.up(submit(1), submit(2), waiting=7))
    caller.session.send(Ended(3))
    caller.engine.asked.clear()
    caller.session.close()
    assert caller.engine.asked == [("left", "caller", 0), ("cancel", 1), ("cancel", 2)]
    assert not caller.session.has_news
    caller.session.close()
    assert caller.session.inputs == {}


def test_it_knows_when_it_last_heard_of_the_caller(caller: Caller, now: Clock) -> None:
    now.now += 9.0
    caller.session.receive(caller.up())
    assert caller.session.last_heard == now.now
