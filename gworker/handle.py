"""Decorated classes and their instance handles: what `@app.cls` returns, and what calling it gives.

Neither starts anything. A handle finds its router at the first call; both travel by pickle, so a worker can call the
other classes of its app: by reference where the class's module can be imported, by value otherwise.
"""

from __future__ import annotations

import difflib
import html
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, overload

from gworker.bound import BoundGenerator, BoundMethod, CallOptions
from gworker.errors import InvalidDefinition
from gworker.functions import MethodSpec
from gworker.parameters import MISSING, ParameterValues, bind_parameters
from gworker.router.membership import DeployedClass, PoolDefinition, PoolKey
from gworker.spec import ClassSpec, compile_class
from gworker.wire import Packed, importable, look_up, pack, unpack

if TYPE_CHECKING:
    # A worker imports this module with its class; the router it needs only where it calls others.
    from gworker.router.client import AppClient
    from gworker.router.router import Router

T = TypeVar("T")

__all__ = ["BoundGenerator", "BoundMethod", "Cls", "Handle"]


class AppRef(Protocol):
    """What a class needs of its app."""

    name: str

    def client(self) -> AppClient:
        """The running app, started if need be."""
        ...

    def latest(self, cls: Cls) -> Cls:
        """The newest definition of a class that may have been replaced in a notebook."""
        ...


class Cls:
    """A decorated class. Calling it with parameter values gives a handle; `with_options` gives a variant of it."""

    def __init__(
        self,
        app: AppRef,
        user_cls: type,
        given: Mapping[str, Any],
        *,
        generation: int = 0,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        self.app = app
        self.user_cls = user_cls
        self.generation = generation
        self.given = dict(given)
        self.changes = dict(changes or {})
        self.name: str = self.given.get("name") or user_cls.__name__
        self._spec: ClassSpec | None = None
        for attribute in ("__module__", "__qualname__", "__doc__"):
            object.__setattr__(self, attribute, getattr(user_cls, attribute))

    @property
    def spec(self) -> ClassSpec:
        """What the class compiled into. A class that came by pickle is compiled at first use, when it is complete."""
        if self._spec is None:
            spec = compile_class(self.user_cls, self.given)
            self._spec = spec.with_options(**self.changes) if self.changes else spec
        return self._spec

    @property
    def variant(self) -> str:
        """Names the `with_options` variant; empty for the class itself."""
        return ",".join(f"{name}={value!r}" for name, value in sorted(self.changes.items()))

    def __call__(self, *args: Any, **parameters: Any) -> Handle:
        """A handle whose calls use these parameter values; defaults fill in the rest. Raises InvalidDefinition."""
        if args:
            shown = ", ".join(map(repr, args))
            raise InvalidDefinition(
                f"{self.name}({shown}): parameters are given by name; write for example "
                f"{self.name}({', '.join(f'{n}=...' for n in self.spec.parameters) or ''})"
            )
        return Handle(self, bind_parameters(self.name, self.spec.parameters, parameters))

    def with_options(self, **changes: Any) -> Cls:
        """A variant with other options and a pool of its own; stacks, and changes nothing about this one.

        Takes the options of `App.cls` except `name`. Raises InvalidDefinition.
        """
        if "name" in changes:
            raise InvalidDefinition(f"{self.name}.with_options(name=...): a variant keeps the name of its class")
        variant = Cls(
            self.app,
            self.user_cls,
            self.given,
            generation=self.generation,
            changes={**self.changes, **changes},
        )
        variant._spec = self.spec.with_options(**changes)
        return variant

    def scale(self, *, min_workers: int | None = None, max_workers: int | None = None) -> None:
        """Change how many workers the class may have, now; None leaves a bound as it is.

        A running app follows at once; what is started later, other sets of worker-scoped values among it, has the new
        bounds from the beginning. They last until the app stops, or is deployed again. Raises InvalidDefinition.
        """
        given = {"min_workers": min_workers, "max_workers": max_workers}
        changes = {name: value for name, value in given.items() if value is not None}
        if not changes:
            raise InvalidDefinition(f"{self.name}.scale(): write min_workers=..., max_workers=..., or both")
        # The types are checked here; whether they go together, by the controller, which knows what holds now.
        for name, value in changes.items():
            other = {"min_workers": 0} if name == "max_workers" else {"max_workers": max(1, _as_count(value))}
            self.spec.options.replace(**other, **{name: value})
        self.app.client().scale(self.name, self.variant, min_workers, max_workers)

    def describe(self) -> str:
        """What was compiled, for people."""
        return self.spec.describe()

    def packed(self) -> Packed:
        """The class as it travels to workers."""
        return pack(self)

    @overload
    @staticmethod
    def from_name(app_name: str, class_name: str) -> DeployedCls: ...
    @overload
    @staticmethod
    def from_name(app_name: str, class_name: str, *, like: type[T]) -> Callable[..., T]: ...
    @staticmethod
    def from_name(app_name: str, class_name: str, *, like: Any = None) -> Any:
        """A class of a deployed app, by name alone: `gw.Cls.from_name("inference-server", "Embedder")().embed`.

        Lazy: the app is looked up at the first use, in the Ray cluster that this process is attached to. That raises
        NotFound, naming what there is, when there is no such app or class.

        `like` is for type checkers only: the class itself, or a Protocol whose methods are marked with `@gw.method()`.
        What is called is what was deployed, and checks the arguments.
        """
        return DeployedCls(app_name, class_name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "user_cls" not in self.__dict__:
            raise AttributeError(name)
        if name in self.spec.methods:
            return UnboundMethod(self, name)
        return getattr(self.user_cls, name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        # class Sub(Embedder) derives from the user's own class.
        return (self.user_cls,)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self.user_cls)

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self.user_cls)

    def __reduce__(self) -> tuple[Any, ...]:
        if importable_cls(self):
            return (_import, (self.user_cls.__module__, self.user_cls.__qualname__, self.generation, self.changes))
        return (_rebuild, (self.app, self.user_cls, self.given, self.generation, self.changes))

    def __repr__(self) -> str:
        variant = f" with {self.variant}" if self.changes else ""
        return f"<gworker class {self.app.name}/{self.name}{variant}>"

    def __rich__(self) -> Any:
        from rich.text import Text

        return Text(self.describe())  # its brackets are no markup

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.describe())}</pre>"


