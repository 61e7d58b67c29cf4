"""DESIGN §3 and §4: parameters are found, checked when the handle is made, and told apart by value and type."""

from __future__ import annotations

import collections
import dataclasses
import datetime  # noqa: ICN001 - a test needs the name
import decimal
import enum
import functools
import json
import pathlib
import pickle
import subprocess
import sys
import typing
import uuid
from typing import Any, Literal, Optional

import cloudpickle
import numpy as np
import pydantic
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gworker import fingerprint as fingerprint_module
from gworker.errors import InvalidDefinition
from gworker.fingerprint import digest, fingerprint
from gworker.parameters import MISSING, Parameter, bind_parameters, collect_parameters, entering, parameter


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Limits(pydantic.BaseModel):
    low: int = 0
    high: int = 10


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Open(pydantic.BaseModel, extra="allow"):
    _secret: int = 0


def secretive(secret: int) -> Open:
    made = Open()
    made._secret = secret
    return made


class Words(list):
    """Hands its items to pickle as they come, as pickle allows."""

    def __reduce__(self):
        return Words, (), None, (word for word in self)


class Everything:
    text: str = parameter(default="a")
    whole: int = parameter(default=1)
    real: float = parameter(default=0.5)
    flag: bool = parameter(default=False)
    raw: bytes = parameter(default=b"x")
    size: Size = parameter(default=Size.SMALL)
    mode: Literal["fast", "exact"] = parameter(default="fast")
    maybe: Optional[int] = parameter(default=None)  # noqa: UP045 - the older spelling is the test
    either: int | None = parameter(default=None)
    words: list[str] = parameter(default=["a"])
    table: dict[str, int] = parameter(default={"a": 1})
    limits: Limits = parameter(default=Limits())
    anything: Any = parameter(default=None)


EVERYTHING = collect_parameters(Everything)


def values(**given_values: Any) -> dict[str, Any]:
    return dict(bind_parameters("Everything", EVERYTHING, given_values).call)


def compiled(annotation: Any, **options: Any) -> Parameter:
    made = type("Made", (), {"__annotations__": {"p": annotation}, "p": parameter(**options), "__module__": __name__})
    return collect_parameters(made)["p"]


# --- finding them ------------------------------------------------------------------------------------------------


def test_parameters_are_found_in_order_with_annotation_default_and_scope():
    assert list(EVERYTHING) == list(Everything.__annotations__)
    real = EVERYTHING["real"]
    assert (real.name, real.annotation, real.default, real.scope) == ("real", float, 0.5, "call")


def test_annotations_as_text_are_resolved():
    assert EVERYTHING["words"].annotation == list[str]
    assert EVERYTHING["size"].annotation is Size


class Base:
    threshold: float = parameter(default=0.5)
    model: str = parameter(default="m", scope="worker")


def test_a_subclass_without_parameters_of_its_own_keeps_its_bases():
    class Sub(Base):
        pass

    assert list(collect_parameters(Sub)) == ["threshold", "model"]


def test_a_subclass_adds_to_and_replaces_those_of_its_base():
    class Sub(Base):
        limit: int = parameter(default=3)
        threshold: float = parameter(default=0.9)

    found = collect_parameters(Sub)
    assert list(found) == ["threshold", "model", "limit"]
    assert found["threshold"].default == 0.9
    assert collect_parameters(Base)["threshold"].default == 0.5


def test_a_plain_attribute_in_a_subclass_ends_a_parameter():
    class Sub(Base):
        threshold = 0.9

    assert list(collect_parameters(Sub)) == ["model"]
    assert Sub().threshold == 0.9


def test_parameters_of_several_bases_come_together():
    class Mixin:
        limit: int = parameter(default=3)

    class Sub(Mixin, Base):
        pass

    assert set(collect_parameters(Sub)) == {"threshold", "model", "limit"}


def test_a_class_in_a_function_may_use_names_of_the_function():
    class Local(enum.Enum):
        A = 1

    Many = list[Local]  # noqa: N806 - a type

    class Uses:
        one: Local = parameter(default=Local.A)
        many: Many = parameter(default=[])
        nested: dict[str, Local | None] = parameter(default={})

    found = collect_parameters(Uses)
    assert found["one"].annotation is Local
    assert found["many"].annotation == list[Local]
    assert found["nested"].validate({"a": Local.A, "b": None}) == {"a": Local.A, "b": None}


