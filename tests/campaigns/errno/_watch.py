"""Sees every call of the product to a storage that fails, and what it was answered."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

from stepseal.errors import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Buffer, Self

    from stepseal.storage import Storage, WriteHandle

__all__ = ["Watch"]

_OF_ATTEMPT = re.compile(r"\.stepseal/staging/step-\d+\.\d+\.([0-9a-f]{32})(/.*)?")


class Watch:
    """Passes everything on, and notes what was refused.

    Args:
        inner: storage that fails on purpose.
    """

    def __init__(self, inner: Storage) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._refused: dict[str, list[str]] = {}
        self._unsynced: set[str] = set()
        self._violations: list[str] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the verb
        return getattr(self._inner, name)

    def create_file(self, key: str) -> WriteHandle:
        """Create a file whose calls are watched."""
        return _WatchedFile(self.call("create_file", key, self._inner.create_file), key, self)

    def sync_dir(self, key: str) -> None:
        """Note a refusal."""
        self.call("sync_dir", key, self._inner.sync_dir)

    def make_dir(self, key: str) -> None:
        """Note a refusal."""
        self.call("make_dir", key, self._inner.make_dir)

    def call(self, verb: str, key: str, run: Callable[[str], Any]) -> Any:  # noqa: ANN401
        """Make a call, and note a refusal."""
        if verb == "sync" and key in self._unsynced:
            self._violations.append(f"retried: {key} was synced again after a sync that failed")
        try:
            return run(key)
        except StorageUnavailable as error:
            with self._lock:
                if verb == "sync":
                    self._unsynced.add(key)
                match = _OF_ATTEMPT.fullmatch(key)
                expected = verb == "make_dir" and isinstance(error, FileExistsError)
                if match is not None and not expected:
                    self._refused.setdefault(match[1], []).append(f"{verb} {key}")
            raise

    def failures_of(self, attempt: str) -> list[str]:
        """Return the calls on files of an attempt that were refused."""
        return self._refused.get(attempt, [])

    def violations(self) -> list[str]:
        """Return every retried sync."""
        return self._violations


class _WatchedFile:
    def __init__(self, inner: WriteHandle, key: str, watch: Watch) -> None:
        self._inner = inner
        self._key = key
        self._watch = watch
        self._closed = False

    def write(self, data: Buffer, offset: int) -> None:
        self._watch.call("write", self._key, lambda _: self._inner.write(data, offset))

    def sync(self) -> None:
        self._watch.call("sync", self._key, lambda _: self._inner.sync())

    def close(self) -> None:
        self._watch.call("close", self._key, lambda _: self._inner.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except StorageUnavailable:
            if exc is None:
                raise
