from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import TWO, FakeIndexer, Root, exists
from tests.steps._publishing import claimed, verb, with_faults

from stepseal import errors
from stepseal.errors import OutcomeUnknown
from stepseal.layout import MANIFEST, manifest_digest
from stepseal.steps._attempts import discard
from stepseal.steps._catalog import list_steps, read_step
from stepseal.steps._publish import check_place
from stepseal.steps._roots import STAGING, TRASH
from stepseal.storage import create_durable, make_dirs, read_bytes
from stepseal.testing import Fail, Fault, FaultyStorage, Lose, MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path

    from stepseal.layout import Manifest
    from stepseal.storage import LocalStorage, ReadHandle, Storage
    from stepseal.testing import Operation


def test_published_step_is_whole_and_staging_is_gone(storage: Storage) -> None:
    root = claimed(storage)
    staging, manifest = root.prepare(10, metrics={"loss": float("inf")})
    sha256 = root.publish(staging, manifest)
    assert root.names(STAGING) == []
    data = read_bytes(storage, f"step-10/{MANIFEST}", 1 << 20)
    assert manifest_digest(data) == sha256
    entry = read_step(storage, 10, root.run_id)
    assert entry.manifest == manifest
    assert root.indexer.finished == [staging]
    assert not exists(storage, "step-10/.nonce")


def test_commit_is_the_last_change_and_everything_before_is_durable() -> None:
    storage = MemoryStorage()
    root = claimed(storage)
    staging, manifest = root.prepare(10)
    faulty = with_faults(root)
    root.publish(staging, manifest)
    operations = faulty.count.operations()
    assert [(o.name, o.key) for o in operations][-7:] == [
        ("write", f"{staging}/{MANIFEST}"),
        ("sync", f"{staging}/{MANIFEST}"),
        ("close", f"{staging}/{MANIFEST}"),
        ("sync_dir", staging),
        ("rename", f"{staging} -> step-10"),
        ("sync_dir", ""),
        ("sync_dir", STAGING),
    ]


def operations_of_a_commit() -> tuple[Operation, ...]:
    root = claimed(MemoryStorage())
    staging, manifest = root.prepare(10)
    faulty = with_faults(root)
    root.publish(staging, manifest)
    return faulty.count.operations()


OPERATIONS = operations_of_a_commit()
RENAME = next(o.index for o in OPERATIONS if o.name == "rename")


@pytest.mark.parametrize("survives", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("at", range(len(OPERATIONS)))
def test_power_loss_after_any_failure_leaves_the_step_whole_or_absent(
    at: int, number: int, survives: float
) -> None:
    storage = MemoryStorage()
    root = claimed(storage)
    root.commit(5)
    staging, manifest = root.prepare(10)
    with_faults(root, Fault(at, Fail(number), sticky=True))
    with pytest.raises((errors.StorageUnavailable, OutcomeUnknown)):
        root.publish(staging, manifest)
    after = storage.after_power_loss(lambda *_: survives)
    states = {entry.step: entry.state for entry in list_steps(after, root.run_id)}
    assert states in ({5: "committed"}, {5: "committed", 10: "committed"})


@pytest.mark.parametrize("at", range(RENAME))
def test_failure_before_the_commit_point_is_plain(at: int) -> None:
    root = claimed(MemoryStorage())
    staging, manifest = root.prepare(10)
    with_faults(root, Fault(at, Fail(errno.EIO)))
    with pytest.raises(errors.StorageUnavailable) as caught:
        root.publish(staging, manifest)
    assert not isinstance(caught.value, OutcomeUnknown)
    assert not exists(root.storage, "step-10")


@pytest.mark.parametrize("at", range(RENAME + 1, len(OPERATIONS)))
def test_failed_sync_after_the_rename_is_unconfirmed_and_deletes_nothing(at: int) -> None:
    root = claimed(MemoryStorage())
    staging, manifest = root.prepare(10)
    with_faults(root, Fault(at, Fail(errno.EIO)))
    with pytest.raises(OutcomeUnknown) as caught:
        root.publish(staging, manifest)
    assert caught.value.errno == errno.EIO
    assert read_step(root.storage, 10, root.run_id).manifest == manifest


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT, errno.EEXIST, errno.ENOSPC])
def test_lost_answer_of_the_rename_is_a_commit(storage: Storage, number: int) -> None:
    root = claimed(storage)
    staging, manifest = root.prepare(10)
    with_faults(root, Fault(verb("rename"), Lose(number)))
    root.publish(staging, manifest)
    assert read_step(storage, 10, root.run_id).manifest == manifest


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EXDEV, errno.ENOSYS])
def test_refused_rename_is_told_as_it_is(storage: Storage, number: int) -> None:
    root = claimed(storage)
    staging, manifest = root.prepare(10)
    with_faults(root, Fault(verb("rename"), Fail(number), sticky=True))
    with pytest.raises(errors.StorageUnavailable) as caught:
        root.publish(staging, manifest)
    assert caught.value.errno == number
    assert not isinstance(caught.value, OutcomeUnknown)
    assert exists(storage, staging)


