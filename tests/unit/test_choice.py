"""Which worker a call goes to: the least loaded with room, found without looking at all of them."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from gworker.router.choice import ASK_FIRST, ASK_PER_CALL, MOST_TRIES, Choice


class Worker:
    """A worker as one router sees it; counts how often it was looked at."""

    looks = 0

    def __init__(self, name: str = "", capacity: int = 4) -> None:
        self.name = name
        self.capacity = capacity
        self.calls = 0
        self.others = 0
        self.ready = True

    @property
    def load(self) -> float:
        Worker.looks += 1
        return self.calls / self.capacity

    def has_room(self) -> bool:
        Worker.looks += 1
        return self.calls + self.others < self.capacity

    def __repr__(self) -> str:
        return f"{self.name}:{self.calls}+{self.others}/{self.capacity}"


def choice_of(*workers: Worker, seed: int = 1) -> Choice[Worker]:
    choice: Choice[Worker] = Choice(random.Random(seed).random)
    for worker in workers:
        choice.add(worker)
    return choice


def least_loaded(workers: list[Worker]) -> list[Worker]:
    """The rule in plain words: of those that are ready and have room, those with the least load."""
    usable = [w for w in workers if w.ready and w.has_room()]
    return [w for w in usable if w.load == min(u.load for u in usable)]


operations = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "send", "end", "come", "go", "unready", "ready"]),
        st.integers(0, 5),
    ),
    max_size=120,
)


@settings(max_examples=200)
@given(
    capacities=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    operations=operations,
    seed=st.integers(0, 100),
)
def test_a_call_goes_to_one_that_has_least_load_and_room(
    capacities: list[int], operations: list[tuple[str, int]], seed: int
) -> None:
    workers = [Worker(str(n), capacity) for n, capacity in enumerate(capacities)]
    choice = choice_of(*workers, seed=seed)
    for what, number in operations:
        worker = workers[number % len(workers)]
        if what == "send":
            fitting = least_loaded(workers)
            picked = choice.pick()
            assert (picked is None) == (not fitting)
            if picked is not None:
                assert picked in fitting
                picked.calls += 1
            else:
                choice.ask(1)
        elif what == "end" and worker.calls:
            worker.calls -= 1
            choice.heard(worker)
        elif what == "come":  # another router's call: we learn of it when we look
            worker.others += 1
        elif what == "go" and worker.others:
            worker.others -= 1
            choice.heard(worker)
        elif what in {"ready", "unready"}:
            worker.ready = what == "ready"
            if worker.ready:
                choice.add(worker)
            else:
                choice.remove(worker)
        assert len(choice) == sum(w.ready for w in workers)


@settings(max_examples=100)
@given(
    rooms=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    waiting=st.integers(1, 50),
    seed=st.integers(0, 100),
)
def test_however_often_they_were_refused_all_calls_find_their_places(rooms: list[int], waiting: int, seed: int) -> None:
    # Only what a worker says is to be relied on; all that have room say so once they are asked.
    workers = [Worker(str(n), 4) for n in range(len(rooms))]
    choice = choice_of(*workers, seed=seed)
    truly = dict(zip(workers, rooms, strict=True))
    for worker in workers:
        worker.others = 4
    sent = 0
    while sent < waiting:
        picked = choice.pick(tries=MOST_TRIES)
        if picked is not None:
            picked.calls += 1
            truly[picked] -= 1
            assert truly[picked] >= 0
            sent += 1
            continue
        asked = choice.ask(waiting - sent)
        for worker in asked:
            worker.others = 4 - worker.calls - truly[worker]
            if truly[worker]:
                choice.heard(worker)
        if not asked:
            if choice.all_asked:
                break
            choice.ask_more()
    assert sent == min(waiting, sum(rooms))


def test_equal_workers_are_chosen_evenly_and_by_each_router_in_an_order_of_its_own() -> None:
    workers = [Worker(str(n)) for n in range(20)]
    firsts = Counter(choice_of(*workers, seed=seed).pick() for seed in range(400))
    assert len(firsts) == 20 and max(firsts.values()) < 3 * 400 / 20


def test_a_lone_caller_does_not_stay_with_one_worker() -> None:
    # Two that had met by chance would share it for ever, beside idle ones.
    workers = [Worker(str(n)) for n in range(4)]
    choice = choice_of(*workers)
    met: Counter[Worker] = Counter()
    for _ in range(400):
        picked = choice.pick()
        assert picked is not None
        met[picked] += 1
        picked.calls += 1
        picked.calls -= 1
        choice.heard(picked)
    assert set(met.values()) == {100}


def test_another_attempt_goes_to_another_worker_where_one_has_room() -> None:
    one, other = Worker("one"), Worker("other")
    choice = choice_of(one, other)
    other.calls = 3
    assert choice.pick() is one
    assert choice.pick(avoid=one) is other
    other.calls = 4
    assert choice.pick(avoid=one) is one
    choice.heard(other)
    one.others = 4
    assert choice.pick(avoid=one) is None


def test_a_call_that_was_refused_twice_goes_only_where_there_is_room_for_certain() -> None:
    idle, used = Worker("idle"), Worker("used")
    choice = choice_of(idle, used)
    used.calls = 1
    assert choice.pick(tries=MOST_TRIES - 1) is idle
    assert choice.pick(tries=MOST_TRIES) is None  # the idle one may be full of others' calls by now
    assert choice.ask(1) == [idle]
    assert choice.pick(tries=MOST_TRIES) is used
    choice.heard(idle)
    assert choice.pick(tries=MOST_TRIES) is idle


def test_few_are_asked_for_one_call_more_for_many_and_more_with_time() -> None:
    workers = [Worker(str(n)) for n in range(100)]
    choice = choice_of(*workers)
    for worker in workers:
        worker.others = 4
    assert choice.pick() is None
    assert len(choice.ask(1)) == ASK_FIRST + ASK_PER_CALL
    assert choice.ask(1) == []
    choice.ask_more()
    assert len(choice.ask(1)) == ASK_FIRST + ASK_PER_CALL
    assert len(choice.ask(40)) == ASK_FIRST + 40 * ASK_PER_CALL - 12
    assert not choice.all_asked
    choice.ask_more()
    assert len(choice.ask(40)) == 100 - 84
    assert choice.all_asked


def test_one_that_was_asked_for_nothing_is_asked_again_before_it_is_relied_on() -> None:
    idle, full = Worker("idle"), Worker("full")
    full.others = 4
    choice = choice_of(idle, full)
    idle.others = 4
    assert choice.pick() is None
    assert set(choice.ask(1)) == {idle, full}
    assert set(choice.ask_no_more()) == {idle, full}
    idle.others = 0
    assert choice.pick() is None, "it has not said so"
    choice.heard(idle)
    assert choice.pick() is idle


def test_what_a_choice_costs_does_not_grow_with_the_workers() -> None:
    def looks(count: int) -> float:
        """Looks at workers for each call of a saturated router, whose calls end one by one."""
        workers = [Worker(str(n)) for n in range(count)]
        choice = choice_of(*workers)
        while (picked := choice.pick()) is not None:
            picked.calls += 1
        choice.ask(10_000)
        before = Worker.looks
        dice = random.Random(1)
        for _ in range(500):
            ended = dice.choice(workers)
            ended.calls -= 1
            choice.heard(ended)
            picked = choice.pick()
            assert picked is ended
            picked.calls += 1
            assert choice.pick() is None
            assert choice.ask(10_000) == [ended]
        return (Worker.looks - before) / 500

    assert looks(1000) == looks(10) < 10


def test_all_that_were_asked_are_told_when_nothing_waits_any_more_also_those_that_have_answered() -> None:
    one, other = Worker("one"), Worker("other")
    choice = choice_of(one, other)
    one.others = other.others = 4
    assert choice.pick() is None
    assert set(choice.ask(1)) == {one, other}
    one.others = 3
    choice.heard(one)
    assert choice.pick() is one
    assert set(choice.ask_no_more()) == {one, other}
    assert choice.ask_no_more() == []
    assert not choice.remove(one)
