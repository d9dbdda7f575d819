"""Finds out what the file system of a directory really honours, without touching a run in it.

Everything happens in a folder of its own with a random name. It is removed whatever happens, short
of the death of the process.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.doctor._checks import CHECKS, NotHonoured, Place
from stepseal.doctor._folder import work_folder
from stepseal.errors import StorageUnavailable
from stepseal.storage import Access, LocalStorage, Mount, Syscalls, refused, remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Probe", "probe"]

_NOT_TOLD = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE})
"""Errors that say nothing about an ability."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a directory's file system really does."""

    missing: dict[str, str]
    """Each of `ABILITIES` that is not there, to what was seen instead."""
    mount: Mount | None
    sync_doubts: tuple[str, ...]
    """Why syncs may not survive power loss, as the manifests of a run here would have it."""
    free_bytes: int
    clock_off_s: float
    """Time stamps of the file system minus this host's clock."""


def probe(
    path: str,
    *,
    access: Access | None = None,
    calls: Syscalls | None = None,
    clock: Callable[[], float] = time.time,
) -> Probe:
    """Look at what a directory's file system really does; well below a second on a local disk.

    Args:
        path: an existing directory.
        access: whether it may be one in which others can change names.
        calls: answers for the kernel; tests pass their own.
        clock: this host's wall clock.

    Raises:
        RootNotFound: nothing is there.
        InvalidInput: it is no directory, or `access` refuses it.
        StorageUnavailable: nothing can be made in it, or there is no room to try.
    """
    calls = calls or Syscalls()
    with (
        LocalStorage.open(path, access=access or Access(), calls=calls) as storage,
        work_folder(storage, secrets.token_hex(8)) as key,
    ):
        try:
            return Probe(
                missing=_missing(storage, key, calls),
                mount=storage.mount(),
                sync_doubts=storage.sync_support().doubts,
                free_bytes=shutil.disk_usage(storage.root).free,
                clock_off_s=_clock_off(storage, key, clock),
            )
        except StorageUnavailable:
            raise
        except OSError as error:
            raise refused("probe", key, storage.root, error) from error
        finally:
            with suppress(FileNotFoundError):
                remove_tree(storage, key)


def _missing(storage: LocalStorage, key: str, calls: Syscalls) -> dict[str, str]:
    """Try each ability in a directory of its own; return what is not there, and why."""
    missing = {}
    for ability, check in CHECKS.items():
        storage.make_dir(f"{key}/{ability}")
        try:
            check(Place(storage, f"{key}/{ability}", calls))
        except NotHonoured as error:
            missing[ability] = str(error)
        except OSError as error:
            if error.errno in _NOT_TOLD:
                raise
            missing[ability] = errno.errorcode.get(error.errno or 0, str(error))
    return missing


def _clock_off(storage: LocalStorage, key: str, clock: Callable[[], float]) -> float:
    storage.make_dir(f"{key}/clock")
    return os.stat(os.path.join(storage.root, key, "clock")).st_mtime - clock()
