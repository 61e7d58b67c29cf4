"""gworker: a Python class becomes a self-healing, autoscaling pool of GPU workers on Ray.

Decorate a class with `@app.cls(...)`, mark methods with `@gw.method()`, call them with `.remote(...)`.
"""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from gworker import openai
    from gworker.app import App
    from gworker.call import Call, gather
    from gworker.context import CallContext, current_attempt_number, current_call
    from gworker.decorators import asgi_app, batched, concurrent, method, on_enter, on_exit
    from gworker.errors import (
        AuthenticationError,
        BatchResultError,
        CallCancelled,
        DeadlineExceeded,
        Fatal,
        GWorkerError,
        InvalidDefinition,
        NotFound,
        PoolUnavailable,
        QueueFull,
        RemoteError,
        StartupFailed,
        Unschedulable,
        WorkerLost,
    )
    from gworker.handle import Cls
    from gworker.observe.events import Event
    from gworker.observe.status import AppStatus
    from gworker.options import Gpu
    from gworker.parameters import parameter
    from gworker.probe import Probe
    from gworker.retries import Retries
    from gworker.weights.shared import shared_weights

__version__ = "0.1.0"

__all__ = [
    "App",
    "AppStatus",
    "AuthenticationError",
    "BatchResultError",
    "Call",
    "CallCancelled",
    "CallContext",
    "Cls",
    "DeadlineExceeded",
    "Event",
    "Fatal",
    "GWorkerError",
    "Gpu",
    "InvalidDefinition",
    "NotFound",
    "PoolUnavailable",
    "Probe",
    "QueueFull",
    "RemoteError",
    "Retries",
    "StartupFailed",
    "Unschedulable",
    "WorkerLost",
    "asgi_app",
    "batched",
    "concurrent",
    "current_attempt_number",
    "current_call",
    "gather",
    "method",
    "on_enter",
    "on_exit",
    "openai",
    "parameter",
    "shared_weights",
]

# Where each name comes from. Imported at its first use: Ray takes a second, which `gworker --help` has no use for.
_HOMES = {
    "app": ("App",),
    "call": ("Call", "gather"),
    "context": ("CallContext", "current_attempt_number", "current_call"),
    "decorators": ("asgi_app", "batched", "concurrent", "method", "on_enter", "on_exit"),
    "errors": (
        "AuthenticationError",
        "BatchResultError",
        "CallCancelled",
        "DeadlineExceeded",
        "Fatal",
        "GWorkerError",
        "InvalidDefinition",
        "NotFound",
        "PoolUnavailable",
        "QueueFull",
        "RemoteError",
        "StartupFailed",
        "Unschedulable",
        "WorkerLost",
    ),
    "handle": ("Cls",),
    "observe.events": ("Event",),
    "observe.status": ("AppStatus",),
    "options": ("Gpu",),
    "parameters": ("parameter",),
    "probe": ("Probe",),
    "retries": ("Retries",),
    "weights.shared": ("shared_weights",),
}
_HOME_OF = {name: f"gworker.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> typing.Any:
    if name == "openai":
        return importlib.import_module("gworker.openai")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'gworker' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