class _Absent:
    """Stands for the class of a deployed app: only its workers have it."""


class DeployedApp:
    """An app that was deployed, perhaps by another process, as its handles reach it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def client(self) -> AppClient:
        """The app as this process reaches it. Raises NotFound when it is not deployed."""
        from gworker.router.client import deployed_client

        return deployed_client(self.name)

    def latest(self, cls: Cls) -> Cls:
        """The class itself: its definition is looked up with the app."""
        return cls

    def __reduce__(self) -> tuple[Any, ...]:
        return (DeployedApp, (self.name,))


class _LookedUp(NamedTuple):
    """What an app has told of a deployed class. It holds as long as one of `versions` serves, as far as is known."""

    client: AppClient
    versions: tuple[str, str]
    found: DeployedClass
    spec: ClassSpec


class DeployedCls(Cls):
    """A class of a deployed app, known by name; see `Cls.from_name`."""

    def __init__(self, app_name: str, class_name: str, *, changes: Mapping[str, Any] | None = None) -> None:
        super().__init__(DeployedApp(app_name), _Absent, {"name": class_name}, changes=changes)
        self.__qualname__ = class_name
        self._looked_up: _LookedUp | None = None

    def _deployed(self) -> _LookedUp:
        client = self.app.client()
        told = client.version
        known = self._looked_up
        if known is None or known.client is not client or told not in known.versions:
            found = client.deployed_class(self.name)
            try:
                spec: ClassSpec = unpack(found.interface)
            except (ImportError, AttributeError):  # this program lacks the app's modules
                spec = unpack(found.interface_by_value)
            spec = spec.with_options(**self.changes) if self.changes else spec
            known = self._looked_up = _LookedUp(client, (told, str(found.generation)), found, spec)
        return known

    @property
    def spec(self) -> ClassSpec:
        """What was deployed; asks the app at first use, and again once another version serves."""
        return self._deployed().spec

    def packed(self) -> Packed:
        """The class as it was deployed."""
        return self._deployed().found.cls

    def with_options(self, **changes: Any) -> DeployedCls:
        """A variant with a pool of its own; see `Cls.with_options`."""
        if "name" in changes:
            raise InvalidDefinition(f"{self.name}.with_options(name=...): a variant keeps the name of its class")
        return DeployedCls(self.app.name, self.name, changes={**self.changes, **changes})

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild_deployed, (self.app.name, self.name, self.changes))


class UnboundMethod:
    """`Embedder.embed`: a method named through its class. It can be passed around, and not called."""

    def __init__(self, cls: Cls, name: str) -> None:
        self.cls = cls
        self.name = name

    def _refuse(self) -> Any:
        raise TypeError(
            f"{self.cls.name}.{self.name} was called on the class: make an instance first, "
            f"{self.cls.name}().{self.name}.remote(...)"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse()

    def __repr__(self) -> str:
        return f"<gworker method {self.cls.name}.{self.name}{self.cls.spec.methods[self.name].signature}>"


class Handle:
    """An instance of a decorated class, as callers hold it: cheap, hashable, picklable; starts nothing."""

    def __init__(self, cls: Cls, values: ParameterValues) -> None:
        self._given_cls = cls
        self._values = values
        self._packed: Packed | None = None
        self._found: tuple[Cls, AppClient, Router] | None = None
        self._methods: dict[str, tuple[MethodSpec, Any]] = {}

    @property
    def _cls(self) -> Cls:
        return self._given_cls.app.latest(self._given_cls)

    @property
    def _key(self) -> PoolKey:
        cls = self._cls
        return PoolKey(cls.name, cls.variant, self._values.worker_key, cls.generation)

    @property
    def _packed_parameters(self) -> Packed | None:
        if self._packed is None and self._cls.spec.has_call_parameters:
            self._packed = pack(dict(self._values.call))
        return self._packed

    def _router(self) -> Router:
        return self._router_of(self._cls)

    def _router_of(self, cls: Cls) -> Router:
        client = cls.app.client()
        found = self._found
        if found is None or found[0] is not cls or found[1] is not client:
            found = self._found = (cls, client, client.router(self._key, self._define))
        return found[2]

    def _define(self) -> PoolDefinition:
        return define_pool(self._cls, self._key, self._values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        cls = self._cls
        method = cls.spec.methods.get(name)
        if method is None:
            if name in cls.spec.parameters:
                return {**self._values.call, **self._values.worker}[name]
            near = difflib.get_close_matches(name, cls.spec.methods, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            methods = ", ".join(cls.spec.methods)
            raise AttributeError(f"{cls.name} has no method {name!r} marked with @gw.method(); it has {methods}{hint}")
        bound = self._methods.get(name)
        if bound is None or bound[0] is not method:
            kind = BoundGenerator if method.is_generator else BoundMethod
            bound = self._methods[name] = (method, kind(self, method, CallOptions()))
        return bound[1]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Handle):
            return NotImplemented
        return (self._given_cls.app.name, self._key, self._values) == (
            other._given_cls.app.name,
            other._key,
            other._values,
        )

    def __hash__(self) -> int:
        return hash((self._given_cls.app.name, self._key, self._values))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Handle, (self._given_cls, self._values))

    def __repr__(self) -> str:
        values = {**self._values.call, **self._values.worker}
        shown = ", ".join(f"{name}={values[name]!r}" for name in self._given_cls.spec.parameters)
        return f"{self._given_cls.name}({shown})"

    def __rich__(self) -> Any:
        from rich.text import Text

        rest = f" of app {self._given_cls.app.name}: {', '.join(self._given_cls.spec.methods)}"
        return Text.assemble((repr(self), "bold"), rest)

    def _repr_html_(self) -> str:
        methods = "".join(
            f"<li><code>{html.escape(m.name + str(m.signature))}</code></li>"
            for m in self._given_cls.spec.methods.values()
        )
        head = f"<b>{html.escape(repr(self))}</b> of gworker app <b>{html.escape(self._given_cls.app.name)}</b>"
        return f"{head}<ul>{methods}</ul>"


def define_pool(cls: Cls, key: PoolKey, values: ParameterValues) -> PoolDefinition:
    """What the controller has to know to keep the pool of a class with these worker-scoped values."""
    spec = cls.spec
    return PoolDefinition(
        key=key,
        cls=cls.packed(),
        worker_values=pack(dict(values.worker)),
        options=spec.options.without_code(),
        max_inputs=spec.max_inputs,
        target_inputs=spec.target_inputs,
        floor_when_idle=values.worker_key == _default_worker_key(cls),
    )


def _default_worker_key(cls: Cls) -> str | None:
    """What names the pool of the default values; None where some value has to be given."""
    worker = {name: p for name, p in cls.spec.parameters.items() if p.scope == "worker"}
    if any(p.default is MISSING for p in worker.values()):
        return None
    return bind_parameters(cls.name, worker, {}).worker_key


def _as_count(value: Any) -> int:
    return value if isinstance(value, int) else 1


# --- how a class travels -----------------------------------------------------------------------------------------


def importable_cls(cls: Cls) -> bool:
    """Whether a worker can import the class, so that it, its enums and its exceptions are the same on both sides."""
    found = importable(cls.user_cls)
    return isinstance(found, Cls) and found.user_cls is cls.user_cls


def _import(module: str, qualname: str, generation: int, changes: Mapping[str, Any]) -> Cls:
    found = look_up(importlib.import_module(module), qualname)
    if not isinstance(found, Cls):
        raise ImportError(f"{module}.{qualname} is not a class decorated with @app.cls in this process")
    if not changes and generation == found.generation:
        return found
    return _rebuild(found.app, found.user_cls, found.given, generation, changes)


def _rebuild_deployed(app_name: str, class_name: str, changes: Mapping[str, Any]) -> DeployedCls:
    return DeployedCls(app_name, class_name, changes=changes)


def _rebuild(app: AppRef, user_cls: type, given: Mapping[str, Any], generation: int, changes: Mapping[str, Any]) -> Cls:
    return Cls(app, user_cls, given, generation=generation, changes=changes)
