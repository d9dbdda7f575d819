"""What became of an attempt, as a root shows it to a participant that lost its coordinator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stepseal.errors import StepNotFound, StorageUnavailable
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
    """What storage shows of an attempt."""

    state: Literal["committed", "not committed", "unknown"]
    manifest_sha256: str = ""
    """Of the committed step."""


_UNKNOWN = Resolved("unknown")


def resolve_attempt(storage: Storage, step: int, attempt: str, staging: str) -> Resolved:
    """Look at staging between two looks at the step's place.

    A commit moves the one to the other, and the coordinator may be doing so right now: only if
    staging is gone, and the step still does not stand in its place, it was not committed. Nor is
    that known while the step lies in the trash: a prune that moved it may put it back.

    What stands in its place may still leave it if staging is there, too, and a newer incarnation:
    a coordinator that was replaced takes back an exchange that put out a step of the newer one.

    Raises:
        StorageUnavailable: it cannot be told, also because the step in the place is damaged.

    Durability: a step that is found is synced here too, because the coordinator may have died
    before it did.
    """
    found = _look(storage, step, attempt, staging)
    if found.state == "committed":
        storage.sync_dir("")
    return found


def _look(storage: Storage, step: int, attempt: str, staging: str) -> Resolved:
    found = _find(storage, step, attempt)
    if exists(storage, staging):
        if found is None or _is_replaced(storage, staging):
            return _UNKNOWN
        return found
    again = _find(storage, step, attempt)
    if again is not None:
        return again
    if found is not None or find_pruned(storage, step, attempt) is not None:
        return _UNKNOWN
    return _find(storage, step, attempt) or Resolved("not committed")  # it may be back by now


def _is_replaced(storage: Storage, staging: str) -> bool:
    """Tell whether a newer incarnation than that of an attempt has claimed the root."""
    name, claim = parse_folder(staging), newest_claim(storage)
    return name is None or (claim is not None and claim.incarnation > name.incarnation)


def _find(storage: Storage, step: int, attempt: str) -> Resolved | None:
    try:
        entry = read_step(storage, step, None)
    except StepNotFound:
        return None
    if entry.state == "damaged":  # whose it was cannot be told: perhaps ours
        raise StorageUnavailable(f"{entry.name}: {entry.problem}", step=step)
    if entry.manifest is None or entry.manifest.attempt != attempt:
        return None
    return Resolved("committed", entry.manifest_sha256)
