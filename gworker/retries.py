"""How often, how soon and after which exceptions a call is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gworker import checks
from gworker.errors import InvalidDefinition, RemoteError
from gworker.wire import Failure, importable


@dataclass(frozen=True, kw_only=True)
class Retries:
    """A retry policy: `@app.cls(retries=gw.Retries(max_retries=3))`, or `retries=3` for the same with these defaults.

    `max_retries` does not count the first try. The n-th retry after an exception waits
    `initial_delay_s * backoff_coefficient ** (n - 1)` seconds, `max_delay_s` at most. `retry_on` are the exception
    classes that are worth another try, with their subclasses; a class is known by its module and qualified name, so
    that a notebook's class which has been defined anew is still meant. The loss of a worker is retried at once,
    whatever `retry_on` says.

    >>> [Retries(max_retries=4, max_delay_s=5).delay_s(n) for n in (1, 2, 3, 4)]
    [1.0, 2.0, 4.0, 5.0]
    """

    max_retries: int
    initial_delay_s: float = 1.0
    backoff_coefficient: float = 2.0
    max_delay_s: float = 60.0
    retry_on: tuple[type[BaseException], ...] = (Exception,)

    def __post_init__(self) -> None:
        where = "gw.Retries"

        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("max_retries", checks.whole(where, "max_retries", self.max_retries, example=3))
        put("initial_delay_s", checks.number(where, "initial_delay_s", self.initial_delay_s, example=1, unit="seconds"))
        put(
            "backoff_coefficient",
            checks.number(where, "backoff_coefficient", self.backoff_coefficient, least=1, example=2),
        )
        put("max_delay_s", checks.number(where, "max_delay_s", self.max_delay_s, example=60, unit="seconds"))
        if self.initial_delay_s > self.max_delay_s:
            raise InvalidDefinition(
                f"{where}: initial_delay_s={self.initial_delay_s:g} is greater than max_delay_s={self.max_delay_s:g}: "
                f"write max_delay_s={self.initial_delay_s:g} or more"
            )
        put("retry_on", _exception_classes(where, self.retry_on))

    @classmethod
    def of(cls, value: Any) -> Retries:
        """What `retries=` may be given: a policy, a number of retries, or None for none."""
        if isinstance(value, Retries):
            return value
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise InvalidDefinition(
                f"retries={checks.shown(value)} ({type(value).__name__}) was given; expected a whole number that is "
                "not negative or a policy: write retries=3 or retries=gw.Retries(max_retries=3, initial_delay_s=0.5)"
            )
        return cls(max_retries=value or 0)

    def delay_s(self, retry_number: int) -> float:
        """Seconds to wait before the retry with this number, counted from 1."""
        try:
            delay = self.initial_delay_s * self.backoff_coefficient ** (retry_number - 1)
        except OverflowError:
            return self.max_delay_s
        return min(delay, self.max_delay_s)

    def matches(self, failure: Failure) -> bool:
        """True if what was raised is worth another try. Goes by the names of classes: unpickling runs user code.

        What arrives as a `RemoteError` counts as that, too.
        """
        if failure.pickled is None and issubclass(RemoteError, self.retry_on):
            return True
        return any(name in failure.mro for cls in self.retry_on for name in _names(cls))


def _names(cls: type) -> list[str]:
    """What a class may be called in a worker: cloudpickle drops the qualified name of one that travels by value."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    return [name] if importable(cls) is cls else [name, f"{cls.__module__}.{cls.__name__}"]


def _exception_classes(where: str, value: Any) -> tuple[type[BaseException], ...]:
    classes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            raise InvalidDefinition(
                f"{where}: retry_on={checks.shown(value)} was given; expected exception classes: "
                "write for example retry_on=(ConnectionError, TimeoutError)"
            )
    return classes
