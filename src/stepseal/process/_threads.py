"""Starts threads, and says which limit forbids one more.

Linux refuses a thread with EAGAIN, whichever limit is reached: that of the user, which all of its
processes share, that of a container or job, or that of the host. Python only says that it cannot
start one.
"""

from __future__ import annotations

import errno
import resource
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stepseal.errors import ParticipantFailed

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from typing_extensions import ParamSpec

    P = ParamSpec("P")

__all__ = ["Pool", "start_thread", "thread_limits"]

T = TypeVar("T")
_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
_OF_HOST = Path("/proc/sys/kernel/threads-max")


def start_thread(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        ParticipantFailed: no further thread can be had; the message names the limits.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise _refused(thread.name, error) from error


def _refused(name: str, error: RuntimeError) -> ParticipantFailed:
    return ParticipantFailed(
        f"thread {name}: {error}: expected room for one more, found {', '.join(thread_limits())}. "
        "Raise the limit that is reached (`ulimit -u`; pids.max of a container or job), or let "
        "fewer processes and threads run there.",
        errno=errno.EAGAIN,
    )


def thread_limits() -> list[str]:
    """Return every limit on threads that this process can see, as words."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    user = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    found = [f"ulimit -u {user} (threads of the user)"]
    for folder in _folders():
        with suppress(OSError):
            most = (folder / "pids.max").read_bytes().decode().strip()
            now = (folder / "pids.current").read_bytes().decode().strip()
            if most != "max":
                found.append(f"{folder}/pids.max {most} (now {now})")
    with suppress(OSError):
        found.append(f"{_OF_HOST.name} of the host {_OF_HOST.read_bytes().decode().strip()}")
    return found


def _folders() -> list[Path]:
    """Return the folders of the cgroups that may limit this process, its own first."""
    folders = []
    with suppress(OSError):
        for line in _GROUPS.read_bytes().decode().splitlines():
            _, names, path = line.split(":", 2)
            if names in ("", "pids"):
                base = _MOUNT / names
                own = base / path.lstrip("/")
                folders += [own, *(one for one in own.parents if one.is_relative_to(base))]
    return folders


class Pool(ThreadPoolExecutor):
    """A pool that says which limit forbids a thread, and then does not carry out the work later.

    Args:
        max_workers: most threads; the first one starts at once.
        name: first part of their names.

    Raises:
        ParticipantFailed: the first one cannot be had.
    """

    def __init__(self, max_workers: int, name: str) -> None:
        super().__init__(max_workers, name)
        self.submit(int).result()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Carry out a call on a thread of the pool.

        Raises:
            ParticipantFailed: no thread of the pool is free, and no further one can be had.
            RuntimeError: the pool was shut down.
        """
        refused: list[bool] = []

        def work(*args: P.args, **kwargs: P.kwargs) -> T:
            if refused:  # stayed in the queue
                raise AssertionError("nobody waits for this")
            return fn(*args, **kwargs)

        try:
            return super().submit(work, *args, **kwargs)
        except RuntimeError as error:
            refused.append(True)
            if self._shutdown:
                raise
            raise _refused(f"{self._thread_name_prefix}", error) from error
