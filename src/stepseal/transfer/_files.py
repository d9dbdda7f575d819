"""Opens and reads files of a committed step; returns no byte before its digest matched.

A file that the step names and that is missing, or has another size or kind, is damage (`Corrupt`).
Only an error of the storage itself is `StorageUnavailable`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.errors import Corrupt
from stepseal.layout import CHUNK_BYTES, DIGEST_BYTES, chunk_digests, num_chunks, sha256_hex
from stepseal.storage import KeyNotFound
from stepseal.transfer._blocks import BLOCK_BYTES, allocate

if TYPE_CHECKING:
    from typing_extensions import Self

    from stepseal.layout import DocumentRef, FileEntry
    from stepseal.storage import ReadHandle, Storage

__all__ = ["CommittedFiles", "first_difference"]


def first_difference(found: bytes, expected: bytes) -> int:
    """Return the position of the first digest that differs, in chunks."""
    for start in range(0, max(len(found), len(expected)), DIGEST_BYTES):
        if found[start : start + DIGEST_BYTES] != expected[start : start + DIGEST_BYTES]:
            return start // DIGEST_BYTES
    return max(len(found), len(expected)) // DIGEST_BYTES


class CommittedFiles:
    """The files of one step.

    Args:
        storage: the storage of the root.
        step_key: the step's folder.
        step: number of the step, for errors.
    """

    __slots__ = ("_held", "_step", "_step_key", "_storage", "tree_bytes")

    def __init__(self, storage: Storage, step_key: str, step: int) -> None:
        self.tree_bytes = 0
        """Bytes of trees that were read so far."""
        self._held: dict[str, ReadHandle] = {}
        self._storage = storage
        self._step_key = step_key
        self._step = step

    def key(self, path: str) -> str:
        """Return the storage key of a path inside the step."""
        return f"{self._step_key}/{path}" if self._step_key else path

    def damaged(self, path: str, problem: str, **context: object) -> Corrupt:
        """Return the error for a file that must not be used.

        Args:
            path: relative to the step folder.
            problem: what was expected and what was found.
            context: further attributes of the error.
        """
        key = self.key(path)
        return Corrupt(
            f"step {self._step} is damaged: {key}: {problem}. Verify the step, or restore another "
            "one.",
            step=self._step,
            path=key,
            problems=(f"{path}: {problem}",),
            **context,
        )

    def hold(self, path: str, size_bytes: int, *, participant: str | None = None) -> None:
        """Open a file that must exist with this size, and keep it open until `release`.

        Raises:
            Corrupt: the file is missing, not a regular file, or has another size.
        """
        if path not in self._held:
            self._held[path] = self.open(path, size_bytes, participant=participant)

    def release(self) -> None:
        """Close what is held."""
        while self._held:
            self._held.popitem()[1].close()

    def open(self, path: str, size_bytes: int, *, participant: str | None = None) -> ReadHandle:
        """Open a file that must be there with this size, or lend it where it is held.

        Raises:
            Corrupt: missing, not a regular file, or of another size.
        """
        if path in self._held:
            return _Lent(self._held[path])
        try:
            handle = self._storage.open_read(self.key(path))
        except KeyNotFound as error:
            problem = "expected a file, found nothing"
            raise self.damaged(path, problem, participant=participant) from error
        if handle.size_bytes != size_bytes:
            found = handle.size_bytes
            handle.close()
            raise self.damaged(
                path,
                f"expected {size_bytes} bytes, found {found}",
                participant=participant,
                expected=size_bytes,
                found=found,
            )
        return handle

    def read_document(self, ref: DocumentRef, max_bytes: int, *, participant: str) -> memoryview:
        """Return the bytes of a document, after checking their SHA-256.

        Raises:
            Corrupt: the file is missing, larger than `max_bytes`, or differs from its SHA-256.
        """
        if ref.size_bytes > max_bytes:
            raise self.damaged(
                ref.path, f"expected at most {max_bytes} bytes, found {ref.size_bytes} listed"
            )
        with self.open(ref.path, ref.size_bytes, participant=participant) as handle:
            is_small = ref.size_bytes <= CHUNK_BYTES  # a mapping would cost more than the bytes
            data = memoryview(bytearray(ref.size_bytes)) if is_small else allocate(ref.size_bytes)
            handle.read_into(data, 0)
        found = sha256_hex(data)
        if found != ref.sha256:
            raise self.damaged(
                ref.path,
                f"expected sha256 {ref.sha256}, found {found}",
                participant=participant,
                expected=ref.sha256,
                found=found,
            )
        return data

    def read_digested(
        self, entry: FileEntry, max_bytes: int | None, *, component: str, participant: str
    ) -> memoryview:
        """Read a whole file into new memory, and check every chunk's digest.

        Args:
            entry: the file.
            max_bytes: largest size to accept; None accepts any size.
            component: for errors.
            participant: for errors.

        Raises:
            Corrupt: the file is missing, too large, or differs from its digests.
        """
        if max_bytes is not None and entry.size_bytes > max_bytes:
            raise self.damaged(
                entry.path, f"expected at most {max_bytes} bytes, found {entry.size_bytes} listed"
            )
        with self.open(entry.path, entry.size_bytes, participant=participant) as handle:
            data = allocate(entry.size_bytes)
            for start in range(0, entry.size_bytes, BLOCK_BYTES):
                block = data[start : start + BLOCK_BYTES]
                handle.read_into(block, start)
                if problem := self.digest_problem(entry, block, start):
                    raise self.damaged(
                        entry.path, problem, component=component, participant=participant
                    )
        self.tree_bytes += entry.size_bytes
        return data

    @staticmethod
    def digest_problem(entry: FileEntry, block: memoryview, start: int) -> str | None:
        """Return a text on the first chunk of a block that differs from its digest, or None.

        Args:
            entry: the file.
            block: whole chunks of the file; the last chunk of the file may be shorter.
            start: offset of the block in the file, a multiple of the chunk size.
        """
        first = start // CHUNK_BYTES
        listed = entry.digests[first : first + num_chunks(block.nbytes)]
        expected, found = bytes.fromhex("".join(listed)), chunk_digests(block)
        if found == expected:
            return None
        number = first_difference(found, expected)
        at = slice(number * DIGEST_BYTES, (number + 1) * DIGEST_BYTES)
        offset = start + number * CHUNK_BYTES
        return (
            f"expected digest {expected[at].hex()} of the chunk at byte {offset}, "
            f"found {found[at].hex()}"
        )


class _Lent:
    """A file that is held open by somebody else: closing it leaves it open."""

    __slots__ = ("_handle", "read_into", "size_bytes")

    def __init__(self, handle: ReadHandle) -> None:
        self._handle = handle
        self.size_bytes = handle.size_bytes
        self.read_into = handle.read_into

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        return

    def close(self) -> None:
        return
