"""Writes a participant's tensors into one payload file as planned, and digests each tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.layout import (
    CHUNK_BYTES,
    BufferData,
    PartIndex,
    StoredBytes,
    StoredTensor,
    chunk_digests,
    digest,
)
from stepseal.transfer._blocks import in_memory
from stepseal.transfer._file_plan import NO_FRAME, Place, plan_payload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.layout import BytesSource, DataSource, Frame, TensorSource
    from stepseal.transfer._blocks import FileWriter

__all__ = ["PayloadWriter"]

_STRAIGHT_FROM_BYTES = CHUNK_BYTES
"""Data of at least this size is written without a copy; below, a copy is cheaper than a write."""
# Items are made by position, which costs half as much as by name; so the positions must agree.
_DIGESTS = ("chunk_digests", "frame_digest")
assert StoredTensor.__match_args__[-9:] == (*Place._fields, *_DIGESTS)
assert StoredBytes.__match_args__[-9:] == (*Place._fields, *_DIGESTS)


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
            path: path of this file inside the step, for the index.
            tensors: written in this order.
            copies: written after the tensors, in this order.

        Raises:
            InvalidInput: a frame could not be read back; nothing was written.
        """
        places = iter(plan_payload(tensors, copies))
        stored = tuple(
            StoredTensor(
                one.component,
                one.key,
                one.dtype,
                one.shape,
                one.box,
                *(place := next(places)),
                *self._put(place, one.frame, one.data),
            )
            for one in tensors
        )
        stored_copies = tuple(
            StoredBytes(
                one.entries,
                *(place := next(places)),
                *self._put(place, NO_FRAME, BufferData(one.data)),
            )
            for one in copies
        )
        self._writer.flush()
        return PartIndex((path,), stored, stored_copies)

    def _put(self, place: Place, frame: Frame, data: DataSource) -> tuple[bytes, bytes]:
        """Append one item at its place; return the digests of its data and of its frame.

        Runs once per tensor, so it avoids every unnecessary call.
        """
        writer = self._writer
        prefix = bytes(place.record_offset - place.item_offset) + frame.head
        writer.append(prefix)
        if place.data_size >= _STRAIGHT_FROM_BYTES:
            blocks: list[bytes] = []
            writer.write_straight(data, lambda block: blocks.append(chunk_digests(block)))
            digests = b"".join(blocks)
        else:
            view = in_memory(data)
            digests = chunk_digests(view)
            writer.append(view)
        writer.append(frame.tail)
        return digests, digest(prefix + frame.tail)
