"""Workers are placed where their requirements are met; what cannot be placed is said, never waited for in silence."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import ray

import gworker as gw

pytestmark = pytest.mark.cluster


def test_a_worker_holds_the_gpu_of_the_type_it_asked_for(app: Any) -> None:
    @app.cls(gpu=gw.Gpu("A100"), cpu=0.1, max_workers=1)
    class OnGpu:
        @gw.method()
        def where(self) -> tuple[dict[str, float], str]:
            return ray.get_runtime_context().get_assigned_resources(), os.environ.get("CUDA_VISIBLE_DEVICES", "")

    resources, visible = OnGpu().where.remote()
    assert resources["GPU"] == 1
    assert resources["accelerator_type:A100"] > 0
    assert len(visible.split(",")) == 1
    assert visible


def test_two_workers_that_ask_for_half_a_gpu_share_one(app: Any, eventually: Any) -> None:
    @app.cls(gpu=gw.Gpu("H100", count=0.5), cpu=0.1, min_workers=2, max_workers=2)
    class Half:
        @gw.method()
        def gpu(self) -> str:
            return os.environ["CUDA_VISIBLE_DEVICES"]

    with app.run():
        assert app.status().pool("Half").ready == 2
        assert Half().gpu.remote()


def test_a_gpu_that_no_node_has_is_said_at_once_with_what_there_is(app: Any) -> None:
    @app.cls(gpu=gw.Gpu("H200"), cpu=0.1)
    class Nowhere:
        @gw.method()
        def f(self) -> None:
            return None

    with pytest.raises(
        gw.Unschedulable, match=r"Nowhere needs GPU H200 x1; this cluster has none \(it has A100, H100\)"
    ):
        Nowhere().f.with_options(deadline_s=20).remote()
    status = app.status().pool("Nowhere")
    assert status.starting == 1, "it stays pending and visible"
    assert "needs GPU H200" in status.waiting_for


def test_more_of_a_resource_than_any_node_has_is_named(app: Any) -> None:
    @app.cls(cpu=0.1, resources={"tpu": 1})
    class NeedsTpu:
        @gw.method()
        def f(self) -> None:
            return None

    with pytest.raises(gw.Unschedulable, match="needs tpu x1; the largest node has 0"):
        NeedsTpu().f.with_options(deadline_s=20).remote()


def test_a_full_cluster_is_waited_for_and_the_wait_is_explained(make_app: Any, eventually: Any) -> None:
    holder, waiter = make_app(), make_app()

    @holder.cls(gpu=gw.Gpu("A100", count=2), cpu=0.1, min_workers=1)
    class Holder:
        @gw.method()
        def f(self) -> int:
            return 1

    @waiter.cls(gpu=gw.Gpu("A100", count=4), cpu=0.1)
    class Waiter:
        @gw.method()
        def f(self) -> int:
            return 2

    assert Holder().f.remote() == 1
    call = Waiter().f.spawn()
    assert eventually(lambda: "waiting for GPU A100 x4" in str(waiter.status()))
    assert not call.done()
    holder.stop(drain=False)
    assert call.get(timeout_s=20) == 2


def test_growth_leaves_room_for_a_class_that_the_growing_one_calls(app: Any) -> None:
    @app.cls(cpu=0.1, resources={"accelerator_type:H100": 1})
    class Inner:
        @gw.method()
        def f(self, x: int) -> int:
            return x + 1

    # Two of the resource in all: a second Outer would leave none for Inner, which every Outer waits for.
    @app.cls(cpu=0.1, resources={"accelerator_type:H100": 1}, scaledown_window_s=60)
    class Outer:
        @gw.method()
        def f(self, x: int) -> int:
            return int(Inner().f.remote(x)) * 10

    results: list[int] = []
    thread = threading.Thread(target=lambda: results.extend(Outer().f.map(range(8))))
    thread.start()
    thread.join(40)
    assert results == [(x + 1) * 10 for x in range(8)]
    assert app.status().pool("Outer").ready == 1


def test_an_unknown_word_in_gworker_gpu_is_refused(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @app.cls(cpu=0.1)
    class Plain:
        @gw.method()
        def f(self) -> None:
            return None

    monkeypatch.setenv("GWORKER_GPU", "maybe")
    with pytest.raises(ValueError, match=r"GWORKER_GPU='maybe'.*'required' or 'optional'"):
        Plain().f.remote()


def test_gworker_gpu_optional_drops_what_the_cluster_lacks(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @app.cls(gpu=gw.Gpu("H200"), cpu=0.1, max_workers=1)
    class Anywhere:
        @gw.method()
        def f(self) -> dict[str, float]:
            return dict(ray.get_runtime_context().get_assigned_resources())

    monkeypatch.setenv("GWORKER_GPU", "optional")
    assert "GPU" not in Anywhere().f.remote()
