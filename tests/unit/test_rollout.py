"""DESIGN §4, Updates: new workers first, or one at a time where both do not fit; one that fails is rolled back."""

from __future__ import annotations

from typing import Any

from gworker.control.demands import DEMAND_EXPIRES_S
from gworker.control.rollout import SWAP_AFTER_S, Phase, Rollout, Update
from gworker.control.workers import WorkerState
from tests.unit.test_pool import Keeper


class Site:
    """A place with room for so many workers, an old pool in it, and a new one on its way."""

    def __init__(self, room: int, old: int, **options: Any) -> None:
        self.room = room
        self.room_is_given_away = False
        self.old = Keeper(**{"min_workers": old, "max_workers": 10, **options})
        self.old.plan()
        self.old.come_up()
        for worker in self.old.pool.workers.values():
            worker.placed = True
        self.new = Keeper(**{"min_workers": 1, "max_workers": 10, **options})
        self.rollout = Rollout(self.old.pool, self.new.pool)
        self.update = Update(1, {}, {self.old.pool.definition.key: self.rollout})
        self.least_serving = old

    def holding(self) -> int:
        """Workers that hold a place."""
        workers = [*self.old.pool.workers.values(), *self.new.pool.workers.values()]
        return sum(worker.placed for worker in workers)

    def fits(self, pool: Any) -> bool | None:
        return None if self.room_is_given_away else self.holding() < self.room

    def step(self, seconds: float = 0.25, *, come_up: bool = True) -> Phase:
        for keeper in (self.old, self.new):
            keeper.now += seconds
            for worker in list(keeper.pool.workers.values()):
                if worker.draining:
                    keeper.go(worker.id)
        for keeper in (self.old, self.new):
            keeper.plan()
        for worker in self.new.pool.workers.values():
            if not worker.placed and self.holding() < self.room:
                worker.placed = True
        phase = self.update.step(self.new.now, self.fits)
        for worker in list(self.new.pool.workers.values()):
            if come_up and worker.placed:
                self.new.come_up(worker.id)
        ready = self.old.count(WorkerState.READY) + self.new.count(WorkerState.READY)
        self.least_serving = min(self.least_serving, ready)
        return phase

    def run(self, steps: int = 200, **given: Any) -> Phase:
        phase = Phase.SURGING
        for _ in range(steps):
            phase = self.step(**given)
            if phase in (Phase.READY, Phase.FAILED):
                break
        return phase


def test_with_room_for_both_the_old_ones_all_serve_until_as_many_new_ones_do() -> None:
    site = Site(room=10, old=3)
    assert site.run() is Phase.READY
    assert site.least_serving == 3
    assert site.new.count(WorkerState.READY) == 3, "no less capacity than before"
    site.update.commit()
    site.old.plan()
    assert site.old.count(WorkerState.DRAINING) == 3


def test_while_new_ones_only_take_long_to_start_no_old_one_goes() -> None:
    site = Site(room=10, old=2)
    assert site.run(steps=400, come_up=False) is Phase.SURGING
    assert site.least_serving == 2


def test_without_room_one_goes_at_a_time_and_the_next_when_its_successor_is_ready() -> None:
    site = Site(room=3, old=3)
    assert site.run() is Phase.READY
    assert site.least_serving == 2
    assert site.new.count(WorkerState.READY) == 3
    assert site.old.pool.workers == {}


def test_a_process_that_starts_slowly_where_there_is_room_is_not_taken_for_a_lack_of_it() -> None:
    site = Site(room=3, old=1)
    for _ in range(40):
        for keeper in (site.old, site.new):
            keeper.now += SWAP_AFTER_S
            keeper.plan()
        assert site.update.step(site.new.now, lambda _: True) is Phase.SURGING


def test_room_that_is_taken_by_nobody_we_know_is_waited_for_a_process_may_be_on_its_way() -> None:
    site = Site(room=3, old=3)
    site.room_is_given_away = True
    assert site.run(steps=100, come_up=False) is Phase.SURGING, "25 s"
    assert site.run(steps=40, come_up=False) is Phase.SWAPPING, "it is somebody else who has it"
    site.room_is_given_away = False
    assert site.run() is Phase.READY
    assert site.least_serving == 2


def test_with_room_for_one_the_only_worker_makes_way_and_comes_back_if_the_new_one_fails() -> None:
    site = Site(room=1, old=1)
    phase = Phase.SURGING
    for _ in range(4000):
        phase = site.step(come_up=False)
        if phase is Phase.FAILED:
            break
        for worker in list(site.new.pool.workers.values()):
            if worker.placed:
                site.new.pool.start_failed(worker, "Traceback ...\nValueError: no weights", site.new.now)
    assert phase is Phase.FAILED
    assert "ValueError: no weights" in site.update.reason
    site.update.roll_back()
    site.new.plan()
    assert site.new.count(WorkerState.STARTING) == 0
    site.old.plan()
    site.old.come_up()
    assert site.old.count(WorkerState.READY) == 1
    assert site.old.wait(DEMAND_EXPIRES_S * 20) == [], "it stays at its floor"


def test_a_new_version_whose_workers_come_up_only_now_and_then_is_not_waited_for_for_ever() -> None:
    site = Site(room=10, old=3)
    for _ in range(4000):
        phase = site.step(come_up=False)
        if phase is not Phase.SURGING:
            break
        starting = [w for w in site.new.pool.workers.values() if w.state is WorkerState.STARTING]
        for worker in starting:
            if site.new.count(WorkerState.READY):
                site.new.pool.start_failed(worker, "Traceback ...\nOSError: the port is in use", site.new.now)
            else:
                site.new.come_up(worker.id)
    assert phase is Phase.FAILED
    assert "OSError: the port is in use" in site.update.reason
    assert site.least_serving == 3


def test_a_class_without_workers_is_updated_without_starting_any() -> None:
    site = Site(room=10, old=0)
    site.new = Keeper(min_workers=0)
    rollout = Rollout(site.old.pool, site.new.pool)
    rollout.step(site.new.now, lambda _: True)
    assert rollout.phase is Phase.READY
    assert site.new.plan() == []


def test_an_update_is_ready_when_all_its_pools_are_and_fails_with_the_first() -> None:
    ready, slow = Site(room=10, old=1), Site(room=10, old=1)
    update = Update(1, {}, {})
    update.rollouts = {"a": ready.rollout, "b": slow.rollout}  # type: ignore[dict-item]
    for _ in range(5):
        ready.step()
        slow.step(come_up=False)
    assert update.step(slow.new.now, lambda _: True) is Phase.SURGING
    slow.step()
    slow.step()
    assert update.step(slow.new.now, lambda _: True) is Phase.READY
    slow.rollout.phase = Phase.FAILED
    assert update.step(slow.new.now, lambda _: True) is Phase.FAILED


def test_after_the_update_the_new_pool_follows_its_own_demand_from_the_size_it_has() -> None:
    site = Site(room=10, old=3)
    site.run()
    site.update.commit()
    assert site.new.wait(5) == []
    stopped = site.new.wait(60)
    assert len(stopped) == 2, "down to the floor, after the window"
