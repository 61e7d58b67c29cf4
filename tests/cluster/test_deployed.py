"""Deployed apps outlive the process that deployed them, and their controller may die at any moment."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import ray

import gworker as gw
from gworker.control import controller as controller_module
from gworker.control.controller import ControllerBoot
from gworker.router import deployment
from gworker.router.client import AppClient
from gworker.router.membership import PoolKey
from gworker.wire import Payload
from gworker.worker.actor import WorkerBoot, create_worker

pytestmark = pytest.mark.cluster


@pytest.fixture
def controller_pid() -> Callable[[Any], int]:
    """Finds the process of an app's controller."""

    def find(app: Any) -> int:
        actor = deployment.find_controller(app.name)
        report: Callable[[Any], int] = lambda self: os.getpid()  # noqa: E731  # travels by value
        return int(ray.get(actor.__ray_call__.remote(report)))

    return find


@pytest.fixture
def restarted(controller_pid: Any, eventually: Any) -> Callable[[Any], None]:
    """Kills the controller of an app and waits until its replacement has taken over."""

    def kill(app: Any) -> None:
        before = sum(event.action == "controller restarted" for event in app.status().events)
        os.kill(controller_pid(app), signal.SIGKILL)

        def is_back() -> bool:
            with contextlib.suppress(ray.exceptions.RayError):
                actions = [event.action for event in app.status().events]
                return actions.count("controller restarted") > before
            return False

        eventually(is_back)

    return kill


class Load:
    """Callers that call until they are stopped; what became of each call."""

    def __init__(self, call: Callable[[int], Any], callers: int = 4) -> None:
        self.results: list[Any] = []
        self.errors: list[BaseException] = []
        self._call = call
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n * 100_000,)) for n in range(callers)]

    def _run(self, number: int) -> None:
        while not self._over.is_set():
            try:
                self.results.append(self._call(number))
            except Exception as error:
                self.errors.append(error)
            number += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)


def define(app: Any, ledger: Any, **options: Any) -> Any:
    @app.cls(**{"cpu": 0.1, "min_workers": 2, **options})
    @gw.concurrent(max_inputs=4)
    class Echo:
        @gw.on_enter()
        def load(self) -> None:
            ledger.write(f"enter {os.getpid()}")

        @gw.on_exit()
        def unload(self) -> None:
            ledger.write(f"exit {os.getpid()}")

        @gw.method()
        def pid(self) -> int:
            return os.getpid()

        @gw.method()
        def count(self, number: int) -> int:
            ledger.write(f"call {number}")
            return number

        @gw.method()
        def die(self) -> None:
            os._exit(3)

    return Echo


# --- reached by name ---------------------------------------------------------------------------------------------


