"""The options of `@app.cls(...)` and `.with_options(...)`, validated."""

from __future__ import annotations

import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from gworker import checks
from gworker.errors import InvalidDefinition
from gworker.probe import Probe
from gworker.retries import Retries


@dataclass(frozen=True)
class Gpu:
    """The GPUs of one worker: `gw.Gpu("A100")`, `gw.Gpu(count=0.5)` for half of any, `gw.Gpu("H100", 2)` for two.

    `type` is an accelerator type as Ray names them; None takes any. `count` is a whole number, or a fraction below 1 to
    share a GPU between workers.
    """

    type: str | None = None
    count: float = 1

    def __post_init__(self) -> None:
        kind: Any = self.type
        if kind is not None and not (isinstance(kind, str) and kind.strip()):
            raise InvalidDefinition(
                f"gw.Gpu(type={checks.shown(kind)}) was given; expected the name of an accelerator or None: write "
                f'for example gw.Gpu("A100"){_count_hint(kind)}'
            )
        count = checks.number("gw.Gpu", "count", self.count, least=0.0001, example=1)
        if count > 1 and not count.is_integer():
            raise InvalidDefinition(
                f"gw.Gpu: count={count:g} was given; a worker can have a part of one GPU or several whole ones: write "
                f"count={int(count)}, count={int(count) + 1} or a fraction below 1"
            )
        object.__setattr__(self, "count", int(count) if count.is_integer() else count)

    def __str__(self) -> str:
        return f"{self.count:g} x {self.type or 'any GPU'}"


def _count_hint(value: object) -> str:
    is_count = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return f", or gw.Gpu(count={value}) for that many of any type" if is_count else ""


_NO_RETRIES = Retries(max_retries=0)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a class asks for. Make it with `build`; `replace` gives a changed copy."""

    gpu: Gpu | None = None
    cpu: float = 1.0
    memory_mb: float | None = None
    resources: Mapping[str, float] | None = None
    min_workers: int = 0
    max_workers: int = 100
    buffer_workers: int = 0
    scaledown_window_s: float = 60.0
    startup_timeout_s: float = 600.0
    timeout_s: float | None = None
    drain_timeout_s: float = 30.0
    retries: Retries = _NO_RETRIES
    max_pending: int = 10_000
    max_pending_mb: float = 1024.0
    probes: tuple[Probe, ...] = ()
    name: str | None = None
    runtime_env: Mapping[str, Any] | None = None

    @classmethod
    def build(cls, given: Mapping[str, Any], *, where: str) -> Options:
        """Options from what a user gave; `where` begins the messages of the InvalidDefinition that it raises."""
        for name in given:
            if name not in OPTION_NAMES:
                raise InvalidDefinition(f"{where}: there is no option {name!r}.{checks.nearest(name, OPTION_NAMES)}")
        return cls(**_checked(where, {**_DEFAULTS, **given}))

    def replace(self, **changes: Any) -> Options:
        """A copy with these options changed, everything checked again."""
        return Options.build({**self.as_dict(), **changes}, where="with_options")

    def without_code(self) -> Options:
        """The same for processes that may lack the app's own modules: what is retried, its callers decide."""
        return replace(self, retries=_NO_RETRIES)

    def as_dict(self) -> dict[str, Any]:
        """The options by name."""
        return {name: getattr(self, name) for name in OPTION_NAMES}


OPTION_NAMES = tuple(f.name for f in fields(Options))
_DEFAULTS = Options().as_dict()


