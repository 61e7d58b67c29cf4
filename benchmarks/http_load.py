"""The load on an HTTP server: one request after another on each of some connections, from one process.

    python benchmarks/http_load.py URL CONNECTIONS SECONDS FILE

Each line of FILE is the body of a request; they are sent in turn. Prints JSON: requests per second, the p50 and p99 of
one in ms, the share of its time that this process was busy (near 1, it was the client that was measured), and the mean
of the field "batch" in the answers, if they have one. A bare asyncio protocol: parsing takes less than 10 µs a request,
where a client library takes as long as the server.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
BATCH = re.compile(rb'"batch": *(\d+)')


class Connection(asyncio.Protocol):
    """Sends a request, waits for its answer, and sends the next one, until the time is over."""

    def __init__(self, requests: Iterator[bytes], until: float) -> None:
        self.times: list[float] = []
        self.batches: list[int] = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._until = until
        self._data = b""
        self._sent = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses
        self._send()

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not complete(self._data):
            return
        now = time.perf_counter()
        self.times.append(now - self._sent)
        if not self._data.startswith(b"HTTP/1.1 200"):
            self._end(RuntimeError(f"the answer was {self._data[:200]!r}"))
            return
        if found := BATCH.search(self._data):
            self.batches.append(int(found[1]))
        self._data = b""
        if now < self._until:
            self._send()
        else:
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or ConnectionError("the server has closed the connection"))

    def _send(self) -> None:
        assert self._transport is not None
        self._sent = time.perf_counter()
        self._transport.write(next(self._requests))

    def _end(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(error) if error else self.over.set_result(None)
        if self._transport is not None:
            self._transport.close()


def complete(data: bytes) -> bool:
    """Whether this is the whole of an answer."""
    head, blank, body = data.partition(b"\r\n\r\n")
    if not blank:
        return False
    if length := LENGTH.search(head):
        return len(body) >= int(length[1])
    return body.endswith(b"0\r\n\r\n")  # in chunks


async def load(url: str, connections: int, seconds: float, bodies: list[bytes]) -> dict[str, float]:
    """Load a server for so long."""
    where = urlsplit(url)
    host, port = str(where.hostname), where.port or 80
    head = f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\nContent-Length: "
    requests = itertools.cycle([f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies])
    start, start_cpu = time.perf_counter(), time.process_time()
    opened: list[Connection] = []

    def connection() -> Connection:
        opened.append(Connection(requests, start + seconds))
        return opened[-1]

    loop = asyncio.get_running_loop()
    await asyncio.gather(*[loop.create_connection(connection, host, port) for _ in range(connections)])
    await asyncio.gather(*[each.over for each in opened])
    taken_s = time.perf_counter() - start
    times = sorted(t for each in opened for t in each.times)
    found = {
        "req_s": len(times) / taken_s,
        "p50_ms": statistics.median(times) * 1000,
        "p99_ms": times[int(len(times) * 0.99)] * 1000,
        "requests": len(times),
        "client_busy": (time.process_time() - start_cpu) / taken_s,
    }
    batches = [size for each in opened for size in each.batches]
    return {**found, "batch": statistics.fmean(batches)} if batches else found


if __name__ == "__main__":
    given = sys.argv[1:]
    lines = Path(given[3]).read_bytes().splitlines()
    print(json.dumps(uvloop.run(load(given[0], int(given[1]), float(given[2]), lines))))
