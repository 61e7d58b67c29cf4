"""What a class compiles into: methods, hooks in order, sizes, options, and the binding of arguments."""

from __future__ import annotations

import functools
import inspect
import pickle
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gworker.decorators import batched, concurrent, method, on_enter, on_exit
from gworker.options import OPTION_NAMES, Gpu, Options
from gworker.parameters import parameter
from gworker.probe import Probe
from gworker.retries import Retries
from gworker.spec import ClassSpec, HookSpec, MethodSpec, compile_class


def compiled(cls: type, **options: Any) -> ClassSpec:
    return compile_class(cls, options)


class Plain:
    @method()
    def run(self, x: int, *, y: int = 2) -> int:
        return x + y


# --- decorators leave code alone ---------------------------------------------------------------------------------


def test_decorators_return_the_very_function_and_class():
    def f(self, xs):
        return xs

    assert method()(batched(max_batch_size=2)(f)) is f
    assert on_enter()(g := lambda self: None) is g
    assert on_exit()(h := lambda self: None) is h
    assert concurrent(max_inputs=2)(Plain) is Plain
    del Plain.__gworker_concurrent__


def test_methods_call_each_other_inside_the_class_as_written():
    class Calls:
        @method()
        @batched(max_batch_size=4)
        def double(self, xs: list[int]) -> list[int]:
            return [2 * x for x in xs]

        @method()
        def quadruple(self, x: int) -> int:
            return self.double(self.double([x]))[0]

    assert Calls().quadruple(3) == 12


# --- methods -----------------------------------------------------------------------------------------------------


def test_methods_are_found_with_their_nature_and_signature():
    class Kinds:
        @method()
        def plain(self, a: int = 1) -> int:
            return a

        @method()
        async def asynchronous(self):
            pass

        @method()
        def stream(self):
            yield

        @method()
        async def async_stream(self):
            yield

        def unmarked(self):
            pass

    methods = compiled(Kinds).methods
    natures = {m.name: (m.is_async, m.is_generator) for m in methods.values()}
    assert natures == {
        "plain": (False, False),
        "asynchronous": (True, False),
        "stream": (False, True),
        "async_stream": (True, True),
    }
    assert list(methods["plain"].signature.parameters) == ["a"]


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("order", ["above", "below"])
def test_a_wrapper_on_either_side_keeps_mark_nature_and_signature(order):
    mark = (lambda f: logged(method()(f))) if order == "above" else (lambda f: method()(logged(f)))

    class Wrapped:
        @mark
        async def embed(self, text: str):
            return text

        @mark
        def stream(self, n: int):
            yield from range(n)

    methods = compiled(Wrapped).methods
    assert methods["embed"].is_async
    assert methods["stream"].is_generator
    assert list(methods["embed"].signature.parameters) == ["text"]


def test_an_override_takes_the_place_of_the_bases_method():
    class Base:
        @method()
        def a(self, x):
            return x

        @method()
        @batched(max_batch_size=8)
        def b(self, xs):
            return xs

        @method()
        def c(self):
            pass

    class Sub(Base):
        @method()
        async def a(self, x, y):
            return x

        def b(self, xs, ys):
            return super().b(xs)

        c = None

        @method()
        def d(self):
            pass

    methods = compiled(Sub).methods
    assert list(methods) == ["a", "b", "d"]
    assert methods["a"].is_async
    assert list(methods["a"].signature.parameters) == ["x", "y"]
    assert methods["b"].batch == compiled(Base).methods["b"].batch
    assert list(methods["b"].signature.parameters) == ["xs", "ys"]


def test_an_override_with_marks_of_its_own_has_only_those():
    class Base:
        @method()
        @batched(max_batch_size=8)
        def run(self, xs):
            return xs

    class Sub(Base):
        @method()
        def run(self, x):
            return x

    assert compiled(Sub).methods["run"].batch is None


def test_batch_options_are_kept_in_seconds():
    class Batches:
        @method()
        @batched(max_batch_size=64, wait_ms=20, weight=len, max_weight=100)
        def embed(self, texts):
            return texts

    batch = compiled(Batches).methods["embed"].batch
    assert (batch.max_batch_size, batch.wait_s, batch.max_concurrent_batches) == (64, 0.02, 1)
    assert (batch.weight, batch.max_weight) == (len, 100)


# --- hooks -------------------------------------------------------------------------------------------------------


