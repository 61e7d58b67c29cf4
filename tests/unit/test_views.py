"""DESIGN §4, Parameters: what a call view shares, what it carries, and what it must never do."""

# ruff: noqa: B018 - reading an attribute is what is tested

from __future__ import annotations

import abc
import asyncio
import contextvars
import dataclasses
import enum
import functools
import gc
import pickle
import sys
import threading
import typing
import warnings
import weakref

import attrs
import cloudpickle
import pydantic
import pytest

from gworker import views
from gworker.decorators import method
from gworker.errors import InvalidDefinition
from gworker.parameters import (
    bind_instance,
    check_bindable,
    check_viewable,
    collect_parameters,
    create_instance,
    entering,
    guard_del,
    make_view,
    parameter,
)
from gworker.spec import compile_class


class Classifier:
    threshold: float = parameter(default=0.5)
    model: str = parameter(default="small", scope="worker")

    def __init__(self) -> None:
        self.calls = 0

    @method()
    def read(self) -> float:
        return self.threshold


collect_parameters(Classifier)


@pytest.fixture(autouse=True)
def _no_binding_is_left_behind():
    before = set(views._bindings)  # instances that `.local` keeps for other tests
    yield
    if set(views._bindings) - before:
        gc.collect()  # what sits in a cycle; a collection takes a while, so only where something is left
    assert set(views._bindings) <= before


# --- what a view is ----------------------------------------------------------------------------------------------


def test_a_view_is_of_the_users_class_and_shares_the_instances_state():
    instance = Classifier()
    view = make_view(instance, {"threshold": 0.9})
    assert type(view) is Classifier
    assert isinstance(view, Classifier)
    view.calls += 1
    assert instance.calls == 1
    instance.added = "later"
    assert view.added == "later"
    del view.added
    assert not hasattr(instance, "added")


def test_a_view_carries_its_own_values_and_the_instance_keeps_the_defaults():
    instance = Classifier()
    low, high = make_view(instance, {"threshold": 0.1}), make_view(instance, {"threshold": 0.9})
    assert (low.threshold, high.threshold, instance.threshold) == (0.1, 0.9, 0.5)
    assert (low.read(), high.read(), instance.read()) == (0.1, 0.9, 0.5)


def test_a_view_reads_the_worker_scoped_values_of_its_instance():
    instance = Classifier()
    bind_instance(instance, {"model": "large"})
    view = make_view(instance, {"threshold": 0.9})
    assert (instance.model, view.model) == ("large", "large")
    assert (instance.threshold, view.threshold) == (0.5, 0.9)
    assert Classifier().model == "small"


def test_a_view_of_a_view_is_a_view_of_the_same_instance():
    instance = Classifier()
    bind_instance(instance, {"model": "large"})
    view = make_view(make_view(instance, {"threshold": 0.1}), {"threshold": 0.2})
    view.calls = 7
    assert (instance.calls, view.threshold, view.model) == (7, 0.2, "large")


def test_a_value_that_the_caller_did_not_send_reads_as_its_default():
    assert make_view(Classifier(), {}).threshold == 0.5


def test_none_is_a_value():
    class Optional_:
        limit: int | None = parameter(default=3)

    collect_parameters(Optional_)
    assert make_view(Optional_(), {"limit": None}).limit is None


def test_bound_methods_and_super_see_the_view():
    class Base:
        threshold: float = parameter(default=0.5)

        def read(self):
            return self.threshold

    class Sub(Base):
        def read(self):
            return super().read() + 1

    view = make_view(Sub(), {"threshold": 0.25})
    bound = view.read
    assert bound() == 1.25


def test_parameters_are_read_only_inside_methods_and_the_message_says_what_to_do():
    view = make_view(Classifier(), {"threshold": 0.9})
    with pytest.raises(
        AttributeError, match=r"threshold is a parameter .* read-only.*Classifier\(threshold=\.\.\.\).*another name"
    ):
        view.threshold = 0.1
    with pytest.raises(AttributeError, match="read-only"):
        del view.threshold
    with pytest.raises(AttributeError, match="read-only"):
        Classifier().threshold = 0.1


def test_what_one_reader_adds_to_a_default_is_not_there_for_the_next():
    class Stops:
        words: list[str] = parameter(default=["."])

    collect_parameters(Stops)
    instance = Stops()
    instance.words.append("!")
    assert instance.words == ["."]


