"""Which worker gets the next call. Pure: it asks links for their load and their room, and is told when either changes.

The least loaded worker that has room for us; of several that are equal the one that was used longest ago. Which one is
the first is left to chance, so that the calls of many routers spread. A choice among n workers costs O(log n): one that
was found full is looked at again when it has said something (`heard`). While calls wait, some of the full are asked to
say when they have room (`ask`), and more and more of them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from gworker.least import Least

# A call that was refused so often is not tried elsewhere at random any more: it goes where there is room for certain.
MOST_TRIES = 2
# So many workers are asked for room at once, and as many more for each call that waits ...
ASK_FIRST = 4
ASK_PER_CALL = 2
# ... and twice as many each time when calls have waited for so long in vain.
ASK_MORE_S = 0.003


class Candidate(Protocol):
    """A worker as one router uses it."""

    @property
    def load(self) -> float:
        """How full this router has made it, 0.0 for not at all."""
        ...

    def has_room(self) -> bool:
        """Whether it would take a call now, as far as we know: where we have none there, that may be out of date."""
        ...


C = TypeVar("C", bound=Candidate)


class Choice(Generic[C]):
    """The workers that may be chosen. Each is open, full as far as we know, or asked to say when it has room."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        turns = itertools.count(1)
        self._open: Least[C] = Least(lambda link: link.load, lambda link: next(turns))
        # Of the open ones, those that had no room, or were asked, and have said since that they have some.
        self._offers: dict[C, None] = {}
        self._full: dict[C, None] = {}
        self._asked: dict[C, bool] = {}  # and whether it had been found full before
        self._told: dict[C, None] = {}  # those that believe that we want room, whether or not they have said anything
        self._most = 0

    def __len__(self) -> int:
        return len(self._open) + len(self._full) + len(self._asked)

    def __contains__(self, link: C) -> bool:
        return link in self._open or link in self._full or link in self._asked

    def add(self, link: C) -> None:
        """It may be chosen from now on."""
        if link not in self:
            self._open.put(link, self._chance())

    def remove(self, link: C) -> bool:
        """It may not be chosen any more. True where it is to be told that we want no room there."""
        self._open.drop(link)
        self._offers.pop(link, None)
        self._full.pop(link, None)
        self._asked.pop(link, None)
        told = link in self._told
        self._told.pop(link, None)
        return told

    def heard(self, link: C) -> None:
        """It has said something, or a call of ours there has ended: it may have room, or less load than before."""
        if link in self._open:
            self._open.put(link)
        elif link in self._asked or link in self._full:
            self._asked.pop(link, None)
            self._full.pop(link, None)
            self._offers[link] = None
            self._open.put(link)

    def pick(self, *, avoid: C | None = None, tries: int = 0) -> C | None:
        """The one to send a call to that was refused so often before; None where none has room.

        The one to `avoid` is taken only where no other is.
        """
        if tries >= MOST_TRIES:
            return self._pick_certain(avoid)
        while (link := self._open.first()) is not None:
            if not link.has_room():
                self._found_full(link)
            elif link is avoid:
                self._open.drop(link)
                other = self.pick()
                self._open.put(link)
                return link if other is None else other
            else:
                return link
        return None

    def _pick_certain(self, avoid: C | None) -> C | None:
        """One that has told us of room, or where we have calls: of that, what we know is up to date."""
        second: C | None = None
        for link in list(self._offers):
            if not link.has_room():
                self._found_full(link)
            elif link is not avoid:
                return link
            else:
                second = link
        while second is None and (first := self._open.first()) is not None and first.load > 0:
            if first.has_room():
                return first
            self._found_full(first)
        return second

    def _found_full(self, link: C) -> None:
        self._open.drop(link)
        self._offers.pop(link, None)
        self._full[link] = None

    # --- asking for room --------------------------------------------------------------------------------------------

    def ask(self, waiting: int) -> list[C]:
        """Calls wait, so many, and `pick` finds no worker: those that are to be asked for room now.

        They are not chosen before they have said something.
        """
        self._most = max(self._most, ASK_FIRST + ASK_PER_CALL * waiting)
        new: list[C] = []
        while len(self._asked) < self._most:
            was_full = bool(self._full)
            link = next(iter(self._full)) if was_full else self._open.first()
            if link is None or (not was_full and link.load > 0):
                break
            self._full.pop(link, None)
            self._offers.pop(link, None)
            self._open.drop(link)
            self._asked[link] = was_full
            self._told[link] = None
            new.append(link)
        return new

    def ask_more(self) -> None:
        """Calls have waited in vain for `ASK_MORE_S`: from now on twice as many are asked."""
        self._most *= 2

    @property
    def asks(self) -> bool:
        """Whether anyone has been asked for room, and not been told that we want none."""
        return self._most > 0

    @property
    def all_asked(self) -> bool:
        """Whether nobody is left to be asked."""
        return not self._full and not self._open

    def ask_no_more(self) -> list[C]:
        """No call waits: those that are to be told. Found full, they stay so until they have said something."""
        told = list(self._told)
        for link, was_full in self._asked.items():
            if was_full:
                self._full[link] = None
            else:
                self._open.put(link)
        self._asked.clear()
        self._offers.clear()
        self._told.clear()
        self._most = 0
        return told
