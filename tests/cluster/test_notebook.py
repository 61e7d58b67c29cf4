"""A notebook, executed cell by cell in a kernel of its own, as a user would."""

from __future__ import annotations

import json
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parent.parent.parent

# The cell that a user edits and runs again.
DEFINITION = """
    import os, time
    import gworker as gw

    app = gw.App("notebook-{number}")

    class OutOfPaper(Exception):
        pass

    @app.cls(cpu=0.1, max_workers=1)
    class Printer:
        @gw.on_enter()
        def warm_up(self):
            ledger("enter", "{version}", os.getpid())

        @gw.on_exit()
        def cool_down(self):
            ledger("exit", "{version}", os.getpid())

        @gw.method()
        def show(self, text):
            if text == "":
                raise OutOfPaper("{version}")
            return "{version} " + text

        @gw.method()
        def slowly(self, text):
            ledger("slowly", "{version}", os.getpid())
            end = time.monotonic() + 60
            while not os.path.exists("{gate}") and time.monotonic() < end:
                time.sleep(0.01)
            return "{version} " + text
"""


@dataclass(frozen=True)
class Ran:
    """What came of the cells; what the notebook keeps of its widgets; what the workers wrote down."""

    outputs: dict[str, list[Any]]
    metadata: str
    ledger: list[str]

    def value(self, cell: str, kind: str = "text/plain") -> str:
        """What a cell shows as its value."""
        values = [output.data for output in self.outputs[cell] if output.output_type == "execute_result"]
        assert len(values) == 1, self.outputs[cell]
        return str(values[0].get(kind, ""))


@pytest.fixture(scope="module")
def ran(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The notebook as it is once all its cells have been executed, and what its workers wrote down."""
    import ray

    folder = tmp_path_factory.mktemp("notebook")
    blank = {"number": os.getpid(), "gate": folder / "gate"}
    cells = {
        "prepare": f"""
            def ledger(*words):
                with open("{folder / "ledger"}", "a") as file:
                    file.write(" ".join(map(str, words)) + "\\n")
        """,
        "define": DEFINITION.format(version="old", **blank),
        "remote": """
            printer = Printer()
            held = Printer
            printer.show.remote("text")
        """,
        "await": "await printer.show.remote.aio('awaited'), [x async for x in printer.show.map.aio('ab')]",
        "except": """
            try:
                printer.show.remote("")
            except OutOfPaper as error:
                caught = error
            type(caught) is OutOfPaper, caught.args
        """,
        "progress": "list(printer.show.map([str(n) for n in range(20)], progress=True))",
        "show app": "app",
        "show handle": "printer",
        "show class": "Printer",
        "show status": "app.status()",
        "leave running": f"""
            running = printer.slowly.spawn("running")
            end = time.monotonic() + 30
            while "slowly old" not in open("{folder / "ledger"}").read() and time.monotonic() < end:
                time.sleep(0.01)
            before = [w.pid for w in app.status().pool("Printer").workers]
        """,
        "define again": DEFINITION.format(version="new", **blank),
        "remote again": """
            from_old_handle = printer.show.remote("text")
            from_old_class = held().show.remote("text")
            from_new_handle = Printer().show.remote("text")
            from_old_handle, from_old_class, from_new_handle, await printer.show.remote.aio("text")
        """,
        "except again": """
            try:
                printer.show.remote("")
            except OutOfPaper as error:
                caught = error
            type(caught) is OutOfPaper, caught.args
        """,
        "finish": f"""
            undisturbed = not running.done()
            open("{folder / "gate"}", "w").close()
            undisturbed, running.get(30)
        """,
        "settle": """
            def workers():
                return [w.pid for p in app.status().pools for w in p.workers]

            end = time.monotonic() + 30
            while len(workers()) != 1 and time.monotonic() < end:
                time.sleep(0.05)
            len(before), len(workers()), before != workers(), [p.class_name for p in app.status().pools]
        """,
        "stop": """
            app.stop()
            app.status().running
        """,
    }
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell(textwrap.dedent(source).strip(), metadata={"name": name})
        for name, source in cells.items()
    ]
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "IPYTHONDIR": str(folder / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
        NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(folder)}}).execute(env=environment)
    outputs = {cell.metadata["name"]: cell.outputs for cell in notebook.cells}
    return Ran(outputs, json.dumps(notebook.metadata), (folder / "ledger").read_text().splitlines())


def test_classes_of_a_cell_are_called_with_remote_and_with_await_at_top_level(ran: Ran) -> None:
    assert ran.value("remote") == "'old text'"
    assert ran.value("await") == "('old awaited', ['old a', 'old b'])"
    assert ran.value("except") == "(True, ('old',))", "an exception class of a cell is the same on both sides"


def test_running_the_cell_again_replaces_the_class_for_new_and_old_handles(ran: Ran) -> None:
    assert ran.value("remote again") == "('new text', 'new text', 'new text', 'new text')"
    assert ran.value("except again") == "(True, ('new',))", "and so are the classes that it uses"


def test_a_call_that_runs_meanwhile_is_finished_by_the_old_code_and_then_the_old_worker_goes(ran: Ran) -> None:
    assert ran.value("finish") == "(True, 'old running')"
    assert ran.value("settle") == "(1, 1, True, ['Printer'])"
    words = [line.split() for line in ran.ledger]
    assert [word[:2] for word in words] == [
        ["enter", "old"],
        ["slowly", "old"],
        ["enter", "new"],
        ["exit", "old"],
        ["exit", "new"],
    ]
    assert ran.value("stop") == "False"


def test_map_shows_its_progress_in_the_cell(ran: Ran) -> None:
    assert ran.value("progress").replace("\n ", " ") == repr([f"old {n}" for n in range(20)])
    assert ran.outputs["progress"][0].output_type == "display_data"
    assert "Printer.show" in ran.metadata
    assert "20/20" in ran.metadata, "as it was when all was done"


def test_apps_classes_handles_and_statuses_show_themselves(ran: Ran) -> None:
    for cell in ("show app", "show class", "show handle", "show status"):
        assert "Printer" in ran.value(cell, "text/html"), cell
        assert "Printer" in ran.value(cell, "text/plain"), cell
    assert "show(text)" in ran.value("show handle", "text/html")
    assert "running" in ran.value("show status", "text/html")
    assert "READY" in ran.value("show status", "text/html")
