"""DESIGN §3, Typing: mypy and pyright accept the good calls, see the right types, and find the bad ones."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.typing, pytest.mark.timeout(300)]

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(sys.executable).parent
FILES = {name: ROOT / "tests" / "typing" / f"{name}.py" for name in ("good", "bad")}

Errors = dict[str, dict[int, str]]


def errors_of_mypy() -> Errors:
    command = [BIN / "mypy", "--config-file", ROOT / "pyproject.toml", "--no-error-summary", "--hide-error-context"]
    run = subprocess.run([*command, *FILES.values()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stdout + run.stderr
    found: Errors = {name: {} for name in FILES}
    for match in re.finditer(r"^(.+?):(\d+): error: (.*)$", run.stdout, re.MULTILINE):
        found[pathlib.Path(match[1]).stem].setdefault(int(match[2]), match[3])
    return found


def errors_of_pyright() -> Errors:
    command = [BIN / "pyright", "--outputjson", "--pythonpath", sys.executable]
    run = subprocess.run([*command, *FILES.values()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stdout + run.stderr
    found: Errors = {name: {} for name in FILES}
    for line in json.loads(run.stdout)["generalDiagnostics"]:
        if line["severity"] == "error":
            start = line["range"]["start"]["line"] + 1
            found[pathlib.Path(line["file"]).stem].setdefault(start, line["message"])
    return found


CHECKERS = {"mypy": errors_of_mypy, "pyright": errors_of_pyright}


@pytest.fixture(scope="module", params=CHECKERS)
def checked(request: pytest.FixtureRequest) -> tuple[str, Errors]:
    return request.param, CHECKERS[request.param]()


def lines_with(name: str, pattern: str) -> set[int]:
    lines = FILES[name].read_text().splitlines()
    return {number for number, line in enumerate(lines, 1) if re.search(pattern, line)}


def test_good_calls_are_accepted_with_the_right_types(checked):
    checker, errors = checked
    excused = lines_with("good", r"# pyright only$") if checker == "mypy" else set()
    assert {line: text for line, text in errors["good"].items() if line not in excused} == {}


def test_bad_calls_are_found_and_nothing_else(checked):
    checker, errors = checked
    expected = lines_with("bad", rf"  # E(: {checker})?$")
    assert len(expected) > 40
    assert {line: errors["bad"].get(line, "no error") for line in expected ^ set(errors["bad"])} == {}
