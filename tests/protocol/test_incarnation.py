from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import (
    TWO,
    FakeIndexer,
    Root,
    attempt_id,
    captured,
    damage,
    write_part,
)

from stepseal import errors
from stepseal.errors import OutcomeUnknown
from stepseal.layout import unix_time
from stepseal.protocol import _actions as actions
from stepseal.protocol._draft import JobInfo
from stepseal.protocol._incarnation import Incarnation, discard_aborted
from stepseal.steps import OwnedSteps
from stepseal.steps._catalog import list_steps, read_marker, read_step
from stepseal.steps._claims import INCARNATIONS, in_lineage, lineage_limits, read_claims
from stepseal.steps._leases import LEASES, read_leases
from stepseal.steps._roots import STAGING, SUPERSEDED, TRASH
from stepseal.storage import create_durable, make_dirs, read_bytes
from stepseal.testing import Fail, Fault, FaultyStorage, MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.layout import StepRef
    from stepseal.storage import Storage, WriteHandle


class Life:
    """One incarnation: performs whole saves as the protocol would ask for them."""

    def __init__(self, storage: Storage, clock: Callable[[], float] = time.time) -> None:
        self.storage = storage
        self.indexer = FakeIndexer()
        job = JobInfo({"stepseal": "0"}, {"world_size": 2})
        steps = OwnedSteps(storage, self.indexer, clock=clock)
        self.incarnation = Incarnation(steps, job=job, clock=clock)
        self.num = 0

    def begin(self, step: int) -> actions.DriverEvent:
        self.num += 1
        return self.incarnation.perform(actions.BeginStaging(self.num, step, attempt_id(self.num)))

    def publish(
        self, step: int, staged: actions.DriverEvent, **changes: object
    ) -> actions.DriverEvent:
        assert isinstance(staged, actions.Staged)
        parts = {p: write_part(self.storage, staged.staging, p) for p in TWO}
        reports = dict.fromkeys(TWO, captured(step=step))
        values: dict[str, object] = {"deadline": time.monotonic() + 60} | changes
        return self.incarnation.perform(
            actions.Publish(
                self.num,
                step,
                attempt_id(self.num),
                staged.staging,
                reports,
                parts,
                **values,  # type: ignore[arg-type]
            )
        )

    def save(self, step: int) -> actions.DriverEvent:
        event = self.publish(step, self.begin(step))
        if isinstance(event, actions.Published):
            self.incarnation.after_commit()
        return event

    def claim(self, parent: StepRef | None = None) -> actions.DriverEvent:
        return self.incarnation.perform(actions.Claim(1, parent))

    def select(self, step: int | None = None) -> actions.DriverEvent:
        return self.incarnation.perform(actions.Select(1, step, ()))


def kind(event: actions.DriverEvent) -> str:
    assert isinstance(event, actions.IoFailed), event
    return event.cause.kind


def manifest_of(storage: Storage, step: int) -> object:
    manifest = read_step(storage, step, None).manifest
    assert manifest is not None
    return manifest


def test_first_save_of_an_empty_root_claims_it(storage: Storage) -> None:
    life = Life(storage)
    assert isinstance(life.save(10), actions.Published)
    entry = read_step(storage, 10, None)
    assert entry.manifest is not None
    assert (entry.manifest.incarnation, entry.manifest.parent) == (1, None)
    assert read_bytes(storage, "latest", 100) == b"step-10\n"


def test_each_step_names_the_one_before_as_its_parent(storage: Storage) -> None:
    life = Life(storage)
    life.save(10)
    life.save(20)
    first, second = (read_step(storage, step, None) for step in (10, 20))
    assert second.manifest is not None
    assert second.manifest.parent == first.ref()


def test_manifest_holds_the_facts_of_the_job(storage: Storage) -> None:
    life = Life(storage)
    life.save(10)
    manifest = read_step(storage, 10, None).manifest
    assert manifest is not None
    assert manifest.versions == {"stepseal": "0"}
    assert manifest.topology == {"world_size": 2}
    assert manifest.participants == TWO
    assert manifest.durability == storage.sync_support().durability
    assert [c.name for c in manifest.components] == ["model"]


