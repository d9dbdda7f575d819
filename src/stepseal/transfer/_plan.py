"""Plans which bytes to read for a set of sinks, and in which order; reads nothing.

Reads only chunks with a wanted element; a chunk is the smallest unit that can be verified.
Neighbouring chunks of a file are read together, even if they belong to different tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.errors import StateMismatch
from stepseal.layout import (
    CHUNK_BYTES,
    ITEMSIZE,
    Box,
    coverage_problems,
    hull,
    intersect,
    linear_boxes,
    num_chunks,
)
from stepseal.transfer._blocks import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from stepseal.layout import TensorSink
    from stepseal.transfer._files import CommittedFiles
    from stepseal.transfer._values import ReadRequest, StoredBox

__all__ = ["Batch", "Piece", "plan_reads"]

_MAX_GAP_BYTES = 64 << 10
"""Largest gap of unneeded bytes that is cheaper to read than a second call."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole chunks of one stored box for one sink; at most `BLOCK_BYTES`."""

    stored: StoredBox
    sink: TensorSink
    start: int
    """First byte inside the box's data, a multiple of the chunk."""
    stop: int
    offset: int
    """First byte inside the file."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Pieces of one file that one read fetches; at most `BLOCK_BYTES`."""

    path: str
    participant: str
    start: int
    stop: int
    pieces: tuple[Piece, ...]


def plan_reads(files: CommittedFiles, requests: Sequence[ReadRequest]) -> list[Batch]:
    """Return the reads that fill all sinks, sorted by file and offset.

    Raises:
        StateMismatch: a sink wants elements outside the saved tensor.
        Corrupt: an element is in no stored box or in several, or equal boxes differ in digests.
    """
    by_sink: dict[int, list[ReadRequest]] = {}
    for request in requests:
        by_sink.setdefault(id(request.sink), []).append(request)
    pieces: list[Piece] = []
    for group in by_sink.values():
        sink = group[0].sink
        wanted = sink.wanted
        if not wanted.num_elements:
            continue
        _check_inside(wanted, group[0].stored)
        boxes = _distinct(files, group)
        _check_cover(files, wanted, boxes)
        for stored in boxes:
            pieces.extend(_pieces(stored, sink))
    pieces.sort(key=lambda piece: (piece.stored.path, piece.offset))
    return list(_batches(pieces))


def _check_inside(wanted: Box, stored: StoredBox) -> None:
    tensor = stored.tensor
    fits = len(wanted.sizes) == len(wanted.offsets) == len(tensor.shape) and all(
        offset >= 0 and offset + size <= extent
        for offset, size, extent in zip(wanted.offsets, wanted.sizes, tensor.shape, strict=True)
    )
    if not fits:
        problem = (
            f"{tensor.component}.{tensor.key}: expected a box inside the saved shape "
            f"{list(tensor.shape)}, "
            f"found offsets {list(wanted.offsets)} sizes {list(wanted.sizes)}"
        )
        raise StateMismatch(
            f"tensor cannot be restored: {problem}. Compare the shapes of live and saved state.",
            component=tensor.component,
            problems=(problem,),
        )


def _distinct(files: CommittedFiles, group: list[ReadRequest]) -> list[StoredBox]:
    """Return the boxes that overlap the sink; of equal boxes, only one."""
    wanted = group[0].sink.wanted
    found: dict[Box, StoredBox] = {}
    for request in group:
        stored = request.stored
        if stored.tensor.box != wanted and not intersect(stored.tensor.box, wanted):
            continue
        known = found.setdefault(stored.tensor.box, stored)
        if known.tensor.chunk_digests != stored.tensor.chunk_digests:
            problem = (
                f"{stored.tensor.component}.{stored.tensor.key}: expected the same bytes as "
                f"{known.participant} wrote for this box, found other digests"
            )
            raise files.damaged(
                stored.path,
                problem,
                component=stored.tensor.component,
                participant=stored.participant,
            )
    return list(found.values())


def _check_cover(files: CommittedFiles, wanted: Box, boxes: list[StoredBox]) -> None:
    if len(boxes) == 1 and boxes[0].tensor.box == wanted:
        return  # nearly every tensor of a restore under the same topology
    shared = [intersect(stored.tensor.box, wanted) for stored in boxes]
    local = [
        Box(tuple(map(int.__sub__, box.offsets, wanted.offsets)), box.sizes)
        for box in shared
        if box is not None
    ]
    problems = coverage_problems(wanted.sizes, local)
    if problems:
        tensor = boxes[0].tensor if boxes else None
        name = f"{tensor.component}.{tensor.key}" if tensor else "tensor"
        where = (
            f"{name}: box with offsets {list(wanted.offsets)} sizes {list(wanted.sizes)} is not "
            f"stored exactly once: {problems[0]}"
        )
        raise files.damaged(
            boxes[0].path if boxes else "parts",
            where,
            component=tensor.component if tensor else None,
        )


def _pieces(stored: StoredBox, sink: TensorSink) -> Iterator[Piece]:
    tensor = stored.tensor
    for first, end in _chunk_runs(tensor.box, sink.wanted, ITEMSIZE[tensor.dtype]):
        stop = min(end * CHUNK_BYTES, tensor.data_size)
        for start in range(first * CHUNK_BYTES, stop, BLOCK_BYTES):
            yield Piece(
                stored, sink, start, min(start + BLOCK_BYTES, stop), tensor.data_offset + start
            )


def _chunk_runs(box: Box, wanted: Box, itemsize: int) -> Iterable[tuple[int, int]]:
    """Return half-open ranges of the box's chunks that hold every wanted element."""
    if box == wanted:
        return [(0, num_chunks(box.num_elements * itemsize))]
    shared_range = hull(box, wanted)
    if shared_range is None:
        return []
    per_chunk = CHUNK_BYTES // itemsize
    start, stop = shared_range
    first, end = start // per_chunk, -(-stop // per_chunk)
    shared = intersect(box, wanted)
    assert shared is not None
    if end - first <= 2 or shared.num_elements == stop - start:
        return [(first, end)]  # the first and last chunk are needed, and so are all of a full box
    runs: list[tuple[int, int]] = []
    local = Box(tuple(map(int.__sub__, shared.offsets, box.offsets)), shared.sizes)
    total = box.num_elements
    for chunk in range(first, end):
        begin = chunk * per_chunk
        rectangles = linear_boxes(box.sizes, begin, min(begin + per_chunk, total))
        if not any(intersect(rectangle, local) for rectangle in rectangles):
            continue
        if runs and runs[-1][1] == chunk:
            runs[-1] = (runs[-1][0], chunk + 1)
        else:
            runs.append((chunk, chunk + 1))
    return runs


def _batches(pieces: Sequence[Piece]) -> Iterator[Batch]:
    """Group sorted pieces so that each group is one read."""
    group: list[Piece] = []
    start = stop = 0
    for piece in pieces:
        end = piece.offset + piece.stop - piece.start
        joins = (
            bool(group)
            and piece.stored.path == group[0].stored.path
            and piece.offset - stop <= _MAX_GAP_BYTES
            and max(stop, end) - start <= BLOCK_BYTES
        )
        if not joins:
            if group:
                yield _batch(group, start, stop)
            group, start, stop = [], piece.offset, piece.offset
        group.append(piece)
        stop = max(stop, end)
    if group:
        yield _batch(group, start, stop)


def _batch(group: list[Piece], start: int, stop: int) -> Batch:
    first = group[0].stored
    return Batch(first.path, first.participant, start, stop, tuple(group))
