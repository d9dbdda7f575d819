"""Broken handling of storage errors, each of which the errno campaign must notice, and as what."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from tests.campaigns.kill._variants import Wrapped, trust_reports

from stepseal import errors
from stepseal.errors import StorageUnavailable
from stepseal.protocol import InProcessHub
from stepseal.protocol import _actions as actions
from stepseal.protocol._messages import Aborted
from stepseal.protocol._save_round import SaveRound
from stepseal.steps._pins import PINS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Buffer, Self

    from stepseal.protocol._messages import Failure, FromCoordinator
    from stepseal.storage import Entry, Storage, WriteHandle

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
    workload: str = "fresh"
    caught_as: frozenset[str] = frozenset({"false commit"})
    """Kinds of violation of which at least one must be reported."""


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
        self: SaveRound, failures: Mapping[str, Failure], where: str, then: str = ""
    ) -> list[actions.Action]:
        todo = abort(self, failures, where, then)
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


def _tell_one_no_reason() -> None:
    """Participant 1 is told that a save failed, and neither why nor where."""
    send = InProcessHub.send

    def send_without_reason(self: InProcessHub, participant: str, message: FromCoordinator) -> None:
        if isinstance(message, Aborted) and participant == "trainer/1":
            message = replace(message, message="it failed", failures={}, cause=None)
        send(self, participant, message)

    InProcessHub.send = send_without_reason  # type: ignore[method-assign]


class _Guardless(Wrapped):
    """A storage in which a folder of pins that could not be listed counts as empty from then on.

    The second look of a prune, which would put the step back, is blind with the first.
    """

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self._blind = False

    def list_dir(self, key: str) -> tuple[Entry, ...]:
        if key == PINS and self._blind:
            return ()
        try:
            return self.inner.list_dir(key)
        except StorageUnavailable:
            if key != PINS:
                raise
            self._blind = True
            return ()


VARIANTS = {
    "none": Variant(),
    "close-ignored": Variant(at=(f"close {_PAYLOAD}",), wrap=_ignoring("close")),
    "sync-ignored": Variant(at=(f"sync {_PAYLOAD}",), wrap=_ignoring("sync")),
    "sync-of-directory-ignored": Variant(at=(f"sync_dir {_STEP}#1",), wrap=_ignoring("sync_dir")),
    "sync-of-root-ignored": Variant(
        at=("sync_dir #8",), sticky=True, wrap=_ignoring("sync_dir"), caught_as=frozenset({"lost"})
    ),
    "sync-retried-and-believed": Variant(
        at=(f"sync {_PAYLOAD}",), wrap=_ignoring("sync", retries=True),
        caught_as=frozenset({"retried"}),
    ),
    # The coordinator's look at the files is taken away: it would refuse the step.
    "full-disk-ignored-in-part": Variant(
        "ENOSPC", (f"write {_CURSOR}",), patch=trust_reports, wrap=_ignoring("write", "sync")
    ),
    "full-disk-ignored-in-manifest": Variant(
        "torn-write", (f"write {_STEP}/manifest.json#1",), wrap=_ignoring("write", "sync"),
        caught_as=frozenset({"damaged"}),
    ),
    "failure-not-carried": Variant(
        at=(f"write {_CURSOR}",), patch=_tell_only_who_failed, deadline_s=2.0,
        caught_as=frozenset({"differ"}),
    ),
    "errno-dropped": Variant(
        at=(f"write {_CURSOR}",), patch=_raise_as_is, caught_as=frozenset({"no errno"})
    ),
    "reason-told-to-one": Variant(
        at=(f"write {_CURSOR}",), patch=_tell_one_no_reason, caught_as=frozenset({"no errno"})
    ),
    "unreadable-pins-are-none": Variant(
        at=tuple(f"list_dir {PINS}#{number}" for number in range(1, 5)),
        wrap=_Guardless, workload="pruning", caught_as=frozenset({"guarded"}),
    ),
}  # fmt: skip
