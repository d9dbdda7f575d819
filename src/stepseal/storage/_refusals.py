"""Turns an OSError into an error that says what failed, where, and what to do next."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from stepseal.errors import Corrupt, StorageUnavailable
from stepseal.storage._local_renames import MAYBE_NO_FLAGS
from stepseal.storage._verbs import KeyExists, KeyNotFound, NotSupported

if TYPE_CHECKING:
    from stepseal.storage._verbs import EntryKind

__all__ = ["entry_kind", "key_in_words", "kind_name", "refused", "short_read", "wrong_kind"]

_NEXT_STEPS = {
    errno.ENOSPC: "Free space, then try again.",
    errno.EDQUOT: "Free space in this quota, then try again.",
    errno.EACCES: "Check the permissions of the root and of its directories.",
    errno.EPERM: "Check the permissions and attributes of the root and of its directories.",
    errno.EROFS: "Mount the file system writable.",
    errno.EXDEV: (
        "It may lie in a lower layer of an overlay, such as a container image, or on another file "
        "system: copy the root to a volume (cp -a), mount the overlay with redirect_dir=on, or "
        "remove mounts inside the root."
    ),
    errno.ESTALE: "The network file system lost this file: check its server, then retry.",
    errno.ENOTCONN: "The program that serves this file system has ended: mount it again.",
    errno.EFBIG: (
        "Raise the limit of the size of a file (ulimit -f), or take a file system with larger ones."
    ),
    errno.EIO: "The device failed: check the kernel log before you trust this disk.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    errno.ENAMETOOLONG: "Choose a shorter path.",
    errno.ELOOP: "Check where the symlinks of this path lead.",
    errno.ENOTEMPTY: "Remove its entries first.",
    errno.EISDIR: "Name a file.",
    errno.EBADF: "The storage or handle is closed: open it again.",
}
_NO_LINK = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def key_in_words(key: str, root: str) -> str:
    """Return a text for a location: a key under its root, or only the path of the root."""
    return f"{key!r} under {root}" if key and root else repr(key or root)


def refused(verb: str, key: str, root: str, error: OSError) -> StorageUnavailable:
    """Return the typed error for an OSError; the caller raises it from `error`.

    `root` is for the text; empty if `key` is the path of the root itself.
    """
    number = error.errno
    reason = os.strerror(number) if number else str(error)
    code = errno.errorcode.get(number or 0, str(number))
    where = f"cannot {verb} {key_in_words(key, root)}"
    if number == errno.ENOENT:
        return KeyNotFound(
            f"{where}: expected it and its directory to exist, found no such entry [ENOENT]. "
            "Check the key, and whether another process removed it.",
            path=key,
            errno=number,
        )
    if number == errno.EEXIST or (number == errno.ENOTEMPTY and verb.startswith("rename")):
        return KeyExists(
            f"{where}: expected a free name, found it taken [{code}]. Choose another name.",
            path=key,
            errno=number,
        )
    if number in MAYBE_NO_FLAGS and verb.startswith("exchange"):
        return NotSupported(
            f"{where}: expected renameat2 with RENAME_EXCHANGE, found a kernel or file system "
            f"without it [{code}]. Move twice instead.",
            path=key,
            errno=number,
        )
    if number in _NO_LINK and verb.startswith("link"):
        return StorageUnavailable(
            f"{where}: expected a file system with hard links, found {reason} [{code}]. Run "
            "`stepseal doctor` on the root; use a root on a file system that has them.",
            path=key,
            errno=number,
        )
    advice = _NEXT_STEPS.get(number or 0, "Check the file system, then retry.")
    return StorageUnavailable(
        f"{where}: expected success, found {reason} [{code}]. {advice}", path=key, errno=number
    )


def short_read(
    key: str, root: str, offset: int, *, expected: int, found: int
) -> StorageUnavailable:
    """Return the error for a file that is shorter than the requested range."""
    return StorageUnavailable(
        f"cannot read {key!r} under {root}: expected {expected} bytes at offset {offset}, found "
        f"{found}. The file is shorter than its record says: verify the step.",
        path=key,
        expected=expected,
        found=found,
    )


def wrong_kind(verb: str, key: str, root: str, *, expected: str, found: str) -> Corrupt:
    """Return the error for an entry of an unexpected kind."""
    return Corrupt(
        f"cannot {verb} under {root}: {key!r}: expected a {expected}, found a {found}; it was not "
        "followed. Remove it, or restore the original.",
        path=key,
        expected=expected,
        found=found,
        problems=(f"{key}: expected a {expected}, found a {found}",),
    )


def entry_kind(mode: int) -> EntryKind:
    """Return the entry kind of a mode word."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISLNK(mode):
        return "symlink"
    return "other"


def kind_name(mode: int) -> str:
    """Return the name of a mode word's kind, for messages."""
    names = {
        stat.S_IFREG: "regular file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "symlink",
        stat.S_IFIFO: "FIFO",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "character device",
        stat.S_IFBLK: "block device",
    }
    return names.get(stat.S_IFMT(mode), "special file")