def test_what_was_deployed_is_asked_for_once_in_each_version(
    app: Any, ledger: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(app, ledger, min_workers=1)
    app.deploy()
    asked: list[str] = []
    deployed_class = AppClient.deployed_class

    def counted(client: AppClient, name: str) -> Any:
        asked.append(name)
        return deployed_class(client, name)

    monkeypatch.setattr(AppClient, "deployed_class", counted)
    echo = gw.Cls.from_name(app.name, "Echo")
    for version in (1, 2):
        first = echo().pid.remote()
        eventually(lambda: app.client().version == str(version))  # noqa: B023  # called here
        assert {echo().pid.remote() for _ in range(20)} == {first}
        assert asked == ["Echo"] * version, "a controller that is away holds up nobody who knows what it deployed"
        app.deploy()
        eventually(lambda: echo().pid.remote() != first)  # noqa: B023  # called here


def test_another_program_calls_it_by_name_alone_and_leaves_it_as_it_was(
    app: Any, ledger: Any, script: Any, address: str, pids: Any
) -> None:
    define(app, ledger)
    app.deploy()
    served = set(pids(app, "Echo"))
    assert len(served) == 2, "deploy returns once the floor is up"
    other = script(
        f"""
        import gworker as gw
        Echo = gw.Cls.from_name({app.name!r}, "Echo")
        print(Echo().pid.remote(), list(Echo().count.map(range(5))))
        try:
            Echo().count.remote()
        except TypeError as error:
            print(error)
        print(gw.App({app.name!r}).status().pool("Echo").ready)
        """,
        address,
    )
    assert other.wait() == 0, other.err
    pid, counted = other.out.splitlines()[0].split(" ", 1)
    assert int(pid) in served and counted == "[0, 1, 2, 3, 4]"
    assert "count(number: int) -> int" in other.out, "the deployed signature is checked at the call"
    assert other.out.splitlines()[-1] == "2"
    assert set(pids(app, "Echo")) == served


def test_it_outlives_the_program_that_deployed_it_and_any_program_may_stop_it(
    app: Any, script: Any, address: str, tmp_path: Any, gone: Any, eventually: Any
) -> None:
    deploying = script(
        f"""
        import os
        import gworker as gw
        app = gw.App({app.name!r})

        @app.cls(cpu=0.1, min_workers=1)
        class Once:
            @gw.on_exit()
            def unload(self):
                open({str(tmp_path / "left")!r}, "w").close()

            @gw.method()
            def pid(self) -> int:
                return os.getpid()

        app.deploy()
        print(Once().pid.remote())
        """,
        address,
    )
    assert deploying.wait() == 0, deploying.err
    pid = int(deploying.out)
    assert not gone(pid)
    assert gw.Cls.from_name(app.name, "Once")().pid.remote() == pid
    gw.App(app.name).stop()
    assert eventually(lambda: gone(pid))
    assert (tmp_path / "left").exists(), "on_exit ran"
    assert app.name not in deployment.deployed_apps()
    with pytest.raises(gw.NotFound, match=f"no app '{app.name}' is deployed"):
        gw.Cls.from_name(app.name, "Once")().pid.remote()


def test_a_handle_by_name_is_lazy_and_says_what_there_is(app: Any, ledger: Any) -> None:
    missing = gw.Cls.from_name("no-such-app", "Echo")
    with pytest.raises(gw.NotFound, match=r"no app 'no-such-app' is deployed.*app\.deploy"):
        missing().pid.remote()
    define(app, ledger)
    app.deploy()
    with pytest.raises(gw.NotFound, match="has no class 'Eco'; it has: Echo"):
        gw.Cls.from_name(app.name, "Eco")().pid.remote()


def test_classes_that_this_program_defines_stand_for_the_deployed_ones(app: Any, ledger: Any, pids: Any) -> None:
    echo = define(app, ledger)
    app.deploy()
    served = set(pids(app, "Echo"))
    assert echo().pid.remote() in served
    app._running = None  # as in a program that only imports the module
    assert echo().pid.remote() in served
    assert set(pids(app, "Echo")) == served


def test_a_deployed_class_calls_another_of_its_app(app: Any, ledger: Any) -> None:
    echo = define(app, ledger, min_workers=0)

    @app.cls(cpu=0.1)
    class Front:
        @gw.method()
        async def ask(self, number: int) -> int:
            return await echo().count.remote.aio(number)

    app.deploy()
    assert gw.Cls.from_name(app.name, "Front")().ask.remote(7) == 7


# --- updates -----------------------------------------------------------------------------------------------------


def version(app: Any, name: str, *, fails: str = "", **options: Any) -> Any:
    """Define the class anew: it says which version it is."""
    app.classes.clear()

    @app.cls(**{"cpu": 0.1, "min_workers": 1, "name": "Echo", **options})
    @gw.concurrent(max_inputs=4)
    class Versioned:
        @gw.on_enter()
        def load(self) -> None:
            if fails:
                raise RuntimeError(fails)

        @gw.method()
        def count(self, number: int) -> tuple[str, int]:
            return name, number

    return Versioned


def test_updates_under_load_fail_no_call_and_serve_the_new_version(app: Any, pids: Any, eventually: Any) -> None:
    version(app, "v0", min_workers=2)
    app.deploy()
    first = set(pids(app, "Echo"))
    by_name = gw.Cls.from_name(app.name, "Echo")
    with Load(lambda n: by_name().count.remote(n)) as load:
        for number in range(1, 4):
            version(app, f"v{number}", min_workers=2)
            app.deploy()
            assert by_name().count.remote(0)[0] == f"v{number}", "deploy returns when the new version serves"
            eventually(lambda number=number: f"v{number}" in {name for name, _ in load.results})
    assert load.errors == []
    assert {name for name, _ in load.results} == {"v0", "v1", "v2", "v3"}
    eventually(lambda: len(pids(app, "Echo")) == 2 and not first & set(pids(app, "Echo")))
    eventually(lambda: [p.name for p in app.status().pools] == ["Echo#4"])


def test_where_old_and_new_do_not_fit_one_makes_room_at_a_time_and_calls_wait(app: Any, eventually: Any) -> None:
    two_gpus = {"gpu": gw.Gpu("A100", 2), "min_workers": 2, "max_workers": 2}  # all that the cluster has
    version(app, "v0", **two_gpus)
    app.deploy()
    by_name = gw.Cls.from_name(app.name, "Echo")
    with Load(lambda n: by_name().count.remote(n)) as load:
        version(app, "v1", **two_gpus)
        app.deploy()
        assert by_name().count.remote(0)[0] == "v1"
    assert load.errors == []
    going = [e for e in app.status().events if e.reason == "makes room for the new version"]
    assert len(going) >= 1
    eventually(lambda: (p := app.status().pools) and [(q.name, q.ready) for q in p] == [("Echo#2", 2)])


@pytest.mark.parametrize("gpu", [None, gw.Gpu("A100", 4)], ids=["with room", "without room"])
def test_a_version_that_does_not_become_ready_is_rolled_back_and_fails_no_call(
    app: Any, gpu: Any, eventually: Any
) -> None:
    version(app, "good", gpu=gpu)
    app.deploy()
    by_name = gw.Cls.from_name(app.name, "Echo")
    with Load(lambda n: by_name().count.remote(n)) as load:
        version(app, "bad", gpu=gpu, fails="no such weights")
        with pytest.raises(gw.StartupFailed, match=r"version 2 .* is not served(.|\n)*no such weights"):
            app.deploy()
        assert by_name().count.remote(0) == ("good", 0)
    assert load.errors == []
    assert {name for name, _ in load.results} == {"good"}
    assert [e.action for e in app.status().events].count("rolled back") == 1
    eventually(lambda: [(p.name, p.ready) for p in app.status().pools] == [("Echo#1", 1)])
    version(app, "better", gpu=gpu)
    app.deploy()
    assert by_name().count.remote(0)[0] == "better"


def test_an_update_goes_on_when_the_controller_is_killed_in_its_midst(
    app: Any, controller_pid: Any, eventually: Any, gate: Any
) -> None:
    version(app, "v0")
    app.deploy()
    by_name = gw.Cls.from_name(app.name, "Echo")
    app.classes.clear()

    @app.cls(cpu=0.1, min_workers=1, name="Echo")
    class Slow:
        @gw.on_enter()
        def load(self) -> None:
            gate.wait()

        @gw.method()
        def count(self, number: int) -> tuple[str, int]:
            return "v1", number

    with Load(lambda n: by_name().count.remote(n)) as load:
        deploying = threading.Thread(target=app.deploy)
        deploying.start()
        eventually(lambda: gate.arrivals)
        os.kill(controller_pid(app), signal.SIGKILL)
        eventually(lambda: "controller restarted" in actions_of(app))
        gate.open()
        deploying.join(30)
        assert not deploying.is_alive()
        assert by_name().count.remote(0)[0] == "v1"
    assert load.errors == []
    assert gate.arrivals == 1, "the worker that was starting was taken over"


def test_a_class_that_the_new_version_lacks_goes_and_one_it_adds_comes(app: Any, ledger: Any, eventually: Any) -> None:
    define(app, ledger)
    app.deploy()
    app.classes.clear()

    @app.cls(cpu=0.1, min_workers=1)
    class Added:
        @gw.method()
        def hello(self) -> str:
            return "hello"

    app.deploy()
    assert gw.Cls.from_name(app.name, "Added")().hello.remote() == "hello"
    with pytest.raises(gw.NotFound, match="has no class 'Echo'; it has: Added"):
        gw.Cls.from_name(app.name, "Echo")().pid.remote()
    eventually(lambda: [p.class_name for p in app.status().pools] == ["Added"])


def test_a_changed_signature_is_known_to_callers_after_the_update(app: Any, ledger: Any, eventually: Any) -> None:
    version(app, "v0")
    app.deploy()
    by_name = gw.Cls.from_name(app.name, "Echo")
    assert by_name().count.remote(1) == ("v0", 1)
    app.classes.clear()

    @app.cls(cpu=0.1, min_workers=1, name="Echo")
    class Wider:
        @gw.method()
        def count(self, number: int, step: int) -> tuple[str, int]:
            return "v1", number + step

    app.deploy()
    assert by_name().count.remote(1, step=2) == ("v1", 3)
    with pytest.raises(TypeError, match="step"):
        by_name().count.remote(1)


def actions_of(app: Any) -> list[str]:
    """What the log says was done; empty while the controller is away."""
    with contextlib.suppress(ray.exceptions.RayError):
        return [event.action for event in app.status().events]
    return []


# --- code --------------------------------------------------------------------------------------------------------

SERVER = """
import enum, os
import gworker as gw
import helper

class Mode(enum.Enum):
    LOUD = "loud"
    QUIET = "quiet"

app = gw.App({name!r})

@app.cls(cpu=0.1, min_workers=1)
class Greeter:
    mode: Mode = gw.parameter(default=Mode.QUIET)

    @gw.method()
    def greet(self, who: str) -> str:
        from helper import greeting
        text = greeting(who)
        return text.upper() if self.mode.value == "loud" else text

    @gw.method()
    def where(self) -> tuple[int, str]:
        return os.getpid(), helper.__file__
"""


def folder_of_code(tmp_path: Any, name: str, greeting: str) -> Any:
    """A program in a folder of its own: a module with the app, one that it imports, one that deploys it."""
    folder = tmp_path / "program"
    folder.mkdir(exist_ok=True)
    (folder / "server.py").write_text(SERVER.format(name=name))
    (folder / "helper.py").write_text(f"def greeting(who):\n    return {greeting!r} + who\n")
    (folder / "deploying.py").write_text("from server import app\napp.deploy()\n")
    return folder


def test_importable_code_travels_with_the_version_and_callers_need_not_have_it(
    app: Any, tmp_path: Any, address: str, script: Any, run_python: Any, pids: Any, eventually: Any
) -> None:
    folder = folder_of_code(tmp_path, app.name, "hello ")
    run_python(folder / "deploying.py", address)
    for file in folder.iterdir():
        if file.suffix == ".py":
            file.unlink()  # what runs does not depend on the files any more
    calling = script(
        f"""
        import gworker as gw
        Greeter = gw.Cls.from_name({app.name!r}, "Greeter")
        print(Greeter().greet.remote("ada"), "|", Greeter(mode="loud").greet.remote(who="ada"))
        try:
            Greeter(mode="silent")
        except gw.InvalidDefinition as error:
            print(error)
        """,
        address,
    )
    assert calling.wait() == 0, calling.err
    assert calling.out.splitlines()[0] == "hello ada | HELLO ADA"
    assert "'loud' or 'quiet'" in calling.out, "parameters are checked without the app's modules, too"
    greeter = gw.Cls.from_name(app.name, "Greeter")
    pid, where = greeter().where.remote()
    assert str(folder) not in where
    # A worker that is restarted after the files have changed runs the version that was deployed.
    folder_of_code(tmp_path, app.name, "goodbye ")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: (now := pids(app, "Greeter")) and now != [pid])
    assert greeter().greet.remote("ada") == "hello ada"
    run_python(folder / "deploying.py", address)
    assert greeter().greet.remote("ada") == "goodbye ada"


