"""DESIGN §6, "At definition": each mistake is an InvalidDefinition that names the culprit and says what to write."""

from __future__ import annotations

import abc
import functools
import math
from typing import Any

import numpy as np
import pytest

from gworker.decorators import batched, concurrent, method, on_enter, on_exit
from gworker.errors import InvalidDefinition
from gworker.options import OPTION_NAMES, Gpu, Options
from gworker.parameters import parameter
from gworker.probe import Probe
from gworker.retries import Retries
from gworker.spec import compile_class


def refused(*parts: str) -> Any:
    """Expects an InvalidDefinition whose message has all these parts: who is wrong, and what to write."""
    return _Refused(parts)


class _Refused:
    def __init__(self, parts: tuple[str, ...]) -> None:
        self.parts = parts
        self.inner = pytest.raises(InvalidDefinition)

    def __enter__(self) -> None:
        self.info = self.inner.__enter__()

    def __exit__(self, *exc: object) -> bool:
        swallowed = bool(self.inner.__exit__(*exc))
        message = str(self.info.value)
        for part in self.parts:
            assert part in message, f"{part!r} is not in {message!r}"
        assert isinstance(self.info.value, TypeError)
        assert isinstance(self.info.value, ValueError)
        return swallowed


class Embedder:
    @method()
    def embed(self, text: str) -> str:
        return text

    @method()
    def health(self) -> bool:
        return True


def options(**given: Any) -> Options:
    return compile_class(Embedder, given).options


# --- parentheses and arguments of the decorators -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("decorator", "write"),
    [
        (method, "@gw.method()"),
        (on_enter, "@gw.on_enter()"),
        (on_exit, "@gw.on_exit()"),
        (batched, "@gw.batched(max_batch_size=64, wait_ms=20)"),
    ],
)
def test_a_bare_decorator_on_a_function_asks_for_the_parentheses(decorator, write):
    with refused("embed", "did you forget", f"Write {write}"):

        class Bad:
            @decorator
            def embed(self):
                pass


def test_a_bare_decorator_on_a_property_asks_for_the_parentheses():
    with refused("did you forget", "Write @gw.method()"):
        method(property(lambda self: 1))


def test_a_bare_concurrent_asks_for_the_parentheses():
    with refused("Bad", "did you forget", "Write @gw.concurrent(max_inputs=16)"):

        @concurrent
        class Bad:
            pass


@pytest.mark.parametrize(
    ("decorator", "write"),
    [
        (method, "@gw.method()"),
        (on_enter, "@gw.on_enter()"),
        (batched, "@gw.batched(max_batch_size=64, wait_ms=20)"),
        (concurrent, "@gw.concurrent(max_inputs=16)"),
    ],
)
def test_positional_arguments_are_refused(decorator, write):
    with refused("(64)", "no positional arguments", f"write {write}"):
        decorator(64)


@pytest.mark.parametrize(("decorator", "name"), [(batched, "max_batch_size"), (concurrent, "max_inputs")])
def test_the_number_that_a_decorator_is_about_must_be_given(decorator, name):
    with refused(f"{name} is missing", f"({name}="):
        decorator()


# --- order and place ---------------------------------------------------------------------------------------------


def test_batched_above_method_is_refused():
    with refused("Bad.embed", "@gw.batched stands above @gw.method", "@gw.method() on the first line"):

        class Bad:
            @batched(max_batch_size=2)
            @method()
            def embed(self, texts):
                return texts


def test_batched_without_method_is_refused():
    class Bad:
        @batched(max_batch_size=2)
        def embed(self, texts):
            return texts

    with refused("Bad.embed is batched but not a method", "write @gw.method() above @gw.batched(...)"):
        compile_class(Bad, {})


def test_batched_twice_is_refused():
    with refused("embed", "twice", "keep one"):

        class Bad:
            @batched(max_batch_size=2)
            @batched(max_batch_size=3)
            def embed(self, texts):
                return texts


def test_concurrent_above_cls_is_refused():
    class Decorated:
        user_cls = Embedder

    with refused("Embedder", "@gw.concurrent stands above @app.cls", "@app.cls(...) on the first line"):
        concurrent(max_inputs=2)(Decorated())


def test_concurrent_on_a_function_is_refused():
    with refused("Bad.embed", "goes on the class", "between @app.cls(...) and the class"):

        class Bad:
            @concurrent(max_inputs=2)
            def embed(self):
                pass


