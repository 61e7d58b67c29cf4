"""Serving a gateway: uvicorn in the foreground, or on a thread; slow and oversized headers are cut short."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gworker.http.guard import check_binding
from gworker.http.problems import MEDIA_TYPE, status_problem

log = logging.getLogger("gworker.http")

# What a client may take to send the headers of a request, and how long they may be.
HEADER_TIMEOUT_S = 10.0
MAX_HEADER_BYTES = 64 * 1024
# How long a client that was refused may take to read why.
LINGER_S = 1.0
# Longer than the pools of common clients and proxies keep a connection, so that it is they who close it.
KEEP_ALIVE_S = 75
# What requests under way are given to finish when the server stops.
DRAIN_S = 30


def serve(gateway: Any, *, host: str = "127.0.0.1", port: int = 8000, drain_s: float = DRAIN_S) -> None:
    """Serve until Ctrl-C or SIGTERM; then finish what is under way (`drain_s` seconds at most) and return.

    Raises InvalidDefinition for a `host` that others can reach without a token, OSError where it cannot bind.
    """
    server = GatewayServer(gateway, host=host, port=port, drain_s=drain_s)
    server.run()


class GatewayServer:
    """A server for a gateway. `start` runs it on a thread, `run` on this one; `port=0` takes a free port.

    `bound` is a socket to listen on, which other processes may listen on as well; it is closed at the end.

        with GatewayServer(create_gateway(app), port=0) as server:
            httpx.get(server.url + "/livez")
    """

    def __init__(
        self,
        gateway: Any,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        drain_s: float = DRAIN_S,
        bound: socket.socket | None = None,
    ) -> None:
        state = gateway.state.gworker
        check_binding(host, open_to_all=not state.guard.asks_for_token)
        self.host = host
        self._socket = bind(host, port) if bound is None else bound
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            gateway,
            host=host,
            port=self.port,
            loop="uvloop",
            http=GatewayProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, int(drain_s)),
        )
        self._server = _Server(config)
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it is, for example "http://127.0.0.1:8000"."""
        name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - to be shown
        return f"http://[{name}]:{self.port}" if ":" in name else f"http://{name}:{self.port}"

    def run(self) -> None:
        """Serve on this thread until a signal, or `stop` from another thread."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
        self._raise_if_it_never_started()

    def start(self) -> GatewayServer:
        """Serve on a thread; returns when requests are answered. Raises what kept the gateway from starting."""
        self._thread = threading.Thread(target=self._run_on_thread, name="gworker-gateway", daemon=True)
        self._thread.start()
        self._server.up_or_ended.wait()
        if not self._server.started:
            self._thread.join()
            self._raise_if_it_never_started()
        return self

    def stop(self) -> None:
        """Take no more requests, finish those under way, and wait for the end."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> GatewayServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run_on_thread(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except SystemExit:
            log.debug("the gateway did not start")
        finally:
            self._server.up_or_ended.set()
            self._socket.close()

    def _raise_if_it_never_started(self) -> None:
        if not self._server.came_up:
            raise RuntimeError("the gateway did not start; its log says why")


class _Server(uvicorn.Server):
    """A uvicorn server that says when it is up, and takes a signal to stop as its own."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up_or_ended = threading.Event()
        self.came_up = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGINT and SIGTERM. uvicorn would raise them again, and SIGTERM end the process before it drains."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.came_up = self.started
        if self.started:
            self.up_or_ended.set()


def bind(host: str, port: int) -> socket.socket:
    """A socket at this address, for `GatewayServer(bound=...)`. Raises OSError where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named, because asyncio looks at it before it switches Nagle's algorithm off.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host.strip("[]"), port))
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"the gateway cannot bind to {host}:{port}: {error.strerror}") from error
    return bound


class GatewayProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with limits on what it leaves open: how long headers may take, and how large they may be."""

    _headers_end: asyncio.TimerHandle | None = None
    _in_headers = False
    _header_bytes = 0
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come; it has to say something soon."""
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._headers_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; headers that are not complete afterwards are timed, those that are cost nothing."""
        if self._refused:
            return
        super().data_received(data)
        if not self._in_headers:
            return
        self._header_bytes += len(data)
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(431, f"the headers are longer than {MAX_HEADER_BYTES // 1024} KiB")
        elif self._headers_end is None:
            self._expect_headers()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_headers, self._header_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its headers are complete."""
        self._headers_came()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(400, msg)

    def _expect_headers(self) -> None:
        self._headers_end = self.loop.call_later(HEADER_TIMEOUT_S, self._too_slow)

    def _headers_came(self) -> None:
        self._in_headers = False
        if self._headers_end is not None:
            self._headers_end.cancel()
            self._headers_end = None

    def _too_slow(self) -> None:
        self._refuse(408, f"the headers were not complete after {HEADER_TIMEOUT_S:g} s")

    def _refuse(self, status: int, detail: str) -> None:
        self._headers_came()
        if self.transport.is_closing():
            return
        body = status_problem(status, detail).body("none")
        head = b"content-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (MEDIA_TYPE, len(body))
        self.transport.write(STATUS_LINE[status] + head + body)
        # Closing at once, with data unread, would reset the connection, and the client would not see this answer.
        self._refused = True
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)
