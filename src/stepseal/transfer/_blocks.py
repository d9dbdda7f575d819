"""Blocks between memory and files: how many bytes move at once, and what is synced when.

Knows nothing about tensors or documents. Files are new ones inside one staging folder; each is
written from its start to its end, synced and closed before the next one begins.
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
        StorageUnavailable: there is not so much.
    """
    try:
        return memoryview(mmap.mmap(-1, max(size_bytes, 1)))[:size_bytes]
    except (OSError, OverflowError, ValueError) as error:
        raise StorageUnavailable(
            f"cannot hold {size_bytes} bytes: expected that much memory, found too little "
            f"({error}). Run where there is more.",
            errno=errno.ENOMEM,
        ) from error


def in_memory(data: DataSource) -> memoryview:
    """Return all bytes of small data, in place or copied."""
    view = data.view()
    if view is None:
        view = memoryview(bytearray(data.size_bytes))
        data.fill(view)
    return view


class _TakesBuffer(Protocol):
    """What is told of each block just before it is written."""

    def __call__(self, block: memoryview, /) -> None: ...


class FileWriter:
    """Writes one new file front to back.

    Small data is gathered in a buffer, large data goes straight from the caller's.

    Args:
        handle: the new file.
        scratch: private memory of `BLOCK_BYTES` to gather small data in.
        check_cancelled: called before each block.
        on_block: told of each block just before it is written.
    """

    __slots__ = ("_check", "_handle", "_on_block", "_scratch", "_start", "_used")

    def __init__(
        self,
        handle: WriteHandle,
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
        """Where the next byte goes, from the start of the file."""
        return self._start + self._used

    def append(self, data: Buffer) -> None:
        """Gather bytes; writes only when the buffer is full."""
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
        """Write data in blocks, in place where it can be viewed, after all that was gathered.

        Args:
            data: any number of bytes.
            on_block: told of each block just before it is written; its start lies at a multiple of
                `BLOCK_BYTES` in `data`.
        """
        self.flush()
        view = data.view()
        for start in range(0, data.size_bytes, BLOCK_BYTES):
            if view is not None:
                block = view[start : start + BLOCK_BYTES]
            else:
                block = self._scratch[: data.size_bytes - start]  # all that was gathered is written
                data.fill(block, start)
            if on_block is not None:
                on_block(block)
            self._write(block)

    def flush(self) -> None:
        """Write what was gathered."""
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
    """Writes one new file front to back and digests it in chunks from the file's start.

    Args:
        handle: the new file.
        scratch: private memory of `BLOCK_BYTES`.
        check_cancelled: called before each block.
    """

    __slots__ = ("_digests", "_writer")

    def __init__(
        self, handle: WriteHandle, scratch: memoryview, check_cancelled: Callable[[], None]
    ) -> None:
        self._digests: list[bytes] = []
        self._writer = FileWriter(handle, scratch, check_cancelled, self._digest)

    def append_data(self, data: DataSource) -> None:
        """Add data, chunk by chunk where it cannot be viewed."""
        view = data.view()
        if view is not None:
            self.append(view)
            return
        for start in range(0, data.size_bytes, CHUNK_BYTES):
            part = memoryview(bytearray(min(CHUNK_BYTES, data.size_bytes - start)))
            data.fill(part, start)
            self.append(part)

    def append(self, data: Buffer) -> None:
        """Add bytes; of large data only what does not begin at a chunk is copied."""
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
        """Write what is left; return the file's size and the digests of its chunks."""
        self._writer.flush()
        return self._writer.offset, b"".join(self._digests)

    def _digest(self, block: memoryview) -> None:
        # Every block but the last of a file is made of whole chunks.
        self._digests.append(chunk_digests(block))


class StagedFiles:
    """The new files of one participant inside a staging folder, and the directories that name them.

    Args:
        storage: where.
        staging_key: the staging folder, which exists.
    """

    __slots__ = ("_directories", "_staging_key", "_storage")

    def __init__(self, storage: Storage, staging_key: str) -> None:
        self._storage = storage
        self._staging_key = staging_key
        self._directories = {""}

    @contextmanager
    def create(self, path: str) -> Iterator[WriteHandle]:
        """Create a file exclusively; leaving the block syncs and closes it.

        After an error it is only closed, and stays for the sweep of the staging folder.

        Args:
            path: relative to the staging folder.

        Durability: the bytes survive power loss; the name does so after `sync_directories`.
        """
        self._make_directory(path.rpartition("/")[0])
        with self._storage.create_file(self._key(path)) as handle:
            yield handle
            handle.sync()

    def sync_directories(self) -> None:
        """Make every name durable, from the deepest directory up to the staging folder itself.

        Durability: on return all files that were created survive power loss under their names.
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
