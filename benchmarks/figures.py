"""What a benchmark finds: rows of figures with what is promised of them, their medians and verdicts, as Markdown.

Pure: nothing here measures, and everything can be made again from the JSON that a benchmark writes.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

OURS = "gworker"
INTRO = """\
Written by `make bench`; [README.md](README.md) says how to read it, and `results.json` has the value of every round.
A figure is the median of the rounds, with the lowest and the highest in brackets. Behind a peer's figure stands how
many times as much gworker's is: the median of the ratios of the rounds. `-` stands for what was not measured."""


@dataclass(frozen=True)
class Promise:
    """A bound on what gworker does: so many times what a peer does, so much more than it, or by itself.

    `peers` are contenders; with several, gworker is compared with the best of each round. `row` is the key of the row
    in which they are measured, if it is another one.
    """

    bound: float
    kind: Literal["times", "more", "value"] = "value"
    peers: tuple[str, ...] = ()
    at_least: bool = False
    row: str = ""


def times(bound: float, *peers: str, at_least: bool = False, row: str = "") -> Promise:
    """At most (or at least) `bound` times the best of the peers."""
    return Promise(bound, "times", peers, at_least, row)


def more(bound: float, *peers: str, row: str = "") -> Promise:
    """At most `bound` units more than the best of the peers."""
    return Promise(bound, "more", peers, row=row)


def value(bound: float, *, at_least: bool = False) -> Promise:
    """At most (or at least) `bound` units."""
    return Promise(bound, at_least=at_least)


@dataclass
class Row:
    """One figure of every contender: the value of each round, or None where a contender had none in that round."""

    key: str
    what: str
    unit: str = ""
    promises: tuple[Promise, ...] = ()
    more_is_better: bool = False
    values: dict[str, list[float | None]] = field(default_factory=dict)

    def median(self, contender: str) -> float | None:
        """The median over the rounds; None where nothing was measured."""
        found = self.found(contender)
        return statistics.median(found) if found else None

    def found(self, contender: str) -> list[float]:
        """The values of the rounds that have one."""
        return [value for value in self.values.get(contender, []) if value is not None]

    def best(self, contenders: Sequence[str]) -> list[float | None]:
        """For each round, the best value of these contenders."""
        rounds = zip(*(self.values.get(name, []) for name in contenders), strict=False)
        choose = max if self.more_is_better else min
        return [choose((v for v in values if v is not None), default=None) for values in rounds]


@dataclass(frozen=True)
class Verdict:
    """What a promise says, what was measured of it (None: nothing), and whether it is kept."""

    promise: str
    measured: float | None
    met: bool | None
    shown: str


@dataclass
class Report:
    """One benchmark, as it is written to JSON.

    `failed` says of contenders why they have no figures, or not all; `ended`, why the benchmark stopped early.
    """

    name: str
    title: str
    about: str
    rows: list[Row]
    contenders: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    about_run: dict[str, Any] = field(default_factory=dict)
    ended: str = ""

    @classmethod
    def read(cls, report: Mapping[str, Any]) -> Report:
        """From JSON."""
        rows = [Row(**{**row, "promises": tuple(_promise(p) for p in row["promises"])}) for row in report["rows"]]
        return cls(**{**report, "rows": rows})


def _promise(written: Mapping[str, Any]) -> Promise:
    return Promise(**{**written, "peers": tuple(written["peers"])})


# --- statistics --------------------------------------------------------------------------------------------------


def by_round(ours: Iterable[float | None], theirs: Iterable[float | None], kind: str) -> list[float]:
    """Ours against theirs, round by round: the ratio, or with `kind="more"` the difference."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if a is not None and b is not None]
    if kind == "more":
        return [a - b for a, b in pairs]
    return [a / b for a, b in pairs if b]


def ratio(row: Row, peer: str) -> float | None:
    """The median over the rounds of how many times the peer's figure ours is."""
    found = by_round(row.values.get(OURS, []), row.values.get(peer, []), "times")
    return statistics.median(found) if found else None


def judge(row: Row, promise: Promise, rows: Mapping[str, Row]) -> Verdict:
    """Whether a promise is kept: what it bounds is computed for each round, and the median is held against it."""
    sign = "≥" if promise.at_least else "≤"
    if promise.kind == "value":
        measured = row.median(OURS)
        text = f"{sign} {number(promise.bound)}{_unit(row)}"
        shown = ""
    else:
        against = rows[promise.row] if promise.row else row
        name = " or ".join(promise.peers) + (f", {against.what}" if promise.row else "")
        found = by_round(row.values.get(OURS, []), against.best(promise.peers), promise.kind)
        measured = statistics.median(found) if found else None
        if promise.kind == "more":
            text = f"{sign} {number(promise.bound)}{_unit(row)} more than {name}"
            shown = "" if measured is None else f"{measured:+.3f}{_unit(row)}"
        else:
            text = f"{sign} {number(promise.bound)} x {name}"
            shown = "" if measured is None else f"{number(measured)} x"
    met = None
    if measured is not None:
        met = measured >= promise.bound if promise.at_least else measured <= promise.bound
    return Verdict(text, measured, met, shown)


