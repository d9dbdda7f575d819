from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import Root, attempt_id, cause, damage

from stepseal import errors
from stepseal.layout import MANIFEST, encode_manifest
from stepseal.protocol import _messages as messages
from stepseal.protocol import resolve_save
from stepseal.protocol._participant import SaveState
from stepseal.steps import PosixSteps
from stepseal.steps._attempts import discard, put_aside
from stepseal.steps._roots import TRASH
from stepseal.storage import create_durable
from stepseal.testing import Fail, Fault, FaultyStorage

if TYPE_CHECKING:
    from stepseal.layout import Manifest
    from stepseal.storage import Entry, ReadHandle, Storage

LOST = messages.Failure(errors.CoordinatorLost.kind, "the coordinator closed the connection")
LATE = messages.Failure(errors.CommitTimeout.kind, "did not decide by the deadline")


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
    assert resolve_save(state(outcome=committed, lost=LOST), 10, PosixSteps(storage)) == committed


def test_aborted_raises_what_the_coordinator_named(storage: Storage) -> None:
    failures = {
        "trainer/0": cause("no room"),
        "trainer/1": messages.Failure("unsupported_state", "no codec", "model.x", 28, "model"),
    }
    aborted = messages.Aborted(1, 10, "participant_failed", "save of step 10: ...", failures)
    with pytest.raises(errors.ParticipantFailed) as caught:
        resolve_save(state(outcome=aborted), 10, PosixSteps(storage))
    error = caught.value
    assert error.failures == {"trainer/0": "no room", "trainer/1": "no codec"}
    assert (error.step, error.component, error.path, error.errno) == (10, "model", "model.x", 28)


def test_unresolved_is_unknown(storage: Storage) -> None:
    unresolved = messages.Unresolved(1, attempt_id(1), 10, "the root could not be synced.")
    with pytest.raises(errors.OutcomeUnknown, match="could not be synced"):
        resolve_save(state(outcome=unresolved), 10, PosixSteps(storage))


@pytest.mark.parametrize(
    ("lost", "error"), [(LOST, errors.CoordinatorLost), (LATE, errors.CommitTimeout)]
)
def test_loss_before_we_prepared_is_no_commit(
    storage: Storage, lost: messages.Failure, error: type[errors.CheckpointError]
) -> None:
    write = messages.Write(1, attempt_id(1), "staging", "nonce", 0)
    for given in (state(lost=lost), state(lost=lost, write=write)):
        with pytest.raises(error, match="was not committed"):
            resolve_save(given, 10, PosixSteps(storage))


def test_storage_tells_of_a_commit(storage: Storage) -> None:
    root, staging, manifest, lost = prepared(storage)
    sha256 = root.publish(staging, manifest)
    found = resolve_save(lost, 10, PosixSteps(storage))
    assert (found.attempt, found.step, found.manifest_sha256) == (manifest.attempt, 10, sha256)


def test_commit_that_is_found_is_made_durable_by_the_finder(storage: Storage) -> None:
    root, staging, manifest, lost = prepared(storage)
    root.publish(staging, manifest)
    watched = FaultyStorage(storage)
    resolve_save(lost, 10, PosixSteps(watched))
    assert [(o.name, o.key) for o in watched.count.operations()] == [("sync_dir", "")]
    plan = [Fault(lambda verb, _: verb == "sync_dir", Fail(errno.EIO))]
    with pytest.raises(errors.OutcomeUnknown):
        resolve_save(lost, 10, PosixSteps(FaultyStorage(storage, plan)))


def test_storage_tells_of_no_commit(storage: Storage) -> None:
    _, staging, _, lost = prepared(storage)
    discard(storage, staging)
    with pytest.raises(errors.CoordinatorLost, match="was not committed"):
        resolve_save(lost, 10, PosixSteps(storage))


def test_another_attempt_in_the_steps_place_is_not_ours(storage: Storage) -> None:
    root, staging, _, lost = prepared(storage)
    discard(storage, staging)
    root.commit(10)
    with pytest.raises(errors.CoordinatorLost):
        resolve_save(lost, 10, PosixSteps(storage))


