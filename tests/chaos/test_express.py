"""Blocking calls that go by the express way, and everything that can happen to them there."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gworker as gw
from gworker.router import client, express
from gworker.router.direct import DirectLane
from gworker.router.express import Express, ExpressWays
from gworker.router.router import Router
from tests.conftest import eventually as wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.chaos]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A file in which workers note what they begin."""
    return tmp_path / "notes"


def note(notes: str, what: str) -> None:
    """Called in workers."""
    with open(notes, "a") as file:
        file.write(f"{what}\n")


def define(app: gw.App, **options: Any) -> Any:
    """The class of most tests."""

    @app.cls(cpu=0.1, **{"max_workers": 1, **options})
    @gw.concurrent(max_inputs=4)
    class Worker:
        @gw.method()
        def double(self, x: Any) -> Any:
            return 2 * x

        @gw.method()
        def pid(self) -> int:
            return os.getpid()

        @gw.method()
        def noted(self, notes: str, for_s: float) -> int:
            note(notes, "began")
            time.sleep(for_s)
            return os.getpid()

        @gw.method()
        async def cancellable(self, notes: str) -> None:
            note(notes, "began")
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                note(notes, "cancelled")
                raise

        @gw.method()
        def fails(self, notes: str, times: int) -> int:
            note(notes, "began")
            count = Path(notes).read_text().count("began")
            if count <= times:
                raise ValueError(f"attempt {count}")
            return count

        @gw.method()
        def large(self, nbytes: int) -> Any:
            return np.ones(nbytes, np.uint8)

    return Worker


def ways_of(handle: Any) -> ExpressWays:
    """The express ways to the pool of a handle."""
    ways: ExpressWays = handle._router().express
    return ways


def used(way: Express) -> int:
    """How many bundles went this way."""
    return way._sequence


@pytest.fixture
def opened(eventually: Any) -> Callable[..., list[Express]]:
    """Waits until a pool of so many workers has its express ways, idle."""

    def wait(handle: Any, count: int = 1) -> list[Express]:
        handle.double.remote(1)

        def idle() -> list[Express] | None:
            found = list(ways_of(handle)._idle)
            return found if len(found) == count else None

        found: list[Express] = eventually(idle)
        return found

    return wait


