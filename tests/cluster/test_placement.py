"""GPUs as Ray has them: given by type and by fraction, waited for where all are taken, refused where there are none."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest
import ray

import gworker as gw

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def all_gpus_are_free(ray_cluster: None, eventually: Any) -> None:
    """What earlier tests held has come back; their workers leave once they are idle."""
    eventually(lambda: ray.available_resources().get("GPU") == 4.0)


def assigned() -> dict[str, float]:
    """The resources Ray gave to the process this runs in."""
    resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()
    return resources


def test_accelerator_types_are_placed_on_the_gpus_they_name(shared_app: Any) -> None:
    @shared_app.cls(cpu=0.1, gpu=gw.Gpu("A100"), scaledown_window_s=0.2)
    class OnA100:
        @gw.method()
        def has(self) -> tuple[dict[str, float], str]:
            return assigned(), os.environ["CUDA_VISIBLE_DEVICES"]

    @shared_app.cls(cpu=0.1, gpu=gw.Gpu("H100", 2), resources={"accelerator_type:A100": 0.5}, scaledown_window_s=0.2)
    class OnTwoH100:
        @gw.method()
        def has(self) -> tuple[dict[str, float], str]:
            return assigned(), os.environ["CUDA_VISIBLE_DEVICES"]

    a100, h100 = gw.gather(OnA100().has.spawn(), OnTwoH100().has.spawn())
    assert a100[0] == {"CPU": 0.1, "GPU": 1.0, "accelerator_type:A100": 0.001}
    assert h100[0] == {"CPU": 0.1, "GPU": 2.0, "accelerator_type:H100": 0.001, "accelerator_type:A100": 0.5}
    assert len(a100[1].split(",")) == 1
    assert len(h100[1].split(",")) == 2
    assert not {*a100[1].split(",")} & {*h100[1].split(",")}, "no two workers share a GPU that each has alone"


def test_a_worker_holds_what_it_asks_for_and_nothing_else(shared_app: Any) -> None:
    @shared_app.cls(cpu=0.25, memory_mb=100, gpu=gw.Gpu(count=0.25), scaledown_window_s=0.2)
    class Quarter:
        @gw.method()
        def has(self) -> dict[str, float]:
            return assigned()

    has = Quarter().has.remote()
    assert (has["CPU"], has["GPU"], has["memory"]) == (0.25, 0.25, 100 * 2**20)


def test_fractions_share_a_gpu(app: Any, gate: Any, eventually: Any) -> None:
    @app.cls(cpu=0.1, gpu=gw.Gpu(count=0.5), min_workers=2, max_workers=2)
    class Half:
        @gw.method()
        def device(self) -> tuple[int, str]:
            gate.wait()
            return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]

    with app.run():
        calls = [Half().device.spawn() for _ in range(2)]
        eventually(lambda: gate.arrivals == 2, 20.0)  # one in each: a connection may take longer than a call
        gate.open()
        (first, on), (second, also_on) = gw.gather(*calls)
    assert first != second
    assert on == also_on


def test_a_gpu_that_no_node_has_is_unschedulable_at_once(shared_app: Any) -> None:
    @shared_app.cls(gpu=gw.Gpu("B200"))
    class OnB200:
        @gw.method()
        def work(self) -> None: ...

    with pytest.raises(gw.Unschedulable, match=r"OnB200 needs GPU B200 x1; this cluster has none"):
        OnB200().work.spawn().get(10)
    with pytest.raises(gw.Unschedulable, match=r"needs GPU A100 x8; the largest node has 4"):
        OnB200.with_options(gpu=gw.Gpu("A100", 8))().work.spawn().get(10)
    with pytest.raises(gw.Unschedulable, match=r"needs CPU x1000; the largest node has 16"):
        OnB200.with_options(gpu=None, cpu=1000)().work.spawn().get(10)
    with pytest.raises(gw.Unschedulable, match=r"needs licence x1; the largest node has 0"):
        OnB200.with_options(gpu=None, resources={"licence": 1})().work.spawn().get(10)
    assert "needs GPU B200 x1" in shared_app.status().pool("OnB200").waiting_for


def test_run_refuses_a_floor_that_no_node_could_hold(app: Any) -> None:
    @app.cls(gpu=gw.Gpu("B200"), min_workers=1)
    class OnB200:
        @gw.method()
        def work(self) -> None: ...

    with pytest.raises(gw.Unschedulable, match="needs GPU B200 x1"), app.run():
        pytest.fail("the block must not be entered")


def test_an_optional_gpu_is_dropped_with_one_warning_where_there_is_none(
    app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GWORKER_GPU", "optional")

    @app.cls(cpu=0.1, gpu=gw.Gpu("B200"))
    class Anywhere:
        @gw.method()
        def has(self) -> dict[str, float]:
            return assigned()

    @app.cls(cpu=0.1, gpu=gw.Gpu("A100"))
    class OnA100:
        @gw.method()
        def has(self) -> dict[str, float]:
            return assigned()

    with caplog.at_level(logging.WARNING, "gworker"):
        assert Anywhere().has.remote() == {"CPU": 0.1}
        assert Anywhere().has.remote() == {"CPU": 0.1}
        assert OnA100().has.remote()["GPU"] == 1.0, "one that the cluster has is given all the same"
    (notice,) = [record.getMessage() for record in caplog.records if "without a GPU" in record.getMessage()]
    assert "Anywhere needs GPU B200 x1" in notice


def test_a_bad_value_of_gworker_gpu_is_named(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWORKER_GPU", "yes")

    @app.cls(cpu=0.1)
    class Anywhere:
        @gw.method()
        def work(self) -> None: ...

    with pytest.raises(ValueError, match=r"GWORKER_GPU='yes' .* expected 'required' or 'optional'"):
        Anywhere().work.remote()


def test_a_full_cluster_is_waited_for_visibly(
    make_app: Any, pids: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gworker.router.router.EXPLAIN_AFTER_S", 0.5)
    here, there = make_app(), make_app()

    @there.cls(cpu=0.1, gpu=gw.Gpu(count=4))
    class TakesAll:
        @gw.method()
        def take(self) -> None: ...

    @here.cls(cpu=0.1, gpu=gw.Gpu("A100"))
    class Waits:
        @gw.method()
        def work(self) -> str:
            return "served"

    TakesAll().take.remote()
    with caplog.at_level(logging.WARNING, "gworker"):
        call = Waits().work.spawn()
        eventually(lambda: any("waiting for GPU A100 x1" in record.getMessage() for record in caplog.records))
        assert "waiting for GPU A100 x1" in here.status().pool("Waits").waiting_for
    assert not call.done()
    there.stop()
    assert call.get(20) == "served"


def test_growth_leaves_room_for_the_other_classes_of_the_app(app: Any, pids: Any, eventually: Any) -> None:
    @app.cls(cpu=0.1, gpu=gw.Gpu(count=2), max_workers=4)
    class Outer:
        @gw.method()
        def ask(self, x: int) -> tuple[int, int]:
            return os.getpid(), Inner().answer.remote(x)

    @app.cls(cpu=0.1, gpu=gw.Gpu(count=2), max_workers=1)
    class Inner:
        @gw.method()
        def answer(self, x: int) -> int:
            return 2 * x

    # Four outer workers would take every GPU and wait for an inner one that could never start.
    results = list(Outer().ask.map(range(8)))
    assert [answer for _, answer in results] == [2 * x for x in range(8)]
    assert len({pid for pid, _ in results}) == 1
