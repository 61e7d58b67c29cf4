"""How a process reaches the controller of an app: one that is being replaced is waited for, one that fails is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from gworker import errors
from gworker.router import client as client_module
from gworker.router.client import AppClient
from gworker.router.membership import PoolKey


class FakeController:
    """A controller whose answers are given one by one; an error is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def __getattr__(self, name: str) -> Any:
        return self

    def remote(self, *about: Any) -> Any:
        return asyncio.ensure_future(self.answer()) if about[:1] == ("router",) else self

    def now(self) -> Any:
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    async def answer(self) -> Any:
        return self.now()


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppClient]:
    """A client of a controller with these answers; `found` is what is found when it is looked for again."""
    monkeypatch.setattr(client_module.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(client_module, "_this_ray", lambda: "this one")
    monkeypatch.setattr(client_module.ray, "wait", lambda asked, timeout: (asked, []))
    monkeypatch.setattr(client_module.ray, "get", lambda asked: asked.now())
    monkeypatch.setattr(client_module, "FIND_AGAIN_S", 0.001)

    def make(*answers: Any, found: Any = None) -> AppClient:
        return AppClient("app", FakeController(*answers), lambda: found)

    return make


def test_a_controller_that_is_being_replaced_is_asked_again(reach: Any) -> None:
    client = reach(ActorDiedError(), found=FakeController(ActorDiedError(), "the status"))
    assert client.ask("status") == "the status"


def test_that_a_controller_is_gone_is_an_error_of_gworker(reach: Any) -> None:
    with pytest.raises(errors.PoolUnavailable, match="the controller of the app 'app' is gone"):
        reach(ActorDiedError()).ask("status")


def test_what_a_controller_raises_is_raised(reach: Any) -> None:
    answer = RayTaskError("deployed_class", "Traceback", errors.NotFound("no such class"))
    with pytest.raises(errors.NotFound):
        reach(answer.as_instanceof_cause(), found="the same").deployed_class("Echo")


@pytest.mark.parametrize("cause", [errors.PoolUnavailable("it is being stopped"), KeyError("a fault")])
async def test_a_controller_that_fails_is_not_asked_for_ever(reach: Any, cause: Exception) -> None:
    answer = RayTaskError("watch", "Traceback", cause).as_instanceof_cause()
    client = reach(answer, found=FakeController())
    with pytest.raises(errors.PoolUnavailable, match=r"being stopped|KeyError: .a fault"):
        await asyncio.wait_for(client.watch("router", PoolKey("Echo"), ("epoch", 1)), 5)
    assert client.lost
