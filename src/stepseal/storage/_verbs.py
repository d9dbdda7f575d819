"""The storage interface: the operations on a root as one Protocol, and the handles of its files.

This module holds the operations, their handles, their results and their errors.
It never knows steps, ranks, manifests or retries.
Invariants of every implementation:

- A key is checked before anything else happens; a bad key raises `InvalidInput`.
- No operation follows a symbolic link below the root; a symlink raises `Corrupt`, which names it.
- Creation is exclusive. Files are never truncated, and overwritten only by `rename(replace=True)`.
- Every error of the backend is a `StorageUnavailable` with `errno`, and the key in `path`.
- A change is durable only after `sync` of the file and `sync_dir` of each directory that names it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from stepseal.errors import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Hashable

    from typing_extensions import Buffer

__all__ = [
    "Entry",
    "EntryKind",
    "FreeSpace",
    "KeyExists",
    "KeyNotFound",
    "NotSupported",
    "ReadHandle",
    "Storage",
    "SyncReport",
    "WriteHandle",
]

EntryKind = Literal["file", "directory", "symlink", "other"]


class KeyNotFound(StorageUnavailable, FileNotFoundError):
    """The key, or a directory on its path, does not exist; `path` is the key."""

    kind: ClassVar[str] = "key_not_found"


class KeyExists(StorageUnavailable, FileExistsError):
    """The key exists already, and the operation only creates; `path` is the key."""

    kind: ClassVar[str] = "key_exists"


class NotSupported(StorageUnavailable):
    """The file system does not support this operation; nothing changed. `errno` has its error."""

    kind: ClassVar[str] = "not_supported"


@dataclass(frozen=True, slots=True)
class SyncReport:
    """Whether data survives power loss after a successful sync, as far as known."""

    doubts: tuple[str, ...] = ()
    """Reasons why it may not, one sentence each; empty if it does."""

    @property
    def durability(self) -> Literal["fsync", "best-effort"]:
        """`fsync` if there are no doubts, else `best-effort`."""
        return "best-effort" if self.doubts else "fsync"


@dataclass(frozen=True, slots=True)
class FreeSpace:
    """What is left for new bytes, as far as the storage tells."""

    size_bytes: int
    doubts: tuple[str, ...] = ()
    """Reasons why there may be less, one each; empty if none is known."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a directory; a symlink is described itself."""

    name: str
    """Last segment of the key; `""` for the root."""
    kind: EntryKind
    size_bytes: int
    """Length of a file; meaningless for other kinds."""
    device: int
    """Device number; a directory whose number differs from its parent's is a mount."""
    inode: int = 0
    """Identity on that device, equal for hard links of one file; 0 if the backend has none."""
    mount: int = 0
    """Mount id of a directory, if it comes from `stat` and the kernel reports it; else 0."""
    num_names: int = 1
    """Number of names of a file (hard links); meaningless for a directory."""
    modified_ns: int = 0
    """When bytes of a file last changed, by the backend's clock; 0 if it does not tell."""


class ReadHandle(AbstractContextManager["ReadHandle", None], Protocol):
    """One open file; its kind was checked on the same descriptor that is read."""

    @property
    def size_bytes(self) -> int:
        """Length of the file when it was opened."""

    def read_into(self, buffer: Buffer, offset: int) -> None:
        """Fill `buffer` completely with the bytes at `offset`.

        Thread-safe.

        Args:
            buffer: writable and contiguous; its length is the number of bytes to read.
            offset: bytes from the start of the file, >= 0.

        Raises:
            StorageUnavailable: the storage refused, or the file ends before the buffer is full.
        """

    def close(self) -> None:
        """Release the descriptor. Safe to repeat."""


class WriteHandle(AbstractContextManager["WriteHandle", None], Protocol):
    """One new file. Leaving the `with` block closes it; it does not sync."""

    def write(self, data: Buffer, offset: int) -> None:
        """Write all of `data` at `offset`, or raise.

        Thread-safe for ranges that do not overlap.

        Args:
            data: contiguous bytes.
            offset: bytes from the start of the file, >= 0.

        Raises:
            StorageUnavailable: the storage refused; a part of `data` may have been written.
        """

    def sync(self) -> None:
        """Make the bytes written so far durable.

        Raises:
            StorageUnavailable: the bytes are not durable. Only `close` works afterwards: a failed
                sync is never retried, because the kernel may have dropped the dirty pages.

        Durability: the file's bytes and size survive power loss; its name survives after
        `sync_dir`.
        """

    def close(self) -> None:
        """Release the descriptor; raise if the storage reports an error. Safe to repeat.

        Raises:
            StorageUnavailable: the storage lost data that it had accepted.
        """


