"""Gateways in front of an app whose router runs methods in this process: real sockets, no Ray."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

import gworker as gw
from gworker import clock
from gworker.errors import CallCancelled, DeadlineExceeded, GWorkerError
from gworker.http import GatewayServer, create_gateway
from gworker.observe.status import AppStatus, PoolStatus
from gworker.parameters import bind_instance, make_view
from gworker.router.calls import Problem, RoutedCall
from gworker.wire import pack, pack_exception, unpack, unpack_arguments
from gworker.worker.asgi import AsgiHost

_numbers = itertools.count(1)


class FakeRouter:
    """Stands for a router and one worker: runs each call as a task of the loop that submits it."""

    def __init__(self, cls: Any, worker_values: dict[str, Any]) -> None:
        self._cls = cls
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._instance = cls.user_cls()
        bind_instance(self._instance, worker_values)
        self._hosts: dict[str, AsgiHost] = {}
        self.refuse: GWorkerError | None = None
        self.fail: BaseException | None = None
        self.calls: list[RoutedCall] = []
        self.cancelled: list[str] = []

    def submit(self, call: RoutedCall) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.calls.append(call)
        loop = asyncio.get_running_loop()
        if self.fail is not None:
            call.over = True
            loop.call_soon(call.raised, Problem(self.fail))
            return
        self._tasks[call.number] = loop.create_task(self._run(call))
        if call.deadline is not None:
            call.timer = loop.call_later(call.deadline - clock.now(), self._late, call)

    def cancel(self, call: RoutedCall) -> None:
        if not call.over:
            self._end(call, CallCancelled(f"{call.label} was cancelled"))
            self.cancelled.append(call.plan.method)

    def grant(self, call: RoutedCall, count: int) -> None:
        """Room is never short here."""

    def _late(self, call: RoutedCall) -> None:
        if not call.over:
            self._end(call, DeadlineExceeded(f"{call.label} was late", limit="deadline_s", where="worker"))

    def _end(self, call: RoutedCall, error: GWorkerError) -> None:
        call.over = True
        self._tasks[call.number].cancel()
        call.raised(Problem(error))

    async def _run(self, call: RoutedCall) -> None:
        method = self._cls.spec.methods[call.plan.method]
        try:
            args, kwargs = unpack_arguments(call.arguments)
            values = {} if call.plan.parameters is None else unpack(call.plan.parameters)
            target = make_view(self._instance, values) if values else self._instance
            if method.asgi:
                function = await self._host(call.plan.method)
            else:
                function = getattr(target, call.plan.method)
            if method.batch is not None:
                kwargs = {name: [value] for name, value in kwargs.items()}
            result = function(*args, **kwargs)
            if method.is_generator:
                await self._items(call, result)
                call.over = True
                call.ended()
                return
            if inspect.isawaitable(result):
                result = await result
            packed = pack(result[0] if method.batch is not None else result)
            call.over = True
            call.returned(packed)
        except Exception as error:
            call.over = True
            call.raised(Problem(pack_exception(error)))

    async def _items(self, call: RoutedCall, items: Any) -> None:
        if inspect.isasyncgen(items):
            try:
                async for item in items:
                    call.item(pack(item))
            finally:
                await items.aclose()
        else:
            for item in items:
                call.item(pack(item))

    async def _host(self, name: str) -> Any:
        if name not in self._hosts:
            self._hosts[name] = AsgiHost(getattr(self._instance, name)())
            await self._hosts[name].start()
        return self._hosts[name].handle


class FakeClient:
    """Stands for a running app."""

    lost = False
    deployed = False

    def __init__(self, app: Any) -> None:
        self._app = app
        self.routers: dict[Any, FakeRouter] = {}

    def router(self, key: Any, define: Callable[[], Any]) -> FakeRouter:
        if key not in self.routers:
            values = unpack(define().worker_values)
            self.routers[key] = FakeRouter(self._app.classes[key.class_name], values)
        return self.routers[key]

    def of(self, class_name: str) -> FakeRouter:
        """The router of a class that has been called."""
        return next(router for key, router in self.routers.items() if key.class_name == class_name)


class FakeApp:
    """A real app with a client that needs no Ray, and a status that a test sets."""

    def __init__(self) -> None:
        self.app = gw.App(f"http-{os.getpid()}-{next(_numbers)}")
        self.client = FakeClient(self.app)
        self.pools: tuple[PoolStatus, ...] = ()
        self.events: tuple[gw.Event, ...] = ()
        self.status_error: Exception | None = None
        self.app.client = lambda: self.client  # type: ignore[method-assign,assignment,return-value]
        self.app.status = self._status  # type: ignore[method-assign]

    def _status(self) -> AppStatus:
        if self.status_error is not None:
            raise self.status_error
        return AppStatus(self.app.name, True, self.pools, self.events)

    def router(self, class_name: str) -> FakeRouter:
        return self.client.of(class_name)


@pytest.fixture
def fake() -> FakeApp:
    """An app of the test's own."""
    return FakeApp()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., httpx.Client]]:
    """Serves an app on a socket; returns a client. Options go to `create_gateway`, `headers` to the client."""
    monkeypatch.delenv("GWORKER_TOKEN", raising=False)
    servers: list[GatewayServer] = []
    clients: list[httpx.Client] = []

    def start(app: Any, *, headers: dict[str, str] | None = None, **options: Any) -> httpx.Client:
        server = GatewayServer(create_gateway(app, **options), port=0, drain_s=1).start()
        servers.append(server)
        clients.append(httpx.Client(base_url=server.url, headers=headers, timeout=20, trust_env=False))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
    for server in servers:
        server.stop()


@pytest.fixture
def problem() -> Callable[..., dict[str, Any]]:
    """Checks that an answer is a problem document with this status and code; returns it."""

    def check(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        document: dict[str, Any] = answer.json()
        assert (document["status"], document["code"]) == (status, code), document
        assert document["type"] == f"urn:gworker:problem:{code}"
        assert document["title"] and document["detail"]
        assert document["instance"] == f"urn:gworker:request:{answer.headers['x-request-id']}"
        assert isinstance(document["retryable"], bool)
        return document

    return check
