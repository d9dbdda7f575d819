"""Finds steps that the storage refuses to move, before a job needs to move them.

A folder that came with a container image lies in the lower layer of an overlay, and its rename
fails (EXDEV), while other folders of the same file system can be renamed. A save that supersedes
such a step would fail, maybe hours after the restore. A prune can remove it without a rename.

The trial renames the step over a folder that is not empty, which a file system always refuses. The
error says why: the folder itself cannot be moved, or only not to there. Only for layered, local
file systems: a server may carry out a call late, when that folder is gone.
"""

from __future__ import annotations

import errno
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from stepseal.errors import StorageUnavailable
from stepseal.layout import step_name
from stepseal.steps._catalog import step_numbers
from stepseal.steps._folders import FolderName
from stepseal.steps._roots import TRASH
from stepseal.storage import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepseal.storage import Storage

__all__ = ["find_immovable", "require_movable"]


def require_movable(storage: Storage, parent: int | None) -> None:
    """Raise if a step that later saves may have to supersede cannot be moved.

    Args:
        storage: the root.
        parent: step that the job resumes from; None for a fresh start. Saves supersede steps above
            it.

    Raises:
        StorageUnavailable: such a step cannot be moved; `errno` is EXDEV.
    """
    above = [n for n in step_numbers(storage) if parent is None or n > parent]
    stuck = find_immovable(storage, above)
    if stuck:
        names = ", ".join(step_name(number) for number in stuck[:5])
        what = "a fresh start" if parent is None else f"restore of step {parent}"
        raise StorageUnavailable(
            f"{what}: later saves would have to supersede {names} ({len(stuck)} in all), which "
            "cannot be moved [EXDEV]: part of a container image, or of another file system. Copy "
            "the root to a volume (cp -a) and use the copy, or mount the overlay with "
            "redirect_dir=on.",
            path=step_name(stuck[0]),
            errno=errno.EXDEV,
        )


def find_immovable(storage: Storage, steps: Iterable[int]) -> list[int]:
    """Return the steps that cannot be renamed; none if that cannot be tried."""
    steps = list(steps)
    if not steps:
        return []
    trial = FolderName(0, 1, secrets.token_hex(16)).moved(time.time())  # swept after a crash
    full = f"{TRASH}/{trial}"
    stuck: list[int] = []
    with suppress(StorageUnavailable):  # a full disk, for example
        storage.make_dir(full)
        storage.make_dir(f"{full}/entry")
        stuck = [number for number in steps if _is_stuck(storage, number, full)]
    with suppress(StorageUnavailable):
        remove_tree(storage, full)
    return stuck


def _is_stuck(storage: Storage, number: int, full: str) -> bool:
    try:
        storage.rename(step_name(number), full, replace=True)
    except StorageUnavailable as error:
        return error.errno == errno.EXDEV
    storage.rename(full, step_name(number))  # a file system that replaces folders with entries
    return False
