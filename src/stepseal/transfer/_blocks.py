"""Writes new files in blocks, and syncs them.

Knows nothing about tensors or documents. All files are in one staging folder; each is written from
start to end, synced and closed before the next one begins.
"""

from __future__ import annotations

import errno
import mmap
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from stepseal.errors import StorageUnavailable
from stepseal.layout import CHUNK_BYTES, BufferData, chunk_digests
from stepseal.storage import make_dirs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stepseal.layout import Buffer, DataSource
    from stepseal.storage import Storage, WriteHandle

__all__ = [
    "BLOCK_BYTES",
    "DigestedWriter",
    "FileWriter",
    "StagedFiles",
    "allocate",
    "in_memory",
]

BLOCK_BYTES = 8 << 20
"""Most bytes that one read or write moves, a multiple of the digest chunk."""

assert BLOCK_BYTES % CHUNK_BYTES == 0


def allocate(size_bytes: int) -> memoryview:
    """Return private, writable, page-aligned memory; freed when the last view of it is gone.

    Raises:
        StorageUnavailable: there is not enough memory.
    """
    try:
        return memoryview(mmap.mmap(-1, max(size_bytes, 1)))[:size_bytes]
    except (OSError, OverflowError, ValueError) as error:
        raise StorageUnavailable(
            f"cannot allocate {size_bytes} bytes: expected that much free memory, found less "
            f"({error}). Run on a host with more memory.",
            errno=errno.ENOMEM,
        ) from error


def in_memory(data: DataSource) -> memoryview:
    """Return all bytes of a small data source, as a view or a copy."""
    view = data.view()
    if view is None:
        view = memoryview(bytearray(data.size_bytes))
        data.fill(view)
    return view


class _TakesBuffer(Protocol):
    """A callback that receives each block just before it is written."""

    def __call__(self, block: memoryview, /) -> None: ...


class _Writes(Protocol):
    """A new file, as far as who fills it needs it."""

    def write(self, data: memoryview, offset: int, /) -> None: ...


class FileWriter:
    """Writes one new file from start to end.

    Small data is collected in a buffer; large data is written directly from the caller's memory.

    Args:
        handle: the new file.
        scratch: private memory of `BLOCK_BYTES`, to collect small data.
        check_cancelled: called before each block.
        on_block: receives each block just before it is written.
    """

    __slots__ = ("_check", "_handle", "_on_block", "_scratch", "_start", "_used")

    def __init__(
        self,
        handle: _Writes,
        scratch: memoryview,
        check_cancelled: Callable[[], None],
        on_block: _TakesBuffer | None = None,
    ) -> None:
        self._handle = handle
        self._scratch = scratch
        self._check = check_cancelled
        self._on_block = on_block
        self._start = 0
        self._used = 0

    @property
    def offset(self) -> int:
        """Position of the next byte, from the start of the file."""
        return self._start + self._used

    def append(self, data: Buffer) -> None:
        """Add bytes to the buffer; writes only when the buffer is full."""
        view = memoryview(data)
        end = self._used + view.nbytes
        if end <= BLOCK_BYTES:
            self._scratch[self._used : end] = view
            self._used = end
            return
        while view.nbytes:
            if self._used == BLOCK_BYTES:
                self.flush()
            count = min(view.nbytes, BLOCK_BYTES - self._used)
            self._scratch[self._used : self._used + count] = view[:count]
            self._used += count
            view = view[count:]

    def write_straight(self, data: DataSource, on_block: _TakesBuffer | None = None) -> None:
        """Flush the buffer, then write data in blocks, without a copy if it has a view.

        Args:
            data: any number of bytes.
            on_block: receives each block just before it is written; each block begins at a multiple
                of `BLOCK_BYTES` in `data`.
        """
        self.flush()
        view = data.view()
        for start in range(0, data.size_bytes, BLOCK_BYTES):
            if view is not None:
                block = view[start : start + BLOCK_BYTES]
            else:
                block = self._scratch[: data.size_bytes - start]  # the buffer was flushed
                data.fill(block, start)
            if on_block is not None:
                on_block(block)
            self._write(block)

    def flush(self) -> None:
        """Write the buffered bytes."""
        if self._used:
            used, self._used = self._used, 0
            self._write(self._scratch[:used])

    def _write(self, block: memoryview) -> None:
        self._check()
        if self._on_block is not None:
            self._on_block(block)
        self._handle.write(block, self._start)
        self._start += block.nbytes


