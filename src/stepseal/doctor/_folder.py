"""Where the doctor is at work: a folder that no run looks into."""

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
    """Make or find a folder, and yield its key; whoever leaves it empty removes it.

    In a root it is in the folder that holds all but the steps, elsewhere it is a hidden one.
    """
    key = f"{CONTROL}/doctor-{name}" if exists(storage, CONTROL) else f"{CONTROL}-doctor-{name}"
    try:
        with suppress(KeyExists):  # another participant of a meeting made it
            storage.make_dir(key)
        yield key
    finally:
        with suppress(StorageUnavailable):  # somebody else is at work in it
            storage.remove_dir(key)