class BaseHooks:
    @on_enter()
    def first(self):
        pass

    @on_exit()
    def leave_first(self):
        pass

    @on_enter()
    async def second(self):
        pass

    @on_exit()
    async def leave_second(self):
        pass

    @method()
    def run(self):
        pass


def test_hooks_run_base_first_then_in_order_of_definition_and_leave_in_the_exact_reverse():
    class Sub(BaseHooks):
        @on_enter()
        def third(self):
            pass

        @on_exit()
        def leave_third(self):
            pass

    spec = compiled(Sub)
    assert spec.enter_hooks == (HookSpec("first", False), HookSpec("second", True), HookSpec("third", False))
    assert [h.name for h in spec.exit_hooks] == ["leave_third", "leave_second", "leave_first"]


@pytest.mark.parametrize("marked", [True, False])
def test_an_overridden_hook_replaces_the_bases_in_its_place(marked):
    class Sub(BaseHooks):
        @on_enter()
        def third(self):
            pass

        async def first(self):
            pass

        if marked:
            first = on_enter()(first)

    assert compiled(Sub).enter_hooks == (HookSpec("first", True), HookSpec("second", True), HookSpec("third", False))


def test_a_hook_set_to_none_is_gone():
    class Sub(BaseHooks):
        first = None

    assert [h.name for h in compiled(Sub).enter_hooks] == ["second"]


def test_hooks_of_a_diamond_run_once():
    class Left(BaseHooks):
        @on_enter()
        def left(self):
            pass

    class Right(BaseHooks):
        @on_enter()
        def right(self):
            pass

    class Both(Left, Right):
        pass

    assert [h.name for h in compiled(Both).enter_hooks] == ["first", "second", "right", "left"]


def test_a_function_may_be_both_an_enter_and_an_exit_hook():
    class Resets(Plain):
        @on_enter()
        @on_exit()
        def reset(self):
            pass

    spec = compiled(Resets)
    assert [h.name for h in spec.enter_hooks] == [h.name for h in spec.exit_hooks] == ["reset"]


# --- sizes -------------------------------------------------------------------------------------------------------


class Batching:
    @method()
    @batched(max_batch_size=64)
    def embed(self, texts):
        return texts

    @method()
    @batched(max_batch_size=8)
    def rank(self, texts):
        return texts


def test_a_worker_takes_one_input_by_default():
    spec = compiled(Plain)
    assert (spec.concurrent, spec.max_inputs, spec.target_inputs) == (False, 1, 1)


def test_a_class_with_batched_methods_takes_in_two_of_the_largest_batches():
    spec = compiled(Batching)
    assert (spec.concurrent, spec.max_inputs, spec.target_inputs) == (False, 128, 102)


def test_concurrent_says_how_many():
    class Sub(Batching):
        pass

    spec = compiled(concurrent(max_inputs=100)(Sub))
    assert (spec.concurrent, spec.max_inputs, spec.target_inputs) == (True, 100, 80)
    spec = compiled(concurrent(max_inputs=100, target_inputs=50)(Sub))
    assert spec.target_inputs == 50