def test_rename_of_unknown_fate_is_made_impossible_before_it_is_called_failed(
    storage: Storage,
) -> None:
    root = claimed(storage)
    staging, manifest = root.prepare(10)
    with_faults(root, Fault(verb("rename", "-> step-10"), Fail(errno.EIO)))
    with pytest.raises(errors.StorageUnavailable) as caught:
        root.publish(staging, manifest)
    assert not isinstance(caught.value, OutcomeUnknown)
    assert not exists(storage, staging)  # a server that carries it out later finds nothing
    assert root.names(TRASH) == []
    discard(storage, staging)


def test_rename_that_cannot_be_judged_is_unconfirmed(storage: Storage) -> None:
    root = claimed(storage)
    staging, manifest = root.prepare(10)
    with_faults(root, Fault(verb("rename"), Fail(errno.EIO), sticky=True))
    with pytest.raises(OutcomeUnknown):
        root.publish(staging, manifest)
    assert exists(storage, staging)


def test_rename_that_happens_late_is_a_commit(storage: Storage) -> None:
    """The answer was an error; the server carries it out while we make sure that it did not."""

    class Late(FaultyStorage):
        def rename(self, source: str, target: str, *, replace: bool = False) -> None:
            if TRASH in target:
                storage.rename(staging, "step-10")
            super().rename(source, target, replace=replace)

    root = claimed(storage)
    staging, manifest = root.prepare(10)
    root.storage = Late(storage, [Fault(verb("rename"), Fail(errno.EIO))])
    root.publish(staging, manifest)
    assert read_step(storage, 10, root.run_id).manifest == manifest


def test_target_that_cannot_be_read_after_a_lost_answer_is_unconfirmed() -> None:
    class Blind(FaultyStorage):
        def open_read(self, key: str) -> ReadHandle:
            if key.startswith("step-10/"):
                raise errors.StorageUnavailable("no", errno=errno.EIO)
            return super().open_read(key)

    for number in (errno.EIO, errno.EEXIST):
        root = claimed(MemoryStorage())
        staging, manifest = root.prepare(10)
        root.storage = Blind(root.storage, [Fault(verb("rename"), Lose(number))])
        with pytest.raises(OutcomeUnknown):
            root.publish(staging, manifest)


def test_wrong_files_are_not_committed(storage: Storage) -> None:
    root = claimed(storage)
    staging, manifest = root.prepare(10)
    create_durable(storage, f"{staging}/extra", b"x")
    with pytest.raises(errors.Corrupt, match="extra: not expected") as caught:
        root.publish(staging, manifest)
    assert caught.value.problems == ("extra: not expected",)
    assert not exists(storage, "step-10")


def test_left_temporary_is_an_extra_file(storage: Storage) -> None:
    root = claimed(storage)
    staging, manifest = root.prepare(10)
    create_durable(storage, f"{staging}/.tmp-{'0' * 32}", b"x")
    with pytest.raises(errors.Corrupt, match=r"\.tmp-"):
        root.publish(staging, manifest)


