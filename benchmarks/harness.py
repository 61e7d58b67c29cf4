"""What every benchmark does: contenders measured in turns, round after round; a table; JSON.

    bench = Benchmark(__doc__, [Row("p50", "one call, p50", "ms", (times(0.2, "Ray actor"),))])
    bench.run([Contender("gworker", ours), Contender("Ray actor", bare)])
    bench.finish()

A contender is opened once: a context manager that gives the function to measure it, which returns figures by the keys
of the rows; one without a row is dropped. It is called in every round, once for each case if there are cases, and each
round begins with another contender. One that fails is left out from then on, and the report says why.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import machine
from apart import FLAG, Measure, answer, apart, why
from figures import OURS, Report, Row, table

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Contender:
    """Who is measured: a name, and a context manager that gives the function that measures.

    With `apart`, both happen in a process of their own, whose environment has `env` as well.
    """

    name: str
    opened: Callable[[], AbstractContextManager[Measure]]
    apart: bool = False
    env: Mapping[str, str] = field(default_factory=dict)


class Benchmark:
    """One benchmark: its rows, the arguments it was started with, and what it has found."""

    def __init__(self, doc: str | None, rows: Sequence[Row], *, rounds: int = 5, quick_rounds: int = 2) -> None:
        os.environ.update(ENVIRONMENT)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # what was started is stopped on the way
        self._script = sys.argv[0]
        title, _, about = (doc or "").partition("\n\n")
        given = _arguments(doc).parse_args()
        self.quick: bool = given.quick
        self.rounds: int = given.rounds or (quick_rounds if given.quick else rounds)
        self._only = given.only
        self._json: Path | None = given.json
        self._child: str | None = given.contender
        self._started = time.monotonic()
        about = "\n\n".join(part for part in about.split("\n\n") if not part.startswith("    "))
        self.report = Report(Path(self._script).stem, title.rstrip(".").partition(": ")[0], about.strip(), list(rows))
        self._rows = {row.key: row for row in rows}

    def run(self, contenders: Sequence[Contender], cases: Iterable[Any] = (None,)) -> None:
        """Open all contenders, measure every case of every round with each in turn, close them."""
        if self._child is not None:
            chosen = next(c for c in contenders if c.name == self._child)
            answer(chosen.opened())
            raise SystemExit
        self._begin()
        chosen_ones = [c for c in contenders if self._only is None or c.name in self._only]
        self.report.contenders += [c.name for c in chosen_ones if c.name not in self.report.contenders]
        cases = list(cases)
        with ExitStack() as stack:
            measures = {c.name: self._open(c, stack) for c in chosen_ones}
            for done in range(self.rounds):
                for case in cases:
                    for name in rotated(list(measures), done):
                        self._measure(name, measures[name], case)
                self._fill()
                self._say(f"round {done + 1} of {self.rounds}")
                self._write()

    def record(self, key: str, value: float, *, contender: str = OURS) -> None:
        """Add a value to a row, for what does not happen in rounds."""
        if contender not in self.report.contenders:
            self.report.contenders.append(contender)
        self._rows[key].values.setdefault(contender, []).append(value)

    def note(self, text: str) -> None:
        """Something that readers of the table should know."""
        if text not in self.report.notes:
            self.report.notes.append(text)

    def finish(self) -> None:
        """Print the table and write the JSON."""
        self._begin()
        self.report.about_run["took_s"] = round(time.monotonic() - self._started, 1)
        self._write()
        print(f"\n{self.report.title}\n\n{table(self.report)}")
        for name, reason in self.report.failed.items():
            print(f"{name}: {reason}")
        for text in self.report.notes:
            print(text)

    def _begin(self) -> None:
        """Write down where and when this runs, at its beginning."""
        if self.report.about_run:
            return
        busy = machine.busy()
        self.report.about_run = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine.describe(),
            "versions": machine.versions(),
            "load": [round(load, 2) for load in os.getloadavg()],
            "busy": round(busy, 2),
            "rounds": self.rounds,
            "quick": self.quick,
        }
        if busy > machine.QUIET:
            self.note(f"Something else took {busy:.0%} of the machine when this began.")
            self._say(f"warning: something else takes {busy:.0%} of the machine")

    def _open(self, contender: Contender, stack: ExitStack) -> Measure | None:
        flags = ["--quick"] if self.quick else []
        try:
            opened = (
                apart(self._script, contender.name, *flags, env=contender.env)
                if contender.apart
                else contender.opened()
            )
            return stack.enter_context(_tolerant(opened))
        except Exception as error:
            self._failed(contender.name, f"did not start: {why(error)}")
            return None

    def _measure(self, name: str, measure: Measure | None, case: Any) -> None:
        if measure is None or name in self.report.failed:
            return
        try:
            found = measure(case)
        except Exception as error:
            self._failed(name, f"failed{'' if case is None else f' at {case}'}: {why(error)}")
            return
        for key, value in found.items():
            if key in self._rows:
                self._rows[key].values.setdefault(name, []).append(value)

    def _fill(self) -> None:
        """Rounds stay side by side where a contender gave nothing in one."""
        for row in self._rows.values():
            longest = max((len(values) for values in row.values.values()), default=0)
            for values in row.values.values():
                values.extend([None] * (longest - len(values)))

    def _failed(self, name: str, reason: str) -> None:
        self.report.failed[name] = reason
        self._say(f"{name} {reason}")

    def _say(self, text: str) -> None:
        print(f"{self.report.name}: {text}", file=sys.stderr, flush=True)

    def _write(self) -> None:
        if self._json is not None:
            self._json.write_text(json.dumps(asdict(self.report), indent=1, ensure_ascii=False) + "\n")


def rotated(names: list[str], by: int) -> list[str]:
    """The same names, beginning with another one each time."""
    by %= max(1, len(names))
    return names[by:] + names[:by]


def start_ray(cpus: int = 2, **options: Any) -> None:
    """A Ray of our own for the contenders of this process, which share it. `options` are those of `ray.init`."""
    import ray

    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,
            **options,
        )


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _tolerant(opened: AbstractContextManager[Measure]) -> Iterator[Measure]:
    """What goes wrong while a contender closes is told, and the others close all the same."""
    measure = opened.__enter__()
    try:
        yield measure
    finally:
        try:
            opened.__exit__(None, None, None)
        except Exception as error:
            print(f"closing: {why(error)}", file=sys.stderr)


def _arguments(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="how often each contender is measured")
    parser.add_argument("--quick", action="store_true", help="few rounds, for a first look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--only", type=lambda names: names.split(","), metavar="NAMES", help="contenders, with commas")
    parser.add_argument(FLAG, help=argparse.SUPPRESS)
    return parser
