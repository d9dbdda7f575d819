"""What a participant writes: bytes that lie somewhere else."""

from __future__ import annotations

import pytest

from stepseal.layout import BufferData


@pytest.mark.parametrize("buffer", [b"abcdef", bytearray(b"abcdef"), memoryview(b"abcdef")])
def test_bytes_are_viewed_in_place_and_copied_out(buffer: bytes | bytearray | memoryview) -> None:
    data = BufferData(buffer)
    assert data.size_bytes == 6
    assert bytes(data.view()) == b"abcdef"
    target = bytearray(3)
    data.fill(memoryview(target), start=2)
    assert target == b"cde"
