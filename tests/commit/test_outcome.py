from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from tests.commit._kit import Root, attempt_id, cause, damage

from stepseal import errors
from stepseal.commit import _messages as messages
from stepseal.commit import resolve_save
from stepseal.commit._attempts import discard
from stepseal.commit._participant import SaveState
from stepseal.testing import Fail, Fault, FaultyStorage

if TYPE_CHECKING:
    from stepseal.layout import Manifest
    from stepseal.storage import Entry, ReadHandle, Storage

LOST = messages.Cause(errors.CoordinatorLost.kind, "the coordinator closed the connection")
LATE = messages.Cause(errors.CommitTimeout.kind, "did not decide by the deadline")


def state(**changes: object) -> SaveState:
    return SaveState(1, **changes)  # type: ignore[arg-type]


def prepared(storage: Storage) -> tuple[Root, str, Manifest, SaveState]:
    root = Root(storage)
    root.claim()
    staging, manifest = root.prepare(10)
    write = messages.Write(1, manifest.attempt, staging, "nonce", 0)
    return root, staging, manifest, state(write=write, prepared=True, lost=LOST)


def test_committed_is_taken_at_its_word(storage: Storage) -> None:
    committed = messages.Committed(1, attempt_id(1), 10, "a" * 64)
    assert resolve_save(state(outcome=committed, lost=LOST), 10, storage) == committed


def test_aborted_raises_what_the_coordinator_named(storage: Storage) -> None:
    failures = {
        "trainer/0": cause("no room"),
        "trainer/1": messages.Cause("unsupported_state", "no codec", "model.x", 28, "model"),
    }
    aborted = messages.Aborted(1, 10, "participant_failed", "save of step 10: ...", failures)
    with pytest.raises(errors.ParticipantFailed) as caught:
        resolve_save(state(outcome=aborted), 10, storage)
    error = caught.value
    assert error.failures == {"trainer/0": "no room", "trainer/1": "no codec"}
    assert (error.step, error.component, error.path, error.errno) == (10, "model", "model.x", 28)


def test_unresolved_is_unknown(storage: Storage) -> None:
    unresolved = messages.Unresolved(1, attempt_id(1), 10, "the root could not be synced.")
    with pytest.raises(errors.OutcomeUnknown, match="could not be synced"):
        resolve_save(state(outcome=unresolved), 10, storage)


@pytest.mark.parametrize(
    ("lost", "error"), [(LOST, errors.CoordinatorLost), (LATE, errors.CommitTimeout)]
)
def test_loss_before_we_prepared_is_no_commit(
    storage: Storage, lost: messages.Cause, error: type[errors.CheckpointError]
) -> None:
    write = messages.Write(1, attempt_id(1), "staging", "nonce", 0)
    for given in (state(lost=lost), state(lost=lost, write=write)):
        with pytest.raises(error, match="was not committed"):
            resolve_save(given, 10, storage)


def test_storage_tells_of_a_commit(storage: Storage) -> None:
    root, staging, manifest, lost = prepared(storage)
    sha256 = root.publish(staging, manifest)
    found = resolve_save(lost, 10, storage)
    assert (found.attempt, found.step, found.manifest_sha256) == (manifest.attempt, 10, sha256)


def test_commit_that_is_found_is_made_durable_by_the_finder(storage: Storage) -> None:
    root, staging, manifest, lost = prepared(storage)
    root.publish(staging, manifest)
    watched = FaultyStorage(storage)
    resolve_save(lost, 10, watched)
    assert [(o.name, o.key) for o in watched.count.operations()] == [("sync_dir", "")]
    plan = [Fault(lambda verb, _: verb == "sync_dir", Fail(errno.EIO))]
    with pytest.raises(errors.OutcomeUnknown):
        resolve_save(lost, 10, FaultyStorage(storage, plan))


def test_storage_tells_of_no_commit(storage: Storage) -> None:
    _, staging, _, lost = prepared(storage)
    discard(storage, staging)
    with pytest.raises(errors.CoordinatorLost, match="was not committed"):
        resolve_save(lost, 10, storage)


def test_another_attempt_in_the_steps_place_is_not_ours(storage: Storage) -> None:
    root, staging, _, lost = prepared(storage)
    discard(storage, staging)
    root.commit(10)
    with pytest.raises(errors.CoordinatorLost):
        resolve_save(lost, 10, storage)


def test_damaged_step_in_the_place_is_unknown(storage: Storage) -> None:
    root, staging, manifest, lost = prepared(storage)
    root.publish(staging, manifest)
    damage(storage, 10)
    with pytest.raises(errors.OutcomeUnknown, match="step-10"):
        resolve_save(lost, 10, storage)


def test_staging_that_still_stands_is_unknown(storage: Storage) -> None:
    _, staging, _, lost = prepared(storage)
    with pytest.raises(errors.OutcomeUnknown, match="nothing was deleted"):
        resolve_save(lost, 10, storage)
    assert storage.stat(staging).kind == "directory"


def test_storage_that_does_not_answer_is_unknown(storage: Storage) -> None:
    class Dead(FaultyStorage):
        def stat(self, key: str) -> Entry:
            raise errors.StorageUnavailable("server gone", errno=errno.EIO)

        def open_read(self, key: str) -> ReadHandle:
            raise errors.StorageUnavailable("server gone", errno=errno.EIO)

    *_, lost = prepared(storage)
    with pytest.raises(errors.OutcomeUnknown, match="server gone"):
        resolve_save(lost, 10, Dead(storage))


def test_commit_between_the_two_looks_is_found(storage: Storage) -> None:
    """We lost the coordinator, not it the storage: it commits while we look."""

    class Committing(FaultyStorage):
        committed = False

        def stat(self, key: str) -> Entry:
            if key == staging and not self.committed:
                self.committed = True
                root.publish(staging, manifest)
            return super().stat(key)

    root, staging, manifest, lost = prepared(storage)
    assert resolve_save(lost, 10, Committing(storage)).attempt == manifest.attempt
