"""The direct lane, both ends on one loop over a real socket; the engine behind the worker's end is the test's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import select
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gworker import blocks, connection
from gworker.frames import GREETING_BYTES, Hello, RouterHandshake, WorkerHandshake, encode_frame
from gworker.router import direct
from gworker.router.direct import DirectLane
from gworker.router.membership import DirectAddress
from gworker.wire import Busy, Cancel, Credit, Item, Payload, Returned, Submit, Up, to_plain
from gworker.worker import listener as worker_side
from gworker.worker.listener import DirectListener

pytestmark = pytest.mark.slow  # real sockets: seconds in all

CAPACITY = 10
LIMIT_S = 10.0


class Engine:
    """Takes every input and answers when the test says so, or at once where `echoes`."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.sessions: dict[str, Any] = {}
        self.draining = False
        self.room = CAPACITY
        self.echoes = False
        self.waiting: dict[str, int] = {}

    def submit(self, session: Any, call: Submit) -> None:
        self.asked.append(call)
        session.inputs[call.call_id] = call
        if self.echoes:
            self.answer(session, call.call_id)

    def answer(self, session: Any, call_id: int, payload: Payload | None = None) -> None:
        session.inputs.pop(call_id, None)
        session.send(returned(call_id, payload))

    def cancel(self, session: Any, call_id: int) -> None:
        session.inputs.pop(call_id, None)
        self.asked.append(Cancel(call_id))

    def credit(self, session: Any, call_id: int, count: int) -> None:
        self.asked.append(Credit(call_id, count))

    def caller_waits(self, session: str, count: int) -> None:
        self.waiting[session] = count

    def caller_left(self, session: str) -> None:
        self.waiting.pop(session, None)

    def room_for(self, session: str) -> int:
        return 0 if self.draining else self.room

    @property
    def submitted(self) -> list[int]:
        return [m.call_id for m in self.asked if isinstance(m, Submit)]


class Caller:
    """What a lane reports to its router."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.progress = 0
        self.broken: list[BaseException] = []

    def on_message(self, message: Any) -> None:
        self.messages.append(message)

    def on_progress(self) -> None:
        self.progress += 1

    def on_broken(self, error: BaseException) -> None:
        self.broken.append(error)

    @property
    def returned(self) -> list[int]:
        return [m.call_id for m in self.messages if isinstance(m, Returned)]


class Fallback:
    """Stands for the ray lane."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.wanted = 0
        self.closed = False
        self.vouches_for_starts = False

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def available(self) -> int:
        return 7

    def want(self, count: int) -> None:
        self.wanted = count

    def close(self) -> None:
        self.closed = True


class Pair:
    """A worker's listener, and the lanes that connect to it."""

    def __init__(self, folder: Path) -> None:
        self.engine = Engine()
        self.listener = DirectListener(self.engine, str(folder / "s"))  # type: ignore[arg-type]
        self.address: DirectAddress
        self.fallback = Fallback()
        self.lanes: list[DirectLane] = []
        self.asked_tcp = 0

    async def open(self) -> None:
        self.address = await self.listener.open()

    def lane(
        self,
        caller: Caller,
        name: str = "me",
        *,
        address: DirectAddress | None = None,
        same_node: bool = True,
        tcp: Callable[[], Any] | None = None,
    ) -> DirectLane:
        async def ask_tcp() -> Any:
            self.asked_tcp += 1
            found = None if tcp is None else tcp()
            return await found if asyncio.iscoroutine(found) else found

        lane = DirectLane(
            asyncio.get_running_loop(),
            address or self.address,
            name,
            CAPACITY,
            caller,
            same_node=same_node,
            ask_tcp=ask_tcp,
            fall_back=lambda: self.fallback,
        )
        self.lanes.append(lane)
        return lane

    async def connected(self, caller: Caller, name: str = "me", **how: Any) -> DirectLane:
        lane = self.lane(caller, name, **how)
        await until(lambda: lane._wire is not None)
        return lane

    def line(self, name: str = "me") -> Any:
        return self.listener._lines[name]

    @property
    def session(self) -> Any:
        return self.engine.sessions["me"]

    async def close(self) -> None:
        for lane in self.lanes:
            lane.close()
        await until(lambda: not any(line._connection for line in self.listener._lines.values()))
        for line in list(self.listener._lines.values()):
            line.close()
        self.listener.close()
        if self.listener._reporting is not None:
            self.listener._reporting.cancel()
        await asyncio.sleep(0)


def exists(path: str) -> bool:
    return os.path.exists(path)


async def until(condition: Callable[[], Any], timeout_s: float = LIMIT_S) -> None:
    end = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < end, "it did not happen"
        await asyncio.sleep(0.001)


