"""Writes a participant's tensors into one payload file, and says where each one went.

The file is a sequence of items without gaps: padding, the record's head, the data, the record's
tail. Records begin at a multiple of 64, large data at a multiple of 4096, so that it can be read
without copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stepseal.errors import InvalidInput
from stepseal.layout import (
    CHUNK_BYTES,
    Frame,
    PartIndex,
    StoredBytes,
    StoredTensor,
    chunk_digests,
    digest,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.layout import BytesSource, TensorSource
    from stepseal.transfer._pieces import FileWriter

__all__ = ["MAX_MESSAGE_BYTES", "PayloadWriter"]

MAX_MESSAGE_BYTES = 1 << 20
"""Most bytes of an item outside its data; a reader verifies them in one piece."""

_RECORD_ALIGNMENT = 64
_PAGE_BYTES = 4096
_PAGED_FROM_BYTES = 64 << 10
"""Data from this size on begins at a page; below, the padding would cost too much."""
_STRAIGHT_FROM_BYTES = CHUNK_BYTES
"""Data from this size on is written from its own buffer; below, a copy costs less than a write."""
_NO_FRAME = Frame(b"", b"")


class _Place(NamedTuple):
    """Where an item lies and what its bytes are; in the order of the index's values."""

    file: int
    item_offset: int
    item_size: int
    record_offset: int
    record_size: int
    data_offset: int
    data_size: int
    chunk_digests: bytes
    frame_digest: bytes


# Items are made by position, which costs half as much as by name; so the positions must agree.
assert StoredTensor.__match_args__[-9:] == StoredBytes.__match_args__[-9:] == _Place._fields


class PayloadWriter:
    """Appends items to one payload file.

    Args:
        writer: the new file.
    """

    __slots__ = ("_writer",)

    def __init__(self, writer: FileWriter) -> None:
        self._writer = writer

    def write(
        self, path: str, tensors: Sequence[TensorSource], copies: Sequence[BytesSource]
    ) -> PartIndex:
        """Write all items, tensors first; return their index.

        Args:
            path: of this file inside the step, for the index.
            tensors: written in this order.
            copies: written after the tensors, in this order.
        """
        stored = tuple(self._write_tensor(source) for source in tensors)
        stored_copies = tuple(
            StoredBytes(source.entries, *self._put(_NO_FRAME, memoryview(source.data)))
            for source in copies
        )
        self._writer.flush()
        return PartIndex((path,), stored, stored_copies)

    def _write_tensor(self, source: TensorSource) -> StoredTensor:
        place = self._put(source.frame, source.data)
        return StoredTensor(
            source.component, source.key, source.dtype, source.shape, source.box, *place
        )

    def _put(self, frame: Frame, data: memoryview) -> _Place:
        """Append one item; runs once per tensor, so it makes no call that it can do without."""
        writer = self._writer
        head_size, size = len(frame.head), data.nbytes
        item_offset = writer.offset
        if size >= _PAGED_FROM_BYTES:
            padding = -(item_offset + head_size) % _PAGE_BYTES
        else:
            padding = -item_offset % _RECORD_ALIGNMENT
        if not size + head_size + padding:
            padding = _RECORD_ALIGNMENT  # an empty copy; the format has no empty items
        frame_size = padding + head_size + len(frame.tail)
        if head_size % _RECORD_ALIGNMENT or frame_size > MAX_MESSAGE_BYTES:
            raise InvalidInput(
                f"frame is not usable: expected a head of a multiple of {_RECORD_ALIGNMENT} bytes "
                f"and at most {MAX_MESSAGE_BYTES} bytes in all, found {head_size} and {frame_size}"
            )
        prefix = bytes(padding) + frame.head
        writer.append(prefix)
        if size >= _STRAIGHT_FROM_BYTES:
            pieces: list[bytes] = []
            writer.write_straight(data, lambda piece: pieces.append(chunk_digests(piece)))
            digests = b"".join(pieces)
        else:
            digests = chunk_digests(data)
            writer.append(data)
        writer.append(frame.tail)
        record_offset = item_offset + padding
        record_size = head_size + size + len(frame.tail)
        return _Place(
            0,
            item_offset,
            padding + record_size,
            record_offset,
            record_size,
            record_offset + head_size,
            size,
            digests,
            digest(prefix + frame.tail),
        )
