"""Frees space on a disk that our own leftovers fill: for a start of the job, and for an attempt.

Leftovers of killed saves are normally swept after the claim. But a lease and a claim need a disk
block each. If the disk is full, the sweep runs first.
"""

from __future__ import annotations

import functools
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from stepseal.errors import StorageUnavailable
from stepseal.steps._attempts import discard, sweep
from stepseal.steps._claims import newest_claim
from stepseal.steps._folders import parse_folder
from stepseal.steps._in_place import FULL
from stepseal.steps._roots import STAGING, SUPERSEDED, TRASH
from stepseal.storage import KeyNotFound, remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stepseal.storage import Storage

__all__ = ["retry_after_discards", "retry_after_sweep"]

T = TypeVar("T")

_log = logging.getLogger("stepseal")


def retry_after_sweep(storage: Storage, write: Callable[[], T]) -> T:
    """Call `write`; on a full disk, sweep the staging folders of older starts and call it again.

    Coordinator only, for the lease and the claim of a start. The new claim replaces all existing
    ones, so all their staging folders may be removed. A save of an older start that still runs is
    aborted, never half committed.

    Args:
        storage: the root.
        write: writes a few bytes; may be called twice.

    Raises:
        StorageUnavailable: the storage refused; if the disk is still full, the message says what
            to remove.
    """
    try:
        return write()
    except StorageUnavailable as error:
        if error.errno not in FULL:
            raise
        _log.warning(
            "stepseal: the disk is full; removing leftovers of earlier starts in %s to claim this "
            "root: %s",
            STAGING,
            error,
        )
    _sweep_all(storage)
    try:
        return write()
    except StorageUnavailable as error:
        if error.errno not in FULL:
            raise
        raise StorageUnavailable(
            f"start of the job: expected space for one lease and one claim, found none, even after "
            f"a sweep of {STAGING}: {error} Remove steps that you do not need "
            f"(`stepseal prune`), folders in {SUPERSEDED}, or other files on this disk; then "
            "start again.",
            path=error.path,
            errno=error.errno,
        ) from error


def retry_after_discards(
    storage: Storage, write: Callable[[], T], incarnation: int, aborted: Iterable[str]
) -> T:
    """Call `write`; on a full disk, remove leftovers of older starts and of own aborted attempts.

    Then call it again. Coordinator only, for a new attempt.

    Args:
        storage: the root.
        write: makes the attempt's folder; may be called twice.
        incarnation: our own.
        aborted: keys of attempts of this life that were aborted, and may not be removed yet.

    Raises:
        StorageUnavailable: the storage refused.
    """
    try:
        return write()
    except StorageUnavailable as error:
        if error.errno not in FULL:
            raise
        _log.warning("stepseal: the disk is full; removing aborted saves: %s", error)
    for key in aborted:
        _only_log(functools.partial(discard, storage, key))
    _remove_leftovers(storage, incarnation)
    return write()


def _sweep_all(storage: Storage) -> None:
    """Remove staging of every incarnation up to the newest claim; a failure is only logged."""

    def remove() -> None:
        newest = newest_claim(storage)
        _remove_leftovers(storage, 1 if newest is None else newest.incarnation + 1)

    _only_log(remove)


def _remove_leftovers(storage: Storage, incarnation: int) -> None:
    """Remove staging of older incarnations, and what is left of steps that were being deleted."""
    _only_log(functools.partial(sweep, storage, incarnation))
    _only_log(functools.partial(_finish_deletions, storage))


def _finish_deletions(storage: Storage) -> None:
    names = [parse_folder(entry.name, None) for entry in storage.list_dir(TRASH)]
    dying = [name for name in names if name is not None and name.fate == ".deleting"]
    if dying:
        storage.sync_dir(TRASH)  # the process that renamed them may have died before its sync
    for name in dying:
        with suppress(KeyNotFound):  # a prune was faster
            remove_tree(storage, f"{TRASH}/{name}")


def _only_log(chore: Callable[[], object]) -> None:
    """Do a chore; a failure is only logged, because what was removed may be enough."""
    try:
        chore()
    except StorageUnavailable as error:
        _log.warning("stepseal: not all leftovers could be removed: %s", error)
