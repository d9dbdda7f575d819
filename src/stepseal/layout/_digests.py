"""Digests: which bytes each digest covers, and which algorithm is used.

xxh3-128 finds damage, not forgery. Chunks have a fixed size and restart at each item, so a range
of an item can be verified without reading the bytes around it. SHA-256 chains the documents that
hold digests.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeAlias

import xxhash

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Buffer",
    "CHUNK_BYTES",
    "DIGEST_BYTES",
    "chunk_digests",
    "digest",
    "digest_of_all",
    "digest_of_chunks",
    "hex_digests",
    "num_chunks",
    "sha256_hex",
]

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes; a memoryview may have any format."""
CHUNK_BYTES = 1 << 20
"""Bytes per chunk; the last chunk of an item may be shorter."""
DIGEST_BYTES = 16
"""Bytes of one digest."""


def digest(buffer: Buffer) -> bytes:
    """Return the digest of a whole buffer."""
    return xxhash.xxh3_128_digest(buffer)


def num_chunks(size_bytes: int) -> int:
    """Return the number of chunks of an item of `size_bytes`, 0 for an empty one."""
    return -(-size_bytes // CHUNK_BYTES)


def chunk_digests(buffer: Buffer) -> bytes:
    """Return the digests of a buffer's chunks, one after the other; empty for an empty buffer.

    Args:
        buffer: contiguous; its first byte begins the first chunk.
    """
    view = memoryview(buffer)
    if view.nbytes <= CHUNK_BYTES:
        return xxhash.xxh3_128_digest(view) if view.nbytes else b""
    flat = view.cast("B")
    return b"".join(
        xxhash.xxh3_128_digest(flat[start : start + CHUNK_BYTES])
        for start in range(0, view.nbytes, CHUNK_BYTES)
    )


def digest_of_chunks(digests: bytes) -> bytes:
    """Return the digest of an item from those of its chunks; an empty item has one, too."""
    return xxhash.xxh3_128_digest(digests)


def digest_of_all(digests: Mapping[str, bytes]) -> str:
    """Return one digest of many items, in hex; their order does not matter.

    Args:
        digests: name of each item to its digest.
    """
    total = xxhash.xxh3_128()
    for name in sorted(digests):
        data = name.encode("utf-8", "surrogatepass")
        total.update(len(data).to_bytes(8, "little") + data + digests[name])
    return total.hexdigest()


def hex_digests(digests: bytes) -> tuple[str, ...]:
    """Split concatenated digests into hex strings, as documents list them."""
    starts = range(0, len(digests), DIGEST_BYTES)
    return tuple(digests[start : start + DIGEST_BYTES].hex() for start in starts)


def sha256_hex(buffer: Buffer) -> str:
    """Return the SHA-256 of a whole buffer in lower-case hex."""
    return hashlib.sha256(buffer).hexdigest()
