"""Where the time of calls goes: queue time, batch wait and run time each show what they are named for alone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

import gworker as gw
from gworker.observe.status import MethodTimes
from tests.conftest import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("module_app")]

app = gw.App("contract-times")
# What the machine may add, where nothing is to be waited for.
SLACK_S = 0.25


@app.cls(max_workers=1, cpu=0.1)
class Slow:
    """One input at a time."""

    @gw.method()
    def ping(self) -> str:
        return "pong"

    @gw.method()
    def run(self, seconds: float) -> None:
        time.sleep(seconds)

    @gw.method()
    def queue(self, seconds: float) -> None:
        time.sleep(seconds)

    @gw.method()
    async def flaky(self) -> int:
        if gw.current_attempt_number() == 1:
            raise ValueError("the first time")
        return gw.current_attempt_number()

    @gw.method()
    def cancelled(self) -> None:
        call = gw.current_call()
        eventually(lambda: call.cancelled)

    @gw.method()
    def stream(self, seconds: float) -> Iterator[int]:
        for number in range(2):
            time.sleep(seconds)
            yield number

    @gw.method()
    def late(self) -> None:
        call = gw.current_call()
        eventually(lambda: call.cancelled)


@app.cls(max_workers=1, cpu=0.1)
class Batched:
    """A window of half a second."""

    @gw.method()
    def ping(self) -> str:
        return "pong"

    @gw.method()
    @gw.batched(max_batch_size=4, wait_ms=500)
    def embed(self, xs: list[int]) -> list[int]:
        return xs

    @gw.method()
    @gw.batched(max_batch_size=4, wait_ms=60_000)
    def never(self, xs: list[int]) -> list[int]:
        return xs


@pytest.fixture(autouse=True, scope="module")
def warm(module_app: gw.App) -> None:
    """Starting workers is time in the queue: not what is asked for here."""
    Slow().ping.remote()
    Batched().ping.remote()


def times(pool: str, method: str, count: int) -> MethodTimes:
    """Those of a method, once so many attempts of it were reported."""

    def found() -> MethodTimes | None:
        known = [t for t in app.status().pool(pool).times if t.method == method]
        return known[0] if known and known[0].queue.count >= count else None

    seen: MethodTimes = eventually(found)
    assert seen.queue.count == count
    return seen


def test_what_a_method_takes_is_run_time() -> None:
    Slow().run.remote(0.5)
    seen = times("Slow", "run", 1)
    assert 0.5 <= seen.run.mean_s < 0.5 + SLACK_S
    assert seen.queue.mean_s < SLACK_S and seen.batch_wait.mean_s < SLACK_S


def test_what_a_call_waits_for_a_worker_is_queue_time() -> None:
    gw.gather(*[Slow().queue.spawn(0.5) for _ in range(2)])
    seen = times("Slow", "queue", 2)
    assert 0.4 <= seen.queue.sum_s < 0.5 + 2 * SLACK_S, "the second waited while the first ran"
    assert 1.0 <= seen.run.sum_s < 1.0 + 2 * SLACK_S
    assert seen.batch_wait.sum_s < 2 * SLACK_S


def test_the_window_of_a_batch_is_batch_wait() -> None:
    Batched().embed.remote(1)  # type: ignore[arg-type]
    seen = times("Batched", "embed", 1)
    assert 0.45 <= seen.batch_wait.mean_s < 0.5 + SLACK_S
    assert seen.queue.mean_s < SLACK_S and seen.run.mean_s < SLACK_S


def test_a_stream_runs_until_its_end() -> None:
    assert list(Slow().stream.stream(0.25)) == [0, 1]
    seen = times("Slow", "stream", 1)
    assert 0.5 <= seen.run.mean_s < 0.5 + SLACK_S


def test_each_attempt_counts_and_the_backoff_between_them_does_not() -> None:
    retries = gw.Retries(max_retries=1, initial_delay_s=1.0)
    assert Slow().flaky.with_options(retries=retries).remote() == 2
    seen = times("Slow", "flaky", 2)
    assert (seen.batch_wait.count, seen.run.count) == (2, 2)
    assert seen.queue.sum_s < 2 * SLACK_S


def test_a_cancelled_call_does_not_count() -> None:
    call = Slow().cancelled.spawn()
    time.sleep(0.3)
    call.cancel()
    with pytest.raises(gw.CallCancelled):
        call.get()
    Slow().ping.remote()
    times("Slow", "ping", 2)
    assert "cancelled" not in {t.method for t in app.status().pool("Slow").times}


SPENT = re.compile(r": (\S+) s queued, (\S+) s batch wait(?:, (\S+) s running)?$")


def told(call: gw.Call[None]) -> tuple[gw.DeadlineExceeded, list[float]]:
    """How a call ends whose limit passes, and the seconds that it names."""
    with pytest.raises(gw.DeadlineExceeded) as caught:
        call.get()
    found = SPENT.search(str(caught.value))
    return caught.value, [float(part) for part in found.groups() if part] if found else []


def test_a_deadline_says_what_was_spent_in_the_queue_and_running() -> None:
    def tried() -> bool:
        """Whether the worker had said it in time; a machine may be too busy for that."""
        first = Slow().run.spawn(0.4)
        error, spent = told(Slow().late.with_options(deadline_s=1.0).spawn())
        first.get()
        assert error.limit == "deadline_s" and error.where in ("running", "worker")
        if error.where == "worker":
            assert "s in a worker, which did not say" in str(error)
            return False
        queued, waited, ran = spent
        assert 0.3 <= queued <= 0.4 + SLACK_S and waited < SLACK_S and 0.3 <= ran <= 0.7
        assert sum(spent) == pytest.approx(1.0, abs=0.2)
        return True

    assert any(tried() for _ in range(3))


def test_a_deadline_says_that_the_time_went_into_the_window_of_a_batch() -> None:
    def tried() -> bool:
        error, spent = told(Batched().never.with_options(deadline_s=0.5).spawn(1))  # type: ignore[arg-type]
        if error.where == "worker":
            return False
        assert error.where == "worker queue"
        queued, waited = spent
        assert queued < SLACK_S and 0.25 <= waited <= 0.5 + SLACK_S
        return True

    assert any(tried() for _ in range(3))


def test_a_time_limit_of_an_execution_says_what_came_before_it() -> None:
    first = Slow().run.spawn(0.4)
    error, (queued, _, ran) = told(Slow().late.with_options(timeout_s=0.5).spawn())
    first.get()
    assert (error.limit, error.where) == ("timeout_s", "running")
    assert "Slow.late ran longer than its timeout_s of 0.5 s" in str(error)
    assert 0.3 <= queued <= 0.4 + SLACK_S and 0.45 <= ran <= 0.5 + SLACK_S
