"""Which file system a descriptor is on, and what its mount options mean for syncs.

Finds the mount in /proc/self/mountinfo, by the mount id in /proc/self/fdinfo; device numbers do not
identify the mount on btrfs and overlay. Never asks a server and never raises: if /proc does not
list the mount, the result is None.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepseal.storage._syscalls import Syscalls

__all__ = ["Mount", "find_mount", "mount_number", "parse_mounts", "quota_doubts", "sync_doubts"]

_IN_MEMORY = frozenset({"ramfs", "rootfs", "tmpfs", "hugetlbfs"})
_HOST_DECIDES = frozenset({"9p", "drvfs", "prl_fs", "vboxsf", "vmhgfs"})
_NO_LINKS = frozenset({"exfat", "msdos", "vfat"})
_FIXED_MODES = _NO_LINKS | {"cifs", "drvfs", "fuseblk", "ntfs", "ntfs3", "smb3", "vboxsf"}
_LAYERED = ("overlay", "union", "aufs", "mergerfs")
_VOLATILE = frozenset({"fsync=volatile", "volatile"})
_SERVED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "panfs", "wekafs", "cifs", "smb3", "afs")
_QUOTA = re.compile(r"(usr|grp|u|g)?j?quota(=.*)?", re.ASCII)
"""Options that turn quotas of users or groups on. Those of projects are in what statvfs tells."""
_NO_BARRIER = frozenset({"nobarrier", "barrier=0", "barrier=none"})


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    fs_type: str
    """Name in the kernel: `ext4`, `nfs4`, `fuse.sshfs`."""
    point: str
    source: str
    """Device, or server and path."""
    options: tuple[str, ...]
    """Options of the mount, then those of the file system."""

    @property
    def in_memory(self) -> bool:
        """True if the file system is in memory: nothing survives power loss, even after a sync."""
        return self.fs_type in _IN_MEMORY

    @property
    def is_volatile(self) -> bool:
        """True for an overlay that skips syncs."""
        return not _VOLATILE.isdisjoint(self.options)

    @property
    def has_links(self) -> bool:
        """False for a file system without hard links."""
        return self.fs_type not in _NO_LINKS

    @property
    def has_fixed_modes(self) -> bool:
        """True if modes and owners come from the options of the mount, and cannot be changed."""
        return self.fs_type in _FIXED_MODES

    @property
    def is_layered(self) -> bool:
        """True if folders may lie in layers or branches between which nothing can be renamed."""
        return any(word in self.fs_type for word in _LAYERED)

    @property
    def is_fuse(self) -> bool:
        """True if a FUSE program serves it; the program decides what a sync does."""
        return self.fs_type in {"fuse", "fuseblk"} or self.fs_type.startswith("fuse.")


def sync_doubts(mount: Mount | None) -> tuple[str, ...]:
    """Return why synced data may not survive power loss on this mount; empty if it does."""
    if mount is None:
        return ()
    what = f"{mount.fs_type} at {mount.point}"
    doubts = []
    if mount.in_memory:
        doubts.append(f"{what} is in memory: nothing survives power loss")
    if mount.is_fuse or mount.fs_type in _HOST_DECIDES:
        doubts.append(f"{what} is served by a FUSE program, which decides what a sync does")
    if mount.is_volatile:
        doubts.append(f"{what} is mounted with volatile: syncs are skipped")
    barrier = sorted(_NO_BARRIER.intersection(mount.options))
    if barrier:
        doubts.append(f"{what} is mounted with {barrier[0]}: the disk's cache is not flushed")
    return tuple(doubts)


def quota_doubts(mount: Mount | None) -> tuple[str, ...]:
    """Return which quotas may leave less than statvfs tells on this mount; empty if none may."""
    if mount is None:
        return ("the file system is not known",)
    what = f"{mount.fs_type} at {mount.point}"
    if mount.is_fuse or mount.fs_type in _HOST_DECIDES or mount.fs_type in _SERVED:
        return (f"{what}: quotas of its server are not visible",)
    if mount.fs_type == "btrfs":
        return (f"{what}: limits of qgroups are not visible",)
    if any(_QUOTA.fullmatch(option) for option in mount.options):
        return (f"{what}: quotas of users and groups are on, and not visible",)
    return ()


def find_mount(fd: int, calls: Syscalls) -> Mount | None:
    """Return the mount that a descriptor is on, or None if /proc does not list it."""
    try:
        return parse_mounts(calls.read_proc("mountinfo")).get(mount_number(fd, calls))
    except OSError:
        return None


def mount_number(fd: int, calls: Syscalls) -> int:
    """Return the mount id of a descriptor, 0 if the kernel does not report it.

    A bind mount within one file system has the same device number as its parent directory. Only the
    mount id distinguishes it from an ordinary directory.
    """
    try:
        lines = calls.read_proc(f"fdinfo/{fd}").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("mnt_id:")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def parse_mounts(text: str) -> dict[int, Mount]:
    """Parse a mountinfo file; return the mounts by id, and skip malformed lines."""
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
