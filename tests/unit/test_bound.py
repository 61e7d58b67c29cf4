"""How a call is made: a bad one fails before anything is started for it; what its method's calls share is made once."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

import gworker as gw
from gworker.options import Options
from gworker.router.calls import RoutedCall
from gworker.wire import unpack, unpack_arguments

_numbers = itertools.count(1)


class Routed:
    """Stands for a router: notes what it is given."""

    def __init__(self) -> None:
        self.calls: list[RoutedCall] = []

    def submit(self, call: RoutedCall) -> None:
        self.calls.append(call)


class Client:
    """Stands for a running app."""

    def __init__(self) -> None:
        self.routed = Routed()

    def router(self, *about: Any) -> Any:
        return self.routed


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()
    monkeypatch.setattr(gw.App, "client", lambda _: client)
    return client


@pytest.fixture
def embedder() -> Any:
    app = gw.App(f"bound-{next(_numbers)}")

    @app.cls(name="Renamed", timeout_s=30, retries=2)
    class Embedder:
        threshold: float = gw.parameter(default=0.5)

        @gw.method()
        def embed(self, text: str, *, upper: bool = False) -> str:
            return text

        @gw.method()
        @gw.batched(max_batch_size=4)
        def embed_all(self, texts: list[str]) -> list[str]:
            return texts

    return Embedder


@pytest.mark.parametrize(
    ("method", "args", "kwargs", "says"),
    [
        ("embed", (), {}, r"Renamed\.embed\(\) missing a required argument: 'text'"),
        ("embed", ("a", "b"), {}, r"Renamed\.embed\(\) too many positional arguments"),
        ("embed", ("a",), {"uper": True}, r"Renamed\.embed\(\) .*'uper'.*upper"),
        ("embed", (threading.Lock(),), {}, r"Renamed\.embed: argument 'text' of type lock cannot be pickled"),
        ("embed_all", (), {"texts": threading.Lock()}, r"Renamed\.embed_all: argument 'texts' of type lock"),
    ],
)
def test_a_bad_call_fails_before_an_app_is_started_for_it(
    embedder: Any, monkeypatch: pytest.MonkeyPatch, method: str, args: Any, kwargs: Any, says: str
) -> None:
    monkeypatch.setattr(gw.App, "client", lambda _: pytest.fail("it was started"))
    for way in ("remote", "spawn"):
        with pytest.raises(TypeError, match=says):
            getattr(getattr(embedder(), method), way)(*args, **kwargs)


def test_a_call_carries_what_its_class_and_its_handle_say(embedder: Any, client: Client) -> None:
    method = embedder(threshold=0.7).embed
    method.spawn("a")
    method.with_options(timeout_s=3, retries=0).spawn("b", upper=True)
    first, second = client.routed.calls
    assert (first.label, first.plan.timeout_s, first.retries.max_retries) == ("Renamed.embed", 30, 2)
    assert (second.label, second.plan.timeout_s, second.retries.max_retries) == ("Renamed.embed", 3, 0)
    assert unpack_arguments(first.arguments) == (("a",), {})
    assert unpack_arguments(second.arguments) == (("b",), {"upper": True})
    assert [unpack(call.plan.parameters) for call in (first, second) if call.plan.parameters] == [
        {"threshold": 0.7}
    ] * 2


def test_calls_of_one_method_share_what_they_have_in_common(embedder: Any, client: Client) -> None:
    method = embedder().embed
    method.spawn("a"), method.spawn("b")
    first, second = client.routed.calls
    assert first.plan is second.plan and first.number != second.number and first.id != second.id


def test_what_the_class_is_now_counts_when_it_is_defined_anew_or_its_app_begins_anew(
    embedder: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = embedder().embed
    method.spawn("a")
    again = embedder.with_options(timeout_s=5)
    monkeypatch.setattr(embedder.app, "latest", lambda _: again)
    method.spawn("b")
    assert [call.plan.timeout_s for call in client.routed.calls] == [30, 5]
    client.routed = other = Routed()
    method._handle._found = None
    method.spawn("c")
    assert [call.plan.timeout_s for call in other.calls] == [5]
    assert isinstance(again.spec.options, Options)


def test_the_arguments_a_call_was_given_may_be_changed_at_once(embedder: Any, client: Client) -> None:
    given = {"text": "a", "upper": True}
    embedder().embed.spawn(**given)
    given.clear()
    texts = {"texts": "a"}
    embedder().embed_all.spawn(**texts)
    texts.clear()
    assert [unpack_arguments(call.arguments) for call in client.routed.calls] == [
        ((), {"text": "a", "upper": True}),
        ((), {"texts": "a"}),
    ]


class Refusing(Routed):
    """Takes no call; a blocking caller gets a way of its own, on which the call fails, if one is said."""

    def __init__(self, error: type[BaseException], way: bool) -> None:
        super().__init__()
        self.error = error
        self.express = SimpleNamespace(take=lambda _: SimpleNamespace(run=self.submit) if way else None)

    def submit(self, call: RoutedCall) -> None:
        self.calls.append(weakref.ref(call))  # type: ignore[arg-type]
        raise self.error("no")


@pytest.mark.parametrize(
    ("way", "error", "express"),
    [("spawn", gw.QueueFull, False), ("remote", gw.QueueFull, False), ("remote", KeyboardInterrupt, True)],
)
def test_a_call_that_nobody_took_is_freed_at_once_with_its_arguments(
    embedder: Any, client: Client, way: str, error: type[BaseException], express: bool
) -> None:
    client.routed = routed = Refusing(error, express)
    gc.disable()  # callers that try again and again, with large arguments, do not wait for it either
    try:
        with pytest.raises(error):
            getattr(embedder().embed, way)("a")
        assert [call() for call in routed.calls] == [None]  # type: ignore[operator]
    finally:
        gc.enable()