@given(st.integers(1, 10_000))
def test_the_target_is_four_fifths_and_at_least_one(max_inputs):
    @concurrent(max_inputs=max_inputs)
    class Sub(Plain):
        pass

    assert compiled(Sub).target_inputs == max(1, max_inputs * 4 // 5)


def test_a_subclass_of_a_concurrent_class_is_concurrent():
    @concurrent(max_inputs=4)
    class Base(Plain):
        pass

    class Sub(Base):
        pass

    assert compiled(Sub).max_inputs == 4


# --- binding arguments -------------------------------------------------------------------------------------------


def spec_of(function: Any, batch: bool = False) -> MethodSpec:
    marked = method()(batched(max_batch_size=4)(function) if batch else function)
    return compiled(type("Embedder", (), {"run": marked})).methods["run"]


def test_good_arguments_come_back_as_they_were_given():
    spec = spec_of(lambda self, a, b=2, *rest, c, **more: None)
    assert spec.bind("Embedder", (1,), {"c": 3}) == ((1,), {"c": 3})
    assert spec.bind("Embedder", (1, 2, 3), {"c": 3, "d": 4}) == ((1, 2, 3), {"c": 3, "d": 4})


def greeting(batch: bool) -> MethodSpec:
    def run(self, text, lang="en"):
        return text

    return spec_of(run, batch)


@pytest.mark.parametrize(
    ("args", "kwargs", "problem"),
    [
        ((), {}, "missing a required argument: 'text'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        (("a",), {"text": "b"}, "multiple values for argument 'text'"),
        (("a",), {"langs": "b"}, "unexpected keyword argument 'langs'"),
    ],
)
@pytest.mark.parametrize("batch", [False, True])
def test_bad_arguments_are_a_type_error_that_shows_method_and_signature(args, kwargs, problem, batch):
    with pytest.raises(TypeError) as info:
        greeting(batch).bind("Embedder", args, kwargs)
    message = str(info.value)
    assert message.startswith("Embedder.run() ")
    assert problem in message
    assert "run(text, lang='en')" in message
    assert ("Did you mean 'lang'?" in message) is ("langs" in kwargs)
    assert ("one input" in message) is batch


def test_a_signature_shows_its_annotations_without_quotes():
    assert str(compiled(Plain).methods["run"]) == "run(x: int, *, y: int = 2) -> int"


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [(("a",), {}), (("a", "en"), {}), ((), {"text": "a"}), ((), {"lang": "en", "text": "a"}), (("a",), {"lang": "en"})],
)
def test_one_input_of_a_batched_method_is_bound_by_name_with_defaults_in_order(args, kwargs):
    positional, named = greeting(batch=True).bind("Embedder", args, kwargs)
    assert positional == ()
    assert list(named.items()) == [("text", "a"), ("lang", "en")]


def test_keyword_only_arguments_of_a_batched_method_are_bound():
    spec = spec_of(lambda self, a, *, b=1: a, batch=True)
    assert spec.bind("E", (5,), {}) == ((), {"a": 5, "b": 1})
    assert spec.bind("E", (), {"b": 2, "a": 5}) == ((), {"a": 5, "b": 2})


names = st.sampled_from(["a", "b", "c", "d", "e", "x"])


@given(
    st.integers(0, 3),
    st.integers(0, 2),
    st.lists(st.sampled_from(["d", "e=0", "*args", "**kwargs"]), unique=True).map(sorted),
    st.lists(st.integers(), max_size=5).map(tuple),
    st.dictionaries(names, st.integers()),
    st.booleans(),
)
def test_binding_agrees_with_calling_the_function(required, optional, more, args, kwargs, batch):
    words = ["a", "b", "c"]
    by_position = words[:required] + [f"{w}=0" for w in words[required : required + optional]]
    keyword_only = [word for word in more if "*" not in word]
    star = ["*args"] if "*args" in more and not batch else ["*"] * bool(keyword_only)
    rest = ["**kwargs"] if "**kwargs" in more and not batch else []
    params = [*by_position, *star, *keyword_only, *rest]
    if batch and not by_position and not keyword_only:
        return
    scope: dict[str, Any] = {}
    exec(f"def f(self, {', '.join(params)}): return dict(locals())", scope)
    spec = spec_of(scope["f"], batch)
    try:
        expected = scope["f"](None, *args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError, match=r"^E\.run\(\) "):
            spec.bind("E", args, kwargs)
        return
    expected.pop("self")
    bound_args, bound_kwargs = spec.bind("E", args, kwargs)
    if batch:
        assert (bound_args, list(bound_kwargs.items())) == ((), list(expected.items()))
    else:
        assert (bound_args, bound_kwargs) == (args, kwargs)


# --- options -----------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_design():
    assert compiled(Plain).options.as_dict() == {
        "gpu": None,
        "cpu": 1.0,
        "memory_mb": None,
        "resources": None,
        "min_workers": 0,
        "max_workers": 100,
        "buffer_workers": 0,
        "scaledown_window_s": 60,
        "startup_timeout_s": 600,
        "timeout_s": None,
        "drain_timeout_s": 30,
        "retries": Retries(max_retries=0),
        "max_pending": 10_000,
        "max_pending_mb": 1024,
        "probes": (),
        "name": None,
        "runtime_env": None,
    }


def test_options_are_copied_from_what_was_given():
    resources, env, probes = {"licence": 1}, {"pip": []}, [Probe.on("run")]

    class NoArguments:
        @method()
        def run(self):
            pass

    options = compiled(NoArguments, resources=resources, runtime_env=env, probes=probes).options
    resources["other"], env["other"] = 2, 2
    probes.clear()
    assert (options.resources, options.runtime_env, len(options.probes)) == ({"licence": 1}, {"pip": []}, 1)


def test_replace_changes_a_copy():
    options = Options.build({"min_workers": 1, "gpu": Gpu("A100")}, where="test")
    changed = options.replace(min_workers=2, retries=3)
    assert (changed.min_workers, changed.gpu, changed.retries.max_retries) == (2, Gpu("A100"), 3)
    assert (options.min_workers, options.retries.max_retries) == (1, 0)
    assert set(options.as_dict()) == set(OPTION_NAMES)


def test_a_variant_shares_all_but_its_options_and_variants_stack():
    spec = compiled(Plain, min_workers=1)
    variant = spec.with_options(gpu=Gpu("H100")).with_options(max_workers=4)
    assert (variant.options.gpu, variant.options.max_workers, variant.options.min_workers) == (Gpu("H100"), 4, 1)
    assert variant.methods == spec.methods
    assert variant.user_cls is Plain
    assert (spec.options.gpu, spec.options.max_workers) == (None, 100)


def test_the_name_is_the_classs_or_the_one_given():
    assert compiled(Plain).name == "Plain"
    assert compiled(Plain, name="other-name").name == "other-name"


# --- the whole ---------------------------------------------------------------------------------------------------


class Whole(BaseHooks):
    threshold: float = parameter(default=0.5)
    model: str = parameter(scope="worker")

    @method()
    @batched(max_batch_size=16, wait_ms=5, weight=len, max_weight=100)
    def embed(self, texts: list[str]) -> list[list[float]]:
        return []

    @method()
    async def tokens(self, n: int):
        yield n

    @method()
    def health(self) -> bool:
        return True


def whole() -> ClassSpec:
    return compiled(
        concurrent(max_inputs=32)(Whole),
        gpu=Gpu("A100"),
        memory_mb=2048,
        resources={"licence": 1},
        min_workers=1,
        retries=2,
        timeout_s=9,
        probes=[Probe.on("health", kind="readiness", period_s=30, failures=3, timeout_s=5)],
    )


def test_describe_shows_people_what_was_compiled():
    text = whole().describe()
    for part in (
        "Whole",
        "embed(texts: list[str]) -> list[list[float]]",
        "batches of up to 16, window 5 ms, weight up to 100",
        "tokens(n: int)   [async; generator]",
        "on_enter: first, second (async)",
        "on_exit: leave_second (async), leave_first",
        "threshold: float (default 0.5, scope call)",
        "model: str (required, scope worker)",
        "a batch of embed holds calls with equal threshold only",
        "a worker holds up to 32, autoscaling aims at 25",
        "1 x A100, 1 CPU, 2048 MB, 1 x licence",
        "1 to 100",
        "timeout_s 9, 2 retries",
        "readiness probe: health every 30 s, time-out 5 s, 3 failures in a row",
        "a fault is told within 125 s, a process that does not answer within 97 s",
    ):
        assert part in text, f"{part!r} is not in\n{text}"
    assert max(map(len, text.splitlines())) <= 140


def test_has_call_parameters_says_whether_calls_need_views():
    assert whole().has_call_parameters

    class WorkerOnly(Plain):
        model: str = parameter(default="m", scope="worker")

    assert not compiled(WorkerOnly).has_call_parameters
    assert not compiled(Plain).has_call_parameters


def test_a_class_that_travels_by_value_keeps_the_order_of_its_hooks():
    class Hooks(Plain):
        @on_enter()
        def zulu(self):
            pass

        @on_exit()
        def yankee(self):
            pass

        @on_enter()
        def alpha(self):
            pass

        @on_exit()
        def bravo(self):
            pass

    spec = compiled(pickle.loads(cloudpickle.dumps(Hooks)))
    assert [h.name for h in spec.enter_hooks] == ["zulu", "alpha"]
    assert [h.name for h in spec.exit_hooks] == ["bravo", "yankee"]


def test_a_function_marked_twice_keeps_its_place():
    class Hooks(Plain):
        @on_exit()
        def first(self):
            pass

        @on_enter()
        def second(self):
            pass

        first = on_enter()(first)

    assert [h.name for h in compiled(Hooks).enter_hooks] == ["first", "second"]


def test_a_spec_travels_with_its_class_by_value_and_compiles_again():
    spec = whole()
    again = pickle.loads(cloudpickle.dumps(spec))
    assert again.options == spec.options
    assert again.methods["embed"].signature == spec.methods["embed"].signature
    assert again.methods["embed"].bind("W", ("x",), {}) == ((), {"texts": "x"})
    assert compile_class(again.user_cls, {}).enter_hooks == spec.enter_hooks
    assert inspect.isclass(again.user_cls)


def test_compiling_twice_gives_the_same():
    first, second = whole(), whole()
    assert (first.methods, first.options, first.parameters) == (second.methods, second.options, second.parameters)