@pytest.fixture
def run_python() -> Callable[..., None]:
    """Runs a file in its own folder to its end, attached to a Ray."""

    def run(file: Any, address: str) -> None:
        environment = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": os.getcwd()}
        subprocess.run([sys.executable, file.name], cwd=file.parent, env=environment, check=True, timeout=60)

    return run


# --- a controller that dies ----------------------------------------------------------------------------------------


def test_calls_go_on_while_the_controller_is_killed_and_its_replacement_restarts_no_worker(
    app: Any, ledger: Any, pids: Any, restarted: Any
) -> None:
    echo = define(app, ledger)
    app.deploy()
    served = set(pids(app, "Echo"))
    with Load(lambda n: echo().count.remote(n)) as load:
        for _ in range(2):
            before = len(load.results)
            restarted(app)
            assert len(load.results) > before, "calls went on without a controller"
    assert load.errors == []
    assert set(pids(app, "Echo")) == served
    lines = ledger.lines()
    assert sorted(line for line in lines if line.startswith("enter")) == sorted(f"enter {pid}" for pid in served)
    calls = [line for line in lines if line.startswith("call")]
    assert len(calls) == len(set(calls)) == len(load.results), "each call ran once"
    pool = app.status().pool("Echo")
    assert (pool.state, pool.desired, pool.restarts) == ("READY", 2, 0)