# --- threads, tasks, closures ------------------------------------------------------------------------------------


def test_threads_and_closures_started_by_the_method_see_its_value():
    instance = Classifier()
    release, seen = threading.Event(), {}

    def start(view):
        def later():
            release.wait(5)
            seen[view.threshold] = view.read()

        thread = threading.Thread(target=later)
        thread.start()
        return thread

    threads = [start(make_view(instance, {"threshold": t})) for t in (0.1, 0.2, 0.3)]
    release.set()
    for thread in threads:
        thread.join()
    assert seen == {0.1: 0.1, 0.2: 0.2, 0.3: 0.3}


def test_many_threads_make_and_drop_views_of_one_instance_without_mixing_them_up():
    instance, wrong = Classifier(), []

    def work(value):
        for _ in range(2000):
            view = make_view(instance, {"threshold": value})
            if view.read() != value:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(i / 10,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_tasks_on_one_loop_see_their_own_values():
    instance = Classifier()

    async def read(view):
        await asyncio.sleep(0)
        return view.threshold

    async def main():
        return await asyncio.gather(*(read(make_view(instance, {"threshold": i})) for i in range(50)))

    assert asyncio.run(main()) == list(range(50))


def test_a_callback_stored_by_on_enter_reads_the_default_during_a_call():
    class Stores:
        threshold: float = parameter(default=0.5)

        def setup(self):
            self.callback = lambda: self.threshold

        def call(self):
            return self.callback(), self.threshold

    instance = Stores()
    with entering(instance):
        instance.setup()
    assert make_view(instance, {"threshold": 0.9}).call() == (0.5, 0.9)


# --- identities --------------------------------------------------------------------------------------------------


def test_a_view_is_forgotten_when_it_dies_so_a_new_object_at_its_address_reads_its_own_value():
    instance = Classifier()
    seen = set()
    for i in range(200):
        view = make_view(instance, {"threshold": float(i)})
        seen.add(id(view))
        assert view.threshold == float(i)
        del view
        fresh = Classifier()
        seen.add(id(fresh))
        assert fresh.threshold == 0.5
    assert len(seen) < 200, "no identity was ever used again: the test shows nothing"


def test_the_table_keeps_no_view_and_no_instance_alive():
    instance = Classifier()
    bind_instance(instance, {"model": "large"})
    view = make_view(instance, {"threshold": 0.9})
    gone = [weakref.ref(instance), weakref.ref(view)]
    del instance, view
    assert [ref() for ref in gone] == [None, None]


def test_binding_an_instance_again_replaces_its_values():
    instance = Classifier()
    bind_instance(instance, {"model": "a"})
    bind_instance(instance, {"model": "b"})
    gc.collect()
    assert instance.model == "b"


def test_a_class_with_eq_and_no_hash_has_views():
    class Same:
        threshold: float = parameter(default=0.5)

        def __eq__(self, other):
            return True

    assert Same.__hash__ is None
    instance = Same()
    a, b = make_view(instance, {"threshold": 1.0}), make_view(instance, {"threshold": 2.0})
    assert (a.threshold, b.threshold) == (1.0, 2.0)
    del a
    assert b.threshold == 2.0


def test_an_eq_or_hash_that_raises_is_never_asked():
    class Prickly:
        threshold: float = parameter(default=0.5)

        def __eq__(self, other):
            raise RuntimeError

        def __hash__(self):
            raise RuntimeError

    assert make_view(Prickly(), {"threshold": 0.9}).threshold == 0.9


def test_copies_of_a_view_are_plain_objects_with_defaults():
    view = make_view(Classifier(), {"threshold": 0.9})
    assert pickle.loads(pickle.dumps(view)).threshold == 0.5


# --- what making a view must not run ------------------------------------------------------------------------------


def test_making_a_view_runs_no_user_code():
    ran = []

    class Meta(type):
        def __call__(cls, *args, **kwargs):
            ran.append("metaclass")
            return super().__call__(*args, **kwargs)

    class Watched(metaclass=Meta):
        threshold: float = parameter(default=0.5)

        def __init_subclass__(cls, **kwargs):
            ran.append("__init_subclass__")

        def __new__(cls):
            ran.append("__new__")
            return super().__new__(cls)

        def __init__(self):
            ran.append("__init__")

        def __setattr__(self, name, value):
            ran.append("__setattr__")
            super().__setattr__(name, value)

        def __getattr__(self, name):
            ran.append(f"__getattr__ {name}")
            raise AttributeError(name)

        def __eq__(self, other):
            ran.append("__eq__")
            return self is other

        def __hash__(self):
            ran.append("__hash__")
            return 1

    instance = Watched()
    ran.clear()
    view = make_view(instance, {"threshold": 0.9})
    assert view.threshold == 0.9
    del view
    assert ran == []


def test_a_class_whose_setattr_forbids_everything_has_views():
    class Sealed:
        threshold: float = parameter(default=0.5)

        def __setattr__(self, name, value):
            raise TypeError("sealed")

    assert make_view(Sealed(), {"threshold": 0.9}).threshold == 0.9


def test_getattr_and_getattribute_of_the_user_do_not_hide_parameters():
    class Loud:
        threshold: float = parameter(default=0.5)

        def __getattr__(self, name):
            return f"no {name}"

        def __getattribute__(self, name):
            return super().__getattribute__(name)

    view = make_view(Loud(), {"threshold": 0.9})
    assert (view.threshold, view.other) == (0.9, "no other")


# --- __del__ -----------------------------------------------------------------------------------------------------


class Connection:
    def __init__(self):
        self.closed = 0


def closing_class():
    class Closing:
        threshold: float = parameter(default=0.5)

        def __init__(self):
            self.connection = Connection()

        def __del__(self):
            self.connection.closed += 1

        def leave_a_cycle(self):
            try:
                raise ValueError
            except ValueError as error:
                kept = error
                return kept  # noqa: RET504 - the local closes the cycle: frame, error, traceback, frame

    guard_del(Closing)
    return Closing


def test_a_user_del_does_not_run_for_a_view_and_runs_once_for_the_instance():
    instance = closing_class()()
    connection = instance.connection
    for i in range(5):
        assert make_view(instance, {"threshold": i}).threshold == i
    gc.collect()
    assert connection.closed == 0
    del instance
    gc.collect()
    assert connection.closed == 1


def test_a_user_del_does_not_run_for_a_view_that_the_collector_frees_in_a_cycle():
    instance = closing_class()()
    connection = instance.connection
    for _ in range(5):
        make_view(instance, {"threshold": 0.9}).leave_a_cycle()
    held = make_view(instance, {"threshold": 0.9})
    cycle = [held]
    cycle.append(cycle)
    del held, cycle
    assert gc.collect() > 0
    assert connection.closed == 0


def test_a_user_del_runs_once_when_instance_and_views_die_together_in_a_cycle():
    instance = closing_class()()
    connection = instance.connection
    instance.last_view = make_view(instance, {"threshold": 0.9})
    del instance
    gc.collect()
    assert connection.closed == 1


def test_an_inherited_del_does_not_run_for_views_and_runs_for_plain_objects_of_the_base():
    closed = []

    class Base:
        def __del__(self):
            closed.append(type(self).__name__)

    class Sub(Base):
        threshold: float = parameter(default=0.5)

    guard_del(Sub)
    instance = Sub()
    make_view(instance, {"threshold": 1.0})
    assert closed == []
    Base()
    assert closed == ["Base"]
    del instance
    assert closed == ["Base", "Sub"]


def test_a_del_that_calls_super_runs_the_whole_chain_for_the_instance():
    closed = []

    class Base:
        threshold: float = parameter(default=0.5)

        def __del__(self):
            closed.append("base")

    guard_del(Base)

    class Sub(Base):
        def __del__(self):
            closed.append("sub")
            super().__del__()

    guard_del(Sub)
    instance = Sub()
    make_view(instance, {"threshold": 1.0})
    assert closed == []
    del instance
    assert closed == ["sub", "base"]


def test_a_del_added_to_the_class_after_it_was_compiled_does_not_run_for_views():
    closed = []

    class Late:
        threshold: float = parameter(default=0.5)

    guard_del(Late)
    instance = Late()
    Late.__del__ = lambda self: closed.append(1)
    make_view(instance, {"threshold": 1.0})
    assert closed == []


def test_guarding_twice_changes_nothing():
    cls = closing_class()
    first = vars(cls)["__del__"]
    guard_del(cls)
    assert vars(cls)["__del__"] is first


def test_a_class_without_del_gets_none():
    guard_del(Classifier)
    assert "__del__" not in vars(Classifier)


def test_a_del_that_is_called_by_hand_runs():
    instance = closing_class()()
    view = make_view(instance, {"threshold": 1.0})
    view.__del__()
    assert instance.connection.closed == 1


def test_views_of_a_class_with_del_can_be_made_under_a_debugger():
    instance = closing_class()()

    seen = []

    def trace(frame, event, argument):
        seen.append(dict(frame.f_locals))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        view = make_view(instance, {"threshold": 0.9})
    finally:
        sys.settrace(before)
    assert view.threshold == 0.9
    del view
    seen.clear()
    gc.collect()
    assert instance.connection.closed == 0


def test_views_of_a_class_with_del_in_many_threads_and_collections():
    cls = closing_class()
    instance = cls()
    wrong = []

    def work(value):
        for _ in range(300):
            view = make_view(instance, {"threshold": value})
            if view.threshold != value:
                wrong.append(value)
            view.leave_a_cycle()

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        gc.collect()
    for thread in threads:
        thread.join()
    gc.collect()
    assert wrong == []
    assert instance.connection.closed == 0


def test_a_guarded_class_travels_by_value():
    cls = closing_class()
    collect_parameters(cls)
    again = pickle.loads(cloudpickle.dumps(cls))
    instance = again()
    connection = instance.connection
    assert make_view(instance, {"threshold": 0.9}).threshold == 0.9
    assert connection.closed == 0
    del instance
    assert connection.closed == 1


# --- starting up -------------------------------------------------------------------------------------------------


def test_a_call_scoped_parameter_read_in_on_enter_raises_with_the_advice():
    instance = Classifier()
    with entering(instance), pytest.raises(InvalidDefinition) as info:
        instance.threshold
    message = str(info.value)
    assert "Classifier.threshold was read while the worker starts" in message
    assert 'threshold: float = gw.parameter(default=0.5, scope="worker")' in message


def test_it_raises_as_well_where_worker_scoped_values_are_bound():
    instance = Classifier()
    bind_instance(instance, {"model": "large"})
    with entering():
        assert instance.model == "large"
        with pytest.raises(InvalidDefinition):
            instance.threshold


def test_hasattr_and_a_users_getattr_do_not_swallow_that_error():
    class Loud(Classifier):
        def __getattr__(self, name):
            return 0.0

    instance = Loud()
    with entering(), pytest.raises(InvalidDefinition):
        instance.threshold
    with entering(), pytest.raises(InvalidDefinition):
        hasattr(instance, "threshold")


def test_on_enter_may_use_views_and_other_instances():
    instance, other = Classifier(), Classifier()
    with entering(instance):
        assert make_view(other, {"threshold": 0.9}).threshold == 0.9
        assert other.threshold == 0.5


def test_after_on_enter_a_task_that_it_started_reads_the_default():
    instance = Classifier()

    async def background(started):
        await started.wait()
        return instance.threshold

    async def main():
        started = asyncio.Event()
        with entering(instance):
            task = asyncio.create_task(background(started))
        started.set()
        return await task

    assert asyncio.run(main()) == 0.5


def test_a_context_copied_during_on_enter_and_used_later_reads_the_default():
    instance = Classifier()
    with entering(instance):
        context = contextvars.copy_context()
    assert context.run(lambda: instance.threshold) == 0.5


def test_nested_and_failing_hooks_leave_nothing_behind():
    instance = Classifier()

    def fail():
        with entering(instance):
            with entering(instance):
                pass
            with pytest.raises(InvalidDefinition):
                instance.threshold
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert instance.threshold == 0.5


def test_init_reads_worker_scoped_values_and_is_told_about_call_scoped_ones():
    class Loads:
        model: str = parameter(default="small", scope="worker")
        threshold: float = parameter(default=0.5)

        def __init__(self):
            self.loaded = self.model

    class Reads(Loads):
        def __init__(self):
            self.level = self.threshold

    assert create_instance(Loads, {"model": "large"}).loaded == "large"
    assert create_instance(Loads, {}).loaded == "small"
    with pytest.raises(InvalidDefinition, match=r"on_enter or __init__"):
        create_instance(Reads, {})


def test_an_instance_of_a_class_without_parameters_needs_no_weak_references():
    assert type(create_instance(Slotted, {})) is Slotted


def test_an_instance_is_made_by_the_classs_metaclass_and_new():
    made = []

    class Meta(type):
        def __call__(cls):
            made.append("metaclass")
            return super().__call__()

    class A(metaclass=Meta):
        model: str = parameter(default="small", scope="worker")

    class B:
        def __new__(cls):
            made.append("new")
            return super().__new__(cls)

    class Other:
        def __new__(cls):
            return made

        def __init__(self):
            made.append("init")

    assert create_instance(A, {"model": "large"}).model == "large"
    assert type(create_instance(B, {})) is B
    assert create_instance(Other, {}) is made
    assert made == ["metaclass", "new"]


# --- which classes can have views --------------------------------------------------------------------------------


class Slotted:
    __slots__ = ("x",)


class WithSlottedBase(Slotted):
    pass


class AllSlots:
    __slots__ = ()


class Dict_(dict):
    pass


class Failure(Exception):  # noqa: N818 - a user may call it so
    pass


class Local_(threading.local):
    pass


class Partial_(functools.partial):  # made as a heap type by its C code
    pass


class Model_(pydantic.BaseModel):
    threshold: float = 0.5


@dataclasses.dataclass
class Data_:
    x: int = 0


@attrs.define(slots=False)
class Attrs_:
    x: int = 0


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Slotted, "Slotted has call-scoped parameters and uses __slots__"),
        (WithSlottedBase, "its base Slotted uses __slots__"),
        (AllSlots, "has no __dict__"),
        (Dict_, "builtin base dict"),
        (Failure, "builtin base Exception"),
        (Local_, r"builtin base _?local|written in C"),
        (Partial_, r"builtin base partial|written in C"),
        (Model_, "is a pydantic model"),
        (Data_, "is a @dataclass"),
        (Attrs_, "is an attrs class"),
    ],
)
def test_classes_where_views_cannot_work_are_refused_with_the_reason_and_the_remedy(cls, reason):
    with pytest.raises(InvalidDefinition, match=reason) as info:
        check_viewable(cls)
    message = str(info.value)
    assert cls.__name__ in message
    assert 'gw.parameter(scope="worker")' in message


