"""The code of a deployed app: what is packed, what is not, and that versions do not mix."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import gworker as gw
from gworker import code
from gworker.code import CodePackage, pack_code, use_code


def module(path: Path, name: str) -> ModuleType:
    """A module as if it had been imported."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    return importlib.util.module_from_spec(spec)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with modules, a package with data, and what does not belong to the code."""
    files = {
        "server.py": "VERSION = 1",
        "notes.txt": "not code",
        "package/__init__.py": "",
        "package/inner.py": "x = 1",
        "package/words.txt": "data",
        "scripts/tool.py": "y = 2",
        ".venv/pyvenv.cfg": "",
        ".venv/lib/thing.py": "no",
        "env/pyvenv.cfg": "",
        "env/lib/thing.py": "no",
        "__pycache__/server.py": "no",
        "site-packages/installed.py": "no",
    }
    for name, text in files.items():
        path = tmp_path / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "app"


def names(package: CodePackage | None) -> list[str]:
    import io
    import zipfile

    assert package is not None
    return sorted(zipfile.ZipFile(io.BytesIO(package.data)).namelist())


def test_all_python_files_and_the_data_of_packages_are_packed_and_environments_are_not(folder: Path) -> None:
    package = pack_code([module(folder / "server.py", "server")])
    assert names(package) == [
        "0/package/__init__.py", "0/package/inner.py", "0/package/words.txt", "0/scripts/tool.py", "0/server.py"
    ]  # fmt: skip


def test_the_folder_of_a_nested_module_is_the_one_its_package_is_imported_from(folder: Path) -> None:
    for path, name in [("package/inner.py", "package.inner"), ("package/__init__.py", "package")]:
        assert "0/server.py" in names(pack_code([module(folder / path, name)]))


def test_what_is_installed_or_has_no_file_is_not_packed() -> None:
    assert pack_code([sys, json_module(), sys.modules["pytest"], ModuleType("made_up")]) is None


def json_module() -> ModuleType:
    import json

    return json


def test_the_same_files_have_the_same_digest_and_a_change_has_another(folder: Path) -> None:
    server = module(folder / "server.py", "server")
    first, again = pack_code([server]), pack_code([server])
    assert first is not None and again is not None and first == again
    (folder / "server.py").write_text("VERSION = 2")
    changed = pack_code([server])
    assert changed is not None and changed.digest != first.digest


def test_a_folder_that_holds_too_much_is_refused_with_advice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "MAX_FILES", 3)
    with pytest.raises(gw.InvalidDefinition, match="keep the app in a folder of its own"):
        pack_code([module(folder / "server.py", "server")])


def test_unpacked_code_is_imported_before_anything_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    package = pack_code([module(folder / "server.py", "server")])
    assert package is not None
    for _ in range(2):  # the second worker of a node finds it there
        use_code(package)
        assert (Path(sys.path[0]) / "server.py").read_text() == "VERSION = 1"


def test_code_is_not_run_from_a_folder_that_others_may_write_to(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.setattr(code.tempfile, "tempdir", str(tmp_path))
    open_to_all = tmp_path / f"gworker-code-{os.getuid()}"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    package = pack_code([module(folder / "server.py", "server")])
    assert package is not None
    with pytest.raises(PermissionError, match="others may write"):
        use_code(package)
