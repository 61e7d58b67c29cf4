"""The account book of the fault tests: what ran, as workers wrote it down, against what callers were told.

Workers import this module, so it imports no more than they need.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import gworker as gw

# A call that has not ended this long after it was made, or after its callers were told to stop, hangs.
ANSWER_S = 60.0


@dataclass(frozen=True)
class Receipt:
    """What a method that keeps the book returns: which execution, of which call, this result is of."""

    number: int
    call: str
    attempt: int
    pid: int


@dataclass
class Execution:
    """One execution as the book has it; `phase` is "start", or, once it has ended, "end" or "raise"."""

    number: int
    pid: int
    phase: str = "start"


class Book:
    """A file to which every execution in a worker appends its start and its end. It travels to workers by pickle."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)

    @contextlib.contextmanager
    def execution(self, number: int) -> Iterator[Receipt]:
        """Put down the execution that this block is: of the current call, with the number its caller gave it."""
        call = gw.current_call()
        receipt = Receipt(number, call.id, call.attempt, os.getpid())
        self._write("start", receipt)
        try:
            yield receipt
        except BaseException:
            self._write("raise", receipt)
            raise
        self._write("end", receipt)

    @contextlib.contextmanager
    def batch(self, numbers: Sequence[int]) -> Iterator[list[Receipt]]:
        """The same for a block that executes a batch: one receipt for each of its inputs, in their order."""
        inputs = gw.current_call().inputs
        assert len(inputs) == len(numbers)
        receipts = [
            Receipt(number, call.id, call.attempt, os.getpid()) for number, call in zip(numbers, inputs, strict=True)
        ]
        self._write("start", *receipts)
        try:
            yield receipts
        except BaseException:
            self._write("raise", *receipts)
            raise
        self._write("end", *receipts)

    def _write(self, phase: str, *receipts: Receipt) -> None:
        lines = "".join(f"{r.call} {r.attempt} {r.pid} {phase} {r.number}\n" for r in receipts)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, lines.encode())  # one write, so that lines of several processes do not mix
        finally:
            os.close(descriptor)

    def executions(self) -> dict[str, dict[int, list[Execution]]]:
        """The executions of each attempt of each call, in the order they began."""
        found: dict[str, dict[int, list[Execution]]] = defaultdict(lambda: defaultdict(list))
        with contextlib.suppress(FileNotFoundError):
            whole, _, _ = Path(self.path).read_text().rpartition("\n")
            for line in whole.splitlines():
                call, attempt, pid, phase, number = line.split()
                of_attempt = found[call][int(attempt)]
                if phase == "start":
                    of_attempt.append(Execution(int(number), int(pid)))
                else:
                    next(e for e in of_attempt if e.pid == int(pid) and e.phase == "start").phase = phase
        return found

    def all(self) -> list[Execution]:
        """Every execution."""
        return [e for attempts in self.executions().values() for of_one in attempts.values() for e in of_one]

    def starts(self) -> Counter[int]:
        """How many executions each process has begun."""
        return Counter(execution.pid for execution in self.all())


@dataclass(frozen=True)
class Outcome:
    """How a call ended for its caller. Where it did not end at all, `error` is `NoAnswer`."""

    number: int
    call: str
    result: Any
    error: BaseException | None
    began: float
    ended: float

    @property
    def took_s(self) -> float:
        """Seconds from the call to its end."""
        return self.ended - self.began


class NoAnswer(Exception):  # noqa: N818  # a finding, not something anybody raises
    """The call hangs."""


@dataclass
class _Made:
    number: int
    began: float
    call: gw.Call[Any] | None
    error: BaseException | None = None

    def outcome(self, timeout_s: float) -> Outcome:
        """Wait for the end of the call."""
        result, error = None, self.error
        if self.call is not None:
            try:
                result = self.call.get(timeout_s)
            except BaseException as raised:
                # `get` raises the plain TimeoutError when it gives up, and the call is not done.
                error = raised if self.call.done() else NoAnswer(f"call {self.number} ({self.call.id}) has not ended")
        id_ = "" if self.call is None else self.call.id
        return Outcome(self.number, id_, result, error, self.began, time.monotonic())


def _make(spawn: Callable[[int], gw.Call[Any]], number: int) -> _Made:
    began = time.monotonic()
    try:
        return _Made(number, began, spawn(number))
    except Exception as error:
        return _Made(number, began, None, error)


