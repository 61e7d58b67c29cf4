"""`gworker bench` and `gworker init` on a real Ray."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cluster

SHOP = """
    import asyncio
    import os

    import gworker as gw

    app = gw.App("NAME")

    @app.cls(cpu=0.1, max_workers=1)
    @gw.concurrent(max_inputs=16)
    class Shop:
        price: float = gw.parameter(default=1.0)

        @gw.on_exit()
        def leave(self):
            open(os.path.join(os.path.dirname(__file__), "left"), "w").close()

        @gw.method()
        @gw.batched(max_batch_size=8, wait_ms=1)
        def sell(self, what: list[str]) -> list[float]:
            return [self.price * len(each) for each in what]

        @gw.method()
        async def count(self, n: int, rate: float = 1.0):
            for number in range(n):
                yield number

        @gw.method()
        async def divide(self, n: int) -> float:
            return 1 / n

        @gw.method()
        async def wait(self) -> None:
            with open(os.path.join(os.path.dirname(__file__), "waiting"), "a") as waiting:
                waiting.write(".")
            await asyncio.sleep(0.05)
"""


_numbers = itertools.count(1)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The file of an app, both with names of their own, in the current folder; no trace of it in this process later."""
    name = f"shop_{os.getpid()}_{next(_numbers)}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(SHOP).replace("NAME", name))
    yield f"{name}.py"
    sys.modules.pop(name, None)


def test_a_sweep_of_callers_is_measured_after_a_first_result_and_the_app_is_drained(
    gworker: Any, tmp_path: Path, shop: str
) -> None:
    options = ("-c", "1,8", "--requests", "40", "--warmup", "0.1", "--slo-ms", "10000", "--json", "-")
    done = gworker("bench", f"{shop}::Shop.sell", "--what", "tea", "--price", "2.5", *options)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["first_result"]["seconds"] > 0 and report["first_result"]["workers_before"] == 0
    assert [step["load"] for step in report["steps"]] == [{"callers": 1}, {"callers": 8}]
    for step in report["steps"]:
        assert (step["calls"], step["failed"], step["good_share"]) == (40, 0, 1.0)
        assert step["calls_per_s"] > 0 and step["pools"]["workers_after"] == 1
        assert 0 < step["latency"]["p50_ms"] <= step["latency"]["max_ms"] and step["latency"]["p999_ms"] is None
        parts = [step[part] for part in ("queue_time", "batch_wait", "run_time")]
        assert [part["count"] for part in parts] == [40] * 3
        assert sum(part["mean_ms"] for part in parts) == pytest.approx(step["latency"]["mean_ms"], rel=0.5)
    one, eight = (step["pools"]["mean_batch"] for step in report["steps"])
    assert one == 1.0 and 1.0 < eight <= 8.0
    assert report["parameters"] == {"price": "2.5"} and report["plan"]["slo_ms"] == 10_000
    assert report["machine"]["cores"] >= 1 and {"gworker", "Python", "ray"} <= set(report["versions"])
    assert (tmp_path / "left").exists()


def test_a_deployed_class_is_measured_at_a_rate_and_lives_on(
    here: Callable[..., Any], tmp_path: Path, shop: str
) -> None:
    app = shop.removesuffix(".py")
    assert here("deploy", shop).code == 0
    try:
        (tmp_path / "numbers.jsonl").write_text('1\n{"n": 0}\n2\n')
        options = ("--rate", "300", "--duration", "0.5", "--warmup", "0.1")
        done = here("bench", f"{app}.Shop.divide", "--inputs", "numbers.jsonl", *options, "--json", "found.json")
        assert done.code == 0, done.err
        assert "open loop, calls due at random (Poisson)" in done.out and "3 inputs from numbers.jsonl" in done.out
        assert "x ZeroDivisionError: division by zero" in done.out and "sent late by" in done.out
        assert all(part in done.out for part in ("queue time", "batch wait", "run time"))
        step = json.loads((tmp_path / "found.json").read_text())["steps"][0]
        assert step["failed"] == step["problems"][0]["count"] > 0 and step["dropped"] == step["unfinished"] == 0
        assert step["calls"] + step["failed"] == pytest.approx(150, abs=50)

        # A generator; `--rate` behind the target is its argument. The file's app is deployed: that is what is measured.
        done = here("bench", "-n", "20", "-c", "2", "--warmup", "0", f"{shop}::Shop.count", "5", "--rate", "2")
        assert done.code == 0, done.err
        assert f"of {app}, deployed" in done.out and "first item" in done.out and "between items" in done.out
        assert here("run", f"{shop}::Shop.sell", "tea").out == "3.0\n"
        assert here("call", app, "Shop.sell", "tea").out == "3.0\n"  # it is still there

        done = here("bench", f"{app}.Shop.divide", "0", "-n", "5")
        assert done.code == 1 and "ZeroDivisionError: division by zero" in done.err and not done.out
    finally:
        here("stop", app, "--now")


def test_ctrl_c_shows_what_was_measured_so_far_and_drains(
    gworker: Any, tmp_path: Path, shop: str, eventually: Any
) -> None:
    process = gworker.start("bench", f"{shop}::Shop.wait", "-c", "4", "--duration", "600", "--warmup", "0")
    waiting = tmp_path / "waiting"
    eventually(lambda: waiting.exists() and waiting.stat().st_size > 20, 40)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 130
    assert "! interrupted after" in gworker.output and "latency in ms" in gworker.output, gworker.output
    assert "Traceback" not in gworker.output
    assert (tmp_path / "left").exists()


def test_what_cannot_be_measured_is_told_before_anything_starts(
    here: Callable[..., Any], tmp_path: Path, shop: str
) -> None:
    def told(*args: str) -> str:
        done = here("bench", *args)
        assert done.code == 2 and not done.out
        return str(done.err)

    assert "Shop.sell(what" in told(shop)
    assert "write app.py::Embedder.embed for a file" in told("inference-server")
    assert "needs a value for:\n  --what str" in told(f"{shop}::Shop.sell")
    assert "Give one of them" in told(f"{shop}::Shop.sell", "tea", "-c", "1", "--rate", "5")
    assert "--inputs none.jsonl: No such file" in told(f"{shop}::Shop.sell", "--inputs", "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "empty.jsonl holds no call" in told(f"{shop}::Shop.sell", "--inputs", "empty.jsonl")
    assert "--json no/such.json: No such file" in told(f"{shop}::Shop.sell", "tea", "--json", "no/such.json")


def test_the_starter_app_runs_as_it_stands(
    here: Callable[..., Any], script: Callable[..., Any], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = here("init", "mine")
    assert made.code == 0 and made.out.startswith("wrote mine/app.py\n")
    assert "gworker serve mine/app.py --reload" in made.out
    app = tmp_path / "mine" / "app.py"
    running = script(app.read_text(), address)

    app.write_text("mine")
    done = here("init", "mine")
    assert done.code == 2 and "mine/app.py is there already" in done.err and "--force" in done.err
    assert app.read_text() == "mine"
    assert here("init", "mine", "--force").code == 0 and app.read_text() != "mine"
    assert "is not a folder" in here("init", "mine/app.py").err

    assert running.wait() == 0, running.err
    assert running.out.splitlines()[0].endswith("A quick recipe for tomato soup.")
