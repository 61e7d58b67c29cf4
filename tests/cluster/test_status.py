"""What a running app tells of itself: to programs as data, to people as tables, to notebooks without a network."""

from __future__ import annotations

import dataclasses
import io
import os
from typing import Any

import pytest
import ray
from rich.console import Console

import gworker as gw

pytestmark = pytest.mark.cluster


def printed(shown: Any) -> str:
    """How it looks in a terminal."""
    text = io.StringIO()
    Console(width=240, file=text).print(shown)
    return text.getvalue()


def test_the_status_of_a_running_app_says_what_is_there(app: Any, gate: Any, eventually: Any) -> None:
    @app.cls(cpu=0.1, max_workers=1, probes=[gw.Probe.on("health", period_s=0.1)])
    class Batcher:
        @gw.method()
        def health(self) -> bool:
            return True

        @gw.method()
        @gw.batched(max_batch_size=4, wait_ms=50)
        def double(self, xs: list[int]) -> list[int]:
            return [2 * x for x in xs]

        @gw.method()
        def wait(self) -> int:
            gate.wait()
            return os.getpid()

    assert list(Batcher().double.map(range(8))) == list(range(0, 16, 2))
    calls = [Batcher().wait.spawn() for _ in range(12)]
    # Two batches of four gather or run at most: eight inputs are in the worker, four wait in this process.
    pool = eventually(lambda: (p := app.status().pool("Batcher")) and (p.queued, p.running) == (4, 8) and p)
    eventually(lambda: app.status().pool("Batcher").workers[0].probes)
    status = app.status()
    assert (status.name, status.running, len(status.pools)) == (app.name, True, 1)
    assert (pool.state, pool.desired, pool.ready, pool.starting, pool.draining) == ("READY", 1, 1, 0, 0)
    assert (pool.name, pool.class_name, pool.restarts, pool.waiting_for) == ("Batcher", "Batcher", 0, "")
    (worker,) = status.pool("Batcher").workers
    assert (worker.state, worker.inputs, worker.inflight, worker.batch_sizes) == ("READY", 16, 8, {"double": 4.0})
    assert worker.node_id == ray.get_runtime_context().get_node_id()
    assert worker.age_s > 0
    (probe,) = worker.probes
    assert (probe.method, probe.kind, probe.verdict, probe.reason) == ("health", "liveness", "PASSED", "")
    gate.open()
    assert set(gw.gather(*calls)) == {worker.pid}

    assert dataclasses.is_dataclass(status)
    with pytest.raises(dataclasses.FrozenInstanceError):
        status.name = "other"
    for shown in (printed(status), status._repr_html_()):
        assert app.name in shown
        assert "Batcher" in shown
        assert "READY" in shown
    app.stop()
    assert app.status() == gw.AppStatus(app.name, running=False)


def test_variants_and_worker_scoped_values_show_as_pools_of_their_own(app: Any) -> None:
    @app.cls(cpu=0.1)
    class Model:
        size: str = gw.parameter(default="small", scope="worker")

        @gw.method()
        def loaded(self) -> str:
            return self.size

    calls = [Model().loaded.spawn(), Model(size="large").loaded.spawn()]
    calls += [Model.with_options(retries=1)().loaded.spawn()]
    assert gw.gather(*calls) == ["small", "large", "small"]
    pools = app.status().pools
    assert {pool.class_name for pool in pools} == {"Model"}
    assert len({pool.name for pool in pools}) == 3
    assert any("retries" in pool.name for pool in pools)


def test_showing_things_starts_nothing_and_asks_nobody(make_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app()

    @app.cls(gpu=gw.Gpu("A100"), min_workers=1, probes=[gw.Probe.on("health", period_s=30, failures=3)])
    @gw.concurrent(max_inputs=128)
    class Classifier:
        threshold: float = gw.parameter(default=0.5)

        @gw.on_enter()
        def load(self) -> None: ...

        @gw.on_exit()
        async def unload(self) -> None: ...

        @gw.method()
        def health(self) -> bool:
            return True

        @gw.method()
        @gw.batched(max_batch_size=64, wait_ms=20)
        def classify(self, texts: list[str]) -> list[str]:
            return texts

    for name in ("get", "wait", "init"):
        monkeypatch.setattr(ray, name, lambda *a, **k: pytest.fail("Ray was asked"))
    monkeypatch.setattr(
        "gworker.control.controller.create_controller", lambda *a, **k: pytest.fail("the app was started")
    )
    handle = Classifier(threshold=0.7)
    for shown, words in (
        (app, [app.name, "Classifier", "classify", "A100"]),
        (Classifier, ["Classifier", "classify", "threshold"]),
        (handle, ["Classifier(threshold=0.7)", "classify", app.name]),
        (app.status(), [app.name, "not running"]),
    ):
        page = shown._repr_html_()
        for looks in (page, printed(shown)):
            assert all(word in looks for word in words), looks
        assert "<" in page
        assert not [tag for tag in ("http", "<script", "<link", "src=") if tag in page], "nothing is loaded"
    assert repr(handle) == "Classifier(threshold=0.7)"

    described = app.describe()
    for words in (
        app.name,
        "classify",
        "texts: list[str]",
        "on_enter",
        "load",
        "unload",
        "64",
        "20",
        "128",
        "threshold",
        "0.5",
        "A100",
        "health",
        "125",  # seconds until a fault is told: 4 periods of 30 s, one of them excused, and the time-out of 5 s
    ):
        assert words in described, described
    assert described.count("on_enter") == described.count("on_exit") == 1


def test_a_call_shows_what_became_of_it(shared_app: Any, gate: Any) -> None:
    @shared_app.cls(cpu=0.1)
    class Shown:
        @gw.method()
        def work(self, fail: bool) -> None:
            gate.wait()
            if fail:
                raise LookupError("nothing there")

    good, bad = Shown().work.spawn(False), Shown().work.spawn(True)
    assert "Shown.work" in repr(good)
    assert "running" in repr(good)
    gate.open()
    good.get()
    with pytest.raises(LookupError):
        bad.get()
    assert "returned" in repr(good)
    assert "raised LookupError" in repr(bad)
