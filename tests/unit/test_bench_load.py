"""The callers of `gworker bench` on a loop whose time the test moves."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from gworker import clock
from gworker.cli.benchmark import load
from gworker.cli.benchmark.load import DRAIN_S, Send, Step, sender
from gworker.cli.benchmark.plan import Arrival, Closed, Open
from gworker.cli.benchmark.recorder import Recorder, Window
from gworker.router.calls import Problem
from gworker.wire import pack


class Server:
    """Answers after `takes_s`, and not before `until`."""

    def __init__(self, record: Recorder, takes_s: float = 0.1) -> None:
        self.record = record
        self.takes_s = takes_s
        self.under_way = self.most_under_way = self.sent = 0
        self.until = 0.0
        self.cancelled = 0

    @property
    def send(self) -> Send:
        async def send(counts: bool, due: float) -> None:
            self.sent += 1
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            try:
                await asyncio.sleep(max(self.takes_s, self.until - clock.now()))
                self.record.returned(counts, due, clock.now())
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.under_way -= 1

        return send


def start(record: Recorder, server: Server, what: Closed | Open) -> tuple[asyncio.Task[float], asyncio.Event]:
    stop = asyncio.Event()
    return asyncio.ensure_future(Step(record, server.send).run(what, stop)), stop


def window(warmup_s: float, duration_s: float | None, requests: int | None = None, *, is_open: bool) -> Recorder:
    return Recorder(Window.opening(clock.now() + warmup_s, duration_s, requests, is_open=is_open))


async def test_callers_wait_for_their_results_before_they_call_again(timeline: Any) -> None:
    record = window(1.0, 10.0, is_open=False)
    server = Server(record)
    running, _ = start(record, server, Closed(4))
    await timeline.advance(12.0)
    assert running.result() == 10.0
    assert server.most_under_way == 4
    assert abs(len(record.latencies) - 400) <= 4  # the warm-up is not among them
    assert abs(server.sent - 440) <= 8
    assert {round(t, 6) for t in record.latencies} == {0.1}
    assert timeline.timers() == 0 and server.under_way == 0


async def test_a_number_of_requests_is_sent_and_no_more(timeline: Any) -> None:
    record = window(0.0, None, 10, is_open=False)
    server = Server(record)
    running, _ = start(record, server, Closed(4))
    await timeline.advance(5.0)
    assert running.done() and server.sent == len(record.latencies) == 10
    assert abs(running.result() - 0.3) < 1e-6


async def test_calls_at_a_rate_are_sent_whatever_became_of_those_before(timeline: Any) -> None:
    record = window(1.0, 10.0, is_open=True)
    server = Server(record, takes_s=3.0)
    running, _ = start(record, server, Open(10.0, Arrival.CONSTANT))
    await timeline.advance(11.0)
    assert server.sent == 110 and server.most_under_way == 30
    assert not running.done()  # the last ones are waited for
    await timeline.advance(3.0)
    assert running.result() == 10.0
    assert len(record.latencies) == 100 and record.unfinished == 0
    assert max(record.lags) < 1e-6


async def test_a_stall_delays_no_call_that_is_due_and_each_tells_how_long_it_waited(timeline: Any) -> None:
    record = window(0.0, 10.0, is_open=True)
    server = Server(record, takes_s=0.0)
    server.until = clock.now() + 5.0
    running, _ = start(record, server, Open(10.0, Arrival.CONSTANT))
    await timeline.advance(10.5)
    assert running.done() and server.sent == 100
    assert max(record.latencies) > 4.99
    assert sum(t > 1.0 for t in record.latencies) in (40, 41)


async def test_what_is_due_while_too_many_are_under_way_is_dropped_not_delayed(timeline: Any) -> None:
    record = window(0.0, 10.0, is_open=True)
    server = Server(record, takes_s=0.95)
    running, _ = start(record, server, Open(10.0, Arrival.CONSTANT, max_in_flight=5))
    await timeline.advance(12.0)
    assert running.done() and server.most_under_way == 5
    assert record.dropped + len(record.latencies) == record.due == 100
    assert record.dropped == 50
    assert max(record.latencies) < 0.951


async def test_calls_that_do_not_end_are_given_up_and_told(timeline: Any) -> None:
    record = window(0.0, 1.0, is_open=True)
    server = Server(record, takes_s=1000.0)
    running, _ = start(record, server, Open(10.0, Arrival.CONSTANT))
    await timeline.advance(1.0 + DRAIN_S + 0.1)
    assert running.done() and record.unfinished == server.cancelled == 10


async def test_a_stop_ends_it_at_once_with_what_was_measured(timeline: Any) -> None:
    for what in (Closed(2), Open(20.0, Arrival.CONSTANT)):
        record = window(0.0, 10.0, is_open=isinstance(what, Open))
        server = Server(record)
        running, stop = start(record, server, what)
        await timeline.advance(2.0)
        stop.set()
        await timeline.settle()
        assert abs(running.result() - 2.0) < 1e-6
        assert 35 <= len(record.latencies) <= 40
        assert timeline.timers() == 0


async def test_overdue_calls_are_sent_at_once_and_their_lateness_is_told(timeline: Any) -> None:
    record = window(0.0, 10.0, is_open=True)
    server = Server(record)
    running, _ = start(record, server, Open(100.0, Arrival.CONSTANT))
    await timeline.settle()
    timeline._now += 5.0  # this process was held up
    await timeline.advance(6.0)
    assert running.done() and server.sent == 1000
    assert max(record.lags) > 4.9 and max(record.latencies) > 4.9


class Bound:
    """A method of a handle, as far as callers use it; a router and its worker behind it."""

    def __init__(self, *, streams: bool = False) -> None:
        self.given: list[Any] = []
        self.cancelled: list[Any] = []
        self._streams = streams

    def _send(self, args: Any, kwargs: Any, sink: Any, *, credit: int = 0) -> tuple[Any, Any]:
        self.given.append((args, kwargs))
        call = SimpleNamespace(spent=None, over=False)
        self._answering = asyncio.ensure_future(self._answer(call, sink, args[0], bad=kwargs.get("bad", False)))
        return SimpleNamespace(cancel=self.cancelled.append, grant=lambda *_: None), call

    async def _answer(self, call: Any, sink: Any, count: int, *, bad: bool) -> None:
        for number in range(count if self._streams else 0):
            await asyncio.sleep(0.25)
            sink.item(pack(number))
        if not self._streams:
            await asyncio.sleep(0.5)
        call.spent, call.over = (0.125, 0.25, 0.0625), True
        if bad:
            sink.raised(Problem(ValueError("bad")))
        elif self._streams:
            sink.ended()
        else:
            sink.returned(pack(None))


async def test_inputs_are_used_in_turn_and_errors_are_told(timeline: Any) -> None:
    record, bound = window(0.0, 10.0, is_open=False), Bound()
    inputs = itertools.cycle([((1,), {}), ((2,), {"bad": True})])
    send = sender(bound, inputs, record, streams=False)
    sending = asyncio.ensure_future(_in_a_row(send, 3))
    await timeline.advance(2.0)
    assert sending.done()
    assert bound.given == [((1,), {}), ((2,), {"bad": True}), ((1,), {})]
    assert (list(record.latencies), record.failures["ValueError"].count) == ([0.5, 0.5], 1)
    spent = [list(times) for times in (record.queued, record.waited, record.ran)]
    assert spent == [[0.125] * 2, [0.25] * 2, [0.0625] * 2], "of those that ended well"


async def test_a_caller_that_is_stopped_cancels_its_call(timeline: Any) -> None:
    bound = Bound()
    send = sender(bound, itertools.cycle([((1,), {})]), window(0.0, 10.0, is_open=False), streams=False)
    sending = asyncio.ensure_future(_in_a_row(send, 1))
    await timeline.advance(0.1)
    sending.cancel()
    await timeline.settle()
    assert len(bound.cancelled) == 1
    await timeline.advance(1.0)


async def test_a_streams_items_are_timed(timeline: Any) -> None:
    record = window(0.0, 10.0, is_open=False)
    send = sender(Bound(streams=True), itertools.cycle([((4,), {})]), record, streams=True)
    sending = asyncio.ensure_future(_in_a_row(send, 1))
    await timeline.advance(2.0)
    assert sending.done()
    assert (list(record.latencies), list(record.first_items), list(record.gaps), record.items) == (
        [1.0],
        [0.25],
        [0.25] * 3,
        4,
    )
    assert [list(times) for times in (record.queued, record.waited, record.ran)] == [[0.125], [0.25], [0.0625]]


async def _in_a_row(send: Send, count: int) -> None:
    for _ in range(count):
        await send(False, clock.now())


@pytest.mark.slow
def test_the_loop_wakes_on_time() -> None:
    loop = load.new_loop()

    async def late() -> float:
        due = loop.time() + 0.0103
        await asyncio.sleep(0.0103)
        return loop.time() - due

    try:
        lates = sorted(loop.run_until_complete(late()) for _ in range(20))
    finally:
        loop.close()
    assert lates[2] < 0.0006  # epoll would always be 0.7 ms late: it rounds up to milliseconds
