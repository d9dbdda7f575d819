from __future__ import annotations

import hashlib
from array import array

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from stepseal import layout
from stepseal.layout import CHUNK_BYTES, DIGEST_BYTES

SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES + 5]


def test_known_answers() -> None:
    assert layout.digest(b"").hex() == "99aa06d3014798d86001c324468d497f"
    assert layout.digest(b"stepseal") == xxhash.xxh3_128(b"stepseal").digest()
    assert layout.sha256_hex(b"abc") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("size", SIZES)
def test_chunks_restart_at_zero(size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    data = data[:size]
    chunks = [data[i : i + CHUNK_BYTES] for i in range(0, size, CHUNK_BYTES)]
    found = layout.chunk_digests(data)
    assert layout.num_chunks(size) == len(chunks)
    assert found == b"".join(map(layout.digest, chunks))
    assert layout.hex_digests(found) == tuple(layout.digest(c).hex() for c in chunks)


def test_any_contiguous_buffer_will_do() -> None:
    words = array("q", range(CHUNK_BYTES // 8 + 3))
    raw = words.tobytes()
    for view in (memoryview(words), memoryview(raw), memoryview(bytearray(raw))):
        assert layout.chunk_digests(view) == layout.chunk_digests(raw)
        assert layout.digest(view) == layout.digest(raw)
        assert layout.sha256_hex(view) == layout.sha256_hex(raw)
    assert layout.chunk_digests(memoryview(array("q"))) == b""


@given(st.binary(max_size=40), st.integers(0, 319))
def test_every_flipped_bit_shows(data: bytes, bit: int) -> None:
    changed = bytearray(data)
    if changed:
        changed[bit // 8 % len(changed)] ^= 1 << bit % 8
        assert layout.digest(changed) != layout.digest(data)
    assert len(layout.digest(data)) == DIGEST_BYTES
