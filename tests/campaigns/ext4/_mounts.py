"""Loop devices and mounts that cannot be left behind.

A process that mounts first gets a mount namespace of its own, and its loop devices are released
with their last descriptor: however it ends, SIGKILL included, the kernel takes all of it away.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import signal
import struct
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

__all__ = [
    "MEMORY",
    "LoopDevice",
    "die_with_parent",
    "mounted",
    "own_namespace",
    "unmount",
    "why_not",
]

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | (1 << 18)
_PR_SET_PDEATHSIG = 1
_LOOP_CONFIGURE, _LOOP_CTL_GET_FREE = 0x4C0A, 0x4C82
_AUTOCLEAR = 4
_BLKFLSBUF = 0x1261
_BUSY_S = 5.0
MEMORY = "/dev/shm"


def why_not(filesystem: str) -> str | None:
    """Return why this machine cannot mount recorded disks, or None if it can."""
    if os.geteuid() != 0:
        return "needs root, to mount"
    for device in ("/dev/fuse", "/dev/loop-control", MEMORY):
        if not os.path.exists(device):
            return f"needs {device}"
    if shutil.which(f"mkfs.{filesystem}") is None:
        return f"needs mkfs.{filesystem}"
    if filesystem not in Path("/proc/filesystems").read_text().split():
        return f"needs a kernel with {filesystem}"
    try:
        import mfusepy  # noqa: F401 - it looks for libfuse when it is imported
    except (ImportError, OSError) as error:
        return f"needs mfusepy and libfuse3: {error}"
    child = os.fork()
    if child == 0:
        os._exit(_try_namespace())
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        return "needs the right to mount: unshare(CLONE_NEWNS) was refused"
    return None


def _try_namespace() -> int:
    try:
        own_namespace()
    except OSError:
        return 1
    return 0


def own_namespace() -> None:
    """Give this process, and those that it starts from now on, mounts that nobody else sees.

    Among them is `MEMORY`, empty, whose files go the same way.
    """
    _check(_LIBC.unshare(_CLONE_NEWNS), "unshare")
    _check(_LIBC.mount(None, b"/", None, _MS_REC_PRIVATE, None), "make mounts private")
    _check(_LIBC.mount(b"tmpfs", MEMORY.encode(), b"tmpfs", 0, b"size=4g"), f"mount {MEMORY}")


def die_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends."""
    _check(_LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


class LoopDevice:
    """A block device whose bytes are those of a file.

    Args:
        backing: the file; may be changed while the device is not mounted, followed by `reread`.
    """

    def __init__(self, backing: Path) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC
        self._backing = os.open(backing, flags)
        info = struct.pack("=5Q4I64s64s32s2Q", *[0] * 8, _AUTOCLEAR, b"", b"", b"", 0, 0)
        config = struct.pack("=II", self._backing, 0) + info + bytes(64)
        with open("/dev/loop-control", "rb+", buffering=0) as control:
            while True:  # somebody else may take the free one first
                self.path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
                self._fd = os.open(self.path, flags)
                try:
                    fcntl.ioctl(self._fd, _LOOP_CONFIGURE, config)
                    break
                except OSError as error:
                    os.close(self._fd)
                    if error.errno != errno.EBUSY:
                        raise

    def reread(self) -> None:
        """Forget what the kernel has cached of the device."""
        fcntl.ioctl(self._fd, _BLKFLSBUF)

    def close(self) -> None:
        """Release the device."""
        os.close(self._fd)
        os.close(self._backing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def mounted(device: str, at: Path, filesystem: str, options: str) -> Iterator[None]:
    """Keep a device mounted; nothing below `at` may be open afterwards."""
    arguments = (device.encode(), os.fsencode(at), filesystem.encode(), 0, options.encode())
    _check(_LIBC.mount(*arguments), f"mount {device} ({filesystem}, {options})")
    try:
        yield
    finally:
        unmount(at)


def unmount(at: Path) -> None:
    """Unmount what nobody uses any more."""
    started = time.monotonic()
    while True:
        try:
            return _check(_LIBC.umount2(os.fsencode(at), 0), f"unmount {at}")
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() - started > _BUSY_S:
                raise
        time.sleep(0.01)  # a thread that has just ended may hold the last descriptor