@pytest.mark.parametrize("decorator", [method(), on_enter(), on_exit(), batched(max_batch_size=2)])
def test_a_functions_decorator_on_the_class_is_refused(decorator):
    with refused("Bad", "not on the class itself", "a def inside the class"):

        @decorator
        class Bad:
            pass


@pytest.mark.parametrize("decorator", [method(), on_enter(), on_exit(), batched(max_batch_size=2)])
@pytest.mark.parametrize("value", [3, None, "embed", functools.partial(len), functools.partialmethod(len)])
def test_a_decorator_on_what_is_no_function_is_refused(decorator, value):
    with refused(repr(value) if value != "embed" else "'embed'", "above a def inside the class"):
        decorator(value)


@pytest.mark.parametrize("kind", [staticmethod, classmethod, property])
@pytest.mark.parametrize("order", ["above", "below"])
def test_static_and_class_methods_and_properties_are_refused_in_either_order(kind, order):
    def embed(self):
        pass

    with refused("embed", f"@{kind.__name__}", "take self" if order == "below" else "write def embed(self, ...)"):
        marked = method()(kind(embed)) if order == "above" else kind(method()(embed))
        compile_class(type("Bad", (Embedder,), {"embed": marked}), {})


@pytest.mark.parametrize("hook", [on_enter, on_exit])
def test_a_hook_and_a_method_on_one_function_are_refused_in_either_order(hook):
    def both(self):
        pass

    with refused("both", f"@gw.method() and @gw.{hook.__name__}()", "Keep one"):
        method()(hook()(both))

    def other(self):
        pass

    with refused("other", f"@gw.method() and @gw.{hook.__name__}()", "Keep one"):
        hook()(method()(other))


@pytest.mark.parametrize("hook", [on_enter, on_exit])
def test_a_batched_hook_is_refused_in_either_order(hook):
    def setup(self, xs):
        pass

    with refused("setup", "hook cannot be batched", "remove @gw.batched"):
        hook()(batched(max_batch_size=2)(setup))

    def setup2(self, xs):
        pass

    with refused("setup2", "hook cannot be batched", "remove @gw.batched"):
        batched(max_batch_size=2)(hook()(setup2))


def test_a_callable_that_cannot_carry_a_mark_is_refused():
    class Slim:
        __slots__ = ()

        def __get__(self, instance, owner):
            return self

        def __call__(self):
            return 1

        def __repr__(self):
            return "slim"

    with refused("slim: a test_a", "Slim cannot be marked", "write a function in the class that calls it"):
        method()(Slim())


def test_a_mark_is_only_what_a_decorator_made():
    class Stranger:
        def embed(self):
            return 1

        embed.__gworker__ = "something else"

    with refused("Stranger has no methods"):
        compile_class(Stranger, {})


def test_cls_on_a_function_is_refused():
    def embed_texts(texts):
        pass

    with refused("embed_texts", "it goes on a class", "class EmbedTexts:"):
        compile_class(embed_texts, {})


def test_cls_on_a_decorated_class_is_refused():
    class Decorated:
        user_cls = Embedder

    with refused("Embedder", "twice", "Embedder.with_options(...)"):
        compile_class(Decorated(), {})


# --- the class ---------------------------------------------------------------------------------------------------


def test_a_class_with_no_methods_is_refused():
    class Empty:
        @on_enter()
        def setup(self):
            pass

        def embed(self):
            pass

    with refused("Empty has no methods", "write @gw.method()"):
        compile_class(Empty, {})


@pytest.mark.parametrize("name", ["__init__", "__new__"])
def test_required_constructor_arguments_are_refused(name):
    def construct(self, model, size=3, *args, **kwargs):
        pass

    bad = type("Bad", (Embedder,), {name: construct})
    with refused(f"Bad.{name}", "(model)", 'model: <type> = gw.parameter(scope="worker")', "@gw.on_enter()"):
        compile_class(bad, {})


def test_a_constructor_with_defaults_is_fine():
    def construct(self, size=3, *args, **kwargs):
        pass

    compile_class(type("Good", (Embedder,), {"__init__": construct}), {})


def test_an_abstract_class_is_refused():
    class Bad(abc.ABC):
        @method()
        def embed(self):
            return 1

        @abc.abstractmethod
        def load(self):
            pass

    with refused("Bad is abstract", "define load"):
        compile_class(Bad, {})


def test_a_method_without_self_is_refused():
    class Bad:
        @method()
        def embed():
            pass

    with refused("Bad.embed takes no self", "write def embed(self, ...)"):
        compile_class(Bad, {})


