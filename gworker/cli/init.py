"""`gworker init`: write a starter app, and say what to do with it."""

from __future__ import annotations

from pathlib import Path

from gworker.cli import output
from gworker.cli.exits import Failed

STARTER = Path(__file__).parent / "starter" / "app.py"


def init(folder: Path, *, force: bool) -> None:
    """Write app.py into the folder, which is made if need be. Raises Failed where there is one already."""
    path = folder / "app.py"
    text = STARTER.read_text()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("w" if force else "x") as file:
            file.write(text)
    except FileExistsError:
        if path.is_file():
            raise Failed(f"{path} is there already: name another folder, or replace it with --force") from None
        raise Failed(f"{folder} is not a folder: name one, or one that is to be made") from None
    except OSError as error:
        raise Failed(f"{path} cannot be written: {error.strerror}") from None
    output.emit(f"wrote {path}")
    output.emit(_next_steps(path))


def _next_steps(path: Path) -> str:
    steps = {
        f"python {path}": "run it",
        f"gworker serve {path} --reload": "serve it over HTTP, and take edits over",
        f"gworker run {path}::Embedder.embed hello": "call a method",
        f"gworker bench {path}::Embedder.embed hello": "measure it under load",
        f"gworker deploy {path}": "run it on a cluster, apart from any program",
    }
    width = max(map(len, steps))
    return "\n".join(f"  {command.ljust(width)}   {what}" for command, what in steps.items())
