"""From one version of a deployed app to the next: new workers first, then the old ones go. Pure: no Ray, no clock.

Each pool is replaced by a *rollout*. It surges where there is room: as many new workers come up as there are old ones,
then the traffic changes over at once. Where the new ones find no room because the old ones hold it, it swaps: one old
worker makes room at a time, and both versions serve meanwhile. An *update* holds the rollouts of all pools; it is
committed when all of them are ready, and rolled back when one of them fails.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gworker.control.pool import Pool
from gworker.control.supervisor import patience
from gworker.control.workers import WorkerState
from gworker.router.membership import DeployedClass, PoolKey

# How long new workers may lack a place before old ones make room: time for Ray to notice what is free.
SWAP_AFTER_S = 2.0
# How long Ray may take to start a process where it has given away room that none of our workers is known to have.
DOUBT_S = 30.0

# Whether there is room for a worker of a pool that has no place yet. None: none of our workers has it, and yet it is
# taken, by one whose process is on its way, or by somebody else; time will tell.
Fits = Callable[[Pool], bool | None]


class Phase(str, enum.Enum):
    """How far a rollout, or an update, has come."""

    SURGING = "SURGING"
    SWAPPING = "SWAPPING"
    READY = "READY"
    FAILED = "FAILED"


class Rollout:
    """One pool's way from `old`, None for a class that is new, to `new`. `size` is that of the old one at full size."""

    def __init__(self, old: Pool | None, new: Pool) -> None:
        self.old = old
        self.new = new
        self.phase = Phase.SURGING
        self.reason = ""
        self._doubtful_since: float | None = None
        self._room_made_at = float("-inf")
        self._placed_before = 0
        self.size = 0 if old is None else len(old.slots)

    def step(self, now: float, fits: Fits) -> None:
        """Look where things stand."""
        if self.phase in (Phase.READY, Phase.FAILED):
            return
        new = self.new
        target = self._target()
        if new.failed(now) or new.unschedulable or new.restarts >= patience(target):
            self.phase = Phase.FAILED
            self.reason = str(new.failure(now) or self._what_failed())
            return
        new.pinned = target
        ready = len(new.those(WorkerState.READY))
        if ready >= target or (ready and self.old is not None and not self.old.workers):
            self.phase = Phase.READY
        elif self.phase is Phase.SURGING and self._lacks_room(now, fits):
            self.phase = Phase.SWAPPING
        if self.phase is Phase.SWAPPING:
            self._make_room(now, fits)

    def _target(self) -> int:
        """As many as the old version has, or the floor."""
        if self.old is not None and self.phase is Phase.SURGING:
            self.size = len(self.old.slots)
        options = self.new.definition.options
        floor = options.min_workers if self.new.definition.floor_when_idle else 0
        return min(max(floor, self.size), options.max_workers)

    def _what_failed(self) -> str:
        """Why a version of which some workers serve never gets as many as it should have."""
        new = self.new
        reasons = [slot.reason for slot in new.slots.values() if slot.reason]
        last = new.hope.last_error or (reasons[-1] if reasons else "")
        name = new.definition.key.class_name
        return f"{name}: its workers failed {new.restarts} times before enough of them were ready; the last: {last}"

    def _lacks_room(self, now: float, fits: Fits) -> bool:
        if self.old is None or not self.old.workers:
            return False
        starting = self.new.those(WorkerState.STARTING)
        waits = any(not w.placed and now - w.created >= SWAP_AFTER_S for w in starting)
        vacant = any(slot.worker_id is None for slot in self.new.slots.values())
        nothing_moves = all(not w.placed for w in starting)
        return nothing_moves and (waits or (vacant and not starting)) and self._is_full(now, fits)

    def _is_full(self, now: float, fits: Fits) -> bool:
        """Whether there is certainly no room for a new worker."""
        found = fits(self.new)
        if found is not None:
            if not found:
                self._doubtful_since = None
            return not found
        if self._doubtful_since is None:
            self._doubtful_since = now
        room_is_taken = _placed(self.new) > self._placed_before or now - self._room_made_at >= DOUBT_S
        return room_is_taken and now - self._doubtful_since >= DOUBT_S

    def _make_room(self, now: float, fits: Fits) -> None:
        """One old worker goes for one new one; the next when that is ready."""
        old, new = self.old, self.new
        assert old is not None
        if old.pinned is None:
            old.pinned = len(old.slots)
        going = any(w.draining for w in old.workers.values())
        coming = any(w.placed for w in new.those(WorkerState.STARTING))
        if going:
            self._room_made_at, self._placed_before = now, _placed(new)
        elif old.pinned and not coming and self._is_full(now, fits):
            old.pinned -= 1

    def commit(self) -> None:
        """The new version serves alone from now on."""
        self.new.unpin()
        if self.old is not None:
            self.old.retire("replaced by a new version")

    def roll_back(self) -> None:
        """The old version serves alone, as large as it was."""
        self.new.retire("its version was rolled back")
        if self.old is not None and self.old.pinned is not None:
            self.old.pinned = self.size
            self.old.unpin()

    @property
    def mixed(self) -> bool:
        """Whether both versions serve."""
        return self.phase is Phase.SWAPPING or (self.old is not None and self.old.pinned is not None)


def _placed(pool: Pool) -> int:
    return sum(worker.placed for worker in pool.workers.values())


@dataclass
class Update:
    """A new version of the app on its way: its classes, and the rollout of each pool that routers know by a key."""

    version: int
    classes: Mapping[str, DeployedClass]
    rollouts: dict[PoolKey, Rollout] = field(default_factory=dict)
    removed: list[Pool] = field(default_factory=list)

    def step(self, now: float, fits: Fits) -> Phase:
        """READY when it is to be committed, FAILED when it is to be rolled back."""
        for rollout in self.rollouts.values():
            rollout.step(now, fits)
        phases = [rollout.phase for rollout in self.rollouts.values()]
        if Phase.FAILED in phases:
            return Phase.FAILED
        if all(phase is Phase.READY for phase in phases):
            return Phase.READY
        return Phase.SWAPPING if Phase.SWAPPING in phases else Phase.SURGING

    def commit(self) -> None:
        """The new version serves from now on; classes that it lacks go."""
        for rollout in self.rollouts.values():
            rollout.commit()
        for pool in self.removed:
            pool.retire("the new version has no such class")

    def roll_back(self) -> None:
        """As if it had never been."""
        for rollout in self.rollouts.values():
            rollout.roll_back()

    def waiting_for(self, now: float) -> str:
        """What the pools that are not ready yet wait for, in words."""
        waiting = [r.new for r in self.rollouts.values() if r.phase is not Phase.READY]
        return "; ".join(f"{pool.definition.key.class_name}: {pool.waiting_for(now)}" for pool in waiting)

    @property
    def reason(self) -> str:
        """Why it failed."""
        return next((r.reason for r in self.rollouts.values() if r.reason), "")


@dataclass(frozen=True)
class Progress:
    """How an update stands, as whoever deploys is told. `reason` says why it was rolled back, or what it waits for."""

    version: int
    phase: Phase
    reason: str = ""
