"""What is left for new bytes, as far as the file system tells."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests._mounts import btrfs_with_quota
from tests.storage.test_mounts import Mounted

from stepseal.storage import FreeSpace, LocalStorage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MB = 1 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "none", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_what_is_written_is_not_free_any_more(small: Path) -> None:
    with LocalStorage.open(small) as storage:
        assert storage.free_space() == FreeSpace(8 * MB)
        (small / "file").write_bytes(bytes(3 * MB))
        assert storage.free_space() == FreeSpace(5 * MB)


@pytest.mark.slow
def test_btrfs_does_not_tell_of_its_quotas_which_is_said(tmp_path: Path) -> None:
    with btrfs_with_quota(tmp_path, 16 * MB) as volume, LocalStorage.open(volume) as storage:
        found = storage.free_space()
        assert found is not None
        assert found.size_bytes > 16 * MB
        assert "limits of qgroups are not visible" in found.doubts[0]


@pytest.mark.parametrize(
    ("fs_type", "options", "doubt"),
    [
        ("btrfs", "rw", "qgroups"),
        ("ext4", "rw,quota,usrquota", "users and groups"),
        ("ext4", "rw,jqfmt=vfsv0,grpjquota=aquota.group", "users and groups"),
        ("xfs", "rw,gquota", "users and groups"),
        ("nfs4", "rw", "its server"),
        ("lustre", "rw", "its server"),
        ("fuse.sshfs", "rw", "its server"),
    ],
)
def test_a_quota_that_statvfs_does_not_tell_of_is_a_doubt(
    root: Path, fs_type: str, options: str, doubt: str
) -> None:
    with LocalStorage.open(root, calls=Mounted(fs_type, options)) as storage:
        found = storage.free_space()
    assert found is not None
    assert len(found.doubts) == 1
    assert doubt in found.doubts[0]


@pytest.mark.parametrize(
    ("fs_type", "options"), [("ext4", "rw"), ("xfs", "rw,noquota"), ("xfs", "rw,prjquota")]
)
def test_quotas_of_projects_are_in_what_statvfs_tells(
    root: Path, fs_type: str, options: str
) -> None:
    with LocalStorage.open(root, calls=Mounted(fs_type, options)) as storage:
        found = storage.free_space()
    assert found is not None
    assert found.doubts == ()


def test_a_file_system_that_tells_nothing_is_no_full_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda _: silent)
    with LocalStorage.open(root) as storage:
        assert storage.free_space() is None
