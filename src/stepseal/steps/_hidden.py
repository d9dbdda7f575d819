"""Whole steps that were moved away from their final name, by a commit or by a prune.

A prune moves a step first and checks its protection second. Until the check, a `.pruned` folder in
the trash is a whole step that may be put back. A step that a commit superseded may be put back,
too, if the commit never completed.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from stepseal.errors import Corrupt, IncompatibleFormat, StorageUnavailable
from stepseal.layout import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Area,
    decode_manifest,
    manifest_digest,
    step_name,
)
from stepseal.steps._attempts import attempt_at
from stepseal.steps._catalog import read_folder
from stepseal.steps._claims import in_lineage, lineage_limits, newest_claim, read_claims
from stepseal.steps._folders import parse_folder
from stepseal.steps._leases import read_leases
from stepseal.steps._pins import read_pins
from stepseal.steps._roots import SUPERSEDED, TRASH
from stepseal.storage import KeyExists, KeyNotFound, read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from stepseal.layout import Manifest
    from stepseal.steps._folders import FolderName
    from stepseal.storage import Storage

    Inspect = Callable[[Storage, str, Manifest], Sequence[str]]

__all__ = ["hidden_commits", "find_pruned", "put_back_pruned", "put_back_resumable"]


def find_pruned(storage: Storage, step: int, attempt: str, area: Area = Area.STEPS) -> str | None:
    """Return the key of a whole attempt that a prune moved to the trash, or None.

    The folder may have the name of another attempt: the one that the prune intended to move.

    Raises:
        StorageUnavailable: the trash cannot be read.
    """
    for name in _pruned(storage, area):
        key = f"{TRASH}/{name}"
        if name.step == step and attempt_at(storage, key) == attempt:
            return key
    return None


def hidden_commits(storage: Storage) -> dict[str, str]:
    """Return committed steps that stepseal moved away from their final name, with the reason.

    With them, a root does not look empty between the two moves that supersede a step.

    Raises:
        StorageUnavailable: the root cannot be read.
    """
    found = {}
    for name in _names(storage, SUPERSEDED):
        if _is_commit(storage, f"{SUPERSEDED}/{name}", name.step):
            found[f"{SUPERSEDED}/{name}"] = "superseded by a commit that may not have completed"
    for name in _pruned(storage):
        if _is_commit(storage, f"{TRASH}/{name}", name.step):
            found[f"{TRASH}/{name}"] = "pruned, and incomplete or outside the lineage"
    return found


def put_back_pruned(storage: Storage, now_s: float) -> None:
    """Put back protected steps that a killed prune left in the trash.

    A prune moves a step first and checks its protection second. So it may have moved the parent of
    the newest claim, a step that was pinned or leased meanwhile, or a step that was committed in
    place of the intended one. If the prune is still running, this is harmless: it finds the step
    at its final name.

    Args:
        storage: the root.
        now_s: Unix time; leases that expired before are ignored.

    Raises:
        StorageUnavailable: the root cannot be read or written.
    """
    claim = newest_claim(storage)
    parent = None if claim is None else claim.parent
    protected = read_pins(storage) | read_leases(storage, now_s).keys()
    for name in _pruned(storage):
        # the prune has already put it back, or the step is damaged
        with suppress(KeyNotFound, Corrupt, IncompatibleFormat):
            data = read_bytes(storage, f"{TRASH}/{name}/{MANIFEST}", MAX_MANIFEST_BYTES)
            found = decode_manifest(data)
            is_parent = parent is not None and manifest_digest(data) == parent.manifest_sha256
            is_other = found.attempt != name.attempt
            if found.step == name.step and (is_parent or is_other or name.step in protected):
                _put_back(storage, name)


def put_back_resumable(
    storage: Storage,
    run_id: str,
    *,
    step: int | None,
    exclude: Collection[int],
    inspect: Inspect,
) -> bool:
    """Put back the newest whole, resumable step in the trash; return False if there is none.

    Called if no other step of the root can be resumed.

    Args:
        storage: the root.
        run_id: run that the step must belong to.
        step: number of the step, in any lineage; None for any step of the lineage.
        exclude: steps that were tried and failed.
        inspect: check of a step's files (types, sizes).

    Raises:
        StorageUnavailable: the root cannot be read or written.
    """
    limits = lineage_limits(read_claims(storage))
    for name in sorted(_pruned(storage), key=lambda name: name.step, reverse=True):
        if name.step in exclude or step not in (None, name.step):
            continue
        manifest = _whole(storage, name, run_id, inspect)
        if manifest is None:
            continue
        counts = manifest.resumable and in_lineage(limits, manifest.incarnation, name.step)
        if (counts or step is not None) and _put_back(storage, name):
            return True
    return False


def _whole(storage: Storage, name: FolderName, run_id: str, inspect: Inspect) -> Manifest | None:
    """Return the manifest of a step of this run in the trash; None if the step is not whole."""
    key = f"{TRASH}/{name}"
    with suppress(Corrupt, StorageUnavailable):  # skipped, like any damaged step
        found = read_folder(storage, key, name.step, run_id)
        if found.state == "committed" and found.manifest is not None:
            return None if inspect(storage, key, found.manifest) else found.manifest
    return None


def _put_back(storage: Storage, name: FolderName) -> bool:
    """Put a step back; False if it has left the trash, or its number is taken again."""
    try:
        storage.rename(f"{TRASH}/{name}", step_name(name.step))
    except (KeyNotFound, KeyExists):
        return False
    storage.sync_dir("")
    storage.sync_dir(TRASH)
    return True


def _pruned(storage: Storage, area: Area = Area.STEPS) -> list[FolderName]:
    return [name for name in _names(storage, TRASH, area) if name.fate == ".pruned"]


def _names(storage: Storage, place: str, area: Area = Area.STEPS) -> list[FolderName]:
    """Return the names of the folders that stepseal moved from an area to a place."""
    try:
        entries = storage.list_dir(place)
    except KeyNotFound:
        return []
    return [n for e in entries if (n := parse_folder(e.name, area)) and n.moved_at_s is not None]


def _is_commit(storage: Storage, key: str, step: int) -> bool:
    try:
        return read_folder(storage, key, step, None).is_commit
    except KeyNotFound:
        return False  # it was put back, or deleted
