"""A foreign DCP folder as the candidate of a restore with `unverified=True`.

Steps of stepseal come first: a foreign folder is chosen only if the caller gives its number, or if
the root has no step. The folder needs a step's name and a `.metadata` file; its contents are not
verified.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from stepseal.errors import InvalidInput, StepNotFound
from stepseal.layout import DCP_INDEX, MAX_DCP_INDEX_BYTES, StepRef, parse_step_name, sha256_hex
from stepseal.steps._catalog import list_foreign, list_steps, read_step
from stepseal.storage import KeyNotFound, read_bytes

if TYPE_CHECKING:
    from collections.abc import Collection

    from stepseal.steps._catalog import StepEntry
    from stepseal.storage import Storage

__all__ = ["offer_foreign", "refuse_dcp_root", "warn_of_foreign"]

_log = logging.getLogger("stepseal")
_MAX_NAMED = 8


def offer_foreign(storage: Storage, step: int | None, exclude: Collection[int]) -> StepRef | None:
    """Return the foreign folder to restore from; None if the ordinary rules must choose.

    Args:
        storage: the root.
        step: number of the step; None for the newest.
        exclude: steps that were tried and failed.

    Raises:
        StepNotFound: the given step does not exist, or the root is empty.
        InvalidInput: the root is a DCP folder itself.
        Corrupt: its `.metadata` is not a readable file.
        StorageUnavailable: the root cannot be read.
    """
    if step is not None:
        entries = [read_step(storage, step, None)]
    else:
        entries = list(reversed(list_steps(storage)))
        if any(entry.is_commit for entry in entries):
            return None
    for entry in entries:
        if entry.is_commit or entry.step in exclude:
            continue
        sha256 = _index_digest(storage, entry)
        if sha256 is not None:
            return StepRef(entry.step, sha256, 0)
    if step is None and not exclude:
        refuse_dcp_root(storage)
        raise StepNotFound(
            f"restore(unverified=True): expected a folder step-N with {DCP_INDEX} in this root, "
            f"found {_named(_foreign_folders(storage))}. Check the path; rename a DCP folder to "
            "step-N, or `stepseal import --from dcp` it. Without the flag this is a fresh start."
        )
    return None


def refuse_dcp_root(storage: Storage) -> None:
    """Refuse a root that is a DCP folder itself; otherwise it would look like an empty root.

    Raises:
        InvalidInput: the root contains `.metadata`.
    """
    try:
        storage.stat(DCP_INDEX)
    except KeyNotFound:
        return
    raise InvalidInput(
        f"{DCP_INDEX} is in the root itself: expected a folder of steps, found one DCP "
        "checkpoint. Use its parent folder as root, and rename the checkpoint to step-N. Nothing "
        "was created in it.",
        path=DCP_INDEX,
    )


def warn_of_foreign(storage: Storage) -> None:
    """Warn once that a fresh start ignores checkpoints of other libraries."""
    found = _foreign_folders(storage)
    if found:
        _log.warning(
            "stepseal: fresh start; ignored folders that stepseal did not write: %s. If they hold "
            "DCP checkpoints, restore(unverified=True) resumes from the newest step-N, and "
            "`stepseal import --from dcp` turns one into a step of a new root.",
            _named(found),
        )


def _foreign_folders(storage: Storage) -> list[str]:
    """Return the folders that look like checkpoints, in a root without a step of stepseal."""
    others = {entry.name for entry in list_foreign(storage)}
    return [
        entry.name
        for entry in storage.list_dir("")
        if entry.kind == "directory"
        and (parse_step_name(entry.name) is not None or entry.name in others)
    ]


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{', '.join(names[:_MAX_NAMED])}{more}" if names else "none"


def _index_digest(storage: Storage, entry: StepEntry) -> str | None:
    """Return the SHA-256 of the folder's `.metadata`, None if there is no such file."""
    try:
        if storage.stat(entry.name).kind != "directory":
            return None
        key = f"{entry.name}/{DCP_INDEX}"
        return sha256_hex(read_bytes(storage, key, MAX_DCP_INDEX_BYTES))
    except KeyNotFound:
        return None
