"""What room there is for the workers of an app, and which of its pools may have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from gworker.control.nodes import node_totals
from gworker.control.placement import (
    affordable,
    free_resources,
    how_often,
    requirement,
    unheld_resources,
    what_no_node_has,
)
from gworker.control.pool import Pool
from gworker.options import Options
from gworker.router.membership import PoolDefinition, PoolKey


class Room:
    """The room for the workers of all `pools`. `declared` are the classes of the app, called already or not.

    `gpu_optional` and `cluster_may_grow`: see `ControllerBoot`.
    """

    def __init__(
        self,
        pools: Mapping[PoolKey, Pool],
        declared: Mapping[str, Options],
        *,
        gpu_optional: bool,
        cluster_may_grow: bool,
    ) -> None:
        self.declared = dict(declared)
        self._pools = pools
        self._gpu_optional = gpu_optional
        self._cluster_may_grow = cluster_may_grow

    def fit_gpu(self, definition: PoolDefinition) -> tuple[PoolDefinition, str]:
        """The definition without a GPU that this machine does not have, where that is wanted, and what to say of it."""
        gpu = definition.options.gpu
        if gpu is None or not self._gpu_optional:
            return definition, ""
        only_gpu = replace(definition.options, cpu=0.0, memory_mb=None, resources=None)
        lacking = what_no_node_has(only_gpu, node_totals())
        if lacking is None:
            return definition, ""
        notice = (
            f"{definition.key.class_name} {lacking.replace('this cluster', 'this machine')}: it runs without a GPU, "
            "because gworker started this local Ray by itself. Set GWORKER_GPU=required to have it fail instead."
        )
        return replace(definition, options=replace(definition.options, gpu=None)), notice

    def affordable(self, pool: Pool, count: int, *, replacing: int) -> int:
        """How many of `count` workers a pool may start now, which has to get `replacing` in place of others."""
        if count == 0:
            return 0
        options = pool.definition.options
        owed = max(1, options.min_workers, replacing)
        served = {key.class_name for key, other in self._pools.items() if other.workers}
        mine = pool.definition.key.class_name
        return affordable(
            count,
            requirement(options),
            free_resources((needs, placed) for _, needs, placed in self._held()),
            others=[requirement(o) for name, o in self.declared.items() if name != mine and name not in served],
            owed=owed - sum(not w.draining for w in pool.workers.values()),
            cluster_may_grow=self._cluster_may_grow,
        )

    def fits(self, pool: Pool) -> bool | None:
        """See `rollout.Fits`."""
        needs = requirement(pool.definition.options)
        held = [(taken, placed) for owner, taken, placed in self._held() if placed or owner is not pool]
        if how_often(needs, free_resources(held)):
            return True
        return None if how_often(needs, unheld_resources(held)) else False

    def _held(self) -> Iterator[tuple[Pool, Mapping[str, float], bool]]:
        """What each worker needs, by pool, and whether it has a place."""
        for pool in self._pools.values():
            needs = requirement(pool.definition.options)
            yield from ((pool, needs, worker.placed) for worker in pool.workers.values())
