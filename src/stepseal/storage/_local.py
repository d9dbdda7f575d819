"""A POSIX directory as storage.

The root is opened once and held by its descriptor. Every key is opened from there, one segment at a
time, with `O_NOFOLLOW`, so neither a symlink nor a rename of the root's path can redirect an
operation. Knows nothing about steps. Linux only: renames use renameat2(2) if it is available.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from stepseal.errors import CheckpointError, StorageUnavailable
from stepseal.storage._access import (
    DEFAULT_ACCESS,
    Access,
    refuse_shared,
    set_mode,
    shared_problem,
    writable_problem,
)
from stepseal.storage._keys import check_key, check_pair, split_key
from stepseal.storage._local_files import LocalReader, LocalWriter, Uncached
from stepseal.storage._local_listing import entry_of, list_at_once, marks_at_once
from stepseal.storage._local_renames import Renames
from stepseal.storage._local_root import NO_DIR_SYNC, check_root, make_root, open_root, root_path
from stepseal.storage._mounts import find_mount, mount_number, quota_doubts, sync_doubts
from stepseal.storage._refusals import kind_name, refused, wrong_kind
from stepseal.storage._syscalls import Syscalls
from stepseal.storage._verbs import FreeSpace, SyncReport

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from typing_extensions import Self

    from stepseal.storage._mounts import Mount
    from stepseal.storage._verbs import Entry

__all__ = ["LocalStorage"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class LocalStorage:
    """One directory of a local or network file system, held open until `close`.

    Thread-safe; after a fork, both processes can use it. Use `open` or `create` to make one.

    Args:
        root: absolute path, for messages only.
        descriptor: descriptor of the root directory; this object closes it.
        calls: the system calls; tests pass their own.
        access: modes of new files, and whether shared directories are accepted.
    """

    def __init__(
        self,
        root: str,
        descriptor: int,
        *,
        calls: Syscalls | None = None,
        access: Access = DEFAULT_ACCESS,
    ) -> None:
        self._root = root
        self._root_fd = descriptor
        # `stepseal.open` has no close, so an unused reader must not keep its descriptor.
        self._release = weakref.finalize(self, os.close, self._root_fd)
        self._release.atexit = False  # a save that ends at exit still needs it
        self._calls = calls or Syscalls()
        self._renames = Renames(self._calls)
        self._uncached = Uncached(self._calls)
        self._access = access
        self._sync: SyncReport | None = None

    @classmethod
    def open(
        cls,
        root: str | os.PathLike[str],
        *,
        calls: Syscalls | None = None,
        access: Access = DEFAULT_ACCESS,
    ) -> Self:
        """Open an existing root; if it is a symlink to a directory, it is resolved once.

        Any root can be read; files are created only if `access` allows it.

        Raises:
            RootNotFound: the path does not exist.
            InvalidInput: the path is not a directory.
            StorageUnavailable: the root cannot be read.
        """
        calls = calls or Syscalls()
        path = root_path(root)
        return cls(path, open_root(path, calls), calls=calls, access=access)

    @classmethod
    def create(
        cls,
        root: str | os.PathLike[str],
        *,
        calls: Syscalls | None = None,
        access: Access = DEFAULT_ACCESS,
    ) -> Self:
        """Create a root and its missing parents if needed, and open it for writing.

        All participants may call it at once.

        Raises:
            InvalidInput: the path is not a directory, other users can write to it, or it belongs to
                another user.
            StorageUnavailable: a directory cannot be created or synced.

        Durability: the root's name survives power loss on return.
        """
        calls = calls or Syscalls()
        path = root_path(root)
        make_root(path, calls, access.dir_mode)
        storage = cls(path, open_root(path, calls), calls=calls, access=access)
        try:
            with storage._guard("stat", ""):
                check_root(path, storage._root_fd, access, calls)
        except CheckpointError:
            storage.close()
            raise
        return storage

    def __repr__(self) -> str:
        return f"LocalStorage({self._root!r})"

    @property
    def root(self) -> str:
        """Absolute path that the root had when it was opened."""
        return self._root

    def writable_problem(self) -> str | None:
        """Return which users besides the owner can change names in the root, or None."""
        with self._guard("stat", ""), self._walk((), "stat") as fd:
            return writable_problem(os.fstat(fd))

    def take_over(self, other: LocalStorage) -> None:
        """Use the directory of `other` from now on; handles that are open keep theirs.

        Safe while other threads use this object.
        """
        with self._guard("open", ""):
            if self._root_fd < 0:
                raise OSError(errno.EBADF, "closed")
            os.dup2(other._root_fd, self._root_fd, inheritable=False)

    def close(self) -> None:
        """Release the root; open handles keep working, all other operations fail. Idempotent."""
        self._root_fd = -1
        with self._guard("close", ""):
            self._release()  # once

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def open_read(self, key: str) -> LocalReader:
        """Open a regular file for reading; never blocks on a FIFO."""
        parents, name = check_key(key)
        with self._guard("open", key), self._walk(parents, "open") as parent_fd:
            try:
                fd = self._calls.open(name, _READ, dir_fd=parent_fd)
            except OSError as error:
                if error.errno in {errno.ELOOP, errno.ENXIO, errno.ENODEV}:
                    self._check_kind(name, parent_fd, "open", key, expected="regular file")
                raise
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                os.close(fd)
                found = kind_name(status.st_mode)
                raise wrong_kind("open", key, self._root, expected="regular file", found=found)
        return LocalReader(fd, key, self._root, self._calls, size_bytes=status.st_size)

    def stat(self, key: str) -> Entry:
        """Return the entry of a key, without following a symlink."""
        segments = split_key(key)
        with self._guard("stat", key), self._walk(segments[:-1], "stat") as fd:
            if not segments:
                return entry_of("", os.fstat(fd), mount_number(fd, self._calls))
            name = segments[-1]
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                return entry_of(name, status)
            found = os.open(name, _LOOK, dir_fd=fd)
            try:
                return entry_of(name, os.fstat(found), mount_number(found, self._calls))
            finally:
                os.close(found)

    def list_dir(self, key: str) -> tuple[Entry, ...]:
        """Return all entries of a directory at one instant, sorted by name."""
        with self._guard("list", key), self._walk(split_key(key), "list") as fd:
            return list_at_once(fd, key, self._root, self._calls)

    def list_marks(self, key: str, name: str) -> dict[str, Hashable | None]:
        """Return all names in a directory, each with a mark of one file in it."""
        assert "/" not in name
        with self._guard("list", key), self._walk(split_key(key), "list") as fd:
            return marks_at_once(fd, name, key, self._root, self._calls)

    def sync_support(self) -> SyncReport:
        """Report whether syncs are honoured, from one sync of the root and its mount options."""
        if self._sync is None:
            self.sync_dir("")
            assert self._sync is not None
        return self._sync

    def free_space(self) -> FreeSpace | None:
        """Return what statvfs tells of the root, which knows of quotas of projects alone."""
        with self._guard("look for free space at", ""), self._walk((), "stat") as fd:
            found = os.fstatvfs(fd)
            if found.f_blocks == 0:  # a FUSE program that tells nothing
                return None
            return FreeSpace(found.f_bavail * found.f_frsize, quota_doubts(self.mount()))

    def local_path(self, key: str) -> str:
        """Return the path of a key, by the path that the root had when it was opened."""
        return os.path.join(self._root, *split_key(key))

    def mount(self) -> Mount | None:
        """Return the mount that the root is on, or None if /proc does not list it."""
        with self._guard("stat", ""), self._walk((), "stat") as fd:
            return find_mount(fd, self._calls)

    def create_file(self, key: str) -> LocalWriter:
        """Create a new file, with mode 0600 unless configured."""
        parents, name = check_key(key)
        with self._guard("create", key), self._walk(parents, "create") as parent_fd:
            self._require_own(parent_fd, parents)
            fd = self._calls.open(name, _CREATE, 0o600, dir_fd=parent_fd)
            try:
                set_mode(fd, self._access.file_mode)
            except OSError:
                os.close(fd)
                with suppress(OSError):  # the first error is the one to tell
                    os.unlink(name, dir_fd=parent_fd)
                raise
        return LocalWriter(fd, key, self._root, self._calls, self._uncached)

    def make_dir(self, key: str) -> None:
        """Create a new directory, with mode 0700 unless configured."""
        parents, name = check_key(key)
        with self._guard("make directory", key), self._walk(parents, "make") as parent_fd:
            self._require_own(parent_fd, parents)
            os.mkdir(name, 0o700, dir_fd=parent_fd)
            try:
                fd = self._calls.open(name, _DIRECTORY, dir_fd=parent_fd)
                try:
                    set_mode(fd, self._access.dir_mode)
                finally:
                    os.close(fd)
            except OSError:
                with suppress(OSError):  # the first error is the one to tell
                    os.rmdir(name, dir_fd=parent_fd)
                raise

    def adopt(self, key: str) -> Entry:
        """Give a file or directory of another program the modes of own ones, and sync it."""
        parents, name = check_key(key)
        with self._guard("sync", key), self._walk(parents, "sync") as parent_fd:
            try:
                fd = self._calls.open(name, _READ, dir_fd=parent_fd)
            except OSError as error:
                if error.errno in {errno.ELOOP, errno.ENXIO, errno.ENODEV}:
                    self._check_kind(name, parent_fd, "sync", key, expected="regular file")
                raise
            try:
                found = entry_of(name, os.fstat(fd))
                if found.kind not in ("file", "directory"):
                    kind = kind_name(os.fstat(fd).st_mode)
                    raise wrong_kind("sync", key, self._root, expected="regular file", found=kind)
                is_file = found.kind == "file"
                set_mode(fd, self._access.file_mode if is_file else self._access.dir_mode)
                if is_file:
                    self._calls.fsync(fd)
                    found = entry_of(name, os.fstat(fd))
            finally:
                os.close(fd)
        if not is_file:
            self.sync_dir(key)
        return found

    def sync_dir(self, key: str) -> None:
        """Make the names inside a directory durable, if the file system supports it."""
        with self._guard("sync directory", key), self._walk(split_key(key), "sync") as fd:
            refusal = None
            try:
                self._calls.fsync_dir(fd)
            except OSError as error:
                if error.errno not in NO_DIR_SYNC:
                    raise
                code = errno.errorcode.get(error.errno, str(error.errno))
                refusal = f"directories cannot be synced: fsync answers {code}"
            if self._sync is None:
                self._sync = SyncReport(sync_doubts(find_mount(fd, self._calls)))
            if refusal and refusal not in self._sync.doubts:
                self._sync = SyncReport((*self._sync.doubts, refusal))

    def link(self, source: str, target: str) -> None:
        """Give a file a second name, atomically and only if that name is free."""
        with self._pair("link", source, target) as (name, source_fd, new, target_fd):
            self._calls.link(name, source_fd, new, target_fd)

    def rename(self, source: str, target: str, *, replace: bool = False) -> None:
        """Move a file or directory to another name; see `Renames` for missing RENAME_NOREPLACE."""
        with self._pair("rename", source, target) as (name, source_fd, new, target_fd):
            if replace:
                self._calls.rename(name, source_fd, new, target_fd)
            else:
                self._renames.move(name, source_fd, new, target_fd)

    def exchange(self, first: str, second: str) -> None:
        """Swap two existing entries of any kind, atomically."""
        with self._pair("exchange atomically", first, second) as (name, first_fd, other, second_fd):
            self._renames.exchange(name, first_fd, other, second_fd)

    def remove_file(self, key: str) -> None:
        """Remove an entry that is not a directory."""
        parents, name = check_key(key)
        with self._guard("remove", key), self._walk(parents, "remove") as parent_fd:
            os.unlink(name, dir_fd=parent_fd)

    def remove_dir(self, key: str) -> None:
        """Remove an empty directory."""
        parents, name = check_key(key)
        with self._guard("remove directory", key), self._walk(parents, "remove") as parent_fd:
            os.rmdir(name, dir_fd=parent_fd)

    @contextmanager
    def _walk(self, segments: Sequence[str], verb: str) -> Iterator[int]:
        """Yield a new descriptor of the directory at `segments`, without following symlinks."""
        root_fd = self._root_fd
        if root_fd < 0:
            raise OSError(errno.EBADF, "closed")
        fd = self._calls.open(".", _DIRECTORY, dir_fd=root_fd)
        try:
            for depth, name in enumerate(segments):
                try:
                    child = self._calls.open(name, _DIRECTORY, dir_fd=fd)
                except OSError as error:
                    if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                        prefix = "/".join(segments[: depth + 1])
                        self._check_kind(name, fd, verb, prefix, expected="directory")
                    raise
                left, fd = fd, child
                os.close(left)  # even if this fails, it is closed
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _pair(self, verb: str, source: str, target: str) -> Iterator[tuple[str, int, str, int]]:
        check_pair(source, target)
        source_parents, source_name = check_key(source)
        target_parents, target_name = check_key(target)
        with (
            self._guard(f"{verb} {source!r} to", target),
            self._walk(source_parents, verb) as source_fd,
            self._walk(target_parents, verb) as target_fd,
        ):
            self._require_own(target_fd, target_parents)
            yield source_name, source_fd, target_name, target_fd

    def _require_own(self, fd: int, segments: Sequence[str]) -> None:
        """Raise if another user can change the names in a directory."""
        if self._access.allow_shared:
            return
        problem = shared_problem(os.fstat(fd))
        if problem is not None:
            path, mount = "/".join((self._root, *segments)), find_mount(fd, self._calls)
            raise refuse_shared("directory", path, problem, mount)

    def _check_kind(self, name: str, fd: int, verb: str, key: str, *, expected: str) -> None:
        """Raise `Corrupt` if `name` is of another kind than `expected`."""
        mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
        if kind_name(mode) != expected:
            raise wrong_kind(verb, key, self._root, expected=expected, found=kind_name(mode))

    @contextmanager
    def _guard(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except StorageUnavailable:
            raise
        except OSError as error:
            raise refused(verb, key, self._root, error) from error