def test_a_special_method_is_refused():
    class Bad:
        @method()
        def __call__(self):
            pass

    with refused("Bad.__call__", "name of its own", "def call(self, ...)"):
        compile_class(Bad, {})


# --- hooks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", [on_enter, on_exit])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_hook_with_arguments_is_refused(hook, is_async):
    class Bad(Embedder):
        if is_async:

            @hook()
            async def load(self, model):
                pass
        else:

            @hook()
            def load(self, model):
                pass

    with refused("Bad.load", f"@gw.{hook.__name__}()", "(model)", "write def load(self)"):
        compile_class(Bad, {})


def test_a_hook_with_default_arguments_is_fine():
    class Good(Embedder):
        @on_enter()
        def load(self, verbose=False, *args, **kwargs):
            pass

    compile_class(Good, {})


def test_a_generator_hook_is_refused():
    class Bad(Embedder):
        @on_enter()
        def lifespan(self):
            yield

    with refused("Bad.lifespan", "yield", "@gw.on_enter() and an @gw.on_exit()"):
        compile_class(Bad, {})


# --- batching ----------------------------------------------------------------------------------------------------


def batch(**given: Any) -> Any:
    return batched(**{"max_batch_size": 4, **given})


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, math.nan, "64", [64]])
def test_a_wrong_batch_size_is_refused(wrong):
    with refused("@gw.batched", f"max_batch_size={wrong!r}", "write for example max_batch_size=64"):
        batched(max_batch_size=wrong)


@pytest.mark.parametrize("wrong", [-1, True, math.nan, math.inf, "20", None])
def test_a_wrong_window_is_refused(wrong):
    with refused("@gw.batched", f"wait_ms={wrong!r}", "(milliseconds)", "write for example wait_ms=20"):
        batch(wait_ms=wrong)


@pytest.mark.parametrize("wrong", [0, True, 1.0])
def test_wrong_concurrent_batches_are_refused(wrong):
    with refused("@gw.batched", f"max_concurrent_batches={wrong!r}", "at least 1"):
        batch(max_concurrent_batches=wrong)


@pytest.mark.parametrize("wrong", [0, -3, True, math.nan, "9"])
def test_a_wrong_weight_limit_is_refused(wrong):
    with refused("@gw.batched", f"max_weight={wrong!r}", "write for example max_weight=8192"):
        batch(weight=len, max_weight=wrong)


def test_weight_and_its_limit_go_together():
    with refused("weight was given alone", "max_weight=8192"):
        batch(weight=len)
    with refused("max_weight was given alone", "weight=len"):
        batch(max_weight=10)
    with refused("weight='len'", "weight=len"):
        batch(weight="len", max_weight=10)


def test_a_weight_that_cannot_take_the_arguments_is_refused():
    class Bad:
        @method()
        @batch(weight=lambda text: 1, max_weight=10)
        def embed(self, texts, langs):
            return texts

    with refused("Bad.embed: weight=", "lambda texts, langs: len(texts)"):
        compile_class(Bad, {})


def test_a_weight_by_builtin_is_fine():
    class Good:
        @method()
        @batch(weight=len, max_weight=10)
        def embed(self, texts):
            return texts

        @method()
        @batch(weight=max, max_weight=10)
        def other(self, xs, ys):
            return xs

    compile_class(Good, {})


@pytest.mark.parametrize("is_async", [False, True])
def test_a_batched_generator_is_refused(is_async):
    if is_async:

        async def embed(self, texts):
            yield texts
    else:

        def embed(self, texts):
            yield texts

    bad = type("Bad", (), {"embed": method()(batch()(embed))})
    with refused("Bad.embed is batched and a generator", "Return a list, or remove @gw.batched"):
        compile_class(bad, {})


def _args(self, *texts):
    pass


def _kwargs(self, **texts):
    pass


def _positional(self, texts, /):
    pass


def _nothing(self):
    pass


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (_args, ("*texts", "variable number", "def embed(self, texts: list[...])")),
        (_kwargs, ("**texts", "variable number", "def embed(self, texts: list[...])")),
        (_positional, ("texts is positional-only", "def embed(self, texts: list[...])")),
        (_nothing, ("takes no arguments", "def embed(self, items: list[...])")),
    ],
)
def test_arguments_that_cannot_be_lists_are_refused(function, parts):
    bad = type("Bad", (), {"embed": method()(batch()(function))})
    with refused("Bad.embed", *parts):
        compile_class(bad, {})


