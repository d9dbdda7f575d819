"""Which file system a descriptor is on, and what its mount options say about syncs.

From /proc/self/mountinfo, by the mount id that /proc/self/fdinfo gives: device numbers do not lead
there on btrfs and overlay. Nothing here asks a server, and nothing raises: where /proc does not
tell, there is no mount.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepseal.storage._syscalls import Syscalls

__all__ = ["Mount", "find_mount", "mount_number", "parse_mounts", "sync_doubts"]

_IN_MEMORY = frozenset({"ramfs", "rootfs", "tmpfs", "hugetlbfs"})
_HOST_DECIDES = frozenset({"9p", "drvfs", "prl_fs", "vboxsf", "vmhgfs"})
_VOLATILE = frozenset({"fsync=volatile", "volatile"})
_NO_BARRIER = frozenset({"nobarrier", "barrier=0", "barrier=none"})


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    fs_type: str
    """As the kernel calls it: `ext4`, `nfs4`, `fuse.sshfs`."""
    point: str
    source: str
    """Device, or server and path."""
    options: tuple[str, ...]
    """Of the mount, then of the file system."""

    @property
    def in_memory(self) -> bool:
        """Nothing on it survives power loss, whatever a sync answers."""
        return self.fs_type in _IN_MEMORY

    @property
    def is_volatile(self) -> bool:
        """An overlay that leaves out syncs."""
        return not _VOLATILE.isdisjoint(self.options)

    @property
    def is_fuse(self) -> bool:
        """A program serves it, and decides what a sync means."""
        return self.fs_type in {"fuse", "fuseblk"} or self.fs_type.startswith("fuse.")


def sync_doubts(mount: Mount | None) -> tuple[str, ...]:
    """Return why a sync that answers success may not survive power loss here; empty if it does."""
    if mount is None:
        return ()
    what = f"{mount.fs_type} at {mount.point}"
    doubts = []
    if mount.in_memory:
        doubts.append(f"{what} is in memory: nothing survives power loss")
    if mount.is_fuse or mount.fs_type in _HOST_DECIDES:
        doubts.append(f"{what} is served by a program that decides what a sync means")
    if mount.is_volatile:
        doubts.append(f"{what} is mounted with volatile: syncs are left out")
    barrier = sorted(_NO_BARRIER.intersection(mount.options))
    if barrier:
        doubts.append(f"{what} is mounted with {barrier[0]}: the disk's cache is not flushed")
    return tuple(doubts)


def find_mount(fd: int, calls: Syscalls) -> Mount | None:
    """Return the mount that a descriptor is on, or None where /proc does not tell."""
    try:
        return parse_mounts(calls.read_proc("mountinfo")).get(mount_number(fd, calls))
    except OSError:
        return None


def mount_number(fd: int, calls: Syscalls) -> int:
    """Return the number of the mount behind a descriptor, 0 where the kernel does not tell.

    A bind mount of the same file system has the device number of what it hides, so that only this
    number tells it from an ordinary directory.
    """
    try:
        lines = calls.read_proc(f"fdinfo/{fd}").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("mnt_id:")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def parse_mounts(text: str) -> dict[int, Mount]:
    """Return the mounts of a mountinfo by their id; lines of another form are left out."""
    mounts = {}
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 3 or not fields[0].isdigit():
            continue
        options = dict.fromkeys([*fields[5].split(","), *rest[2].split(",")])
        mounts[int(fields[0])] = Mount(rest[0], _plain(fields[4]), _plain(rest[1]), tuple(options))
    return mounts


def _plain(field: str) -> str:
    """Undo the kernel's octal escapes of blanks and backslashes."""
    for code in ("\\040", "\\011", "\\012", "\\134"):
        field = field.replace(code, chr(int(code[1:], 8)))
    return os.fsdecode(field.encode("utf-8", "surrogateescape"))
