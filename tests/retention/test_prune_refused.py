"""A storage that refuses, dies or does not sync costs no step that was to be kept."""

from __future__ import annotations

import contextlib
import errno
import functools
import random
from typing import TYPE_CHECKING

import pytest
from tests.retention._kit import (
    NOW_S,
    Meanwhile,
    Stop,
    carry_out,
    die,
    four,
    plan_for,
    prune_now,
    steps_of,
)
from tests.steps._kit import FakeIndexer, attempt_id

from stepseal.errors import CheckpointError, Corrupt, StorageUnavailable
from stepseal.retention import Retention, latest
from stepseal.steps._catalog import list_steps
from stepseal.steps._leases import take_lease
from stepseal.steps._pins import PINS
from stepseal.steps._roots import SUPERSEDED, TRASH
from stepseal.testing import Fail, Fault, FaultyStorage, Lose, MemoryStorage

if TYPE_CHECKING:
    from stepseal.storage import Entry, Storage


class Unreadable(FaultyStorage):
    """The pins cannot be listed once the step has moved."""

    def __init__(self, inner: Storage, error: CheckpointError) -> None:
        super().__init__(inner)
        self._error = error

    def list_dir(self, key: str) -> tuple[Entry, ...]:
        if key == PINS and super().list_dir(TRASH):
            raise self._error
        return super().list_dir(key)


@pytest.mark.parametrize(
    "error", [StorageUnavailable("no answer", errno=errno.EIO), Corrupt("a symlink")]
)
def test_guards_that_cannot_be_read_protect(storage: Storage, error: CheckpointError) -> None:
    root = four(storage)
    report = prune_now(Unreadable(storage, error), root, keep=3)
    assert steps_of(storage) == ["step-10", "step-20", "step-30", "step-40"]
    assert report.failures


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ESTALE, errno.EACCES])
def test_a_refusal_at_any_operation_harms_no_kept_step(number: int) -> None:
    for index in range(1000):
        inner = MemoryStorage()
        root = four(inner)
        kept = list_steps(inner, root.run_id)[2:]
        faulty = FaultyStorage(inner, [Fault(index, Fail(number))])
        with contextlib.suppress(StorageUnavailable):
            prune_now(faulty, root, keep=2)
        assert list_steps(inner, root.run_id)[-2:] == kept
        assert all(entry.state == "committed" for entry in list_steps(inner, root.run_id))
        prune_now(inner, root, keep=2)
        assert steps_of(inner) == ["step-30", "step-40"]
        if len(faulty.count.operations()) <= index:
            break
    assert index > 20


