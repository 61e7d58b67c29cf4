"""Call views: objects of a user's class that share the instance's state and carry the parameter values of one call.

A view's type is the user's class and its `__dict__` is the instance's, so `self.x = 1` in a method is shared state.
Which values belong to which object stands in a table beside them, keyed by identity: threads and closures that a method
starts hold the view and so see the right values. The table holds no object alive.

What a view must never do is end the life of what it shares: see `_new_without_del`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import inspect
import threading
import types
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from gworker.errors import InvalidDefinition

T = TypeVar("T")


class Binding(weakref.ref[Any]):
    """The parameter values of one object. `call` is None for an instance itself: there they read as their defaults."""

    __slots__ = ("call", "key", "worker")
    call: Mapping[str, Any] | None
    key: int
    worker: Mapping[str, Any]


_bindings: dict[int, Binding] = {}


def binding_of(obj: object) -> Binding | None:
    """The values that were bound to this very object, or None."""
    return _bindings.get(id(obj))


def _bind(obj: object, call: Mapping[str, Any] | None, worker: Mapping[str, Any]) -> None:
    binding = Binding(obj, _forget)
    binding.call = call
    binding.worker = worker
    binding.key = id(obj)
    _bindings[binding.key] = binding


def _forget(binding: Binding) -> None:
    # Called before the object's memory is free again, so the identity cannot be another object's yet.
    _bindings.pop(binding.key, None)


def bind_instance(instance: object, worker_values: Mapping[str, Any]) -> None:
    """Give an instance its worker-scoped values; its call-scoped parameters read as their defaults."""
    if worker_values:
        _bind(instance, None, worker_values)


def create_instance(cls: type[T], worker_values: Mapping[str, Any]) -> T:
    """`cls()`, with its worker-scoped values readable in `__init__` already.

    A call-scoped parameter read in `__init__` raises as it does in `on_enter`, and for the same reason.
    """
    if type(cls).__call__ is not type.__call__:  # a metaclass has its own idea of making instances
        instance = cls()
        bind_instance(instance, worker_values)
        return instance
    instance = cls.__new__(cls)
    if isinstance(instance, cls):
        bind_instance(instance, worker_values)
        with entering(instance):
            instance.__init__()  # type: ignore[misc]
    return instance


def make_view(instance: T, call_values: Mapping[str, Any]) -> T:
    """An object of the instance's class that shares its state and has these call-scoped values."""
    cls = type(instance)
    view = object.__new__(cls) if getattr(cls, "__del__", None) is None else _new_without_del(cls)
    object.__setattr__(view, "__dict__", instance.__dict__)
    bound = _bindings.get(id(instance))
    _bind(view, call_values, bound.worker if bound is not None else {})
    return view


# --- views and __del__ -------------------------------------------------------------------------------------------


class _Making(threading.local):
    identity: int = 0
    view: Any = None


_making = _Making()


