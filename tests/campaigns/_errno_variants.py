"""Broken handling of storage errors, each of which the errno campaign must notice."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepseal import errors
from stepseal.commit import _actions as actions
from stepseal.commit._save_round import SaveRound
from stepseal.errors import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Buffer, Self

    from stepseal.commit._messages import Cause
    from stepseal.storage import Storage, WriteHandle

__all__ = ["VARIANTS", "Variant"]

_STEP = ".stepseal/staging/step-10.1.*"
_PAYLOAD = f"{_STEP}/__0_0.distcp#1"
_CURSOR = f"{_STEP}/components/cursor/trainer/1.json#1"


@dataclass(frozen=True)
class Variant:
    """A mistake, and the fault that shows it."""

    kind: str = "EIO"
    at: tuple[str, ...] = ()
    sticky: bool = False
    patch: Callable[[], None] = lambda: None
    wrap: Callable[[Storage], Storage] = lambda storage: storage
    deadline_s: float = 15.0


class _Ignoring:
    """A storage whose files do not tell of some errors.

    Args:
        inner: the storage.
        verbs: what is never refused.
        retries: a sync that failed is tried again, and then believed.
    """

    def __init__(self, inner: Storage, verbs: frozenset[str], *, retries: bool = False) -> None:
        self._inner = inner
        self._verbs = verbs
        self._retries = retries

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the verb
        return getattr(self._inner, name)

    def create_file(self, key: str) -> WriteHandle:
        return _IgnoringFile(self._inner.create_file(key), self._verbs, retries=self._retries)

    def sync_dir(self, key: str) -> None:
        try:
            self._inner.sync_dir(key)
        except StorageUnavailable:
            if "sync_dir" not in self._verbs:
                raise


class _IgnoringFile:
    def __init__(self, inner: WriteHandle, verbs: frozenset[str], *, retries: bool) -> None:
        self._inner = inner
        self._verbs = verbs
        self._retries = retries

    def write(self, data: Buffer, offset: int) -> None:
        self._do("write", lambda: self._inner.write(data, offset))

    def sync(self) -> None:
        self._do("sync", self._inner.sync)

    def close(self) -> None:
        self._do("close", self._inner.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _do(self, verb: str, run: Callable[[], None]) -> None:
        try:
            run()
        except StorageUnavailable:
            if verb not in self._verbs:
                raise
            if self._retries:
                with suppress(StorageUnavailable):
                    run()


def _ignoring(*verbs: str, retries: bool = False) -> Callable[[Storage], Storage]:
    def wrap(storage: Storage) -> Storage:
        return _Ignoring(storage, frozenset(verbs), retries=retries)

    return wrap


def _tell_only_who_failed() -> None:
    """An abort is told to the participants that failed, and to nobody else."""
    abort = SaveRound._abort

    def abort_quietly(
        self: SaveRound, failures: Mapping[str, Cause], where: str
    ) -> list[actions.Action]:
        todo = abort(self, failures, where)
        return [a for a in todo if not isinstance(a, actions.Send) or a.to in failures]

    SaveRound._abort = abort_quietly  # type: ignore[method-assign]


def _raise_as_is() -> None:
    """What the storage said reaches the caller as a builtin error."""
    init = errors.CheckpointError.__init__

    def without_errno(self: errors.CheckpointError, message: str, **context: Any) -> None:  # noqa: ANN401
        for name in ("errno", "path"):
            context.pop(name, None)
        init(self, message.split("[")[0].split("operation")[0], **context)

    errors.CheckpointError.__init__ = without_errno  # type: ignore[method-assign]


VARIANTS = {
    "none": Variant(),
    "close-ignored": Variant(at=(f"close {_PAYLOAD}",), wrap=_ignoring("close")),
    "sync-ignored": Variant(at=(f"sync {_PAYLOAD}",), wrap=_ignoring("sync")),
    "sync-of-directory-ignored": Variant(at=(f"sync_dir {_STEP}#1",), wrap=_ignoring("sync_dir")),
    "sync-of-root-ignored": Variant(
        at=("sync_dir #8",), sticky=True, wrap=_ignoring("sync_dir")
    ),
    "sync-retried-and-believed": Variant(
        at=(f"sync {_PAYLOAD}",), wrap=_ignoring("sync", retries=True)
    ),
    "full-disk-ignored-in-part": Variant(
        "ENOSPC", (f"write {_CURSOR}",), wrap=_ignoring("write", "sync")
    ),
    "full-disk-ignored-in-manifest": Variant(
        "torn-write", (f"write {_STEP}/manifest.json#1",), wrap=_ignoring("write", "sync")
    ),
    "failure-not-carried": Variant(
        at=(f"write {_CURSOR}",), patch=_tell_only_who_failed, deadline_s=2.0
    ),
    "errno-dropped": Variant(at=(f"write {_CURSOR}",), patch=_raise_as_is),
}  # fmt: skip
