"""The status page in a real browser. Needs chromium, and is run by `make test-browser`."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import gworker as gw
from gworker.observe.status import PoolStatus, ProbeStatus, WorkerStatus

pytestmark = pytest.mark.browser

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--virtual-time-budget=3000",
]
EVIL = "<img src=x onerror=\"document.title='broken into'\"><script>document.title='broken into'</script>"


def browse(url: str, folder: Path, *flags: str) -> str:
    """What the page at `url` has become once its script has run."""
    browser = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert browser, "chromium is needed: install it, or name it in the environment variable CHROMIUM"
    command = [browser, *FLAGS, f"--user-data-dir={folder / str(time.monotonic_ns())}", *flags, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture
def client(fake: Any, serve: Any) -> Any:
    probe = ProbeStatus("health", "liveness", "PASSED", 1.5)
    workers = (
        WorkerStatus("Model-1", "READY", 4711, "node", 3.0, probes=(probe,), inputs=12, batch_sizes={"embed": 3.5}),
        WorkerStatus("Model/1", "BACKOFF", None, None, 0.0, reason=EVIL, restarts=2),
    )
    fake.pools = (
        PoolStatus("Model", "Model", "DEGRADED", 2, 1, 0, 0, 0, 3, 1, 2, waiting_for=EVIL, workers=workers),
        PoolStatus("Idle", "Idle", "READY", 0, 0, 0, 0, 0, 0, 0, 0),
    )
    fake.events = (gw.Event(1, dt.datetime.now(dt.timezone.utc), "Model", "Model-1", "ready", EVIL),)
    return serve(fake.app)


def test_the_page_shows_pools_workers_and_events_and_escapes_them(client: Any, fake: Any, tmp_path: Path) -> None:
    page = browse(f"{client.base_url}", tmp_path, "--dump-dom")
    assert f"<title>{fake.app.name} \N{EN DASH} gworker</title>" in page
    for shown in ("Model-1", "4711", "health passed, 1.5 ms", "embed: 3.5 a batch", "1 of 2", "degraded", "<polyline"):
        assert shown in page, shown
    assert "&lt;img src=x" in page and "<img" not in page.replace("&lt;img", "")


@pytest.mark.parametrize(("name", "size"), [("desk", "1280,900"), ("phone", "500,1200")])
def test_it_can_be_looked_at(client: Any, tmp_path: Path, name: str, size: str) -> None:
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"status-{name}.png"
    browse(f"{client.base_url}", tmp_path, f"--screenshot={picture}", f"--window-size={size}")
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_with_a_token_it_asks_for_it(fake: Any, serve: Any, tmp_path: Path) -> None:
    page = browse(f"{serve(fake.app, token='sesame').base_url}", tmp_path, "--dump-dom")
    assert '<dialog id="ask" aria-labelledby="ask-title" open="">' in page
    assert fake.app.name not in page
