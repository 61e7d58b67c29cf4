"""The classes that a deployed app serves, and the way from one version of them to the next.

The decisions are those of `rollout.py`. This carries them out on the board: which pool routers find behind each key.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace

from gworker import clock
from gworker.control.board import WATCH_S, Board
from gworker.control.checkpoint import RolloutRecord, UpdateRecord
from gworker.control.pool import Pool
from gworker.control.rollout import Phase, Progress, Rollout, Update
from gworker.control.room import Room
from gworker.router.membership import DeployedClass, PoolDefinition, PoolKey

_ANOTHER = "another version was deployed meanwhile"


class Updates:
    """The versions of one app. `serving` are the classes of the one that serves.

    `have_pool` gives the pool of a definition, made if need be; `committed` is told the classes that serve from then
    on; `note` puts an event down; `wake` has somebody look at the pools soon.
    """

    def __init__(
        self,
        board: Board,
        room: Room,
        *,
        have_pool: Callable[[PoolDefinition], Pool],
        committed: Callable[[Mapping[str, DeployedClass]], None],
        note: Callable[[str, str, str, str], None],
        wake: Callable[[], None],
    ) -> None:
        self.serving: dict[str, DeployedClass] = {}
        self.version = 0
        self.progress = Progress(0, Phase.READY)
        self._update: Update | None = None
        self._progressed = asyncio.Event()
        self._board = board
        self._room = room
        self._have_pool = have_pool
        self._committed = committed
        self._note = note
        self._wake = wake

    # --- what there is --------------------------------------------------------------------------------------------

    @property
    def under_way(self) -> bool:
        """Whether one version is being replaced by another."""
        return self._update is not None

    @property
    def coming(self) -> Mapping[str, DeployedClass]:
        """The classes of the version that is on its way."""
        return {} if self._update is None else self._update.classes

    def current(self, definition: PoolDefinition) -> PoolDefinition:
        """What a pool that a caller has defined is in the version that serves, or in the first one that will."""
        name = definition.key.class_name
        version = self.serving.get(name) or self.coming.get(name)  # where nothing serves yet, calls wait for what comes
        return definition if version is None else version.in_place_of(definition)

    def replacing(self, pool: Pool) -> int:
        """How many workers a pool has to get so that those of the version before, which make room for it, can go."""
        for rollout in [] if self._update is None else self._update.rollouts.values():
            if rollout.new is pool and rollout.phase is Phase.SWAPPING:
                return pool.pinned or 0
        return 0

    async def progress_of(self, version: int) -> Progress:
        """How the update to a version stands, once it is over or after a while."""
        end = clock.now() + WATCH_S
        while self._is_on_its_way(version) and (left_s := end - clock.now()) > 0:
            self._progressed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._progressed.wait(), left_s)
        if self.progress.version > version:
            return Progress(version, Phase.FAILED, _ANOTHER)
        if self.progress.version < version:
            return Progress(version, Phase.FAILED, "the controller died before it could begin: deploy again")
        if self.progress.phase is Phase.READY:
            # Whoever has deployed is to meet the new version, at the next call.
            await asyncio.gather(*(route.seen_by_all() for _, route in self._board.routes()))
        elif self._update is not None:
            return replace(self.progress, reason=self._update.waiting_for(clock.now()))
        return self.progress

    def _is_on_its_way(self, version: int) -> bool:
        return self.progress.version == version and self.progress.phase not in (Phase.READY, Phase.FAILED)

    # --- from its beginning to its end ----------------------------------------------------------------------------

    def begin(self, classes: Mapping[str, DeployedClass]) -> None:
        """Start to replace every pool by one of a new version. An update on its way is rolled back first."""
        if self._update is not None:
            self._end(Phase.FAILED, _ANOTHER)
        self.version += 1
        classes = {name: replace(deployed, generation=self.version) for name, deployed in classes.items()}
        update = self._update = Update(self.version, classes)
        self.progress = Progress(self.version, Phase.SURGING)
        for key, route in self._board.routes():
            self.include(key, route.pools[0])
        for deployed in classes.values():
            definition = deployed.default_pool
            if definition is not None and definition.key not in update.rollouts:
                new = self._have_pool(deployed.in_place_of(definition))
                update.rollouts[definition.key] = Rollout(None, new)
        self._declare(classes)
        self._note("", "", "updating", f"to version {self.version} of {', '.join(sorted(classes)) or 'no classes'}")
        self._wake()

    def include(self, key: PoolKey, old: Pool) -> None:
        """Have the update replace the pool behind a key, or let it go."""
        assert self._update is not None
        deployed = self._update.classes.get(key.class_name)
        if deployed is None:
            self._update.removed.append(old)
        else:
            self._update.rollouts[key] = Rollout(old, self._have_pool(deployed.in_place_of(old.definition)))

    def step(self, now: float) -> None:
        """Go on with the update, if there is one."""
        update = self._update
        if update is None:
            return
        phase = update.step(now, self._room.fits)
        for key, rollout in update.rollouts.items():
            if rollout.old is not None and rollout.mixed:
                self._board.show(key, rollout.old, rollout.new)
        if phase in (Phase.READY, Phase.FAILED):
            self._end(phase, update.reason)
        elif phase is not self.progress.phase:
            self.progress = Progress(update.version, phase)

    def _end(self, phase: Phase, reason: str) -> None:
        """Commit the update, or roll it back. The first version has none to go back to: it stays, and tries again."""
        update, self._update = self._update, None
        assert update is not None
        if phase is Phase.FAILED and self.serving:
            update.roll_back()
            for key, rollout in update.rollouts.items():
                if rollout.old is not None:
                    self._board.show(key, rollout.old)
            self._declare(self.serving)
            self._note("", "", "rolled back", f"version {update.version}: {reason}")
        else:
            update.commit()
            for key, rollout in update.rollouts.items():
                self._board.show(key, rollout.new)
            self.serving = dict(update.classes)
            self._committed(self.serving)
            self._note("", "", "updated" if phase is Phase.READY else "deployed", f"version {update.version} {reason}")
        self.progress = Progress(update.version, phase, reason)
        self._progressed.set()
        self._wake()

    def abandon(self, reason: str) -> None:
        """The app is stopped: nothing is replaced any more."""
        if self._update is not None:
            self.progress = Progress(self._update.version, Phase.FAILED, reason)
            self._update = None
            self._progressed.set()

    def _declare(self, classes: Mapping[str, DeployedClass]) -> None:
        self._room.declared = {name: deployed.options for name, deployed in classes.items()}

    # --- what is written down -------------------------------------------------------------------------------------

    def record(self) -> UpdateRecord | None:
        """What a successor has to know of the update on its way."""
        update = self._update
        if update is None:
            return None
        rollouts = {
            key: RolloutRecord(
                old=None if r.old is None else r.old.definition.key,
                new=r.new.definition.key,
                swapping=r.phase is Phase.SWAPPING,
                size=r.size,
            )
            for key, r in update.rollouts.items()
        }
        return UpdateRecord(update.classes, rollouts, tuple(pool.definition.key for pool in update.removed))

    def restore_serving(self, classes: Mapping[str, DeployedClass]) -> None:
        """These classes were served by the controller before this one."""
        self.serving = dict(classes)
        if classes:
            self._declare(classes)

    def restore(
        self, version: int, progress: Progress, record: UpdateRecord | None, pools: Mapping[PoolKey, Pool]
    ) -> None:
        """Go on from what another controller had written down, with the update that it had begun."""
        self.version, self.progress = version, progress
        if record is None:
            return
        update = self._update = Update(version, record.classes)
        self.progress = Progress(version, Phase.SURGING)
        for key, written in record.rollouts.items():
            old = None if written.old is None else pools[written.old]
            rollout = update.rollouts[key] = Rollout(old, pools[written.new])
            rollout.phase = Phase.SWAPPING if written.swapping else Phase.SURGING
            rollout.size = written.size
        update.removed = [pools[key] for key in record.removed]
        self._declare(record.classes)
