"""Means of transport for the direct lane: what one frame costs there and back, without gworker.

    python benchmarks/transports.py [--rounds 5] [--json FILE]

A server in a process of its own sends each frame back. For a frame of 100 bytes (one call) the median time there
and back, one at a time; for frames of 3,000 bytes (a bundle of some 64 calls) with 8 on their way, frames per
second, and what both processes together use of the CPU for one. The means take turns in each round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ONE, BUNDLE, UNDER_WAY = 100, 3000, 8
LENGTH = struct.Struct("!I")
Exchange = Callable[[bytes, int, int], Awaitable[list[float]]]


class Frames(asyncio.Protocol):
    """Frames on a byte stream, each behind its length; `on_frame` gets them."""

    def __init__(self, on_frame: Callable[[Frames, bytes], None]) -> None:
        self.on_frame = on_frame
        self.received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        while len(self.received) >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self.received)
            if len(self.received) < LENGTH.size + size:
                return
            frame = self.received[LENGTH.size : LENGTH.size + size]
            self.received = self.received[LENGTH.size + size :]
            self.on_frame(self, frame)

    def send(self, frame: bytes) -> None:
        self.transport.write(LENGTH.pack(len(frame)) + frame)


class Pace:
    """Keeps so many frames under way, and takes the time of each."""

    def __init__(self, send: Callable[[], None], count: int, under_way: int) -> None:
        self.send, self.left, self.waiting = send, count, count
        self.sent: list[float] = []
        self.times: list[float] = []
        self.done = asyncio.get_running_loop().create_future()
        for _ in range(under_way):
            self.next()

    def next(self) -> None:
        if self.left:
            self.left -= 1
            self.sent.append(time.perf_counter())
            self.send()

    def back(self) -> None:
        self.times.append(time.perf_counter() - self.sent[len(self.times)])
        self.waiting -= 1
        if not self.waiting:
            self.done.set_result(None)
        self.next()


async def paced(
    frame: bytes,
    count: int,
    under_way: int,
    write: Callable[[bytes], Awaitable[Any]],
    read: Callable[[], Awaitable[Any]],
) -> list[float]:
    """The exchange over a library whose ends are written to and read from."""
    outgoing: asyncio.Queue[bytes] = asyncio.Queue()
    pace = Pace(lambda: outgoing.put_nowait(frame), count, under_way)

    async def send() -> None:
        while True:
            await write(await outgoing.get())

    sending = asyncio.ensure_future(send())
    while not pace.done.done():
        await read()
        pace.back()
    sending.cancel()
    return pace.times


async def serve_stream(address: str) -> None:
    """An asyncio protocol on a Unix socket."""
    server = await asyncio.get_running_loop().create_unix_server(lambda: Frames(Frames.send), address)
    await server.serve_forever()


async def over_stream(address: str) -> Exchange:
    async def exchange(frame: bytes, count: int, under_way: int) -> list[float]:
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_unix_connection(lambda: Frames(lambda wire, frame: pace.back()), address)
        pace = Pace(lambda: wire.send(frame), count, under_way)
        await pace.done
        wire.transport.close()
        return pace.times

    return exchange


async def serve_grpc(address: str) -> None:
    """A bidirectional gRPC stream of bytes on a Unix socket."""
    import grpc

    async def echo(frames: Any, context: Any) -> Any:
        async for frame in frames:
            yield frame

    handlers = {"echo": grpc.stream_stream_rpc_method_handler(echo)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
    server.add_insecure_port(f"unix:{address}")
    await server.start()
    await server.wait_for_termination()


async def over_grpc(address: str) -> Exchange:
    import grpc

    async def exchange(frame: bytes, count: int, under_way: int) -> list[float]:
        async with grpc.aio.insecure_channel(f"unix:{address}") as channel:
            stream = channel.stream_stream("/bench/echo")()
            return await paced(frame, count, under_way, stream.write, stream.read)

    return exchange


async def serve_zmq(address: str) -> None:
    """A ZeroMQ ROUTER on ipc, asked by a DEALER."""
    import zmq.asyncio

    socket = zmq.asyncio.Context().socket(zmq.ROUTER)
    socket.bind(f"ipc://{address}")
    while True:
        await socket.send_multipart(await socket.recv_multipart())


async def over_zmq(address: str) -> Exchange:
    import zmq.asyncio

    async def exchange(frame: bytes, count: int, under_way: int) -> list[float]:
        socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        socket.connect(f"ipc://{address}")
        times = await paced(frame, count, under_way, socket.send, socket.recv)
        socket.close(linger=0)
        return times

    return exchange


MEANS: dict[str, tuple[Any, Any, bool]] = {
    "asyncio": (serve_stream, over_stream, False),
    "asyncio on uvloop": (serve_stream, over_stream, True),
    "gRPC": (serve_grpc, over_grpc, False),
    "ZeroMQ": (serve_zmq, over_zmq, False),
}


def run(main: Awaitable[Any], fast: bool) -> Any:
    """Run a coroutine on an event loop, of uvloop where it is to be `fast`."""
    import uvloop

    loop = uvloop.new_event_loop() if fast else asyncio.new_event_loop()
    return loop.run_until_complete(main)  # type: ignore[arg-type]


def serve(name: str, address: str) -> None:
    """The server's process."""
    server, _, fast = MEANS[name]
    run(server(address), fast)


def cpu_s(pid: int) -> float:
    """What a process has used of the CPU, in seconds."""
    import psutil

    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def measure(name: str, address: str, pid: int) -> tuple[float, float, float]:
    """Microseconds there and back; frames per second; microseconds of CPU a frame."""
    _, client, fast = MEANS[name]

    async def all_of_it() -> tuple[float, float, float]:
        exchange = await client(address)
        single = await exchange(b"x" * ONE, 1000, 1)
        before, began = cpu_s(pid) + cpu_s(os.getpid()), time.perf_counter()
        await exchange(b"x" * BUNDLE, 4000, UNDER_WAY)
        took, used = time.perf_counter() - began, cpu_s(pid) + cpu_s(os.getpid()) - before
        return statistics.median(single) * 1e6, 4000 / took, used / 4000 * 1e6

    found: tuple[float, float, float] = run(all_of_it(), fast)
    return found


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in MEANS}
    with tempfile.TemporaryDirectory() as folder:
        servers = {}
        for number, name in enumerate(MEANS):
            address = str(Path(folder, str(number)))
            servers[name] = (address, spawn.Process(target=serve, args=(name, address), daemon=True))
            servers[name][1].start()
        time.sleep(3.0)
        for _ in range(given.rounds):
            for name, (address, process) in servers.items():
                assert process.pid is not None
                results[name].append(measure(name, address, process.pid))
        for _, process in servers.values():
            process.terminate()
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in results.items()
    }
    print(f"{'':20}{'there and back':>16}{'frames/s':>12}{'CPU a frame':>14}")
    for name, (back_us, rate, cpu_us) in medians.items():
        print(f"{name:20}{back_us:13.0f} us{rate:12,.0f}{cpu_us:11.0f} us")
    if given.json:
        given.json.write_text(json.dumps(medians, indent=2) + "\n")


if __name__ == "__main__":
    main()
