"""Plans the offset of every item of a new file, from its description alone; reads no bytes.

A payload file is a sequence of items without gaps. An item consists of padding, the record's head,
the data and the record's tail. Records begin at a multiple of 64. Large data begins at a multiple
of 4096, so that it can be read without copies.
"""

from __future__ import annotations

from itertools import accumulate, chain
from typing import TYPE_CHECKING, NamedTuple

from stepseal.errors import InvalidInput
from stepseal.layout import Frame
from stepseal.transfer._trees import segment_header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.layout import ArraySource, BytesSource, TensorSource

__all__ = ["MAX_FRAME_BYTES", "NO_FRAME", "Place", "SegmentPlan", "plan_payload", "plan_segment"]

MAX_FRAME_BYTES = 1 << 20
"""Most bytes of an item outside its data; a reader verifies them in one piece."""
NO_FRAME = Frame(b"", b"")
"""Frame of copies; their data is a whole record."""

_RECORD_ALIGNMENT = 64
_PAGE_BYTES = 4096
_PAGED_FROM_BYTES = 64 << 10
"""Data of at least this size begins at a page; for smaller data, padding would cost too much."""


class Place(NamedTuple):
    """Position of an item in its file, in bytes; fields in the order of the index."""

    file: int
    item_offset: int
    item_size: int
    record_offset: int
    record_size: int
    data_offset: int
    data_size: int


class SegmentPlan(NamedTuple):
    """A segment of a tree: its header, and the offset of each array in the file."""

    header: bytes
    offsets: tuple[int, ...]
    size_bytes: int


def plan_payload(tensors: Sequence[TensorSource], copies: Sequence[BytesSource]) -> list[Place]:
    """Return the place of each item: tensors first, then copies, in their order.

    Raises:
        InvalidInput: a frame could not be read back.
    """
    places: list[Place] = []
    offset = 0
    sizes = chain(
        ((source.frame, source.data.size_bytes) for source in tensors),
        ((NO_FRAME, len(source.data)) for source in copies),
    )
    for frame, size in sizes:
        head_size = len(frame.head)
        if size >= _PAGED_FROM_BYTES:
            padding = -(offset + head_size) % _PAGE_BYTES
        else:
            padding = -offset % _RECORD_ALIGNMENT
        if not size + head_size + padding:
            padding = _RECORD_ALIGNMENT  # an empty copy; the format has no empty items
        frame_size = padding + head_size + len(frame.tail)
        if head_size % _RECORD_ALIGNMENT or frame_size > MAX_FRAME_BYTES:
            raise InvalidInput(
                f"frame is not usable: expected a head of a multiple of {_RECORD_ALIGNMENT} bytes "
                f"and at most {MAX_FRAME_BYTES} bytes in all, found {head_size} and {frame_size}"
            )
        record = offset + padding
        item_size = frame_size + size
        places.append(
            Place(0, offset, item_size, record, item_size - padding, record + head_size, size)
        )
        offset += item_size
    return places


def plan_segment(arrays: Sequence[ArraySource]) -> SegmentPlan:
    """Return the offsets of the arrays of one segment, after its header and without gaps.

    Raises:
        InvalidInput: data and shape of an array differ in size, or two arrays have the same name.
    """
    header = segment_header(arrays)
    *offsets, end = accumulate((a.data.size_bytes for a in arrays), initial=len(header))
    return SegmentPlan(header, tuple(offsets), end)