def test_vanished_staging_is_plain_failure_or_a_newer_incarnation(storage: Storage) -> None:
    root = claimed(storage)
    staging, manifest = root.prepare(10)
    discard(storage, staging)
    with pytest.raises(errors.StorageUnavailable):
        root.publish(staging, manifest)
    Root(storage).claim()
    with pytest.raises(errors.NotCurrent):
        root.publish(staging, manifest)


@pytest.mark.parametrize("when", ["finish", "inspect"])
def test_staging_that_a_newer_incarnation_sweeps_meanwhile_is_no_damage(
    storage: Storage, when: str
) -> None:
    """The job is told that it was replaced, not that its files are corrupt."""
    root = claimed(storage)
    staging, manifest = root.prepare(10)

    class Overtaken(FakeIndexer):
        def write_index(self, storage: Storage, staging: str, draft: Manifest) -> Manifest:
            Root(storage).claim()
            storage.remove_file(f"{staging}/parts/trainer/0.json")
            if when == "finish":
                raise errors.Corrupt("a part document is missing")
            return draft

    root.indexer = Overtaken()
    with pytest.raises(errors.NotCurrent):
        root.publish(staging, manifest)


def test_late_publication_is_refused_right_before_the_commit_point(storage: Storage) -> None:
    root = claimed(storage)
    staging, manifest = root.prepare(10)
    with pytest.raises(errors.CommitTimeout, match="commit_s"):
        root.publish(staging, manifest, late=True)
    assert not exists(storage, "step-10")


def test_older_incarnation_does_not_commit(storage: Storage) -> None:
    root = claimed(storage)
    staging, manifest = root.prepare(10)
    newer = Root(storage)

    def claim_meanwhile(operation: str, key: str) -> bool:
        if operation == "sync_dir" and key == staging:
            newer.claim()
        return False

    with_faults(root, Fault(claim_meanwhile, Fail(errno.EIO)))
    with pytest.raises(errors.NotCurrent):
        root.publish(staging, manifest)
    assert not exists(storage, "step-10")


def test_good_step_of_the_lineage_is_never_replaced(storage: Storage) -> None:
    root = claimed(storage)
    head = root.commit(10)
    staging, manifest = root.prepare(10)
    with pytest.raises(errors.StepExists, match="never overwritten") as caught:
        root.publish(staging, manifest)
    assert caught.value.path == "step-10"
    assert read_step(storage, 10, root.run_id).ref() == head


@pytest.mark.parametrize("what", ["folder", "dcp", "file", "other run"])
def test_foreign_things_are_left_alone(storage: Storage, what: str) -> None:
    root = claimed(storage)
    if what == "file":
        create_durable(storage, "step-10", b"x")
    elif what == "other run":
        other = Root(storage)
        other.claim()
        other.run_id = "f" * 32
        other.commit(10)
        root.claim()
    else:
        make_dirs(storage, "step-10")
        if what == "dcp":
            create_durable(storage, "step-10/.metadata", b"x")
    before = storage.stat("step-10")
    staging, manifest = root.prepare(10)
    watched = with_faults(root)
    with pytest.raises(errors.StepExists, match="in the way"):
        root.publish(staging, manifest)
    assert "exchange" not in [o.name for o in watched.count.operations()]
    assert storage.stat("step-10") == before
    assert exists(storage, staging)


def test_symlink_is_left_alone(local: LocalStorage, tmp_path: Path) -> None:
    root = claimed(local)
    (tmp_path / "root" / "step-10").symlink_to(tmp_path)
    staging, manifest = root.prepare(10)
    with pytest.raises(errors.StepExists):
        root.publish(staging, manifest)
    assert (tmp_path / "root" / "step-10").is_symlink()


def test_check_place_of_nothing(storage: Storage) -> None:
    root = claimed(storage)
    check_place(storage, 10, root.run_id)


def test_parts_of_all_participants_are_named(storage: Storage) -> None:
    root = claimed(storage)
    _, manifest = root.prepare(10)
    assert tuple(part.participant for part in manifest.parts) == TWO
