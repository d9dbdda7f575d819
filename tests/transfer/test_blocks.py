from __future__ import annotations

import pytest
from tests.transfer._steps import Filled, not_cancelled, random_bytes

from stepseal.layout import CHUNK_BYTES, BufferData, chunk_digests
from stepseal.testing import MemoryStorage
from stepseal.transfer._blocks import BLOCK_BYTES, DigestedWriter, FileWriter, allocate


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0, 1, 0],
        [CHUNK_BYTES],
        [5, 3 * CHUNK_BYTES, 7, 4 * CHUNK_BYTES + 1, 11],
        [64, BLOCK_BYTES + 3, 3 * CHUNK_BYTES - 1],
        [CHUNK_BYTES - 1] * 10,
    ],
)
def test_digests_restart_at_the_file_and_nowhere_else(sizes: list[int]) -> None:
    storage = MemoryStorage()
    buffers = [random_bytes(size, seed) for seed, size in enumerate(sizes)]
    with storage.create_file("f") as handle:
        writer = DigestedWriter(handle, allocate(BLOCK_BYTES), not_cancelled)
        for data in buffers:
            writer.append(data)
        size_bytes, digests = writer.finish()
    whole = b"".join(buffers)
    with storage.open_read("f") as reader:
        found = bytearray(reader.size_bytes)
        reader.read_into(found, 0)
    assert found == whole
    assert (size_bytes, digests) == (len(whole), chunk_digests(whole))


def test_gathered_and_straight_bytes_keep_their_order() -> None:
    storage = MemoryStorage()
    parts = [random_bytes(size, size) for size in (10, BLOCK_BYTES + 10, 20, 2 * BLOCK_BYTES, 30)]
    told: list[int] = []
    with storage.create_file("f") as handle:
        writer = FileWriter(handle, allocate(BLOCK_BYTES), not_cancelled)
        writer.append(parts[0])
        writer.append(parts[1])
        writer.append(parts[2])
        writer.write_straight(BufferData(parts[3]), lambda block: told.append(block.nbytes))
        writer.append(parts[4])
        assert writer.offset == sum(map(len, parts))
        writer.flush()
    with storage.open_read("f") as reader:
        found = bytearray(reader.size_bytes)
        reader.read_into(found, 0)
    assert found == b"".join(parts)
    assert told == [BLOCK_BYTES, BLOCK_BYTES]


def test_data_without_a_view_is_filled_block_by_block() -> None:
    storage = MemoryStorage()
    data = random_bytes(BLOCK_BYTES + CHUNK_BYTES + 5)
    source, told = Filled(data), list[bytes]()
    with storage.create_file("f") as handle:
        writer = FileWriter(handle, allocate(BLOCK_BYTES), not_cancelled)
        writer.append(b"before")
        writer.write_straight(source, lambda block: told.append(chunk_digests(block)))
        writer.append(b"after")
        writer.flush()
    with storage.open_read("f") as reader:
        found = bytearray(reader.size_bytes)
        reader.read_into(found, 0)
    assert found == b"before" + data + b"after"
    assert b"".join(told) == chunk_digests(data)
    assert source.filled == [(0, BLOCK_BYTES), (BLOCK_BYTES, CHUNK_BYTES + 5)]


def test_digested_data_without_a_view_arrives_whole() -> None:
    storage = MemoryStorage()
    data = random_bytes(3 * CHUNK_BYTES + 7)
    with storage.create_file("f") as handle:
        writer = DigestedWriter(handle, allocate(BLOCK_BYTES), not_cancelled)
        writer.append(b"x")
        writer.append_data(Filled(data))
        assert writer.finish() == (len(data) + 1, chunk_digests(b"x" + data))