class GuardedDel:
    """Stands in for a class's `__del__`, so that it can be used up on a new view while it does nothing."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.__doc__ = getattr(original, "__doc__", None)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, instance: object) -> None:
        """Run the original `__del__`, or use it up if `instance` is the view that is being made."""
        if _making.identity == id(instance):
            _making.view = instance
        else:
            self.original(instance)


def guard_del(cls: type) -> None:
    """If instances of `cls` have a `__del__`, have it skip views. Doing so twice changes nothing."""
    original = inspect.getattr_static(cls, "__del__", None)
    if original is not None and not isinstance(original, GuardedDel):
        type.__setattr__(cls, "__del__", GuardedDel(original))


def _new_without_del(cls: type[T]) -> T:
    """A bare object of `cls` whose `__del__` will not run.

    Python runs the finalizer of an object once, even if that brings the object back (PEP 442). So a new view is dropped
    on the spot, and its `__del__`, the guard, brings it back. No table could tell the guard later which objects are
    views: when the collector frees one in a cycle, its weak references are gone before its `__del__` runs.
    """
    guard_del(cls)
    only_reference = [object.__new__(cls)]  # a debugger may hold the locals of this function, and so this list
    _making.identity = id(only_reference[0])
    try:
        only_reference.clear()
        view: T = _making.view
    finally:
        _making.identity, _making.view = 0, None
    return view


# --- reading while the worker starts -----------------------------------------------------------------------------


class _Entering:
    """One run of an `on_enter` hook. Tasks that the hook started inherit the variable, so its end is noted here."""

    def __init__(self, instance: object) -> None:
        self.instance = instance
        self.active = True


_entering: contextvars.ContextVar[_Entering | None] = contextvars.ContextVar("gworker_entering", default=None)


@contextlib.contextmanager
def entering(instance: object = None) -> Iterator[None]:
    """Inside, reading a call-scoped parameter raises: of `instance`, or of any object that is no view."""
    state = _Entering(instance)
    token = _entering.set(state)
    try:
        yield
    finally:
        state.active = False
        state.instance = None
        _entering.reset(token)


def is_entering(instance: object) -> bool:
    """True while `on_enter` of this instance runs, as seen from here."""
    state = _entering.get()
    return state is not None and state.active and (state.instance is None or state.instance is instance)


# --- which classes can have views --------------------------------------------------------------------------------


class _Plain:
    pass


_IS_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, or by an extension that imitates one


def check_viewable(cls: type) -> None:
    """Raise InvalidDefinition if instances of `cls` cannot have call views; warn of caches that keep one alive."""
    reason = _why_not_viewable(cls)
    if reason is not None:
        raise InvalidDefinition(
            f"{cls.__name__} has call-scoped parameters and {reason}: each call gets a view, an object of the class "
            "that shares the instance's __dict__, and here that cannot work. Use a plain class, or "
            'gw.parameter(scope="worker"), which needs no views'
        )
    for name, kind, function in _caches(cls):
        code = getattr(inspect.unwrap(function), "__code__", None)
        effect = (
            "its value is computed with the parameters of one call and then read by all calls"
            if kind == "cached_property"
            else "it keeps the object of every call alive and never finds it again"
        )
        warnings.warn_explicit(
            f"{cls.__name__}.{name} is a {kind} on a class with call-scoped parameters: {effect}. Compute it in "
            "on_enter, or cache by the values it depends on",
            UserWarning,
            code.co_filename if code else __file__,
            code.co_firstlineno if code else 1,
        )


def check_bindable(cls: type) -> None:
    """Raise InvalidDefinition if `cls` cannot have parameters of any scope."""
    reason = _why_swallowed(cls)
    if reason is None and not cls.__weakrefoffset__:
        reason = "its instances cannot be referred to weakly: add '__weakref__' to __slots__"
    if reason is not None:
        raise InvalidDefinition(f"{cls.__name__} has parameters and {reason}. Use a plain class")


def _why_swallowed(cls: type) -> str | None:
    if hasattr(cls, "__pydantic_fields__"):
        return "is a pydantic model, which would take the parameters for its own fields"
    if dataclasses.is_dataclass(cls):
        return "is a @dataclass, whose __init__ would assign to the parameters"
    if hasattr(cls, "__attrs_attrs__"):
        return "is an attrs class, whose __init__ would assign to the parameters"
    return None


def _why_not_viewable(cls: type) -> str | None:
    swallowed = _why_swallowed(cls)
    if swallowed is not None:
        return swallowed
    for base in cls.__mro__[:-1]:
        slots = base.__dict__.get("__slots__", ())
        named = {slots} if isinstance(slots, str) else set(slots)
        if named - {"__dict__", "__weakref__"}:
            return f"{'uses' if base is cls else f'its base {base.__name__} uses'} __slots__"
        if not base.__flags__ & _IS_HEAP_TYPE:
            return f"has the builtin base {base.__name__}, whose contents are not in the __dict__"
    if not cls.__dictoffset__:
        return "has no __dict__, because of __slots__"
    if (cls.__basicsize__, cls.__itemsize__) != (_Plain.__basicsize__, _Plain.__itemsize__):
        return "has a base written in C, whose contents are not in the __dict__"
    return None


def _caches(cls: type) -> Iterator[tuple[str, str, Any]]:
    for name in dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base)):
        value = inspect.getattr_static(cls, name)
        function = value.fget if isinstance(value, property) else value
        if isinstance(value, functools.cached_property):
            yield name, "cached_property", value.func
        elif isinstance(function, functools._lru_cache_wrapper):
            yield name, "lru_cache", function