def verdicts(report: Report) -> list[tuple[Row, Verdict]]:
    """Every promise of a report, judged."""
    rows = {row.key: row for row in report.rows}
    return [(row, judge(row, promise, rows)) for row in report.rows for promise in row.promises]


# --- tables ------------------------------------------------------------------------------------------------------


def number(x: float) -> str:
    """Three digits that tell something."""
    size = abs(x)
    if x == int(x) and size < 100:
        return str(int(x))
    return f"{x:,.0f}" if size >= 100 else f"{x:.1f}" if size >= 10 else f"{x:.2f}" if size >= 1 else f"{x:.3g}"


def table(report: Report) -> str:
    """The rows of a report as a Markdown table that can be read as it is."""
    contenders = [name for name in report.contenders if name == OURS or _has_any(report, name)]
    judged = any(row.promises for row in report.rows)
    lines = [["", *contenders, *(["promise", "verdict"] if judged else [])]]
    for row in report.rows:
        if not row.values:
            continue
        found = [judge(row, promise, {r.key: r for r in report.rows}) for promise in row.promises]
        cells = [_cell(row, name) for name in contenders]
        if judged:
            cells += ["; ".join(verdict.promise for verdict in found), "; ".join(map(_say, found))]
        lines.append([row.what + (f" ({row.unit})" if row.unit else ""), *cells])
    return _aligned(lines)


def section(report: Report) -> str:
    """A report as a section of RESULTS.md."""
    parts = [f"## {report.title}", report.about, table(report)]
    remarks = [f"{name} {why}" for name, why in report.failed.items()] + report.notes
    if report.ended:
        remarks.append(f"The benchmark {report.ended}.")
    parts.append("\n".join(f"- {remark}" for remark in [_when(report), *remarks] if remark))
    return "\n\n".join(part for part in parts if part)


def results(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """RESULTS.md: what was measured where, then a section for each report as it was read from JSON."""
    read = [Report.read(report) for report in reports.values() if "rows" in report]
    lost = [f"- `{name}` {report['ended']}." for name, report in reports.items() if "rows" not in report]
    dated = sorted((report for report in read if report.about_run), key=lambda report: report.about_run["date"])
    judged = [verdict for report in read for _, verdict in verdicts(report)]
    parts = ["# Results", INTRO]
    if dated:
        where = Counter(map(_where, reversed(dated))).most_common(1)[0][0]  # of equals the one that was measured last
        parts += [where, f"Of {len(judged)} promises, {sum(verdict.met is True for verdict in judged)} were met."]
        for report in dated:
            if (elsewhere := _where(report)) != where:
                report.notes.append(f"Measured elsewhere. {' '.join(elsewhere.splitlines())}")
        if any(report.about_run["quick"] for report in dated):
            parts.append("**Some of these figures are of a quick run: few rounds, for a first look.**")
    parts += ["\n".join(lost), *map(section, read)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _where(report: Report) -> str:
    machine = report.about_run["machine"]
    versions = [f"{name} {version}" for name, version in report.about_run["versions"].items() if name != OURS]
    return (
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['kernel']}.\n"
        f"Versions: {', '.join(versions)}."
    )


def _when(report: Report) -> str:
    run = report.about_run
    if not run:
        return ""
    took = f", {run['took_s']:.0f} s" if "took_s" in run else ""
    kind = "quick, " if run["quick"] else ""
    rounds = f"{run['rounds']} round{'s' if run['rounds'] > 1 else ''}"
    return f"{run['date'][:16].replace('T', ' ')} UTC, {kind}{rounds}{took}, gworker {run['versions']['gworker']}."


def _has_any(report: Report, contender: str) -> bool:
    return contender in report.failed or any(row.found(contender) for row in report.rows)


def _unit(row: Row) -> str:
    return f" {row.unit}" if row.unit else ""


def _say(verdict: Verdict) -> str:
    if verdict.met is None:
        return "not measured"
    word = "met" if verdict.met else "**missed**"
    return f"{word}, {verdict.shown}" if verdict.shown else word


def _cell(row: Row, contender: str) -> str:
    found = row.found(contender)
    if not found:
        return "-"
    text = number(statistics.median(found))
    if len(found) > 1:
        text += f" ({number(min(found))} to {number(max(found))})"
    times_ours = None if contender == OURS else ratio(row, contender)
    return text if times_ours is None else f"{text}; {number(times_ours)} x"


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])
