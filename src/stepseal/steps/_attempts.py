"""Folders of attempts: created for a save, removed after an abort, swept after a crash.

This module never deletes a committed step. A commit by exchange leaves the superseded step, for an
instant, under the attempt's staging name. So a folder is first moved to the trash and then
inspected: a folder that does not belong to the attempt goes to the superseded area.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.errors import Corrupt, IncompatibleFormat, StorageUnavailable
from stepseal.layout import MANIFEST, MAX_MANIFEST_BYTES, Area, decode_manifest
from stepseal.steps._folders import FolderName, parse_folder
from stepseal.steps._in_place import cannot_move, remove_in_place
from stepseal.steps._owners import own_process
from stepseal.steps._roots import STAGING, SUPERSEDED, TRASH
from stepseal.storage import KeyExists, KeyNotFound, create_durable, read_bytes, remove_tree

if TYPE_CHECKING:
    from stepseal.storage import Storage

__all__ = [
    "NONCE", "AttemptFolder", "aside_key", "attempt_at", "begin", "discard", "put_aside", "sweep",
    "to_trash",
]  # fmt: skip

NONCE = ".nonce"
"""File in a staging folder; a participant that can read it sees the coordinator's root.

Its text: the nonce, a space, and the process that owns the attempt, for people."""


@dataclass(frozen=True, slots=True)
class AttemptFolder:
    """A new attempt's folder."""

    key: str
    nonce: str
    """First word of the nonce file; a participant that reads it sees the same root."""


def begin(
    storage: Storage, step: int, incarnation: int, attempt: str, area: Area = Area.STEPS
) -> AttemptFolder:
    """Make an attempt's staging folder, with a nonce that participants use to recognise the root.

    Raises:
        StorageUnavailable: the storage refused; the folder is discarded, or swept by the next
            incarnation.

    Durability: the folder's name is durable; the nonce need not be.
    """
    key = f"{STAGING}/{FolderName(step, incarnation, attempt, area=area)}"
    nonce = secrets.token_hex(16)
    try:
        storage.make_dir(key)
        storage.sync_dir(STAGING)
        create_durable(storage, f"{key}/{NONCE}", f"{nonce} {own_process()}".encode())
    except KeyExists:
        raise  # not made here
    except StorageUnavailable:
        with suppress(StorageUnavailable):  # the first error is the one to report
            discard(storage, key)
        raise
    return AttemptFolder(key, nonce)


def attempt_at(storage: Storage, key: str) -> str | None:
    """Return the attempt that the manifest in a folder names, or None without a sound manifest.

    Raises:
        StorageUnavailable: the folder cannot be read.
    """
    try:
        data = read_bytes(storage, f"{key}/{MANIFEST}", MAX_MANIFEST_BYTES)
        return decode_manifest(data).attempt
    except (KeyNotFound, Corrupt, IncompatibleFormat):
        return None


def aside_key(staging: str) -> str:
    """Return a new, unique key for the step that an attempt supersedes."""
    return f"{SUPERSEDED}/{_moved(staging)}"


def put_aside(storage: Storage, staging: str) -> None:
    """Move a superseded step from staging to the superseded area.

    Raises:
        StorageUnavailable: the storage refused; `sweep` does it later.
    """
    storage.rename(staging, aside_key(staging))
    storage.sync_dir(SUPERSEDED)
    storage.sync_dir(STAGING)


def to_trash(storage: Storage, staging: str) -> str:
    """Move a staging folder to the trash, under a name that no participant knows; return its key.

    Raises:
        KeyNotFound: the folder does not exist.
        StorageUnavailable: the storage refused.
    """
    trash = f"{TRASH}/{_moved(staging)}"
    storage.rename(staging, trash)
    return trash


def discard(storage: Storage, staging: str) -> None:
    """Remove an aborted attempt's folder: move it to the trash, then delete it. Idempotent.

    If it cannot be moved, it is deleted where it lies.

    Raises:
        StorageUnavailable: something could not be removed; it stays in the trash or in staging,
            harmless, until it is swept.
    """
    try:
        trash = to_trash(storage, staging)
    except KeyNotFound:
        return  # never made, or removed by an earlier try
    except StorageUnavailable as error:
        if not cannot_move(error) or _is_superseded(storage, staging):
            raise
        remove_in_place(storage, staging)
        return
    _delete(storage, trash)


def sweep(storage: Storage, incarnation: int) -> tuple[str, ...]:
    """Remove the attempts of older incarnations from staging, and leftovers from the trash.

    Coordinator only, after its claim; may run concurrently with its own discards. Names that
    stepseal did not give and attempts of newer incarnations are left alone.

    Returns:
        Names of the folders that were removed from staging.

    Raises:
        StorageUnavailable: something could not be listed or removed; everything else was removed.
    """
    failures: list[StorageUnavailable] = []
    removed = []
    for entry in storage.list_dir(STAGING):
        name = parse_folder(entry.name, None)
        if name is None or name.moved_at_s is not None or name.incarnation >= incarnation:
            continue
        if entry.kind != "directory":
            continue
        try:
            discard(storage, f"{STAGING}/{entry.name}")
            removed.append(entry.name)
        except StorageUnavailable as error:
            failures.append(error)
    for entry in storage.list_dir(TRASH):
        name = parse_folder(entry.name, None)
        if name is None or name.moved_at_s is None or name.fate or name.incarnation > incarnation:
            continue
        try:
            _delete(storage, f"{TRASH}/{entry.name}")
        except StorageUnavailable as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return tuple(removed)


def _delete(storage: Storage, trash: str) -> None:
    """Delete a folder in the trash, unless it is a step that the named attempt superseded."""
    if _is_superseded(storage, trash):
        storage.rename(trash, f"{SUPERSEDED}/{parse_folder(trash, None)}")
        storage.sync_dir(SUPERSEDED)
        return
    with suppress(KeyNotFound):  # another process has already removed it
        remove_tree(storage, trash)


def _is_superseded(storage: Storage, key: str) -> bool:
    """Return whether a folder holds the step that the attempt in its name has superseded."""
    name = parse_folder(key, None)
    assert name is not None
    held = attempt_at(storage, key)
    if held is None:  # no sound manifest: abandoned early, or a damaged step that was superseded
        return attempt_at(storage, name.place) == name.attempt
    return held != name.attempt


def _moved(staging: str) -> FolderName:
    name = parse_folder(staging, None)
    assert name is not None
    return name.moved(time.time())
