"""Apps: a named set of classes, and how it runs.

An app starts at `with app.run():`, or by itself at the first call; then it is *ephemeral*: its controller and workers
belong to this process and end with it. At exit, and at the end of `run`, calls that were spawned are finished first,
workers drain, and their on_exit hooks run.
"""

from __future__ import annotations

import asyncio
import atexit
import builtins
import concurrent.futures
import contextlib
import html
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import RayError
from typing_extensions import Never, dataclass_transform

from gworker import context, termination
from gworker.code import pack_code
from gworker.errors import InvalidDefinition, PoolUnavailable, StartupFailed
from gworker.handle import Cls, define_pool, importable_cls
from gworker.options import Gpu
from gworker.parameters import MISSING, bind_parameters, parameter
from gworker.probe import Probe
from gworker.retries import Retries
from gworker.router import deployment
from gworker.router.cluster import have_ray, is_alive, is_ours_alone, started_here
from gworker.router.membership import DeployedClass, PoolDefinition, PoolKey
from gworker.wire import pack, pack_by_value

if TYPE_CHECKING:
    # A worker imports this module with its class, and has no use for a controller, a status, or, mostly, a router.
    from gworker.control.rollout import Progress
    from gworker.observe.events import Event
    from gworker.observe.status import AppStatus
    from gworker.router.client import AppClient

log = logging.getLogger("gworker")
T = TypeVar("T")

_UNSET: Any = object()

_apps: dict[str, App] = {}
_apps_lock = threading.RLock()


