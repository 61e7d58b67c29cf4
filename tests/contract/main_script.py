"""A program whose classes live in `__main__`; run by test_values.py on the Ray of the tests."""

from __future__ import annotations

import dataclasses
import enum
import sys
import typing

import ray

import gworker as gw

app = gw.App("contract-values-main")


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class ShopError(Exception):
    pass


@dataclasses.dataclass
class Item:
    name: str
    colour: Colour


class Label(typing.NamedTuple):
    text: str


def shout(text: str) -> str:
    return text.upper()


@app.cls(max_workers=1, cpu=0.1)
class Shop:
    limit: Colour = gw.parameter(default=Colour.RED)

    @gw.method()
    def paint(self, item: Item) -> Item:
        assert isinstance(item, Item)
        assert item.colour is Colour.RED
        assert self.limit is Colour.BLUE
        return Item(shout(item.name), Colour.BLUE)

    @gw.method()
    def refuse(self) -> None:
        raise ShopError("closed")

    @gw.method()
    def raise_given(self, error: Exception) -> str:
        try:
            raise error
        except ShopError:
            return "recognised"

    @gw.method()
    def labels(self) -> list[Label]:
        return [Label("a")]

    @gw.method()
    def through_another(self) -> str:
        return Other().greet.remote("you")


@app.cls(max_workers=1, cpu=0.1)
class Other:
    @gw.method()
    def greet(self, name: str) -> str:
        return f"hello {name}"


def main() -> None:
    """Fails, with a traceback, if a class is not the same on both sides."""
    shop = Shop(limit=Colour.BLUE)
    painted = shop.paint.remote(Item("cup", Colour.RED))
    assert isinstance(painted, Item)
    assert painted == Item("CUP", Colour.BLUE)
    assert painted.colour is Colour.BLUE
    refused = False
    try:
        shop.refuse.remote()
    except ShopError:
        refused = True
    assert refused
    assert shop.raise_given.remote(ShopError()) == "recognised"
    assert isinstance(shop.labels.remote()[0], Label)
    assert shop.through_another.remote() == "hello you"


if __name__ == "__main__":
    ray.init(address=sys.argv[1], logging_level="WARNING")
    main()
    print("all is well")
