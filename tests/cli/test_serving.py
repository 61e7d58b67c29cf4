"""`gworker serve` in a terminal, and HTTP servers on the cluster."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.cluster

SHOP = """
    import os
    import time

    import gworker as gw

    app = gw.App("serve-PID")

    @app.cls(cpu=0.1, OPTIONS)
    class Shop:
        @gw.on_exit()
        def leave(self):
            with open(os.path.join(os.path.dirname(__file__), "exits"), "a") as exits:
                exits.write("VERSION ")

        @gw.method()
        def sell(self, what: str, takes_s: float = 0.0) -> str:
            time.sleep(takes_s)
            return what + " VERSION"
"""


def shop(version: int, options: str = "min_workers=1") -> str:
    return SHOP.replace("VERSION", f"v{version}").replace("PID", str(os.getpid())).replace("OPTIONS", options)


@pytest.fixture
def serve(gworker: Any, eventually: Any) -> Callable[..., tuple[Any, str]]:
    """Serves shop.py; the process, and its URL."""

    def start(*args: str, **environment: str) -> tuple[Any, str]:
        process = gworker.start("serve", "shop.py", "--port", "0", *args, **environment)

        def url() -> str:
            assert process.poll() is None, gworker.output
            found = re.search(r"serves \S+ at (http://\S+)", gworker.output)
            return found[1] if found else ""

        return process, eventually(url, 40)

    return start


def sell(url: str, what: str = "tea", takes_s: float = 0.0) -> str:
    answer = httpx.post(f"{url}/v1/Shop/sell", json={"what": what, "takes_s": takes_s}, timeout=30)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["result"])


def exits(gworker: Any) -> list[str]:
    path = gworker.folder / "exits"
    return path.read_text().split() if path.exists() else []


def test_serve_answers_says_how_to_begin_and_drains_at_ctrl_c(gworker: Any, serve: Any, eventually: Any) -> None:
    gworker.write("shop.py", shop(1))
    process, url = serve()
    for words in (f"POST {url}/v1/Shop/sell   sell(what: str, takes_s: float = 0.0) -> str", f"{url}/docs", "curl "):
        assert words in gworker.output
    assert sell(url) == "tea v1"
    port = url.rpartition(":")[2]
    taken = gworker("serve", "shop.py", "--port", port)
    assert taken.code == 2 and "Address already in use" in taken.err and "--port 0" in taken.err
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(sell, url, "slow", 2.0)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        assert running.result() == "slow v1"
    assert process.wait(30) == 0, gworker.output
    assert "Traceback" not in gworker.output
    assert exits(gworker) == ["v1"]


def test_beyond_this_machine_a_token_is_a_must(gworker: Any) -> None:
    gworker.write("shop.py", shop(1))
    done = gworker("serve", "shop.py", "--host", "0.0.0.0", "--port", "0")
    assert done.code == 2 and "no token was given" in done.err
    done = gworker("serve", "shop.py", "--token-file", "nowhere", "--port", "0")
    assert done.code == 2 and "cannot be read" in done.err


def test_reload_takes_edits_over_without_a_failed_request_and_a_broken_one_keeps_the_old_version(
    gworker: Any, serve: Any, eventually: Any
) -> None:
    gworker.write("shop.py", shop(1))
    process, url = serve("--reload")
    answers = [sell(url)]
    over = threading.Event()

    def ask() -> None:
        for number in itertools.count():
            if over.is_set():
                return
            try:
                answers.append(sell(url, str(number)))
            except Exception as error:
                answers.append(f"failed: {error}")
            time.sleep(0.02)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        gworker.write("shop.py", shop(2))
        eventually(lambda: "v2" in answers[-1] and "version 2 serves" in gworker.output, 40)
        gworker.write("shop.py", "def broken(:\n")
        eventually(lambda: "the version before serves on until the next edit" in gworker.output, 40)
        assert "SyntaxError" in gworker.output
        seen = len(answers)
        eventually(lambda: len(answers) > seen + 3)
        assert "v2" in answers[-1]
        # Three of four GPUs: old and new do not fit side by side, and requests wait for the swap.
        gworker.write("shop.py", shop(3, 'min_workers=1, gpu=gw.Gpu("H100", 3)'))
        eventually(lambda: "v3" in answers[-1] and "version 4 serves" in gworker.output, 40)
        gworker.write("shop.py", shop(4, 'min_workers=1, gpu=gw.Gpu("H100", 3)'))
        eventually(lambda: "v4" in answers[-1], 40)
        assert "no room for both versions" in gworker.output
    finally:
        over.set()
        asking.join()
    assert [answer for answer in answers if "failed" in answer] == []
    process.terminate()  # drains as Ctrl-C does
    assert process.wait(30) == 143, gworker.output
    assert exits(gworker) == ["v1", "v2", "v3", "v4"]


def test_http_servers_on_the_cluster_share_a_port_and_end_with_their_app(gworker: Any, eventually: Any) -> None:
    gworker.write("shop.py", shop(1, "min_workers=0"))
    gworker.write("token", "a-secret-of-this-test")
    name = f"serve-{os.getpid()}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    gateways = ("--http", "--gateways", "2", "--port", port, "--token-file", "token")
    done = gworker("deploy", "shop.py", *gateways)
    assert done.code == 0, done.err
    url = f"http://127.0.0.1:{port}"
    assert url in done.out and f"gworker call {name} Shop.sell --help" in done.out
    assert httpx.post(f"{url}/v1/Shop/sell", json={"what": "x"}).status_code == 401
    headers = {"Authorization": "Bearer a-secret-of-this-test"}

    def answer() -> Any:
        return httpx.post(f"{url}/v1/Shop/sell", json={"what": "x"}, headers=headers, timeout=30).json().get("result")

    assert answer() == "x v1"
    gworker.write("shop.py", shop(2, "min_workers=0"))
    done = gworker("deploy", "shop.py", *gateways)
    assert done.code == 0, done.err
    eventually(lambda: answer() == "x v2")
    assert gworker("stop", name).code == 0
    with pytest.raises(httpx.ConnectError):
        answer()
