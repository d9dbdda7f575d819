"""Opens a root path as a descriptor; symlinks in the user's path are followed."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from stepseal.errors import InvalidInput, RootNotFound
from stepseal.storage._access import refuse_shared, set_mode, shared_problem
from stepseal.storage._mounts import find_mount
from stepseal.storage._refusals import refused

if TYPE_CHECKING:
    from stepseal.storage._access import Access
    from stepseal.storage._syscalls import Syscalls

__all__ = ["NO_DIR_SYNC", "check_root", "make_root", "open_root", "root_path"]

_OPEN_ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
NO_DIR_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})
"""Errors of file systems that cannot sync directories."""


def root_path(root: str | os.PathLike[str], what: str = "root") -> str:
    """Return the root as an absolute path; all entry points use it.

    Args:
        root: path given by the user.
        what: name of the argument, for the message.

    Raises:
        InvalidInput: the value is not a path, is empty, or contains a NUL.
    """
    path = os.fspath(root)
    if not isinstance(path, str) or not path or "\x00" in path:
        raise InvalidInput(
            f"{what} {root!r} refused: expected the path of a directory, found "
            f"{'an empty path' if not path else 'bytes or a NUL'}. Pass a str or a Path.",
            path=str(path),
        )
    return os.path.abspath(path)


def open_root(path: str, calls: Syscalls) -> int:
    """Return a descriptor of the root directory; a symlink is resolved here, once."""
    try:
        return calls.open(path, _OPEN_ROOT)
    except FileNotFoundError as error:
        raise RootNotFound(
            f"no root at {path}: expected a directory, found no such path. Check the path.",
            path=path,
            errno=error.errno,
        ) from error
    except NotADirectoryError as error:
        raise _not_a_directory(path) from error
    except OSError as error:
        raise refused("open the root", path, "", error) from error


def check_root(path: str, fd: int, access: Access, calls: Syscalls) -> None:
    """Refuse a root in which other users can change names, unless `access` allows it.

    Raises:
        InvalidInput: other users can write to the root, or it belongs to another user.
    """
    problem = shared_problem(os.fstat(fd))
    if problem is not None and not access.allow_shared:
        raise refuse_shared("root", path, problem, find_mount(fd, calls))


def make_root(path: str, calls: Syscalls, mode: int) -> None:
    """Create the root and its missing parents; sync the parent of each new directory.

    The parent of the root is synced even if the root exists, because the process that created it
    may have died before its sync. In this case, we may lack permission to read the parent.

    Raises:
        InvalidInput: the path is the root of the file system, or not a directory.
    """
    if os.path.realpath(path) == "/":
        raise InvalidInput(
            f"root {path} refused: expected a separate directory for the run, found the root of "
            "the file system. Choose another path.",
            path=path,
        )
    missing: list[str] = []
    probe = path.rstrip("/") or "/"
    while not os.path.exists(probe) and probe not in {"", "/"}:
        if os.path.islink(probe):
            raise _not_a_directory(path)
        missing.append(probe)
        probe = os.path.dirname(probe)
    if not os.path.isdir(probe):
        raise _not_a_directory(path)
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o700)
            _set_mode_of(directory, mode, calls)
        except FileExistsError:
            pass  # another participant made it; its name is synced below
        except OSError as error:
            raise refused("make the root", path, "", error) from error
        _sync_parent(directory, path, calls)
    if not missing:
        _sync_parent(os.path.realpath(path), path, calls, may_be_unreadable=True)


def _set_mode_of(directory: str, mode: int, calls: Syscalls) -> None:
    fd = calls.open(directory, _OPEN_ROOT | os.O_NOFOLLOW)
    try:
        set_mode(fd, mode)
    finally:
        os.close(fd)


def _sync_parent(
    directory: str, root: str, calls: Syscalls, *, may_be_unreadable: bool = False
) -> None:
    tolerated = NO_DIR_SYNC | ({errno.EROFS} if may_be_unreadable else set())
    try:
        try:
            fd = calls.open(os.path.dirname(directory) or "/", _OPEN_ROOT)
        except PermissionError:
            if may_be_unreadable:
                return
            raise
        try:
            calls.fsync_dir(fd)
        except OSError as error:
            if error.errno not in tolerated:
                raise
        finally:
            os.close(fd)
    except OSError as error:
        raise refused("sync the parent of the root", root, "", error) from error


def _not_a_directory(path: str) -> InvalidInput:
    return InvalidInput(
        f"root {path} refused: expected a directory, found a file or a dangling symlink. "
        "Choose another path.",
        path=path,
        expected="directory",
    )
