"""A class that becomes a pool of workers: loaded once, called in batches, watched, restarted, scaled.

Try it:

    python app.py                   run it here, on a Ray of its own or on the one that is attached
    gworker serve app.py --reload   serve it over HTTP, and take edits over
"""

from __future__ import annotations

import math
import zlib

import gworker as gw

app = gw.App("starter")


# gpu=gw.Gpu("A100") gives each worker a GPU. Up to four workers come and go with the demand; one is always ready.
@app.cls(min_workers=1, max_workers=4, probes=[gw.Probe.on("health", kind="liveness", period_s=10, failures=3)])
@gw.concurrent(max_inputs=64)
class Embedder:
    """Turns texts into vectors: similar texts point the same way."""

    @gw.on_enter()
    def load(self) -> None:
        """Runs once in each worker, before its first call: load your model here."""
        self.dimensions = 256

    @gw.method()
    @gw.batched(max_batch_size=32, wait_ms=5)
    def embed(self, text: list[str]) -> list[list[float]]:
        """Embed a text. Callers give one each; up to 32 of them come here together."""
        return [self._vector(each) for each in text]

    @gw.method()
    def health(self) -> dict[str, bool]:
        """What the probe asks every ten seconds. After three failures in a row the worker is replaced."""
        return {"ok": self.dimensions > 0}

    def _vector(self, text: str) -> list[float]:
        """Counts the text's trigrams; put your model's forward pass in the place of this."""
        padded = f"  {text.lower()} "
        counts = [0.0] * self.dimensions
        for start in range(len(padded) - 2):
            counts[zlib.crc32(padded[start : start + 3].encode()) % self.dimensions] += 1.0
        length = math.hypot(*counts)
        return [count / length for count in counts]


def main() -> None:
    """Find the nearest of a few sentences."""
    sentences = ["The cat sleeps on the sofa.", "Stocks fell sharply on Monday.", "A quick recipe for tomato soup."]
    query = "How do I cook tomatoes?"

    embedder = Embedder()  # a handle: cheap, and it starts nothing
    target = embedder.embed.remote(query)  # the first call starts Ray and a worker, and waits for the result
    vectors = embedder.embed.map(sentences)  # many calls at a time, results in order
    nearness = [sum(a * b for a, b in zip(target, vector, strict=True)) for vector in vectors]

    for near, sentence in sorted(zip(nearness, sentences, strict=True), reverse=True):
        print(f"{near:.2f}  {sentence}")


if __name__ == "__main__":
    main()
