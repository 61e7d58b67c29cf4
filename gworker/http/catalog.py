"""What can be called over HTTP: the methods of an app's classes, and the handles that call them."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from gworker.app import App
from gworker.bound import BoundGenerator, BoundMethod
from gworker.errors import InvalidDefinition
from gworker.functions import MethodSpec
from gworker.handle import Cls, DeployedCls
from gworker.http.problems import Problem
from gworker.http.schema import MethodSchema, hints_from_texts, resolve_hints
from gworker.observe.status import AppStatus
from gworker.parameters import MISSING
from gworker.router.client import deployed_client
from gworker.wire import unpack

log = logging.getLogger("gworker.http")

# How many sets of class parameters a method keeps handles for; making one again costs a validation.
_KEPT_HANDLES = 256

Bound = BoundMethod[..., Any] | BoundGenerator[..., Any]


class Target:
    """A method that requests reach. `kept` and `make` give it ready to call, for one set of class parameters."""

    def __init__(self, cls: Cls, method: MethodSpec, default_deadline_s: float) -> None:
        self.cls = cls
        self.method = method
        self.name = f"{cls.name}.{method.name}"
        self.parameters_key = "parameters"
        self._default_deadline_s = default_deadline_s
        self._plain: Bound | None = None
        self._kept: OrderedDict[bytes, Bound] = OrderedDict()

    def kept(self, parameters: Mapping[str, Any]) -> Bound | None:
        """The method for these class parameters, if it has been called with them before."""
        if not parameters:
            return self._plain
        key = _key(parameters)
        bound = None if key is None else self._kept.get(key)
        if bound is not None and key is not None:
            self._kept.move_to_end(key)
        return bound

    def make(self, parameters: Mapping[str, Any]) -> Bound:
        """The same, made at need: may look the app up, or start it, so it is not for an event loop. Raises Problem."""
        try:
            handle = self.cls(**parameters)
        except InvalidDefinition as error:
            where = f"#/{self.parameters_key}"
            raise Problem(
                422,
                "invalid-arguments",
                "The class parameters do not fit",
                str(error),
                errors=[{"pointer": where, "detail": str(error), "type": "parameters"}],
            ) from None
        handle._router()
        bound: Bound = getattr(handle, self.method.name).with_options(deadline_s=self._default_deadline_s)
        if not parameters:
            self._plain = bound
        elif (key := _key(parameters)) is not None:
            self._kept[key] = bound
            if len(self._kept) > _KEPT_HANDLES:
                self._kept.popitem(last=False)
        return bound


def _key(parameters: Mapping[str, Any]) -> bytes | None:
    try:
        return to_json(parameters, bytes_mode="base64", serialize_unknown=False)
    except Exception:  # arrays among the parameters: no handle is kept
        return None


class Endpoint(Target):
    """A method with a path of its own, and the JSON it takes and gives."""

    def __init__(self, cls: Cls, method: MethodSpec, schema: MethodSchema, default_deadline_s: float) -> None:
        super().__init__(cls, method, default_deadline_s)
        self.schema = schema
        self.path = f"/v1/{cls.name}/{method.name}"
        self.parameters_key = schema.parameters_key or "parameters"


class Catalog:
    """The classes of an app: of one defined in this process, or of a deployed one that is known by its name.

    `endpoints` are by path, `mounts` (classes with an `@gw.asgi_app()` function) by class name. `load` reads them anew.
    """

    def __init__(self, app: App | str, default_deadline_s: float) -> None:
        self._app = App(app) if isinstance(app, str) else app
        self._deployed = isinstance(app, str)
        self._default_deadline_s = default_deadline_s
        self._versions: dict[str, int] | None = None
        self.name = self._app.name
        self.classes: dict[str, Cls] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.mounts: dict[str, Target] = {}
        self.load()

    def load(self) -> bool:
        """Read the classes again; whether there was something new. Blocks. Raises NotFound for an unknown app."""
        versions = self._read_versions()
        if versions == self._versions:
            return False
        classes = self._read_classes(versions)
        endpoints: dict[str, Endpoint] = {}
        mounts: dict[str, Target] = {}
        for cls in classes.values():
            for method in cls.spec.methods.values():
                if method.asgi:
                    mounts[cls.name] = Target(cls, method, self._default_deadline_s)
                    continue
                schema = MethodSchema(f"{cls.name}.{method.name}", method, _hints(cls, method), cls.spec.parameters)
                endpoint = Endpoint(cls, method, schema, self._default_deadline_s)
                endpoints[endpoint.path] = endpoint
        self._versions, self.classes, self.endpoints, self.mounts = versions, classes, endpoints, mounts
        return True

    def warm(self) -> None:
        """Have the app running and its default pools known, so that no request blocks the event loop. Blocks."""
        self._app.client()
        for target in (*self.endpoints.values(), *self.mounts.values()):
            if all(p.default is not MISSING for p in target.cls.spec.parameters.values()):
                target.make({})

    def status(self) -> AppStatus:
        """The app at this moment. Blocks."""
        return self._app.status()

    def _read_versions(self) -> dict[str, int]:
        if self._deployed:
            return deployed_client(self.name).generations()
        return {name: id(cls) for name, cls in self._app.classes.items()}

    def _read_classes(self, versions: Mapping[str, int]) -> dict[str, Cls]:
        if self._deployed:
            return {name: Cls.from_name(self.name, name) for name in versions}
        return dict(self._app.classes)


def _hints(cls: Cls, method: MethodSpec) -> dict[str, Any]:
    """The types of a method: from the class, where this process can have it, else what its signature says."""
    user_cls = _class_of_deployed(cls) if isinstance(cls, DeployedCls) else cls.user_cls
    function = getattr(user_cls, method.name, None)
    return hints_from_texts(method.signature) if function is None else resolve_hints(function)


def _class_of_deployed(cls: DeployedCls) -> type | None:
    try:
        found: Cls = unpack(cls.packed())
        return found.user_cls
    except Exception as error:
        log.info("the class %s cannot be had in this process (%s): its types are read from texts", cls.name, error)
        return None
