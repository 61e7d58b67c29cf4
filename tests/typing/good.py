"""Calls that both type checkers must accept, with the types they must see.

Checked by tests/unit/test_typing.py and never run.

A line with `# pyright only` is accepted by pyright; mypy, which ignores what class decorators return, may object to it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import Any, Generic, Protocol, TypeVar

from typing_extensions import assert_type

import gworker as gw

app = gw.App("typing")


@app.cls(gpu=gw.Gpu("A100"), min_workers=1, retries=gw.Retries(max_retries=2), probes=[gw.Probe.on("health")])
class Embedder:
    @gw.on_enter()
    def setup(self) -> None:
        self.size = 3

    @gw.on_exit()
    async def leave(self) -> None:
        self.size = 0

    @gw.method()
    def embed(self, text: str, *, normalize: bool = True) -> list[float]:
        return [0.0] * self.size

    @gw.method()
    async def rerank(self, query: str, texts: list[str]) -> list[int]:
        assert_type(self.embed("x", normalize=False), list[float])
        return [1]

    @gw.method()
    async def both(self, text: str) -> int:
        ranks = await self.rerank(text, [text])
        assert_type(ranks, list[int])
        return len(ranks)

    @gw.method()
    def tokens(self, text: str) -> Iterator[str]:
        yield text

    @gw.method()
    async def stream(self, text: str) -> AsyncIterator[bytes]:
        for token in self.tokens(text):
            assert_type(token, str)
            yield token.encode()

    @gw.method()
    def health(self) -> dict[str, bool]:
        return {"ok": True}


def plain_methods() -> None:
    embedder = Embedder()
    assert_type(embedder.embed.remote("x"), list[float])
    assert_type(embedder.embed.remote(text="x", normalize=False), list[float])
    assert_type(embedder.embed.spawn("x"), gw.Call[list[float]])
    assert_type(embedder.embed.spawn("x").get(timeout_s=1), list[float])
    assert_type(embedder.embed.local("x"), list[float])
    assert_type(embedder.embed.map(["a", "b"], ordered=False, progress=True), Iterator[list[float]])
    assert_type(embedder.rerank.starmap([("a", ["b"])]), Iterator[list[int]])
    embedder.embed.for_each(["a"])
    assert_type(embedder.embed.with_options(deadline_s=3, timeout_s=1, retries=2).remote("x"), list[float])
    assert_type(embedder.health.remote()["ok"], bool)


async def asynchronous_methods() -> None:
    embedder = Embedder()
    assert_type(await embedder.embed.remote.aio("x"), list[float])
    assert_type(await embedder.embed.spawn("x"), list[float])
    assert_type(embedder.rerank.remote("q", ["x"]), list[int])
    assert_type(await embedder.rerank.remote.aio("q", texts=["x"]), list[int])
    assert_type(await embedder.rerank.local("q", ["x"]), list[int])
    async for vector in embedder.embed.map.aio(["a"]):
        assert_type(vector, list[float])


async def generators() -> None:
    embedder = Embedder()
    assert_type(embedder.tokens.stream("x"), Iterator[str])
    assert_type(embedder.tokens.remote_gen("x"), Iterator[str])
    assert_type(embedder.tokens.local("x"), Iterator[str])
    assert_type(embedder.stream.local("x"), AsyncIterator[bytes])
    assert_type(embedder.stream.with_options(deadline_s=1).stream(text="x"), Iterator[bytes])
    async for token in embedder.stream.stream.aio("x"):
        assert_type(token, bytes)


class Array:
    """What numpy and torch return has a length and items, and is no Sequence."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> float:
        return 0.0


@app.cls()
@gw.concurrent(max_inputs=128, target_inputs=100)
class BatchEmbedder:
    @gw.method()
    @gw.batched(max_batch_size=64, wait_ms=20)
    def embed(self, texts: list[str]) -> list[list[float]]:
        return [[0.0] for _ in texts]

    @gw.method()
    @gw.batched(max_batch_size=64, weight=len, max_weight=100)
    async def count(self, texts: list[str]) -> list[int]:
        return [len(self.embed(texts))]

    @gw.method()
    @gw.batched(max_batch_size=8)
    def pair(self, lefts: list[str], rights: list[bytes]) -> tuple[bool, ...]:
        return tuple(bool(left) and bool(right) for left, right in zip(lefts, rights, strict=True))

    @gw.method()
    @gw.batched(max_batch_size=8)
    def three(self, xs: list[int], ys: list[int], zs: list[str]) -> list[float]:
        return [0.0 for _ in zs]

    @gw.method()
    @gw.batched(max_batch_size=8)
    def translate(self, texts: list[str], langs: list[str] | None = None) -> list[str]:
        return texts

    @gw.method()
    @gw.batched(max_batch_size=8)
    def array(self, xs: list[float]) -> Array:
        return Array()

    @gw.method()
    @gw.batched(max_batch_size=8)
    def four(self, a: list[int], b: list[int], c: list[int], d: list[int]) -> list[str]:
        return [str(n) for n in a]

    @gw.method()
    @gw.batched(max_batch_size=8)
    async def keywords(self, a: list[int], *, b: list[int]) -> list[str]:
        return [str(n) for n in b]

    @gw.method()
    @gw.batched(max_batch_size=8)
    def optional_third(self, a: list[int], b: list[int], c: list[int] | None = None) -> list[str]:
        return [str(n) for n in a]

    @gw.method()
    @gw.batched(max_batch_size=8)
    def anything(self, xs: list[int]) -> Any:
        return xs

    @gw.method()
    def plain(self, text: str) -> int:
        return len(self.embed([text]))


