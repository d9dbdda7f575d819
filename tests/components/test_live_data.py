"""Bytes of live tensors and arrays: viewed in place where they lie so, copied out in any range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.components._memory import bytes_of
from tests.components._odd import odd_tensors

from stepseal.components._live_data import TensorData, byte_view, data_of, tensor_over

ARRAYS = [
    np.arange(12.0).reshape(3, 4),
    np.arange(12, dtype=">i4").reshape(3, 4).T,
    np.arange(12)[::3],
    np.array(2.5),
    np.empty((0, 3)),
    np.array(["a", "bc"]),
    np.array([("2020-01-01")], dtype="M8[D]"),
    np.zeros(3, np.dtype([("a", "u1"), ("b", "<f8")], align=True))[::2],
]


@pytest.mark.parametrize("number", range(len(odd_tensors())))
def test_a_tensor_gives_its_elements_in_c_order_bit_for_bit(number: int) -> None:
    tensor = odd_tensors()[number]
    data = TensorData(tensor)
    found = tensor_over(memoryview(bytearray(bytes_of(data))), tensor.dtype, tensor.shape)
    assert torch.equal(found, tensor.detach())
    view = data.view()
    assert (view is not None) == (tensor.is_contiguous() and not tensor.is_conj() | tensor.is_neg())
    if view is not None:
        assert (view.format, view.ndim, bytes(view)) == ("B", 1, bytes_of(data))


@pytest.mark.parametrize("number", range(len(ARRAYS)))
def test_an_array_gives_its_elements_in_c_order_bit_for_bit(number: int) -> None:
    array = ARRAYS[number]
    data = data_of(array)
    assert bytes_of(data) == array.view(f"V{array.itemsize}").tobytes()
    view = data.view()
    assert (view is not None) == (array.flags.c_contiguous or not array.nbytes)
    assert view is None or bytes(view) == bytes_of(data)


@pytest.mark.parametrize(
    "live", [*odd_tensors(), *ARRAYS, b"some bytes", bytearray(b"others")], ids=lambda _: ""
)
def test_any_range_can_be_copied_out(live: torch.Tensor | np.ndarray | bytes) -> None:
    data = data_of(live)
    whole = bytes_of(data)
    for start, stop in [(0, 1), (1, 2), (3, 17), (8, 24), (5, 1000), (2_400_000 - 9, 2_400_000)]:
        wanted = whole[start:stop]
        target = bytearray(len(wanted))
        data.fill(memoryview(target), start)
        assert target == wanted


def test_a_view_follows_the_live_tensor_and_keeps_it_alive() -> None:
    live = torch.zeros(4)
    view = TensorData(live).view()
    assert view is not None
    live.fill_(1.0)
    assert bytes(view) == bytes(byte_view(live))
    kept = byte_view(torch.full((1 << 16,), 3, dtype=torch.uint8))
    torch.zeros(1 << 16, dtype=torch.uint8)
    assert set(kept) == {3}


def test_a_live_bytearray_may_grow_after_it_was_described() -> None:
    live = bytearray(b"abc")
    data = data_of(live)
    live += b"def"
    assert data.size_bytes == 3


def test_a_tensor_over_read_only_memory_is_a_copy() -> None:
    data = b"\x01\x02\x03\x04"
    tensor = tensor_over(memoryview(data), torch.uint8)
    tensor.zero_()
    assert data == b"\x01\x02\x03\x04"


def test_copying_leaves_autograd_and_rng_alone() -> None:
    weight = torch.ones(3, 2, requires_grad=True)
    loss = (weight * weight).sum()
    version, rng = weight._version, torch.get_rng_state()
    for tensor in (weight, weight.t()):
        bytes_of(TensorData(tensor))
    assert weight._version == version
    assert torch.equal(torch.get_rng_state(), rng)
    loss.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
