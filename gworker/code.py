"""The code of a deployed app: packed where it is deployed, unpacked by its workers, each version beside the others.

What workers can import travels by reference, so a worker of another node, or one that is restarted after the files have
changed, needs the files as they were. Installed packages are not packed: the nodes have them, or get them from a Ray
runtime environment.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from gworker.errors import InvalidDefinition

# More than this is no code: a data set, a virtual environment under an unusual name, somebody's home.
MAX_BYTES = 64 * 2**20
MAX_FILES = 10_000
_SKIPPED = frozenset(("__pycache__", "node_modules", "site-packages"))


@dataclass(frozen=True)
class CodePackage:
    """Files as one archive; `digest` is the same for the same files."""

    digest: str
    data: bytes


def pack_code(modules: Iterable[ModuleType]) -> CodePackage | None:
    """The folders that these modules are imported from, without what is installed; None where nothing is left.

    Of each folder all Python files are packed, and the data files inside packages. Raises InvalidDefinition for a
    folder that holds too much to be code.
    """
    roots = sorted({root for module in modules if (root := _root_of(module)) is not None})
    if not roots:
        return None
    files = [
        (f"{n}/{path.relative_to(root).as_posix()}", path) for n, root in enumerate(roots) for path in _files(root)
    ]
    hashed, archive = hashlib.blake2b(digest_size=16), io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, path in files:
            content = path.read_bytes()
            hashed.update(f"{name}\0{len(content)}\0".encode() + content)
            packed.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return CodePackage(hashed.hexdigest(), archive.getvalue())


def use_code(package: CodePackage) -> None:
    """Have this process import from a package, before anything else."""
    folder = _unpacked(package)
    for root in sorted(folder.iterdir(), reverse=True):
        sys.path.insert(0, str(root))


def _root_of(module: ModuleType) -> Path | None:
    """The folder on `sys.path` that a module comes from; None for what is installed, or has no file."""
    source = getattr(module, "__file__", None)
    if module.__name__ == "__main__" or source is None:
        return None
    path = Path(source).resolve()
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}
    if any(folder in path.parents for folder in installed) or "site-packages" in path.parts:
        return None
    above = len(module.__name__.split(".")) - (path.name != "__init__.py")
    return path.parents[above]


def _files(root: Path) -> Iterator[Path]:
    count, size = 0, 0
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not name.startswith(".")
            and name not in _SKIPPED
            and not os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))
        )
        in_package = "__init__.py" in names
        for name in sorted(names):
            path = Path(folder, name)
            if not (name.endswith(".py") or (in_package and not name.startswith(".") and not name.endswith(".pyc"))):
                continue
            count, size = count + 1, size + path.stat().st_size
            if count > MAX_FILES or size > MAX_BYTES:
                raise InvalidDefinition(
                    f"the folder {root} holds more than {MAX_FILES:,} files or {MAX_BYTES >> 20} MB of code and "
                    "package data, and would travel to the workers of the deployed app: keep the app in a folder of "
                    "its own, and read data from a path or a URL that every node has"
                )
            yield path


def _unpacked(package: CodePackage) -> Path:
    home = Path(tempfile.gettempdir(), f"gworker-code-{os.getuid()}")
    home.mkdir(mode=0o700, exist_ok=True)
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{home} belongs to somebody else, or others may write to it: code is not run from there")
    target = home / package.digest
    if not target.exists():
        fresh = Path(tempfile.mkdtemp(prefix=f"{package.digest}-", dir=home))
        with zipfile.ZipFile(io.BytesIO(package.data)) as packed:
            packed.extractall(fresh)
        try:
            fresh.rename(target)
        except OSError:  # another worker was faster
            if not target.exists():
                raise
    return target
