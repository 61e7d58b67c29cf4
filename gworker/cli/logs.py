"""`gworker logs`: what the workers of an app have said, on all nodes, in the order of time."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterable
from typing import Any

from gworker.cli import cluster, output
from gworker.cli.exits import Code, Failed
from gworker.cli.target import listed, near
from gworker.observe.logs import LogLine, LogReader, apps_in

# How often new lines are looked for.
FOLLOW_EVERY_S = 0.3
# How long a node may take to answer.
ANSWER_S = 30.0
_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta")


class NodeReader:
    """The reader of one node; an actor there, where that is not this node."""

    def __init__(self, app_name: str, class_name: str | None) -> None:
        from gworker.router.cluster import logs_folder

        self._folder = logs_folder()
        self._reader = LogReader(self._folder, app_name, class_name)

    def latest(self, count: int) -> list[LogLine]:
        """See LogReader."""
        return self._reader.latest(count)

    def more(self) -> list[LogLine]:
        """See LogReader."""
        return self._reader.more()

    def apps(self) -> list[str]:
        """The apps that have left lines here."""
        return apps_in(self._folder)


class _Readers:
    """The readers of all nodes, asked as one."""

    def __init__(self, app_name: str, class_name: str | None) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = ray.get_runtime_context().get_node_id()
        others = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != here]  # type: ignore[no-untyped-call]
        actor: Any = ray.remote(num_cpus=0)(NodeReader)
        self._here = NodeReader(app_name, class_name)
        self._elsewhere = [
            actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                app_name, class_name
            )
            for node in others
        ]

    def ask(self, question: str, *args: Any) -> list[Any]:
        """The answers of all nodes, one list."""
        import ray

        asked = [getattr(actor, question).remote(*args) for actor in self._elsewhere]
        answers = [getattr(self._here, question)(*args), *ray.get(asked, timeout=ANSWER_S)]
        return [item for answer in answers for item in answer]


def logs(app_name: str, class_name: str | None, *, follow: bool, lines: int, as_json: bool) -> None:
    """Print the latest lines; go on with what comes, if asked to."""
    output.reserve_stdout()
    cluster.attach()
    readers = _Readers(app_name, class_name)
    known = sorted(set(readers.ask("apps")))
    if app_name not in known and not (follow and app_name in cluster.deployed_apps()):
        raise Failed(
            f"no worker of an app {app_name!r} has left a line in this cluster{near(app_name, known)}; there are lines "
            f"of: {listed(known)}",
            Code.NOT_FOUND,
        )
    printer = _Printer(as_json)
    latest: list[LogLine] = readers.ask("latest", lines)
    printer.print(sorted(latest, key=lambda line: line.time)[-lines:] if lines else [])
    while follow:
        time.sleep(FOLLOW_EVERY_S)
        printer.print(sorted(readers.ask("more"), key=lambda line: line.time))


class _Printer:
    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._console: Any = None
        if not as_json and output.at_terminal():
            from rich.console import Console

            self._console = Console(file=output.stream(), highlight=False, soft_wrap=True)

    def print(self, lines: Iterable[LogLine]) -> None:
        for line in lines:
            if self._as_json:
                output.emit(output.data(line))
            elif self._console is None:
                output.emit(f"{_tags(line)}  {line.text}")
            else:
                from rich.text import Text

                # The same worker has the same colour in every run.
                colour = _COLOURS[sum(map(ord, line.worker)) % len(_COLOURS)]
                tail = (line.text, "red" if line.stream == "err" else "")
                self._console.print(Text.assemble((_tags(line), colour), "  ", tail))


def _tags(line: LogLine) -> str:
    at = dt.datetime.fromtimestamp(line.time).astimezone()
    call = f" {line.call}" if line.call else ""
    return f"{at:%H:%M:%S}.{at.microsecond // 1000:03d} {line.worker}{call}"
