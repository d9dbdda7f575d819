"""Savers that leave out a sync, or do it too late: what the power-loss campaigns must catch.

What a journal hides is not among them: ext4 and xfs commit all removals of one small folder at
once, so that a step which is pruned in place is seldom half there. The crash campaign catches it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.campaigns.kill._variants import VARIANTS as PROTOCOLS
from tests.campaigns.kill._variants import Variant, Wrapped

from stepseal.layout import parse_step_name
from stepseal.storage import LocalStorage, walk_files

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Buffer, Self

    from stepseal.storage import Storage, WriteHandle

__all__ = ["LYING_DISK", "VARIANTS", "caught_as"]

LYING_DISK = "lying-disk"
"""The real saver, on a disk that answers to a flush before it has carried it out."""
_CAUGHT_AS = frozenset({"damaged", "values", "lost"})


class _Unsynced:
    """A file of which `sync` does nothing."""

    def __init__(self, inner: WriteHandle) -> None:
        self._inner = inner

    def write(self, data: Buffer, offset: int) -> None:
        self._inner.write(data, offset)

    def sync(self) -> None: ...

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _NoFileSync(Wrapped):
    def create_file(self, key: str) -> WriteHandle:
        return _Unsynced(self.inner.create_file(key))


class _NoDirSync(Wrapped):
    def sync_dir(self, key: str) -> None: ...


class _NoRootSync(Wrapped):
    """The step is told of before its name is durable.

    Any sync on ext4 makes every name durable, so that nothing is synced until the next attempt.
    """

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self._visible = False

    def make_dir(self, key: str) -> None:
        self._visible = False
        self.inner.make_dir(key)

    def rename(self, source: str, target: str, *, replace: bool = False) -> None:
        self.inner.rename(source, target, replace=replace)
        self._visible = self._visible or parse_step_name(target) is not None

    def create_file(self, key: str) -> WriteHandle:
        file = self.inner.create_file(key)
        return _Unsynced(file) if self._visible else file

    def sync_dir(self, key: str) -> None:
        if not self._visible:
            self.inner.sync_dir(key)


class _NothingSynced(_NoFileSync, _NoDirSync):
    pass


class _SyncAfterRename(_NoFileSync):
    """The files of a step are synced when it is visible already."""

    def rename(self, source: str, target: str, *, replace: bool = False) -> None:
        self.inner.rename(source, target, replace=replace)
        self._sync(target)

    def exchange(self, first: str, second: str) -> None:
        self.inner.exchange(first, second)
        self._sync(second)

    def _sync(self, key: str) -> None:
        if parse_step_name(key) is None:
            return
        self.inner.sync_dir("")
        for path, _ in walk_files(self.inner, key):
            assert isinstance(self.inner, LocalStorage)
            fd = os.open(os.path.join(self.inner.root, key, path), os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


def _nothing() -> None: ...


VARIANTS = {
    "none": Variant(_nothing),
    "no-file-sync": Variant(_nothing, _NoFileSync, _CAUGHT_AS),
    "no-directory-sync": Variant(_nothing, _NoDirSync, _CAUGHT_AS),
    "acknowledged-before-root-sync": Variant(_nothing, _NoRootSync, _CAUGHT_AS),
    "nothing-synced": Variant(_nothing, _NothingSynced, _CAUGHT_AS),
    "rename-before-sync": Variant(_nothing, _SyncAfterRename, _CAUGHT_AS),
    "acknowledged-before-commit": PROTOCOLS["acknowledged-before-commit"],
    "pruned-before-commit": PROTOCOLS["pruned-before-commit"],
}


def caught_as(name: str) -> frozenset[str]:
    """Return the kinds of violation of which at least one must be reported."""
    return _CAUGHT_AS if name == LYING_DISK else VARIANTS[name].caught_as
