"""The direct lane of real workers, attacked and broken: they go on serving, and no call is lost or run twice."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import random
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import gworker as gw
from gworker.frames import GREETING_BYTES, WELCOME_BYTES, Hello, RouterHandshake, encode_frame
from gworker.router.direct import DirectLane
from gworker.wire import Submit, Up, pack, to_plain
from tests.chaos.account import Book, Receipt, Traffic, audit
from tests.chaos.conftest import serving

pytestmark = [pytest.mark.cluster, pytest.mark.chaos]

# What a worker may grow by while it is attacked.
GROWTH_MB = 150


def lanes_of(app: Any) -> list[DirectLane]:
    """The direct lanes of this process to the workers of an app."""
    routers = app.client()._routers.values()
    return [link.lane for router in routers for link in router._links.values() if isinstance(link.lane, DirectLane)]


def lane_of(app: Any, eventually: Any) -> DirectLane:
    """The one lane, once it is connected."""
    found: DirectLane = eventually(lambda: next((lane for lane in lanes_of(app) if lane._wire is not None), None))
    return found


class Attacker:
    """Connects to a worker as strangers do, and as callers that know its secret."""

    def __init__(self, path: str, secret: bytes, seed: int) -> None:
        self.path = path
        self.secret = secret
        self.chance = random.Random(seed)
        self.sessions = 0

    def connect(self) -> socket.socket:
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(5.0)
        connected.connect(self.path)
        return connected

    def admitted(self) -> socket.socket:
        """A connection that has proved itself."""
        connected = self.connect()
        shake = RouterHandshake(self.secret)
        self.sessions += 1
        mine = Hello(f"attacker-{self.sessions}", -1, is_new=True)
        connected.sendall(shake.hello(receive(connected, GREETING_BYTES), mine))
        assert shake.welcomed(receive(connected, WELCOME_BYTES)).known
        return connected

    def garbage(self) -> bytes:
        return self.chance.randbytes(self.chance.choice([1, 5, 60, 1000, 100_000]))

    def send_and_close(self, connected: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError), connected:
            connected.sendall(data)
            if self.chance.random() < 0.5:
                connected.shutdown(socket.SHUT_WR)
                while connected.recv(65536):
                    pass

    def strange(self) -> None:
        """Garbage, wrong secrets and half a handshake, from nobody it knows."""
        kind = self.chance.randrange(4)
        connected = self.connect()
        if kind == 0:
            self.send_and_close(connected, self.garbage())
            return
        greeting = receive(connected, GREETING_BYTES)
        secret = self.secret if kind == 1 else bytes(32)
        hello = bytearray(RouterHandshake(secret).hello(greeting, Hello("evil", -1, is_new=True)))
        if kind == 1:
            hello = hello[: self.chance.randrange(len(hello))]
        elif kind == 2:
            hello[-5] = 255
        self.send_and_close(connected, bytes(hello) + pickle.dumps(self.garbage()))

    def known(self) -> None:
        """Garbage behind a good handshake."""
        kind = self.chance.randrange(5)
        whole = b"".join(bytes(part) for part in encode_frame(to_plain(self.bundle(0))))
        if kind == 0:
            data = self.garbage()
        elif kind == 1:
            data = whole[: self.chance.randrange(len(whole))]
        elif kind == 2:  # announces more than there is memory
            data = struct.pack("!QHH", self.chance.choice([2**63, 2**50, 2**45]), 0, 0)
        elif kind == 3:
            damaged = bytearray(whole)
            for _ in range(5):
                damaged[self.chance.randrange(10, len(damaged))] = self.chance.randrange(256)
            data = bytes(damaged)
        else:
            data = b"".join(
                bytes(part)
                for part in encode_frame(
                    self.chance.choice([None, {}, "Up", (1, 2, 3), ("", 0, -1, 0, False, [(99, ())])])
                )
            )
        self.send_and_close(self.admitted(), data)

    def bundle(self, sequence: int) -> Up:
        arguments = pack(((b"x" * 2000,), {}))
        calls = tuple(
            Submit(sequence * 50 + n, f"flood-{sequence}-{n}", "echo", arguments, None, "", 1, None, None, 0, 0)
            for n in range(50)
        )
        return Up("", sequence, -1, 0, False, calls)


def receive(connected: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connected.recv(count - len(data))
        if not more:
            raise ConnectionError("closed")
        data += more
    return data


@pytest.fixture
def echo(app: Any) -> Any:
    @app.cls(cpu=0.1, min_workers=1, max_workers=1)
    @gw.concurrent(max_inputs=8)
    class Echo:
        @gw.method()
        def echo(self, value: Any) -> Any:
            return value

        @gw.method()
        def pid(self) -> int:
            return os.getpid()

    return Echo()


class Service:
    """A worker under attack, and a caller that it has to go on serving."""

    def __init__(self, app: Any, echo: Any, eventually: Any) -> None:
        self.pid: int = echo.pid.remote()
        self.process = psutil.Process(self.pid)
        self.lane = lane_of(app, eventually)
        self.first_wire = self.lane._wire
        self._echo = echo
        self._eventually = eventually
        self._before = (self.process.memory_info().rss, self.process.num_fds())
        self.slowest_s = 0.0

    def serves(self) -> None:
        began = time.monotonic()
        assert self._echo.echo.with_options(deadline_s=20).remote(7) == 7
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        assert self.process.memory_info().rss - self._before[0] < GROWTH_MB * 2**20

    def is_as_before(self) -> None:
        self.serves()
        assert self._echo.pid.remote() == self.pid
        assert self.lane._wire is self.first_wire, "its own connection was never touched"
        self._eventually(lambda: self.process.num_fds() <= self._before[1] + 2)


@pytest.fixture
def service(app: Any, echo: Any, eventually: Any) -> Service:
    return Service(app, echo, eventually)


@pytest.fixture
def attacker(service: Service) -> Attacker:
    address = service.lane._address
    return Attacker(address.path, address.secret, seed=11)


def test_garbage_and_wrong_secrets_do_not_disturb_a_worker(service: Service, attacker: Attacker) -> None:
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        with contextlib.suppress(ConnectionError, TimeoutError):
            attacker.strange()
        with contextlib.suppress(ConnectionError, TimeoutError):
            attacker.known()
        service.serves()
    service.is_as_before()


def test_a_flood_of_half_open_connections_does_not_keep_callers_out(
    service: Service, attacker: Attacker, app: Any, eventually: Any
) -> None:
    idle = [attacker.connect() for _ in range(500)]
    service.serves()
    late = attacker.admitted()  # somebody who comes now
    late.close()
    service.serves()
    for connected in idle:
        connected.close()
    service.is_as_before()


def test_a_caller_that_sends_a_flood_and_reads_nothing_costs_a_worker_little(
    service: Service, attacker: Attacker
) -> None:
    # 200 MB, more than it may grow by. Refusals are short: those of all this do not fill what it keeps for one caller.
    with contextlib.closing(attacker.admitted()) as connected, contextlib.suppress(TimeoutError):
        connected.settimeout(0.2)
        for sequence in range(2000):
            for part in encode_frame(to_plain(attacker.bundle(sequence))):
                connected.sendall(part)
            if sequence % 50 == 0:
                service.serves()
        service.serves()
    service.is_as_before()


# --- breaks ------------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_noticed_in_milliseconds(app: Any, gate: Any, eventually: Any) -> None:
    @app.cls(cpu=0.1, min_workers=1, max_workers=1)
    @gw.concurrent(max_inputs=4)
    class Mortal:
        @gw.method()
        def pid(self) -> int:
            return os.getpid()

        @gw.method()
        def wait(self) -> None:
            gate.wait()

    victim = Mortal().pid.remote()
    lane = lane_of(app, eventually)
    folder = Path(lane._address.path).parent
    assert folder.is_dir()
    calls = [Mortal().wait.spawn() for _ in range(4)]
    eventually(lambda: gate.arrivals == 4)
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    for call in calls:
        with pytest.raises(gw.WorkerLost, match="its process is gone"):
            call.get(timeout_s=10)
    assert time.monotonic() - killed < 0.5
    eventually(lambda: not folder.exists())


def test_connections_broken_under_load_cost_no_call_and_none_runs_twice(app: Any, book: Book, eventually: Any) -> None:
    @app.cls(cpu=0.1, min_workers=1, max_workers=1)
    @gw.concurrent(max_inputs=4)
    class Steady:
        @gw.method()
        def work(self, number: int) -> Receipt:
            with book.execution(number) as receipt:
                return receipt

    chance = random.Random(5)
    with Traffic(Steady().work.spawn, callers=6) as traffic:
        serving(app, "Steady", 1)
        traffic.flow(10)
        lane = lane_of(app, eventually)
        for _ in range(20):
            broken = eventually(lambda: lane._wire)
            lane._loop.call_soon_threadsafe(broken.abort)
            eventually(lambda: lane._wire not in (None, broken), every_s=0.001)  # noqa: B023  # waited for here
            traffic.flow(chance.randrange(8))
        traffic.flow(20)
        assert lanes_of(app) == [lane]
    audit(book, traffic.outcomes)


# --- what stays behind -------------------------------------------------------------------------------------------


def test_a_worker_that_is_stopped_leaves_no_socket_behind(app: Any, echo: Any, eventually: Any) -> None:
    echo.echo.remote(1)
    folder = Path(lane_of(app, eventually)._address.path).parent
    assert folder.is_dir()
    app.stop()
    eventually(lambda: not folder.exists())


def test_a_worker_that_is_stopped_without_draining_leaves_no_socket_behind(
    app: Any, echo: Any, eventually: Any
) -> None:
    echo.echo.remote(1)
    folder = Path(lane_of(app, eventually)._address.path).parent
    app.stop(drain=False)
    eventually(lambda: not folder.exists())


def test_what_a_child_of_a_worker_has_started_does_not_outlive_a_worker_that_is_stopped_at_once(
    app: Any, gone: Any, eventually: Any
) -> None:
    @app.cls(cpu=0.1, min_workers=1, max_workers=1)
    class Parent:
        @gw.method()
        def start(self) -> int:
            with subprocess.Popen(
                ["/bin/sh", "-c", "setsid sleep 60 >/dev/null & echo $!"], stdout=subprocess.PIPE, text=True
            ) as shell:
                assert shell.stdout is not None
                return int(shell.stdout.read())

    grandchild = Parent().start.remote()
    assert not gone(grandchild)
    app.stop(drain=False)
    eventually(lambda: gone(grandchild))


@contextlib.contextmanager
def forked_child() -> Iterator[int]:
    """A child of this process that shares what it had open, and does nothing."""
    fork = multiprocessing.get_context("fork")
    over = fork.Event()
    child = fork.Process(target=over.wait, args=(30,), daemon=True)
    child.start()
    assert child.pid is not None
    yield child.pid
    over.set()
    child.join(10)


def sockets(pid: int) -> set[str]:
    found = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    return {name for name in found if name.startswith("socket:")}


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_of_a_caller_does_not_hold_its_connection(app: Any, echo: Any, eventually: Any) -> None:
    echo.echo.remote(1)
    lane = lane_of(app, eventually)
    assert lane._wire is not None
    mine = os.readlink(f"/proc/self/fd/{lane._wire._descriptor}")
    with forked_child() as child:
        eventually(lambda: mine not in sockets(child))  # it begins by letting go
        assert echo.echo.remote(2) == 2
    assert echo.echo.remote(3) == 3
    assert lane_of(app, eventually) is lane


def test_a_forked_child_of_a_worker_does_not_hold_its_connections(app: Any, eventually: Any) -> None:
    @app.cls(cpu=0.1, min_workers=1, max_workers=1)
    class Parent:
        @gw.method()
        def held_by_child(self) -> tuple[int, int]:
            from gworker import connection

            mine = {os.readlink(f"/proc/self/fd/{fd}") for fd in connection._kept}
            child = os.fork()
            if not child:
                time.sleep(30)
                os._exit(0)
            try:
                end = time.monotonic() + 10
                while (held := mine & sockets(child)) and time.monotonic() < end:
                    time.sleep(0.01)
                return len(mine), len(held)
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)

        @gw.method()
        def echo(self, value: int) -> int:
            return value

    mine, held = Parent().held_by_child.remote()
    assert mine >= 2, "the listener and a connection"
    assert held == 0
    assert Parent().echo.remote(3) == 3


# --- who uses it -------------------------------------------------------------------------------------------------


def kinds_of_lanes() -> set[str]:
    """The lanes of this process, by the names of their classes."""
    import gc

    from gworker.router.links import Link

    return {type(each.lane).__name__ for each in gc.get_objects() if isinstance(each, Link) and not each.broken}


def test_a_worker_that_calls_another_class_uses_the_direct_lane_too(app: Any) -> None:
    @app.cls(cpu=0.1)
    class Inner:
        @gw.method()
        def work(self) -> int:
            return 5

    @app.cls(cpu=0.1)
    class Outer:
        @gw.method()
        def work(self) -> tuple[int, set[str]]:
            return Inner().work.remote(), kinds_of_lanes()

    assert Outer().work.remote() == (5, {"DirectLane"})


DRIVER = """
    import os
    import gworker as gw
    from tests.chaos.test_direct import kinds_of_lanes

    echo = gw.Cls.from_name(os.environ["APP"], "Echo")()
    assert echo.echo.remote(7) == 7
    print(*kinds_of_lanes(), flush=True)
    """


def test_programs_of_their_own_use_it_and_one_that_asks_for_the_ray_lane_gets_that(
    app: Any, echo: Any, script: Callable[..., Any], address: str
) -> None:
    app.deploy()
    drivers = [script(DRIVER, address=address, APP=app.name, **each) for each in ({}, {"GWORKER_LANE": "ray"}, {})]
    outputs = []
    for driver in drivers:
        assert driver.wait() == 0, driver.err
        outputs.append(driver.out.split()[-1])
    assert outputs == ["DirectLane", "RayLane", "DirectLane"]
