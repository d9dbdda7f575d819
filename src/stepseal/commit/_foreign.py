"""A foreign DCP folder as the candidate of a restore that asked for unverified ones.

Steps of stepseal always come first: such a folder is offered where its number was asked for, or
where the root holds no step at all. It is chosen by its name and by `.metadata` being there; what
is in it, nobody vouches for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.commit import _actions as actions
from stepseal.commit._catalog import list_steps, read_step
from stepseal.layout import DCP_INDEX, MAX_DCP_INDEX_BYTES, Lineage, sha256_hex
from stepseal.storage import KeyNotFound, read_bytes

if TYPE_CHECKING:
    from stepseal.commit._catalog import StepEntry
    from stepseal.storage import Storage

__all__ = ["offer_foreign"]


def offer_foreign(storage: Storage, action: actions.Select) -> actions.Selected | None:
    """Return the foreign folder to restore from; None where the ordinary rules must choose.

    Raises:
        StepNotFound: the step that was asked for is not there.
        Corrupt: its `.metadata` is no readable file.
        StorageUnavailable: the root cannot be read.
    """
    if action.step is not None:
        entries = [read_step(storage, action.step, None)]
    else:
        entries = list(reversed(list_steps(storage)))
        if any(entry.is_commit for entry in entries):
            return None
    for entry in entries:
        if entry.is_commit or entry.step in action.exclude:
            continue
        sha256 = _index_digest(storage, entry)
        if sha256 is not None:
            chosen = Lineage(entry.step, sha256, 0)
            return actions.Selected(
                action.call, chosen, "", has_commits=bool(action.exclude), unverified=True
            )
    return None


def _index_digest(storage: Storage, entry: StepEntry) -> str | None:
    """Return the SHA-256 of the folder's `.metadata`, None where there is no such file."""
    try:
        if storage.stat(entry.name).kind != "directory":
            return None
        key = f"{entry.name}/{DCP_INDEX}"
        return sha256_hex(read_bytes(storage, key, MAX_DCP_INDEX_BYTES))
    except KeyNotFound:
        return None
