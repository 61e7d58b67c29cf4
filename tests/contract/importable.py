"""A module that workers can import: what it defines travels by reference, so it is the same on both sides."""

from __future__ import annotations

import dataclasses
import enum
import os

import gworker as gw

app = gw.App("contract-values-importable")

LOADED_IN = os.getpid()


class Colour(enum.Enum):
    """Compared by identity."""

    RED = 1
    BLUE = 2


class ShopError(Exception):
    """Caught by its class."""


@dataclasses.dataclass
class Item:
    """Recognised by `isinstance`."""

    name: str
    colour: Colour


@app.cls(max_workers=1, cpu=0.1)
class Shop:
    @gw.method()
    def paint(self, item: Item) -> Item:
        """The item in the other colour, if it is one of ours."""
        assert isinstance(item, Item)
        assert item.colour is Colour.RED
        return Item(item.name, Colour.BLUE)

    @gw.method()
    def refuse(self) -> None:
        raise ShopError("closed")

    @gw.method()
    def where(self) -> tuple[int, int]:
        return LOADED_IN, os.getpid()
