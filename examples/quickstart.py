"""The whole library in one small class, without a model. Run it with `make quickstart`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import gworker as gw

app = gw.App("quickstart")


@app.cls(cpu=0.5, max_workers=1)
@gw.concurrent(max_inputs=64)
class Words:
    """Scores words. It stands for a model that is slow to load and fast in batches."""

    bonus: float = gw.parameter(default=0.0)

    @gw.on_enter()
    def load(self) -> None:
        self.scores = {letter: place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz", start=1)}

    @gw.method()
    @gw.batched(max_batch_size=32, wait_ms=5)
    def score(self, words: list[str]) -> list[float]:
        return [sum(self.scores.get(letter, 0) for letter in word.lower()) + self.bonus for word in words]

    @gw.method()
    def spell(self, word: str) -> Iterator[str]:
        yield from word

    @gw.method()
    def whereabouts(self) -> int:
        return os.getpid()


def main() -> None:
    words = Words()
    print("one call:      ", words.score.remote("Ray"))
    print("a parameter:   ", Words(bonus=0.5).score.remote("Ray"))
    print("many, in order:", list(words.score.map(["load", "once", "serve", "many"])))

    call = words.score.spawn("later")
    print("spawned:       ", call.get(timeout_s=30))
    print("streamed:      ", " ".join(words.spell.stream("batch")))
    print("in process:    ", words.score.local("Ray"))
    print("worker, caller:", words.whereabouts.remote(), os.getpid())


if __name__ == "__main__":
    main()