def test_times_on_disk_are_those_of_its_clock(storage: Storage) -> None:
    now_s = 1.8e9
    Life(storage, lambda: now_s).save(10)
    life = Life(storage, lambda: now_s)
    now_s += 500
    selected = life.select()
    assert isinstance(selected, actions.Selected)
    assert read_leases(storage, now_s) == {10: now_s + 3600 + 1}
    life.claim(selected.ref)
    life.num = 1
    life.save(20)
    created = [entry.manifest.created_at for entry in list_steps(storage) if entry.manifest]
    claimed = [record.claimed_at_s for record in read_claims(storage)]
    assert [unix_time(text) for text in created] == claimed == [1.8e9, now_s]


@pytest.mark.parametrize("what", ["good", "damaged", "other run", "put aside"])
def test_save_without_restore_on_a_root_with_steps_is_refused(storage: Storage, what: str) -> None:
    root = Root(storage)
    root.commit(10)
    if what == "damaged":
        damage(storage, 10)
    elif what == "other run":
        root.run_id = "f" * 32
        root.commit(11)
    elif what == "put aside":  # a commit died before it took the place
        storage.rename("step-10", f"{SUPERSEDED}/step-10.2.{attempt_id(7)}.{'0' * 16}")
    assert kind(Life(storage).begin(20)) == errors.NotRestored.kind


def test_save_beside_foreign_folders_is_fine(storage: Storage) -> None:
    make_dirs(storage, "step-5")
    assert isinstance(Life(storage).save(10), actions.Published)


def test_restore_then_save(storage: Storage) -> None:
    Life(storage).save(10)
    life = Life(storage)
    selected = life.select()
    assert isinstance(selected, actions.Selected)
    assert selected.ref is not None
    assert selected.attempt == attempt_id(1)
    assert life.claim(selected.ref) == actions.Claimed(1, 2)
    assert isinstance(life.save(20), actions.Published)
    manifest = read_step(storage, 20, None).manifest
    assert manifest is not None
    assert (manifest.incarnation, manifest.parent) == (2, selected.ref)


def test_step_that_was_superseded_while_it_was_restored_is_no_parent(storage: Storage) -> None:
    Life(storage).save(10)
    slow, quick = Life(storage), Life(storage)
    quick.num = 1  # attempts are never shared
    selected = slow.select()
    assert isinstance(selected, actions.Selected)
    quick.claim(None)
    assert isinstance(quick.save(10), actions.Published)
    refused = slow.claim(selected.ref)
    assert isinstance(refused, actions.IoFailed)
    assert "superseded" in refused.cause.message
    assert [record.incarnation for record in read_claims(storage)] == [1, 2]


def test_select_on_an_empty_root(storage: Storage) -> None:
    assert Life(storage).select() == actions.Selected(1, None, "", False, {})


def test_select_of_a_step_that_is_not_there(storage: Storage) -> None:
    assert kind(Life(storage).select(7)) == errors.StepNotFound.kind


def test_select_ignores_files_that_no_manifest_lists(storage: Storage) -> None:
    Life(storage).save(10)
    make_dirs(storage, "step-10/notes")
    with storage.create_file("step-10/notes/x") as handle:
        handle.write(b"x", 0)
    selected = Life(storage).select()
    assert isinstance(selected, actions.Selected)
    assert selected.ref is not None


def test_foreign_folder_is_selected_only_where_unverified_ones_will_do(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    storage.make_dir("step-5")
    create_durable(storage, "step-5/.metadata", b"of DCP")
    life = Life(storage)
    assert life.select() == actions.Selected(1, None, "", False, {})
    assert "step-5" in caplog.text
    caplog.clear()
    found = life.incarnation.perform(actions.Select(1, None, (), unverified=True))
    assert isinstance(found, actions.Selected)
    assert found.unverified
    assert found.ref is not None
    assert found.ref.step == 5
    assert leased(storage) == []
    life.save(6)
    found = life.incarnation.perform(actions.Select(1, None, (), unverified=True))
    assert isinstance(found, actions.Selected)
    assert (found.unverified, found.ref) == (False, read_step(storage, 6, None).ref())
    assert isinstance(life.select(), actions.Selected)
    assert caplog.text == ""


def test_taken_step_is_refused_before_anything_is_written(storage: Storage) -> None:
    life = Life(storage)
    life.save(10)
    assert kind(life.begin(10)) == errors.StepExists.kind
    assert [entry.name for entry in storage.list_dir(STAGING)] == []


def test_older_incarnation_is_refused_before_anything_is_written(storage: Storage) -> None:
    life = Life(storage)
    life.save(10)
    Root(storage).claim()
    assert kind(life.begin(20)) == errors.NotCurrent.kind


def test_older_incarnation_is_refused_at_its_commit(storage: Storage) -> None:
    life = Life(storage)
    staged = life.begin(20)
    Root(storage).claim()
    assert kind(life.publish(20, staged)) == errors.NotCurrent.kind


def test_deadline_is_judged_at_the_commit(storage: Storage) -> None:
    life = Life(storage)
    event = life.publish(10, life.begin(10), deadline=time.monotonic() - 1)
    assert kind(event) == errors.CommitTimeout.kind


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "bad"), errors.StorageUnavailable("bad"), errors.Corrupt("bad")]
)
def test_failures_become_events(storage: Storage, error: Exception) -> None:
    life = Life(storage)
    life.indexer.error = error
    event = life.publish(10, life.begin(10))
    expected = errors.Corrupt.kind if isinstance(error, errors.Corrupt) else "storage_unavailable"
    assert kind(event) == expected


