"""Frees space for a lease and a claim on a disk that earlier starts of the job filled.

Leftovers of killed saves are normally swept after the claim. But a lease and a claim need a disk
block each. If the disk is full, the sweep runs first.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, TypeVar

from stepseal.errors import StorageUnavailable
from stepseal.steps._attempts import sweep
from stepseal.steps._claims import newest_claim
from stepseal.steps._roots import STAGING, SUPERSEDED

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage import Storage

__all__ = ["retry_after_sweep"]

T = TypeVar("T")

_log = logging.getLogger("stepseal")
_FULL = (errno.ENOSPC, errno.EDQUOT)


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
        if error.errno not in _FULL:
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
        if error.errno not in _FULL:
            raise
        raise StorageUnavailable(
            f"start of the job: expected space for one lease and one claim, found none, even after "
            f"a sweep of {STAGING}: {error} Remove steps that you do not need "
            f"(`stepseal prune`), folders in {SUPERSEDED}, or other files on this disk; then "
            "start again.",
            path=error.path,
            errno=error.errno,
        ) from error


def _sweep_all(storage: Storage) -> None:
    """Remove staging of every incarnation up to the newest claim; a failure is only logged."""
    try:
        newest = newest_claim(storage)
        sweep(storage, 1 if newest is None else newest.incarnation + 1)
    except StorageUnavailable as error:  # the rest was removed, and that may be enough
        _log.warning("stepseal: not all of %s could be removed: %s", STAGING, error)