class Abstract(abc.ABC):  # noqa: B024 - nothing needs to be abstract
    pass


T = typing.TypeVar("T")


class Generic_(typing.Generic[T]):
    pass


class Protocol_(typing.Protocol):
    pass


class FromProtocol(Protocol_):
    pass


class Layered:
    """Keeps some attributes in a dict of its own, as torch.nn.Module does with layers."""

    threshold: float = parameter(default=0.5)

    def __init__(self):
        self.__dict__["layers"] = {}

    def __setattr__(self, name, value):
        if isinstance(value, str):
            self.layers[name] = value
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name):
        try:
            return self.__dict__["layers"][name]
        except KeyError:
            raise AttributeError(name) from None


class Slots_with_dict:
    __slots__ = ("__dict__", "__weakref__")


@pytest.mark.parametrize(
    "cls", [Classifier, Abstract, Generic_, Generic_[int], FromProtocol, Layered, Slots_with_dict, threading.Thread]
)
def test_ordinary_classes_are_not_refused(cls):
    check_viewable(typing.get_origin(cls) or cls)


def test_a_class_that_keeps_its_attributes_elsewhere_shares_them_with_its_views():
    instance = Layered()
    instance.first = "layer"
    view = make_view(instance, {"threshold": 0.9})
    assert (view.threshold, view.first) == (0.9, "layer")
    view.head = "another"
    assert instance.head == "another"
    assert "head" not in vars(instance)


