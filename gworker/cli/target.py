"""Targets: `file.py`, `package.module`, either with `:app`, and `::Class.method`. Found, loaded, explained.

A file is imported under its own name, with its folder on `sys.path`, as `import` would have it: so its classes travel
by reference, and workers import the same file.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gworker.cli.exits import Failed, own_frames

if TYPE_CHECKING:
    from gworker.app import App
    from gworker.functions import MethodSpec
    from gworker.handle import Cls


@dataclass(frozen=True)
class Target:
    """What a user named. `source` is a file or a module; the others are empty where they were not given.

    >>> Target.parse("models/app.py:app::Embedder.embed")
    Target(source='models/app.py', app='app', cls='Embedder', method='embed')
    >>> Target.parse("package.module").source
    'package.module'
    """

    source: str
    app: str = ""
    cls: str = ""
    method: str = ""

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `SOURCE[:APP][::CLASS[.METHOD]]`."""
        where, _, what = text.partition("::")
        source, _, app = where.partition(":")
        class_name, _, method = what.partition(".")
        if not source:
            raise Failed(f"{text!r} names no file and no module: write for example app.py::Embedder.embed")
        return cls(source, app, class_name, method)

    @property
    def is_file(self) -> bool:
        """Whether the source is a path."""
        return self.source.endswith(".py") or os.sep in self.source

    def __str__(self) -> str:
        app = f":{self.app}" if self.app else ""
        what = f"::{self.cls}{'.' if self.method else ''}{self.method}" if self.cls else ""
        return f"{self.source}{app}{what}"


@dataclass(frozen=True)
class Loaded:
    """A target whose module has been imported: its app, and the class and method it names, if it does."""

    target: Target
    app: App
    cls: Cls | None
    method: MethodSpec | None
    folder: Path


def load(text: str, *, packed: bool = False) -> Loaded:
    """Import what a target names. Raises Failed, with the user's traceback where their code raised.

    `packed`: its code is sent to the workers; otherwise they import it from where it is.
    """
    target = Target.parse(text)
    module, folder = _import(target, packed)
    app = _app_of(target, module)
    if not target.cls:
        return Loaded(target, app, None, None, folder)
    cls = app.classes.get(target.cls)
    if cls is None:
        raise Failed(
            f"{target.source}: app {app.name!r} has no class {target.cls!r}{near(target.cls, app.classes)}; it has: "
            f"{listed(app.classes)}"
        )
    return Loaded(target, app, cls, method_of(cls, target.method), folder)


def load_method(text: str) -> tuple[App, Cls, MethodSpec]:
    """Import the method that a target names. Raises Failed, which lists what there is, where it names none."""
    loaded = load(text)
    if loaded.cls is None or loaded.method is None:
        classes = [loaded.cls] if loaded.cls is not None else loaded.app.classes.values()
        raise Failed(f"{text} names no method; say which one:\n{choices(loaded.target.source, '::', classes)}")
    return loaded.app, loaded.cls, loaded.method


def choices(source: str, separator: str, classes: Iterable[Cls]) -> str:
    """The methods of classes, for a message."""
    return "\n".join(
        f"  {source}{separator}{cls.name}.{method}" for cls in classes for method in cls.spec.methods.values()
    )


def method_of(cls: Cls, name: str) -> MethodSpec | None:
    """The method of this name; None where no name is given. Raises Failed."""
    if not name:
        return None
    found = cls.spec.methods.get(name)
    if found is None:
        methods = "\n".join(f"  {cls.name}.{method}" for method in cls.spec.methods.values())
        raise Failed(
            f"{cls.name} has no method {name!r} marked with @gw.method(){near(name, cls.spec.methods)}; it has:\n"
            f"{methods}"
        )
    return found


def near(name: str, known: Any) -> str:
    """A hint at the nearest of the known names, if one is near."""
    found = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {found[0]}?)" if found else ""


def listed(names: Any) -> str:
    """Names in a row, for a message."""
    return ", ".join(names) or "none"


# --- modules -----------------------------------------------------------------------------------------------------


