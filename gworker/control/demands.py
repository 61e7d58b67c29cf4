"""What the routers of a pool need, as each of them said last. Pure: it is told reports and the time."""

from __future__ import annotations

from gworker.router.membership import Demand

# A router that has not repeated its demand for this long is gone.
DEMAND_EXPIRES_S = 5.0


class Demands:
    """The latest report of each router that needs something."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[Demand, float]] = {}

    def report(self, router: str, demand: Demand, now: float) -> dict[str, int]:
        """A router says what it needs. Returns how many system errors in a row it has now met, by worker.

        Those that it does not repeat have ended: they are told as 0.
        """
        before, _ = self._latest.pop(router, (Demand(0, 0), now))
        if not demand.idle:
            self._latest[router] = (demand, now)
        return {**dict.fromkeys((worker_id for worker_id, _ in before.errors), 0), **dict(demand.errors)}

    def alive(self, now: float) -> list[tuple[str, Demand, float]]:
        """The reports of the routers that are not gone, and when each was made; the others are forgotten."""
        self._latest = {r: (d, at) for r, (d, at) in self._latest.items() if now - at <= DEMAND_EXPIRES_S}
        return [(router, demand, at) for router, (demand, at) in self._latest.items()]

    def total(self, now: float) -> Demand:
        """Inputs queued and running, of all routers that are not gone."""
        demands = [demand for _, demand, _ in self.alive(now)]
        return Demand(sum(d.queued for d in demands), sum(d.running for d in demands))

    def inflight(self) -> dict[str, int]:
        """The inputs that routers have in each worker."""
        counts: dict[str, int] = {}
        for demand, _ in self._latest.values():
            for worker_id, count in demand.inflight:
                counts[worker_id] = counts.get(worker_id, 0) + count
        return counts

    def clear(self) -> None:
        """Nobody needs anything."""
        self._latest.clear()
