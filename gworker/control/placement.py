"""What a worker asks of Ray, whether any node could ever give it, and how many fit now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import ray

from gworker.options import Options


def actor_options(options: Options) -> dict[str, Any]:
    """The options of the worker's Ray actor. `num_cpus` is always explicit: Ray's default would hold one for life."""
    given: dict[str, Any] = {"num_cpus": options.cpu, "num_gpus": 0 if options.gpu is None else options.gpu.count}
    if options.gpu is not None and options.gpu.type is not None:
        given["accelerator_type"] = options.gpu.type
    if options.memory_mb is not None:
        given["memory"] = int(options.memory_mb * 1024 * 1024)
    if options.resources:
        given["resources"] = dict(options.resources)
    if options.runtime_env:
        given["runtime_env"] = dict(options.runtime_env)
    return given


def requirement(options: Options) -> dict[str, float]:
    """What one worker takes from a node, by Ray's resource names."""
    needs: dict[str, float] = {"CPU": options.cpu}
    if options.gpu is not None:
        needs["GPU"] = options.gpu.count
        if options.gpu.type is not None:
            needs[f"accelerator_type:{options.gpu.type}"] = 0.001
    if options.memory_mb is not None:
        needs["memory"] = options.memory_mb * 1024 * 1024
    needs.update(options.resources or {})
    return {name: amount for name, amount in needs.items() if amount > 0}


def describe_requirement(options: Options) -> str:
    """The requirement in words, as error messages name it: `GPU A100 x1, CPU x2`."""
    words = []
    if options.gpu is not None:
        words.append(f"GPU {options.gpu.type + ' ' if options.gpu.type else ''}x{options.gpu.count:g}")
    if options.cpu:
        words.append(f"CPU x{options.cpu:g}")
    if options.memory_mb is not None:
        words.append(f"memory {options.memory_mb:g} MB")
    words += [f"{name} x{amount:g}" for name, amount in (options.resources or {}).items()]
    return ", ".join(words)


def what_no_node_has(options: Options, nodes: Iterable[Mapping[str, float]]) -> str | None:
    """Why no node could ever hold one worker, in words, or None where one could. `nodes` are their total resources.

    >>> from gworker.options import Gpu, Options
    >>> what_no_node_has(Options(gpu=Gpu("A100")), [{"CPU": 8.0}])
    'needs GPU A100 x1; this cluster has none'
    """
    totals = list(nodes)
    needs = requirement(options)
    if not totals or any(all(node.get(name, 0.0) >= amount for name, amount in needs.items()) for node in totals):
        return None

    def most(name: str) -> float:
        return max((node.get(name, 0.0) for node in totals), default=0.0)

    gpu = options.gpu
    if gpu is not None:
        words = f"GPU {gpu.type + ' ' if gpu.type else ''}x{gpu.count:g}"
        if most("GPU") == 0 or (gpu.type is not None and most(f"accelerator_type:{gpu.type}") == 0):
            others = sorted({n.split(":", 1)[1] for node in totals for n in node if n.startswith("accelerator_type:")})
            has = f"none (it has {', '.join(others)})" if others else "none"
            return f"needs {words}; this cluster has {has}"
        if most("GPU") < gpu.count:
            return f"needs {words}; the largest node has {most('GPU'):g}"
    for name, amount in needs.items():
        if most(name) < amount:
            unit, scale = (" MB", 2.0**20) if name == "memory" else ("", 1.0)
            return f"needs {name} x{amount / scale:g}{unit}; the largest node has {most(name) / scale:g}{unit}"
    return f"needs {describe_requirement(options)} on one node; no node has all of it"


def how_often(needs: Mapping[str, float], free: Mapping[str, float]) -> int:
    """How many workers with these needs fit into what is free, were it one node."""
    times = [int(free.get(name, 0.0) / amount + 1e-9) for name, amount in needs.items()]
    return max(0, min(times)) if times else 1_000


def subtract(free: dict[str, float], needs: Mapping[str, float]) -> None:
    """Take the needs of one worker out of what is free."""
    for name, amount in needs.items():
        free[name] = free.get(name, 0.0) - amount


def affordable(
    count: int,
    needs: Mapping[str, float],
    free: Mapping[str, float],
    *,
    others: Iterable[Mapping[str, float]],
    owed: int,
    cluster_may_grow: bool,
) -> int:
    """How many of `count` workers to ask for: where the cluster cannot grow, no more than fit.

    `owed` of them, the first worker and the floor, are asked for all the same, and are seen to wait. Growth past that
    leaves room for one worker of each of the `others`, the classes that have none: a class that calls another must not
    starve it. Where the cluster may grow, what fits nowhere is asked for: Ray's cluster autoscaler is to see it.
    """
    if cluster_may_grow and how_often(needs, free) == 0:
        return count
    left = dict(free)
    for other in others:
        subtract(left, other)
    return min(count, max(how_often(needs, left), owed))


def free_resources(held: Iterable[tuple[Mapping[str, float], bool]]) -> dict[str, float]:
    """What is free in the cluster, less what workers on their way will take. `held`: each one's needs, and if placed.

    Ray's account of what is available lags behind, for seconds on a busy machine: a worker that was placed just now
    may be missing from it. What is left of the whole once all our workers have theirs is never too much.
    """
    known = list(held)
    left = unheld_resources(known)
    available: dict[str, float] = dict(ray.available_resources())  # type: ignore[no-untyped-call]
    for needs, placed in known:
        if not placed:
            subtract(available, needs)
    return {name: min(amount, left.get(name, 0.0)) for name, amount in available.items()}


def unheld_resources(held: Iterable[tuple[Mapping[str, float], bool]]) -> dict[str, float]:
    """What the cluster has beside what our workers hold, or will: free, or held by others."""
    left: dict[str, float] = dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
    for needs, _ in held:
        subtract(left, needs)
    return left
