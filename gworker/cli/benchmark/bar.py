"""How far a measurement is, on standard error, where a person looks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from gworker.cli.benchmark.plan import Load
from gworker.cli.benchmark.recorder import Recorder
from gworker.cli.benchmark.session import Tell


@contextlib.contextmanager
def bar() -> Iterator[Tell | None]:
    """What to tell, or None where nobody looks. It draws when it is told something, and at no other time."""
    stderr = sys.__stderr__
    if stderr is None or not stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(30),
        TextColumn("{task.fields[far]}", markup=False),
        console=Console(file=stderr),
        auto_refresh=False,
        transient=True,
    )
    task = progress.add_task("waiting for the first result", total=None, far="")
    with progress:
        progress.refresh()

        def tell(load: Load, passed_s: float, whole_s: float | None, record: Recorder) -> None:
            failed = f", {record.failed:,} failed" if record.failed else ""
            far = f"{passed_s:.0f} s, {len(record.latencies):,} calls{failed}"
            progress.update(task, description=str(load), completed=passed_s, total=whole_s, far=far)
            progress.refresh()

        yield tell