@pytest.mark.parametrize("annotation", [str, "str", int, "float"])
def test_an_argument_annotated_as_one_input_is_refused(annotation):
    def embed(self, text):
        pass

    embed.__annotations__["text"] = annotation
    bad = type("Bad", (), {"embed": method()(batch()(embed))})
    with refused("Bad.embed", "text", "write text: list["):
        compile_class(bad, {})


def test_more_batches_at_a_time_need_concurrent():
    class Bad:
        @method()
        @batch(max_concurrent_batches=2)
        def embed(self, texts):
            return texts

    with refused("Bad.embed", "max_concurrent_batches=2", "@gw.concurrent(max_inputs=12)"):
        compile_class(Bad, {})
    compile_class(concurrent(max_inputs=8)(Bad), {})


# --- concurrency -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, math.nan, "16"])
def test_wrong_max_inputs_are_refused(wrong):
    with refused("@gw.concurrent", f"max_inputs={wrong!r}", "write for example max_inputs=16"):
        concurrent(max_inputs=wrong)


@pytest.mark.parametrize("wrong", [0, True, 2.5])
def test_wrong_target_inputs_are_refused(wrong):
    with refused("@gw.concurrent", f"target_inputs={wrong!r}", "at least 1"):
        concurrent(max_inputs=4, target_inputs=wrong)


def test_a_target_equal_to_the_maximum_is_fine():
    concurrent(max_inputs=4, target_inputs=4)


def test_a_class_may_have_an_attribute_called_user_cls():
    concurrent(max_inputs=4)(type("Fine", (), {"user_cls": Embedder}))


def test_a_target_above_the_maximum_is_refused():
    with refused("target_inputs=5 is greater than max_inputs=4", "target_inputs=4"):
        concurrent(max_inputs=4, target_inputs=5)


def test_fewer_inputs_than_a_batch_holds_are_refused():
    @concurrent(max_inputs=32)
    class Bad:
        @method()
        @batched(max_batch_size=64)
        def embed(self, texts):
            return texts

    with refused("Bad: max_inputs=32", "max_batch_size=64 of embed", "@gw.concurrent(max_inputs=128)"):
        compile_class(Bad, {})


# --- options -----------------------------------------------------------------------------------------------------


def test_an_unknown_option_is_refused_with_the_nearest():
    with refused("@app.cls of Embedder", "no option 'min_worker'", "Did you mean 'min_workers'?"):
        options(min_worker=1)
    with refused("no option 'xyz'", "Known: buffer_workers, cpu, drain_timeout_s"):
        options(xyz=1)


WHOLE = {"min_workers": 0, "max_workers": 1, "buffer_workers": 0, "max_pending": 1}
POSITIVE = ["startup_timeout_s", "timeout_s", "max_pending_mb", "memory_mb"]
NUMBERS = ["cpu", "scaledown_window_s", "drain_timeout_s", *POSITIVE]
MAY_BE_NONE = {"gpu", "memory_mb", "name", "resources", "retries", "runtime_env", "timeout_s"}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("wrong", [-1, True, 1.5, math.nan, "4", None, [1]])
def test_wrong_whole_numbers_are_refused(name, wrong):
    with refused("@app.cls of Embedder", f"{name}={wrong!r}", type(wrong).__name__, f"write for example {name}="):
        options(**{name: wrong})


@pytest.mark.parametrize("name", [name for name, least in WHOLE.items() if least == 1])
def test_zero_is_refused_where_it_would_mean_never(name):
    with refused(f"{name}=0", "at least 1"):
        options(**{name: 0})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("wrong", [-1, -0.5, True, math.nan, math.inf, "4", [1]])
def test_wrong_numbers_are_refused(name, wrong):
    with refused("@app.cls of Embedder", f"{name}={wrong!r}", "expected a", "write", f"{name}=", "number"):
        options(**{name: wrong})


@pytest.mark.parametrize("name", POSITIVE)
def test_zero_is_refused_where_nothing_could_happen_in_it(name):
    with refused(f"{name}=0", "greater than 0"):
        options(**{name: 0})


@pytest.mark.parametrize("name", ["cpu", "scaledown_window_s", "drain_timeout_s"])
def test_zero_is_fine_where_it_means_at_once(name):
    assert getattr(options(**{name: 0}), name) == 0