def _import(target: Target, packed: bool) -> tuple[ModuleType, Path]:
    name, root = _module_name(target)
    if not packed:
        _check_found_by_workers(name, root)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    # As Python has it for a script; and Ray hands the folder of the script on to the workers.
    sys.argv = [str(root / name.split(".")[0])]
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise Failed(
                f"there is no module {name!r} that could be imported from {root}: give a file (app.py) or a module "
                "(package.module)"
            ) from None
        raise _users_fault(error) from None
    except Exception as error:
        raise _users_fault(error) from None
    except SystemExit as error:
        raise Failed(
            f"{target.source} ended the process (SystemExit: {error.code}) while it was imported: put what a script "
            'does under `if __name__ == "__main__":`'
        ) from None
    if target.is_file:
        _check_is(module, name, Path(target.source))
    return module, root


def _module_name(target: Target) -> tuple[str, Path]:
    """The name to import, and the folder from which."""
    if not target.is_file:
        return target.source, Path.cwd()
    path = Path(target.source)
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        others = sorted(p.name for p in folder.glob("*.py"))
        raise Failed(
            f"there is no file {target.source!r}{near(path.name, others)}; Python files there: {listed(others)}"
        )
    path = path.resolve()
    if "." in path.stem:
        raise Failed(
            f"{path.name} cannot be imported, because of the dot in its name: call it {path.stem.replace('.', '_')}.py"
        )
    parts, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():  # a file of a package is imported as part of it
        parts, folder = [folder.name, *parts], folder.parent
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts), folder


def _check_found_by_workers(name: str, root: Path) -> None:
    """Ray has workers look in the current folder first: what has the same name there would run instead."""
    here, top = Path.cwd(), name.partition(".")[0]
    for other in (here / f"{top}.py", here / top / "__init__.py"):
        if root != here and other.is_file():
            raise Failed(
                f"{top!r} of {root} and {other.relative_to(here)} of the current folder have one name, and workers "
                f"would import the latter: go there first (cd {root}), or give one of them another name"
            )


def _check_is(module: ModuleType, name: str, path: Path) -> None:
    """A file called `random.py` is not what `import random` gives once the standard library has been imported."""
    found = getattr(module, "__file__", None)
    if found is None or Path(found).resolve() != path.resolve():
        raise Failed(
            f"{path} cannot be imported as {name!r}: that is {found or 'a part of Python'} already. Give the file "
            "another name"
        )


def _users_fault(error: Exception) -> Failed:
    """What the user's own code raised, with its frames and no others."""
    return Failed("", user_traceback=own_frames("".join(traceback.format_exception(error))))


# --- apps --------------------------------------------------------------------------------------------------------


def _app_of(target: Target, module: ModuleType) -> App:
    from gworker.app import App

    apps = {name: value for name, value in vars(module).items() if isinstance(value, App)}
    if target.app:
        found = apps.get(target.app) or next((a for a in apps.values() if a.name == target.app), None)
        if found is None:
            raise Failed(
                f"{target.source} has no app {target.app!r}{near(target.app, apps)}; it has: "
                f"{listed(f'{target.source}:{name}' for name in apps)}"
            )
        return found
    distinct = {id(app): name for name, app in reversed(apps.items())}
    if target.cls and len(distinct) > 1:
        owners = {id(app): name for name, app in reversed(apps.items()) if target.cls in app.classes}
        distinct = owners if len(owners) == 1 else distinct
    if len(distinct) == 1:
        return apps[next(iter(distinct.values()))]
    if distinct:
        choices = "\n".join(
            f"  {target.source}:{name}   {apps[name].name}: {listed(apps[name].classes)}"
            for name in sorted(distinct.values())
        )
        raise Failed(f"{target.source} has several apps; say which one:\n{choices}")
    names = [
        n for n, v in vars(module).items() if not n.startswith("_") and getattr(v, "__module__", "") == module.__name__
    ]
    raise Failed(
        f'{target.source} has no app: write app = gw.App("name") and put @app.cls() above a class. It defines: '
        f"{listed(names)}"
    )