def test_a_worker_that_starts_meanwhile_is_taken_over_and_starts_once(
    app: Any, ledger: Any, gate: Any, restarted: Any, eventually: Any
) -> None:
    @app.cls(cpu=0.1)
    class Slow:
        @gw.on_enter()
        def load(self) -> None:
            ledger.write(str(os.getpid()))
            gate.wait()

        @gw.method()
        def pid(self) -> int:
            return os.getpid()

    app.deploy()
    call = Slow().pid.spawn()
    (starting,) = eventually(ledger.lines)
    restarted(app)
    gate.open()
    assert call.get(20) == int(starting)
    assert ledger.lines() == [starting]


def test_restart_counts_and_backoff_outlive_the_controller(
    app: Any, ledger: Any, restarted: Any, eventually: Any
) -> None:
    echo = define(app, ledger, min_workers=1, max_workers=1)
    app.deploy()
    for n in range(4):
        with pytest.raises(gw.WorkerLost):
            echo().die.remote()
        eventually(lambda n=n: app.status().pool("Echo").restarts == n + 1)
        eventually(lambda: app.status().pool("Echo").ready == 1, 30)
    restarted(app)
    assert app.status().pool("Echo").restarts == 4
    with pytest.raises(gw.WorkerLost):
        echo().die.remote()
    # The fifth within five minutes: the place is held, though this controller has seen only one of them.
    eventually(lambda: app.status().pool("Echo").state == "DEGRADED")
    (held,) = app.status().pool("Echo").workers
    assert (held.state, held.restarts) == ("BACKOFF", 5)
    restarted(app)
    (held,) = app.status().pool("Echo").workers
    assert (held.state, held.restarts) == ("BACKOFF", 5), "and it waits on, under the next controller too"


