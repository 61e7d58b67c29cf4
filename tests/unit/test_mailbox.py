"""Work for an event loop: in order, one wake-up for many; nothing lost whatever fails, or kept for a closed loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gworker import mailbox as module
from gworker.mailbox import TURN, Mailbox, Turn, mailbox_of, turn_of


class Reports:
    """What the loop was told of actions that failed."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, about: self.errors.append(about["exception"]))


@pytest.fixture
async def reports() -> Reports:
    return Reports()


@pytest.fixture
async def turn() -> Turn:
    return turn_of(asyncio.get_running_loop())


@pytest.fixture
async def mailbox() -> Mailbox:
    return Mailbox(asyncio.get_running_loop())


def fail() -> None:
    raise ValueError("it fails")


def leave() -> None:
    raise SystemExit(3)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- turns -------------------------------------------------------------------------------------------------------


async def test_what_is_due_is_done_when_the_turn_ends_in_the_order_it_was_asked_for(turn: Turn) -> None:
    seen: list[int] = []
    with turn:
        turn.at_end(lambda: seen.append(1))
        turn.at_end(lambda: seen.append(2))
        assert seen == []
    assert seen == [1, 2]


async def test_what_comes_due_meanwhile_is_done_in_the_same_turn(turn: Turn) -> None:
    seen: list[int] = []
    with turn:
        turn.at_end(lambda: turn.at_end(lambda: seen.append(1)))
    assert seen == [1]


async def test_outside_a_turn_the_loop_begins_one_with_its_next(turn: Turn) -> None:
    seen: list[int] = []
    turn.at_end(lambda: seen.append(1))
    turn.at_end(lambda: turn.at_end(lambda: seen.append(2)))
    assert seen == []
    await asyncio.sleep(0)
    assert seen == [1, 2]


async def test_what_is_due_outside_a_turn_is_done_by_the_one_that_comes_first(turn: Turn) -> None:
    seen: list[int] = []
    turn.at_end(lambda: seen.append(1))
    with turn:
        turn.at_end(lambda: seen.append(2))
    assert seen == [1, 2]
    turn.at_end(lambda: seen.append(3))
    await asyncio.sleep(0)
    assert seen == [1, 2, 3]


async def test_a_turn_within_a_turn_loses_nothing(turn: Turn) -> None:
    seen: list[int] = []
    with turn:
        turn.at_end(lambda: seen.append(1))
        with turn:
            turn.at_end(lambda: seen.append(2))
        turn.at_end(lambda: seen.append(3))
    await asyncio.sleep(0)
    assert seen == [1, 2, 3]


async def test_an_action_that_fails_costs_neither_the_others_nor_whose_turn_it_is(turn: Turn, reports: Reports) -> None:
    # A router's fault at the end of a connection's turn must not end the connection.
    seen: list[int] = []
    with turn:
        turn.at_end(lambda: seen.append(1))
        turn.at_end(fail)
        turn.at_end(lambda: seen.append(2))
    assert seen == [1, 2]
    assert [str(error) for error in reports.errors] == ["it fails"]


async def test_who_fails_in_its_turn_is_told_and_what_was_due_is_done(turn: Turn) -> None:
    seen: list[int] = []

    def take_a_turn() -> None:
        with turn:
            turn.at_end(lambda: seen.append(1))
            fail()

    with pytest.raises(ValueError, match="it fails"):
        take_a_turn()
    assert seen == [1]


async def test_what_is_due_behind_an_action_that_would_end_the_process_is_done_in_the_next_turn(turn: Turn) -> None:
    seen: list[int] = []
    turn.at_end(leave)
    turn.at_end(lambda: seen.append(1))
    with pytest.raises(SystemExit):
        turn._end()
    turn.at_end(lambda: seen.append(2))
    await asyncio.sleep(0)
    assert seen == [1, 2]


async def test_all_who_ask_share_the_turns_and_the_mailbox_of_a_loop() -> None:
    loop, other = asyncio.get_running_loop(), asyncio.new_event_loop()
    with ThreadPoolExecutor(4) as threads:
        assert len({*threads.map(lambda _: turn_of(loop), range(50))}) == 1
        assert len({*threads.map(lambda _: mailbox_of(loop), range(50))}) == 1
    assert turn_of(loop) is not turn_of(other) and mailbox_of(loop) is not mailbox_of(other)
    other.close()


# --- the mailbox -------------------------------------------------------------------------------------------------


async def test_letters_are_delivered_in_the_order_of_posting_with_what_they_carry(mailbox: Mailbox) -> None:
    seen: list[Any] = []
    for number in range(3 * TURN):
        mailbox.post(seen.append, number)
    mailbox.post(lambda *args: seen.append(args), 1, 2)
    assert seen == [] and len(mailbox) == 3 * TURN + 1
    await turns(4)
    assert seen == [*range(3 * TURN), (1, 2)] and len(mailbox) == 0