def test_unconfirmed_commit_becomes_unknown(storage: Storage) -> None:
    life = Life(storage)
    life.indexer.error = OutcomeUnknown("who knows")
    event = life.publish(10, life.begin(10))
    assert isinstance(event, actions.PublishUnknown)


def test_defect_while_publishing_is_unknown_and_is_logged(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    life = Life(storage)
    life.indexer.error = ZeroDivisionError("oops")
    event = life.publish(10, life.begin(10))
    assert isinstance(event, actions.PublishUnknown)
    assert "oops" in event.cause.message
    assert "defect" in caplog.text


def test_defect_elsewhere_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FaultyStorage):
        broken = False

        def list_dir(self, key: str):  # type: ignore[no-untyped-def] # noqa: ANN202
            if self.broken:
                raise ZeroDivisionError("oops")
            return super().list_dir(key)

    storage = Broken(MemoryStorage())
    life = Life(storage)
    storage.broken = True
    assert kind(life.select()) == errors.InternalError.kind
    assert "defect" in caplog.text


def test_latest_that_cannot_be_moved_does_not_fail_the_save(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    make_dirs(storage, "latest/x")
    assert isinstance(Life(storage).save(10), actions.Published)
    assert "after the commit" in caplog.text


class Full(FaultyStorage):
    """Has no room for any file while a folder of an older start is staged."""

    def __init__(self, inner: Storage, own: str = "no other") -> None:
        super().__init__(inner, [Fault(self._strikes, Fail(errno.ENOSPC), sticky=True)])
        self.own = own

    def _strikes(self, verb: str, _key: str) -> bool:
        return verb == "create_file" and any(
            entry.name.split(".")[1] != self.own for entry in self.list_dir(STAGING)
        )


@pytest.mark.parametrize("fresh", [False, True])
def test_start_makes_room_where_a_killed_save_left_none(storage: Storage, fresh: bool) -> None:
    killed = Life(storage)
    killed.save(10)
    killed.begin(20)
    life = Life(Full(storage))
    life.num = killed.num
    parent = None
    if not fresh:
        selected = life.select()
        assert isinstance(selected, actions.Selected)
        parent = selected.ref
        assert leased(storage) == [10]
        killed.begin(30)  # and filled again before the claim
    assert life.claim(parent) == actions.Claimed(1, 2)
    assert storage.list_dir(STAGING) == ()


def test_first_save_makes_room_where_another_first_save_left_none(storage: Storage) -> None:
    Life(storage).begin(10)
    life = Life(Full(storage, own="2"))
    life.num = 1
    assert isinstance(life.save(10), actions.Published)


def test_save_of_an_older_start_that_still_runs_is_aborted_for_room(storage: Storage) -> None:
    old = Life(storage)
    old.save(10)
    staged = old.begin(20)
    assert isinstance(staged, actions.Staged)
    assert isinstance(old.publish(20, staged), actions.Published)
    staged = old.begin(30)
    assert isinstance(Life(Full(storage)).select(), actions.Selected)
    with pytest.raises(errors.StorageUnavailable):
        old.publish(30, staged)  # no participant can write its part
    assert [entry.step for entry in list_steps(storage)] == [10, 20]


def test_discard_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    plan = [Fault(lambda verb, _: verb == "remove_file", Fail(errno.EIO), sticky=True)]
    inner = MemoryStorage()
    life = Life(FaultyStorage(inner))
    staged = life.begin(10)
    assert isinstance(staged, actions.Staged)
    discard_aborted(
        OwnedSteps(FaultyStorage(inner, plan), FakeIndexer()), actions.Discard(staged.staging)
    )
    assert "next sweep" in caplog.text
    assert list_steps(inner) == ()


def leased(storage: Storage) -> list[int]:
    return list(read_leases(storage, time.time()))


@pytest.mark.parametrize("resumed", [None, 10])
def test_steps_whose_claims_are_lost_are_left_behind_by_a_claim(
    storage: Storage, resumed: int | None
) -> None:
    root = Root(storage)
    first = root.commit(10)
    for step in (20, 30):
        root.claim(root.head)
        root.commit(step)
    for number in (2, 3):
        storage.remove_file(f"{INCARNATIONS}/{number}.json")
    parent = None if resumed is None else first
    assert Life(storage).claim(parent) == actions.Claimed(1, 4)
    limits = lineage_limits(read_claims(storage))
    found = [e.step for e in list_steps(storage) if e.manifest is not None
             and in_lineage(limits, e.manifest.incarnation, e.step)]  # fmt: skip
    assert found == ([] if resumed is None else [10])


def test_a_newer_step_that_cannot_be_read_does_not_stop_a_claim() -> None:
    inner = MemoryStorage()
    root = Root(inner)
    first = root.commit(10)
    root.commit(20)
    bad = [Fault(lambda _verb, key: key.startswith("step-20"), Fail(errno.EIO), sticky=True)]
    assert Life(FaultyStorage(inner, bad)).claim(first) == actions.Claimed(1, 2)


def test_the_candidate_is_leased_until_the_claim(storage: Storage) -> None:
    Life(storage).save(10)
    life = Life(storage)
    selected = life.select()
    assert isinstance(selected, actions.Selected)
    assert leased(storage) == [10]
    life.claim(selected.ref)
    assert storage.list_dir(LEASES) == ()


def test_falling_back_moves_the_lease(storage: Storage) -> None:
    old = Life(storage)
    old.save(10)
    old.save(20)
    life = Life(storage)
    life.select()
    assert leased(storage) == [20]
    life.incarnation.perform(actions.Select(2, None, (20,)))
    assert leased(storage) == [10]
    life.incarnation.close()
    life.incarnation.close()
    assert storage.list_dir(LEASES) == ()


class Pruning(FaultyStorage):
    """The newest step is pruned between its selection and its lease, a number of times."""

    times = 1

    def create_file(self, key: str) -> WriteHandle:
        if key.startswith(LEASES) and self.times:
            self.times -= 1
            newest = max(entry.step for entry in list_steps(self))
            self.rename(f"step-{newest}", f"{TRASH}/{newest}")
        return super().create_file(key)


def test_a_step_that_goes_before_its_lease_is_not_the_candidate(storage: Storage) -> None:
    old = Life(storage)
    for step in (10, 20):
        old.save(step)
    selected = Life(Pruning(storage)).select()
    assert isinstance(selected, actions.Selected)
    assert selected.ref is not None
    assert selected.ref.step == 10
    assert leased(storage) == [10]


def test_selection_does_not_run_after_vanishing_steps_for_ever(storage: Storage) -> None:
    old = Life(storage)
    for step in range(10, 30):
        old.save(step)
    pruning = Pruning(storage)
    pruning.times = 100
    event = Life(pruning).select()
    assert kind(event) == errors.StorageUnavailable.kind
    assert storage.list_dir(LEASES) == ()


def test_a_lease_that_cannot_be_ended_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    inner = MemoryStorage()
    Life(inner).save(10)
    plan = [Fault(lambda verb, key: verb == "remove_file" and LEASES in key, Fail(errno.EIO))]
    life = Life(FaultyStorage(inner, plan))
    selected = life.select()
    assert isinstance(selected, actions.Selected)
    assert isinstance(life.claim(selected.ref), actions.Claimed)
    assert "will expire" in caplog.text


def test_housekeeping_is_told_run_and_incarnation() -> None:
    told: list[tuple[str, int, bool]] = []
    storage = MemoryStorage()
    incarnation = Incarnation(
        OwnedSteps(storage, FakeIndexer()),
        job=JobInfo({}, {}),
        housekeep=lambda *facts: told.append(facts),
    )
    incarnation.housekeep()
    assert told == []
    incarnation.perform(actions.Claim(1, None))
    incarnation.housekeep()
    assert told == [(read_marker(storage), 1, False)]
