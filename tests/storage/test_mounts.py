"""What the mount says about syncs, and that it reaches who asks the storage."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from stepseal.storage import LocalStorage, Mount
from stepseal.storage._mounts import parse_mounts, sync_doubts
from stepseal.storage._syscalls import Syscalls

if TYPE_CHECKING:
    from pathlib import Path

    from tests.storage.conftest import FakeCalls

_LINE = "36 35 98:0 /sub /runs\\040here rw,noatime master:1 shared:7 - {0} /dev/sda1 {1}\n"


class Mounted(Syscalls):
    """A root on a mount of this type, with these options."""

    def __init__(self, fs_type: str, options: str = "rw") -> None:
        self._line = _LINE.format(fs_type, options)

    def read_proc(self, name: str) -> str:
        return self._line if name == "mountinfo" else "pos:\t0\nflags:\t02\nmnt_id:\t36\n"


def doubts(root: Path, calls: Syscalls) -> tuple[str, ...]:
    with LocalStorage.open(root, calls=calls) as storage:
        return storage.sync_support().doubts


def test_mountinfo_is_read_with_optional_fields_and_escapes() -> None:
    text = _LINE.format("ext4", "rw,nobarrier") + "broken\n" + "1 0 0:1 / / rw - proc proc rw\n"
    assert parse_mounts(text) == {
        36: Mount("ext4", "/runs here", "/dev/sda1", ("rw", "noatime", "nobarrier")),
        1: Mount("proc", "/", "proc", ("rw",)),
    }


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs", "overlay", "nfs4", "lustre"])
def test_file_systems_that_honour_syncs_raise_no_doubt(root: Path, fs_type: str) -> None:
    assert doubts(root, Mounted(fs_type)) == ()


@pytest.mark.parametrize(
    ("fs_type", "options", "reason"),
    [
        ("tmpfs", "rw", "in memory"),
        ("ramfs", "rw", "in memory"),
        ("fuse.sshfs", "rw", "served by a FUSE program"),
        ("fuse", "rw", "served by a FUSE program"),
        ("9p", "rw", "served by a FUSE program"),
        ("overlay", "rw,volatile", "syncs are skipped"),
        ("overlay", "rw,fsync=volatile", "syncs are skipped"),
        ("ext4", "rw,nobarrier", "not flushed"),
        ("ext3", "rw,barrier=0", "barrier=0"),
    ],
)
def test_each_doubt_has_its_reason(root: Path, fs_type: str, options: str, reason: str) -> None:
    (found,) = doubts(root, Mounted(fs_type, options))
    assert reason in found
    assert fs_type in found


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_directories_that_cannot_be_synced_are_a_doubt_that_stays(
    faked: LocalStorage, calls: FakeCalls, number: int
) -> None:
    before = faked.sync_support().doubts
    calls.fsync_dir_error = calls.error(number)
    for _ in range(2):
        faked.sync_dir("")
    calls.fsync_dir_error = None
    faked.sync_dir("")
    facts = faked.sync_support()
    assert facts.durability == "best-effort"
    (added,) = set(facts.doubts) - set(before)
    assert errno.errorcode[number] in added


def test_a_proc_that_does_not_tell_is_no_doubt_and_no_error(root: Path) -> None:
    class Blind(Syscalls):
        def read_proc(self, name: str) -> str:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    assert doubts(root, Blind()) == ()


def test_the_real_mount_of_a_directory_is_found(storage: LocalStorage, root: Path) -> None:
    from stepseal.storage._mounts import find_mount

    fd = os.open(root, os.O_RDONLY)
    try:
        mount = find_mount(fd, Syscalls())
    finally:
        os.close(fd)
    assert mount is not None
    assert str(root).startswith(mount.point)
    assert storage.sync_support().doubts == sync_doubts(mount)


@pytest.mark.parametrize(
    ("fs_type", "is_layered"),
    [
        *(("overlay", True), ("fuse.fuse-overlayfs", True), ("fuse.mergerfs", True)),
        *(("aufs", True), ("ext4", False), ("nfs4", False), ("fuse.sshfs", False)),
    ],
)
def test_which_mounts_have_layers(fs_type: str, is_layered: bool) -> None:
    assert Mount(fs_type, "/", "none", ()).is_layered is is_layered
