"""Targets: what is found, how it is loaded, and what is said when it is not."""

from __future__ import annotations

import importlib
import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gworker.cli.exits import Code, Failed
from gworker.cli.target import Loaded, Target, load

_numbers = itertools.count(1)

ONE_APP = """
    import gworker as gw

    app = gw.App(__name__)

    @app.cls()
    class Embedder:
        @gw.method()
        def embed(self, texts: list[str]) -> list[str]:
            return texts
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Writes modules with names of their own; what loading them changes in this process is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    importlib.import_module("gworker.app")  # it stays, or its classes would be others in the next test
    before = set(sys.modules)

    def make(source: str, name: str = "") -> Path:
        path = tmp_path / (name or f"targets_{next(_numbers)}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    yield make
    for module in set(sys.modules) - before:
        del sys.modules[module]


def message(target: str) -> str:
    with pytest.raises(Failed) as caught:
        load(target)
    assert caught.value.code is Code.USAGE
    return f"{caught.value.user_traceback}{caught.value}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("app.py", Target("app.py")),
        ("app.py:app", Target("app.py", "app")),
        ("a/b.py::Embedder", Target("a/b.py", "", "Embedder")),
        ("a/b.py:app::Embedder.embed", Target("a/b.py", "app", "Embedder", "embed")),
        ("package.module:app::Embedder.embed", Target("package.module", "app", "Embedder", "embed")),
    ],
)
def test_a_target_is_read_and_written_back(text: str, expected: Target) -> None:
    assert Target.parse(text) == expected
    assert str(Target.parse(text)) == text


def test_a_file_is_imported_under_its_own_name_so_that_its_classes_travel_by_reference(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(ONE_APP)
    loaded: Loaded = load(f"{path}::Embedder.embed")
    assert loaded.cls is not None and loaded.method is not None
    assert loaded.cls.user_cls.__module__ == path.stem
    assert loaded.method.name == "embed"
    assert sys.path[0] == str(tmp_path)
    assert str(Path(sys.argv[0]).parent) == str(tmp_path)  # Ray hands the folder of the script on to the workers


def test_a_file_of_a_package_is_imported_as_a_part_of_it(write: Callable[..., Path], tmp_path: Path) -> None:
    name = f"package_{next(_numbers)}"
    write("", f"{name}/__init__.py")
    write("WORD = 'relative'", f"{name}/words.py")
    write(textwrap.dedent(ONE_APP) + "\nfrom .words import WORD\n", f"{name}/app.py")
    loaded = load(f"{name}/app.py::Embedder")
    assert loaded.cls is not None and loaded.cls.user_cls.__module__ == f"{name}.app"
    assert sys.path[0] == str(tmp_path)
    assert load(f"{name}.app").app is loaded.app


def test_one_of_several_apps_is_chosen_by_name_or_by_its_class(write: Callable[..., Path]) -> None:
    path = write(
        """
        import gworker as gw
        left, right = gw.App(__name__ + "-left"), gw.App(__name__ + "-right")

        @left.cls()
        class Left:
            @gw.method()
            def f(self): ...

        @right.cls()
        class Right:
            @gw.method()
            def f(self): ...
        """
    )
    assert load(f"{path.name}:right").app.name.endswith("-right")
    assert load(f"{path.name}:{path.stem}-left").app.name.endswith("-left")
    assert load(f"{path.name}::Right.f").app.name.endswith("-right")
    said = message(path.name)
    assert "several apps" in said
    assert f"{path.name}:left   {path.stem}-left: Left" in said
    assert "it has: " + path.name + ":left" in message(f"{path.name}:middle")


def test_what_is_not_there_is_named_with_what_is(write: Callable[..., Path]) -> None:
    path = write(ONE_APP)
    assert f"did you mean {path.name}?" in message(f"{path.name[:-4]}.py")
    assert "(did you mean Embedder?); it has: Embedder" in message(f"{path.name}::Embeder.embed")
    said = message(f"{path.name}::Embedder.embd")
    assert "did you mean embed?" in said and "embed(texts: list[str]) -> list[str]" in said
    assert "there is no module 'no.such.module'" in message("no.such.module")
    bare = write("import gworker as gw\ndef helper(): ...\n")
    assert 'write app = gw.App("name")' in message(bare.name) and "It defines: helper" in message(bare.name)
    assert "names no file and no module" in message("::Embedder.embed")


def test_what_the_users_code_raises_is_shown_with_their_frames_only(write: Callable[..., Path]) -> None:
    path = write("def broken():\n    raise ValueError('no')\n\nbroken()\n")
    said = message(path.name)
    assert said.startswith("Traceback (most recent call last):")
    assert "line 2, in broken" in said and said.rstrip().endswith("ValueError: no")
    assert "gworker" not in said.replace(str(path), "") and "importlib" not in said
    said = message(write("def x(:\n").name)
    assert "SyntaxError" in said and "importlib" not in said
    said = message(write("import no_such_module_at_all\n").name)
    assert "line 1" in said and "No module named 'no_such_module_at_all'" in said
    said = message(write("import gworker as gw\n@gw.App('x').cls(max_workers=0)\nclass A:\n    pass\n").name)
    assert "line 2" in said and "max_workers" in said and "app.py" not in said


def test_a_file_with_the_name_of_a_module_that_is_there_already_asks_for_another_name(
    write: Callable[..., Path],
) -> None:
    path = write(ONE_APP, "random.py")
    assert "Give the file another name" in message(str(path))
    assert "call it my_app.py" in message(str(write(ONE_APP, "my.app.py")))


def test_a_script_that_ends_the_process_is_told_where_to_put_that(write: Callable[..., Path]) -> None:
    assert '__name__ == "__main__"' in message(write("raise SystemExit(4)").name)


def test_a_file_whose_name_stands_in_the_current_folder_too_is_refused_where_workers_would_import_the_other(
    write: Callable[..., Path],
) -> None:
    name = f"targets_{next(_numbers)}.py"
    write("", name)
    write(ONE_APP, f"below/{name}")
    assert "workers would import the latter: go there first" in message(f"below/{name}")
    assert list(load(f"below/{name}", packed=True).app.classes) == ["Embedder"]