@pytest.mark.parametrize("name", [name for name in OPTION_NAMES if name not in MAY_BE_NONE])
def test_none_is_refused_where_it_means_nothing(name):
    with refused(f"{name}=None"):
        options(**{name: None})


def test_min_above_max_is_refused():
    with refused("min_workers=5 is greater than max_workers=3", "write max_workers=5"):
        options(min_workers=5, max_workers=3)
    assert options(min_workers=3, max_workers=3).min_workers == 3
    with refused("min_workers=101 is greater than max_workers=100"):
        options(min_workers=101)


@pytest.mark.parametrize(
    ("given", "write"),
    [("4Gi", 4096), ("512Mi", 512), ("512", 512), ("1.5G", 1536), ("2 GB", 2048), ("1Ti", 1048576), ("much", 4096)],
)
def test_memory_as_text_is_refused_with_the_number_to_write(given, write):
    with refused(f"memory_mb={given!r}", f"write memory_mb={write}"):
        options(memory_mb=given)


@pytest.mark.parametrize(
    ("given", "write"),
    [
        ("A100", 'gpu=gw.Gpu("A100")'),
        ("A100:2", 'gpu=gw.Gpu("A100", 2)'),
        (2, "gpu=gw.Gpu(count=2)"),
        (0.5, "gpu=gw.Gpu(count=0.5)"),
        (True, 'gpu=gw.Gpu("A100")'),
        (-2, 'gpu=gw.Gpu("A100")'),
        (Gpu, 'gpu=gw.Gpu("A100")'),
    ],
)
def test_a_gpu_that_is_no_gpu_is_refused_with_the_one_to_write(given, write):
    with refused("@app.cls of Embedder", "gpu=", f"write {write}"):
        options(gpu=given)


@pytest.mark.parametrize("wrong", [0, -1, True, math.nan, math.inf, "2", None])
def test_a_wrong_gpu_count_is_refused(wrong):
    with refused("gw.Gpu", f"count={wrong!r}", "write for example count=1"):
        Gpu("A100", wrong)


def test_one_and_a_half_gpus_are_refused():
    with refused("count=1.5", "count=1, count=2 or a fraction below 1"):
        Gpu("A100", 1.5)


@pytest.mark.parametrize("wrong", ["", "  ", 3, True])
def test_a_wrong_gpu_type_is_refused(wrong):
    with refused(f"type={wrong!r}", 'gw.Gpu("A100")'):
        Gpu(wrong)


def test_a_count_given_as_the_type_is_recognised_and_nothing_else_is():
    with refused("gw.Gpu(type=3)", "or gw.Gpu(count=3) for that many"):
        Gpu(3)
    for wrong in (True, "", [2]):
        with pytest.raises(InvalidDefinition) as info:
            Gpu(wrong)
        assert "for that many" not in str(info.value)


def test_a_gpu_is_a_value():
    assert Gpu("A100") == Gpu(type="A100", count=1)
    assert hash(Gpu("A100")) == hash(Gpu("A100", 1.0))
    assert (Gpu().type, Gpu().count, Gpu(count=0.25).count) == (None, 1, 0.25)
    assert (Gpu("H100", 2).count, type(Gpu("H100", 2.0).count)) == (2, int)
    assert type(Gpu(count=np.float64(0.5)).count) is float


@pytest.mark.parametrize("wrong", ["x", 3, {1: 1}, ["a"]])
def test_wrong_resources_are_refused(wrong):
    with refused("resources=", 'resources={"licence": 1}'):
        options(resources=wrong)


@pytest.mark.parametrize("amount", [0, -1, True, "1", math.nan])
def test_wrong_amounts_are_refused(amount):
    with refused(f"resources['licence']={amount!r}", "greater than 0"):
        options(resources={"licence": amount})


@pytest.mark.parametrize(("name", "write"), [("CPU", "cpu="), ("GPU", "gpu=gw.Gpu("), ("memory", "memory_mb=")])
def test_resources_with_an_option_of_their_own_are_refused(name, write):
    with refused(f"names {name!r}", write):
        options(resources={name: 1})


@pytest.mark.parametrize("wrong", [-1, True, 1.5, "3"])
def test_wrong_retries_are_refused(wrong):
    with refused("@app.cls of Embedder", f"retries={wrong!r}", "retries=3 or retries=gw.Retries("):
        options(retries=wrong)