async def reach(condition: Callable[[], Any]) -> None:
    """The same, turn by turn of the loop: for what passes quickly, and where time stands still."""
    for _ in range(200_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not happen")


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    class Context:
        def get_node_id(self) -> str:
            return "here"

    monkeypatch.setattr(worker_side.ray, "get_runtime_context", Context)
    monkeypatch.setattr(worker_side.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(direct, "_said", set())


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(tmp_path)
    await pair.open()
    yield pair
    await pair.close()


@pytest.fixture
def caller() -> Caller:
    return Caller()


def submit(number: int, size: int = 1) -> Submit:
    return Submit(number, f"call-{number}", "embed", Payload(b"x" * size), None, "", 1, None, None, 0, 0)


def returned(number: int, payload: Payload | None = None) -> Returned:
    return Returned(number, payload or Payload(b"y"))


# --- traffic -----------------------------------------------------------------------------------------------------


async def test_nothing_is_taken_before_the_connection_is_there(pair: Pair, caller: Caller) -> None:
    lane = pair.lane(caller)
    assert lane.available() == 0
    await until(lambda: caller.progress)
    assert lane.available() == CAPACITY


async def test_messages_go_both_ways_in_order(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller)
    lane.send(submit(1))
    lane.send(submit(2))
    lane.send(Cancel(2))
    lane.send(Credit(1, 8))
    await until(lambda: len(pair.engine.asked) == 4)
    assert pair.engine.submitted == [1, 2]
    assert pair.engine.asked[2:] == [Cancel(2), Credit(1, 8)]
    for number in range(100):
        pair.session.send(Item(1, Payload(b"%d" % number)))
        if number % 7 == 0:
            await turns(3)
    pair.engine.answer(pair.session, 1)
    await until(lambda: caller.returned)
    assert [m.item.data for m in caller.messages[:-1]] == [b"%d" % number for number in range(100)]


async def test_what_is_sent_in_one_turn_of_the_loop_travels_in_one_bundle(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller)
    before = lane._sequence
    for number in range(8):
        lane.send(submit(number))
    await until(lambda: len(pair.engine.submitted) == 8)
    assert lane._sequence == before + 1


async def test_a_bundle_of_large_inputs_is_cut_to_size(pair: Pair, caller: Caller) -> None:
    pair.engine.echoes = True
    lane = await pair.connected(caller)
    before = lane._sequence
    for number in range(6):
        lane.send(submit(number, 3 * 2**20))
    await until(lambda: len(caller.returned) == 6)
    assert lane._sequence - before >= 6
    assert pair.engine.submitted == list(range(6))


async def test_large_results_leave_in_bundles_of_bounded_size(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller)
    for number in range(6):
        lane.send(submit(number))
    await until(lambda: len(pair.engine.submitted) == 6)
    for number in range(6):
        pair.engine.answer(pair.session, number, Payload(b"", [bytearray(3 * 2**20)]))
    await until(lambda: len(caller.returned) == 6)
    assert pair.session._sent >= 5
    assert caller.returned == list(range(6))


async def test_room_is_what_the_worker_says_less_what_was_sent_since(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller)
    for number in range(4):
        lane.send(submit(number))
        assert lane.available() == CAPACITY - number - 1
    await until(lambda: len(pair.engine.submitted) == 4)
    pair.engine.room = 2
    pair.engine.answer(pair.session, 0)
    await until(lambda: caller.returned)
    assert lane.available() == 2
    lane.send(submit(5))
    assert lane.available() == 1


async def test_a_refused_input_makes_the_lane_wait_to_be_told(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller)
    pair.engine.room = 0
    lane.send(submit(1))
    await until(lambda: pair.engine.submitted)
    pair.session.inputs.clear()
    pair.session.send(Busy(1))
    await until(lambda: caller.messages)
    assert caller.messages == [Busy(1)]
    assert lane.available() == 0
    lane.want(3)
    await until(lambda: pair.engine.waiting.get("me") == 3)
    pair.engine.room = 2
    pair.session.nudge()
    await until(lambda: lane.available() > 0)


async def test_how_many_wait_is_told_once_until_there_was_room_again(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller)
    pair.engine.room = 0
    lane.send(submit(1))
    for count in (7, 8, 9):
        lane.want(count)
        await turns()
    await until(lambda: pair.engine.waiting["me"] == 7)
    sent = lane._sequence
    lane.want(5)
    await turns()
    assert lane._sequence == sent
    pair.engine.room = 1
    pair.session.nudge()
    await until(lambda: pair.engine.waiting["me"] == 5)


async def test_when_nothing_waits_any_more_an_offer_of_room_is_answered_with_that(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller)
    lane.want(3)
    await until(lambda: pair.engine.waiting.get("me") == 3)
    lane.want(0)
    pair.session.nudge()
    await until(lambda: pair.engine.waiting["me"] == 0)


async def test_a_worker_that_drains_is_told_at_once_that_its_last_words_have_arrived(
    pair: Pair, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "ACKNOWLEDGE_S", 100.0)
    lane = await pair.connected(caller)
    lane.send(submit(1))
    await until(lambda: pair.engine.submitted)
    pair.engine.draining = True
    pair.engine.answer(pair.session, 1)
    assert not pair.listener.settled
    await until(lambda: pair.listener.settled)
    assert caller.returned == [1]
    assert pair.session._acknowledged == pair.session._sent


# --- memory ------------------------------------------------------------------------------------------------------


async def test_neither_side_keeps_what_has_arrived(pair: Pair, caller: Caller) -> None:
    pair.engine.echoes = True
    lane = await pair.connected(caller)
    for number in range(50):
        lane.send(submit(number))
        await turns(2)
    await until(lambda: len(caller.returned) == 50)
    await until(lambda: not pair.line()._unacknowledged)
    assert sum(len(bundle.messages) for bundle in lane._unacknowledged) == 0


async def test_an_input_that_runs_long_is_not_kept_by_the_lane_meanwhile(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller)
    for number in range(5):  # a caller that gives up again and again gets no answers
        lane.send(submit(number, 1000))
        await turns()
        lane.send(Cancel(number))
        await turns()
    lane.send(submit(9))
    await until(lambda: len(pair.engine.asked) == 11)
    assert lane._unacknowledged
    await until(lambda: not any(bundle.messages for bundle in lane._unacknowledged))


async def test_two_sides_that_have_nothing_to_say_are_silent(pair: Pair, caller: Caller) -> None:
    pair.engine.echoes = True
    lane = await pair.connected(caller)
    lane.send(submit(1))
    await until(lambda: caller.returned)
    await asyncio.sleep(4 * direct.ACKNOWLEDGE_S)
    sent, taken = lane._sequence, pair.session._sent
    await asyncio.sleep(4 * direct.ACKNOWLEDGE_S)
    assert (lane._sequence, pair.session._sent) == (sent, taken)


async def read_hello(pair: Pair, name: str = "slow") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A caller of the test's own that has proved itself, and reads nothing more."""
    reader, writer = await asyncio.open_unix_connection(pair.address.path, limit=2**16)
    shake = RouterHandshake(pair.address.secret)
    writer.write(shake.hello(await reader.readexactly(GREETING_BYTES), Hello(name, -1, is_new=True)))
    await until(lambda: name in pair.engine.sessions)
    return reader, writer


async def test_a_caller_that_does_not_read_costs_no_more_than_its_buffers(pair: Pair, caller: Caller) -> None:
    pair.engine.echoes = True
    _, writer = await read_hello(pair)
    size = 100_000
    original, pair.engine.answer = pair.engine.answer, lambda s, n, p=None: original(s, n, Payload(b"z" * size))  # type: ignore[method-assign]
    sequence = 0

    async def flood() -> None:
        nonlocal sequence
        while True:
            up = Up("slow", sequence, -1, 0, False, tuple(submit(n, 500) for n in range(20)))
            sequence += 1
            for part in encode_frame(to_plain(up)):
                writer.write(part)
            await writer.drain()

    flooding = asyncio.ensure_future(flood())
    await asyncio.sleep(0.3)
    taken = len(pair.engine.submitted)
    await asyncio.sleep(0.1)
    assert len(pair.engine.submitted) == taken, "it is not read any more"
    assert not flooding.done()
    held = len(pair.engine.sessions["slow"]._outbox) + sum(len(b.messages) for b in pair.line("slow")._unacknowledged)
    assert held * size < 150 * 2**20
    other = await pair.connected(caller)
    pair.engine.answer = original  # type: ignore[method-assign]
    other.send(submit(1))
    await until(lambda: caller.returned == [1])
    flooding.cancel()
    writer.transport.abort()
    await asyncio.wait([flooding])


async def test_what_a_slow_caller_did_not_take_arrives_once_it_reads(
    pair: Pair, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = await pair.connected(caller)
    assert lane._wire is not None
    for number in range(CAPACITY):
        lane.send(submit(number))
    await until(lambda: len(pair.engine.submitted) == CAPACITY)
    lane._wire.transport.pause_reading()
    for number in range(CAPACITY):
        pair.engine.answer(pair.session, number, Payload(b"z" * 2**20))
    await asyncio.sleep(0.05)
    assert pair.session.has_news, "the worker has stopped writing"
    assert not pair.line()._connection.writable
    lane._wire.transport.resume_reading()
    await until(lambda: caller.returned == list(range(CAPACITY)))


async def test_a_worker_that_does_not_read_is_given_no_more_than_the_buffers_hold(pair: Pair, caller: Caller) -> None:
    pair.engine.echoes = True
    lane = await pair.connected(caller)
    pair.line()._connection.transport.pause_reading()
    for number in range(CAPACITY):
        lane.send(submit(number, 2**20))
    await turns()
    assert lane.available() == 0
    progress = caller.progress
    pair.line()._connection.transport.resume_reading()
    await until(lambda: len(caller.returned) == CAPACITY)
    assert caller.progress > progress
    assert lane.available() == CAPACITY


# --- connections that break --------------------------------------------------------------------------------------


def break_at(pair: Pair, lane: DirectLane, side: str) -> None:
    if side == "router" and lane._wire is not None:
        lane._wire.abort()
    elif side == "worker" and pair.line()._connection is not None:
        pair.line()._connection.abort()


@pytest.mark.parametrize("side", ["router", "worker"])
async def test_a_connection_that_breaks_is_made_again_and_calls_go_on(pair: Pair, caller: Caller, side: str) -> None:
    lane = await pair.connected(caller)
    first = lane._wire
    lane.send(submit(1))
    await until(lambda: pair.engine.submitted == [1])
    break_at(pair, lane, side)
    await until(lambda: lane._wire not in (None, first))
    pair.engine.answer(pair.session, 1)
    lane.send(submit(2))
    await until(lambda: caller.returned == [1] and pair.engine.submitted == [1, 2])
    assert caller.broken == []


async def test_while_the_connection_is_broken_nothing_new_is_taken(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller)
    assert lane._wire is not None
    lane._wire.abort()
    await reach(lambda: lane._wire is None)
    assert lane.available() == 0
    progress = caller.progress
    await until(lambda: caller.progress > progress)
    assert lane.available() == CAPACITY


async def test_a_result_that_was_on_its_way_when_the_connection_broke_arrives_once(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller)
    lane.send(submit(1))
    await until(lambda: pair.engine.submitted == [1])
    pair.engine.answer(pair.session, 1)
    pair.line().flush()  # written, and lost
    assert lane._wire is not None
    lane._wire.abort()
    await until(lambda: caller.returned)
    await asyncio.sleep(0.02)
    assert caller.returned == [1]


async def test_an_input_that_was_on_its_way_when_the_connection_broke_arrives_once(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller)
    lane.send(submit(1))
    lane._flush()
    pair.line()._connection.abort()
    await until(lambda: pair.engine.submitted)
    await asyncio.sleep(0.02)
    assert pair.engine.submitted == [1]


async def traffic_over_breaking_connections(pair: Pair, caller: Caller, seed: int, way: str) -> None:
    chance = random.Random(seed)
    pair.engine.echoes = True
    lane = await pair.connected(caller, same_node=way == "unix", tcp=pair.listener.open_tcp)
    number = breaks = 0
    while breaks < 40:
        for _ in range(chance.randrange(6)):
            lane.send(submit(number, chance.choice([1, 1, 1, 300_000])))
            number += 1
        await turns(chance.randrange(12))
        if chance.random() < 0.3:
            await asyncio.sleep(0.001)
        if chance.random() < 0.5:
            break_at(pair, lane, chance.choice(["router", "worker"]))
            breaks += 1
    await until(lambda: len(caller.returned) == number)
    assert pair.engine.submitted == list(range(number))
    assert caller.returned == list(range(number))
    assert caller.broken == []
    assert pair.fallback.sent == []


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("way", ["unix", "tcp"])
async def test_whenever_connections_break_each_input_and_each_result_arrives_once_in_order(
    pair: Pair, caller: Caller, seed: int, way: str
) -> None:
    await traffic_over_breaking_connections(pair, caller, seed, way)


@pytest.mark.parametrize("way", ["unix", "tcp"])
def test_the_same_is_true_on_the_event_loop_that_ray_and_routers_use(tmp_path: Path, caller: Caller, way: str) -> None:
    async def run() -> None:
        pair = Pair(tmp_path)
        await pair.open()
        await traffic_over_breaking_connections(pair, caller, 7, way)
        await pair.close()

    loop = pytest.importorskip("uvloop").new_event_loop()
    loop.run_until_complete(run())
    loop.close()


async def test_a_worker_whose_process_is_gone_is_noticed_at_once(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller)
    lane.send(submit(1))
    await until(lambda: pair.engine.submitted)
    pair.listener.close()
    began = asyncio.get_running_loop().time()
    pair.line()._connection.abort()
    await until(lambda: caller.broken)
    assert asyncio.get_running_loop().time() - began < 0.5
    assert "its process is gone" in str(caller.broken[0])
    assert len(caller.broken) == 1
    assert pair.asked_tcp == 0, "Ray would take longer to say so"


async def test_the_same_is_true_of_a_socket_that_is_there_and_refuses(pair: Pair, caller: Caller) -> None:
    await pair.connected(caller)
    for server in pair.listener._servers:
        server.close()
    if not exists(pair.address.path):  # a dead process leaves it
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(pair.address.path)
        dead.close()
    pair.line()._connection.abort()
    await until(lambda: caller.broken)
    assert "refused" in str(caller.broken[0])


async def test_by_tcp_too_a_dead_worker_is_noticed_without_asking_ray(pair: Pair, caller: Caller) -> None:
    await pair.connected(caller, same_node=False, tcp=pair.listener.open_tcp)
    pair.listener.close()
    pair.line()._connection.abort()
    await until(lambda: caller.broken)
    assert pair.asked_tcp == 1
    assert "its process is gone" in str(caller.broken[0])


async def test_a_worker_that_is_busy_with_others_is_asked_again(
    pair: Pair, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = await pair.connected(caller)
    admit, turned_away = pair.listener.admit, []

    def refuse(peer: Any) -> None:
        turned_away.append(peer)
        admit(peer)
        if len(turned_away) < 4:
            peer.abort()

    monkeypatch.setattr(pair.listener, "admit", refuse)
    assert lane._wire is not None
    lane._wire.abort()
    await until(lambda: len(turned_away) == 4 and lane._wire is not None)
    assert caller.broken == []


async def test_a_router_that_does_not_come_back_is_given_up_and_its_inputs_are_cancelled(
    pair: Pair, caller: Caller, timeline: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lane = pair.lane(caller)
    await reach(lambda: lane._wire is not None)
    lane.send(submit(1))
    lane.send(submit(2))
    await reach(lambda: len(pair.engine.submitted) == 2)
    lane._closed = True  # its process stands still
    pair.line()._connection.abort()
    await reach(lambda: pair.line()._connection is None)
    await timeline.advance(worker_side.RECONNECT_S - 0.01)
    assert "me" in pair.engine.sessions
    with caplog.at_level(logging.WARNING):
        await timeline.advance(0.02)
    assert pair.engine.asked[-2:] == [Cancel(1), Cancel(2)]
    assert pair.engine.sessions == {} and pair.listener._lines == {}
    assert "its 2 calls are cancelled" in caplog.text


async def test_a_router_that_comes_back_too_late_is_told_and_does_not_wait_for_ever(
    pair: Pair, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    lane = await pair.connected(caller)
    lane.send(submit(1))
    await until(lambda: pair.engine.submitted)
    pair.line().close()
    assert lane._wire is not None
    lane._wire.abort()
    await until(lambda: caller.broken)
    assert "given its calls up" in str(caller.broken[0])
    again = Caller()
    await pair.connected(again, "me-1")
    assert again.broken == []


async def test_a_session_that_is_over_says_nothing_and_takes_nothing(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller)
    lane.send(submit(1))
    await until(lambda: pair.engine.submitted)
    line, session = pair.line(), pair.session
    line.close()
    line.close()
    session.send(returned(1))
    await turns()
    assert session._sent == -1


# --- what cannot be handled --------------------------------------------------------------------------------------


async def test_an_input_that_the_worker_cannot_read_breaks_the_lane_and_is_not_sent_for_ever(
    pair: Pair, caller: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lane = await pair.connected(caller)
    monkeypatch.setattr("gworker.frames._spare_bytes", lambda: 1_000_000)
    lane.send(submit(1, 2_000_000))
    await until(lambda: caller.broken)
    assert "given its calls up" in str(caller.broken[0])
    assert "more than this process has memory for" in caplog.text
    assert pair.engine.submitted == []


async def test_a_fault_of_the_worker_s_end_does_not_leave_the_rest_of_the_bundle_waiting(
    pair: Pair, caller: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lane = await pair.connected(caller)
    monkeypatch.setattr(pair.engine, "submit", lambda *_: 1 / 0)
    lane.send(submit(1))
    lane.send(submit(2))
    await until(lambda: caller.broken)
    assert "ZeroDivisionError" in caplog.text


async def test_a_fault_of_the_router_s_end_does_not_leave_the_rest_of_the_bundle_waiting(
    pair: Pair, caller: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lane = await pair.connected(caller)
    monkeypatch.setattr(caller, "on_message", lambda _: 1 / 0)
    lane.send(submit(1))
    await until(lambda: pair.engine.submitted)
    pair.engine.answer(pair.session, 1)
    await until(lambda: caller.broken)
    assert "ZeroDivisionError" in str(caller.broken[0])


async def test_a_gap_between_bundles_ends_the_session(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = await read_hello(pair)
    for part in encode_frame(to_plain(Up("slow", 5, -1, 0, False, [submit(1)]))):
        writer.write(part)
    await until(lambda: "slow" not in pair.engine.sessions)
    assert pair.engine.submitted == []
    await reader.read(-1)
    writer.close()


@pytest.mark.parametrize(
    "bundle",
    [
        "text",
        None,
        7,
        to_plain(Up("slow", "0", -1, 0, False, ())),  # type: ignore[arg-type]
        to_plain(Up("slow", 0, -1, "9", False, ())),  # type: ignore[arg-type]
        to_plain(Up("slow", 0, -1, 0, False, ()))[:-2],
        ("slow", 0, -1, 0, False, [(99, ())]),
        ("slow", 0, -1, 0, False, [(0, ("too", "few"))]),
        ("slow", 0, -1, 0, False, [("0", ())]),
        ("slow", 0, -1, 0, False, [None]),
    ],
)
async def test_what_is_no_bundle_ends_the_session_of_its_sender_alone(
    pair: Pair, caller: Caller, bundle: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pair.engine.echoes = True
    lane = await pair.connected(caller)
    reader, writer = await read_hello(pair)
    for part in encode_frame(bundle):
        writer.write(part)
    await until(lambda: "slow" not in pair.engine.sessions)
    await reader.read(-1)
    writer.close()
    lane.send(submit(1))
    await until(lambda: caller.returned == [1])


# --- strangers ---------------------------------------------------------------------------------------------------


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("waits_for_greeting", [True, False])
async def test_nothing_is_unpickled_before_the_proof(
    pair: Pair, tmp_path: Path, waits_for_greeting: bool, caplog: pytest.LogCaptureFixture
) -> None:
    trace = tmp_path / "trace"
    bomb = b"".join(bytes(part) for part in encode_frame(Bomb(trace)))
    reader, writer = await asyncio.open_unix_connection(pair.address.path)
    if waits_for_greeting:
        await reader.readexactly(GREETING_BYTES)
    writer.write(bomb * 10)
    with contextlib.suppress(ConnectionError):
        await reader.read(-1)
    writer.close()
    # … and not behind a hello with a wrong proof, either.
    reader, writer = await asyncio.open_unix_connection(pair.address.path)
    greeting = await reader.readexactly(GREETING_BYTES)
    writer.write(RouterHandshake(bytes(32)).hello(greeting, Hello("evil", -1, is_new=True)) + bomb)
    with contextlib.suppress(ConnectionError):
        await reader.read(-1)
    writer.close()
    assert not trace.exists()
    assert pair.engine.sessions == {}
    assert "turned away" in caplog.text


async def test_a_lane_does_not_unpickle_what_an_impostor_sends(pair: Pair, caller: Caller, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    bomb = b"".join(bytes(part) for part in encode_frame(Bomb(trace)))

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shake = WorkerHandshake(bytes(32))
        writer.write(shake.greeting())
        await reader.read(1000)
        writer.write(bytes(41) + bomb)
        writer.close()

    path = str(tmp_path / "impostor")
    server = await asyncio.start_unix_server(impostor, path)
    address = DirectAddress("here", path, 1, bytes(32))
    lane = pair.lane(caller, address=address)
    await until(lambda: lane._other is not None)
    assert not trace.exists()
    server.close()


async def test_a_peer_that_does_not_prove_itself_in_time_is_dropped(pair: Pair, timeline: Any) -> None:
    reader, writer = await asyncio.open_unix_connection(pair.address.path)
    await reader.readexactly(GREETING_BYTES)
    writer.write(b"\x01")
    await timeline.advance(worker_side.HANDSHAKE_S + 0.1)
    assert await reader.read(-1) == b""
    writer.close()
    assert pair.listener._strangers == {}


async def test_strangers_without_number_do_not_keep_a_router_out(pair: Pair, caller: Caller) -> None:
    idle = []
    for _ in range(worker_side.MAX_STRANGERS + 20):
        stranger = socket.socket(socket.AF_UNIX)
        stranger.setblocking(False)
        stranger.connect(pair.address.path)
        idle.append(stranger)
        await asyncio.sleep(0)
    await until(lambda: len(pair.listener._strangers) == worker_side.MAX_STRANGERS)
    pair.engine.echoes = True
    lane = await pair.connected(caller)
    lane.send(submit(1))
    await until(lambda: caller.returned == [1])
    assert len(pair.listener._strangers) <= worker_side.MAX_STRANGERS
    for stranger in idle:
        stranger.close()
    await until(lambda: not pair.listener._strangers)


async def test_peers_that_are_turned_away_do_not_fill_the_log(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        reader, writer = await asyncio.open_unix_connection(pair.address.path)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 9)
        with contextlib.suppress(ConnectionError):
            await reader.read(-1)
        writer.close()
    await until(lambda: pair.listener._failed_strangers == 20)
    assert len(caplog.records) == 1
    pair.listener._report_more()
    assert "19 more" in caplog.text


# --- ways --------------------------------------------------------------------------------------------------------


async def test_routers_of_other_nodes_come_by_tcp(pair: Pair, caller: Caller) -> None:
    pair.engine.echoes = True
    lane = await pair.connected(caller, same_node=False, tcp=pair.listener.open_tcp)
    assert lane._wire is not None and lane._wire.transport is not None
    connected = lane._wire.transport.get_extra_info("socket")
    assert connected.family == socket.AF_INET
    assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    lane.send(submit(1))
    await until(lambda: caller.returned == [1])


async def test_one_tcp_port_serves_all(pair: Pair) -> None:
    first, second = await asyncio.gather(pair.listener.open_tcp(), pair.listener.open_tcp())
    assert first == second
    assert len(pair.listener._servers) == 2


def missing(pair: Pair) -> None:
    os.unlink(pair.address.path)


def forbidden(pair: Pair) -> None:
    os.chmod(os.path.dirname(pair.address.path), 0)


@pytest.mark.parametrize("spoil", [missing, forbidden])
async def test_on_the_same_node_tcp_is_tried_where_the_unix_socket_cannot_be_reached(
    pair: Pair, caller: Caller, spoil: Callable[[Pair], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if spoil is forbidden and os.geteuid() == 0:  # no permissions are missing to root
        monkeypatch.setattr(asyncio.get_running_loop(), "create_unix_connection", refuse_permission)
    else:
        spoil(pair)
    lane = await pair.connected(caller, tcp=pair.listener.open_tcp)
    assert lane._wire is not None
    lane._wire.abort()  # … and again by TCP after it broke
    await reach(lambda: lane._wire is None)
    await until(lambda: lane._wire is not None)
    assert caller.broken == []
    os.chmod(os.path.dirname(pair.address.path), 0o700)


async def refuse_permission(*_: Any) -> None:
    raise PermissionError(13, "Permission denied")


def no_such_node() -> Any:
    raise RuntimeError("the actor is dead")


async def no_answer() -> Any:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("same_node", "tcp"),
    [(True, None), (False, None), (False, lambda: ("127.0.0.1", 1))],
    ids=["missing file", "no TCP", "TCP refused"],
)
async def test_where_no_connection_can_be_had_everything_goes_by_the_ray_lane_and_that_is_said_once(
    pair: Pair, same_node: bool, tcp: Any, caplog: pytest.LogCaptureFixture
) -> None:
    os.unlink(pair.address.path)
    for name in ("a", "b"):
        caller = Caller()
        lane = pair.lane(caller, name, same_node=same_node, tcp=tcp)
        lane.want(4)
        await until(lambda: caller.progress)  # noqa: B023  # awaited here
        assert lane.available() == 7
        assert pair.fallback.wanted == 4
        lane.send(submit(1))
        lane.want(2)
        assert [m.call_id for m in pair.fallback.sent] == [1]
        pair.fallback.sent.clear()
        assert pair.fallback.wanted == 2
        assert caller.broken == []
    assert caplog.text.count("calls go by Ray actor calls") == 1
    lane.close()
    assert pair.fallback.closed


@pytest.mark.parametrize("tcp", [no_such_node, no_answer])
@pytest.mark.parametrize("same_node", [True, False])
async def test_a_worker_that_does_not_answer_by_way_of_ray_is_sent_no_call_that_way(
    pair: Pair, caller: Caller, same_node: bool, tcp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "CONNECT_S", 0.05)
    os.unlink(pair.address.path)
    lane = pair.lane(caller, same_node=same_node, tcp=tcp)
    assert lane.available() == 0
    await until(lambda: caller.broken)
    assert "neither on a connection of its own nor by way of Ray" in str(caller.broken[0])
    assert lane._other is None


async def test_a_worker_that_accepts_and_is_silent_is_passed_over_for_the_ray_lane(
    pair: Pair, caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "CONNECT_S", 0.05)
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(tmp_path / "silent"))
    silent.listen()
    lane = pair.lane(caller, address=DirectAddress("here", str(tmp_path / "silent"), 1, bytes(32)))
    await until(lambda: lane._other is not None)
    accepted, _ = silent.accept()
    await until(lambda: accepted.recv(1) == b"")
    accepted.close()
    silent.close()


async def test_a_welcome_that_comes_too_late_is_not_taken_up(
    pair: Pair, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "CONNECT_S", 0.03)
    welcomes: list[Any] = []
    monkeypatch.setattr(worker_side._Peer, "write_raw", lambda peer, data: welcomes.append((peer, data)))
    lane = pair.lane(caller)
    await until(lambda: lane._other is not None)
    for peer, data in welcomes:
        connection.Connection.write_raw(peer, data)
    await turns()
    assert lane._wire is None
    assert lane.available() == 7


async def test_a_path_that_is_too_long_leaves_tcp(
    tmp_path: Path, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    long = tmp_path / ("x" * 200)
    long.mkdir()
    pair = Pair(long)
    await pair.open()
    assert pair.address.path == ""
    assert list(long.iterdir()) == []
    assert "no direct lane by Unix socket" in caplog.text
    await pair.connected(caller, tcp=pair.listener.open_tcp)
    await pair.close()


async def test_the_socket_can_be_reached_by_its_user_alone_and_is_removed_with_its_folder(pair: Pair) -> None:
    folder = os.path.dirname(pair.address.path)
    assert os.stat(folder).st_mode & 0o777 == 0o700
    pair.listener.close()
    assert not exists(folder)
    assert await pair.listener.open_tcp() is None


# --- ends --------------------------------------------------------------------------------------------------------


async def test_a_lane_that_is_closed_while_it_connects_leaves_no_connection(pair: Pair) -> None:
    for count in range(30):
        caller = Caller()
        lane = pair.lane(caller, f"caller-{count}")
        await turns(count)
        lane.close()
        await turns()
    await until(lambda: not pair.listener._strangers)
    await until(lambda: not any(line._connection for line in pair.listener._lines.values()))


async def test_closing_a_lane_tells_the_worker_what_is_cancelled(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller)
    lane.send(submit(1))
    await until(lambda: pair.engine.submitted)
    lane.send(Cancel(1))
    lane.close()
    await until(lambda: Cancel(1) in pair.engine.asked)
    assert "me" in pair.engine.sessions, "it did not have to be given up first"
    assert caller.broken == []


async def test_a_closed_lane_reports_nothing(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller)
    lane.send(submit(1))
    await until(lambda: pair.engine.submitted)
    lane.close()
    progress = caller.progress
    pair.engine.answer(pair.session, 1)
    lane.want(5)
    await asyncio.sleep(0.01)
    assert (caller.messages, caller.broken, caller.progress) == ([], [], progress)


async def test_a_hundred_routers_share_a_worker(pair: Pair) -> None:
    pair.engine.echoes = True
    callers = [Caller() for _ in range(100)]
    lanes = [pair.lane(caller, f"caller-{number}") for number, caller in enumerate(callers)]
    await until(lambda: all(lane._wire for lane in lanes))
    for number, lane in enumerate(lanes):
        lane.send(submit(number))
    await until(lambda: all(caller.returned for caller in callers))
    assert [caller.returned for caller in callers] == [[number] for number in range(100)]
    assert Counter(pair.engine.submitted) == Counter(range(100))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
async def test_a_forked_child_does_not_hold_the_connection(pair: Pair, caller: Caller) -> None:
    pair.engine.echoes = True
    lane = await pair.connected(caller)
    assert lane._wire is not None
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.write(ready[1], b"x")
        select.select([go[0]], [], [], 10)
        os._exit(0)
    os.read(ready[0], 1)
    held = [os.readlink(f"/proc/{child}/fd/{fd}") for fd in os.listdir(f"/proc/{child}/fd")]
    mine = [os.readlink(f"/proc/self/fd/{fd}") for fd in connection._kept]
    assert len(mine) == 3, "the listener, and both ends"
    assert not set(mine) & set(held)
    lane.send(submit(1))
    await until(lambda: caller.returned == [1])
    lane.close()
    await until(lambda: pair.line()._connection is None)
    os.write(go[1], b"x")
    await asyncio.to_thread(os.waitpid, child, 0)
    for descriptor in (*ready, *go):
        os.close(descriptor)


# --- memory that is lent -----------------------------------------------------------------------------------------


def lent(pair: Pair, lane: DirectLane) -> tuple[bool, bool]:
    """Whether the router lends to the worker, and the worker to the router."""
    there = lane._wire._loans if lane._wire is not None else None
    back = pair.line()._connection._loans
    return bool(there and there._lends), bool(back and back._lends)


@pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux's")
async def test_both_ends_of_a_unix_socket_lend_to_each_other_once_both_have_tried(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller)
    await until(lambda: lent(pair, lane) == (True, True))
    assert blocks.pool.has_readers
    first = lane._wire
    break_at(pair, lane, "worker")
    await until(lambda: lane._wire not in (None, first) and lent(pair, lane) == (True, True))
    lane.close()
    await until(lambda: not blocks.pool.has_readers)


async def test_nothing_is_lent_to_another_node(pair: Pair, caller: Caller) -> None:
    lane = await pair.connected(caller, same_node=False, tcp=pair.listener.open_tcp)
    lane.send(submit(1))
    await until(lambda: pair.engine.submitted == [1])
    assert lent(pair, lane) == (False, False)


async def test_nothing_is_lent_where_one_side_cannot_read_the_other(
    pair: Pair, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([True, False])
    monkeypatch.setattr(connection, "can_read", lambda _: next(answers))  # the worker is asked first
    lane = await pair.connected(caller)
    lane.send(submit(1))
    await until(lambda: pair.engine.submitted == [1])
    assert lent(pair, lane) == (sys.platform == "linux", False)


@pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux's")
async def test_arguments_in_lent_memory_reach_a_worker_over_a_connection_that_breaks_once_each(
    pair: Pair, caller: Caller
) -> None:
    lane = await pair.connected(caller)
    await until(lambda: lent(pair, lane) == (True, True))
    for number in range(20):
        view = blocks.pool.copy([memoryview(bytes([number]) * 20_000)])
        assert view is not None
        lane.send(submit(number)._replace(arguments=Payload(b"", view)))
        del view
        if number % 4 == 0:
            await turns(number)
            break_at(pair, lane, "router" if number % 8 else "worker")
    await until(lambda: len(pair.engine.submitted) == 20)
    arguments = [call.arguments for call in pair.engine.asked]
    assert [bytes(each.buffers[0]) for each in arguments] == [bytes([number]) * 20_000 for number in range(20)]
    arguments.clear()
    pair.engine.asked.clear()
    pair.session.inputs.clear()
    await until(lambda: not lane._unacknowledged or not any(bundle.messages for bundle in lane._unacknowledged))
    await until(lambda: blocks.pool.out == 0)
