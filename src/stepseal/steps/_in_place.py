"""Removes folders where they lie, if the storage refuses to move them.

A folder of the lower layer of an overlay cannot be renamed (EXDEV). On copy-on-write file systems
at their quota, a rename needs room, and an unlink does not (EDQUOT, ENOSPC). The manifest goes
first, durably: a folder without it is no step, whatever else is left of it.

Before a step loses its manifest, an empty folder in the trash names it. So the next prune finishes
a removal that a crash interrupted. If there is no room for that folder, the rest of the step stays
until somebody removes it.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING

from stepseal.errors import CheckpointError, StorageUnavailable
from stepseal.layout import MANIFEST, MAX_MANIFEST_BYTES, decode_manifest
from stepseal.steps._roots import TRASH
from stepseal.storage import KeyNotFound, exists, put_if_absent, read_bytes, remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.steps._folders import FolderName
    from stepseal.storage import Storage

__all__ = ["FULL", "cannot_move", "finish_in_place", "remove_in_place", "retire_in_place"]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of storage without room."""


def cannot_move(error: StorageUnavailable) -> bool:
    """Return whether the folder may have to be removed where it lies: no later rename will work."""
    return error.errno == errno.EXDEV or error.errno in FULL


def remove_in_place(storage: Storage, key: str) -> None:
    """Remove a folder that belongs to nobody any more, its manifest first. Idempotent."""
    with suppress(KeyNotFound):
        storage.remove_file(f"{key}/{MANIFEST}")
        storage.sync_dir(key)
    with suppress(KeyNotFound):
        remove_tree(storage, key)


def retire_in_place(
    storage: Storage, name: FolderName, look: Callable[[], str], sync: Callable[[str], None]
) -> str:
    """Remove a step, or a publication, at its final name; put its manifest back if it must stay.

    Args:
        storage: the root.
        name: of the folder, with the time of the removal.
        look: returns why the step must stay; empty if it may be removed.
        sync: makes the names in a folder durable.

    Returns:
        Why it stays; empty if it was removed.

    Raises:
        KeyNotFound: it is not there any more.
    """
    manifest = f"{name.place}/{MANIFEST}"
    data = read_bytes(storage, manifest, MAX_MANIFEST_BYTES)
    if decode_manifest(data).attempt != name.attempt:
        return "another attempt has taken its place"
    if reasons := look():
        return reasons
    try:
        storage.make_dir(_note(name))
        sync(TRASH)
    except StorageUnavailable as error:
        if error.errno not in FULL:
            raise
    storage.remove_file(manifest)
    sync(name.place)
    try:
        reasons = look()
    except CheckpointError:
        _put_back(storage, name, data)
        raise
    if reasons:
        _put_back(storage, name, data)
    else:
        finish_in_place(storage, name, sync)
    return reasons


def finish_in_place(storage: Storage, name: FolderName, sync: Callable[[str], None]) -> None:
    """Remove what is left of a step that began to be removed in place, unless it is whole again."""
    if not exists(storage, f"{name.place}/{MANIFEST}"):
        with suppress(KeyNotFound):
            remove_tree(storage, name.place)
        sync(name.area.folder)
    _forget(storage, name)


def _put_back(storage: Storage, name: FolderName, data: bytes) -> None:
    put_if_absent(storage, f"{name.place}/{MANIFEST}", data)
    _forget(storage, name)


def _forget(storage: Storage, name: FolderName) -> None:
    with suppress(KeyNotFound):  # there was no room for it, or another prune was faster
        storage.remove_dir(_note(name))


def _note(name: FolderName) -> str:
    return f"{TRASH}/{name.with_fate('.in-place')}"
