from __future__ import annotations

import pytest
from tests.transfer._steps import not_cancelled, random_bytes

from stepseal.layout import CHUNK_BYTES, chunk_digests
from stepseal.testing import MemoryStorage
from stepseal.transfer._pieces import PIECE_BYTES, DigestedWriter, FileWriter, allocate


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0, 1, 0],
        [CHUNK_BYTES],
        [5, 3 * CHUNK_BYTES, 7, 4 * CHUNK_BYTES + 1, 11],
        [64, PIECE_BYTES + 3, 3 * CHUNK_BYTES - 1],
        [CHUNK_BYTES - 1] * 10,
    ],
)
def test_digests_restart_at_the_file_and_nowhere_else(sizes: list[int]) -> None:
    storage = MemoryStorage()
    buffers = [random_bytes(size, seed) for seed, size in enumerate(sizes)]
    with storage.create_file("f") as handle:
        writer = DigestedWriter(handle, allocate(PIECE_BYTES), not_cancelled)
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
    parts = [random_bytes(size, size) for size in (10, PIECE_BYTES + 10, 20, 2 * PIECE_BYTES, 30)]
    told: list[int] = []
    with storage.create_file("f") as handle:
        writer = FileWriter(handle, allocate(PIECE_BYTES), not_cancelled)
        writer.append(parts[0])
        writer.append(parts[1])
        writer.append(parts[2])
        writer.write_straight(memoryview(parts[3]), lambda piece: told.append(piece.nbytes))
        writer.append(parts[4])
        assert writer.offset == sum(map(len, parts))
        writer.flush()
    with storage.open_read("f") as reader:
        found = bytearray(reader.size_bytes)
        reader.read_into(found, 0)
    assert found == b"".join(parts)
    assert told == [PIECE_BYTES, PIECE_BYTES]
