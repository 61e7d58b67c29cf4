"""What a worker that wants weights asks of its controller, and what it is told."""

from __future__ import annotations

from typing import Any, NamedTuple

from gworker.router.membership import PoolKey


class WeightsName(NamedTuple):
    """Names weights in an app. `pool` is None where the user's `version` vouches that they are the same for all."""

    key: str
    version: str | None
    pool: PoolKey | None

    def __str__(self) -> str:
        return self.key if self.version is None else f"{self.key} {self.version}"


class Claim(NamedTuple):
    """A worker asks for weights on its node. `attempt` tells apart the threads of a worker that ask for the same."""

    worker: str
    attempt: int
    node: str
    name: WeightsName


class Shared(NamedTuple):
    """The weights are here: `reference` leads to them. Numbered, so that a worker can say which ones are lost."""

    number: int
    reference: Any


class Load(NamedTuple):
    """Nobody has them: load them, and then offer them, or release the claim."""


class Wait(NamedTuple):
    """Somebody loads them: ask again."""


class Private(NamedTuple):
    """They are not shared: load a copy of your own."""


Answer = Shared | Load | Wait | Private
