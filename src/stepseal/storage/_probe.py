"""Finds out what the file system of a directory really honours, without touching a run in it.

Everything happens in a folder of its own with a random name: in the home that the caller names,
else in a hidden folder of the directory. It is removed whatever happens, short of the death of the
process.
"""

from __future__ import annotations

import errno
import os
import secrets
import statistics
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from stepseal.errors import StorageUnavailable
from stepseal.storage._access import DEFAULT_ACCESS
from stepseal.storage._compose import remove_tree
from stepseal.storage._local import LocalStorage
from stepseal.storage._mounts import find_mount, sync_doubts
from stepseal.storage._probe_checks import CHECKS, CREATE, NotHonoured, Place
from stepseal.storage._probe_processes import PROCESS_CHECKS
from stepseal.storage._probe_values import ABILITIES, Finding, Probe
from stepseal.storage._refusals import refused
from stepseal.storage._syscalls import Syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stepseal.storage._access import Access
    from stepseal.storage._probe_values import Ability

__all__ = ["meeting_folder", "probe", "work_folder"]

_NUM_SYNCS = 9
_HIDDEN = ".stepseal-doctor"
_MOST_TRIES = 100
_NOT_TOLD = frozenset({errno.ETIMEDOUT, errno.ECHILD, errno.ENOSPC, errno.EDQUOT, errno.EMFILE})
"""Errors that say nothing about an ability."""


def probe(
    path: str,
    *,
    home: str = "",
    access: Access = DEFAULT_ACCESS,
    calls: Syscalls | None = None,
    clock: Callable[[], float] = time.time,
) -> Probe:
    """Look at what a directory's file system really does.

    Forks a few processes; takes well below a second on a local disk.

    Args:
        path: an existing directory.
        home: key of the folder to work in, made where its parent is a directory and removed again;
            a hidden folder of `path` where it is not, or where this is empty.
        access: whether it may be one in which others can change names.
        calls: answers for the kernel; tests pass their own.
        clock: this host's wall clock.

    Raises:
        RootNotFound: nothing is there.
        InvalidInput: it is no directory, or `access` refuses it.
        StorageUnavailable: nothing can be made in it.
    """
    calls = calls or Syscalls()
    with (
        LocalStorage.open(path, access=access) as storage,
        work_folder(storage, home) as key,
        _opened(storage, key) as fd,
    ):
        findings = tuple(_find(ability, fd, calls) for ability in ABILITIES)
        mount = find_mount(fd, calls)
        space = calls.statvfs(fd)
        skew_s, error_s = _clock_skew(fd, clock)
        return Probe(
            path=storage.root,
            findings=findings,
            mount=mount,
            sync_doubts=sync_doubts(mount),
            free_bytes=space.f_bavail * space.f_frsize,
            free_inodes=space.f_favail if space.f_files else None,
            quota=f"{', '.join(mount.quotas)} on" if mount and mount.quotas else None,
            fsync_s=_fsync_time(fd, calls),
            clock_skew_s=skew_s,
            clock_skew_error_s=error_s,
        )


@contextmanager
def _opened(storage: LocalStorage, key: str) -> Iterator[int]:
    """Yield a descriptor of a directory; what the kernel refuses meanwhile is told of the probe."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(os.path.join(storage.root, key), flags)
        try:
            yield fd
        finally:
            os.close(fd)
    except StorageUnavailable:
        raise
    except OSError as error:
        raise refused("probe", key, storage.root, error) from error


@contextmanager
def work_folder(storage: LocalStorage, home: str) -> Iterator[str]:
    """Make an empty folder in the home, as `probe` has it; remove it and all in it afterwards."""
    home = _usable(storage, home)
    name = secrets.token_hex(8)
    key = f"{home}/{name}" if home else f"{_HIDDEN}-{name}"
    try:
        _make(storage, home, key)
        yield key
    finally:
        with suppress(FileNotFoundError):
            remove_tree(storage, key)
        _leave(storage, home)


@contextmanager
def meeting_folder(storage: LocalStorage, home: str, name: str) -> Iterator[str]:
    """Make or find the folder of a meeting in the home; whoever leaves it empty removes it."""
    home = _usable(storage, home)
    key = f"{home}/meet-{name}" if home else f"{_HIDDEN}-meet-{name}"
    try:
        _make(storage, home, key)
        yield key
    finally:
        _leave(storage, key)
        _leave(storage, home)


def _usable(storage: LocalStorage, home: str) -> str:
    parent = home.rpartition("/")[0]
    try:
        return home if parent and storage.stat(parent).kind == "directory" else ""
    except FileNotFoundError:
        return ""


def _make(storage: LocalStorage, home: str, key: str) -> None:
    for _ in range(_MOST_TRIES):
        try:
            if home:
                with suppress(FileExistsError):
                    storage.make_dir(home)
            with suppress(FileExistsError):  # of a meeting: another participant made it
                storage.make_dir(key)
        except FileNotFoundError:
            continue  # another doctor has just left, and took the home with it
        return
    storage.make_dir(key)


def _leave(storage: LocalStorage, key: str) -> None:
    if key:
        with suppress(StorageUnavailable):  # somebody else is at work in it
            storage.remove_dir(key)


def _find(ability: Ability, fd: int, calls: Syscalls) -> Finding:
    """Ask for one ability, in a directory of its own."""
    try:
        for number, checks in enumerate((CHECKS, PROCESS_CHECKS)):
            if ability in checks:
                name = f"{ability}-{number}"
                os.mkdir(name, 0o700, dir_fd=fd)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                inner = os.open(name, flags, dir_fd=fd)
                try:
                    checks[ability](Place(inner, calls))
                finally:
                    os.close(inner)
    except NotHonoured as error:
        return Finding(ability, honoured=False, detail=str(error))
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, str(error.errno))
        told = error.errno not in _NOT_TOLD
        return Finding(ability, honoured=False if told else None, detail=code)
    return Finding(ability, honoured=True)


def _fsync_time(fd: int, calls: Syscalls) -> float | None:
    """Return the median time of a sync, or None where there is none."""
    times = []
    try:
        file = calls.open("fsync-time", CREATE, 0o600, dir_fd=fd)
        try:
            for turn in range(_NUM_SYNCS):
                calls.pwrite(file, bytes(4096), 4096 * turn)
                started = time.perf_counter()
                calls.fsync(file)
                times.append(time.perf_counter() - started)
        finally:
            calls.close(file)
    except OSError:
        return None
    return statistics.median(times)


def _clock_skew(fd: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Return the file system's time stamp of now minus our clock, and how far that may be off."""
    before = clock()
    os.mkdir("clock", 0o700, dir_fd=fd)
    after = clock()
    stamp = os.stat("clock", dir_fd=fd).st_mtime
    return stamp - (before + after) / 2, (after - before) / 2 + 0.01