class App:
    """A named set of classes. One name in one process is one app: `App("x")` again returns the same one.

    >>> import gworker as gw
    >>> app = gw.App("doc-example")
    >>> @app.cls(max_workers=4)
    ... class Doubler:
    ...     @gw.method()
    ...     def double(self, x: int) -> int:
    ...         return 2 * x
    >>> Doubler().double.local(4)
    8
    """

    name: str
    classes: dict[str, Cls]

    def __new__(cls, name: str) -> App:
        if not isinstance(name, str) or not name.strip():
            raise InvalidDefinition(
                f"App({name!r}): expected a name, a string that is not empty: write gw.App('my-app')"
            )
        with _apps_lock:
            app = _apps.get(name)
            if app is None:
                app = _apps[name] = super().__new__(cls)
                app.name = name
                app.classes = {}
                app._generations = {}
                app._running = None
                app._deployed_as = None
                app._lock = threading.RLock()
            return app

    _generations: dict[str, int]
    _running: AppClient | None
    _deployed_as: str | None
    _lock: threading.RLock

    def __reduce__(self) -> tuple[Any, ...]:
        return (App, (self.name,))

    def __repr__(self) -> str:
        return f"<gworker.App {self.name!r}: {', '.join(self.classes) or 'no classes'}>"

    # --- definition -----------------------------------------------------------------------------------------------

    @dataclass_transform(eq_default=False, kw_only_default=True, field_specifiers=(parameter,))
    def cls(
        self,
        *bare: Never,
        gpu: Gpu | None = _UNSET,
        cpu: float = _UNSET,
        memory_mb: float | None = _UNSET,
        resources: Mapping[str, float] | None = _UNSET,
        min_workers: int = _UNSET,
        max_workers: int = _UNSET,
        buffer_workers: int = _UNSET,
        scaledown_window_s: float = _UNSET,
        startup_timeout_s: float = _UNSET,
        timeout_s: float | None = _UNSET,
        drain_timeout_s: float = _UNSET,
        retries: int | Retries = _UNSET,
        max_pending: int = _UNSET,
        max_pending_mb: float = _UNSET,
        probes: Sequence[Probe] = _UNSET,
        name: str | None = _UNSET,
        runtime_env: Mapping[str, Any] | None = _UNSET,
        **unknown: Never,
    ) -> Callable[[type[T]], type[T]]:
        """Make a class of this app. All options are given by name; each has a default.

        Args:
            gpu: `Gpu("A100")`, or None for none. A count may be a fraction.
            cpu: CPU cores a worker holds (1.0).
            memory_mb: memory a worker holds, in MB (None: not counted).
            resources: further Ray resources a worker holds.
            min_workers: workers kept ready whatever the demand (0). 1 removes the cold start of the first call.
            max_workers: the most workers there will be (100).
            buffer_workers: workers kept beyond the demand while there is any (0).
            scaledown_window_s: seconds without need before a worker is let go (60).
            startup_timeout_s: seconds the on_enter hooks may take (600).
            timeout_s: seconds one execution of a method may take (None: no limit).
            drain_timeout_s: seconds running inputs may take when a worker stops (30).
            retries: a number of further tries, or `Retries(...)` (0).
            max_pending: calls that may wait in one process (10,000); more raise QueueFull.
            max_pending_mb: size of the calls that may wait in one process, in MB (1024).
            probes: `Probe.on(...)` objects.
            name: the class's name in the app (its own).
            runtime_env: Ray runtime environment of the workers.

        Raises:
            InvalidDefinition: for anything that cannot work, before anything is started.
        """
        if bare:
            raise InvalidDefinition(
                f"@app.cls was given {getattr(bare[0], '__name__', bare[0])!r}: did you forget the parentheses? "
                "Write @app.cls() above the class"
            )
        options: dict[str, Any] = {
            "gpu": gpu, "cpu": cpu, "memory_mb": memory_mb, "resources": resources, "min_workers": min_workers,
            "max_workers": max_workers, "buffer_workers": buffer_workers, "scaledown_window_s": scaledown_window_s,
            "startup_timeout_s": startup_timeout_s, "timeout_s": timeout_s, "drain_timeout_s": drain_timeout_s,
            "retries": retries, "max_pending": max_pending, "max_pending_mb": max_pending_mb, "probes": probes,
            "name": name, "runtime_env": runtime_env,
        }  # fmt: skip
        given = {key: value for key, value in options.items() if value is not _UNSET} | unknown

        def decorate(user_cls: type[T]) -> type[T]:
            compiled = Cls(self, _undecorated(user_cls), given)
            compiled.spec  # noqa: B018  # every mistake shows here, where it was made
            self._register(compiled)
            return compiled  # type: ignore[return-value]  # to a reader it stays the class; see handle.Cls

        return decorate

    def _register(self, cls: Cls) -> None:
        with self._lock:
            if cls.name in self.classes:
                if not _is_interactive(cls.user_cls):
                    raise InvalidDefinition(
                        f"app {self.name!r} has a class {cls.name!r} already "
                        f"({self.classes[cls.name].user_cls.__module__}): give one of them another name with "
                        "@app.cls(name=...)"
                    )
                self._generations[cls.name] = self._generations.get(cls.name, 0) + 1
                cls.generation = self._generations[cls.name]
            self.classes[cls.name] = cls
            running = self._running
        if running is not None and not running.deployed and ray.is_initialized():
            running.controller.declare.remote({cls.name: cls.spec.options})
            if cls.generation:
                running.controller.retire.remote(cls.name, cls.generation)

    def latest(self, cls: Cls) -> Cls:
        """The newest definition of `cls`: a notebook cell may have replaced it since the handle was made."""
        newest = self.classes.get(cls.name)
        if newest is cls or newest is None or newest.generation <= cls.generation:
            return cls
        return newest.with_options(**cls.changes) if cls.changes else newest

    def describe(self) -> str:
        """What was compiled, for people: classes, methods, hooks, limits, probes."""
        head = f"app {self.name}"
        return "\n\n".join([head, *(cls.describe() for cls in self.classes.values())])

    # --- running --------------------------------------------------------------------------------------------------

    def run(self) -> Run:
        """Run the app during a `with` (or `async with`) block: all floors up at its start, drained at its end.

        Raises StartupFailed or Unschedulable when a class with `min_workers` cannot come up.
        """
        return Run(self)

    def client(self) -> AppClient:
        """The running app as this process reaches it; starts it if need be."""
        running = self._running
        if running is not None and running.usable:
            return running
        with self._lock:
            if self._running is not None and not self._running.usable:
                # Its controller died, or Ray was shut down: nothing of it is left. Start afresh.
                self._running.close(PoolUnavailable(f"the app {self.name!r} has lost its Ray cluster"))
                self._running = None
                atexit.unregister(self._at_exit)
            if self._running is None:
                self._running = self._found() or self._start()
            return self._running

    def _found(self) -> AppClient | None:
        """The app where it runs already: around this worker, or deployed in the cluster."""
        from gworker.router.client import AppClient, deployed_client

        worker = context.this_worker()
        if worker is not None and worker.app_name == self._cluster_name and not worker.deployed:
            return AppClient(self.name, worker.controller.get())
        have_ray()
        if deployment.find_controller(self._cluster_name) is None:
            return None
        client = deployed_client(self._cluster_name)
        self._follow(client)
        return client

    @property
    def _cluster_name(self) -> str:
        """What the app is called in the cluster: it may be deployed under another name than its code gives."""
        worker = context.this_worker()
        if worker is not None and worker.defined_as == self.name:
            return worker.app_name
        return self._deployed_as or self.name

    def _follow(self, client: AppClient) -> None:
        """Have the classes of this process stand for those that are deployed."""
        for cls in self.classes.values():
            cls.generation = 0
        atexit.register(self._at_exit)
        if context.this_worker() is None:
            termination.obey()

    def deploy(self, *, name: str | None = None) -> None:
        """Run the app apart from this process: its controller and workers stay, and other programs call it by name.

        `name` is what it is called there (its own name).

        What is deployed already under this name is updated without failing a call: new workers come up first, then the
        old ones drain; where there is no room for both, one is replaced at a time while calls wait. Returns once the
        new version serves, with as many workers as the old one had, or the floors of its classes. Raises StartupFailed
        when it does not become ready: then the version before it serves on.
        `gw.Cls.from_name(app, class)` gives the classes to other programs of the cluster; `stop()` ends the app.
        """
        from gworker.router.client import deployed_client

        if context.this_worker() is not None:
            raise RuntimeError(f"App({self.name!r}).deploy() was called inside a worker: deploy from a program")
        if self._running is not None and not self._running.deployed:
            self.stop()
        self._deployed_as = name or self._deployed_as
        have_ray()
        if is_ours_alone():
            log.warning(
                "%s is deployed into a Ray that belongs to this process and ends with it: start a cluster first, "
                "with `ray start --head`",
                self._cluster_name,
            )
        self._create_controller(deployed=True)
        modules = [sys.modules[cls.user_cls.__module__] for cls in self.classes.values() if importable_cls(cls)]
        code = pack_code(modules)
        digest = "" if code is None else code.digest
        deployed = {key: _deployable(cls, digest, modules) for key, cls in self.classes.items()}
        client = deployed_client(self._cluster_name)
        version: int = client.ask("deploy", deployed, code, timeout_s=None)
        with self._lock:
            self._running = client
            self._follow(client)
        self._wait_for_update(client, version)

    def _wait_for_update(self, client: AppClient, version: int) -> None:
        from gworker.control.rollout import Phase

        while True:
            progress: Progress = client.ask("progress", version, timeout_s=None)
            if progress.phase is Phase.READY:
                return
            if progress.phase is Phase.FAILED:
                raise StartupFailed(f"version {version} of the app {self.name!r} is not served: {progress.reason}")
            log.warning("%s: version %d is not ready yet: %s", self.name, version, progress.reason)

    def _create_controller(self, *, deployed: bool) -> Any:
        from gworker.control.controller import ControllerBoot, create_controller

        return create_controller(
            ControllerBoot(
                app_name=self._cluster_name if deployed else self.name,
                gpu_optional=_gpu_is_optional(),
                cluster_may_grow=not is_ours_alone(),
                classes={name: cls.spec.options for name, cls in self.classes.items()},
                deployed=deployed,
            )
        )

    def _start(self) -> AppClient:
        from gworker.router.client import AppClient

        have_ray()
        controller = self._create_controller(deployed=False)
        client = AppClient(self.name, controller)
        # Registered now, after Ray was imported, so that it runs before Ray's own exit hook.
        atexit.register(self._at_exit)
        termination.obey()
        return client

    def _raise_floors(self, client: AppClient) -> None:
        """See that every class with a floor has it, and wait until it has."""
        from gworker.router.router import EXPLAIN_AFTER_S

        with_floor = [cls for cls in self.classes.values() if cls.spec.options.min_workers and _has_defaults(cls)]
        waits = [(router := cls()._router(), router.when_ready(cls.spec.options.min_workers)) for cls in with_floor]
        for router, floor in waits:
            while not concurrent.futures.wait([floor], EXPLAIN_AFTER_S).done:
                log.warning("%s: waiting for the floor of %s: %s", self.name, router.key, router.missing())
            floor.result()

    def status(self) -> AppStatus:
        """Pools, workers, states, counters and the latest events at this moment. Starts nothing."""
        from gworker.observe.status import AppStatus

        running = self._running_or_deployed()
        if running is None:
            return AppStatus(self.name, running=False)
        status: AppStatus = running.ask("status")
        return status

    def events(self) -> Iterator[Event]:
        """What the supervisor and the autoscaler did and do, and why: what is remembered, then each as it happens.

        Ends when the app is stopped; at once where it does not run.
        """
        running = self._running_or_deployed()
        seen = 0
        while running is not None:
            try:
                news: tuple[Event, ...] = running.ask("events", seen, timeout_s=None)
            except (PoolUnavailable, RayError):
                return
            for event in news:
                seen = event.number
                yield event

    def _running_or_deployed(self) -> AppClient | None:
        if self._running is not None or not ray.is_initialized():
            return self._running
        from gworker.router.client import deployed_client

        name = self._cluster_name
        return None if deployment.find_controller(name) is None else deployed_client(name)

    def stop(self, drain: bool = True) -> None:
        """Stop the app's workers and wait until they are gone. Calls that still wait end with PoolUnavailable.

        With `drain`, running inputs finish (`drain_timeout_s`) and on_exit hooks run; without, workers are killed.
        A later call starts the app again. A deployed app is stopped for everybody, whoever deployed it, where this
        process is attached to its cluster.
        """
        with self._lock:
            running = self._running_or_deployed()
            self._running = None
        if running is None or context.this_worker() is not None:
            return
        atexit.unregister(self._at_exit)
        if not ray.is_initialized():
            running.close(PoolUnavailable(f"the app {self.name!r} was stopped"))
            return
        try:
            self._stop_workers(running, drain)
        finally:
            running.lost = True
            running.close(PoolUnavailable(f"the app {self.name!r} was stopped"))
            if is_alive():
                ray.kill(running.controller)

    def _stop_workers(self, running: AppClient, drain: bool) -> None:
        try:
            with termination.undisturbed():
                running.ask("stop", drain, termination.left_for_inputs_s(), timeout_s=None)
        except KeyboardInterrupt:
            log.warning("interrupted again: the workers of %s are killed without draining", self.name)
            with termination.undisturbed():
                running.ask("stop", False)
            raise
        except (PoolUnavailable, RayError):
            log.warning("the controller of %s was gone before it could stop its workers", self.name)

    def _at_exit(self) -> None:
        running = self._running
        if running is None or not ray.is_initialized():
            return
        # After Ctrl-C and SIGTERM only what runs is finished. Python keeps what ended the script in `sys.last_type`.
        interrupted = termination.asked() or getattr(sys, "last_type", None) is KeyboardInterrupt
        try:
            if not interrupted:
                if running.unfinished:
                    log.info("%s: finishing %d calls before exit", self.name, running.unfinished)
                running.wait_idle()
        except KeyboardInterrupt:
            log.warning(
                "%s: interrupted; %d calls are not waited for. Interrupt again to stop without draining",
                self.name,
                running.unfinished,
            )
        if running.deployed:
            running.close(PoolUnavailable("this process is ending"))
            return
        with contextlib.suppress(KeyboardInterrupt):
            self.stop()

    # --- showing --------------------------------------------------------------------------------------------------

    def __rich__(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        title = Text(f"gworker app {self.name}")
        table = Table("class", "methods", "workers", "gpu", title=title, title_justify="left")
        for row in self._rows():
            table.add_row(*map(Text, row))
        return table

    def _repr_html_(self) -> str:
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in self._rows())
        head = "<tr><th>class</th><th>methods</th><th>workers</th><th>gpu</th></tr>"
        return f"<table><caption>gworker app <b>{html.escape(self.name)}</b></caption>{head}{rows}</table>"

    def _rows(self) -> list[tuple[str, str, str, str]]:
        rows = []
        for name, cls in self.classes.items():
            options = cls.spec.options
            gpu = "" if options.gpu is None else f"{options.gpu.type or 'any'} x{options.gpu.count:g}"
            rows.append((name, ", ".join(cls.spec.methods), f"{options.min_workers}-{options.max_workers}", gpu))
        return rows