def test_a_base_made_in_a_function_that_has_returned_keeps_its_types():
    def make_base():
        class Hidden(enum.Enum):
            A = 1

        class HasHidden:
            kind: Hidden = parameter(default=Hidden.A)

        return HasHidden, Hidden

    base, hidden = make_base()
    assert collect_parameters(type("Sub", (base,), {}))["kind"].annotation is hidden


def test_a_name_that_is_also_the_parameters_own_is_the_type():
    class Shadow:
        size: Size = parameter(default=Size.SMALL)
        datetime: datetime.datetime = parameter(default=datetime.datetime(2024, 1, 1))  # noqa: DTZ001

    assert collect_parameters(Shadow)["datetime"].annotation is datetime.datetime


def test_a_type_defined_in_the_class_body_is_known():
    class Outer:
        class Kind(enum.Enum):
            A = 1

        kind: Kind = parameter(default=Kind.A)

    assert collect_parameters(Outer)["kind"].annotation is Outer.Kind


def test_a_module_that_is_not_registered_anywhere_works():
    source = (
        "from __future__ import annotations\nimport enum\nfrom gworker.parameters import parameter\n"
        "class K(enum.Enum):\n    A = 1\nclass C:\n    kind: K = parameter(default=K.A)\n"
    )
    names: dict[str, Any] = {"__name__": "a_snippet"}
    exec(source, names)
    assert collect_parameters(names["C"])["kind"].annotation is names["K"]


def test_reading_a_parameter_on_the_class_gives_the_parameter():
    assert isinstance(Everything.real, Parameter)
    assert repr(Everything.real) == 'gw.parameter(default=0.5, scope="call")'
    assert repr(parameter(scope="worker")) == 'gw.parameter(scope="worker")'


# --- mistakes in the definition ----------------------------------------------------------------------------------


def test_an_unannotated_parameter_is_refused_with_the_line_to_write():
    class Bad:
        threshold = parameter(default=0.5)

    with pytest.raises(
        InvalidDefinition, match=r"Bad\.threshold.*no annotation.*write threshold: float = gw\.parameter\("
    ):
        collect_parameters(Bad)


def test_an_annotation_in_a_base_does_not_count_for_a_parameter_in_a_subclass():
    class Annotated:
        threshold: float

    class Bad(Annotated):
        threshold = parameter(default=0.5)

    with pytest.raises(InvalidDefinition, match=r"Bad\.threshold.*no annotation"):
        collect_parameters(Bad)


@pytest.mark.parametrize(
    ("annotation", "default"),
    [
        (float, "0.5"),
        (float, True),
        (int, 1.0),
        (int, True),
        (str, None),
        (str, 3),
        (bool, 1),
        (list[str], ("a",)),
        (list[int], ["1"]),
        (Size, "small"),
        (Literal["a", "b"], "c"),
        (pathlib.Path, "/models"),
        (Limits, {"low": "1"}),
        (np.ndarray, [1.0]),
    ],
)
def test_a_default_of_the_wrong_type_is_refused(annotation, default):
    with pytest.raises(
        InvalidDefinition, match=r"Made\.p: the default .* is not of the annotated type .*Write a default"
    ):
        compiled(annotation, default=default)


@pytest.mark.parametrize(
    ("annotation", "default"),
    [(float, 1), (int | None, None), (list[str], []), (Size, Size.LARGE), (Limits, Limits(low=3)), (Any, object)],
)
def test_a_default_of_the_right_type_is_kept(annotation, default):
    param = compiled(annotation, default=default)
    assert param.default == default


def test_a_default_goes_through_validators_once_however_often_the_class_is_compiled():
    doubled = typing.Annotated[float, pydantic.AfterValidator(lambda x: 2 * x)]

    class Doubles:
        p: doubled = parameter(default=1.0)

    for _ in range(3):
        assert collect_parameters(Doubles)["p"].default == 2.0
    assert collect_parameters(pickle.loads(cloudpickle.dumps(Doubles)))["p"].default == 2.0


def test_an_annotation_that_cannot_be_resolved_is_refused():
    class Bad:
        p: Unknown = parameter(default=1)  # noqa: F821

    with pytest.raises(InvalidDefinition, match=r"Bad\.p: the annotation 'Unknown' cannot be resolved .*TYPE_CHECKING"):
        collect_parameters(Bad)