class Storage(Protocol):
    """All operations on one root. They block, and are thread-safe."""

    def open_read(self, key: str) -> ReadHandle:
        """Open a regular file for reading; never blocks on a FIFO.

        Raises:
            KeyNotFound: the key does not exist.
            Corrupt: the key is a symlink, directory, FIFO or device; `found` says which.
        """

    def stat(self, key: str) -> Entry:
        """Return the entry of a key, without following a symlink.

        Raises:
            KeyNotFound: the key does not exist.
        """

    def list_dir(self, key: str) -> tuple[Entry, ...]:
        """Return all entries of a directory at one instant, sorted by name.

        An entry that is renamed inside the directory meanwhile is not missed. If one name appears
        before another disappears, at least one of the two is listed.

        Raises:
            KeyNotFound: the key does not exist.
            Corrupt: the key is not a directory.
            StorageUnavailable: the storage refused, or the directory changed during each try.
        """

    def list_marks(self, key: str, name: str) -> dict[str, Hashable | None]:
        """Return all names in a directory at one instant, each with a mark of the file in it.

        The mark is of the file `name` in the entry, as it was at some time during the call: if two
        marks of it are equal, its bytes are, too. Reads no file.

        Args:
            key: the directory.
            name: one segment.

        Returns:
            None instead of a mark for an entry that is no directory, or where the backend cannot
            tell of such a file in it.

        Raises:
            KeyNotFound, Corrupt, StorageUnavailable: see `list_dir`.
        """

    def create_file(self, key: str) -> WriteHandle:
        """Create a new file; its directory must exist.

        Raises:
            KeyExists: the key exists.
            KeyNotFound: its directory is missing.
        """

    def make_dir(self, key: str) -> None:
        """Create a new directory; its parent must exist.

        Raises:
            KeyExists: the key exists.
            KeyNotFound: its parent is missing.
        """

    def sync_dir(self, key: str) -> None:
        """Make the names inside a directory durable.

        Raises:
            StorageUnavailable: the names are not durable. If the file system cannot sync
                directories at all, this does not raise; `sync_support` reports it.

        Durability: names created, renamed or removed in this directory before the call survive.
        """

    def local_path(self, key: str) -> str | None:
        """Return the path by which programs on this host find a key; None if there is none.

        Such programs change the root without this object. `adopt` what they make.
        """

    def adopt(self, key: str) -> Entry:
        """Take over a file or directory that another program made, and return what it is now.

        Gives it the modes of what `create_file` and `make_dir` make, and syncs it.

        Raises:
            KeyNotFound: the key does not exist.
            Corrupt: the key is neither a regular file nor a directory; `found` says which.
            StorageUnavailable: it is not durable; a failed sync is never retried.

        Durability: the file's bytes and size survive power loss, or the names in the directory;
        its own name survives after `sync_dir`.
        """

    def sync_support(self) -> SyncReport:
        """Report whether syncs are honoured, and if not, why; cheap after the first call.

        Raises:
            StorageUnavailable: the storage refused the test.
        """

    def free_space(self) -> FreeSpace | None:
        """Return what is left for this process's new bytes; None if the storage does not tell.

        Raises:
            StorageUnavailable: the storage refused.
        """

    def link(self, source: str, target: str) -> None:
        """Give a file a second name, atomically and only if that name is free.

        Raises:
            KeyExists: `target` exists. After a lost answer, it may be our own link: compare
                `Entry.inode`.
            KeyNotFound: `source`, or the directory of `target`, is missing.
        """

    def rename(self, source: str, target: str, *, replace: bool = False) -> None:
        """Move a file or directory to another name, atomically.

        Some backends cannot check and rename in one call. They may replace an empty directory that
        appears at the target in between, and a crash may leave a file under both names.

        Args:
            source: an existing key.
            target: the new key; its directory must exist.
            replace: replace a file (or empty directory) at the target.

        Raises:
            KeyExists: `target` exists, and `replace` is false or it is a directory with entries.
            KeyNotFound: `source`, or the directory of `target`, is missing.
            StorageUnavailable: the storage refused.
        """

    def exchange(self, first: str, second: str) -> None:
        """Swap two existing entries of any kind, atomically.

        Raises:
            NotSupported: the file system has no such call; the caller may move twice.
            KeyNotFound: one of them is missing; nothing changed.
            StorageUnavailable: the storage refused.
        """

    def remove_file(self, key: str) -> None:
        """Remove an entry that is not a directory; a symlink is removed, never its target.

        Raises:
            KeyNotFound: the key does not exist.
            StorageUnavailable: the storage refused; `errno` is EISDIR for a directory.
        """

    def remove_dir(self, key: str) -> None:
        """Remove an empty directory.

        Raises:
            KeyNotFound: the key does not exist.
            StorageUnavailable: the storage refused; `errno` may be ENOTEMPTY or ENOTDIR.
        """
