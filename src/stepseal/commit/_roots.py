"""A root's own folders: made by the first coordinator, found by everybody else."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from stepseal.commit._catalog import FORMAT_VERSION, read_marker
from stepseal.commit._claims import INCARNATIONS
from stepseal.errors import RootNotFound
from stepseal.layout import CONTROL, MARKER, seal
from stepseal.storage import make_dirs, put_if_absent

if TYPE_CHECKING:
    from stepseal.storage import Storage

__all__ = ["STAGING", "SUPERSEDED", "TRASH", "initialise_root"]

STAGING = f"{CONTROL}/staging"
SUPERSEDED = f"{CONTROL}/superseded"
TRASH = f"{CONTROL}/trash"
_FOLDERS = (INCARNATIONS, STAGING, SUPERSEDED, TRASH)


def initialise_root(storage: Storage) -> str:
    """Make the control folders and the format marker where they are missing; return the run id.

    Coordinator only. Idempotent, and safe against another coordinator doing the same.

    Raises:
        IncompatibleFormat: the root was made by a newer format version; nothing was changed.
        Corrupt: the marker is damaged; nothing was changed.
        StorageUnavailable: the root cannot be written.
    """
    try:
        run_id = read_marker(storage)
    except RootNotFound:
        run_id = ""
    for folder in _FOLDERS:
        make_dirs(storage, folder)
    if run_id:
        return run_id
    body = {"format_version": FORMAT_VERSION, "run_id": secrets.token_hex(16)}
    put_if_absent(storage, MARKER, seal(body))
    return read_marker(storage)