def test_an_enum_is_refused():
    class Text(str, enum.Enum):
        A = "a"

    with pytest.raises(InvalidDefinition, match="builtin base str"):
        check_viewable(Text)


def test_worker_scoped_parameters_need_no_views():
    check_bindable(Dict_)
    check_bindable(WithSlottedBase)
    for cls in (Data_, Model_, Attrs_):
        with pytest.raises(InvalidDefinition, match=f"{cls.__name__} has parameters and is a.* Use a plain class"):
            check_bindable(cls)
    with pytest.raises(InvalidDefinition, match=r"add '__weakref__' to __slots__"):
        check_bindable(Slotted)


def test_a_class_without_parameters_may_be_of_any_kind():
    for cls in (Slotted, Dict_, Model_, Data_, Attrs_):
        body = (
            {"run": method()(lambda self: 1), "__slots__": ()} if cls is Slotted else {"run": method()(lambda self: 1)}
        )
        compile_class(type(cls.__name__, (cls,), body), {})


def test_a_slotted_class_without_weak_references_cannot_have_parameters():
    class Slim(Slotted):
        __slots__ = ()
        model: str = parameter(default="small", scope="worker")

    with pytest.raises(InvalidDefinition, match=r"Slim has parameters and .*add '__weakref__' to __slots__"):
        collect_parameters(Slim)