class Crashing(FaultyStorage):
    """Stops before the operation of this number."""

    def __init__(self, inner: Storage, at: int) -> None:
        super().__init__(inner)
        self._at = at
        self.stopped = False

    def perform(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        if self._at == 0:
            self.stopped = True
            raise Stop
        self._at -= 1
        return super().perform(*args, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize("protected", [False, True])
def test_a_crash_at_any_operation_leaves_whole_steps_only(lossy: bool, protected: bool) -> None:
    """Also if power is lost with it, and if a reader holds the step when the next prune comes."""
    indexer = FakeIndexer()
    rng = random.Random(0)
    for at in range(1000):
        inner = MemoryStorage()
        root = four(inner)
        inner = inner.after_power_loss(lambda *_: 1.0) if lossy else inner
        crashing = Crashing(inner, at)
        with contextlib.suppress(Stop):
            prune_now(crashing, root, keep=2)
        if lossy:
            inner = inner.after_power_loss(lambda *_: rng.choice([0.0, 1.0]))
        if protected:
            take_lease(inner, 10, ttl_s=100, now_s=NOW_S)
        standing = list_steps(inner, root.run_id)
        assert {entry.step for entry in standing} >= {30, 40}
        root.storage = inner
        prune_now(inner, root, keep=2)
        for entry in list_steps(inner, root.run_id):
            assert entry.state == "committed"
            assert entry.manifest is not None
            assert not indexer.inspect(inner, entry.name, entry.manifest, exact=True)
        assert steps_of(inner)[-2:] == ["step-30", "step-40"]
        if not protected:
            assert steps_of(inner) == ["step-30", "step-40"]
            assert inner.list_dir(TRASH) == ()
        if not crashing.stopped:
            break
    assert at > 20


def test_a_move_whose_answer_was_lost_is_made_durable_before_anything_is_deleted() -> None:
    storage = MemoryStorage()
    root = four(storage)
    lost = FaultyStorage(storage, [Fault(lambda verb, _key: verb == "rename", Lose(errno.EIO))])
    plan = plan_for(storage, root, keep=3)
    carry_out(lost, plan, Retention(latest(3)))
    after = storage.after_power_loss(lambda _kind, key: float(key != "step-10"))
    assert {entry.state for entry in list_steps(after)} == {"committed"}


def test_a_step_goes_only_when_the_newer_one_is_durable() -> None:
    storage = MemoryStorage()
    root = four(storage)
    storage.rename("step-40", "moved")
    storage.sync_dir("")
    storage.rename("moved", "step-40")  # as by a commit that did not sync the root yet
    crashing = FaultyStorage(storage, [Fault(lambda verb, _key: verb == "rename", Fail(errno.EIO))])
    carry_out(crashing, plan_for(storage, root), Retention(latest(1)))
    assert "step-40" in steps_of(storage.after_power_loss(lambda *_: 0.0))


class Unsynced(FaultyStorage):
    """One sync of a directory fails, the one of this number; what changes is written down."""

    def __init__(self, inner: Storage, at: int) -> None:
        super().__init__(inner)
        self._at = at
        self.after: list[str] | None = None
        """What was done after it failed."""

    def sync_dir(self, key: str) -> None:
        self._note("sync_dir")
        self._at -= 1
        if self._at == -1:
            self.after = []
            raise StorageUnavailable("no answer", errno=errno.EIO)
        super().sync_dir(key)

    def rename(self, source: str, target: str, *, replace: bool = False) -> None:
        self._note("rename")
        super().rename(source, target, replace=replace)

    def remove_file(self, key: str) -> None:
        self._note("remove_file")
        super().remove_file(key)

    def _note(self, verb: str) -> None:
        if self.after is not None:
            self.after.append(verb)


def test_after_a_failed_sync_nothing_is_moved_deleted_or_synced_again() -> None:
    """A second sync that succeeds says nothing of what the first one was for."""
    for at in range(100):
        inner = MemoryStorage()
        root = four(inner)
        prune_now(inner, root, keep=3, trash_grace_s=1e6)
        inner.make_dir(f"{SUPERSEDED}/step-5.1.{attempt_id(5)}.{1000:08x}{'0' * 8}")
        storage = Unsynced(inner, at)
        report = prune_now(storage, root, keep=1)
        if storage.after is None:
            break
        assert storage.after == []
        assert report.sync_failed
        assert [failure for failure in report.failures if "no answer" in failure]
        gone = {20, 30} - {int(name[5:]) for name in steps_of(inner)}
        assert gone == {*report.removed, *report.in_trash}
        assert not {*report.removed} & {*report.in_trash}
        assert prune_now(inner, root).failures == []
        assert steps_of(inner) == ["step-40"]
    assert at > 8


def test_a_step_that_went_back_is_not_called_gone_when_the_sync_then_fails() -> None:
    inner = MemoryStorage()
    root = four(inner)
    storage = Unsynced(inner, 3)
    lease = functools.partial(take_lease, inner, 10, ttl_s=100, now_s=NOW_S)
    report = prune_now(Meanwhile(storage, lease), root, keep=3)
    assert (report.sync_failed, storage.after) == (True, [])
    assert (report.removed, report.in_trash) == ([], {})
    assert "leased" in report.put_back[10]
    assert "step-10" in steps_of(inner)


def test_a_deletion_that_began_is_made_durable_before_it_goes_on() -> None:
    """Else a power loss could bring half a step back under the name of a whole one."""
    storage = MemoryStorage()
    root = four(storage)
    with pytest.raises(Stop):
        prune_now(Meanwhile(storage, die, after=".deleting"), root, keep=3)

    class Halfway(FaultyStorage):
        def remove_file(self, key: str) -> None:
            super().remove_file(key)
            raise Stop

    with pytest.raises(Stop):
        prune_now(Halfway(storage), root, keep=3)
    after = storage.after_power_loss(lambda *_: 0.0)
    assert [entry.name.rpartition(".")[2] for entry in after.list_dir(TRASH)] == ["deleting"]
