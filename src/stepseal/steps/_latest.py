"""The newest step of the lineage, and the file `latest`, which names it for other programs.

stepseal itself never follows `latest`: it looks at the steps, newest first, and reads no manifest
below the one that it returns. Whoever removes a step repairs `latest` afterwards, if it names one
that is gone.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from stepseal.errors import Corrupt
from stepseal.layout import LATEST, parse_step_name, step_name
from stepseal.steps._catalog import look_again, read_step, step_numbers
from stepseal.steps._claims import in_lineage, lineage_limits, read_claims
from stepseal.storage import KeyNotFound, exists, read_bytes, replace_durable

if TYPE_CHECKING:
    from stepseal.steps._catalog import StepEntry
    from stepseal.storage import Storage

__all__ = ["newest_step", "point_latest", "repair_latest"]

_MAX_BYTES = 4096
_LOOKS = 16


def newest_step(storage: Storage, run_id: str) -> StepEntry | None:
    """Return the newest sound step of the lineage, or None; it may not be resumable.

    Args:
        storage: the root.
        run_id: run that the manifest must name.

    Raises:
        StorageUnavailable: the storage refused to list or read, or steps vanished on each try.
    """
    limits = lineage_limits(read_claims(storage))

    def look() -> StepEntry | None:
        for step in reversed(step_numbers(storage)):
            entry = read_step(storage, step, run_id)
            manifest = entry.manifest if entry.state == "committed" else None
            if manifest is not None and in_lineage(limits, manifest.incarnation, step):
                return entry
        return None

    return look_again(look)


def point_latest(storage: Storage, step: int) -> None:
    """Make `latest` name a step.

    Raises:
        StorageUnavailable: the storage refused.
    """
    replace_durable(storage, LATEST, f"{step_name(step)}\n".encode())


def repair_latest(storage: Storage, run_id: str) -> None:
    """If `latest` names a step that is gone, make it name the newest one left; else do nothing.

    A commit may move `latest` at the same time. It is visible before it does so: so after each
    change, the newest step is looked for again. If no step is left, `latest` is removed.

    Args:
        storage: the root.
        run_id: run of the steps.

    Raises:
        StorageUnavailable: the storage refused.
    """
    if not _dangles(storage):
        return
    pointed = None
    for _ in range(_LOOKS):
        newest = newest_step(storage, run_id)
        if newest is None:
            with suppress(KeyNotFound):
                storage.remove_file(LATEST)
            return
        if newest.step == pointed:
            return
        pointed = newest.step
        point_latest(storage, pointed)


def _dangles(storage: Storage) -> bool:
    """Return whether `latest` names a step, and there is none."""
    try:
        text = read_bytes(storage, LATEST, _MAX_BYTES)
    except (KeyNotFound, Corrupt):  # nothing to mislead by, or not made by stepseal
        return False
    name = text.decode("ascii", "replace").removesuffix("\n")
    return parse_step_name(name) is not None and not exists(storage, name)
