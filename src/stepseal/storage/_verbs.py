"""The storage seam: the verbs of a root as one Protocol, and the handles of its files.

What lives here: the verbs, their handles, the values they give and the errors of their own.
What never will: steps, ranks, manifests, retries.
Invariants of every implementation:

- A key is checked before anything else happens; a bad one raises `InvalidInput`.
- No verb follows a symbolic link below the root; one in the way raises `Corrupt` naming it.
- Creation is exclusive. Nothing is ever truncated or overwritten except by `rename(replace=True)`.
- Every refusal of the backend is a `StorageUnavailable` with `errno`, and the key in `path`.
- A change is durable only after `sync` of the file and `sync_dir` of each directory that names it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from stepseal.errors import StorageUnavailable

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "Entry",
    "EntryKind",
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
    """Nothing has this key, or a directory on the way to it is missing; `path` is the key."""

    kind: ClassVar[str] = "key_not_found"


class KeyExists(StorageUnavailable, FileExistsError):
    """The key is taken already, and the verb creates only; `path` is the key."""

    kind: ClassVar[str] = "key_exists"


class NotSupported(StorageUnavailable):
    """The file system has no such call, now and later; nothing changed. `errno` is its answer."""

    kind: ClassVar[str] = "not_supported"


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What is known of whether a sync that answered success survives power loss."""

    doubts: tuple[str, ...] = ()
    """Why it may not, one sentence each; none where it does."""

    @property
    def durability(self) -> Literal["fsync", "best-effort"]:
        """`fsync` where nothing speaks against it."""
        return "best-effort" if self.doubts else "fsync"


@dataclass(frozen=True, slots=True)
class Entry:
    """What a directory says about one name, without following it."""

    name: str
    """Last segment of the key; `""` for the root."""
    kind: EntryKind
    size_bytes: int
    """Length of a file; without meaning for other kinds."""
    device: int
    """File system it is on; a directory whose number differs from its parent's is a mount."""
    inode: int = 0
    """Identity on that device, equal for hard links of one file; 0 when the backend has none."""
    mount: int = 0
    """Mount that a directory is reached through, where `stat` was asked and can tell; else 0."""


class ReadHandle(AbstractContextManager["ReadHandle", None], Protocol):
    """One open file whose kind was checked on the very descriptor that is read."""

    @property
    def size_bytes(self) -> int:
        """Length of the file when it was opened."""

    def read_into(self, buffer: Buffer, offset: int) -> None:
        """Fill `buffer` completely with the bytes at `offset`.

        Thread-safe.

        Args:
            buffer: writable and contiguous; its length says how many bytes are wanted.
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
            StorageUnavailable: the storage refused; some prefix may have been written.
        """

    def sync(self) -> None:
        """Make the bytes written so far durable.

        Raises:
            StorageUnavailable: not durable. The handle accepts nothing more but `close`: a failed
                sync is never retried, because the kernel may have dropped the dirty pages.

        Durability: the file's bytes and size survive power loss; its name does so after `sync_dir`.
        """

    def close(self) -> None:
        """Release the descriptor, and report what the storage says about it. Safe to repeat.

        Raises:
            StorageUnavailable: the storage lost something that it had accepted.
        """


class Storage(Protocol):
    """Every verb on one root. All are blocking and thread-safe."""

    def open_read(self, key: str) -> ReadHandle:
        """Open a regular file for reading; never blocks on a FIFO.

        Raises:
            KeyNotFound: nothing has this key.
            Corrupt: a symlink, directory, FIFO or device is there instead; `found` names it.
        """

    def stat(self, key: str) -> Entry:
        """Say what has this key, without following a symlink.

        Raises:
            KeyNotFound: nothing has this key.
        """

    def list_dir(self, key: str) -> tuple[Entry, ...]:
        """Return every entry of a directory, sorted by name: its names at one instant.

        So what is renamed inside the directory meanwhile is not missed; and where one name came
        before another went, at least one of the two is listed.

        Raises:
            KeyNotFound: nothing has this key.
            Corrupt: it is not a directory.
            StorageUnavailable: refused; or the directory kept changing for too many looks.
        """

    def create_file(self, key: str) -> WriteHandle:
        """Create a file that nobody had; its directory must exist.

        Raises:
            KeyExists: the key is taken.
            KeyNotFound: its directory is missing.
        """

    def make_dir(self, key: str) -> None:
        """Create a directory that nobody had; its parent must exist.

        Raises:
            KeyExists: the key is taken.
            KeyNotFound: its parent is missing.
        """

    def sync_dir(self, key: str) -> None:
        """Make the names inside a directory durable.

        Raises:
            StorageUnavailable: not durable. A file system that cannot do this at all is no error;
                `sync_support` says so.

        Durability: names created, renamed or removed in this directory before the call survive.
        """

    def sync_support(self) -> SyncReport:
        """Say whether syncs are honoured here, and if not, why; cheap after the first time.

        Raises:
            StorageUnavailable: the question itself was refused.
        """

    def link(self, source: str, target: str) -> None:
        """Give a file a second name, atomically and only if nobody has that name.

        Raises:
            KeyExists: `target` is taken. A lost answer can look the same: compare `Entry.inode`.
            KeyNotFound: `source`, or the directory of `target`, is missing.
        """

    def rename(self, source: str, target: str, *, replace: bool = False) -> None:
        """Move a file or directory to another name, atomically.

        Where the backend cannot refuse a taken target in the same instant, it may replace an empty
        directory that appears in it, and a crash may leave a file under both names; never more.

        Args:
            source: present key.
            target: key to have afterwards; its directory must exist.
            replace: take the place of a file (or empty directory) that has the target key.

        Raises:
            KeyExists: `target` is taken, and `replace` is false or it is a directory with entries.
            KeyNotFound: `source`, or the directory of `target`, is missing.
            StorageUnavailable: refused.
        """

    def exchange(self, first: str, second: str) -> None:
        """Swap two present keys, of any kind, atomically.

        Raises:
            NotSupported: the file system has no such call; who needs it moves twice.
            KeyNotFound: one of them is missing; nothing changed.
            StorageUnavailable: refused.
        """

    def remove_file(self, key: str) -> None:
        """Remove a name that is not a directory; a symlink itself, never what it points to.

        Raises:
            KeyNotFound: nothing has this key.
            StorageUnavailable: refused; `errno` is EISDIR for a directory.
        """

    def remove_dir(self, key: str) -> None:
        """Remove an empty directory.

        Raises:
            KeyNotFound: nothing has this key.
            StorageUnavailable: refused; `errno` is ENOTEMPTY or ENOTDIR.
        """
