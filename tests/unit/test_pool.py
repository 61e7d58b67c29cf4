"""One pool with a fake clock: what it starts and stops, and what routers and people are told of it."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from gworker.control.pool import DEMAND_EXPIRES_S, Pool, Start, Stop, Worker, WorkerState
from gworker.control.supervisor import RETRY_FAILED_S, Supervisor
from gworker.errors import StartupFailed, Unschedulable
from gworker.options import Options
from gworker.router.membership import Demand, PoolDefinition, PoolKey, PoolState
from gworker.wire import Payload

TICK_S = 0.25


class Ceiling(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


class Keeper:
    """Carries out what the pool plans, as a controller would, with a clock of its own."""

    def __init__(self, *, target_inputs: int = 1, **options: Any) -> None:
        given = {"scaledown_window_s": 10, **options}
        definition = PoolDefinition(
            key=PoolKey("Embedder"),
            cls=Payload(b""),
            worker_values=Payload(b""),
            options=Options.build(given, where="test"),
            max_inputs=4,
            target_inputs=target_inputs,
        )
        self.pool = Pool(definition, Supervisor(definition.options.min_workers, Ceiling()))
        self.now = 100.0
        self._numbers = itertools.count(1)

    def plan(self) -> list[Start | Stop]:
        actions = self.pool.plan(self.now)
        for action in actions:
            if isinstance(action, Start):
                for _ in range(action.count):
                    number = next(self._numbers)
                    self.pool.workers[f"w{number}"] = Worker(f"w{number}", number, self.now)
            else:
                self.pool.workers[action.worker_id].state = WorkerState.DRAINING
        return actions

    def come_up(self, *names: str) -> None:
        for worker in list(self.pool.workers.values()):
            if worker.state is WorkerState.STARTING and (not names or worker.id in names):
                self.pool.started(worker, worker.number, "node")

    def fail(self, error: str = "Traceback ...\nValueError: no model") -> None:
        for worker in list(self.pool.workers.values()):
            if worker.state is WorkerState.STARTING:
                self.pool.start_failed(worker, error, self.now)

    def demand(self, queued: int, running: int = 0, router: str = "r") -> None:
        self.pool.report(router, Demand(queued, running), self.now)

    def ready(self, workers: int, **demand: int) -> None:
        """Bring up `workers` workers."""
        self.demand(workers)
        self.plan()
        self.come_up()
        assert self.count(WorkerState.READY) == workers

    def wait(self, seconds: float, queued: int = 0, running: int = 0) -> list[Start | Stop]:
        """Let time pass with ticks, the router repeating its demand; what was planned meanwhile."""
        planned = []
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            self.demand(queued, running)
            planned += self.plan()
        return planned

    def count(self, state: WorkerState) -> int:
        return sum(w.state is state for w in self.pool.workers.values())


# --- size --------------------------------------------------------------------------------------------------------


def test_the_floor_is_there_from_the_first_plan_on() -> None:
    keeper = Keeper(min_workers=3)
    assert keeper.plan() == [Start(3)]
    assert keeper.plan() == [], "workers that start count as capacity"


def test_without_a_floor_nothing_runs_until_a_call_waits() -> None:
    keeper = Keeper()
    assert keeper.plan() == []
    keeper.demand(1)
    assert keeper.plan() == [Start(1)]


def test_one_worker_for_each_target_inputs_of_demand_queued_and_running_of_all_routers() -> None:
    keeper = Keeper(target_inputs=10)
    keeper.demand(11, 10, router="a")
    keeper.demand(0, 10, router="b")
    assert keeper.plan() == [Start(4)]


def test_never_more_than_max_workers() -> None:
    keeper = Keeper(max_workers=2)
    keeper.demand(1000)
    assert keeper.plan() == [Start(2)]


def test_a_worker_that_crashed_is_replaced_at_once() -> None:
    keeper = Keeper(min_workers=2)
    keeper.plan()
    keeper.come_up()
    keeper.pool.lost(keeper.pool.workers["w1"], "exit code 3", keeper.now)
    assert keeper.plan() == [Start(1)]
    assert keeper.pool.supervisor.restarts == 1


def test_a_worker_that_is_replaced_drains_while_its_successor_starts() -> None:
    keeper = Keeper(min_workers=1)
    keeper.plan()
    keeper.come_up()
    worker = keeper.pool.workers["w1"]
    keeper.pool.replace(worker, "liveness probe failed", keeper.now)
    assert keeper.plan() == [Start(1)]
    assert worker.state is WorkerState.DRAINING
    keeper.pool.lost(worker, "killed", keeper.now)
    assert keeper.plan() == []
    assert keeper.pool.supervisor.restarts == 1, "its end was wanted and counts once"


def test_an_unready_worker_counts_as_capacity_and_is_not_replaced() -> None:
    keeper = Keeper(min_workers=1)
    keeper.plan()
    keeper.come_up()
    keeper.pool.workers["w1"].state = WorkerState.UNREADY
    assert keeper.plan() == []


def test_workers_beyond_the_need_go_after_the_window_newest_first() -> None:
    keeper = Keeper()
    keeper.ready(3)
    planned = keeper.wait(30.0, running=1)
    assert planned == [Stop("w3", "scaled down"), Stop("w2", "scaled down")]
    assert keeper.wait(30.0, running=1) == []


def test_workers_that_do_not_serve_yet_go_before_those_that_do() -> None:
    keeper = Keeper()
    keeper.demand(3)
    keeper.plan()
    keeper.come_up("w3")
    assert [a.worker_id for a in keeper.wait(30.0, running=1) if isinstance(a, Stop)] == ["w2", "w1"]


def test_the_last_worker_goes_when_nobody_calls_for_the_window() -> None:
    keeper = Keeper()
    keeper.ready(1)
    assert keeper.wait(5.0) == []
    assert keeper.wait(10.0) == [Stop("w1", "scaled down")]


def test_the_floor_stays_however_long_nobody_calls() -> None:
    keeper = Keeper(min_workers=2)
    keeper.plan()
    keeper.come_up()
    assert keeper.wait(60.0) == []


def test_a_draining_worker_is_not_stopped_twice_and_counts_for_nothing() -> None:
    keeper = Keeper()
    keeper.ready(1)
    keeper.wait(15.0)
    keeper.demand(1)
    assert keeper.plan() == [Start(1)]
    assert keeper.count(WorkerState.DRAINING) == 1


# --- demand ------------------------------------------------------------------------------------------------------


def test_the_demand_of_a_router_that_fell_silent_is_forgotten() -> None:
    keeper = Keeper()
    keeper.demand(5, 2, router="dead")
    keeper.now += DEMAND_EXPIRES_S
    assert keeper.pool.demand(keeper.now) == Demand(5, 2)
    keeper.demand(1, 0, router="alive")
    keeper.now += 0.01
    assert keeper.pool.demand(keeper.now) == Demand(1, 0)


def test_a_report_replaces_the_routers_last_one_and_an_empty_one_withdraws_it() -> None:
    keeper = Keeper()
    keeper.demand(5, 2)
    keeper.demand(1, 1)
    assert keeper.pool.demand(keeper.now) == Demand(1, 1)
    keeper.demand(0, 0)
    assert keeper.pool.demand(keeper.now) == Demand(0, 0)


# --- starts that fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("floor", "starts"), [(0, 3), (1, 3), (2, 6), (7, 20), (30, 20)])
def test_a_pool_fails_when_its_first_starts_all_failed(floor: int, starts: int) -> None:
    keeper = Keeper(min_workers=floor)
    keeper.demand(1)
    failed = 0
    for _ in range(1000):
        keeper.plan()
        for worker in list(keeper.pool.workers.values()):
            assert keeper.pool.failure is None
            keeper.pool.start_failed(worker, "Traceback ...\nValueError: no model", keeper.now)
            failed += 1
            if failed == starts:
                break
        if failed == starts:
            break
        keeper.now += 1.0
        keeper.demand(1)
    assert isinstance(keeper.pool.failure, StartupFailed)
    keeper.pool.workers.clear()
    assert keeper.pool.state is PoolState.FAILED
    assert "Embedder" in str(keeper.pool.failure) and "ValueError: no model" in str(keeper.pool.failure)


def hopeless(floor: int) -> Keeper:
    keeper = Keeper(min_workers=floor)
    while keeper.pool.state is not PoolState.FAILED:
        keeper.plan()
        keeper.fail()
        keeper.now += 1.0
    return keeper


def test_a_failed_pool_makes_one_more_try_a_minute() -> None:
    keeper = hopeless(4)
    tries = []
    for _ in range(5):
        start = keeper.now
        while not (planned := keeper.plan()):
            keeper.now += 1.0
        assert keeper.plan() == [], "not a second one while the first is starting"
        tries.append((planned, keeper.now - start))
        keeper.fail()
    assert [planned for planned, _ in tries] == [[Start(1)]] * 5
    assert all(waited == RETRY_FAILED_S for _, waited in tries[1:])


def test_a_failed_pool_recovers_with_the_first_start_that_succeeds() -> None:
    keeper = hopeless(4)
    keeper.now += RETRY_FAILED_S
    keeper.plan()
    keeper.come_up()
    assert keeper.pool.failure is None
    assert keeper.pool.state is PoolState.SCALING
    assert keeper.plan() == [Start(3)]


def test_between_failed_starts_the_pool_backs_off() -> None:
    keeper = Keeper(min_workers=8)
    starts = []
    while keeper.now < 107.9:
        if keeper.plan():
            starts.append(keeper.now)
            keeper.pool.start_failed(next(iter(keeper.pool.workers.values())), "boom", keeper.now)
        keeper.now += 0.5
    # The first failure is followed at once, then after 1, 2 and 4 s at most.
    assert starts == [100.0, 100.5, 101.5, 103.5, 107.5]
    assert keeper.pool.wakes_at() == 115.5


def test_a_failed_scale_up_never_fails_calls_while_others_serve() -> None:
    keeper = Keeper()
    keeper.ready(1)
    for _ in range(30):
        keeper.wait(60.0, queued=5)
        keeper.fail()
    assert keeper.pool.failure is None
    assert keeper.pool.state is PoolState.SCALING


def test_what_cannot_be_placed_is_unschedulable_until_something_starts() -> None:
    keeper = Keeper()
    keeper.demand(1)
    keeper.plan()
    keeper.pool.unschedulable = "needs GPU A100 x1; this cluster has none"
    assert isinstance(keeper.pool.failure, Unschedulable)
    assert str(keeper.pool.failure) == "Embedder needs GPU A100 x1; this cluster has none"
    keeper.come_up()
    assert keeper.pool.failure is None


# --- a new definition --------------------------------------------------------------------------------------------


def test_a_retired_pool_lets_its_workers_go_though_it_has_a_floor() -> None:
    keeper = Keeper(min_workers=2)
    keeper.plan()
    keeper.come_up()
    keeper.pool.retired = True
    reason = "replaced by a new definition"
    assert keeper.plan() == [Stop("w2", reason), Stop("w1", reason)]


def test_a_retired_pool_first_serves_what_was_called_before() -> None:
    keeper = Keeper()
    keeper.ready(2)
    keeper.demand(3, 2)
    keeper.pool.retired = True
    assert keeper.plan() == []
    keeper.demand(0, 0)
    assert len(keeper.plan()) == 2


def test_a_retired_pool_without_workers_starts_one_for_what_still_waits() -> None:
    keeper = Keeper()
    keeper.demand(500)
    keeper.pool.retired = True
    assert keeper.plan() == [Start(1)]


def test_a_retired_pool_starts_none_for_a_late_report_of_what_ran() -> None:
    keeper = Keeper()
    keeper.demand(0, 1)
    keeper.pool.retired = True
    assert keeper.plan() == []


# --- what routers and people are told ----------------------------------------------------------------------------


def test_the_views_version_grows_exactly_when_something_that_routers_act_on_has_changed() -> None:
    keeper = Keeper()
    version = keeper.pool.view().version
    assert keeper.pool.view().version == version

    def changed() -> bool:
        nonlocal version
        before, version = version, keeper.pool.view().version
        assert version >= before
        return version > before

    keeper.demand(2)
    assert not changed()
    keeper.plan()
    assert changed(), "workers are starting"
    keeper.come_up("w1")
    assert changed(), "one serves"
    keeper.come_up("w2")
    assert changed()
    keeper.demand(1, 1)
    assert not changed(), "the demand is nothing to routers"
    keeper.pool.workers["w1"].state = WorkerState.UNREADY
    assert changed()
    keeper.pool.lost(keeper.pool.workers["w2"], "exit code 1", keeper.now)
    assert changed()
    keeper.pool.notice = "it runs without a GPU"
    assert changed()
    keeper.pool.unschedulable = "needs GPU x1; this cluster has none"
    assert changed()


def test_routers_see_every_worker_that_has_inputs_and_which_of_them_take_more() -> None:
    keeper = Keeper()
    keeper.demand(4)
    keeper.plan()
    keeper.come_up("w1", "w2", "w3")
    keeper.pool.workers["w2"].state = WorkerState.UNREADY
    keeper.pool.workers["w3"].state = WorkerState.DRAINING
    view = keeper.pool.view()
    assert [(w.id, w.ready, w.capacity) for w in view.workers] == [("w1", True, 4), ("w2", False, 4), ("w3", False, 4)]


def test_it_says_what_calls_wait_for() -> None:
    keeper = Keeper()
    assert keeper.pool.waiting_for() == "no worker yet"
    keeper.demand(2)
    keeper.plan()
    assert keeper.pool.waiting_for() == "2 starting (on_enter is running)"
    keeper.pool.workers["w1"].pending = "waiting for GPU A100 x1, CPU x1"
    assert keeper.pool.waiting_for() == "2 starting: waiting for GPU A100 x1, CPU x1"
    keeper.fail()
    assert keeper.pool.waiting_for() == "backing off after a failed start: ValueError: no model"
    keeper.now += 60
    keeper.demand(1)
    keeper.plan()
    keeper.come_up()
    for worker in keeper.pool.workers.values():
        worker.state, worker.reason = WorkerState.UNREADY, "readiness probe warm failed 3 times"
    assert "not ready: readiness probe warm failed 3 times" in keeper.pool.waiting_for()


def test_its_status_counts_workers_and_demand() -> None:
    keeper = Keeper()
    keeper.demand(3, 0)
    keeper.plan()
    keeper.come_up("w1")
    keeper.pool.workers["w2"].state = WorkerState.DRAINING
    keeper.demand(4, 2)
    keeper.now += 2.0
    status = keeper.pool.status(keeper.now)
    assert (status.ready, status.starting, status.draining) == (1, 1, 1)
    assert (status.queued, status.running, status.desired, status.restarts) == (4, 2, 3, 0)
    assert [(w.id, w.state, w.age_s) for w in status.workers] == [
        ("w1", "READY", 2.0),
        ("w2", "DRAINING", 2.0),
        ("w3", "STARTING", 2.0),
    ]


def test_a_pool_that_has_what_it_wants_is_ready_and_one_on_the_way_is_scaling() -> None:
    keeper = Keeper(min_workers=1)
    assert keeper.pool.state is PoolState.SCALING
    keeper.plan()
    assert keeper.pool.state is PoolState.SCALING
    keeper.come_up()
    assert keeper.pool.state is PoolState.READY
