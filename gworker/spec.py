"""What a class and its options compile into, validated: all that later stages need to know, and nothing to check again.

`compile_class` is where mistakes in a definition come to light; its messages say what to write instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gworker import checks
from gworker.decorators import CONCURRENT_MARK, BatchSpec, ConcurrentSpec
from gworker.errors import InvalidDefinition
from gworker.functions import HookSpec, MethodSpec, collect_functions
from gworker.options import Gpu, Options
from gworker.parameters import MISSING, Parameter, check_viewable, collect_parameters, guard_del
from gworker.probe import Probe, worst_case_detection_s

__all__ = ["BatchSpec", "ClassSpec", "Gpu", "HookSpec", "MethodSpec", "Options", "compile_class"]


@dataclass(frozen=True, eq=False)
class ClassSpec:
    """A class that can be served. `max_inputs` is how many inputs a worker takes in, over all methods."""

    name: str
    user_cls: type
    methods: dict[str, MethodSpec]
    enter_hooks: tuple[HookSpec, ...]
    exit_hooks: tuple[HookSpec, ...]
    parameters: dict[str, Parameter]
    options: Options
    concurrent: bool
    max_inputs: int
    target_inputs: int

    @property
    def has_call_parameters(self) -> bool:
        """True if calls need views: some parameter travels with the call."""
        return any(p.scope == "call" for p in self.parameters.values())

    def with_options(self, **changes: Any) -> ClassSpec:
        """The same class with other options; raises InvalidDefinition."""
        options = self.options.replace(**changes)
        _check_probes(self.name, self.methods, options.probes)
        return replace(self, options=options, name=options.name or self.name)

    def interface(self) -> ClassSpec:
        """What a caller has to know of the class: everything but the class."""
        methods = {name: method.without_types() for name, method in self.methods.items()}
        return replace(self, user_cls=object, methods=methods)

    def describe(self) -> str:
        """What was compiled, for people."""
        return "\n".join(_describe(self))


def compile_class(user_cls: type, given_options: Mapping[str, Any]) -> ClassSpec:
    """Compile what `@app.cls(**given_options)` was put on. Raises InvalidDefinition for whatever cannot work."""
    _check_is_class(user_cls)
    options = Options.build(given_options, where=f"@app.cls of {user_cls.__name__}")
    _check_constructor(user_cls)
    functions = collect_functions(user_cls)
    if not functions.methods:
        raise InvalidDefinition(
            f"{user_cls.__name__} has no methods that could be called: write @gw.method() above at least one def in it"
        )
    parameters = collect_parameters(user_cls)
    if any(p.scope == "call" for p in parameters.values()):
        check_viewable(user_cls)
        guard_del(user_cls)
    concurrent = getattr(user_cls, CONCURRENT_MARK, None)
    max_inputs, target_inputs = _inputs(user_cls.__name__, functions.methods, concurrent)
    _check_probes(user_cls.__name__, functions.methods, options.probes)
    return ClassSpec(
        name=options.name or user_cls.__name__,
        user_cls=user_cls,
        methods=functions.methods,
        enter_hooks=functions.enter_hooks,
        exit_hooks=functions.exit_hooks,
        parameters=parameters,
        options=options,
        concurrent=concurrent is not None,
        max_inputs=max_inputs,
        target_inputs=target_inputs,
    )


def _check_is_class(value: Any) -> None:
    if isinstance(value, type):
        return
    name = getattr(value, "__name__", None) or getattr(getattr(value, "user_cls", None), "__name__", None)
    if hasattr(value, "user_cls"):
        raise InvalidDefinition(
            f"{name} was given to @app.cls twice: write one @app.cls(...) above the class, and "
            f"{name}.with_options(...) for a variant"
        )
    raise InvalidDefinition(
        f"@app.cls was put on {checks.shown(value)} ({type(value).__name__}); it goes on a class: write "
        f"class {(name or 'Worker').title().replace('_', '')}: with {name or 'the function'} as a method under "
        "@gw.method()"
    )


def _check_constructor(cls: type) -> None:
    for name in ("__init__", "__new__"):
        function = getattr(cls, name)
        if function is getattr(object, name):
            continue
        try:
            params = list(inspect.signature(function).parameters.values())[1:]
        except (TypeError, ValueError):  # written in C
            continue
        required = [p.name for p in params if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if required:
            lines = "; ".join(f'{n}: <type> = gw.parameter(scope="worker")' for n in required)
            raise InvalidDefinition(
                f"{cls.__name__}.{name} takes required arguments ({', '.join(required)}), but instances are made "
                f"without any: write {lines} in the class body, or give the values in an @gw.on_enter() function"
            )
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(getattr(cls, "__abstractmethods__")))  # noqa: B009 - mypy does not know the attribute
        raise InvalidDefinition(
            f"{cls.__name__} is abstract and cannot be made: define {missing} in it, or put @app.cls on a subclass"
        )


def _inputs(name: str, methods: Mapping[str, MethodSpec], concurrent: ConcurrentSpec | None) -> tuple[int, int]:
    """`max_inputs` and `target_inputs`."""
    batched = {m.name: m.batch for m in methods.values() if m.batch is not None}
    largest = max((batch.max_batch_size for batch in batched.values()), default=0)
    for method, batch in batched.items():
        if concurrent is None and batch.max_concurrent_batches > 1:
            raise InvalidDefinition(
                f"{name}.{method}: max_concurrent_batches={batch.max_concurrent_batches} was given, but one invocation "
                "runs at a time on a class without @gw.concurrent: write "
                f"@gw.concurrent(max_inputs={batch.max_batch_size * (batch.max_concurrent_batches + 1)}) on the class"
            )
        if concurrent is not None and concurrent.max_inputs < batch.max_batch_size:
            raise InvalidDefinition(
                f"{name}: max_inputs={concurrent.max_inputs} is less than max_batch_size={batch.max_batch_size} of "
                f"{method}, so no batch could ever be full: write @gw.concurrent(max_inputs={2 * largest}), which "
                "holds one batch that runs and one that gathers"
            )
    max_inputs = concurrent.max_inputs if concurrent is not None else max(1, 2 * largest)
    given = concurrent.target_inputs if concurrent is not None else None
    return max_inputs, given if given is not None else max(1, max_inputs * 8 // 10)


def _check_probes(name: str, methods: Mapping[str, MethodSpec], probes: tuple[Probe, ...]) -> None:
    for probe in probes:
        method = methods.get(probe.method)
        label = f'{name}: gw.Probe.on("{probe.method}")'
        if method is None:
            raise InvalidDefinition(
                f"{label} names no method of the class: write the name of a function with @gw.method()."
                f"{checks.nearest(probe.method, methods)}"
            )
        if method.batch is not None or method.is_generator:
            kind = "batched" if method.batch is not None else "a generator"
            raise InvalidDefinition(
                f"{label}: {probe.method} is {kind}, and a probe needs one answer: write a plain method, for example "
                "def health(self) -> bool"
            )
        try:
            method.signature.bind()
        except TypeError:
            raise InvalidDefinition(
                f"{label}: {method} needs arguments, and a probe passes none: write "
                f"def {probe.method}(self), or give every argument a default"
            ) from None


# --- for people --------------------------------------------------------------------------------------------------


def _describe(spec: ClassSpec) -> Iterator[str]:
    options = spec.options
    is_deployed = spec.user_cls is object  # known by its interface
    yield spec.name + ("" if is_deployed else f" ({spec.user_cls.__module__}.{spec.user_cls.__qualname__})")
    yield "  methods"
    for method in spec.methods.values():
        asgi = f"{method.name}   [ASGI application below /v1/{spec.name}/]"
        yield "    " + (asgi if method.asgi else _method_line(method))
    for kind, hooks in (("on_enter", spec.enter_hooks), ("on_exit", spec.exit_hooks)):
        if hooks:
            yield f"  {kind}: " + ", ".join(f"{h.name} (async)" if h.is_async else h.name for h in hooks)
    if spec.parameters:
        yield "  parameters"
        for parameter in spec.parameters.values():
            default = "required" if parameter.default is MISSING else f"default {checks.shown(parameter.default)}"
            yield f"    {parameter.name}: {parameter.type_name} ({default}, scope {parameter.scope})"
    batched = [m.name for m in spec.methods.values() if m.batch is not None]
    if batched and spec.has_call_parameters:
        names = ", ".join(p.name for p in spec.parameters.values() if p.scope == "call")
        yield f"    a batch of {', '.join(batched)} holds calls with equal {names} only: many values, small batches"
    how = "concurrent" if spec.concurrent else "one invocation at a time"
    yield f"  inputs: {how}, a worker holds up to {spec.max_inputs}, autoscaling aims at {spec.target_inputs}"
    yield f"  worker: {_resource_line(options)}"
    buffer = f", {options.buffer_workers} spare while active" if options.buffer_workers else ""
    window = f"idle ones go after {options.scaledown_window_s:g} s"
    yield f"  workers: {options.min_workers} to {options.max_workers}{buffer}, {window}"
    limit = "no limit for one execution" if options.timeout_s is None else f"timeout_s {options.timeout_s:g}"
    retries = f"{options.retries.max_retries} retries" if options.retries.max_retries else "no retries"
    yield (
        f"  limits: {limit}, {retries}, start within {options.startup_timeout_s:g} s, drain within "
        f"{options.drain_timeout_s:g} s, up to {options.max_pending} calls or {options.max_pending_mb:g} MB waiting"
    )
    for probe in options.probes:
        yield (
            f"  {probe.kind} probe: {probe.method} every {probe.period_s:g} s, time-out {probe.timeout_s:g} s, "
            f"{probe.failures} failures in a row"
        )
        yield (
            f"    a fault is told within {worst_case_detection_s(probe):g} s, a process that does not answer within "
            f"{worst_case_detection_s(probe, frozen=True):g} s"
        )


def _method_line(method: MethodSpec) -> str:
    kinds = [text for text, is_so in (("async", method.is_async), ("generator", method.is_generator)) if is_so]
    if (batch := method.batch) is not None:
        parts = [f"batches of up to {batch.max_batch_size}, window {batch.wait_s * 1000:g} ms"]
        if batch.max_weight is not None:
            parts.append(f"weight up to {batch.max_weight:g}, like weights together")
        if batch.max_concurrent_batches > 1:
            parts.append(f"{batch.max_concurrent_batches} at a time")
        kinds.append(", ".join(parts))
    return str(method) + (f"   [{'; '.join(kinds)}]" if kinds else "")


def _resource_line(options: Options) -> str:
    parts = [str(options.gpu)] if options.gpu is not None else []
    parts.append(f"{options.cpu:g} CPU")
    if options.memory_mb is not None:
        parts.append(f"{options.memory_mb:g} MB")
    parts += [f"{amount:g} x {name}" for name, amount in (options.resources or {}).items()]
    return ", ".join(parts)
