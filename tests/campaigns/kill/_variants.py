"""Broken commit protocols, each a small patch of one process: what the campaigns must catch.

Each is a mistake that a checkpoint library in the wild has made. Where a second safeguard of
stepseal would turn the mistake into a clean abort, the patch takes that away too and says so.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepseal.layout import MANIFEST, step_name
from stepseal.protocol import CoordinatorDriver, PartReport
from stepseal.protocol._actions import Publish
from stepseal.protocol._messages import Committed, Prepared
from stepseal.protocol._save_round import SaveRound
from stepseal.session._indexer import DcpIndexer
from stepseal.session._saving import PartWriter
from stepseal.steps import _attempts, _owned, _publish, _retire
from stepseal.steps._roots import STAGING
from stepseal.storage import KeyExists, create_durable, remove_tree
from stepseal.testing import MemoryStorage
from stepseal.transfer import write_part

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Buffer, Self

    from stepseal.layout import Area
    from stepseal.storage import Storage, WriteHandle

__all__ = ["VARIANTS", "Variant", "Wrapped", "replace", "trust_reports"]


@dataclass(frozen=True)
class Variant:
    """A protocol to run instead of the real one."""

    patch: Callable[[], None]
    """Break this process."""
    wrap: Callable[[Storage], Storage] = lambda storage: storage
    """Break the storage of one participant."""
    caught_as: frozenset[str] = frozenset({"damaged", "values"})
    """Kinds of violation of which at least one must be reported."""
    workload: str = "mixed"
    """The one that gives it occasion."""
    at: tuple[str, ...] = ()
    """Where it is known to show: operations before which a job of it must not die."""


def replace(owner: Any, name: str, new: object) -> None:  # noqa: ANN401 - a module or class
    """Put `new` in the place of an attribute, for the life of this process."""
    assert hasattr(owner, name), f"{owner}.{name} is gone: this variant would break nothing"
    setattr(owner, name, new)


class Wrapped:
    """A storage of which single verbs are replaced."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the verb
        return getattr(self.inner, name)


# -- commit before all prepared --------------------------------------------------------------------


def _commit_early() -> None:
    """The first PREPARED counts for everybody; what the others will write is known beforehand.

    The coordinator's own look at the files is taken away: it would refuse the step.
    """
    promised: dict[tuple[str, str], PartReport] = {}
    everybody = threading.Barrier(2)
    run, on_prepared = PartWriter._run, SaveRound.on_prepared

    def promise_and_run(self: PartWriter) -> None:
        write, participant = self._order, self._driver.participant
        assert write is not None
        scratch = MemoryStorage()
        scratch.make_dir("dry")
        ref = write_part(
            scratch,
            "dry",
            step=self._step,
            attempt=write.attempt,
            participant=participant,
            ordinal=write.ordinal,
            contents=self._contents,
            check_cancelled=lambda: None,
        )
        promised[write.attempt, participant] = PartReport(ref.path, ref.size_bytes, ref.sha256)
        everybody.wait()
        run(self)

    def on_first(self: SaveRound, participant: str, message: Prepared, now: float) -> list[Any]:
        todo = on_prepared(self, participant, message, now)
        for other in self.participants:
            known = promised[message.attempt, other]
            told = Prepared(message.call, message.attempt, known, message.digests)
            todo += on_prepared(self, other, told, now)
        return todo

    replace(PartWriter, "_run", promise_and_run)
    replace(SaveRound, "on_prepared", on_first)
    trust_reports()


def trust_reports() -> None:
    """The coordinator does not look at the files itself."""
    replace(DcpIndexer, "write_index", lambda _self, _storage, _staging, draft: draft)
    replace(DcpIndexer, "inspect", lambda *_args, **_options: ())


# -- names shared between attempts -----------------------------------------------------------------


def _share_names() -> None:
    """Every attempt of a step uses one folder, and goes on with the files that it finds there."""

    def begin(
        storage: Storage, step: int, _incarnation: int, attempt: str, _area: Area
    ) -> _attempts.AttemptFolder:
        key = f"{STAGING}/{step_name(step)}"
        with contextlib.suppress(KeyExists):
            storage.make_dir(key)
        storage.sync_dir(STAGING)
        create_durable(storage, f"{key}/{_attempts.NONCE}", attempt.encode())
        return _attempts.AttemptFolder(key, attempt)

    replace(_owned, "begin", begin)


class _Reusing(Wrapped):
    """Documents are written anew, data that is there already is kept: the upload is resumed."""

    def create_file(self, key: str) -> WriteHandle:
        try:
            return self.inner.create_file(key)
        except KeyExists:
            if ".stepseal/staging/" not in key:
                raise
            if "/components/" in key or key.endswith(".distcp"):
                return _Nothing()
            self.inner.remove_file(key)
            return self.inner.create_file(key)


class _Nothing:
    """Takes everything and stores nothing."""

    def write(self, data: Buffer, offset: int) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


# -- prepared before close -------------------------------------------------------------------------