def _checked(where: str, given: dict[str, Any]) -> dict[str, Any]:
    checked = dict(given)

    def whole(name: str, **bounds: Any) -> None:
        checked[name] = checks.whole(where, name, given[name], **bounds)

    def seconds(name: str, **bounds: Any) -> None:
        checked[name] = checks.number(where, name, given[name], unit="seconds", **bounds)

    checked["gpu"] = _gpu(where, given["gpu"])
    checked["cpu"] = checks.number(where, "cpu", given["cpu"], example=1)
    checked["memory_mb"] = _memory_mb(where, given["memory_mb"])
    checked["resources"] = _resources(where, given["resources"])
    whole("min_workers")
    whole("max_workers", least=1, example=100)
    whole("buffer_workers")
    if checked["min_workers"] > checked["max_workers"]:
        raise InvalidDefinition(
            f"{where}: min_workers={checked['min_workers']} is greater than max_workers={checked['max_workers']}: "
            f"write max_workers={checked['min_workers']} or more"
        )
    seconds("scaledown_window_s", example=60)
    seconds("startup_timeout_s", above=True, example=600)
    if given["timeout_s"] is not None:
        seconds("timeout_s", above=True, example=30)
    seconds("drain_timeout_s", example=30)
    try:
        checked["retries"] = Retries.of(given["retries"])
    except InvalidDefinition as error:
        raise InvalidDefinition(f"{where}: {error}") from None
    whole("max_pending", least=1, example=10_000)
    checked["max_pending_mb"] = checks.number(
        where, "max_pending_mb", given["max_pending_mb"], above=True, example=1024, unit="megabytes"
    )
    checked["probes"] = _probes(where, given["probes"])
    checked["name"] = _name(where, given["name"])
    runtime_env = given["runtime_env"]
    if runtime_env is not None and not isinstance(runtime_env, Mapping):
        raise InvalidDefinition(
            f"{where}: runtime_env={checks.shown(runtime_env)} was given; expected a dict as Ray has it: write for "
            'example runtime_env={"env_vars": {"HF_HOME": "/models"}}'
        )
    checked["runtime_env"] = None if runtime_env is None else dict(runtime_env)
    return checked


def _gpu(where: str, value: Any) -> Gpu | None:
    if value is None or isinstance(value, Gpu):
        return value
    write = 'gpu=gw.Gpu("A100")'
    if isinstance(value, str):
        name, _, count = value.partition(":")
        write = f'gpu=gw.Gpu("{name}", {count})' if count.isdigit() else f'gpu=gw.Gpu("{value}")'
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
        write = f"gpu=gw.Gpu(count={value:g})"
    raise InvalidDefinition(f"{where}: gpu={checks.shown(value)} was given; expected a gw.Gpu or None: write {write}")


_UNITS_MB = {
    "k": 1 / 1024, "ki": 1 / 1024, "m": 1.0, "mi": 1.0, "g": 1024.0, "gi": 1024.0, "t": 1024.0**2, "ti": 1024.0**2
}  # fmt: skip


def _memory_mb(where: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", value, re.IGNORECASE)
        amount = float(match[1]) * _UNITS_MB[(match[2] or "m").lower()] if match else 4096
        raise InvalidDefinition(
            f"{where}: memory_mb={value!r} was given; expected a number of megabytes: write memory_mb={amount:.0f}"
        )
    return checks.number(where, "memory_mb", value, above=True, example=4096, unit="megabytes")


_OWN_OPTION = {"CPU": "cpu=2", "GPU": "gpu=gw.Gpu(count=1)", "memory": "memory_mb=4096"}


def _resources(where: str, value: Any) -> dict[str, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InvalidDefinition(
            f"{where}: resources={checks.shown(value)} was given; expected a dict from names to amounts: write for "
            'example resources={"licence": 1}'
        )
    for name in value:
        if name in _OWN_OPTION:
            raise InvalidDefinition(
                f"{where}: resources={checks.shown(value)} names {name!r}, which has an option of its own: write "
                f"{_OWN_OPTION[name]}"
            )
    return {n: checks.number(where, f"resources[{n!r}]", v, above=True, example=1) for n, v in value.items()}


def _probes(where: str, value: Any) -> tuple[Probe, ...]:
    listed = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if listed and all(isinstance(probe, Probe) for probe in value):
        return tuple(value)
    write = f'probes=[gw.Probe.on("{value if isinstance(value, str) and value else "health"}")]'
    if isinstance(value, Probe):
        write = f'probes=[gw.Probe.on("{value.method}", ...)]'
    elif listed:
        wrong = next(probe for probe in value if not isinstance(probe, Probe))
        if isinstance(wrong, str):
            write = f'probes=[gw.Probe.on("{wrong}")]'
    raise InvalidDefinition(
        f"{where}: probes={checks.shown(value)} was given; expected a list of probes: write {write}"
    )


def _name(where: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[^\W\d][\w.-]*", value):
        proposal = re.sub(r"[^\w.-]+", "-", value).strip("-.0123456789") if isinstance(value, str) else ""
        raise InvalidDefinition(
            f"{where}: name={checks.shown(value)} was given; expected a letter followed by letters, digits, '_', '-' "
            f"or '.': write for example name=\"{proposal or 'Embedder'}\""
        )
    return value
