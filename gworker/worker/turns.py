"""In which order the inputs of several callers start: each caller's in the order they came, and callers in turn. Pure.

Start-time fair queueing with equal weights: an input gets the number of the turn in which it would start if every
caller that has inputs here started one in each turn. A caller that comes anew begins with the turn that is on.
"""

from __future__ import annotations

# The last turns of callers that have nothing here are swept out once there are so many callers.
_SWEEP = 64


class Turns:
    """Gives out turns to the inputs of one worker."""

    def __init__(self) -> None:
        self._now = 0
        self._last: dict[str, int] = {}

    def next(self, caller: str) -> int:
        """The turn of one more input of `caller`."""
        turn = self._last[caller] = max(self._last.get(caller, 0), self._now) + 1
        return turn

    def begin(self, turn: int) -> None:
        """An input with this turn starts."""
        self._now = max(self._now, turn)
        if len(self._last) > _SWEEP:
            self._last = {caller: last for caller, last in self._last.items() if last > self._now}

    def give_back(self, caller: str, turn: int) -> None:
        """An input will not start; if it was the caller's last one, the next takes its turn."""
        if self._last.get(caller) == turn:
            self._last[caller] = turn - 1
