"""Modes of the files that stepseal creates, and checks for directories that other users can change.

Pure rules over mode words and owners, and the one call that sets a mode. A directory is *shared*
if a user other than this one and root can create, rename or remove names in it. The result of any
check in a shared directory can be outdated a moment later.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from stepseal.storage._mounts import Mount

__all__ = [
    "DEFAULT_ACCESS",
    "Access",
    "refuse_shared",
    "set_mode",
    "shared_problem",
    "writable_problem",
]

_THEIRS = "a directory that belongs to user "
_NO_MODES = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EROFS}
"""Errors of a file system without modes, or one whose modes we cannot set."""


@dataclass(frozen=True, slots=True)
class Access:
    """Modes of new files and directories, regardless of the umask; whether to accept shared ones.

    Group-readable checkpoints are `Access(file_mode=0o640, dir_mode=0o750)`.

    Args:
        file_mode: mode of files, at least 0o600.
        dir_mode: mode of directories, at least 0o700.
        allow_shared: also accept directories that other users can write to, and a root that belongs
            to another user.

    Raises:
        InvalidInput: a mode removes access from the owner, makes files executable, lets all users
            write, or lets the group write without `allow_shared`.
    """

    file_mode: int = 0o600
    dir_mode: int = 0o700
    allow_shared: bool = False

    def __post_init__(self) -> None:
        group = 0o020 if self.allow_shared else 0
        _check_mode("file_mode", self.file_mode, least=0o600, most=0o644 | group)
        _check_mode("dir_mode", self.dir_mode, least=0o700, most=0o2755 | group)


def _check_mode(name: str, mode: object, *, least: int, most: int) -> None:
    if type(mode) is int and mode & least == least and mode & ~most == 0:
        return
    found = f"{mode:#o}" if type(mode) is int and mode >= 0 else repr(mode)
    raise InvalidInput(
        f"access refused: {name}: expected at least {least:#o} and at most {most:#o}, found "
        f"{found}. Modes that let the group write need allow_shared=True.",
        expected=most,
        found=mode,
    )


DEFAULT_ACCESS = Access()
"""Only the owner can read and write."""


def shared_problem(status: os.stat_result) -> str | None:
    """Return which other user can change names in a directory, or None."""
    if status.st_uid not in {0, os.geteuid()}:
        return f"{_THEIRS}{status.st_uid}"
    return writable_problem(status)


def writable_problem(status: os.stat_result) -> str | None:
    """Return which users besides the owner can change names in a directory, or None.

    The sticky bit protects names, so such directories are accepted. So are directories of a group
    that has the owner as its only member; many distributions create one for each user.
    """
    mode = stat.S_IMODE(status.st_mode)
    if mode & stat.S_ISVTX:
        return None
    if mode & stat.S_IWOTH:
        return f"a directory of mode {mode:#o}, in which all users can write"
    if mode & stat.S_IWGRP and not _is_private(status.st_gid, status.st_uid):
        return f"a directory of mode {mode:#o}, in which group {status.st_gid} can write"
    return None


@lru_cache(maxsize=64)
def _is_private(gid: int, uid: int) -> bool:
    """Return whether a group is a user's private group: primary, same name, no other members."""
    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    return (
        user.pw_gid == gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
    )


def refuse_shared(what: str, path: str, problem: str, mount: Mount | None) -> InvalidInput:
    """Return the error for a shared directory.

    Args:
        what: root or directory.
        path: of the directory.
        problem: which users can change names there.
        mount: that the directory is on; None if it is not known.
    """
    whom = "that user" if problem.startswith(_THEIRS) else "the users who can write there"
    trust = "pass Access(allow_shared=True), or --allow-shared on the command line, if you trust"
    return InvalidInput(
        f"{what} {path} refused: expected a directory in which only this user can write, "
        f"found {problem}. {_advice(problem, mount)} {trust} {whom}.",
        path=path,
        found=problem,
    )


def _advice(problem: str, mount: Mount | None) -> str:
    """Return what helps, up to the `or` before the last way out."""
    me = os.geteuid()
    if mount is not None and not mount.has_links:
        return (
            f"Take a root on another file system: {mount.fs_type} has neither modes nor hard "
            "links. Where only modes are in the way,"
        )
    if mount is not None and mount.has_fixed_modes:
        return (
            f"On {mount.fs_type}, modes and owners come from the options of the mount, and chmod "
            f"and chown change nothing: mount it with uid={me},umask=077 (CIFS: uid={me},"
            "file_mode=0600,dir_mode=0700), take another root (exFAT and FAT have no hard links "
            "either), or"
        )
    if problem.startswith(_THEIRS):
        return (
            f"Run `chown {me}` on it, or take another root. Where users are mapped (a container's "
            "bind mount, NFS with root_squash, an access point),"
        )
    if mount is not None and mount.is_fuse:
        return (
            "Run `chmod go-w` on it; if that changes nothing, mount it with umask=077. Take "
            "another root, or"
        )
    return "Run `chmod go-w` on it, take another root, or"


def set_mode(fd: int, mode: int) -> None:
    """Set the mode of a new file or directory, regardless of the umask; keep bits such as setgid.

    Raises:
        OSError: the call failed on a file system that has modes.
    """
    found = stat.S_IMODE(os.fstat(fd).st_mode)
    wanted = mode | (found & ~0o777)
    if found == wanted:
        return
    try:
        os.fchmod(fd, wanted)
    except OSError as error:
        if error.errno not in _NO_MODES:
            raise
