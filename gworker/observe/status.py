"""The status of an app as typed, frozen data that shows itself well in a terminal and in a notebook."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ProbeStatus:
    """The last run of a probe: what it found, and how long it took."""

    method: str
    kind: str
    verdict: str
    latency_ms: float
    reason: str = ""


@dataclass(frozen=True)
class WorkerStatus:
    """One worker. `age_s` counts from its creation; `batch_sizes` is the mean batch size of each batched method."""

    id: str
    state: str
    pid: int | None
    node_id: str | None
    age_s: float
    reason: str = ""
    inputs: int = 0
    running: int = 0
    batch_sizes: dict[str, float] = field(default_factory=dict)
    probes: tuple[ProbeStatus, ...] = ()


@dataclass(frozen=True)
class PoolStatus:
    """One pool: how many workers it wants and has, and the inputs that routers report as queued and running."""

    name: str
    class_name: str
    state: str
    desired: int
    ready: int
    starting: int
    draining: int
    queued: int
    running: int
    restarts: int
    waiting_for: str = ""
    workers: tuple[WorkerStatus, ...] = ()


_COLUMNS = ("pool", "state", "desired", "ready", "starting", "draining", "queued", "running", "restarts", "waiting for")


@dataclass(frozen=True)
class AppStatus:
    """An app at one moment. `running` is False for one that has not been started, or was stopped."""

    name: str
    running: bool
    pools: tuple[PoolStatus, ...] = ()

    def pool(self, class_name: str) -> PoolStatus:
        """The first pool of a class. Raises KeyError, naming the classes there are."""
        for pool in self.pools:
            if class_name in (pool.class_name, pool.name):
                return pool
        known = ", ".join(sorted({p.class_name for p in self.pools})) or "none"
        raise KeyError(f"no pool of a class {class_name!r} in app {self.name!r}; there are: {known}")

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            tuple(
                str(value)
                for value in (
                    p.name, p.state, p.desired, p.ready, p.starting, p.draining, p.queued, p.running, p.restarts,
                    p.waiting_for,
                )
            )
            for p in self.pools
        ]  # fmt: skip

    def __str__(self) -> str:
        state = "running" if self.running else "not running"
        rows = [_COLUMNS, *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([f"app {self.name} ({state})", *lines])

    def __rich__(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        # As Text, because names and reasons may hold brackets, which rich would take for markup.
        state = "running" if self.running else "not running"
        table = Table(title=Text(f"{self.name} ({state})"), title_justify="left")
        for column in _COLUMNS:
            table.add_column(column)
        for row in self._rows():
            table.add_row(*map(Text, row))
        return table

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(c)}</th>" for c in _COLUMNS)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in self._rows())
        state = "running" if self.running else "not running"
        return (
            f"<table><caption>gworker app <b>{html.escape(self.name)}</b>: {state}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )
