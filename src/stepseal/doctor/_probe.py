"""Finds out what the file system of a directory really does, without touching a run in it.

Everything happens in a temporary folder with a random name. The folder is removed unless the
process is killed.
"""

from __future__ import annotations

import errno
import os
import secrets
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
    """Each of `ABILITIES` that is missing, to what happened instead."""
    mount: Mount | None
    sync_doubts: tuple[str, ...]
    """Why synced data may not survive power loss; manifests of a run here would record the same."""
    free_bytes: int | None
    """None if the file system does not tell."""
    free_doubts: tuple[str, ...]
    """Why there may be less."""
    clock_off_s: float
    """Time stamps of the file system minus this host's clock."""


def probe(
    path: str,
    *,
    access: Access | None = None,
    calls: Syscalls | None = None,
    clock: Callable[[], float] = time.time,
) -> Probe:
    """Test what a directory's file system really does; takes well below a second on a local disk.

    Args:
        path: an existing directory.
        access: whether other users may be able to change names in the directory.
        calls: the system calls; tests pass their own.
        clock: this host's wall clock.

    Raises:
        RootNotFound: the path does not exist.
        InvalidInput: the path is not a directory, or `access` refuses it.
        StorageUnavailable: no file or folder can be created in it, or the disk is full.
    """
    calls = calls or Syscalls()
    with (
        LocalStorage.open(path, access=access or Access(), calls=calls) as storage,
        work_folder(storage, secrets.token_hex(8)) as key,
    ):
        try:
            free = storage.free_space()
            return Probe(
                missing=_missing(storage, key, calls),
                mount=storage.mount(),
                sync_doubts=storage.sync_support().doubts,
                free_bytes=None if free is None else free.size_bytes,
                free_doubts=() if free is None else free.doubts,
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
    """Try each ability in its own directory; return the missing ones, and why."""
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
