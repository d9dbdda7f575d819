"""The temporary folder that the doctor works in; runs never read it."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from stepseal.errors import StorageUnavailable
from stepseal.layout import CONTROL
from stepseal.storage import KeyExists, exists

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stepseal.storage import LocalStorage

__all__ = ["work_folder"]


@contextmanager
def work_folder(storage: LocalStorage, name: str) -> Iterator[str]:
    """Make or find a folder, and yield its key; remove it on exit if it is empty.

    In a root, the folder is inside the control folder; elsewhere, it is a hidden folder.
    """
    key = f"{CONTROL}/doctor-{name}" if exists(storage, CONTROL) else f"{CONTROL}-doctor-{name}"
    try:
        with suppress(KeyExists):  # another participant of a meeting made it
            storage.make_dir(key)
        yield key
    finally:
        with suppress(StorageUnavailable):  # another participant still uses it
            storage.remove_dir(key)