class Run:
    """`with app.run():` and `async with app.run():`."""

    def __init__(self, app: App) -> None:
        self._app = app

    def __enter__(self) -> App:
        try:
            self._app._raise_floors(self._app.client())
        except BaseException:
            self._app.stop(drain=False)
            raise
        return self._app

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running = self._app._running
        if error is None and running is not None:
            running.wait_idle()
        self._app.stop()

    async def __aenter__(self) -> App:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)


# --- the ground it stands on -------------------------------------------------------------------------------------


def _has_defaults(cls: Cls) -> bool:
    """Whether a handle can be made without values: there is a pool to raise before anybody asks for another."""
    return all(p.default is not MISSING for p in cls.spec.parameters.values())


def _deployable(cls: Cls, code: str, modules: Sequence[ModuleType]) -> DeployedClass:
    default_pool: PoolDefinition | None = None
    if _has_defaults(cls):
        values = bind_parameters(cls.name, cls.spec.parameters, {})
        default_pool = define_pool(cls, PoolKey(cls.name, worker_key=values.worker_key), values)
    return DeployedClass(
        name=cls.name,
        cls=cls.packed(),
        interface=pack(cls.spec.interface()),
        interface_by_value=pack_by_value(cls.spec.interface(), modules),
        code=code,
        options=cls.spec.options.without_code(),
        max_inputs=cls.spec.max_inputs,
        target_inputs=cls.spec.target_inputs,
        default_pool=default_pool,
    )


def _undecorated(user_cls: Any) -> Any:
    return user_cls.user_cls if isinstance(user_cls, Cls) else user_cls


def _is_interactive(user_cls: type) -> bool:
    """Whether the class comes from a notebook or a REPL, where a cell is run again to replace what it defines."""
    if user_cls.__module__ != "__main__":
        return False
    main = sys.modules.get("__main__")
    return hasattr(sys, "ps1") or hasattr(builtins, "__IPYTHON__") or not hasattr(main, "__file__")


def _gpu_is_optional() -> bool:
    wanted = os.environ.get("GWORKER_GPU", "")
    if wanted not in ("", "required", "optional"):
        raise ValueError(f"GWORKER_GPU={wanted!r} in the environment: expected 'required' or 'optional', or nothing")
    return wanted == "optional" or (not wanted and started_here())
