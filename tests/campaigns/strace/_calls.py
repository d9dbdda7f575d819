"""Which system calls change a root: as our own layer makes them, and as strace saw them."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Self

    from stepseal.storage import ReadHandle, Storage, WriteHandle
    from stepseal.testing import Operation

__all__ = ["CHANGING", "Kinds", "OneThread", "kinds_of", "kinds_seen", "wait_attached", "why_not"]

Kinds = dict[str, int]
CHANGING = (
    "open", "openat", "openat2", "creat", "write", "writev", "pwrite64", "pwritev", "pwritev2",
    "fsync", "fdatasync", "sync_file_range", "ftruncate", "truncate", "fallocate", "mkdir",
    "mkdirat", "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat",
    "unlink", "unlinkat", "rmdir", "chmod", "fchmod", "fchmodat", "chown", "fchown", "fchownat",
    "utimensat", "setxattr", "fsetxattr", "removexattr", "mknod", "mknodat", "copy_file_range",
    "sendfile", "splice", "sync", "syncfs", "io_uring_setup", "io_uring_enter", "mmap",
)  # fmt: skip
"""Every call that can change a file system, or what hides such a call."""
_ATTACH_S = 20.0
_KIND = {
    "make_dir": "mkdirat",
    "create_file": "openat to create",
    "write": "pwrite64",
    "sync": "fsync",
    "sync_dir": "fsync",
    "link": "linkat",
    "rename": "rename",
    "exchange": "rename",
    "remove_file": "unlinkat",
    "remove_dir": "unlinkat",
}
_CREATES = re.compile("O_CREAT|O_TRUNC|O_WRONLY|O_RDWR")
_REFUSED_FLAG = re.compile(r"= -1 (EINVAL|ENOSYS|EOPNOTSUPP|EPERM)\b")
"""A write past the page cache that this file system cannot do, and that is made again without."""
_LINE = re.compile(r"\d+ +([a-z0-9_]+)\((.*)")


def kinds_of(operations: Iterable[Operation]) -> Kinds:
    """Return how many calls of each kind the operations of our layer stand for."""
    names = (operation.name for operation in operations)
    return dict(Counter(_KIND[name] for name in names if name in _KIND))


def kinds_seen(trace: str, root: str) -> Kinds:
    """Return how many calls of each kind on a root strace saw; making the root itself is none."""
    found: Counter[str] = Counter()
    for line in trace.splitlines():
        match = _LINE.match(line)
        if match is None or root not in match[2]:
            continue  # also the second line of a call that another thread interrupted
        kind = _kind(match[1], match[2], root)
        if kind:
            found[kind] += 1
    return dict(found)


def _kind(call: str, arguments: str, root: str) -> str:
    if call in ("open", "openat", "openat2"):
        return (
            f"{call} to create" if re.search(r"O_CREAT|O_TRUNC|O_WRONLY|O_RDWR", arguments) else ""
        )
    if call == "mkdir" and arguments.startswith(f'"{root}"'):
        return ""
    if call == "mmap" and not ("MAP_SHARED" in arguments and "PROT_WRITE" in arguments):
        return ""
    if call == "pwritev2":
        return "" if _REFUSED_FLAG.search(arguments) else "pwrite64"
    return "rename" if call in ("renameat", "renameat2") else call


class OneThread:
    """A storage all of whose calls are made on one thread.

    Args:
        make: makes the storage; called by `begin`, on that thread.
    """

    def __init__(self, make: Callable[[], Storage]) -> None:
        self._make = make
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="storage")
        self._inner: Storage | None = None

    def begin(self) -> None:
        """Make the storage."""
        self._inner = self._pool.submit(self._make).result()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the verb
        return _there(self._pool, getattr(self._inner, name))


class _Handle:
    def __init__(self, pool: ThreadPoolExecutor, inner: ReadHandle | WriteHandle) -> None:
        self._pool = pool
        self._inner = inner

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - its method
        found = getattr(self._inner, name)
        return _there(self._pool, found) if callable(found) else found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.submit(self._inner.__exit__, *exc).result()  # type: ignore[arg-type]


def _there(pool: ThreadPoolExecutor, call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - those of `call`
        found = pool.submit(call, *args, **options).result()
        return _Handle(pool, found) if hasattr(found, "__enter__") else found

    return run


def why_not() -> str | None:
    """Return why this machine cannot trace a job, or None if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    child = subprocess.Popen(["sleep", "60"])
    try:
        tried = subprocess.Popen(
            ["strace", "-qq", "-o", "/dev/null", "-p", str(child.pid)], stderr=subprocess.DEVNULL
        )
        if wait_attached(child.pid, tried):
            return None
        return "strace may not attach to a process here"
    finally:
        child.kill()
        child.wait()
        tried.wait()


def wait_attached(pid: int, tracer: subprocess.Popen[bytes]) -> bool:
    """Wait until a process is traced; False if that will not be."""
    end = time.monotonic() + _ATTACH_S
    while time.monotonic() < end and tracer.poll() is None:
        status = Path(f"/proc/{pid}/status").read_text()
        if "TracerPid:\t0\n" not in status:
            return True
        time.sleep(0.002)
    return False
