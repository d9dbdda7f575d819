"""Goes on where the mount under a root died and came back.

A descriptor of the old mount answers ENOTCONN (the FUSE program ended) or ESTALE (the server
exports anew) for ever, even if the file system has been mounted again. So between two attempts the
root is opened by its path once more. The old descriptor is replaced only if the path leads to the
same root, because an empty mountpoint or another volume may be there now.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, TypeVar

from stepseal.errors import CheckpointError, StorageUnavailable
from stepseal.layout import MARKER
from stepseal.storage import KeyNotFound, read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage import Storage

    Reopen = Callable[[Callable[[Storage], None]], None]
    """Opens the path of a root, calls a check with it, and uses it from now on if that returns."""

__all__ = ["Reopening"]

T = TypeVar("T")

_GONE = frozenset({errno.ENOTCONN, errno.ESTALE, errno.ECONNABORTED, errno.ESHUTDOWN})
_MAX_BYTES = 1 << 16


class Reopening:
    """What makes a root the same as before, and the way to open it again.

    Args:
        storage: the root.
        reopen: None if the storage cannot be opened again.
    """

    def __init__(self, storage: Storage, reopen: Reopen | None = None) -> None:
        self._storage = storage
        self._reopen = reopen
        self._known: dict[str, bytes | None] = {}

    def remember(self, *keys: str) -> None:
        """Read the documents that a root must have to be this one; the marker is one of them."""
        for key in (MARKER, *keys):
            try:
                self._known[key] = read_bytes(self._storage, key, _MAX_BYTES)
            except CheckpointError:
                self._known[key] = None  # then no root can prove to be the same

    def between_attempts(self, work: Callable[[], T]) -> T:
        """Do work, and once more if its mount died and the root is there again.

        Args:
            work: changes nothing if it fails; may be called twice.

        Raises:
            StorageUnavailable: the storage refused; the message says whether the mount died, and
                what to do.
        """
        try:
            return work()
        except StorageUnavailable as error:
            if error.errno not in _GONE or self._reopen is None:
                raise
            self._open_again(error, self._reopen)
        return work()

    def _open_again(self, death: StorageUnavailable, reopen: Reopen) -> None:
        try:
            reopen(self._require_same)
        except CheckpointError as error:
            raise StorageUnavailable(
                f"{death} The mount under the root died, and its path does not lead to this root "
                f"now: {error} Mount it again at the same path: the next save looks again. If "
                "another root is there, restart this process.",
                path=death.path,
                errno=death.errno,
            ) from error

    def _require_same(self, found: Storage) -> None:
        """Raise unless the documents are those that were remembered."""
        for key, expected in self._known.items():
            try:
                same = expected is not None and read_bytes(found, key, _MAX_BYTES) == expected
            except KeyNotFound:
                same = False
            if not same:
                raise StorageUnavailable(
                    f"{key}: expected the same bytes as before, found others or none.", path=key
                )
