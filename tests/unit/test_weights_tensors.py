"""How torch tensors lie in shared weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

from gworker.weights.layout import SMALL_BYTES, pack, unpack
from tests.unit.test_weights import Store

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")

LARGE = SMALL_BYTES  # elements


def through(value: Any) -> Any:
    """Through the store, where a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return unpack(Store().put(pack(value).parts))


def equal(one: Any, other: Any) -> bool:
    """Whether two tensors are; also of types that cannot be compared."""
    return bool(torch.equal(one.to(torch.complex128), other.to(torch.complex128)))


@pytest.mark.parametrize("count", [0, 1, 10, LARGE], ids=["empty", "one", "small", "large"])
@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool", "complex128", "float8_e4m3fn"],
)
def test_a_tensor_of_every_type_and_size_is_the_same_again(dtype: str, count: int) -> None:
    tensor = torch.ones(count).to(getattr(torch, dtype))
    again = through(tensor)
    assert type(again) is torch.Tensor and again.dtype == tensor.dtype and again.shape == tensor.shape
    assert equal(again, tensor)
    assert again.untyped_storage().nbytes() == tensor.nbytes, "it has a storage of its own: it can be saved alone"


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(LARGE).reshape(64, -1).T,
        lambda: torch.rand(2, 8, 32, 32).to(memory_format=torch.channels_last),
        lambda: torch.arange(LARGE)[::2],
        lambda: torch.ones(1).expand(64, LARGE),
        lambda: torch.tensor(2.5),
        lambda: torch.empty(3, 0, 5),
        lambda: torch.ones(LARGE, dtype=torch.complex64).conj(),
        lambda: torch.ones(LARGE, dtype=torch.complex64).conj().imag,
        lambda: torch.eye(64).to_sparse(),
        lambda: torch.empty(LARGE, device="meta"),
    ],
    ids=["transposed", "channels last", "strided", "expanded", "scalar", "empty", "conj", "negated", "sparse", "meta"],
)
def test_tensors_of_every_layout_are_the_same_again(make: Callable[[], Any]) -> None:
    tensor = make()
    again = through(tensor)
    assert again.shape == tensor.shape and again.dtype == tensor.dtype and again.device == tensor.device
    if not tensor.is_meta:
        assert equal(again.to_dense(), tensor.to_dense())


def test_the_order_of_dimensions_in_memory_is_kept() -> None:
    image = torch.rand(2, 8, 32, 32).to(memory_format=torch.channels_last)
    assert through(image).stride() == image.stride()
    assert through(image[:, :, 0]).is_contiguous(), "what has gaps is put together"


def test_tied_tensors_are_stored_once_and_are_tied_again() -> None:
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(100, 64), "head": torch.nn.Linear(64, 100, bias=False)})
    model["head"].weight = model["embed"].weight
    packed = pack(model.state_dict())
    assert packed.nbytes < 1.2 * model["embed"].weight.nbytes
    again = through(model.state_dict())
    assert again["embed.weight"].data_ptr() == again["head.weight"].data_ptr()


def test_parameters_stay_parameters() -> None:
    layer = torch.nn.Linear(64, 64)
    layer.bias.requires_grad_(False)
    again = through(layer.state_dict(keep_vars=True))
    assert [type(value) for value in again.values()] == [torch.nn.Parameter] * 2
    assert [value.requires_grad for value in again.values()] == [True, False]
    assert through(torch.ones(LARGE, requires_grad=True)).requires_grad


def test_a_model_takes_shared_weights_and_computes_the_same() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64)).eval()
    state = through(model.state_dict())
    with torch.device("meta"):
        other = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64)).eval()
    other.load_state_dict(state, assign=True)
    given = torch.rand(8, 64)
    assert torch.equal(other(given), model(given))
    assert other[0].weight.data_ptr() == state["0.weight"].data_ptr(), "without a copy"
    whole = through(model)
    assert torch.equal(whole(given), model(given))
