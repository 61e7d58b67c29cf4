"""How torch tensors travel between a router and a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gworker.wire import INLINE_BUFFER_BYTES, Down, Returned, decode, encode, pack, unpack

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")

LARGE = INLINE_BUFFER_BYTES  # bytes: from this size on a buffer travels beside the pickle
SIZES = pytest.mark.parametrize("count", [0, 1, 10, LARGE], ids=["empty", "one", "small", "large"])


def travel(value: Any) -> Any:
    """Through a payload, a bundle, and back: what a result goes through on its way to a caller."""
    bundle = Down(0, -1, 1, False, (Returned(1, pack(value)),))
    again = decode(encode(bundle), Down)
    assert again is not None
    (message,) = again.messages
    assert isinstance(message, Returned)
    return unpack(message.result)


@SIZES
@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool", "complex64", "float8_e4m3fn"],
)
def test_a_tensor_arrives_equal_writable_and_its_own(dtype: str, count: int) -> None:
    sent = torch.ones(count).to(getattr(torch, dtype))
    arrived = travel(sent)
    assert type(arrived) is torch.Tensor
    assert arrived.dtype == sent.dtype and arrived.shape == sent.shape
    assert torch.equal(arrived.to(torch.complex64), sent.to(torch.complex64))
    arrived.zero_()
    assert sent.to(torch.complex64).sum() == count, "the sender's tensor is untouched"


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(LARGE).reshape(64, -1).T,
        lambda: torch.arange(LARGE)[::2],
        lambda: torch.arange(12.0).reshape(3, 4)[:, 1],
        lambda: torch.ones(1).expand(64, LARGE),
        lambda: torch.tensor(2.5),
        lambda: torch.empty(3, 0, 5),
        lambda: torch.ones(LARGE, dtype=torch.complex64).conj(),
        lambda: torch.ones(LARGE, dtype=torch.complex64).conj().imag,
    ],
    ids=["transposed", "strided", "column", "expanded", "scalar", "empty", "conjugated", "negated"],
)
def test_tensors_of_every_layout_arrive_equal(make: Callable[[], Any]) -> None:
    sent = make()
    arrived = travel(sent)
    assert arrived.shape == sent.shape and arrived.dtype == sent.dtype
    assert torch.equal(arrived, sent)


def test_a_tensor_that_requires_grad_arrives_as_its_values() -> None:
    weight = torch.ones(LARGE, requires_grad=True)
    for sent in (weight, weight * 2):
        arrived = travel(sent)
        assert torch.equal(arrived, sent.detach())
        assert arrived.numpy().sum() == sent.sum().item(), "plain values, no graph"


def test_a_large_tensor_travels_beside_the_pickle() -> None:
    payload = pack({"x": torch.zeros(LARGE, dtype=torch.bfloat16)})
    assert len(payload.buffers) == 1 and len(payload.data) < 1000


def test_the_sender_may_use_its_tensor_again_once_it_is_packed() -> None:
    reused = torch.zeros(LARGE)
    payload = pack(reused)
    reused.fill_(1.0)
    assert unpack(payload).sum() == 0.0


def test_sparse_tensors_and_parameters_arrive_as_torch_sends_them() -> None:
    sparse = torch.eye(3).to_sparse()
    assert torch.equal(travel(sparse).to_dense(), torch.eye(3))
    parameter = torch.nn.Parameter(torch.ones(3))
    arrived = travel(parameter)
    assert isinstance(arrived, torch.nn.Parameter) and arrived.requires_grad
