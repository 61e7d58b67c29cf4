"""`await method.remote.aio(...)`: outcomes reach the loop that waits for them, many with one wake-up."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from gworker.awaiting import Awaited
from gworker.router.calls import Problem
from gworker.wire import pack


async def test_outcomes_that_come_together_wake_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    sinks = [Awaited() for _ in range(100)]
    woken: list[Any] = []
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: woken.append(args))

    def answer() -> None:
        for number, sink in enumerate(sinks):
            sink.returned(pack(number))

    router = threading.Thread(target=answer)
    router.start()
    router.join()
    ((deliver,),) = woken
    deliver()
    assert [await sink.result() for sink in sinks] == list(range(100))


async def test_an_outcome_on_the_same_loop_needs_no_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", None)
    sink = Awaited()
    sink.raised(Problem(ValueError("no")))
    with pytest.raises(ValueError, match="no"):
        await sink.result()


async def test_who_gave_up_is_told_nothing_and_harms_nobody() -> None:
    gone, waiting = Awaited(), Awaited()
    gone.outcome.cancel()
    gone.returned(pack(1))
    waiting.returned(pack(2))
    assert await waiting.result() == 2