@pytest.mark.parametrize("annotation", [0.5, typing.ClassVar[int], "list[Unknown]"])
@pytest.mark.parametrize("options", [{"default": 1}, {}])
def test_an_annotation_that_means_nothing_is_refused(annotation, options):
    with pytest.raises(InvalidDefinition, match=r"Made\.p: .*annotat"):
        compiled(annotation, **options)


def test_one_parameter_under_two_names_is_refused():
    class Bad:
        a: int
        b: int
        a = b = parameter(default=1)

    with pytest.raises(InvalidDefinition, match=r"Bad: one gw\.parameter\(\) is used for both a and b"):
        collect_parameters(Bad)


@pytest.mark.parametrize("scope", ["calls", "pool", None, True])
def test_a_wrong_scope_is_refused(scope):
    with pytest.raises(InvalidDefinition, match=r'scope=.* was given; write scope="call" or scope="worker"'):
        parameter(scope=scope)


def test_a_positional_default_is_refused():
    with pytest.raises(InvalidDefinition, match=r"write gw\.parameter\(default=0\.5\)"):
        parameter(0.5)


# --- values ------------------------------------------------------------------------------------------------------


def test_defaults_are_applied():
    assert values()["real"] == 0.5
    assert values(real=0.7)["real"] == 0.7
    assert values(real=0.7)["text"] == "a"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("real", 1, 1.0),
        ("size", "large", Size.LARGE),
        ("size", Size.LARGE, Size.LARGE),
        ("mode", "exact", "exact"),
        ("maybe", 3, 3),
        ("either", None, None),
        ("raw", b"y", b"y"),
        ("words", ["x", "y"], ["x", "y"]),
        ("table", {"k": 2}, {"k": 2}),
        ("limits", {"high": 3}, Limits(high=3)),
        ("limits", Limits(low=1), Limits(low=1)),
    ],
)
def test_values_are_validated_as_pydantic_does(name, value, expected):
    result = values(**{name: value})[name]
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("real", "high", "float"),
        ("whole", 1.5, "int"),
        ("flag", "maybe", "bool"),
        ("size", "huge", "Size"),
        ("mode", "slow", "Literal"),
        ("maybe", "x", "Optional"),
        ("words", "abc", "list"),
        ("words", [1], "0: "),
        ("table", {"a": "x"}, "a: "),
        ("limits", {"low": "x"}, "low: "),
    ],
)
def test_a_bad_value_is_refused_naming_class_parameter_value_and_type(name, value, expected):
    with pytest.raises(InvalidDefinition) as info:
        values(**{name: value})
    message = str(info.value)
    assert f"Everything({name}={value!r}" in message
    assert expected in message
    assert f"Write for example Everything({name}=" in message
    assert ": : " not in message
    assert isinstance(info.value, TypeError)
    assert isinstance(info.value, ValueError)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InvalidDefinition, match=r"Everything has no parameter 'reel'\. Did you mean 'real'\?"):
        values(reel=0.5)
    with pytest.raises(InvalidDefinition, match=r"no parameter 'zzz'\. Known: anything, either, "):
        values(zzz=0.5)


def test_a_class_without_parameters_says_how_to_make_one():
    with pytest.raises(InvalidDefinition, match=r"Plain has no parameter 'x'.*x: <type> = gw\.parameter\(default="):
        bind_parameters("Plain", {}, {"x": 1})


@pytest.mark.parametrize("options", [{}, {"default": ...}])
def test_a_required_parameter_must_be_given(options):
    params = {"p": compiled(int, **options)}
    assert params["p"].default is MISSING
    with pytest.raises(
        InvalidDefinition, match=r"Made\(\): the parameter 'p' has no default and must be given: write Made\(p="
    ):
        bind_parameters("Made", params, {})
    assert bind_parameters("Made", params, {"p": 3}).call == {"p": 3}


def test_a_required_parameter_outside_a_call_has_no_value_and_says_so():
    class Required:
        p: int = parameter()

    collect_parameters(Required)
    with pytest.raises(AttributeError, match=r"Required\.p has no value outside a call and no default"):
        getattr(Required(), "p")  # noqa: B009


def test_messages_about_a_required_parameter_show_dots_for_the_value():
    class Required:
        p: int = parameter()
        w: int = parameter(scope="worker")

    params = collect_parameters(Required)
    with pytest.raises(InvalidDefinition, match=r"Write for example Required\(p=\.\.\.\)"):
        bind_parameters("Required", params, {"p": "x", "w": 1})
    with entering(), pytest.raises(InvalidDefinition, match=r'write p: int = gw\.parameter\(scope="worker"\);'):
        getattr(Required(), "p")  # noqa: B009
    with pytest.raises(AttributeError, match=r"Required\.w has no value here and no default"):
        getattr(Required(), "w")  # noqa: B009

    class Bad:
        p = parameter()

    with pytest.raises(InvalidDefinition, match=r'write p: float = gw\.parameter\(scope="call"\)'):
        collect_parameters(Bad)


