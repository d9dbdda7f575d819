"""Real file systems for tests: an overlay, btrfs with a quota, FUSE, sshfs.

Each skips the test, with the reason, where the machine lacks what it needs.
"""

from __future__ import annotations

import getpass
import importlib
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Served", "btrfs_with_quota", "fuse_mount", "ntfs_mount", "overlay_over", "read_only",
    "run_or_skip", "sshfs_mount",
]  # fmt: skip

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
def read_only(path: Path) -> Iterator[None]:
    """Mount a directory read-only, over itself."""
    with _mounted(["--bind", str(path)], path):
        run_or_skip("mount", "-o", "remount,bind,ro", str(path))
        yield


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


# -- served by a program ---------------------------------------------------------------------


class Served:
    """A FUSE file system whose program can die and come back.

    Args:
        command: starts the program in the foreground.
        mountpoint: an empty directory.
    """

    def __init__(self, command: list[str], mountpoint: Path) -> None:
        self.mountpoint = mountpoint
        self._command = command
        self._program: subprocess.Popen[bytes] | None = None

    def come_back(self, options: str = "") -> None:
        """Mount it, with these options; skips the test if that is not possible here."""
        self.unmount()
        command = [*self._command, *(["-o", options] if options else [])]
        self._program = program = subprocess.Popen(command, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 20
        while not os.path.ismount(self.mountpoint):
            if program.poll() is not None or time.monotonic() > deadline:
                program.kill()
                _, said = program.communicate()
                pytest.skip(f"FUSE cannot be mounted here: {said.decode()[-200:]}")
            time.sleep(0.01)

    def die(self) -> None:
        """Let the program end without a word; the dead mount stays."""
        if self._program is not None:
            self._program.kill()
            self._program.communicate()
            self._program = None

    def unmount(self) -> None:
        """Remove the mount; the directory below it is seen again."""
        self.die()
        command = ["fusermount3", "-u", "-z", str(self.mountpoint)]
        subprocess.run(command, check=False, capture_output=True)


@contextmanager
def _served(command: list[str], mountpoint: Path) -> Iterator[Served]:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/fuse")
    if shutil.which("fusermount3") is None:
        pytest.skip("no fusermount3 here")
    served = Served(command, mountpoint)
    try:
        served.come_back()
        yield served
    finally:
        served.unmount()


@contextmanager
def fuse_mount(folder: Path, flags: str = "refuse") -> Iterator[Served]:
    """Yield a FUSE file system that shows an empty folder.

    Args:
        folder: empty.
        flags: `refuse` or `ignore`; see `_fuse_passthrough`.
    """
    try:
        importlib.import_module("mfusepy")
    except (ImportError, OSError) as error:  # OSError: there is no libfuse
        pytest.skip(f"no FUSE here: {error}")
    source, mountpoint = folder / "source", folder / "mount"
    source.mkdir()
    mountpoint.mkdir()
    script = str(Path(__file__).with_name("_fuse_passthrough.py"))
    with _served([sys.executable, script, str(source), str(mountpoint), flags], mountpoint) as fs:
        yield fs


@contextmanager
def ntfs_mount(folder: Path) -> Iterator[Served]:
    """Yield an NTFS, whose modes come from the options of the mount.

    Args:
        folder: empty.
    """
    if shutil.which("ntfs-3g") is None:
        pytest.skip("no ntfs-3g here")
    if os.geteuid() != 0:
        pytest.skip("only root can make loop devices")
    image, mountpoint = folder / "image", folder / "mount"
    mountpoint.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    run_or_skip("mkntfs", "-q", "-F", str(image))
    made = subprocess.run(["losetup", "-f", "--show", str(image)], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop devices here: {made.stderr.decode()}")
    device = made.stdout.decode().strip()
    command = ["ntfs-3g", device, str(mountpoint), "-o", "no_detach"]
    try:
        with _served(command, mountpoint) as fs:
            yield fs
    finally:
        run_or_skip("losetup", "-d", device)


@contextmanager
def sshfs_mount(folder: Path) -> Iterator[Served]:
    """Yield an sshfs that shows an empty folder of this machine, by an sshd of our own.

    Args:
        folder: empty.
    """
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if sshd is None or shutil.which("sshfs") is None:
        pytest.skip("no sshfs, or no sshd, here")
    source, mountpoint, keys = (folder / name for name in ("source", "mount", "keys"))
    for path in (source, mountpoint, keys):
        path.mkdir()
    for name in ("host", "user"):
        run_or_skip("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (keys / "config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {keys}/host\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {keys}/user.pub\nStrictModes no\nSubsystem sftp internal-sftp\n"
        "PermitRootLogin yes\n"
    )
    options = f"port={port},IdentityFile={keys}/user,StrictHostKeyChecking=no"
    options += ",UserKnownHostsFile=/dev/null,BatchMode=yes"
    place = f"{getpass.getuser()}@127.0.0.1:{source}"
    command = ["sshfs", "-f", place, str(mountpoint), "-o", options]
    server = subprocess.Popen([sshd, "-D", "-f", str(keys / "config")], stderr=subprocess.PIPE)
    try:
        _wait_for_port(server, port)
        with _served(command, mountpoint) as fs:
            yield fs
    finally:
        server.kill()
        server.communicate()


def _wait_for_port(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                server.kill()
                _, said = server.communicate()
                pytest.skip(f"sshd cannot be started here: {said.decode()[-200:]}")
            time.sleep(0.01)
        else:
            return
