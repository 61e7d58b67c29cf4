"""An actor's handle that travels as bytes, and is made where somebody asks for it.

To make one, Ray fetches the actor's class and imports what that needs, and has itself told of the actor from then on:
too much for a process that may never call it.
"""

from __future__ import annotations

import pickle
from typing import Any


class ActorReference:
    """A handle, or what makes one. Ray does not count it as a use of the actor."""

    __slots__ = ("_actor", "_packed")

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._packed = b""

    def get(self) -> Any:
        """The handle."""
        if self._actor is None and self._packed:
            self._actor = pickle.loads(self._packed)
        return self._actor

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._packed:
            self._packed = pickle.dumps(self._actor, protocol=5)
        return _unpacked, (self._packed,)


def _unpacked(packed: bytes) -> ActorReference:
    reference = ActorReference(None)
    reference._packed = packed
    return reference
