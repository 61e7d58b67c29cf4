"""A progress bar for `.map`: how many are done, how fast, and what they wait for while nothing comes."""

from __future__ import annotations

from collections.abc import Callable, Sized
from types import TracebackType
from typing import Any


class Ticker:
    """Counts results without showing anything."""

    def __enter__(self) -> Ticker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def advance(self) -> None:
        """One more result."""


class ProgressBar(Ticker):
    """A bar on standard error (or in the notebook's cell) by rich."""

    def __init__(self, label: str, inputs: Any, waiting_for: Callable[[], str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[waiting]}", style="dim", markup=False),
            console=Console(stderr=True),
            get_time=None,
        )
        total = len(inputs) if isinstance(inputs, Sized) else None
        self._task = self._progress.add_task(label, total=total, rate="", waiting="")
        self._waiting_for = waiting_for
        self._label = label

    def __enter__(self) -> Ticker:
        self._progress.start()
        if waiting := self._waiting_for():
            self._progress.update(self._task, waiting=waiting)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.refresh()  # in a notebook rich would leave the bar as it was a tenth of a second ago
        self._progress.stop()

    def advance(self) -> None:
        task = self._progress.tasks[0]
        rate = f"{task.speed:.0f}/s" if task.speed else ""
        self._progress.update(self._task, advance=1, rate=rate, waiting="")
