"""What the pools of a class did during a step: the difference of the counters in two statuses."""

from __future__ import annotations

from dataclasses import dataclass, field

from gworker.observe.status import AppStatus


@dataclass(frozen=True)
class Pools:
    """Ready workers before and after, and the mean size of the batches between; None where there were none."""

    workers_before: int
    workers_after: int
    mean_batch: float | None = None


@dataclass(frozen=True)
class Counters:
    """The counters at one moment. `batches` holds, by worker, the method's batches and the inputs that were in them."""

    ready: int = 0
    batches: dict[str, tuple[int, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, status: AppStatus, class_name: str, method: str) -> Counters:
        """Those of all pools of the class."""
        pools = [pool for pool in status.pools if pool.class_name == class_name]
        return cls(
            sum(pool.ready for pool in pools),
            {
                worker.id: (worker.batches[method], worker.batches[method] * worker.batch_sizes[method])
                for pool in pools
                for worker in pool.workers
                if method in worker.batches
            },
        )

    def until(self, after: Counters) -> Pools:
        """What happened from here to `after`. What a worker that is gone did last is not known."""
        batches, inputs = 0, 0.0
        for worker, (number, size) in after.batches.items():
            known, known_size = self.batches.get(worker, (0, 0.0))
            batches += number - known
            inputs += size - known_size
        return Pools(self.ready, after.ready, inputs / batches if batches else None)