async def batched_methods_take_and_give_one_input() -> None:
    embedder = BatchEmbedder()
    assert_type(embedder.embed.remote("x"), list[float])
    assert_type(embedder.embed.local("x"), list[float])
    assert_type(embedder.embed.map(["x"]), Iterator[list[float]])
    assert_type(embedder.count.remote("x"), int)
    assert_type(await embedder.count.local("x"), int)
    assert_type(embedder.pair.remote("x", b"y"), bool)
    assert_type(embedder.three.remote(1, 2, "z"), float)
    assert_type(embedder.translate.remote("x"), str)
    assert_type(embedder.translate.remote("x", "en"), str)
    assert_type(embedder.translate.remote("x", langs="en"), str)
    assert_type(embedder.array.remote(1.5), float)
    assert_type(embedder.plain.remote("x"), int)
    assert_type(embedder.four.remote(1, 2, 3, 4), str)
    assert_type(embedder.keywords.remote(1, b=2), str)
    assert_type(embedder.optional_third.remote(1, 2), str)
    assert_type(embedder.optional_third.remote(1, 2, 3), str)
    assert_type(embedder.anything.remote(1), Any)


@app.cls()
class Classifier:
    threshold: float = gw.parameter(default=0.5)
    labels: list[str] = gw.parameter(default=["a"])
    model: str = gw.parameter(scope="worker")

    @gw.method()
    def classify(self, text: str) -> str:
        assert_type(self.threshold, float)
        return self.model


def parameters() -> dict[Classifier, str]:
    classifier = Classifier(threshold=0.7, model="large")  # pyright only
    assert_type(classifier, Classifier)
    assert_type(classifier.classify.remote("x"), str)
    assert_type(Classifier(model="small").classify.remote("x"), str)  # pyright only
    return {classifier: "handles are hashable"}


T = TypeVar("T")


class Generic_(Generic[T]):
    @gw.method()
    def same(self, value: T) -> T:
        return value


@app.cls()
class Kinds(Generic_[int]):
    @gw.method()
    def anything(self, x: int) -> Any:
        return x

    @gw.method()
    async def anything_later(self) -> Any:
        return 1

    @gw.method()
    def nothing(self) -> None: ...

    @gw.method()
    def generator(self) -> Generator[int, None, None]:
        yield 1

    @gw.method()
    async def async_generator(self) -> AsyncGenerator[int, None]:
        yield 1


@app.cls()
class Sub(Kinds):
    @gw.method()
    def anything(self, x: int) -> Any:
        return super().anything(x)

    @gw.method()
    def nothing(self) -> None:
        Kinds.nothing(self)


def kinds() -> None:
    handle = Sub()
    assert_type(handle.same.remote(1), int)
    assert_type(handle.anything.remote(1), Any)
    assert_type(handle.anything_later.remote(), Any)
    handle.nothing.remote()
    assert_type(handle.generator.stream(), Iterator[int])
    assert_type(handle.async_generator.stream(), Iterator[int])


def gathering() -> None:
    calls = [Embedder().embed.spawn(text) for text in "ab"]
    gw.gather(*calls)
    call = gw.current_call()
    assert_type(call.cancelled, bool)
    assert_type(gw.current_attempt_number(), int)


class Reranks(Protocol):
    @gw.method()
    def rerank(self, query: str, texts: list[str]) -> list[int]: ...


def deployed_classes() -> None:
    untyped = gw.Cls.from_name("inference-server", "Embedder")
    untyped(threshold=0.5).anything.remote("x")
    embedder = gw.Cls.from_name("inference-server", "Embedder", like=Embedder)
    assert_type(embedder().embed.remote("x"), list[float])
    reranker = gw.Cls.from_name("inference-server", "Embedder", like=Reranks)  # pyright only
    assert_type(reranker().rerank.remote("x", ["y"]), list[int])  # pyright only