def test_a_worker_that_died_while_there_was_no_controller_is_replaced(
    app: Any, ledger: Any, pids: Any, controller_pid: Any, eventually: Any
) -> None:
    define(app, ledger)
    app.deploy()
    first, second = pids(app, "Echo")
    os.kill(controller_pid(app), signal.SIGKILL)
    os.kill(first, signal.SIGKILL)

    def healed() -> bool:
        with contextlib.suppress(ray.exceptions.RayError):
            now = pids(app, "Echo")
            return len(now) == 2 and second in now and first not in now
        return False

    eventually(healed, 30)
    assert app.status().pool("Echo").restarts == 1


def test_the_replacement_reaps_workers_that_nobody_knows(
    app: Any, ledger: Any, restarted: Any, eventually: Any
) -> None:
    define(app, ledger)
    app.deploy()
    boot = WorkerBoot(app.name, PoolKey("Echo"), "Echo-99", Payload(b""), Payload(b""), None)
    create_worker(boot, {"num_cpus": 0, **deployment.worker_options(app.name, "Echo-99")})
    assert deployment.find_worker(app.name, "Echo-99")
    restarted(app)

    def reaped() -> bool:
        try:
            deployment.find_worker(app.name, "Echo-99")
        except ValueError:
            return True
        return False

    eventually(reaped)
    assert [e.worker for e in app.status().events if e.action == "reaped"] == ["Echo-99"]


def test_workers_that_find_no_controller_drain_and_end(
    app: Any, ledger: Any, pids: Any, gone: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "ControllerBoot", functools.partial(ControllerBoot, orphaned_s=3.0))
    define(app, ledger, min_workers=1)
    app.deploy()
    (pid,) = pids(app, "Echo")
    ray.kill(deployment.find_controller(app.name), no_restart=True)
    assert eventually(lambda: gone(pid), 30)
    assert ledger.lines() == [f"enter {pid}", f"exit {pid}"]


