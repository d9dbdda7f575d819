"""Real file systems for tests that need root: an overlay, and btrfs with a quota.

Each skips the test, with the reason, where the machine lacks what it needs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["btrfs_with_quota", "overlay_over", "run_or_skip"]

_DISK_BYTES = 160 << 20


@contextmanager
def overlay_over(lower: Path, folder: Path) -> Iterator[Path]:
    """Yield an overlay whose lower layer is `lower`, as the layers of a container image are.

    Args:
        lower: must not change meanwhile.
        folder: empty, for the upper layer and the mount.
    """
    names = ("upper", "work", "merged")
    for name in names:
        (folder / name).mkdir()
    upper, work, merged = (folder / name for name in names)
    options = f"lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=off"
    with _mounted(["-t", "overlay", "overlay", "-o", options], merged):
        yield merged


@contextmanager
def btrfs_with_quota(folder: Path, limit_bytes: int) -> Iterator[Path]:
    """Yield a btrfs subvolume that may hold `limit_bytes`, on a loop device.

    Args:
        folder: empty, for the image and the mount.
        limit_bytes: of the quota group.
    """
    for program in ("mkfs.btrfs", "btrfs"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here")
    image, mount = folder / "image", folder / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(_DISK_BYTES)
    run_or_skip("mkfs.btrfs", "-q", str(image))
    with _mounted(["-t", "btrfs", "-o", "loop", str(image)], mount):
        volume = str(mount / "volume")
        run_or_skip("btrfs", "quota", "enable", str(mount))
        run_or_skip("btrfs", "subvolume", "create", volume)
        run_or_skip("btrfs", "qgroup", "limit", str(limit_bytes), volume)
        yield mount / "volume"


@contextmanager
def _mounted(arguments: list[str], mountpoint: Path) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    run_or_skip("mount", *arguments, str(mountpoint))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(mountpoint)], check=True, timeout=60)


def run_or_skip(*command: str) -> None:
    """Run a program; skip the test if it refuses."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError as error:
        pytest.skip(f"{command[0]} cannot be run here: {error}")
    if done.returncode != 0:
        pytest.skip(f"{' '.join(command[:3])}: {done.stderr.strip()[-200:]}")
