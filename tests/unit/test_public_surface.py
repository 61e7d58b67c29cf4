"""DESIGN §3: the public names, frozen, so that they grow on purpose."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gworker
import gworker_client

PUBLIC = [
    "App",
    "AppStatus",
    "AuthenticationError",
    "BatchResultError",
    "Call",
    "CallCancelled",
    "CallContext",
    "Cls",
    "DeadlineExceeded",
    "Event",
    "Fatal",
    "GWorkerError",
    "Gpu",
    "InvalidDefinition",
    "NotFound",
    "PoolUnavailable",
    "Probe",
    "QueueFull",
    "RemoteError",
    "Retries",
    "StartupFailed",
    "Unschedulable",
    "WorkerLost",
    "asgi_app",
    "batched",
    "concurrent",
    "current_attempt_number",
    "current_call",
    "gather",
    "method",
    "on_enter",
    "on_exit",
    "openai",
    "parameter",
    "shared_weights",
]


def test_the_public_names_are_these() -> None:
    assert gworker.__all__ == PUBLIC


def test_they_are_written_out_and_sorted() -> None:
    tree = ast.parse(Path(gworker.__file__).read_text(encoding="utf-8"))
    (value,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert isinstance(value, ast.List) and all(isinstance(element, ast.Constant) for element in value.elts)
    assert sorted(set(PUBLIC)) == PUBLIC


def test_everything_else_in_the_package_is_a_module_or_private() -> None:
    others = {name for name in vars(gworker) if not name.startswith("_")} - set(PUBLIC) - {"annotations"}
    assert all(inspect.ismodule(getattr(gworker, name)) for name in others)


def test_gworker_client_is_the_same_under_another_name() -> None:
    assert gworker_client.__all__ == gworker.__all__
    assert all(getattr(gworker_client, name) is getattr(gworker, name) for name in PUBLIC)
    assert gworker_client.__version__ == gworker.__version__


def public_members(thing: Any) -> list[tuple[str, Any]]:
    """The functions and properties that a public class defines for its users."""
    return [
        (name, value)
        for name, value in vars(thing).items()
        if not name.startswith("_") and (inspect.isroutine(value) or isinstance(value, property))
    ]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_thing_says_what_it_is_for(name: str) -> None:
    thing = getattr(gworker, name)
    assert inspect.getdoc(thing), f"{name} has no docstring"
    if inspect.isclass(thing):
        lacking = [f"{name}.{member}" for member, value in public_members(thing) if not inspect.getdoc(value)]
        assert not lacking


def test_every_way_to_call_a_method_says_what_it_does() -> None:
    from gworker import bound

    ways = [bound.BoundMethod, bound.BoundGenerator, bound.Remote, bound.Map, bound.Starmap, bound.ForEach]
    for way in ways:
        lacking = [member for member, value in public_members(way) if not inspect.getdoc(value)]
        assert not lacking, f"{way.__name__}: {lacking}"
        if "__call__" in vars(way):
            assert way.__call__.__doc__


QUIET = """
import logging, threading, multiprocessing, subprocess, warnings
warnings.simplefilter("error")
made = []
subprocess.Popen.__init__ = lambda *args, **kwargs: made.append(args)
before = list(logging.getLogger().handlers), logging.getLogger().level
import gworker, gworker_client
@gworker.App("quiet").cls(min_workers=2)
class Embedder:
    @gworker.method()
    def embed(self): ...
Embedder().embed
repr(Embedder()), hash(Embedder()), gworker.App("quiet").status(), gworker.App("quiet").describe()
assert (list(logging.getLogger().handlers), logging.getLogger().level) == before, "the root logger was configured"
assert not logging.getLogger("gworker").handlers and logging.getLogger("gworker").level == logging.NOTSET
assert threading.active_count() == 1, threading.enumerate()
assert not made, made
import ray
assert not ray.is_initialized()
"""


@pytest.mark.slow
def test_importing_it_and_making_handles_starts_nothing_and_configures_no_logging() -> None:
    done = subprocess.run(
        [sys.executable, "-c", QUIET],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(gworker.__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""


# --- how things show themselves ----------------------------------------------------------------------------------


def define() -> Any:
    app = gworker.App("shown")
    app.classes.clear()

    @app.cls(gpu=gworker.Gpu("A100"), max_workers=4)
    class Embedder:
        labels: list[str] = gworker.parameter(default=["<b>"])

        @gworker.method()
        @gworker.batched(max_batch_size=64, wait_ms=5)
        def embed(self, texts: list[str]) -> list[str]:
            return texts

    return app, Embedder


def test_apps_classes_and_handles_show_themselves_in_a_terminal_brackets_and_all() -> None:
    import io

    from rich.console import Console

    app, embedder = define()
    for thing, expected in [
        (app, ["shown", "Embedder", "embed", "0-4", "A100 x1"]),
        (embedder, ["texts: list[str]", "[batches of up to 64, window 5 ms]", "labels: list[str]"]),
        (embedder(labels=["x"]), ["Embedder(labels=['x'])", "shown", "embed"]),
    ]:
        text = io.StringIO()
        Console(width=200, file=text).print(thing)
        for words in expected:
            assert words in text.getvalue()


def test_apps_classes_and_handles_show_themselves_in_a_notebook_as_escaped_html() -> None:
    app, embedder = define()
    assert "Embedder" in app._repr_html_()
    for thing in (embedder, embedder()):
        page = thing._repr_html_()
        assert "embed(" in page or "embed</" in page
        assert "&lt;b&gt;" in page
