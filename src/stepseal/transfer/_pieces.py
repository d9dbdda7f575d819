"""Bounded buffers between memory and files: how many bytes move at once, and what is synced when.

Knows nothing about tensors or documents. Files are new ones inside one staging folder; each is
written from its start to its end, synced and closed before the next one begins.
"""

from __future__ import annotations

import errno
import mmap
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from stepseal.errors import StorageUnavailable
from stepseal.layout import CHUNK_BYTES, chunk_digests
from stepseal.storage import make_dirs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stepseal.layout import Buffer
    from stepseal.storage import Storage, WriteHandle

__all__ = ["PIECE_BYTES", "DigestedWriter", "FileWriter", "StagedFiles", "allocate"]

PIECE_BYTES = 8 << 20
"""Most bytes that one read or write moves, a multiple of the digest chunk."""

assert PIECE_BYTES % CHUNK_BYTES == 0


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


class _TakesBuffer(Protocol):
    """What is told of each piece just before it is written."""

    def __call__(self, piece: memoryview, /) -> None: ...


class FileWriter:
    """Writes one new file front to back.

    Small data is gathered in a buffer, large data goes straight from the caller's.

    Args:
        handle: the new file.
        scratch: private memory of `PIECE_BYTES` to gather small data in.
        check_cancelled: called before each piece.
        on_piece: told of each piece just before it is written.
    """

    __slots__ = ("_check", "_handle", "_on_piece", "_scratch", "_start", "_used")

    def __init__(
        self,
        handle: WriteHandle,
        scratch: memoryview,
        check_cancelled: Callable[[], None],
        on_piece: _TakesBuffer | None = None,
    ) -> None:
        self._handle = handle
        self._scratch = scratch
        self._check = check_cancelled
        self._on_piece = on_piece
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
        if end <= PIECE_BYTES:
            self._scratch[self._used : end] = view
            self._used = end
            return
        while view.nbytes:
            if self._used == PIECE_BYTES:
                self.flush()
            count = min(view.nbytes, PIECE_BYTES - self._used)
            self._scratch[self._used : self._used + count] = view[:count]
            self._used += count
            view = view[count:]

    def write_straight(self, data: memoryview, on_piece: _TakesBuffer | None = None) -> None:
        """Write bytes from the caller's buffer in pieces, after all that was gathered.

        Args:
            data: any number of bytes.
            on_piece: told of each piece just before it is written; its start lies at a multiple of
                `PIECE_BYTES` in `data`.
        """
        self.flush()
        for start in range(0, data.nbytes, PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            if on_piece is not None:
                on_piece(piece)
            self._write(piece)

    def flush(self) -> None:
        """Write what was gathered."""
        if self._used:
            used, self._used = self._used, 0
            self._write(self._scratch[:used])

    def _write(self, piece: memoryview) -> None:
        self._check()
        if self._on_piece is not None:
            self._on_piece(piece)
        self._handle.write(piece, self._start)
        self._start += piece.nbytes


class DigestedWriter:
    """Writes one new file front to back and digests it in chunks from the file's start.

    Args:
        handle: the new file.
        scratch: private memory of `PIECE_BYTES`.
        check_cancelled: called before each piece.
    """

    __slots__ = ("_digests", "_writer")

    def __init__(
        self, handle: WriteHandle, scratch: memoryview, check_cancelled: Callable[[], None]
    ) -> None:
        self._digests: list[bytes] = []
        self._writer = FileWriter(handle, scratch, check_cancelled, self._digest)

    def append(self, data: Buffer) -> None:
        """Add bytes; of large data only what does not begin at a chunk is copied."""
        view = memoryview(data)
        gap = -self._writer.offset % CHUNK_BYTES
        straight = (view.nbytes - gap) // CHUNK_BYTES * CHUNK_BYTES
        if straight < 2 * CHUNK_BYTES:
            self._writer.append(view)
            return
        self._writer.append(view[:gap])
        self._writer.write_straight(view[gap : gap + straight])
        self._writer.append(view[gap + straight :])

    def finish(self) -> tuple[int, bytes]:
        """Write what is left; return the file's size and the digests of its chunks."""
        self._writer.flush()
        return self._writer.offset, b"".join(self._digests)

    def _digest(self, piece: memoryview) -> None:
        # Every piece but the last of a file is made of whole chunks.
        self._digests.append(chunk_digests(piece))


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