def test_a_default_that_cannot_be_changed_is_read_as_it_is():
    given_default = Limits(low=3)

    class Reads:
        limits: Limits = parameter(default=given_default)

    collect_parameters(Reads)
    assert Reads().limits is given_default


def test_the_annotation_is_understood_once_and_not_again_for_each_value(monkeypatch):
    param = compiled(int)
    monkeypatch.setattr(pydantic, "TypeAdapter", None)
    assert param.validate(3) == 3


def test_a_class_whose_module_is_gone_works_as_long_as_its_annotations_are_no_texts():
    body = {"__annotations__": {"p": int}, "p": parameter(default=1), "__module__": "gone"}
    assert collect_parameters(type("Gone", (), body))["p"].annotation is int


def test_a_class_pydantic_does_not_know_is_checked_by_isinstance():
    param = compiled(np.ndarray)
    array = np.zeros(2)
    assert param.validate(array) is array
    with pytest.raises(InvalidDefinition, match="ndarray"):
        param.validate([0.0])


def test_a_value_that_cannot_travel_is_refused():
    params = {"p": compiled(Any)}
    with pytest.raises(InvalidDefinition, match=r"Made\(p=<_io\..*cannot be sent to a worker"), open(__file__) as file:
        bind_parameters("Made", params, {"p": file})


def test_given_mutable_values_are_copied_so_that_later_changes_do_not_matter():
    words = ["a"]
    bound = bind_parameters("Everything", EVERYTHING, {"words": words})
    words.append("b")
    assert bound.call["words"] == ["a"]


def test_scopes_are_kept_apart():
    bound = bind_parameters("Base", collect_parameters(Base), {"model": "large"})
    assert (bound.call, bound.worker) == ({"threshold": 0.5}, {"model": "large"})


# --- keys --------------------------------------------------------------------------------------------------------


def keys(**given_values: Any):
    return bind_parameters("Base", collect_parameters(Base), given_values)


def test_equal_values_have_equal_keys_whatever_was_left_out():
    assert keys() == keys(threshold=0.5, model="m")
    assert hash(keys()) == hash(keys(threshold=0.5))
    assert keys() != keys(threshold=0.6)
    assert keys() != keys(model="l")
    assert keys() != 3


def test_call_key_and_worker_key_follow_their_own_scope():
    assert keys(threshold=0.1).worker_key == keys(threshold=0.2).worker_key
    assert keys(threshold=0.1).call_key != keys(threshold=0.2).call_key
    assert keys(model="a").call_key == keys(model="b").call_key
    assert keys(model="a").worker_key != keys(model="b").worker_key


def test_worker_key_is_a_short_word_and_empty_without_worker_scoped_parameters():
    assert keys(model="x" * 10_000).worker_key.isalnum()
    assert len(keys(model="x" * 10_000).worker_key) <= 32
    assert bind_parameters("Plain", {}, {}).worker_key == ""


def test_values_survive_pickling_with_their_keys():
    bound = keys(threshold=0.1)
    again = pickle.loads(pickle.dumps(bound))
    assert again == bound
    assert again.call == bound.call
    assert hash(again) == hash(bound)