async def test_what_threads_post_meanwhile_wakes_the_loop_once(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[Callable[[], None]] = []
    monkeypatch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", woken.append)
    seen: list[int] = []

    def post() -> None:
        for number in range(10):
            mailbox.post(seen.append, number)

    poster = threading.Thread(target=post)
    poster.start()
    poster.join()
    (deliver,) = woken
    deliver()
    assert seen == list(range(10))


async def test_what_the_loop_posts_to_itself_needs_no_wake_up(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", None)
    seen: list[int] = []
    mailbox.post(seen.append, 1)
    await asyncio.sleep(0)
    assert seen == [1]


async def test_what_some_letters_bring_about_is_done_before_the_next_are_delivered(
    mailbox: Mailbox, turn: Turn
) -> None:
    seen: list[int] = []
    for number in range(TURN + 1):
        mailbox.post(seen.append, number)
    mailbox.post(lambda: seen.append(-2))
    turn.at_end(lambda: seen.append(-1))
    await asyncio.sleep(0)
    assert seen == [-1, *range(TURN)] or seen == [*range(TURN), -1]
    seen.clear()
    await asyncio.sleep(0)
    assert seen == [TURN, -2]


async def test_a_letter_that_fails_costs_no_other(mailbox: Mailbox, turn: Turn, reports: Reports) -> None:
    seen: list[int] = []
    mailbox.post(lambda: turn.at_end(lambda: seen.append(1)))
    mailbox.post(fail)
    mailbox.post(seen.append, 2)
    await turns(3)
    assert seen == [1, 2]
    assert [str(error) for error in reports.errors] == ["it fails"]
    mailbox.post(seen.append, 3)
    await asyncio.sleep(0)
    assert seen == [1, 2, 3]


async def test_a_letter_that_posts_another_does_not_keep_the_loop_to_itself(mailbox: Mailbox) -> None:
    count = 0

    def again() -> None:
        nonlocal count
        count += 1
        mailbox.post(again)

    mailbox.post(again)
    await turns(5)
    assert 3 <= count <= 6


async def test_nothing_that_many_threads_post_is_lost_and_each_ones_order_is_kept(mailbox: Mailbox) -> None:
    seen: list[tuple[int, int]] = []
    all_there = asyncio.Event()
    posters, letters = 8, 2000

    def note(poster: int, number: int) -> None:
        seen.append((poster, number))
        if len(seen) == posters * letters:
            all_there.set()

    def post(poster: int) -> None:
        for number in range(letters):
            mailbox.post(note, poster, number)

    threads = [threading.Thread(target=post, args=(poster,)) for poster in range(posters)]
    for thread in threads:
        thread.start()
    await asyncio.wait_for(all_there.wait(), 20)
    for thread in threads:
        thread.join()
    for poster in range(posters):
        assert [number for who, number in seen if who == poster] == list(range(letters))


# --- threads that are ahead of the loop --------------------------------------------------------------------------


async def test_a_thread_that_is_far_ahead_waits_for_a_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD_S", 20.0)
    mailbox = Mailbox(asyncio.get_running_loop(), paced=True)
    backlogs: list[int] = []

    def post() -> None:
        for _ in range(50 * TURN):
            mailbox.post(int)
            backlogs.append(len(mailbox))

    await asyncio.to_thread(post)
    # Not exactly one turn's worth: the loop may have begun its turn while the thread was counting on.
    assert max(backlogs) <= 4 * TURN


async def test_a_thread_does_not_wait_for_ever_for_a_loop_that_is_kept_busy() -> None:
    mailbox = Mailbox(asyncio.get_running_loop(), paced=True)

    def post() -> None:
        for _ in range(5 * TURN):
            mailbox.post(int)

    poster = threading.Thread(target=post)
    poster.start()
    poster.join(10)  # the loop cannot run meanwhile
    assert not poster.is_alive()
    assert len(mailbox) == 5 * TURN


async def test_the_loop_itself_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD_S", 20.0)
    mailbox = Mailbox(asyncio.get_running_loop(), paced=True)
    for _ in range(5 * TURN):
        mailbox.post(int)
    assert len(mailbox) == 5 * TURN


# --- loops that are closed ---------------------------------------------------------------------------------------


def test_who_posts_to_a_closed_loop_is_told_each_time_and_nothing_is_kept() -> None:
    loop = asyncio.new_event_loop()
    mailbox = mailbox_of(loop)
    loop.close()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="closed"):
            mailbox.post(fail)
        assert len(mailbox) == 0


def test_who_posts_to_a_loop_that_is_gone_is_told() -> None:
    loop = asyncio.new_event_loop()
    mailbox = Mailbox(loop)
    loop.close()
    del loop
    gc.collect()
    with pytest.raises(RuntimeError, match="closed"):
        mailbox.post(fail)


@pytest.mark.parametrize("table", ["_mailboxes", "_turns"])
def test_a_loop_that_was_closed_before_all_was_done_is_not_kept_for_ever(table: str) -> None:
    loop = asyncio.new_event_loop()
    # What is posted holds the loop, as the future of one that awaits does.
    if table == "_mailboxes":
        mailbox_of(loop).post(loop.create_future().cancel)
    else:
        turn_of(loop).at_end(loop.create_future().cancel)
    loop.close()
    gone = weakref.ref(loop)
    del loop
    other = asyncio.new_event_loop()
    mailbox_of(other), turn_of(other)
    gc.collect()
    assert gone() is None
    other.close()
    assert other in getattr(module, table)