def test_a_slotted_class_reads_worker_scoped_values():
    class Slim(WithSlottedBase):
        model: str = parameter(default="small", scope="worker")

    instance = create_instance(Slim, {"model": "large"})
    assert instance.model == "large"


# --- caches ------------------------------------------------------------------------------------------------------


def compiled_with(**body):
    body.setdefault("run", method()(lambda self: 1))
    body.setdefault("__annotations__", {"threshold": float})
    body.setdefault("threshold", parameter(default=0.5))
    return compile_class(type("Caching", (), {"__module__": __name__, **body}), {})


def test_cached_property_is_warned_about_with_its_place():
    def score(self):
        return self.threshold

    prop = functools.cached_property(score)
    with pytest.warns(UserWarning, match=r"Caching\.score is a cached_property .*read by all calls.*on_enter") as seen:
        compiled_with(score=prop)
    assert seen[0].filename == __file__
    assert seen[0].lineno == score.__code__.co_firstlineno


@pytest.mark.parametrize("cache", [functools.lru_cache, functools.lru_cache(maxsize=3), functools.cache])
@pytest.mark.parametrize("wrap", [lambda f: f, property, lambda f: method()(f)])
def test_lru_cache_is_warned_about(cache, wrap):
    def score(self):
        return self.threshold

    with pytest.warns(UserWarning, match=r"Caching\.score is a lru_cache .*keeps the object of every call alive"):
        compiled_with(score=wrap(cache(score)))


