"""Finds out whether an attempt was committed, for a participant that lost its coordinator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stepseal.errors import StepNotFound, StorageUnavailable
from stepseal.layout import Area
from stepseal.steps._catalog import read_step
from stepseal.steps._claims import newest_claim
from stepseal.steps._folders import parse_folder
from stepseal.steps._hidden import find_pruned
from stepseal.storage import exists

if TYPE_CHECKING:
    from stepseal.storage import Storage

__all__ = ["Resolved", "resolve_attempt"]


@dataclass(frozen=True, slots=True)
class Resolved:
    """The state of an attempt on storage."""

    state: Literal["committed", "not committed", "unknown"]
    manifest_sha256: str = ""
    """SHA-256 of the committed manifest; empty if there is none."""


_UNKNOWN = Resolved("unknown")


def resolve_attempt(storage: Storage, step: int, attempt: str, staging: str) -> Resolved:
    """Find out whether an attempt was committed: check the step, then staging, then the step again.

    A commit moves the folder from staging to the step's final name, maybe right now. So the attempt
    is known to be not committed only if staging is gone and the step is still missing. While the
    step is in the trash, the outcome is unknown, because the prune may put it back.

    A step at its final name can still be taken back if its staging folder exists, too, and a newer
    incarnation has claimed the root: the replaced coordinator undoes an exchange that displaced a
    step of the newer incarnation. Then the outcome is unknown.

    Raises:
        StorageUnavailable: the storage refused, or the step is damaged.

    Durability: a committed step is synced again, because the coordinator may have died before it
    synced it.
    """
    name = parse_folder(staging, None)
    area = Area.STEPS if name is None else name.area
    found = _look(storage, step, attempt, staging, area)
    if found.state == "committed":
        storage.sync_dir(area.folder)
    return found


def _look(storage: Storage, step: int, attempt: str, staging: str, area: Area) -> Resolved:
    found = _find(storage, step, attempt, area)
    if exists(storage, staging):
        if found is None or _is_replaced(storage, staging):
            return _UNKNOWN
        return found
    again = _find(storage, step, attempt, area)
    if again is not None:
        return again
    if found is not None or find_pruned(storage, step, attempt, area) is not None:
        return _UNKNOWN
    return _find(storage, step, attempt, area) or Resolved("not committed")  # it may be back by now


def _is_replaced(storage: Storage, staging: str) -> bool:
    """Return whether an incarnation newer than the attempt's has claimed the root."""
    name, claim = parse_folder(staging, None), newest_claim(storage)
    return name is None or (claim is not None and claim.incarnation > name.incarnation)


def _find(storage: Storage, step: int, attempt: str, area: Area) -> Resolved | None:
    try:
        entry = read_step(storage, step, None, area)
    except StepNotFound:
        return None
    if entry.state == "damaged":  # it may be our attempt
        raise StorageUnavailable(f"{entry.name}: {entry.problem}", step=step)
    if entry.manifest is None or entry.manifest.attempt != attempt:
        return None
    return Resolved("committed", entry.manifest_sha256)