class Burst:
    """Numbered calls that are made all at once."""

    def __init__(self, spawn: Callable[[int], gw.Call[Any]], count: int, first: int = 0) -> None:
        self._made = [_make(spawn, number) for number in range(first, first + count)]

    @property
    def done(self) -> int:
        """How many of them have ended."""
        return sum(made.call is None or made.call.done() for made in self._made)

    def outcomes(self, timeout_s: float = ANSWER_S) -> list[Outcome]:
        """How they ended, once they have."""
        end = time.monotonic() + timeout_s
        return [made.outcome(max(0.0, end - time.monotonic())) for made in self._made]


@dataclass
class Traffic:
    """Callers that make numbered calls, each one after the other, from `with Traffic(...)` to its end."""

    spawn: Callable[[int], gw.Call[Any]]
    callers: int = 4
    outcomes: list[Outcome] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(self.callers)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(ANSWER_S + 5.0)

    def _call(self) -> None:
        while not self._stopping.is_set():
            outcome = _make(self.spawn, next(self._numbers)).outcome(ANSWER_S)
            self.outcomes.append(outcome)
            if outcome.error is not None:
                self._stopping.wait(0.02)  # where every call fails at once, that is no reason to spin

    @property
    def results(self) -> int:
        """How many calls have returned."""
        return sum(outcome.error is None for outcome in list(self.outcomes))

    def flow(self, count: int, timeout_s: float = 40.0) -> None:
        """Wait until so many more calls have returned."""
        wanted, end = self.results + count, time.monotonic() + timeout_s
        while self.results < wanted:
            assert time.monotonic() < end, f"{wanted - self.results} of {count} results are missing; {self._errors()}"
            time.sleep(0.005)

    def _errors(self) -> str:
        errors = [outcome.error for outcome in list(self.outcomes) if outcome.error is not None]
        return f"{len(errors)} calls failed; the last: {errors[-1]!r}" if errors else "no call failed"


def audit(
    book: Book, outcomes: Sequence[Outcome], *, attempts: int = 1, errors: tuple[type[BaseException], ...] = ()
) -> None:
    """Compare the book with what callers were told, of calls that may be tried `attempts` times and end with `errors`.

    1. Every call ended, with a result or one of `errors`.
    2. No attempt was executed twice, and no call more often than its attempts.
    3. A result is that of an execution of this very call which ran to its end.
    4. Nothing ran that nobody called.
    """
    assert outcomes
    hanging = [outcome for outcome in outcomes if isinstance(outcome.error, NoAnswer)]
    assert not hanging, f"{len(hanging)} of {len(outcomes)} calls hang: {hanging[:3]}"
    failed = [outcome for outcome in outcomes if outcome.error is not None and not isinstance(outcome.error, errors)]
    assert not failed, f"{len(failed)} of {len(outcomes)} calls failed: {failed[:3]}"
    executions = book.executions()
    by_call = {outcome.call: outcome for outcome in outcomes if outcome.call}
    unknown = executions.keys() - by_call.keys()
    assert not unknown, f"the book has executions of {len(unknown)} calls that nobody made"
    for call, of_call in executions.items():
        twice = {attempt: found for attempt, found in of_call.items() if len(found) > 1}
        assert not twice, f"an attempt of call {call} was executed twice: {twice}"
        assert of_call.keys() <= set(range(1, attempts + 1)), f"call {call} had {attempts} attempts: {dict(of_call)}"
    for outcome in outcomes:
        if outcome.error is None:
            _check_result(outcome, executions)


def _check_result(outcome: Outcome, executions: dict[str, dict[int, list[Execution]]]) -> None:
    receipt = outcome.result
    assert isinstance(receipt, Receipt)
    assert (receipt.number, receipt.call) == (outcome.number, outcome.call), f"somebody else's result: {outcome}"
    (execution,) = executions[receipt.call][receipt.attempt]
    assert (execution.number, execution.pid, execution.phase) == (receipt.number, receipt.pid, "end"), (
        f"{outcome} is not what the book has: {execution}"
    )


class Fault:
    """Something that a test makes go wrong in workers: in all, or in one process. It travels to workers by pickle."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)

    def _file(self, pid: int | None) -> Path:
        return Path(self.path if pid is None else f"{self.path}-{pid}")

    def begin(self, pid: int | None = None) -> None:
        """From now on, in the process `pid` or in all."""
        self._file(pid).touch()

    def end(self, pid: int | None = None) -> None:
        """It is over."""
        self._file(pid).unlink(missing_ok=True)

    @property
    def active(self) -> bool:
        """Whether it is there, for the process that asks."""
        return self._file(None).exists() or self._file(os.getpid()).exists()
