"""What a worker asks of Ray, and the words for what no node has."""

from __future__ import annotations

from typing import Any

import pytest

from gworker.control.placement import actor_options, describe_requirement, requirement, what_no_node_has
from gworker.options import Gpu, Options

MIB = 2**20


def options(**given: Any) -> Options:
    return Options.build(given, where="test")


def test_the_cpu_of_an_actor_is_always_explicit() -> None:
    # Only num_gpus set, a Ray actor holds 1 CPU for life; with nothing set, none.
    assert actor_options(options()) == {"num_cpus": 1.0, "num_gpus": 0}
    assert actor_options(options(cpu=0)) == {"num_cpus": 0.0, "num_gpus": 0}
    assert actor_options(options(gpu=Gpu(count=0.5)))["num_cpus"] == 1.0


def test_everything_a_class_asks_for_is_asked_of_ray() -> None:
    given = options(
        gpu=Gpu("A100", 2), cpu=4, memory_mb=512, resources={"disk": 2}, runtime_env={"env_vars": {"A": "1"}}
    )
    assert actor_options(given) == {
        "num_cpus": 4.0,
        "num_gpus": 2,
        "accelerator_type": "A100",
        "memory": 512 * MIB,
        "resources": {"disk": 2},
        "runtime_env": {"env_vars": {"A": "1"}},
    }


def test_a_requirement_of_nothing_fits_everywhere() -> None:
    assert requirement(options(cpu=0)) == {}
    assert what_no_node_has(options(cpu=0), [{}]) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "CPU x1"),
        ({"gpu": Gpu("A100"), "cpu": 2}, "GPU A100 x1, CPU x2"),
        ({"gpu": Gpu(count=0.5), "cpu": 0}, "GPU x0.5"),
        ({"memory_mb": 512, "resources": {"disk": 2}}, "CPU x1, memory 512 MB, disk x2"),
    ],
)
def test_a_requirement_reads_well(given: dict[str, Any], words: str) -> None:
    assert describe_requirement(options(**given)) == words


CPU_NODE = {"CPU": 8.0, "memory": 1024.0 * MIB}
A100_NODE = {"CPU": 8.0, "GPU": 2.0, "accelerator_type:A100": 1.0}
H100_NODE = {"CPU": 2.0, "GPU": 8.0, "accelerator_type:H100": 1.0}


@pytest.mark.parametrize(
    ("given", "nodes", "words"),
    [
        ({"gpu": Gpu("A100")}, [CPU_NODE], "needs GPU A100 x1; this cluster has none"),
        ({"gpu": Gpu()}, [CPU_NODE], "needs GPU x1; this cluster has none"),
        ({"gpu": Gpu(count=0.5)}, [CPU_NODE], "needs GPU x0.5; this cluster has none"),
        ({"gpu": Gpu("A100")}, [CPU_NODE, H100_NODE], "needs GPU A100 x1; this cluster has none (it has H100)"),
        ({"gpu": Gpu("L4")}, [A100_NODE, H100_NODE], "needs GPU L4 x1; this cluster has none (it has A100, H100)"),
        ({"gpu": Gpu("A100", 4)}, [A100_NODE], "needs GPU A100 x4; the largest node has 2"),
        ({"gpu": Gpu(count=16)}, [A100_NODE, H100_NODE], "needs GPU x16; the largest node has 8"),
        ({"cpu": 64}, [CPU_NODE, A100_NODE], "needs CPU x64; the largest node has 8"),
        ({"memory_mb": 4096}, [CPU_NODE], "needs memory x4096 MB; the largest node has 1024 MB"),
        ({"resources": {"disk": 1}}, [CPU_NODE], "needs disk x1; the largest node has 0"),
        (
            {"gpu": Gpu("H100"), "cpu": 4},
            [A100_NODE, H100_NODE],
            "needs GPU H100 x1, CPU x4 on one node; no node has all of it",
        ),
        (
            {"gpu": Gpu("A100", 4)},
            [A100_NODE, H100_NODE],
            "needs GPU A100 x4, CPU x1 on one node; no node has all of it",
        ),
    ],
)
def test_what_no_node_has_is_named(given: dict[str, Any], nodes: list[dict[str, float]], words: str) -> None:
    assert what_no_node_has(options(**given), nodes) == words


@pytest.mark.parametrize(
    ("given", "nodes"),
    [
        ({}, [CPU_NODE]),
        ({"gpu": Gpu("A100", 2)}, [CPU_NODE, A100_NODE]),
        ({"gpu": Gpu()}, [H100_NODE]),
        ({"gpu": Gpu(count=0.25)}, [A100_NODE]),
        ({"memory_mb": 1024}, [CPU_NODE]),
        ({"gpu": Gpu("A100")}, []),
    ],
    ids=["cpu", "the right node of two", "any type", "a part of one", "exactly all", "before any node is known"],
)
def test_what_some_node_has_is_not_complained_about(given: dict[str, Any], nodes: list[dict[str, float]]) -> None:
    assert what_no_node_has(options(**given), nodes) is None