class DigestedWriter:
    """Writes one new file from start to end, and digests it in chunks from the file's start.

    Args:
        handle: the new file.
        scratch: private memory of `BLOCK_BYTES`.
        check_cancelled: called before each block.
    """

    __slots__ = ("_digests", "_writer")

    def __init__(
        self, handle: _Writes, scratch: memoryview, check_cancelled: Callable[[], None]
    ) -> None:
        self._digests: list[bytes] = []
        self._writer = FileWriter(handle, scratch, check_cancelled, self._digest)

    def append_data(self, data: DataSource) -> None:
        """Add data, chunk by chunk if it has no view."""
        view = data.view()
        if view is not None:
            self.append(view)
            return
        for start in range(0, data.size_bytes, CHUNK_BYTES):
            part = memoryview(bytearray(min(CHUNK_BYTES, data.size_bytes - start)))
            data.fill(part, start)
            self.append(part)

    def append(self, data: Buffer) -> None:
        """Add bytes; large data is copied only up to the next chunk boundary."""
        view = memoryview(data)
        gap = -self._writer.offset % CHUNK_BYTES
        straight = (view.nbytes - gap) // CHUNK_BYTES * CHUNK_BYTES
        if straight < 2 * CHUNK_BYTES:
            self._writer.append(view)
            return
        self._writer.append(view[:gap])
        self._writer.write_straight(BufferData(view[gap : gap + straight]))
        self._writer.append(view[gap + straight :])

    def finish(self) -> tuple[int, bytes]:
        """Write the remaining bytes; return the file's size and the digests of its chunks."""
        self._writer.flush()
        return self._writer.offset, b"".join(self._digests)

    def _digest(self, block: memoryview) -> None:
        # Every block except the last of a file consists of whole chunks.
        self._digests.append(chunk_digests(block))


class _Counted:
    """A new file that tells how many bytes were written."""

    __slots__ = ("_handle", "_on_bytes")

    def __init__(self, handle: WriteHandle, on_bytes: Callable[[int], None]) -> None:
        self._handle = handle
        self._on_bytes = on_bytes

    def write(self, data: memoryview, offset: int, /) -> None:
        self._handle.write(data, offset)
        self._on_bytes(data.nbytes)


class StagedFiles:
    """The new files of one participant inside a staging folder, and the directories that name them.

    Args:
        storage: the storage of the root.
        staging_key: the staging folder, which exists.
        on_bytes: called with the number of bytes after each write.
    """

    __slots__ = ("_directories", "_on_bytes", "_staging_key", "_storage")

    def __init__(self, storage: Storage, staging_key: str, on_bytes: Callable[[int], None]) -> None:
        self._storage = storage
        self._staging_key = staging_key
        self._on_bytes = on_bytes
        self._directories = {""}

    @contextmanager
    def create(self, path: str) -> Iterator[_Writes]:
        """Create a new file; leaving the `with` block syncs and closes it.

        After an error, the file is only closed; a sweep removes it with the staging folder.

        Args:
            path: relative to the staging folder.

        Durability: the bytes survive power loss; the name survives after `sync_directories`.
        """
        self._make_directory(path.rpartition("/")[0])
        with self._storage.create_file(self._key(path)) as handle:
            yield _Counted(handle, self._on_bytes)
            handle.sync()

    def sync_directories(self) -> None:
        """Make every name durable, from the deepest directory up to the staging folder.

        Durability: on return all created files survive power loss with their names.
        """
        for directory in sorted(
            self._directories, key=lambda path: (-path.count("/"), path == "", path)
        ):
            self._storage.sync_dir(self._key(directory))

    def _make_directory(self, directory: str) -> None:
        if directory in self._directories:
            return
        make_dirs(self._storage, self._key(directory), base=self._staging_key)
        while directory:
            self._directories.add(directory)
            directory = directory.rpartition("/")[0]

    def _key(self, path: str) -> str:
        return f"{self._staging_key}/{path}" if path else self._staging_key
