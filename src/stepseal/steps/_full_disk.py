"""Room for the few bytes by which a start takes its place, on a disk that older starts filled.

What a killed save left in staging is swept after the claim; but a lease and a claim need a block
each. Where none is free, the sweep comes first.
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
    """Return what `write` returns; on a full disk, sweep what older starts staged, and try again.

    Coordinator only, for the lease and the claim of a start. It is about to supersede every claim
    that there is, so that staging of all of them goes: a save of an older start that still runs is
    aborted, never half committed.

    Args:
        storage: the root.
        write: writes a few bytes; may be called twice.

    Raises:
        StorageUnavailable: refused; on a disk that is still full it says what to remove.
    """
    try:
        return write()
    except StorageUnavailable as error:
        if error.errno not in _FULL:
            raise
        _log.warning(
            "stepseal: no room to take over this root, so what earlier starts left in %s is "
            "removed now: %s",
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
            f"start of the job: expected room for one lease and one claim, found none, also after "
            f"a sweep of {STAGING}: {error} Remove steps that you do not need "
            f"(`stepseal prune`), what lies in {SUPERSEDED}, or other files of this disk; then "
            "start again.",
            path=error.path,
            errno=error.errno,
        ) from error


def _sweep_all(storage: Storage) -> None:
    """Remove staging of every incarnation up to the newest claim; a failure is only logged."""
    try:
        newest = newest_claim(storage)
        sweep(storage, 1 if newest is None else newest.incarnation + 1)
    except StorageUnavailable as error:  # what could be removed was, and that may be enough
        _log.warning("stepseal: not all of %s could be removed: %s", STAGING, error)