# --- ephemeral apps ----------------------------------------------------------------------------------------------


def test_an_ephemeral_app_leaves_nothing_behind_when_its_program_is_killed(
    script: Any, address: str, gone: Any, eventually: Any
) -> None:
    running = script(
        """
        import os, subprocess, time
        import gworker as gw
        app = gw.App("ephemeral")

        @app.cls(cpu=0.1, min_workers=2)
        class Once:
            @gw.on_enter()
            def load(self):
                self.child = subprocess.Popen(["sleep", "600"])

            @gw.method()
            def pids(self) -> list[int]:
                return [os.getpid(), self.child.pid]

        with app.run():
            workers = [w.pid for w in app.status().pool("Once").workers]
            print(*workers, *Once().pids.remote(), flush=True)
            time.sleep(600)
        """,
        address,
    )
    eventually(lambda: running.out.strip())
    processes = [int(pid) for pid in running.out.split()]
    running.process.kill()
    assert eventually(lambda: gone(*processes))


@pytest.mark.parametrize("end", ["crash", "stop"])
def test_what_a_worker_started_does_not_outlive_it(app: Any, gone: Any, eventually: Any, end: str) -> None:
    @app.cls(cpu=0.1)
    class Parent:
        @gw.method()
        def start(self) -> tuple[int, int]:
            import subprocess

            child = subprocess.Popen(["sleep", "600"], start_new_session=True)
            return os.getpid(), child.pid

    worker, child = Parent().start.remote()
    assert psutil.pid_exists(child)
    if end == "crash":
        os.kill(worker, signal.SIGKILL)
    else:
        app.stop()
    assert eventually(lambda: gone(worker, child))


# --- events ------------------------------------------------------------------------------------------------------


def test_events_tell_what_was_done_and_why_and_are_followed_until_the_app_stops(app: Any, ledger: Any) -> None:
    echo = define(app, ledger, min_workers=0, max_workers=1)
    assert list(app.events()) == [], "an app that does not run has none"
    echo().pid.remote()
    events: list[Any] = []
    two_up = threading.Event()

    def follow() -> None:
        for event in app.events():
            events.append(event)
            if [e.action for e in events].count("ready") == 2:
                two_up.set()

    following = threading.Thread(target=follow)
    following.start()
    with pytest.raises(gw.WorkerLost):
        echo().die.remote()
    assert two_up.wait(20)
    app.stop()
    following.join(20)
    assert not following.is_alive()
    actions = [(event.worker, event.action) for event in events]
    assert actions[:2] == [("", "scaled up"), ("Echo-1", "starting")]
    assert ("Echo-1", "ready") in actions and ("Echo-1", "crashed") in actions and ("Echo-2", "ready") in actions
    crashed = next(event for event in events if event.action == "crashed")
    assert crashed.pool == "Echo" and "process has died" in crashed.reason
    assert [event.number for event in events] == sorted(event.number for event in events)


@pytest.fixture
def app(make_app: Callable[[], Any]) -> Iterator[Any]:
    """An app of the test's own; deployed ones are stopped, too."""
    made = make_app()
    yield made
    made.stop(drain=False)


def test_whoever_asks_while_a_controller_is_being_replaced_waits_for_its_replacement(
    app: Any, ledger: Any, pids: Any, controller_pid: Any, gone: Any, eventually: Any
) -> None:
    define(app, ledger)
    app.deploy()
    served = pids(app, "Echo")

    def kill() -> None:
        eventually(lambda: len(pids(app, "Echo")) == 2, 30)
        os.kill(controller_pid(app), signal.SIGKILL)

    kill()
    assert app.status().pool("Echo").desired == 2
    kill()
    assert gw.Cls.from_name(app.name, "Echo")().count.remote(1) == 1
    kill()
    app.deploy()
    newer: list[int] = eventually(lambda: (now := pids(app, "Echo")) and not set(now) & set(served) and now, 30)
    kill()
    app.stop()
    assert eventually(lambda: gone(*newer))
    assert [f"exit {pid}" in ledger.lines() for pid in newer] == [True, True]
