"""Checks all bytes of one file against their digests, from start to end; reads each byte once.

Yields one message per damaged item or chunk; ends early if the file cannot be read further.
"""

from __future__ import annotations

import errno
from itertools import chain
from typing import TYPE_CHECKING

from stepseal.errors import CheckpointError, StorageUnavailable
from stepseal.layout import CHUNK_BYTES, DIGEST_BYTES, StoredItem, StoredTensor, digest
from stepseal.transfer._blocks import BLOCK_BYTES, allocate
from stepseal.transfer._file_plan import MAX_FRAME_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stepseal.layout import FileEntry, PartIndex
    from stepseal.storage import ReadHandle
    from stepseal.transfer._files import CommittedFiles

__all__ = ["check_digested", "check_payload", "explain"]

_MAX_MESSAGES = 100


def explain(error: CheckpointError) -> str:
    """Return an error's message, with the name of its errno if it has one."""
    message = str(error)
    if isinstance(error, StorageUnavailable) and error.errno is not None:
        name = errno.errorcode.get(error.errno, str(error.errno))
        return message if name in message else f"{message} ({name})"
    return message


def check_digested(
    files: CommittedFiles, entry: FileEntry, progress: Callable[[int], None]
) -> Iterator[str]:
    """Yield the problems of a file whose entry lists the digests of its chunks."""
    scratch = allocate(min(BLOCK_BYTES, entry.size_bytes))
    num_messages = 0
    try:
        with files.open(entry.path, entry.size_bytes) as handle:
            for start in range(0, entry.size_bytes, BLOCK_BYTES):
                block = scratch[: min(BLOCK_BYTES, entry.size_bytes - start)]
                handle.read_into(block, start)
                progress(block.nbytes)
                if (problem := files.digest_problem(entry, block, start)) is not None:
                    yield problem
                    num_messages += 1
                    if num_messages == _MAX_MESSAGES:
                        return
    except CheckpointError as error:
        yield explain(error)


def check_payload(
    files: CommittedFiles,
    index: PartIndex,
    number: int,
    size_bytes: int,
    progress: Callable[[int], None],
) -> Iterator[str]:
    """Yield the problems of a payload file; its index must tile it.

    Args:
        files: the step's files.
        index: index of the part.
        number: position of the file in the index's `payloads`.
        size_bytes: the file's size.
        progress: called with the number of bytes read.
    """
    everything = chain[StoredItem](index.tensors, index.bytes_items)
    items = [item for item in everything if item.file == number]
    items.sort(key=lambda item: item.item_offset)
    num_messages = 0
    try:
        with files.open(index.payloads[number], size_bytes) as handle:
            window = _Window(handle, progress)
            for item in items:
                if (problem := _item_problem(window, item)) is not None:
                    yield f"{_name(item)}: {problem}"
                    num_messages += 1
                    if num_messages == _MAX_MESSAGES:
                        return
    except CheckpointError as error:
        yield explain(error)


def _item_problem(window: _Window, item: StoredItem) -> str | None:
    """Read a whole item and return its first problem, or None."""
    data_end = item.data_offset + item.data_size
    item_end = item.item_offset + item.item_size
    if item.item_size - item.data_size > MAX_FRAME_BYTES:
        return (
            f"expected a frame of at most {MAX_FRAME_BYTES} bytes, found "
            f"{item.item_size - item.data_size}"
        )
    frame = bytes(window.view(item.item_offset, item.data_offset))
    problem: str | None = None
    for number, start in enumerate(range(item.data_offset, data_end, CHUNK_BYTES)):
        expected = item.chunk_digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
        found = digest(window.view(start, min(start + CHUNK_BYTES, data_end)))
        if found != expected and problem is None:
            problem = (
                f"expected digest {expected.hex()} of the chunk at byte {start}, "
                f"found {found.hex()}"
            )
    frame += window.view(data_end, item_end)
    if problem is None and (found := digest(frame)) != item.frame_digest:
        problem = (
            f"expected digest {item.frame_digest.hex()} of the frame of the item at byte "
            f"{item.item_offset}, found {found.hex()}"
        )
    return problem


def _name(item: StoredItem) -> str:
    if isinstance(item, StoredTensor):
        return f"{item.component}.{item.key}"
    component, key = item.entries[0]
    return f"copy of {component}.{key}"


class _Window:
    """The part of a file that is in memory; it only moves forward, so each byte is read once.

    Args:
        handle: the file.
        progress: called with the number of bytes read.
    """

    __slots__ = ("_buffer", "_handle", "_progress", "_size", "_start", "_stop")

    def __init__(self, handle: ReadHandle, progress: Callable[[int], None]) -> None:
        self._handle = handle
        self._progress = progress
        self._size = handle.size_bytes
        self._buffer = allocate(min(BLOCK_BYTES, self._size))
        self._start = self._stop = 0

    def view(self, start: int, stop: int) -> memoryview:
        """Return the bytes of a range, valid until the next call.

        Args:
            start: first byte; not before the start of an earlier call.
            stop: end of the range; inside the file, at most `BLOCK_BYTES` after `start`.
        """
        if stop > self._stop:
            self._move(start)
        return self._buffer[start - self._start : stop - self._start]

    def _move(self, start: int) -> None:
        start = min(start, self._stop)
        kept = self._stop - start
        self._buffer[:kept] = self._buffer[start - self._start : start - self._start + kept]
        count = min(self._buffer.nbytes - kept, self._size - self._stop)
        self._handle.read_into(self._buffer[kept : kept + count], self._stop)
        self._progress(count)
        self._start, self._stop = start, self._stop + count