@pytest.mark.parametrize(
    ("wrong", "write"),
    [
        (Probe.on("health"), 'probes=[gw.Probe.on("health", ...)]'),
        ("health", 'probes=[gw.Probe.on("health")]'),
        (["ping"], 'probes=[gw.Probe.on("ping")]'),
        ("ping", 'probes=[gw.Probe.on("ping")]'),
        (3, 'probes=[gw.Probe.on("health")]'),
        ([Probe.on("health"), 3], 'probes=[gw.Probe.on("health")]'),
    ],
)
def test_wrong_probes_are_refused(wrong, write):
    with refused("probes=", "expected a list of probes", f"write {write}"):
        options(probes=wrong)


@pytest.mark.parametrize(("wrong", "write"), [("", "Embedder"), ("a b/c", "a-b-c"), ("1st", "st"), (3, "Embedder")])
def test_a_wrong_name_is_refused(wrong, write):
    with refused(f"name={wrong!r}", f'name="{write}"'):
        options(name=wrong)


@pytest.mark.parametrize("wrong", ["env", ["pip"], 3])
def test_a_wrong_runtime_env_is_refused(wrong):
    with refused("runtime_env=", 'runtime_env={"env_vars"'):
        options(runtime_env=wrong)


def test_numbers_of_numpy_are_numbers():
    built = options(max_workers=np.int64(4), timeout_s=np.float32(2))
    assert (built.max_workers, type(built.max_workers)) == (4, int)
    assert (built.timeout_s, type(built.timeout_s)) == (2.0, float)


def test_a_repr_that_raises_does_not_hide_the_message():
    class Rude:
        def __repr__(self):
            raise RuntimeError

    with refused("max_workers=<", "Rude", "whole number"):
        options(max_workers=Rude())


# --- probes against the class ------------------------------------------------------------------------------------


def probed(name: str) -> Any:
    return [Probe.on(name)]


def test_a_probe_of_a_missing_method_is_refused_with_the_nearest():
    with refused("Embedder", 'gw.Probe.on("helth")', "names no method", "Did you mean 'health'?"):
        options(probes=probed("helth"))


def test_a_probe_of_an_unmarked_method_is_refused():
    class Bad(Embedder):
        def ping(self):
            return True

    with refused("Bad", 'gw.Probe.on("ping")', "a function with @gw.method()"):
        compile_class(Bad, {"probes": probed("ping")})


def test_a_probe_that_needs_arguments_is_refused():
    with refused("Embedder", "embed(text: str) -> str needs arguments", "write def embed(self)"):
        options(probes=probed("embed"))


def test_a_probe_of_a_batched_or_a_generator_method_is_refused():
    class Bad:
        @method()
        @batched(max_batch_size=2)
        def embed(self, texts=None):
            return texts

        @method()
        def tokens(self):
            yield 1

    with refused("Bad", "embed is batched", "def health(self) -> bool"):
        compile_class(Bad, {"probes": probed("embed")})
    with refused("Bad", "tokens is a generator", "def health(self) -> bool"):
        compile_class(Bad, {"probes": probed("tokens")})


def test_a_probe_with_default_arguments_is_fine():
    class Good:
        @method()
        def health(self, deep=False, *more, **options_):
            return True

    assert compile_class(Good, {"probes": probed("health")}).options.probes == (Probe.on("health"),)


# --- parameters --------------------------------------------------------------------------------------------------


def test_an_unannotated_parameter_is_refused():
    class Bad(Embedder):
        threshold = parameter(default=0.5)

    with refused("Bad.threshold", "no annotation", "write threshold: float ="):
        compile_class(Bad, {})


def test_a_default_of_the_wrong_type_is_refused():
    class Bad(Embedder):
        threshold: float = parameter(default="0.5")

    with refused("Bad.threshold", "'0.5' (str)", "annotated type float", "Write a default of that type"):
        compile_class(Bad, {})


# --- variants ----------------------------------------------------------------------------------------------------


def test_options_of_a_variant_are_checked_as_well():
    spec = compile_class(Embedder, {"min_workers": 2})
    with refused("with_options", "min_workers=2 is greater than max_workers=1"):
        spec.with_options(max_workers=1)
    with refused("with_options", "no option 'gpus'", "Did you mean 'gpu'?"):
        spec.with_options(gpus=1)
    with refused("names no method"):
        spec.with_options(probes=probed("nothing"))


def test_retries_may_be_given_in_each_way():
    assert options(retries=3).retries == Retries(max_retries=3)
    assert options(retries=Retries(max_retries=2, max_delay_s=5)).retries.max_delay_s == 5
    assert options(retries=None).retries.max_retries == 0