class _Late(Wrapped):
    """Data files get their size at once, and their bytes only with `finish`."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.unwritten: list[_LateFile] = []

    def create_file(self, key: str) -> WriteHandle:
        if "/components/" not in key and not key.endswith(".distcp"):
            return self.inner.create_file(key)
        self.unwritten.append(_LateFile(self.inner.create_file(key)))
        return self.unwritten[-1]

    def finish(self) -> None:
        """Write, sync and close what is still open."""
        for file in self.unwritten:
            file.finish()
        self.unwritten.clear()


class _LateFile(_Nothing):
    def __init__(self, inner: WriteHandle) -> None:
        self._inner = inner
        self._pieces: list[tuple[bytes, int]] = []

    def write(self, data: Buffer, offset: int) -> None:
        piece = memoryview(data).tobytes()
        self._pieces.append((piece, offset))
        self._inner.write(bytes(len(piece)), offset)

    def finish(self) -> None:
        for data, offset in self._pieces:
            self._inner.write(data, offset)
        self._inner.sync()
        self._inner.close()


def _prepare_early() -> None:
    """PREPARED is said while files are open; the slowest writer finishes after the decision."""
    run = PartWriter._run

    def run_late(self: PartWriter) -> None:
        run(self)
        self._driver.wait_outcome(self._call, None)
        assert isinstance(self._storage, _Late)
        self._storage.finish()

    replace(PartWriter, "_run", run_late)


# -- more ------------------------------------------------------------------------------------------


def _acknowledge_early() -> None:
    """Everybody is told of success when the commit begins."""
    perform = CoordinatorDriver._perform

    def tell_and_perform(self: CoordinatorDriver, todo: list[Any]) -> None:
        for action in todo:
            if isinstance(action, Publish):
                for name in action.parts:
                    told = Committed(action.call, action.attempt, action.step, "0" * 64)
                    self._hub.send(name, told)
        perform(self, todo)

    replace(CoordinatorDriver, "_perform", tell_and_perform)


def _publish_by_copying() -> None:
    """The step's folder is made, then filled file by file, as a move between file systems does."""

    def commit(storage: Storage, staging: str, manifest: Any, *_: object) -> None:  # noqa: ANN401
        target = step_name(manifest.step)
        storage.make_dir(target)
        names = [entry.name for entry in storage.list_dir(staging)]
        for name in sorted(names, key=lambda name: name != MANIFEST):
            storage.rename(f"{staging}/{name}", f"{target}/{name}")
        storage.sync_dir("")
        storage.remove_dir(staging)

    replace(_publish, "_commit", commit)


def _supersede_by_deleting() -> None:
    """Without an exchange, what stands in the way is deleted before the rename."""

    def take_place(storage: Storage, staging: str, manifest: Any) -> None:  # noqa: ANN401 - as patched
        target = step_name(manifest.step)
        remove_tree(storage, target)
        storage.rename(staging, target)

    replace(_publish, "_take_place_in_two_moves", take_place)


# -- pruning ---------------------------------------------------------------------------------------


def _prune_in_place() -> None:
    """A step is deleted where it stands."""

    def remove_step(self: _retire.Retirement, manifest: Any) -> None:  # noqa: ANN401 - as patched
        remove_tree(self._storage, step_name(manifest.step))
        self._storage.sync_dir("")

    replace(_retire.Retirement, "remove_step", remove_step)


def _prune_before_commit() -> None:
    """Room is made for a step before it is committed."""
    publish = _owned.OwnedSteps.publish

    def make_room_and_publish(self: _owned.OwnedSteps, *args: Any, **options: Any) -> str:  # noqa: ANN401
        for entry in self._storage.list_dir(""):
            if entry.name.startswith("step-"):
                remove_tree(self._storage, entry.name)
        return publish(self, *args, **options)

    replace(_owned.OwnedSteps, "publish", make_room_and_publish)


VARIANTS = {
    "none": Variant(lambda: None),
    "commit-before-all-prepared": Variant(_commit_early, at=("make_dir .stepseal/superseded#1",)),
    "names-shared-between-attempts": Variant(
        _share_names, _Reusing, at=("sync_dir .stepseal/staging/step-10/components#2",)
    ),
    "prepared-before-close": Variant(_prepare_early, _Late, at=("sync_dir .stepseal/staging#2",)),
    "acknowledged-before-commit": Variant(
        _acknowledge_early,
        caught_as=frozenset({"lost"}),
        at=("close .stepseal/staging/step-20.1.*/.metadata#1",),
    ),
    "published-file-by-file": Variant(
        _publish_by_copying,
        at=("rename .stepseal/staging/step-10.1.*/parts -> step-10/parts#1",),
    ),
    "superseded-by-deleting": Variant(
        _supersede_by_deleting,
        caught_as=frozenset({"lost", "damaged"}),
        workload="two-moves",
        at=("rename .stepseal/staging/step-30.1.* -> .stepseal/trash/step-30.1.*#1",),
    ),
    "pruned-in-place": Variant(
        _prune_in_place,
        workload="pruning",
        at=("remove_file step-10/components/cursor/trainer/0.safetensors#1",),
    ),
    "pruned-before-commit": Variant(
        _prune_before_commit,
        caught_as=frozenset({"lost", "damaged"}),
        workload="pruning",
        at=("remove_file step-10/parts/trainer/0.safetensors#1",),
    ),
}
