"""Mistakes that type checkers must find, each on a line marked with who finds it. Checked by tests/unit/test_typing.py.

`# E` both, `# E: pyright` or `# E: mypy` that one alone. An unmarked line must have no error.
"""

from __future__ import annotations

from collections.abc import Iterator

from typing_extensions import assert_type

import gworker as gw

app = gw.App("typing")


@app.cls()
class Embedder:
    @gw.on_enter()  # E
    def setup(self, model: str) -> None: ...

    @gw.method()
    def embed(self, text: str, *, normalize: bool = True) -> list[float]:
        self.embed(1)  # E
        return []

    @gw.method()
    async def rerank(self, query: str) -> int:
        assert_type(self.rerank(query), int)  # E
        return 1

    @gw.method()
    def tokens(self, text: str) -> Iterator[str]:
        yield text


embedder = Embedder()
embedder.embed.remote(1)  # E
embedder.embed.remote()  # E
embedder.embed.remote("x", True)  # E
embedder.embed.remote("x", normalise=True)  # E
embedder.embed.spawn(1)  # E
embedder.embed.local(1)  # E
embedder.embed.remote("x").upper()  # E
embedder.embed.with_options(timeout=3)  # E
embedder.embed.stream("x")  # E
embedder.tokens.remote("x")  # E
embedder.tokens.stream(1)  # E
embedder.rerank.remote(2)  # E
embedder.rerank.remote("x").real.lower()  # E
embedder.nothing.remote("x")  # E
Embedder.embed.remote("x")  # E


async def asynchronous() -> None:
    await embedder.rerank.remote("x")  # E
    await embedder.embed.remote.aio(1)  # E


@app.cls()
class BatchEmbedder:
    @gw.method()
    @gw.batched(max_batch_size=64)
    def embed(self, texts: list[str]) -> list[list[float]]:
        return []

    @gw.method()
    @gw.batched(max_batch_size=64)  # E
    def no_list(self, text: str) -> list[float]:
        return []

    @gw.method()
    @gw.batched(max_batch_size=64)  # E
    def no_results(self, texts: list[str]) -> int:
        return 1


BatchEmbedder().embed.remote(["x"])  # E
BatchEmbedder().embed.remote(1)  # E
BatchEmbedder().embed.remote("x", "y")  # E
BatchEmbedder().embed.local(["x"])  # E
assert_type(BatchEmbedder().embed.remote("x"), list[list[float]])  # E


@app.cls()
class Classifier:
    threshold: float = gw.parameter(default=0.5)
    model: str = gw.parameter(scope="worker")
    wrong: float = gw.parameter(default="0.5")  # E
    scope: int = gw.parameter(default=1, scope="pool")  # E

    @gw.method()
    def classify(self, text: str) -> str:
        return text


Classifier(threshold="high", model="m")  # E
Classifier(treshold=0.5, model="m")  # E
Classifier()  # E: pyright
Classifier(0.5, "m")  # E


class Decorators:
    @gw.method  # E
    def bare(self) -> None: ...

    @gw.batched  # E
    def bare_batched(self, xs: list[int]) -> list[int]:
        return xs

    @gw.method(1)  # E
    def with_argument(self) -> None: ...

    @gw.batched()  # E
    def no_size(self, xs: list[int]) -> list[int]:
        return xs

    @gw.batched(64)  # E
    def by_position(self, xs: list[int]) -> list[int]:
        return xs


@gw.concurrent()  # E
class NoInputs: ...


@gw.concurrent  # E: pyright
class Bare: ...  # E: mypy


@app.cls  # E: mypy
class BareToo: ...


@app.cls(min_worker=1)  # E
class Unknown: ...


@app.cls(gpu="A100")  # E
class Text: ...


gw.Retries(3)  # E
gw.Probe.on("health", kind="alive")  # E
