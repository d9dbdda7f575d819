from __future__ import annotations

import io
import math
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.serialization import config as serialization_config

from stepseal.components._frames import _frame, frame_for
from stepseal.components._live_data import byte_view

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = [
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.complex32,
    torch.complex64,
    torch.complex128,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
]
SHAPES = [(), (1,), (0,), (3, 0, 2), (5, 7), (1100, 2, 3)]


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor of arbitrary bits (0 and 1 for bool)."""
    generator = torch.Generator().manual_seed(len(shape))
    high = 2 if dtype is torch.bool else 256
    size_bytes = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, high, (size_bytes,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).view(shape)


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_head_data_tail_is_a_record_of_torch_save(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = random_tensor(dtype, shape)
    frame = frame_for(dtype, shape)
    assert len(frame.head) % 64 == 0
    record = frame.head + bytes(byte_view(tensor)) + frame.tail

    loaded = torch.load(io.BytesIO(record), weights_only=True)

    assert loaded.dtype == dtype
    assert loaded.shape == tensor.shape
    assert bytes(byte_view(loaded)) == bytes(byte_view(tensor))


def records(data: bytes) -> list[tuple[str, int, int]]:
    """Return name, place and size of each record of a zip file."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return [(info.filename, info.header_offset, info.file_size) for info in file.infolist()]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (4097,)], ids=str)
def test_a_frame_has_the_records_that_torch_save_writes(
    shape: tuple[int, ...],
) -> None:
    tensor = random_tensor(torch.float32, shape)
    genuine = io.BytesIO()
    torch.save(tensor, genuine)
    frame = frame_for(torch.float32, shape)
    ours = frame.head + bytes(byte_view(tensor)) + frame.tail
    assert len(ours) == len(genuine.getvalue())
    assert records(ours) == records(genuine.getvalue())


def test_equal_arguments_give_equal_bytes() -> None:
    shape = (3, 5)
    first = frame_for(torch.float32, shape)
    assert frame_for(torch.float32, shape) is first
    _frame.cache_clear()
    assert frame_for(torch.float32, torch.Size(shape)) == first


def test_a_frame_beyond_4_gib_loads_and_costs_no_memory(tmp_path: Path) -> None:
    shape = ((4 << 30) // 2 + 5,)
    frame = frame_for(torch.bfloat16, shape)
    assert len(frame.head) + len(frame.tail) < 8192
    size_bytes = shape[0] * 2
    path = tmp_path / "sparse.pt"
    with path.open("wb") as file:
        file.write(frame.head)
        file.seek(len(frame.head) + size_bytes - 2)
        file.write(b"\x80\x3f" + frame.tail)

    loaded = torch.load(path, weights_only=True, mmap=True)

    assert loaded.shape == shape
    assert loaded[0].item() == 0.0
    assert loaded[-1].item() == 1.0


def test_torch_settings_are_as_before() -> None:
    config: Any = serialization_config
    _frame.cache_clear()
    crc32 = torch.serialization.get_crc32_options()
    rng = torch.get_rng_state()
    with config.patch({"save.storage_alignment": 4096}):
        frame = frame_for(torch.float32, (11, 2))
        assert config.save.storage_alignment == 4096
    assert len(frame.head) < 4096
    assert torch.serialization.get_crc32_options() is crc32
    assert torch.equal(torch.get_rng_state(), rng)


def test_the_cache_is_bounded() -> None:
    assert _frame.cache_parameters()["maxsize"] == 4096