@pytest.mark.parametrize(
    "different",
    [
        [1, True, 1.0, "1", b"1", decimal.Decimal(1)],
        [0, False, 0.0, -0.0, "", None, [], (), {}, set(), frozenset()],
        [[1, 2], [2, 1], (1, 2), [[1], 2], [1, [2]], ["1, 2"], [12]],
        [{"a": 1}, {"a": True}, {"a": 1.0}, {"b": 1}, [("a", 1)]],
        [Size.SMALL, Size.LARGE, "small", "SMALL"],
        [Limits(low=1), Limits(low=2), {"low": 1, "high": 10}],
        [Point(1), Point(2), {"x": 1, "y": 0}],
        [Open(a=1), Open(a=2), Open(b=1), Open(), secretive(1), secretive(2)],
        [Words("a"), Words("b"), Words("aa"), ["a"]],
        [..., NotImplemented, MISSING],
        [collections.Counter("a"), collections.Counter("aa"), {"a": 1}, collections.deque("a"), collections.deque("b")],
        [np.zeros(2), np.zeros(3), np.zeros(2, dtype="f4"), np.ones(2)],
        [len, max, int, str],
        [lambda: 1, lambda: 2],
        [functools.partial(int, 1), functools.partial(int, 2)],
        [datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)],
        ["a,str:'b'", ["a", "b"]],
    ],
)
def test_values_that_differ_in_type_or_content_have_different_fingerprints(different):
    prints = [fingerprint(value) for value in different]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({3, 1, 2}, {2, 3, 1}),
        (Limits(), Limits(low=0)),
        (Point(1), Point(1, 0)),
        (np.arange(3), np.array([0, 1, 2])),
        (uuid.UUID(int=5), uuid.UUID(int=5)),
        (pathlib.PurePosixPath("/a/b"), pathlib.PurePosixPath("/a") / "b"),
        (["ab", "ab"], ["ab", str(b"ab", "ascii")]),
        (float("nan"), float("nan")),
    ],
)
def test_equal_values_have_equal_fingerprints_however_they_were_made(a, b):
    assert fingerprint(a) == fingerprint(b)


def test_functions_and_classes_that_can_be_imported_go_by_name():
    assert fingerprint(json.dumps) == "json.dumps"
    assert fingerprint(collections.OrderedDict) == "collections.OrderedDict"
    assert fingerprint(len) == "builtins.len"
    assert "#" in fingerprint(lambda: 1)


def test_a_value_that_holds_itself_has_a_fingerprint():
    loop: list[Any] = [1]
    loop.append(loop)
    assert fingerprint(loop) == fingerprint(pickle.loads(pickle.dumps(loop)))


texts = st.text("ab:,()\\'=ü\ud800", max_size=5)  # few letters: building the table of all of them takes a second
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


@given(plain)
def test_a_fingerprint_survives_the_way_through_pickle(value):
    assert fingerprint(pickle.loads(pickle.dumps(value))) == fingerprint(value)


@given(plain, plain)
def test_fingerprints_are_equal_only_for_equal_values(a, b):
    assume(a != b)
    assert fingerprint(a) != fingerprint(b)


@given(texts, st.integers(), st.floats(allow_nan=False), st.booleans(), st.lists(texts), st.none() | st.integers())
def test_valid_values_arrive_as_they_were_given(text, whole, real, flag, words, maybe):
    given_values = {"text": text, "whole": whole, "real": real, "flag": flag, "words": words, "maybe": maybe}
    result = values(**given_values)
    for name, value in given_values.items():
        assert result[name] == value
        assert type(result[name]) is type(value)


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(sorted(EVERYTHING)), plain, max_size=5))
def test_whatever_is_given_either_binds_or_is_an_invalid_definition(given_values):
    try:
        bound = bind_parameters("Everything", EVERYTHING, given_values)
    except InvalidDefinition as error:
        assert any(f"{name}=" in str(error) for name in given_values)  # noqa: PT017 - one of two outcomes
    else:
        assert bind_parameters("Everything", EVERYTHING, dict(bound.call)) == bound
        assert pickle.loads(pickle.dumps(bound)) == bound


def test_keys_are_the_same_in_every_process():
    source = (
        f"from runpy import run_path; digest = run_path({fingerprint_module.__file__!r})['digest']; print(digest({{}}))"
    )
    value = "{'a': {'x', 'y', 'z', 'w'}, 'b': frozenset(range(9)), 'c': b'1', 'd': len}"
    program = [sys.executable, "-c", source.format(value)]
    outputs = {
        subprocess.run(program, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2")
    }
    assert outputs == {digest(eval(value)) + "\n"}


# --- travelling --------------------------------------------------------------------------------------------------


def test_a_class_with_parameters_travels_by_value_and_still_checks():
    class Here:
        kind: Size = parameter(default=Size.SMALL)
        words: list[str] = parameter(default=[])

    params = collect_parameters(Here)
    params["words"].validate(["x"])
    again = pickle.loads(cloudpickle.dumps(Here))
    found = collect_parameters(again)
    assert found["kind"].annotation is Size
    assert found["words"].validate(["x"]) == ["x"]
    assert again().words == []


def test_missing_is_one_object_in_every_process():
    assert pickle.loads(pickle.dumps(MISSING)) is MISSING
    assert pickle.loads(pickle.dumps(compiled(int))).default is MISSING