def test_damaged_step_in_the_place_is_unknown(storage: Storage) -> None:
    root, staging, manifest, lost = prepared(storage)
    root.publish(staging, manifest)
    damage(storage, 10)
    with pytest.raises(errors.OutcomeUnknown, match="step-10"):
        resolve_save(lost, 10, PosixSteps(storage))


def test_staging_that_still_stands_is_unknown(storage: Storage) -> None:
    _, staging, _, lost = prepared(storage)
    with pytest.raises(errors.OutcomeUnknown, match="nothing was deleted"):
        resolve_save(lost, 10, PosixSteps(storage))
    assert storage.stat(staging).kind == "directory"


def test_storage_that_does_not_answer_is_unknown(storage: Storage) -> None:
    class Dead(FaultyStorage):
        def stat(self, key: str) -> Entry:
            raise errors.StorageUnavailable("server gone", errno=errno.EIO)

        def open_read(self, key: str) -> ReadHandle:
            raise errors.StorageUnavailable("server gone", errno=errno.EIO)

    *_, lost = prepared(storage)
    with pytest.raises(errors.OutcomeUnknown, match="server gone"):
        resolve_save(lost, 10, PosixSteps(Dead(storage)))


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
    assert resolve_save(lost, 10, PosixSteps(Committing(storage))).attempt == manifest.attempt


def test_step_that_a_prune_took_out_of_its_place_is_unknown_until_the_prune_ends(
    storage: Storage,
) -> None:
    """The prune meant another attempt of this number, and names the folder after it."""
    root, staging, manifest, lost = prepared(storage)
    root.publish(staging, manifest)
    trash = f"{TRASH}/step-10.1.{attempt_id(7)}.{'0' * 16}.pruned"
    storage.rename("step-10", trash)
    with pytest.raises(errors.OutcomeUnknown, match="does not show yet"):
        resolve_save(lost, 10, PosixSteps(storage))
    storage.rename(trash, "step-10")
    assert resolve_save(lost, 10, PosixSteps(storage)).attempt == manifest.attempt


@pytest.mark.parametrize("when", ["put back before the trash", "gone after the first look"])
def test_step_that_moves_while_it_is_looked_for_is_never_called_failed(
    storage: Storage, when: str
) -> None:
    root, staging, manifest, lost = prepared(storage)
    root.publish(staging, manifest)
    trash = f"{TRASH}/step-10.1.{manifest.attempt}.{'0' * 16}.pruned"

    class Moving(FaultyStorage):
        def stat(self, key: str) -> Entry:
            if key == staging and when.startswith("gone"):
                storage.rename("step-10", "gone")
            return super().stat(key)

        def list_dir(self, key: str) -> tuple[Entry, ...]:
            if key == TRASH and when.startswith("put back"):
                storage.rename(trash, "step-10")
            return super().list_dir(key)

    if when.startswith("put back"):
        storage.rename("step-10", trash)
        assert resolve_save(lost, 10, PosixSteps(Moving(storage))).attempt == manifest.attempt
    else:
        with pytest.raises(errors.OutcomeUnknown):
            resolve_save(lost, 10, PosixSteps(Moving(storage)))


@pytest.mark.parametrize("replaced", [False, True])
def test_exchange_that_may_be_undone_is_no_commit_yet(storage: Storage, replaced: bool) -> None:
    """A replaced coordinator takes it back if it put out a step of the newer incarnation."""
    root = Root(storage)
    head = root.commit(5)
    root.commit(10)
    root.claim(head)
    staging, manifest = root.prepare(10)
    create_durable(storage, f"{staging}/{MANIFEST}", encode_manifest(manifest))
    write = messages.Write(1, manifest.attempt, staging, "nonce", 0)
    lost = state(write=write, prepared=True, lost=LOST)
    if replaced:
        root.claim(head)
    storage.exchange(staging, "step-10")
    if replaced:
        with pytest.raises(errors.OutcomeUnknown):
            resolve_save(lost, 10, PosixSteps(storage))
    else:
        assert resolve_save(lost, 10, PosixSteps(storage)).attempt == manifest.attempt
    put_aside(storage, staging)  # from here on nobody can take it back
    assert resolve_save(lost, 10, PosixSteps(storage)).attempt == manifest.attempt