@pytest.fixture(params=["unix", "tcp"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> socket.AddressFamily:
    """What connections go by: on one node, or as between two."""
    if request.param == "unix":
        return socket.AF_UNIX
    monkeypatch.setattr(client, "_node_id", lambda: "another node")
    return socket.AF_INET


def in_background(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Runs it on a thread; what it returned or raised stands in the list once the thread has ended."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def begun(notes: Path) -> int:
    """How often an input began."""
    return notes.read_text().count("began") if notes.exists() else 0


def test_a_thread_that_waits_for_its_only_call_uses_it(app: gw.App, opened: Any) -> None:
    handle = define(app)()
    [way] = opened(handle)
    before = used(way)
    assert [handle.double.remote(i) for i in range(20)] == [2 * i for i in range(20)]
    assert used(way) == before + 20
    assert handle._router().unfinished == 0


def test_threads_beside_each_other_share_the_router(app: gw.App, opened: Any) -> None:
    handle = define(app)()
    opened(handle)
    threads = [in_background(lambda: [handle.double.remote(i) for i in range(100)]) for _ in range(8)]
    for thread, outcome in threads:
        thread.join(30)
        assert outcome == [[2 * i for i in range(100)]]
    assert len(opened(handle)) == 1


def test_workers_are_used_in_turn(app: gw.App, opened: Any) -> None:
    handle = define(app, min_workers=3, max_workers=3)()
    with app.run():
        ways = opened(handle, 3)
        assert len({handle.pid.remote() for _ in range(3)}) == 3
        assert len({way.link.worker.id for way in ways}) == 3


def test_errors_come_with_the_trace_of_the_worker(app: gw.App, opened: Any, notes: Path) -> None:
    handle = define(app)()
    [way] = opened(handle)
    before = used(way)
    with pytest.raises(ValueError, match="attempt 1") as caught:
        handle.fails.remote(str(notes), 9)
    assert "in fails" in str(caught.value.__cause__)
    assert used(way) == before + 1
    assert opened(handle) == [way]


def test_a_call_counts_as_unfinished_until_the_router_has_it(
    app: gw.App, opened: Any, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = define(app)()
    (way,) = opened(worker)
    seen: list[bool] = []
    take_over = Router.take_over

    def watched(router: Router, *about: Any) -> None:
        seen.append(way in router.express.busy)
        take_over(router, *about)

    monkeypatch.setattr(Router, "take_over", watched)
    with pytest.raises(ValueError, match="attempt 1"):
        worker.fails.remote(str(notes), 1)
    assert seen == [True]
    assert list(ways_of(worker)._idle) == [way] and not ways_of(worker).busy


def test_retries_follow_an_error(app: gw.App, opened: Any, notes: Path) -> None:
    handle = define(app, retries=gw.Retries(max_retries=3, initial_delay_s=0.01))()
    opened(handle)
    assert handle.fails.remote(str(notes), 2) == 3


def test_a_full_worker_refuses_and_the_router_waits_for_room(
    app: gw.App, opened: Any, notes: Path, eventually: Any
) -> None:
    @app.cls(cpu=0.1, max_workers=1)
    class One:
        @gw.method()
        def double(self, x: int) -> int:
            return 2 * x

        @gw.method()
        def hold(self, notes: str, for_s: float) -> None:
            note(notes, "began")
            time.sleep(for_s)

    handle = One()
    [way] = opened(handle)
    thread, outcome = in_background(lambda: handle.hold.remote(str(notes), 0.5))
    eventually(lambda: begun(notes))
    assert way in ways_of(handle).busy
    start = time.monotonic()
    assert handle.double.remote(4) == 8
    assert time.monotonic() - start > 0.3
    thread.join(10)
    assert outcome == [None]


def test_a_deadline_ends_the_wait_and_the_call(app: gw.App, opened: Any, notes: Path, eventually: Any) -> None:
    handle = define(app)()
    [way] = opened(handle)
    pid = handle.pid.remote()
    os.kill(pid, signal.SIGSTOP)  # so that it cannot say that the time is over
    try:
        start = time.monotonic()
        with pytest.raises(gw.DeadlineExceeded, match="deadline_s"):
            handle.noted.with_options(deadline_s=0.3).remote(str(notes), 0)
        assert 0.25 < time.monotonic() - start < 2
    finally:
        os.kill(pid, signal.SIGCONT)
    assert handle.double.remote(2) == 4
    assert opened(handle) != [way]  # what the interruption left of the connection is not used again


def test_an_interrupt_cancels_the_call(app: gw.App, opened: Any, notes: Path, eventually: Any) -> None:
    handle = define(app)()
    opened(handle)

    def interrupt() -> None:
        eventually(lambda: begun(notes))
        os.kill(os.getpid(), signal.SIGINT)

    in_background(interrupt)
    with pytest.raises(KeyboardInterrupt):
        handle.cancellable.remote(str(notes))
    eventually(lambda: "cancelled" in notes.read_text())
    assert handle.double.remote(3) == 6


@pytest.mark.parametrize("retries", [0, 2])
def test_a_worker_is_killed_under_a_call(
    app: gw.App, opened: Any, notes: Path, by: socket.AddressFamily, retries: int, eventually: Any
) -> None:
    handle = define(app, retries=retries)()
    opened(handle)
    pid = handle.pid.remote()
    thread, outcome = in_background(lambda: handle.noted.remote(str(notes), 1.0))
    eventually(lambda: begun(notes))
    os.kill(pid, signal.SIGKILL)
    thread.join(30)
    if retries:
        assert isinstance(outcome[0], int)
        assert outcome[0] != pid
        assert begun(notes) == 2
    else:
        assert isinstance(outcome[0], gw.WorkerLost)
        assert begun(notes) == 1
    assert handle.double.remote(3) == 6


def test_a_worker_that_died_unnoticed_costs_no_call(app: gw.App, opened: Any) -> None:
    handle = define(app)()
    opened(handle)
    for _ in range(2):
        pid = handle.pid.remote()
        os.kill(pid, signal.SIGKILL)
        # Whether the kernel has closed its sockets by then or not: what cannot have started is sent elsewhere, and what
        # may have started is lost.
        with contextlib.suppress(gw.WorkerLost):
            assert handle.double.remote(3) == 6
        assert handle.double.remote(4) == 8


@pytest.mark.parametrize("when", ["running", "answered"])
def test_a_connection_that_breaks_loses_nothing_and_runs_nothing_twice(
    app: gw.App, opened: Any, notes: Path, by: socket.AddressFamily, when: str, eventually: Any
) -> None:
    handle = define(app)()
    [way] = opened(handle)
    assert way._socket.family == by
    pid = handle.pid.remote()
    thread, outcome = in_background(lambda: handle.noted.remote(str(notes), 1.0))
    eventually(lambda: begun(notes))
    if when == "answered":
        os.kill(pid, signal.SIGSTOP)
    way._socket.shutdown(2)
    if when == "answered":
        time.sleep(1.1)
        os.kill(pid, signal.SIGCONT)
    thread.join(20)
    assert outcome == [pid]
    assert begun(notes) == 1
    eventually(lambda: handle._router().unfinished == 0)
    assert handle.double.remote(3) == 6
    assert opened(handle) != [way]


class Silent:
    """A connection to a host that does not answer any more: the kernel gives it up."""

    def __init__(self, connected: socket.socket, since: Callable[[], Any]) -> None:
        self._connected = connected
        self._since = since

    def recv_into(self, buffer: Any) -> int:
        wait_until(self._since)
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connected, name)


def test_a_host_that_is_silent_is_no_deadline_that_has_passed(
    app: gw.App, opened: Any, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = define(app)()
    [way] = opened(handle)
    monkeypatch.setattr(way, "_socket", Silent(way._socket, lambda: begun(notes)))
    pid = handle.noted.with_options(deadline_s=20).remote(str(notes), 0.5)
    assert pid == handle.pid.remote()
    assert begun(notes) == 1


def test_stopping_the_app_ends_the_wait(app: gw.App, opened: Any, notes: Path, eventually: Any) -> None:
    handle = define(app)()
    opened(handle)
    thread, outcome = in_background(lambda: handle.noted.remote(str(notes), 20.0))
    eventually(lambda: begun(notes))
    app.stop(drain=False)
    thread.join(10)
    assert isinstance(outcome[0], gw.GWorkerError)


def test_draining_the_app_waits_for_the_call(app: gw.App, opened: Any, notes: Path, eventually: Any) -> None:
    handle = define(app)()
    opened(handle)
    thread, outcome = in_background(lambda: handle.noted.remote(str(notes), 1.0))
    eventually(lambda: begun(notes))
    app.stop()
    thread.join(10)
    assert isinstance(outcome[0], int)


def test_an_idle_way_does_not_hold_up_the_end(app: gw.App, opened: Any) -> None:
    handle = define(app)()
    with app.run():
        opened(handle)
        handle.double.remote(1)
        start = time.monotonic()
    assert time.monotonic() - start < 0.9  # Session.ARRIVED_S is what it would be held up for


def test_a_call_under_way_is_demand(app: gw.App, opened: Any, notes: Path, eventually: Any) -> None:
    handle = define(app, scaledown_window_s=0.5)()
    opened(handle)
    pid = handle.pid.remote()
    thread, outcome = in_background(lambda: handle.noted.remote(str(notes), 3.0))
    eventually(lambda: begun(notes))
    demand = handle._router()._demand()
    assert (demand.queued, demand.running, len(demand.inflight)) == (0, 1, 1)
    thread.join(20)
    assert outcome == [pid]  # its worker was not scaled down meanwhile
    eventually(lambda: app.status().pool("Worker").ready == 0)


def test_scaling_down_loses_no_call(app: gw.App, opened: Any) -> None:
    cls = define(app, max_workers=3)
    handle = cls()
    opened(handle)
    over = threading.Event()

    def scale() -> None:
        count = 0
        while not over.is_set():
            cls.scale(min_workers=1 + count % 3, max_workers=1 + count % 3)
            count += 1
            over.wait(0.7)

    scaling, _ = in_background(scale)
    until = time.monotonic() + 5
    done = 0
    while time.monotonic() < until:
        assert handle.double.remote(done) == 2 * done
        done += 1
    over.set()
    scaling.join(10)
    assert done > 100


def test_large_values_go_by_the_lane(app: gw.App, opened: Any) -> None:
    handle = define(app)()
    [way] = opened(handle)
    before = used(way)
    assert handle.double.remote(np.ones(100_000)).sum() == 200_000
    assert handle.double.remote(b"x" * 100_000) == b"xx" * 100_000
    assert used(way) == before
    assert handle.large.remote(1_000_000).sum() == 1_000_000  # not known yet
    assert used(way) == before + 1
    assert handle.large.remote(1_000_000).sum() == 1_000_000
    assert used(way) == before + 1


def test_asking_after_a_call_asks_ray_nothing(
    app: gw.App, opened: Any, notes: Path, monkeypatch: Any, eventually: Any
) -> None:
    handle = define(app)()
    [way] = opened(handle)
    pid = handle.pid.remote()
    thread, outcome = in_background(lambda: handle.noted.remote(str(notes), 1.0))
    eventually(lambda: begun(notes))
    with monkeypatch.context() as shut_down:  # asked then, it would start another one
        shut_down.setattr(client, "_node_id", lambda: pytest.fail("Ray was asked"))
        way._socket.shutdown(2)
        thread.join(20)
    assert outcome == [pid]


def test_a_call_that_is_asked_after_can_be_cancelled(app: gw.App, opened: Any, notes: Path, eventually: Any) -> None:
    handle = define(app)()
    [way] = opened(handle)

    def interrupt() -> None:
        eventually(lambda: begun(notes))
        way._socket.shutdown(2)
        eventually(lambda: handle._router()._live)
        os.kill(os.getpid(), signal.SIGINT)

    in_background(interrupt)
    with pytest.raises(KeyboardInterrupt):
        handle.cancellable.remote(str(notes))
    eventually(lambda: "cancelled" in notes.read_text())


def test_where_one_way_ends_another_worker_gets_one(
    app: gw.App, opened: Any, monkeypatch: Any, eventually: Any
) -> None:
    monkeypatch.setattr(express, "MOST_WAYS", 1)
    handle = define(app, min_workers=2, max_workers=2)()
    with app.run():
        [way] = opened(handle)
        os.kill(way.link.worker.direct.pid, signal.SIGKILL)
        eventually(lambda: handle._router().express._idle and way not in handle._router().express._idle)


def test_a_worker_that_cannot_be_connected_to_is_tried_again(
    app: gw.App, opened: Any, monkeypatch: Any, eventually: Any
) -> None:
    monkeypatch.setattr(express, "TRY_AGAIN_S", 0.2)
    tries = []
    connect = DirectLane.connect_another

    async def fails_once(lane: DirectLane, session: str) -> Any:
        tries.append(session)
        if len(tries) == 1:
            raise TimeoutError
        return await connect(lane, session)

    monkeypatch.setattr(DirectLane, "connect_another", fails_once)
    opened(define(app)())
    assert len(tries) == 2


def test_large_parameters_go_by_the_lane(app: gw.App, opened: Any) -> None:
    @app.cls(cpu=0.1, max_workers=1)
    class Parametrised:
        text: str = gw.parameter(default="")

        @gw.method()
        def double(self, x: int) -> int:
            return 2 * x

        @gw.method()
        def count(self) -> int:
            return len(self.text)

    [way] = opened(Parametrised())
    before = used(way)
    # Writing them waits where the worker is frozen, and would hold up whoever closes the way.
    assert Parametrised(text="x" * 1_000_000).count.remote() == 1_000_000
    assert used(way) == before
    assert Parametrised(text="x").count.remote() == 1
    assert used(way) == before + 1
