"""One pool with a fake clock: what it starts and stops, and what routers and people are told of it."""

from __future__ import annotations

import random
from typing import Any

import pytest

import gworker as gw
from gworker.control.health import ERRORS_IN_A_ROW
from gworker.control.pool import FORGET_POOL_S, UNREADY_COUNTS_S, Pool, Start, Stop
from gworker.control.supervisor import RETRY_FAILED_S
from gworker.control.workers import Worker, WorkerState
from gworker.errors import GWorkerError, StartupFailed, Unschedulable
from gworker.observe.times import Tally
from gworker.options import Options
from gworker.probe import Verdict
from gworker.router.membership import Demand, PoolDefinition, PoolKey, PoolState
from gworker.wire import Payload

TICK_S = 0.25
LIVENESS = gw.Probe.on("alive", kind="liveness", failures=1, period_s=10)
READINESS = gw.Probe.on("warm", kind="readiness", failures=1, period_s=10)


class Ceiling(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


class Keeper:
    """Carries out what the pool plans, as a controller would, with a clock of its own."""

    def __init__(self, *, target_inputs: int = 1, floor_when_idle: bool = True, **options: Any) -> None:
        given = {"scaledown_window_s": 10, **options}
        definition = PoolDefinition(
            key=PoolKey("Embedder"),
            cls=Payload(b""),
            worker_values=Payload(b""),
            options=Options.build(given, where="test"),
            max_inputs=4,
            target_inputs=target_inputs,
            floor_when_idle=floor_when_idle,
        )
        self.now = 100.0
        self.events: list[tuple[str, str, str]] = []
        self.pool = Pool(definition, self.now, rng=Ceiling(), on_event=lambda *event: self.events.append(event))
        self._number = 0

    def plan(self) -> list[Start | Stop]:
        actions = self.pool.plan(self.now)
        for action in actions:
            if isinstance(action, Start):
                self._number += 1
                self.pool.add(action.slot, f"w{self._number}", self._number, self.now)
        return actions

    def starts(self) -> int:
        """Plan; how many workers are to be started."""
        return sum(isinstance(action, Start) for action in self.plan())

    def worker(self, name: str) -> Worker:
        return self.pool.workers[name]

    def come_up(self, *names: str) -> None:
        for worker in list(self.pool.workers.values()):
            if worker.state is WorkerState.STARTING and (not names or worker.id in names):
                self.pool.started(worker, worker.number, "node", self.now)

    def fail(self, error: str = "Traceback ...\nValueError: no model") -> None:
        for worker in list(self.pool.workers.values()):
            if worker.state is WorkerState.STARTING:
                self.pool.start_failed(worker, error, self.now)

    def go(self, *names: str) -> None:
        """The processes of these draining workers end."""
        for name in names:
            self.pool.lost(self.worker(name), "killed", self.now)

    def crash(self, name: str) -> None:
        self.pool.lost(self.worker(name), "exit code 3", self.now)

    def probe(self, name: str, probe: gw.Probe, verdict: Verdict = Verdict.FAILED) -> None:
        self.pool.probed(self.worker(name), probe, verdict, 0.001, "returned False", self.now)

    def demand(self, queued: int, running: int = 0, router: str = "r", **more: Any) -> None:
        self.pool.report(router, Demand(queued, running, **more), self.now)

    def ready(self, workers: int) -> None:
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

    @property
    def state(self) -> PoolState:
        self.pool.refresh(self.now)
        return self.pool.view.state

    @property
    def failure(self) -> GWorkerError | None:
        self.pool.refresh(self.now)
        return self.pool.view.failure

    @property
    def waiting_for(self) -> str:
        return self.pool.waiting_for(self.now)

    def routable(self) -> set[str]:
        self.plan()
        return {w.id for w in self.pool.view.workers if w.ready}

    def actions(self, name: str = "") -> list[str]:
        """What the log says was done, to one worker or to the pool."""
        return [action for worker, action, _ in self.events if worker == name]


# --- size --------------------------------------------------------------------------------------------------------


def test_the_floor_is_there_from_the_first_plan_on() -> None:
    keeper = Keeper(min_workers=3)
    assert keeper.starts() == 3
    assert keeper.plan() == [], "workers that start count as capacity"


def test_without_a_floor_nothing_runs_until_a_call_waits() -> None:
    keeper = Keeper()
    assert keeper.plan() == []
    keeper.demand(1)
    assert keeper.starts() == 1


def test_one_worker_for_each_target_inputs_of_demand_queued_and_running_of_all_routers() -> None:
    keeper = Keeper(target_inputs=10)
    keeper.demand(11, 10, router="a")
    keeper.demand(0, 10, router="b")
    assert keeper.starts() == 4


def test_never_more_than_max_workers() -> None:
    keeper = Keeper(max_workers=2)
    keeper.demand(1000)
    assert keeper.starts() == 2


def test_a_worker_that_crashed_is_replaced_at_once() -> None:
    keeper = Keeper(min_workers=2)
    keeper.plan()
    keeper.come_up()
    keeper.crash("w1")
    assert keeper.starts() == 1
    assert keeper.pool.restarts == 1
    assert keeper.events[-2:] == [("w1", "crashed", "exit code 3"), ("w3", "starting", "restart 1 of its place")]


def test_a_worker_that_is_replaced_drains_while_its_successor_starts() -> None:
    keeper = Keeper(min_workers=1)
    keeper.plan()
    keeper.come_up()
    worker = keeper.worker("w1")
    keeper.pool.replace(worker, "fatal: the card is gone")
    assert keeper.plan() == [Stop("w1", "fatal: the card is gone"), Start(0)]
    assert worker.state is WorkerState.DRAINING
    keeper.go("w1")
    assert keeper.plan() == []
    assert keeper.pool.restarts == 1, "its end was wanted and counts once"


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
    assert keeper.starts() == 1
    assert keeper.count(WorkerState.DRAINING) == 1


def test_the_times_of_calls_that_routers_report_add_up_by_method() -> None:
    keeper = Keeper()
    for _ in range(2):
        tally = Tally()
        tally["embed"].append((1.0, 0.0, 2.0))
        tally["rank"].append((0.5, None, None))
        keeper.pool.count_times(tally.take())
    embed, rank = keeper.pool.status(keeper.now).times
    assert (embed.method, embed.queue.count, embed.run.mean_s) == ("embed", 2, 2.0)
    assert (rank.method, rank.queue.sum_s, rank.run.count) == ("rank", 1.0, 0)


# --- starts that fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("floor", "starts"), [(0, 3), (1, 3), (2, 6), (7, 20), (30, 20)])
def test_a_pool_fails_when_its_first_starts_all_failed(floor: int, starts: int) -> None:
    keeper = Keeper(min_workers=floor)
    keeper.demand(1)
    failed = 0
    for _ in range(1000):
        keeper.plan()
        for worker in list(keeper.pool.workers.values()):
            assert keeper.failure is None
            keeper.pool.start_failed(worker, "Traceback ...\nValueError: no model", keeper.now)
            failed += 1
            if failed == starts:
                break
        if failed == starts:
            break
        keeper.now += 1.0
        keeper.demand(1)
    assert isinstance(keeper.failure, StartupFailed)
    keeper.pool.workers.clear()
    assert keeper.state is PoolState.FAILED
    assert "Embedder" in str(keeper.failure) and "ValueError: no model" in str(keeper.failure)


def hopeless(floor: int) -> Keeper:
    keeper = Keeper(min_workers=floor)
    while keeper.state is not PoolState.FAILED:
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
    assert [len(planned) for planned, _ in tries] == [1] * 5
    assert all(waited == RETRY_FAILED_S for _, waited in tries[1:])


def test_a_failed_pool_recovers_with_the_first_start_that_succeeds() -> None:
    keeper = hopeless(4)
    keeper.now += RETRY_FAILED_S
    keeper.plan()
    keeper.come_up()
    assert keeper.failure is None
    assert keeper.state is PoolState.SCALING
    assert keeper.starts() == 3


def test_each_place_backs_off_between_its_failed_starts() -> None:
    keeper = Keeper(min_workers=4)
    starts = []
    while keeper.now < 108.0:
        if keeper.starts():
            starts.append(keeper.now)
            keeper.fail("boom")
        keeper.now += 0.5
    # The first failure is followed at once, then after 1, 2 and 4 s at most.
    assert starts == [100.0, 100.5, 101.5]
    assert isinstance(keeper.failure, StartupFailed), "twelve starts have failed: three for each of the floor"


def test_a_failed_scale_up_never_fails_calls_while_others_serve() -> None:
    keeper = Keeper()
    keeper.ready(1)
    for _ in range(30):
        keeper.wait(60.0, queued=5)
        keeper.fail()
    assert keeper.failure is None
    assert keeper.state is PoolState.DEGRADED


def test_what_cannot_be_placed_is_unschedulable_until_something_starts() -> None:
    keeper = Keeper()
    keeper.demand(1)
    keeper.plan()
    keeper.pool.cannot_be_placed(keeper.worker("w1"), "needs GPU A100 x1; this cluster has none")
    assert isinstance(keeper.failure, Unschedulable)
    assert str(keeper.failure) == "Embedder needs GPU A100 x1; this cluster has none"
    keeper.come_up()
    assert keeper.failure is None


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
    assert keeper.starts() == 1


def test_a_retired_pool_starts_none_for_a_late_report_of_what_ran() -> None:
    keeper = Keeper()
    keeper.demand(0, 1)
    keeper.pool.retired = True
    assert keeper.plan() == []


# --- what routers and people are told ----------------------------------------------------------------------------


def test_the_views_version_grows_exactly_when_something_that_routers_act_on_has_changed() -> None:
    keeper = Keeper(probes=[READINESS])
    keeper.pool.refresh(keeper.now)
    version = keeper.pool.view.version

    def changed() -> bool:
        nonlocal version
        told = keeper.pool.refresh(keeper.now)
        before, version = version, keeper.pool.view.version
        assert version == before + told
        return told

    assert not changed()
    keeper.demand(2)
    assert not changed()
    keeper.pool.plan(keeper.now)
    version = keeper.pool.view.version
    assert not changed(), "plan brings the view up to date"
    for slot in (0, 1):
        keeper.pool.add(slot, f"w{slot}", slot, keeper.now)
    assert changed(), "workers are starting"
    keeper.come_up("w0")
    assert changed(), "one serves"
    keeper.come_up("w1")
    assert changed()
    keeper.demand(1, 1)
    assert not changed(), "the demand is nothing to routers"
    keeper.probe("w0", READINESS)
    assert changed()
    keeper.crash("w1")
    assert changed()
    keeper.pool.notice = "it runs without a GPU"
    assert changed()
    keeper.pool.unschedulable = "needs GPU x1; this cluster has none"
    assert changed()


def test_a_verdict_is_told_to_routers_before_the_next_plan() -> None:
    keeper = Keeper(min_workers=1, probes=[READINESS])
    keeper.plan()
    keeper.come_up()
    assert keeper.routable() == {"w1"}
    keeper.probe("w1", READINESS)
    keeper.pool.refresh(keeper.now)
    assert not keeper.pool.view.workers[0].ready


def test_routers_see_every_worker_that_has_inputs_and_which_of_them_take_more() -> None:
    keeper = Keeper(probes=[READINESS])
    keeper.demand(4)
    keeper.plan()
    keeper.come_up("w1", "w2", "w3")
    keeper.probe("w2", READINESS)
    keeper.pool.replace(keeper.worker("w3"), "fatal: gone")
    keeper.plan()
    view = keeper.pool.view
    assert [(w.id, w.ready, w.capacity) for w in view.workers] == [("w1", True, 4), ("w2", False, 4), ("w3", False, 4)]


def test_it_says_what_calls_wait_for() -> None:
    keeper = Keeper(probes=[READINESS])
    assert keeper.waiting_for == "no worker yet"
    keeper.demand(1)
    keeper.plan()
    assert keeper.waiting_for == "1 starting (on_enter is running)"
    keeper.worker("w1").pending = "waiting for GPU A100 x1, CPU x1"
    assert keeper.waiting_for == "1 starting: waiting for GPU A100 x1, CPU x1"
    keeper.fail()
    keeper.plan()
    keeper.fail()
    assert keeper.waiting_for == "backing off after a failure: ValueError: no model"
    keeper.now += 60
    keeper.demand(1)
    keeper.plan()
    keeper.come_up()
    for name in list(keeper.pool.workers):
        keeper.probe(name, READINESS)
    keeper.plan()
    assert "not ready: readiness probe warm failed 1 times: returned False" in keeper.waiting_for


def test_its_status_counts_workers_and_demand() -> None:
    keeper = Keeper()
    keeper.demand(3, 0)
    keeper.plan()
    keeper.come_up("w1")
    keeper.worker("w1").placed = True
    keeper.worker("w2").state = WorkerState.DRAINING
    keeper.demand(4, 2, inflight=(("w1", 2),))
    keeper.now += 2.0
    status = keeper.pool.status(keeper.now)
    assert (status.ready, status.starting, status.pending, status.draining) == (1, 1, 1, 1)
    assert (status.queued, status.running, status.desired, status.restarts) == (4, 2, 3, 0)
    assert [w.inflight for w in status.workers] == [2, 0, 0]
    assert [(w.id, w.state, w.age_s) for w in status.workers] == [
        ("w1", "READY", 2.0),
        ("w2", "DRAINING", 2.0),
        ("w3", "STARTING", 2.0),
    ]


def test_a_pool_that_has_what_it_wants_is_ready_and_one_on_the_way_is_scaling() -> None:
    keeper = Keeper(min_workers=1)
    assert keeper.state is PoolState.SCALING
    keeper.plan()
    assert keeper.state is PoolState.SCALING
    keeper.come_up()
    assert keeper.state is PoolState.READY


# --- probes and passive health -----------------------------------------------------------------------------------


def floor_of(count: int, *probes: gw.Probe, **options: Any) -> Keeper:
    keeper = Keeper(min_workers=count, probes=list(probes), **options)
    keeper.plan()
    keeper.come_up()
    keeper.plan()
    return keeper


def test_a_failed_readiness_probe_takes_a_worker_out_of_the_routing_and_a_passed_one_back() -> None:
    keeper = floor_of(2, READINESS)
    keeper.probe("w1", READINESS)
    assert keeper.routable() == {"w2"}
    assert keeper.worker("w1").state is WorkerState.UNREADY
    keeper.probe("w1", READINESS, Verdict.PASSED)
    assert keeper.routable() == {"w1", "w2"}
    assert keeper.actions("w1") == ["starting", "ready", "unready", "ready again"]
    assert keeper.pool.restarts == 0


def test_an_unready_worker_counts_as_capacity_for_thirty_seconds() -> None:
    keeper = floor_of(2, READINESS)
    keeper.probe("w1", READINESS)
    assert keeper.wait(UNREADY_COUNTS_S - 1) == []
    assert keeper.wait(2) == [Start(2)]
    keeper.come_up()
    assert keeper.wait(300) == [Stop("w1", "scaled down")], "once it has been replaced for a window nobody needs it"


def test_one_that_is_ready_again_makes_its_stand_in_superfluous() -> None:
    keeper = floor_of(2, READINESS)
    keeper.probe("w1", READINESS)
    keeper.wait(UNREADY_COUNTS_S + 1)
    keeper.come_up()
    keeper.probe("w1", READINESS, Verdict.PASSED)
    assert keeper.wait(1) == [Stop("w3", "scaled down")]
    assert keeper.routable() == {"w1", "w2"}


def test_however_many_are_unready_the_pool_never_more_than_doubles() -> None:
    keeper = floor_of(3, READINESS)
    for _ in range(10):
        for worker in list(keeper.pool.workers.values()):
            keeper.probe(worker.id, READINESS)
        keeper.wait(UNREADY_COUNTS_S + 1)
        keeper.come_up()
    assert len(keeper.pool.workers) == 6


def test_a_failed_liveness_probe_replaces_the_worker() -> None:
    keeper = floor_of(2, LIVENESS)
    keeper.probe("w1", LIVENESS)
    why = "liveness probe alive failed 1 times: returned False"
    assert keeper.plan() == [Stop("w1", why), Start(0)]
    assert keeper.actions("w1") == ["starting", "ready", "failed liveness", "unready", "replaced"]
    assert keeper.pool.restarts == 1


def test_a_class_may_have_a_probe_of_each_kind_on_one_method() -> None:
    both = [gw.Probe.on("health", kind=kind, failures=1) for kind in ("liveness", "readiness")]
    keeper = floor_of(1, *both)
    keeper.probe("w1", both[1])
    assert keeper.plan() == [], "unready, and not killed"
    assert len(keeper.pool.status(keeper.now).workers[0].probes) == 1


def test_of_a_small_pool_whose_workers_all_fail_one_at_a_time_is_killed_and_the_rest_wait_for_it() -> None:
    keeper = floor_of(4, LIVENESS)
    for n in (1, 2, 3, 4):
        keeper.probe(f"w{n}", LIVENESS)
    assert [a for a in keeper.plan() if isinstance(a, Stop)] == [
        Stop("w1", "liveness probe alive failed 1 times: returned False")
    ]
    assert keeper.routable() == set()
    assert keeper.wait(5) == []
    keeper.go("w1")
    assert keeper.wait(5) == [], "its successor is not ready yet"
    keeper.come_up()
    assert [a.worker_id for a in keeper.plan() if isinstance(a, Stop)] == ["w2"]


def test_one_that_passes_again_before_its_turn_comes_is_spared() -> None:
    keeper = floor_of(3, LIVENESS)
    for n in (1, 2, 3):
        keeper.probe(f"w{n}", LIVENESS)
    keeper.plan()
    keeper.probe("w2", LIVENESS, Verdict.PASSED)
    assert keeper.routable() == {"w2"}
    keeper.go("w1")
    keeper.come_up()
    assert [a.worker_id for a in keeper.plan() if isinstance(a, Stop)] == ["w3"]


def test_workers_that_only_fell_silent_are_used_while_fewer_than_half_are_ready() -> None:
    keeper = floor_of(4, READINESS)
    keeper.probe("w1", READINESS, Verdict.TIMED_OUT)
    assert keeper.routable() == {"w2", "w3", "w4"}
    keeper.probe("w2", READINESS, Verdict.TIMED_OUT)
    assert keeper.routable() == {"w3", "w4"}, "half of them are ready"
    keeper.probe("w3", READINESS)
    assert keeper.routable() == {"w1", "w2", "w4"}, "the one that said no is not used"
    assert keeper.actions().count("panic") == 1
    keeper.probe("w2", READINESS, Verdict.PASSED)
    keeper.probe("w3", READINESS, Verdict.PASSED)
    assert keeper.routable() == {"w2", "w3", "w4"}


def test_system_errors_in_a_row_take_a_worker_out_for_thirty_seconds() -> None:
    keeper = floor_of(2)
    keeper.demand(1, 1, errors=(("w1", ERRORS_IN_A_ROW - 1),))
    assert keeper.routable() == {"w1", "w2"}
    keeper.demand(1, 1, errors=(("w1", ERRORS_IN_A_ROW),))
    assert keeper.routable() == {"w2"}
    assert keeper.actions("w1")[-2:] == ["ejected", "unready"]
    keeper.wait(29, queued=1, running=1)
    assert keeper.routable() == {"w2"}
    keeper.wait(2, queued=1, running=1)
    assert keeper.routable() == {"w1", "w2"}


# --- places ------------------------------------------------------------------------------------------------------


def test_a_place_that_restarts_five_times_in_five_minutes_is_held_and_the_others_serve_on() -> None:
    keeper = floor_of(2)
    for _ in range(4):
        (victim,) = (w.id for w in keeper.pool.workers.values() if w.slot == 0)
        keeper.crash(victim)
        assert keeper.state is PoolState.SCALING
        while not keeper.starts():
            keeper.now += TICK_S
        keeper.come_up()
    (victim,) = (w.id for w in keeper.pool.workers.values() if w.slot == 0)
    keeper.crash(victim)
    assert keeper.state is PoolState.DEGRADED
    assert keeper.routable() == {"w2"}
    assert keeper.failure is None
    assert keeper.wait(59) == []
    assert keeper.wait(1) == [Start(0)]
    keeper.come_up()
    assert keeper.state is PoolState.DEGRADED
    keeper.wait(300)
    assert keeper.state is PoolState.READY
    assert "degraded" in keeper.actions()


def test_a_vacant_place_shows_as_a_worker_in_backoff_with_its_reason() -> None:
    keeper = floor_of(1)
    keeper.crash("w1")
    keeper.plan()
    keeper.fail("Traceback ...\nOSError: no such file")
    (vacant,) = keeper.pool.status(keeper.now).workers
    assert (vacant.state, vacant.pid, vacant.restarts) == ("BACKOFF", None, 2)
    assert vacant.reason == "next try in 1 s: OSError: no such file"


def test_a_pool_that_has_served_fails_only_when_every_place_is_worn_out() -> None:
    keeper = floor_of(1)
    keeper.crash("w1")
    for _ in range(4):
        assert keeper.failure is None
        while not keeper.starts():
            keeper.now += TICK_S
        keeper.fail()
    assert isinstance(keeper.failure, StartupFailed)
    assert "the last workers all failed to start" in str(keeper.failure)


def test_idle_workers_go_before_busy_ones() -> None:
    keeper = Keeper()
    keeper.ready(3)
    planned: list[Start | Stop] = []
    for _ in range(80):
        keeper.now += TICK_S
        keeper.demand(0, 1, inflight=(("w3", 1),))
        planned += keeper.plan()
    assert [a.worker_id for a in planned if isinstance(a, Stop)] == ["w2", "w1"]


def test_one_of_many_sets_of_values_keeps_its_floor_only_while_it_is_used() -> None:
    keeper = Keeper(min_workers=2, floor_when_idle=False)
    assert keeper.plan() == []
    keeper.demand(1)
    assert keeper.starts() == 2
    keeper.come_up()
    assert {a.worker_id for a in keeper.wait(30) if isinstance(a, Stop)} == {"w1", "w2"}
    keeper.go("w1", "w2")
    keeper.wait(FORGET_POOL_S - 31)
    assert not keeper.pool.forgettable
    keeper.wait(2)
    assert keeper.pool.forgettable


def test_what_failed_before_the_pool_was_idle_is_not_held_against_the_next_call() -> None:
    keeper = Keeper()
    keeper.demand(1)
    while keeper.failure is None:
        keeper.plan()
        keeper.fail()
        keeper.now += TICK_S
        keeper.demand(1)
    keeper.wait(30)
    assert keeper.failure is None
    keeper.demand(1)
    assert keeper.starts() == 1


def test_a_row_of_system_errors_ends_when_its_router_says_no_more_of_it() -> None:
    keeper = floor_of(2)
    for router in ("a", "b", "c"):
        keeper.demand(1, 1, router=router, errors=(("w1", ERRORS_IN_A_ROW - 1),))
        keeper.demand(1, 1, router=router)  # something succeeded meanwhile
    assert keeper.routable() == {"w1", "w2"}
    keeper.demand(1, 1, router="d", errors=(("w1", ERRORS_IN_A_ROW - 1),))
    assert keeper.routable() == {"w1", "w2"}, "four in a row are not five"


def test_when_more_than_half_fail_one_at_a_time_is_killed_until_the_rest_are_well_however_long_that_takes() -> None:
    keeper = floor_of(40, LIVENESS, max_workers=40)
    for n in range(1, 41):
        keeper.probe(f"w{n}", LIVENESS)
    killed: list[str] = []
    for _ in range(200):
        at_once = [a.worker_id for a in keeper.wait(1) if isinstance(a, Stop)]
        assert len(at_once) <= 1
        killed += at_once
        keeper.go(*at_once)
        if keeper.now % 20 < 1:  # slow to come up: longer than a period
            keeper.come_up()
    assert len(killed) < 20


def test_that_it_could_not_be_placed_is_not_told_to_those_who_call_when_nobody_waits_for_a_place_any_more() -> None:
    keeper = Keeper()
    keeper.demand(1)
    keeper.plan()
    keeper.pool.cannot_be_placed(keeper.worker("w1"), "needs GPU A100 x1; this cluster has none")
    (stop,) = keeper.wait(15)
    assert isinstance(stop, Stop)
    keeper.go("w1")
    keeper.plan()
    assert keeper.failure is None