def test_a_cache_of_what_has_no_source_is_warned_about_as_well():
    with pytest.warns(UserWarning, match=r"Caching\.size is a lru_cache"):
        compiled_with(size=functools.lru_cache(len))


def test_caches_of_a_base_class_are_warned_about_and_overridden_ones_are_not():
    class Base:
        @functools.cached_property
        def score(self):
            return 1

    with pytest.warns(UserWarning, match=r"Sub\.score is a cached_property"):
        check_viewable(type("Sub", (Base,), {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_viewable(type("Sub", (Base,), {"score": 1}))


def test_caches_are_fine_where_there_are_no_call_scoped_parameters():
    class Plain:
        model: str = parameter(default="small", scope="worker")

        @functools.cached_property
        def size(self):
            return 1

        @method()
        def run(self):
            return 1

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile_class(Plain, {})


def test_a_class_with_call_scoped_parameters_that_cannot_have_views_is_refused_at_definition():
    class Bag(dict):
        threshold: float = parameter(default=0.5)

        @method()
        def run(self):
            return 1

    with pytest.raises(InvalidDefinition, match="Bag has call-scoped parameters and has the builtin base dict"):
        compile_class(Bag, {})


def test_a_class_with_a_del_is_guarded_when_it_is_compiled():
    cls = closing_class()
    del cls.__del__
    cls.__del__ = lambda self: None
    cls.run = method()(lambda self: 1)
    compile_class(cls, {})
    assert isinstance(vars(cls)["__del__"], views.GuardedDel)


@pytest.mark.parametrize("kind", ["dataclass", "slots dataclass", "pydantic", "attrs", "attrs slots"])
def test_classes_that_take_parameters_for_fields_are_refused_although_no_parameter_is_left_to_see(kind):
    body = {
        "__module__": __name__,
        "__annotations__": {"threshold": float},
        "threshold": parameter(default=0.5),
        "run": method()(lambda self: 1),
    }
    make = {
        "dataclass": lambda: dataclasses.dataclass(type("Bad", (), body)),
        "slots dataclass": lambda: dataclasses.dataclass(slots=True)(type("Bad", (), body)),
        "pydantic": lambda: type("Bad", (pydantic.BaseModel,), {**body, "model_config": {"extra": "allow"}}),
        "attrs": lambda: attrs.define(slots=False)(type("Bad", (), body)),
        "attrs slots": lambda: attrs.define(type("Bad", (), body)),
    }[kind]
    with pytest.raises(InvalidDefinition, match=r"Bad has parameters and is (a|an) .*Use a plain class"):
        compile_class(make(), {})
