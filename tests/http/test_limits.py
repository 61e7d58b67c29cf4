"""What a client cannot do to a gateway: take for ever, send too much, send what is no HTTP, come without a token."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

import gworker as gw
from gworker.errors import InvalidDefinition
from gworker.http import GatewayServer, create_gateway
from gworker.http import server as server_module
from gworker.http.guard import is_loopback, read_token


@pytest.fixture
def app(fake: Any) -> Any:
    @fake.app.cls()
    class Model:
        @gw.method()
        async def size(self, text: str) -> int:
            return len(text)

    return fake.app


def connect(client: Any) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port), 10)


def rest_of(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """The status and the document of an answer after which the server closes the connection."""
    received = b""
    while part := connection.recv(65536):
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    return int(head.split()[1]), json.loads(body)


HEAD = b"POST /v1/Model/size HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_headers_that_come_too_slowly_end_the_connection(app: Any, serve: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(server_module, "HEADER_TIMEOUT_S", 0.3)
    client = serve(app)
    with connect(client) as silent, connect(client) as slow:
        slow.sendall(b"POST /v1/Model")
        for _ in range(3):
            time.sleep(0.05)
            slow.sendall(b"x")
        assert rest_of(slow)[0] == 408
        assert rest_of(silent)[0] == 408
    assert client.get("/livez").status_code == 200


def test_a_connection_between_two_requests_may_be_silent(app: Any, serve: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(server_module, "HEADER_TIMEOUT_S", 0.2)
    client = serve(app)
    client.get("/livez")
    time.sleep(0.4)
    assert client.get("/livez").status_code == 200


def test_a_body_that_comes_too_slowly_is_408(app: Any, serve: Any) -> None:
    client = serve(app, body_timeout_s=0.3)
    with connect(client) as connection:
        connection.sendall(HEAD + b'Content-Length: 100\r\n\r\n{"text"')
        status, document = rest_of(connection)
    assert (status, document["code"]) == (408, "request-timeout")


def test_a_body_that_takes_a_while_is_read(app: Any, serve: Any) -> None:
    client = serve(app)

    def parts() -> Any:
        yield b'{"text": '
        time.sleep(0.15)
        yield b'"abc"}'

    answer = client.post("/v1/Model/size", content=parts(), headers={"content-type": "application/json"})
    assert answer.json() == {"result": 3}


def test_a_body_that_is_too_large_is_413_declared_or_not(app: Any, serve: Any, problem: Any) -> None:
    client = serve(app, max_body_mb=0.01)
    big = json.dumps({"text": "x" * 20_000}).encode()
    headers = {"content-type": "application/json"}
    assert (
        "0.01 MB"
        in problem(client.post("/v1/Model/size", content=big, headers=headers), 413, "content-too-large")["detail"]
    )

    def parts() -> Any:
        yield big[:9000]
        time.sleep(0.1)  # so that the gateway reads it in parts
        yield big[9000:]

    chunked = client.post("/v1/Model/size", content=parts(), headers=headers)
    problem(chunked, 413, "content-too-large")
    assert client.post("/v1/Model/size", json={"text": "x" * 9000}).json() == {"result": 9000}


def test_headers_that_are_too_large_are_431(app: Any, serve: Any) -> None:
    client = serve(app)
    with connect(client) as connection:
        connection.sendall(HEAD + b"X-Long: " + b"x" * 200_000)
        assert rest_of(connection)[0] == 431


def test_what_is_no_http_is_400(app: Any, serve: Any) -> None:
    with connect(serve(app)) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert rest_of(connection)[0] == 400


def test_a_web_socket_is_refused(app: Any, serve: Any) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "eA==",
    }
    assert serve(app).get("/v1/Model/size", headers=upgrade).status_code == 405


# --- the token ---------------------------------------------------------------------------------------------------


def test_without_the_token_only_livez_is_open(app: Any, serve: Any, problem: Any) -> None:
    client = serve(app, token="sesame")
    for path in ("/", "/docs", "/readyz", "/metrics", "/openapi.json", "/v1/status", "/v1/Model/size", "/x"):
        answer = client.get(path)
        problem(answer, 401, "authentication-error")
        assert answer.headers["www-authenticate"] == 'Bearer realm="gworker"'
    assert client.get("/livez").json() == {"status": "alive"}


@pytest.mark.parametrize("given", ["Bearer wrong", "Bearer", "Bearer sesame2", "Bearer Sesame"])
def test_a_wrong_token_is_no_token(app: Any, serve: Any, problem: Any, given: str) -> None:
    answer = serve(app, token="sesame").post("/v1/Model/size", json={"text": "a"}, headers={"Authorization": given})
    problem(answer, 401, "authentication-error")
    assert answer.headers["www-authenticate"] == 'Bearer realm="gworker", error="invalid_token"'


def test_other_schemes_are_no_token(app: Any, serve: Any, problem: Any) -> None:
    headers = {"Authorization": "Basic c2VzYW1lOg=="}
    problem(serve(app, token="sesame").get("/readyz", headers=headers), 401, "authentication-error")


def test_with_the_token_everything_is(app: Any, serve: Any) -> None:
    client = serve(app, token="sesame", headers={"Authorization": "bearer sesame"})
    assert client.post("/v1/Model/size", json={"text": "abc"}).json() == {"result": 3}
    assert client.get("/readyz").status_code == 200


def test_the_token_is_compared_in_constant_time(app: Any, serve: Any, monkeypatch: Any) -> None:
    import hmac

    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    serve(app, token="sesame", headers={"Authorization": "Bearer x"}).get("/readyz")
    assert compared == [(b"x", b"sesame")]


def test_the_token_comes_from_the_environment_or_a_file(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("GWORKER_TOKEN", "from-environment")
    assert read_token() == "from-environment"
    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert read_token(file) == "from-file"
    for content in ("", "two words", "Ünicode", "two\nlines"):
        file.write_text(content)
        with pytest.raises(InvalidDefinition, match="holds no token") as raised:
            read_token(file)
        assert not content or content not in str(raised.value)
    with pytest.raises(InvalidDefinition, match="cannot be read"):
        read_token(tmp_path / "none")


def test_a_gateway_takes_the_token_of_the_environment(app: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("GWORKER_TOKEN", "from-environment")
    assert create_gateway(app).state.gworker.guard.asks_for_token


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_others_cannot_reach_a_gateway_without_a_token(app: Any, monkeypatch: Any, host: str) -> None:
    monkeypatch.delenv("GWORKER_TOKEN", raising=False)
    with pytest.raises(InvalidDefinition, match="GWORKER_TOKEN"):
        GatewayServer(create_gateway(app), host=host, port=0)


def test_what_is_loopback() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "10.0.0.1", "localhost.example.com", "::", ""))


# --- pages of other sites, in a browser on this machine ----------------------------------------------------------


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
def test_without_a_token_no_other_site_s_page_may_call(app: Any, serve: Any, problem: Any, origin: str) -> None:
    answer = serve(app).post("/v1/Model/size", json={"text": "a"}, headers={"Origin": origin})
    problem(answer, 403, "forbidden-origin")
    assert "access-control-allow-origin" not in answer.headers


def test_nor_reach_the_gateway_by_a_name_of_its_own(app: Any, serve: Any, problem: Any) -> None:
    client = serve(app, allowed_hosts=["models.internal"])
    problem(client.get("/readyz", headers={"Host": "evil.example:8000"}), 403, "forbidden-host")
    assert client.get("/readyz", headers={"Host": "models.internal:8000"}).status_code == 200
    assert client.get("/readyz", headers={"Host": "[::1]:8000"}).status_code == 200


def test_the_gateway_s_own_pages_may(app: Any, serve: Any) -> None:
    client = serve(app)
    own = str(client.base_url).rstrip("/")
    assert client.post("/v1/Model/size", json={"text": "a"}, headers={"Origin": own}).status_code == 200


def test_sites_that_are_named_may(app: Any, serve: Any, problem: Any) -> None:
    client = serve(app, cors_origins=["https://app.example"])
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    preflight = client.options("/v1/Model/size", headers=asked)
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    answer = client.post("/v1/Model/size", json={"text": "a"}, headers={"Origin": "https://app.example"})
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    problem(
        client.post("/v1/Model/size", json={"text": "a"}, headers={"Origin": "https://evil.example"}),
        403,
        "forbidden-origin",
    )


@pytest.mark.parametrize(
    "options",
    [{"max_body_mb": 0}, {"default_deadline_s": -1}, {"body_timeout_s": True}, {"token": ""}, {"token": "a b"}],
)
def test_options_that_cannot_work_are_refused(app: Any, options: Any) -> None:
    with pytest.raises(InvalidDefinition):
        create_gateway(app, **options)


def test_a_port_that_is_taken_is_named(app: Any, serve: Any) -> None:
    client = serve(app)
    with pytest.raises(OSError, match=f"cannot bind to 127.0.0.1:{client.base_url.port}"):
        GatewayServer(create_gateway(app), port=client.base_url.port)


def test_a_gateway_that_cannot_start_says_so(app: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("GWORKER_TOKEN", raising=False)

    def broken() -> Any:
        raise gw.PoolUnavailable("no Ray")

    app.client = broken
    with pytest.raises(RuntimeError, match="did not start"):
        GatewayServer(create_gateway(app), port=0).start()
