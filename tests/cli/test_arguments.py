"""Options made from signatures: what they are called, what they read, what they say."""

from __future__ import annotations

import datetime as dt
import enum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import pytest
import typer

import gworker as gw
from gworker.cli.arguments import Argument, arguments_of
from gworker.cli.exits import Code, Failed
from gworker.cli.options import Given, parse


class Colour(enum.Enum):
    RED = "red"
    ONE = "1"


class Order(pydantic.BaseModel):
    what: str
    amount: int = 1


class Opaque:
    pass


app = gw.App("cli-arguments")


@app.cls()
class Shop:
    threshold: float = gw.parameter(default=0.5)
    size: str = gw.parameter(default="m")
    strict: bool = gw.parameter(default=False, scope="worker")

    @gw.method()
    def sell(self, order: Order, max_price: float = 2.5, colour: Colour | None = None, *, gift: bool = False): ...

    @gw.method()
    def many(
        self,
        text: str,
        whole: int,
        flag: bool,
        items: list[str],
        pairs: dict[str, int],
        when: dt.date,
        raw: bytes,
        array: np.ndarray,
        choice: Literal["a", "b"],
        either: int | list[int],
        maybe: str | None,
        anything,
        opaque: Opaque,
        path: Path,
    ): ...

    @gw.method()
    @gw.batched(max_batch_size=4)
    def batch(self, text: list[str], scale: list[float] = 1.0): ...  # type: ignore[assignment]

    @gw.method()
    def clash(self, threshold: int, json: str): ...

    @gw.method()
    def spread(self, first: int, *rest: int, **more: float): ...


def arguments(method: str) -> dict[str, Argument]:
    return {f"{a.kind}.{a.name}": a for a in arguments_of(Shop, Shop.spec.methods[method])}


def read(name: str, text: str) -> Any:
    return arguments("many")[f"argument.{name}"].read(text)


def given(method: str, *rest: str, **before: Any) -> Given:
    spec = Shop.spec.methods[method]
    return parse(arguments_of(Shop, spec), rest, prog="gworker run x", about="", method=spec, before=before)


def problem(method: str, *rest: str) -> str:
    with pytest.raises(Failed) as caught:
        given(method, *rest)
    assert caught.value.code is Code.USAGE
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("text", "5", "5"),
        ("text", '"quoted"', '"quoted"'),
        ("text", "@file", "@file"),
        ("whole", "5", 5),
        ("items", '["a", "b"]', ["a", "b"]),
        ("pairs", '{"a": 1}', {"a": 1}),
        ("when", "2026-01-31", dt.date(2026, 1, 31)),
        ("raw", '{"base64": "aGk="}', b"hi"),
        ("choice", "b", "b"),
        ("either", "3", 3),
        ("either", "[3]", [3]),
        ("maybe", "null", "null"),
        ("anything", "3", 3),
        ("anything", "word", "word"),
        ("opaque", '{"x": 1}', {"x": 1}),
        ("path", "/tmp/x", Path("/tmp/x")),
    ],
)
def test_a_value_is_read_as_its_annotation_says(name: str, text: str, expected: Any) -> None:
    value = read(name, text)
    assert value == expected and type(value) is type(expected)


def test_arrays_are_json_and_files_are_read_with_an_at_sign(tmp_path: Path) -> None:
    assert read("array", "[[1, 2], [3, 4]]").tolist() == [[1, 2], [3, 4]]
    (tmp_path / "raw").write_bytes(b"\x00\xff")
    assert read("raw", f"@{tmp_path}/raw") == b"\x00\xff"
    (tmp_path / "items.json").write_text('["a"]\n')
    assert read("items", f"@{tmp_path}/items.json") == ["a"]
    with pytest.raises(Failed, match="No such file"):
        read("items", "@no/such/file")


def test_enums_are_read_by_their_values() -> None:
    colour = arguments("sell")["argument.colour"]
    assert colour.read("red") is Colour.RED
    assert colour.read("1") is Colour.ONE


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("whole", "five", "--whole five: expected int"),
        ("items", "hello", """Write for example --items '["hello"]'"""),
        ("choice", "c", "'a' or 'b'"),
        ("pairs", "[1]", "expected dict[str, int]"),
    ],
)
def test_a_value_that_does_not_fit_is_told_what_to_write(name: str, text: str, words: str) -> None:
    with pytest.raises(Failed) as caught:
        read(name, text)
    assert words in str(caught.value)


def test_options_are_spelled_with_dashes_and_values_go_where_they_belong() -> None:
    found = given("sell", "--order", '{"what": "tea"}', "--max-price", "3", "--gift", "--threshold", "0.7", "--strict")
    assert found.values == {"order": Order(what="tea"), "max_price": 3.0, "gift": True}
    assert found.parameters == {"threshold": 0.7, "strict": True}
    assert given("sell", "--order", '{"what": "t"}', "--max_price", "4", "--no-strict").values["max_price"] == 4.0
    assert given("sell", "--order", '{"what": "t"}', "--no-strict").parameters == {"strict": False}


def test_words_without_a_name_go_to_the_arguments_in_order() -> None:
    assert given("sell", '{"what": "tea"}', "3.5", "red").values == {
        "order": Order(what="tea"),
        "max_price": 3.5,
        "colour": Colour.RED,
    }
    assert given("sell", "--order", '{"what": "tea"}', "3.5").values["max_price"] == 3.5
    assert "unexpected argument 'more'" in problem("sell", '{"what": "tea"}', "3.5", "red", "more")


def test_a_batched_method_takes_one_input() -> None:
    assert given("batch", "--text", "hello").values == {"text": "hello"}
    assert given("batch", "--text", "hello", "--scale", "2").values == {"text": "hello", "scale": 2.0}


def test_a_parameter_that_is_called_like_an_argument_has_its_class_before_it() -> None:
    found = given("clash", "--threshold", "1", "--Shop.threshold", "0.25", "--json", "text")
    assert found.values == {"threshold": 1, "json": "text"}
    assert found.parameters == {"threshold": 0.25}
    assert not found.as_json  # the method's own --json has precedence
    assert given("clash", "--threshold", "1", "--json", "text", as_json=True).as_json


def test_further_values_are_json() -> None:
    found = given("spread", "--first", "1", "--rest", "[2, 3]", "--more", '{"x": 1.5}')
    assert found.values == {"first": 1, "rest": [2, 3], "more": {"x": 1.5}}
    assert "expected JSON list" in problem("spread", "--first", "1", "--rest", "2")


def test_what_is_missing_is_listed_and_inputs_from_standard_input_are_not_missing() -> None:
    said = problem("sell")
    assert "needs a value for:\n  --order Order" in said and "--help" in said
    assert given("sell", "-").stdin and given("sell", "--stdin").stdin and given("sell", stdin=True).stdin


def test_the_help_of_a_target_shows_its_options_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        given("sell", "--help")
    assert ended.value.exit_code == 0
    shown = capsys.readouterr().out
    for words in (
        "sell(order",
        "--order",
        "required",
        "--max-price",
        "default 2.5",
        "--gift",
        "--no-gift",
        "--threshold",
    ):
        assert words in shown
    with pytest.raises(typer.Exit) as ended:
        given("sell", "--ordr", "x")
    assert ended.value.exit_code == Code.USAGE
    assert "--order" in capsys.readouterr().err
