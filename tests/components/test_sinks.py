from __future__ import annotations

import pytest
import torch

from stepseal.components._live_data import byte_view
from stepseal.components._sinks import DenseSink
from stepseal.layout import Box, whole

GLOBAL = torch.arange(6 * 5 * 4, dtype=torch.float32).view(6, 5, 4)


def cut(box: Box) -> torch.Tensor:
    index = tuple(
        slice(start, start + size) for start, size in zip(box.offsets, box.sizes, strict=True)
    )
    return GLOBAL[index].contiguous()


STORED = [Box((0, 0, 0), (2, 5, 4)), Box((2, 0, 0), (4, 2, 4)), Box((2, 2, 0), (4, 3, 4))]
WANTED = [
    whole((6, 5, 4)),
    Box((1, 1, 1), (4, 3, 2)),
    Box((2, 0, 0), (4, 2, 4)),
    Box((5, 4, 3), (1, 1, 1)),
]


def pour(sink: DenseSink, num_elements: int, *, readonly: bool = False) -> None:
    for box in STORED:
        data = bytes(byte_view(cut(box)))
        for start in range(0, box.num_elements, num_elements):
            piece = data[start * 4 : (start + num_elements) * 4]
            sink.write(box, start, memoryview(piece if readonly else bytearray(piece)))


@pytest.mark.parametrize("num_elements", [1, 3, 16, 1000])
@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_stored_boxes_fill_any_wanted_box(wanted: Box, num_elements: int) -> None:
    local = torch.full(wanted.sizes, -1.0)
    pour(DenseSink(local, wanted, torch.float32), num_elements)
    assert torch.equal(local, cut(wanted))


def test_a_strided_destination_is_filled_in_place() -> None:
    storage = torch.zeros(4, 5, 6)
    local = storage.permute(2, 1, 0)
    pour(DenseSink(local, whole((6, 5, 4)), torch.float32), 7)
    assert torch.equal(local, GLOBAL)
    assert torch.equal(storage, GLOBAL.permute(2, 1, 0))


def test_read_only_bytes_are_taken_without_a_warning() -> None:
    local = torch.zeros(6, 5, 4)
    pour(DenseSink(local, whole((6, 5, 4)), torch.float32), 9, readonly=True)
    assert torch.equal(local, GLOBAL)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.float8_e4m3fn, torch.uint16, torch.complex64, torch.bfloat16]
)
def test_the_fast_path_copies_bits(dtype: torch.dtype) -> None:
    raw = torch.arange(16, dtype=torch.uint8) % (2 if dtype is torch.bool else 16)
    source = raw.view(dtype)
    local = torch.zeros_like(source)
    box = whole(tuple(source.shape))
    data = byte_view(source)
    half = len(data) // 2 // dtype.itemsize
    sink = DenseSink(local, box, dtype)
    sink.write(box, half, data[half * dtype.itemsize :])
    sink.write(box, 0, data[: half * dtype.itemsize])
    assert bytes(byte_view(local)) == bytes(data)


def test_a_scalar_is_filled() -> None:
    local = torch.tensor(0.0)
    sink = DenseSink(local, Box((), ()), torch.float32)
    sink.write(Box((), ()), 0, byte_view(torch.tensor(4.0)))
    assert local.item() == 4.0


def test_a_destination_with_conj_bit_shows_the_stored_values() -> None:
    base = torch.zeros(2, dtype=torch.complex64)
    source = torch.tensor([1 + 2j, 3 - 4j])
    sink = DenseSink(base.conj(), whole((2,)), torch.complex64)
    sink.write(whole((2,)), 0, byte_view(source))
    assert torch.equal(base.conj(), source)


def test_a_parameter_stays_a_leaf_that_autograd_knows() -> None:
    weight = torch.nn.Parameter(torch.zeros(6, 5, 4))
    loss = (weight * 2).sum()
    pour(DenseSink(weight, whole((6, 5, 4)), torch.float32), 1000)
    assert weight.is_leaf
    assert weight.requires_grad
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.equal(weight, GLOBAL)


def test_autograd_notices_that_a_saved_tensor_changed() -> None:
    weight = torch.nn.Parameter(torch.ones(6, 5, 4))
    loss = (weight * weight).sum()
    pour(DenseSink(weight, whole((6, 5, 4)), torch.float32), 1000)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]
