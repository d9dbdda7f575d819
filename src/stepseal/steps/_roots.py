"""The control folders and the marker of a root; the first coordinator creates them."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from stepseal.errors import RootNotFound
from stepseal.layout import CONTROL, FORMAT_VERSION, MARKER, seal
from stepseal.steps._catalog import read_marker
from stepseal.steps._claims import INCARNATIONS
from stepseal.steps._foreign import refuse_dcp_root
from stepseal.steps._leases import LEASES
from stepseal.steps._pins import PINS
from stepseal.storage import make_dirs, put_if_absent

if TYPE_CHECKING:
    from stepseal.storage import Storage

__all__ = ["STAGING", "SUPERSEDED", "TRASH", "initialise_root"]

STAGING = f"{CONTROL}/staging"
"""Folder of attempts that are being written."""
SUPERSEDED = f"{CONTROL}/superseded"
"""Folder of steps that a commit has superseded."""
TRASH = f"{CONTROL}/trash"
"""Folder of steps and attempts that wait for their deletion."""
_FOLDERS = (INCARNATIONS, STAGING, SUPERSEDED, LEASES, PINS, TRASH)


def initialise_root(storage: Storage) -> str:
    """Create missing control folders and the format marker; return the run id.

    Coordinator only. Idempotent, and safe against another coordinator doing the same.

    Raises:
        InvalidInput: the root is a DCP folder itself; nothing was changed.
        IncompatibleFormat: the root was made by a newer format version; nothing was changed.
        Corrupt: the marker is damaged, or missing although there are steps; nothing was changed.
        StorageUnavailable: the root cannot be written.
    """
    try:
        run_id = read_marker(storage)
    except RootNotFound:
        refuse_dcp_root(storage)
        run_id = ""
    for folder in _FOLDERS:
        make_dirs(storage, folder)
    if run_id:
        return run_id
    body = {"format_version": FORMAT_VERSION, "run_id": secrets.token_hex(16)}
    put_if_absent(storage, MARKER, seal(body))
    return read_marker(storage)
