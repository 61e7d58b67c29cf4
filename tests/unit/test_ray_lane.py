"""The lane over actor calls, with an actor whose exchanges are answered by the test."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import Any

import pytest

from gworker.router.lanes import MAX_BUNDLE, MAX_OPEN_EXCHANGES, RayLane
from gworker.wire import (
    Busy,
    Cancel,
    Credit,
    Down,
    Ended,
    Item,
    Returned,
    Started,
    Submit,
    Up,
    decode,
    encode,
)

CAPACITY = 10


class FakeActor:
    """Stands in for the handle of a worker: what it was sent, and the answers it owes."""

    def __init__(self) -> None:
        self.bundles: list[Up] = []
        self.owed: list[concurrent.futures.Future[Any]] = []
        self.refuses: Exception | None = None
        self.exchange = self

    def remote(self, bundle: Any) -> FakeActor:
        if self.refuses is not None:
            raise self.refuses
        up = decode(bundle, Up)
        assert up is not None
        self.bundles.append(up)
        self.owed.append(concurrent.futures.Future())
        return self

    def future(self) -> concurrent.futures.Future[Any]:
        return self.owed[-1]

    def sent(self) -> list[int]:
        """The inputs, in the order they came."""
        return [m.call_id for bundle in self.bundles for m in bundle.messages if isinstance(m, Submit)]


class Listener:
    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.progress = 0
        self.broken: list[BaseException] = []

    def on_message(self, message: Any) -> None:
        self.messages.append(message)

    def on_progress(self) -> None:
        self.progress += 1

    def on_broken(self, error: BaseException) -> None:
        self.broken.append(error)


class Worker:
    """A lane, the actor at its far end, and what the lane reported."""

    def __init__(self) -> None:
        self.actor = FakeActor()
        self.listener = Listener()
        self.connected = True
        self.lane = RayLane(
            asyncio.get_running_loop(), self.actor, "me", CAPACITY, self.listener, lambda: self.connected
        )
        self._sequence = 0

    def down(
        self, *messages: Any, room: int = CAPACITY, acknowledged: int | None = None, draining: bool = False
    ) -> Any:
        last = len(self.actor.bundles) - 1 if acknowledged is None else acknowledged
        self._sequence += 1
        return encode(Down(self._sequence - 1, last, room, draining, messages))

    async def answer(self, *messages: Any, exchange: int = 0, **about: Any) -> None:
        """Answer the oldest open exchange, as a worker does, and let the lane handle it."""
        self.actor.owed.pop(exchange).set_result(self.down(*messages, **about))
        await turn()

    async def submit(self, *numbers: int) -> None:
        for number in numbers:
            self.lane.send(submit(number))
        await turn()

    @property
    def open(self) -> int:
        return len(self.actor.owed)


def submit(number: int) -> Submit:
    return Submit(number, f"call-{number}", "embed", b"x", None, "", 1, None, None, 0, 0)


def returned(number: int) -> Returned:
    return Returned(number, b"y")


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.fixture
async def worker() -> Worker:
    return Worker()


# --- sending -----------------------------------------------------------------------------------------------------


async def test_what_is_sent_in_one_turn_of_the_loop_travels_in_one_bundle_in_order(worker: Worker) -> None:
    await worker.submit(1, 2, 3)
    worker.lane.send(Cancel(2))
    worker.lane.send(Credit(3, 8))
    assert [len(b.messages) for b in worker.actor.bundles] == [3]
    await turn()
    assert [b.messages for b in worker.actor.bundles[1:]] == [[Cancel(2), Credit(3, 8)]]


async def test_bundles_are_numbered_and_name_the_session(worker: Worker) -> None:
    for number in range(3):
        await worker.submit(number)
    assert [(b.session, b.sequence) for b in worker.actor.bundles] == [("me", 0), ("me", 1), ("me", 2)]


async def test_never_more_exchanges_are_open_than_the_limit_and_what_waits_leaves_as_one_bundle(worker: Worker) -> None:
    for number in range(MAX_OPEN_EXCHANGES + 5):
        await worker.submit(number)
    assert worker.open == MAX_OPEN_EXCHANGES
    await worker.answer()
    assert worker.open == MAX_OPEN_EXCHANGES
    assert len(worker.actor.bundles[-1].messages) == 5
    assert worker.actor.sent() == list(range(MAX_OPEN_EXCHANGES + 5))


async def test_a_flood_is_cut_into_bundles_of_bounded_size_in_order(worker: Worker) -> None:
    await worker.submit(*range(2 * MAX_BUNDLE + 1))
    assert [len(b.messages) for b in worker.actor.bundles] == [MAX_BUNDLE, MAX_BUNDLE, 1]
    assert worker.actor.sent() == list(range(2 * MAX_BUNDLE + 1))


async def test_an_exchange_is_open_as_long_as_inputs_are_with_the_worker(worker: Worker) -> None:
    await worker.submit(1, 2)
    await worker.answer(returned(1))
    assert worker.open == 1, "the result of the other has a way back"
    await worker.answer(returned(2))
    assert worker.open == 0, "an idle worker is left alone"


@pytest.mark.parametrize("last", [returned(1), Busy(1), Ended(1)], ids=lambda m: type(m).__name__)
async def test_an_input_is_with_the_worker_until_its_last_word(worker: Worker, last: Any) -> None:
    await worker.submit(1)
    await worker.answer(Started(1), Item(1, b"i"))
    assert worker.open == 1
    await worker.answer(last)
    assert worker.open == 0


async def test_after_a_cancel_no_answer_is_waited_for(worker: Worker) -> None:
    await worker.submit(1)
    worker.lane.send(Cancel(1))
    await turn()
    await worker.answer()
    await worker.answer()
    assert worker.open == 0


# --- receiving ---------------------------------------------------------------------------------------------------


async def test_answers_that_overtake_each_other_are_handled_in_the_order_the_worker_gave_them(worker: Worker) -> None:
    await worker.submit(1)
    await worker.submit(2)
    early, late = worker.down(Started(1)), worker.down(returned(1), returned(2))
    worker.actor.owed[1].set_result(late)
    await turn()
    assert worker.listener.messages == []
    worker.actor.owed[0].set_result(early)
    await turn()
    assert [type(m).__name__ for m in worker.listener.messages] == ["Started", "Returned", "Returned"]


async def test_each_handled_answer_is_told_after_its_messages(worker: Worker) -> None:
    await worker.submit(1)
    seen: list[int] = []
    worker.listener.on_progress = lambda: seen.append(len(worker.listener.messages))  # type: ignore[method-assign]
    await worker.answer(Started(1), returned(1))
    assert seen == [2]


async def test_the_next_bundle_acknowledges_the_answers_that_were_handled(worker: Worker) -> None:
    await worker.submit(1)
    await worker.answer(Started(1))
    await worker.answer(returned(1))
    await worker.submit(2)
    assert [b.acknowledged for b in worker.actor.bundles] == [-1, 0, 1]


async def test_a_worker_that_drains_is_told_that_its_last_results_have_arrived(worker: Worker) -> None:
    await worker.submit(1)
    await worker.answer(returned(1), draining=True, room=0)
    assert worker.open == 1
    assert worker.actor.bundles[-1].acknowledged == 0
    assert worker.actor.bundles[-1].messages == []


async def test_no_exchange_goes_to_and_fro_with_a_draining_worker_that_has_one_open(worker: Worker) -> None:
    await worker.submit(1)
    await worker.submit(2)
    sent = len(worker.actor.bundles)
    await worker.answer(returned(1), draining=True, room=0)
    assert worker.open == 1
    assert len(worker.actor.bundles) == sent


# --- room --------------------------------------------------------------------------------------------------------


async def test_an_idle_worker_is_tried_with_as_much_as_it_can_hold(worker: Worker) -> None:
    assert worker.lane.available() == CAPACITY
    await worker.submit(1)
    await worker.answer(returned(1), room=0)
    assert worker.lane.available() == CAPACITY, "what was known is old"


async def test_what_is_sent_and_not_yet_confirmed_takes_room(worker: Worker) -> None:
    for n, number in enumerate(range(4)):
        worker.lane.send(submit(number))
        assert worker.lane.available() == CAPACITY - n - 1
    await turn()
    assert worker.lane.available() == CAPACITY - 4


async def test_room_is_what_the_worker_says_less_what_it_could_not_know_of(worker: Worker) -> None:
    await worker.submit(1, 2)
    await worker.submit(3)
    await worker.submit(4, 5, 6)
    await worker.answer(room=7, acknowledged=1)  # it had seen the first two bundles
    assert worker.lane.available() == 7 - 3
    worker.lane.send(submit(7))
    assert worker.lane.available() == 7 - 3 - 1
    await turn()
    assert worker.lane.available() == 7 - 3 - 1
    await worker.answer(room=2, acknowledged=3)
    assert worker.lane.available() == 2


async def test_a_full_worker_that_holds_our_inputs_has_no_room(worker: Worker) -> None:
    await worker.submit(*range(CAPACITY))
    assert worker.lane.available() == 0
    await worker.answer(room=0)
    assert worker.lane.available() == 0
    await worker.answer(returned(0), room=1)
    assert worker.lane.available() == 1


# --- waiting for room --------------------------------------------------------------------------------------------


async def test_a_worker_without_room_is_told_how_many_inputs_wait_for_it(worker: Worker) -> None:
    await worker.submit(1)
    worker.lane.want(7)
    await turn()
    assert worker.actor.bundles[-1].waiting == 7
    assert worker.actor.bundles[-1].messages == []


async def test_it_is_told_once_not_at_every_change_of_the_number(worker: Worker) -> None:
    await worker.submit(1)
    for count in (7, 8, 9, 10):
        worker.lane.want(count)
        await turn()
    assert len(worker.actor.bundles) == 2


async def test_it_is_told_again_after_it_had_room(worker: Worker) -> None:
    await worker.submit(1)
    worker.lane.want(7)
    await turn()
    await worker.answer(room=1)
    assert worker.actor.bundles[-1].waiting == 7
    assert len(worker.actor.bundles) == 3


async def test_while_inputs_wait_an_exchange_is_open_for_the_news_of_room(worker: Worker) -> None:
    worker.lane.want(3)
    await turn()
    assert worker.open == 1
    await worker.answer(room=0)
    assert worker.open == 1


async def test_when_nothing_waits_any_more_the_worker_is_left_alone(worker: Worker) -> None:
    worker.lane.want(3)
    await turn()
    worker.lane.want(0)
    await worker.answer(room=0)
    assert worker.open == 0


async def test_a_place_that_is_kept_for_us_and_not_needed_any_more_is_declined_at_once(worker: Worker) -> None:
    worker.lane.want(3)
    await turn()
    worker.lane.want(0)
    await worker.answer(room=5)
    assert [bundle.waiting for bundle in worker.actor.bundles] == [3, 0]
    await worker.answer(room=10)
    assert worker.open == 0


async def test_a_router_that_was_refused_keeps_an_exchange_open_to_hear_of_room(worker: Worker) -> None:
    await worker.submit(1)
    await worker.answer(Busy(1), room=0)
    assert worker.lane.available() == 0
    assert worker.open == 1
    await worker.answer(room=1)
    assert worker.lane.available() > 0


# --- ends --------------------------------------------------------------------------------------------------------


async def test_an_exchange_that_fails_breaks_the_lane_once(worker: Worker) -> None:
    await worker.submit(1)
    await worker.submit(2)
    for owed in worker.actor.owed:
        owed.set_exception(ConnectionError("the actor died"))
    await turn()
    assert [str(e) for e in worker.listener.broken] == ["the actor died"]


async def test_an_actor_that_cannot_be_called_breaks_the_lane(worker: Worker) -> None:
    worker.actor.refuses = ConnectionError("no such actor")
    await worker.submit(1)
    assert [str(e) for e in worker.listener.broken] == ["no such actor"]


async def test_without_ray_no_actor_is_called(worker: Worker) -> None:
    worker.connected = False
    await worker.submit(1)
    assert worker.actor.bundles == []
    assert [str(e) for e in worker.listener.broken] == ["Ray was shut down"]


async def test_a_closed_lane_sends_nothing_and_reports_nothing(worker: Worker) -> None:
    await worker.submit(1)
    worker.lane.send(submit(2))
    worker.lane.close()
    await worker.answer(returned(1))
    worker.lane.want(3)
    await turn()
    assert worker.actor.sent() == [1]
    assert worker.listener.messages == [] and worker.listener.progress == 0


async def test_a_closed_lane_does_not_report_the_death_of_its_worker(worker: Worker) -> None:
    await worker.submit(1)
    worker.lane.close()
    worker.actor.owed[0].set_exception(ConnectionError("the actor died"))
    await turn()
    assert worker.listener.broken == []


async def test_what_follows_a_broken_lane_is_not_sent(worker: Worker) -> None:
    await worker.submit(1)
    worker.actor.owed[0].set_exception(ConnectionError("the actor died"))
    await turn()
    await worker.submit(2)
    assert worker.actor.sent() == [1]


async def test_the_ray_lane_does_not_vouch_for_starts(worker: Worker) -> None:
    await worker.submit(1)
    assert not worker.lane.vouches_for_starts
    assert not worker.actor.bundles[0].stages
