"""What starts next in a worker: who has waited longest among what may start, told the time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import gworker as gw
from gworker.spec import compile_class
from gworker.worker.agenda import Agenda


class Mixed:
    @gw.method()
    def plain(self) -> None: ...

    @gw.method()
    async def later(self) -> None: ...

    @gw.method()
    @gw.batched(max_batch_size=2, wait_ms=1000)
    def batch(self, xs: list[int]) -> list[int]:
        return xs

    @gw.method()
    @gw.batched(max_batch_size=2, wait_ms=1000)
    def other(self, xs: list[int]) -> list[int]:
        return xs


@gw.concurrent(max_inputs=8)
class Wide(Mixed):
    @gw.method()
    @gw.batched(max_batch_size=2, max_concurrent_batches=2)
    def twice(self, xs: list[int]) -> list[int]:
        return xs


class Desk:
    """An agenda, and what waits there by name."""

    def __init__(self, cls: type) -> None:
        self.spec = compile_class(cls, {})
        self.agenda = Agenda(self.spec)
        self.now = 0.0

    def add(self, name: str, method: str, *, parameters: str = "", cap: int = 0, caller: str = "me") -> Any:
        given = SimpleNamespace(
            name=name,
            session=SimpleNamespace(name=caller),
            method=self.spec.methods[method],
            arrived=self.now,
            weight=1.0,
            deadline=None,
            answered=False,
            call=SimpleNamespace(parameters_key=parameters, batch_cap=cap),
        )
        self.agenda.add(given, self.now)  # type: ignore[arg-type]
        return given

    def take(self) -> str:
        """The names of what starts next, which then begins."""
        chosen = self.agenda.take(self.now)
        if chosen:
            self.agenda.begin(chosen[0].method)
        return " ".join(given.name for given in chosen)  # type: ignore[attr-defined]

    def end(self, method: str) -> None:
        self.agenda.end(self.spec.methods[method])


@pytest.fixture
def desk() -> Desk:
    return Desk(Mixed)


@pytest.fixture
def wide() -> Desk:
    return Desk(Wide)


def test_an_empty_agenda_starts_nothing(desk: Desk) -> None:
    assert desk.take() == ""
    assert desk.agenda.next_start() is None


def test_without_concurrency_one_invocation_runs_at_a_time(desk: Desk) -> None:
    for name in "ab":
        desk.add(name, "plain")
    desk.add("c", "later")
    assert [desk.take(), desk.take()] == ["a", ""]
    desk.end("plain")
    assert [desk.take(), desk.take()] == ["b", ""]
    desk.end("plain")
    assert desk.take() == "c"


def test_what_has_waited_longest_goes_first_a_plain_input_or_a_batch(desk: Desk) -> None:
    desk.add("batched", "batch")
    desk.now = 0.5
    desk.add("plain", "plain")
    desk.now = 1.0
    assert desk.take() == "batched"
    desk.end("batch")
    assert desk.take() == "plain"


def test_a_batch_whose_window_is_open_lets_others_go_before_it(desk: Desk) -> None:
    desk.add("batched", "batch")
    desk.now = 0.5
    desk.add("plain", "plain")
    assert desk.take() == "plain"
    desk.end("plain")
    assert desk.take() == ""
    assert desk.agenda.next_start() == 1.0


def test_a_full_batch_does_not_wait_for_its_window(desk: Desk) -> None:
    for name in "abc":
        desk.add(name, "batch")
    assert desk.take() == "a b"


def test_a_window_that_closes_while_nothing_may_start_wakes_nobody(desk: Desk) -> None:
    desk.add("plain", "plain")
    desk.take()
    desk.add("batched", "batch")
    assert desk.agenda.next_start() is None
    desk.end("plain")
    assert desk.agenda.next_start() == 1.0


def test_inputs_with_different_parameters_form_batches_of_their_own(desk: Desk) -> None:
    desk.add("a", "batch", parameters="x")
    desk.add("b", "batch", parameters="y")
    desk.now = 1.0
    assert desk.take() == "a"
    desk.end("batch")
    assert desk.take() == "b"


def test_an_input_that_was_part_of_a_failed_batch_is_kept_in_a_smaller_one(desk: Desk) -> None:
    desk.add("a", "batch", cap=1)
    desk.add("b", "batch")
    assert desk.take() == "a"


def test_what_has_been_answered_is_not_started(desk: Desk) -> None:
    plain, batched = desk.add("plain", "plain"), desk.add("batched", "batch")
    for given in (plain, batched):
        given.answered = True
        desk.agenda.remove(given)
    desk.now = 2.0
    assert desk.take() == ""
    assert desk.agenda.next_start() is None


def test_removing_what_is_not_there_changes_nothing(desk: Desk) -> None:
    first, _ = desk.add("a", "batch"), desk.add("b", "batch")
    desk.now = 1.0
    assert desk.take() == "a b"
    desk.agenda.remove(first)
    desk.end("batch")
    desk.add("c", "batch")
    desk.agenda.remove(first)
    desk.now = 2.0
    assert desk.take() == "c"


def test_with_concurrency_plain_inputs_start_as_they_come_also_beside_a_batch(wide: Desk) -> None:
    for name in "ab":
        wide.add(name, "batch")
    for name in "cde":
        wide.add(name, "plain")
    assert sorted(wide.take() for _ in range(4)) == ["a b", "c", "d", "e"]


def test_a_batched_method_runs_as_many_batches_at_a_time_as_it_has_permits(wide: Desk) -> None:
    for name in "abcdefgh":
        wide.add(name, "twice")
    assert [wide.take() for _ in range(3)] == ["a b", "c d", ""]
    wide.end("twice")
    assert wide.take() == "e f"


def test_two_batched_methods_that_share_the_main_thread_take_turns(wide: Desk) -> None:
    for method, names in (("batch", "abcd"), ("other", "efgh")):
        for name in names:
            wide.add(name, method)
    assert [wide.take(), wide.take()] == ["a b", ""]
    wide.end("batch")
    assert [wide.take(), wide.take()] in (["c d", ""], ["e f", ""])


def test_sync_code_of_which_only_one_can_run_keeps_to_the_main_thread(desk: Desk, wide: Desk) -> None:
    on_main = {name: desk.agenda.begin(method) for name, method in desk.spec.methods.items()}
    assert on_main == {"plain": True, "later": False, "batch": True, "other": True}
    on_main = {name: wide.agenda.begin(method) for name, method in wide.spec.methods.items()}
    assert on_main == {"plain": False, "later": False, "batch": True, "other": True, "twice": False}


# --- several callers ---------------------------------------------------------------------------------------------


def test_an_input_of_another_caller_does_not_wait_behind_all_that_one_has_sent(desk: Desk) -> None:
    for n in range(5):
        desk.add(f"hot{n}", "plain", caller="hot")
    assert desk.take() == "hot0"
    desk.add("light", "plain", caller="light")
    order = []
    for _ in range(5):
        desk.end("plain")
        order.append(desk.take())
    assert order == ["hot1", "light", "hot2", "hot3", "hot4"]


def test_that_holds_across_methods(desk: Desk) -> None:
    for n in range(4):
        desk.add(f"hot{n}", "plain", caller="hot")
    assert desk.take() == "hot0"
    desk.add("x", "batch", caller="light")
    desk.add("y", "batch", caller="light")
    desk.end("plain")
    assert desk.take() == "hot1"
    desk.end("plain")
    assert desk.take() == "x y"


def test_callers_that_send_all_the_time_start_in_turn(desk: Desk) -> None:
    for n in range(3):
        for caller in "abc":
            desk.add(f"{caller}{n}", "plain", caller=caller)
    order = [desk.take()]
    for _ in range(8):
        desk.end("plain")
        order.append(desk.take())
    assert order == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


def test_a_batch_has_inputs_of_each_caller(desk: Desk) -> None:
    for n in range(4):
        desk.add(f"hot{n}", "batch", caller="hot")
    desk.add("light", "batch", caller="light")
    assert desk.take() == "hot0 light"


def test_a_caller_that_withdraws_loses_no_turns_by_it(desk: Desk) -> None:
    given = [desk.add(f"a{n}", "plain", caller="a") for n in range(3)]
    for late in reversed(given):
        late.answered = True
        desk.agenda.remove(late)
    desk.add("b0", "plain", caller="b")
    desk.add("b1", "plain", caller="b")
    desk.add("a3", "plain", caller="a")
    order = [desk.take()]
    for _ in range(2):
        desk.end("plain")
        order.append(desk.take())
    assert order == ["b0", "a3", "b1"]


def test_callers_that_have_gone_are_forgotten(desk: Desk) -> None:
    for n in range(500):
        desk.add("x", "plain", caller=f"caller-{n}")
        desk.take()
        desk.end("plain")
    assert len(desk.agenda._turns._last) <= 65
