"""A worker that does not come up: callers learn why, or do not notice."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

import gworker as gw

pytestmark = pytest.mark.cluster


def test_hooks_that_always_raise_end_calls_and_run_with_their_traceback(
    app: Any, ledger: Any, gone: Any, eventually: Any
) -> None:
    @app.cls(cpu=0.1, min_workers=1, max_workers=1)  # a second place would have a try of its own
    class Broken:
        @gw.on_enter()
        def load_the_weights(self) -> None:
            ledger.write(f"enter {os.getpid()}")
            raise FileNotFoundError("/models/llama-3 is not there")

        @gw.on_exit()
        def unload(self) -> None:
            ledger.write("exit")

        @gw.method()
        def work(self) -> None:
            ledger.write("work")

    calls = [Broken().work.spawn() for _ in range(2)]
    for call in calls:
        with pytest.raises(gw.StartupFailed) as failure:
            call.get(30)
        message = str(failure.value)
        assert "Broken" in message
        assert "FileNotFoundError: /models/llama-3 is not there" in message
        assert "in load_the_weights" in message, "the traceback names the line that raised"
    began = time.monotonic()
    with pytest.raises(gw.StartupFailed):
        Broken().work.remote()
    assert time.monotonic() - began < 1.0, "a pool that has FAILED tells its callers at once"
    pool = app.status().pool("Broken")
    assert pool.state == "FAILED"
    lines = ledger.lines()
    assert len(lines) == 3, "three tries, no on_exit and no input"
    assert eventually(lambda: gone(*(int(line.split()[1]) for line in lines)))
    with pytest.raises(gw.StartupFailed, match="/models/llama-3 is not there"), app.run():
        pytest.fail("the block must not be entered without the floor")
    assert not app.status().running


def test_a_start_that_fails_twice_and_then_works_serves_the_calls_that_waited(shared_app: Any, ledger: Any) -> None:
    @shared_app.cls(cpu=0.1)
    class Hesitant:
        @gw.on_enter()
        async def load(self) -> None:
            ledger.write("enter")
            if len(ledger.lines()) < 3:
                raise ConnectionError("the model store is not there yet")

        @gw.method()
        def tries(self) -> int:
            return len(ledger.lines())

    assert Hesitant().tries.remote() == 3
    assert shared_app.status().pool("Hesitant").state == "READY"


def test_a_start_that_hangs_ends_after_startup_timeout_s(
    shared_app: Any, ledger: Any, gone: Any, eventually: Any
) -> None:
    @shared_app.cls(cpu=0.1, startup_timeout_s=0.5)
    class Hanging:
        @gw.on_enter()
        def load(self) -> None:
            ledger.write(str(os.getpid()))
            time.sleep(60)

        @gw.method()
        def work(self) -> None: ...

    with pytest.raises(gw.StartupFailed, match=r"on_enter did not finish within startup_timeout_s=0\.5"):
        Hanging().work.spawn().get(40)
    lines = ledger.lines()
    assert len(lines) == 3
    assert eventually(lambda: gone(*map(int, lines)))


def test_a_failed_scale_up_never_fails_calls_while_another_worker_serves(
    shared_app: Any, ledger: Any, gate: Any, eventually: Any
) -> None:
    @shared_app.cls(cpu=0.1, max_workers=3)
    class OnlyOne:
        @gw.on_enter()
        def load(self) -> None:
            ledger.write("enter")
            if len(ledger.lines()) > 1:
                raise MemoryError("there is room for one model only")

        @gw.method()
        def wait(self) -> int:
            gate.wait()
            return os.getpid()

    first = OnlyOne().wait.spawn()
    eventually(ledger.lines)
    calls = [first, *(OnlyOne().wait.spawn() for _ in range(5))]
    eventually(lambda: len(ledger.lines()) >= 4, 20.0)  # as many failures as a pool without any worker would get
    assert not any(call.done() for call in calls)
    gate.open()
    assert len({call.get(20) for call in calls}) == 1
    assert shared_app.status().pool("OnlyOne").state != "FAILED"


def test_a_process_that_dies_in_on_enter_is_tried_again(shared_app: Any, ledger: Any) -> None:
    @shared_app.cls(cpu=0.1)
    class DiesOnce:
        @gw.on_enter()
        def load(self) -> None:
            ledger.write("enter")
            if len(ledger.lines()) == 1:
                os._exit(7)

        @gw.method()
        def tries(self) -> int:
            return len(ledger.lines())

    assert DiesOnce().tries.remote() == 2


def test_a_call_with_a_deadline_does_not_wait_for_a_start_longer_than_that(
    shared_app: Any, ledger: Any, gate: Any, eventually: Any
) -> None:
    @shared_app.cls(cpu=0.1)
    class Slow:
        @gw.on_enter()
        def load(self) -> None:
            ledger.write("enter")
            gate.wait()

        @gw.method()
        def work(self) -> str:
            return "served"

    patient = Slow().work.spawn()
    eventually(ledger.lines)
    with pytest.raises(gw.PoolUnavailable, match=r"deadline_s .* without a worker: 1 starting"):
        Slow().work.with_options(deadline_s=0.3).remote()
    gate.open()
    assert patient.get(10) == "served"
