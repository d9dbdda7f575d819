"""Superseding without an exchange: two moves, of which none loses anything that counts."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from tests._flagless import FlaglessCalls
from tests.steps._kit import Root, damage, exists
from tests.steps._publishing import forked

from stepseal import errors
from stepseal.errors import OutcomeUnknown
from stepseal.layout import MANIFEST, encode_manifest
from stepseal.steps._attempts import attempt_at, sweep
from stepseal.steps._catalog import list_steps, read_step
from stepseal.steps._roots import STAGING, SUPERSEDED
from stepseal.storage import KeyExists, LocalStorage, NotSupported, create_durable, read_bytes
from stepseal.testing import Fail, Fault, FaultyStorage, Lose, MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stepseal.storage import Storage
    from stepseal.testing import Operation


class NoExchange(MemoryStorage):
    """Memory that has every verb but one."""

    def exchange(self, first: str, second: str) -> None:
        raise NotSupported("no exchange", path=second, errno=errno.EINVAL)


@pytest.fixture(params=["memory", "local"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "memory":
        return NoExchange()
    return LocalStorage.create(tmp_path / "root", calls=FlaglessCalls())


@pytest.mark.parametrize("what", ["outside", "damaged", "no manifest"])
def test_step_that_does_not_count_is_put_aside_and_kept(storage: Storage, what: str) -> None:
    root = forked(storage)
    step = 20 if what == "outside" else 10
    old = attempt_at(storage, f"step-{step}")
    if what == "damaged":
        damage(storage, step)
    elif what == "no manifest":
        storage.remove_file(f"step-{step}/{MANIFEST}")
    staging, manifest = root.prepare(step)
    root.publish(staging, manifest)
    assert read_step(storage, step, root.run_id).manifest == manifest
    (kept,) = root.names(SUPERSEDED)
    assert kept.startswith(f"{staging.rpartition('/')[2]}.")
    assert exists(storage, f"{SUPERSEDED}/{kept}/parts")
    assert attempt_at(storage, f"{SUPERSEDED}/{kept}") == (old if what == "outside" else None)
    assert root.names(STAGING) == []


def test_good_step_of_the_lineage_is_never_replaced(storage: Storage) -> None:
    root = forked(storage)
    before = attempt_at(storage, "step-10")
    staging, manifest = root.prepare(10)
    with pytest.raises(errors.StepExists, match="never overwritten"):
        root.publish(staging, manifest)
    assert attempt_at(storage, "step-10") == before
    assert root.names(SUPERSEDED) == []


def operations_of_superseding() -> tuple[Operation, ...]:
    root = forked(NoExchange())
    staging, manifest = root.prepare(20)
    root.storage = faulty = FaultyStorage(root.storage)
    root.publish(staging, manifest)
    return faulty.count.operations()


OPERATIONS = operations_of_superseding()


def test_the_first_move_is_durable_before_the_second_begins() -> None:
    tried = max(o.index for o in OPERATIONS if o.name == "exchange")
    first, *syncs, second, root_synced, _ = OPERATIONS[tried + 1 :]
    assert (first.name, second.name) == ("rename", "rename")
    assert first.key.startswith(f"step-20 -> {SUPERSEDED}/step-20.")
    assert [(sync.name, sync.key) for sync in syncs] == [("sync_dir", SUPERSEDED), ("sync_dir", "")]
    assert second.key.startswith(f"{STAGING}/step-20.")
    assert second.key.endswith(" -> step-20")
    assert (root_synced.name, root_synced.key) == ("sync_dir", "")


def kept_attempts(storage: Storage) -> list[str | None]:
    """Return the attempts in the place of step 20 and in the superseded area."""
    aside = [f"{SUPERSEDED}/{entry.name}" for entry in storage.list_dir(SUPERSEDED)]
    return [attempt_at(storage, key) for key in ("step-20", *aside)]


@pytest.mark.parametrize("survives", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("at", range(len(OPERATIONS)))
def test_crash_at_any_operation_loses_nothing_and_the_next_incarnation_goes_on(
    at: int, survives: float
) -> None:
    storage = NoExchange()
    root = forked(storage)
    head = root.head
    old = attempt_at(storage, "step-20")
    staging, manifest = root.prepare(20)
    root.storage = FaultyStorage(storage, [Fault(at, Fail(errno.EIO), sticky=True)])
    with pytest.raises((errors.StorageUnavailable, OutcomeUnknown)):
        root.publish(staging, manifest)
    after = storage.after_power_loss(lambda *_: survives)
    assert {entry.state for entry in list_steps(after, root.run_id)} == {"committed"}
    assert old in kept_attempts(after)
    following = Root(after)
    following.claim(head)
    if not exists(after, "step-20") or attempt_at(after, "step-20") == old:
        following.commit(20)
    else:
        following.commit(30)
    sweep(after, following.number)
    assert following.names(STAGING) == []
    assert old in kept_attempts(after)


def second_try() -> Callable[[str, str], bool]:
    """Strike at the second rename to the step's place: the first one finds it taken."""
    seen: list[str] = []

    def strike(operation: str, key: str) -> bool:
        if operation != "rename" or not key.endswith(" -> step-20"):
            return False
        seen.append(key)
        return len(seen) == 2

    return strike


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT, errno.EEXIST])
@pytest.mark.parametrize("which", [f" -> {SUPERSEDED}", " -> step-20"])
def test_lost_answer_of_either_move_is_a_commit(storage: Storage, which: str, number: int) -> None:
    root = forked(storage)
    strike = second_try() if which.endswith("20") else (lambda o, key: which in key)
    staging, manifest = root.prepare(20)
    root.storage = FaultyStorage(storage, [Fault(strike, Lose(number))])
    root.publish(staging, manifest)
    assert read_step(storage, 20, root.run_id).manifest == manifest
    assert len(root.names(SUPERSEDED)) == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_first_move_that_fails_leaves_the_old_step(storage: Storage, number: int) -> None:
    root = forked(storage)
    old = attempt_at(storage, "step-20")
    staging, manifest = root.prepare(20)
    fault = Fault(lambda o, key: o == "rename" and SUPERSEDED in key, Fail(number))
    root.storage = FaultyStorage(storage, [fault])
    with pytest.raises(errors.StorageUnavailable) as caught:
        root.publish(staging, manifest)
    assert not isinstance(caught.value, OutcomeUnknown)
    assert attempt_at(storage, "step-20") == old


def test_second_move_that_fails_keeps_the_old_step_aside_and_the_next_attempt_commits(
    storage: Storage,
) -> None:
    root = forked(storage)
    old = attempt_at(storage, "step-20")
    staging, manifest = root.prepare(20)
    fault = Fault(second_try(), Fail(errno.ENOSPC))
    root.storage = FaultyStorage(storage, [fault])
    with pytest.raises(errors.StorageUnavailable) as caught:
        root.publish(staging, manifest)
    assert not isinstance(caught.value, OutcomeUnknown)
    (kept,) = root.names(SUPERSEDED)
    assert attempt_at(storage, f"{SUPERSEDED}/{kept}") == old
    root.storage = storage
    root.commit(20)
    assert read_step(storage, 20, root.run_id).state == "committed"


@pytest.mark.parametrize("undone", [True, False])
def test_good_step_that_was_moved_out_is_moved_back(storage: Storage, *, undone: bool) -> None:
    root = forked(storage)
    rival, rivals = root.prepare(20)
    create_durable(storage, f"{rival}/{MANIFEST}", encode_manifest(rivals))
    storage.remove_file(f"{rival}/.nonce")
    staging, manifest = root.prepare(20)

    def commit_meanwhile(operation: str, key: str) -> bool:
        if operation == "rename" and f" -> {SUPERSEDED}" in key and not exists(storage, "moved"):
            storage.rename("step-20", "moved")
            storage.rename(rival, "step-20")
        return False

    def moving_back(operation: str, key: str) -> bool:
        return operation == "rename" and key.startswith(SUPERSEDED)

    faults = [Fault(commit_meanwhile, Fail(errno.EIO))]
    faults += [] if undone else [Fault(moving_back, Fail(errno.EIO), sticky=True)]
    root.storage = FaultyStorage(storage, faults)
    with pytest.raises(errors.StepExists if undone else OutcomeUnknown):
        root.publish(staging, manifest)
    if undone:
        assert root.names(SUPERSEDED) == []
    place = "step-20" if undone else f"{SUPERSEDED}/{root.names(SUPERSEDED)[0]}"
    assert attempt_at(storage, place) == rivals.attempt
    assert attempt_at(storage, staging) == manifest.attempt


def test_step_that_appears_between_the_moves_is_not_replaced(storage: Storage) -> None:
    root = forked(storage)
    rival, rivals = root.prepare(20)
    create_durable(storage, f"{rival}/{MANIFEST}", encode_manifest(rivals))
    storage.remove_file(f"{rival}/.nonce")
    staging, manifest = root.prepare(20)

    def commit_between(operation: str, key: str) -> bool:
        if operation == "sync_dir" and key == SUPERSEDED:
            storage.rename(rival, "step-20")
        return False

    root.storage = FaultyStorage(storage, [Fault(commit_between, Fail(errno.EIO))])
    with pytest.raises(errors.StepExists):
        root.publish(staging, manifest)
    assert attempt_at(storage, "step-20") == rivals.attempt
    assert attempt_at(storage, staging) == manifest.attempt


def test_step_that_leaves_before_the_first_move_is_not_waited_for(storage: Storage) -> None:
    root = forked(storage)
    old = attempt_at(storage, "step-20")
    staging, manifest = root.prepare(20)

    def leave(operation: str, key: str) -> bool:
        if operation == "rename" and f" -> {SUPERSEDED}" in key:
            storage.rename("step-20", "pruned")
        return False

    root.storage = FaultyStorage(storage, [Fault(leave, Fail(errno.EIO))])
    root.publish(staging, manifest)
    assert read_step(storage, 20, root.run_id).manifest == manifest
    assert attempt_at(storage, "pruned") == old
    assert root.names(SUPERSEDED) == []


def test_damaged_step_that_appears_between_the_moves_is_left_to_the_next_attempt(
    storage: Storage,
) -> None:
    root = forked(storage)
    rival, _ = root.prepare(20)
    create_durable(storage, f"{rival}/{MANIFEST}", b"{}")
    staging, manifest = root.prepare(20)

    def appear(operation: str, key: str) -> bool:
        if operation == "sync_dir" and key == SUPERSEDED:
            storage.rename(rival, "step-20")
        return False

    root.storage = FaultyStorage(storage, [Fault(appear, Fail(errno.EIO))])
    with pytest.raises(KeyExists) as caught:
        root.publish(staging, manifest)
    assert not isinstance(caught.value, OutcomeUnknown)
    assert read_bytes(storage, f"step-20/{MANIFEST}", 100) == b"{}"
    assert attempt_at(storage, staging) == manifest.attempt
    root.storage = storage
    root.commit(20)
    assert read_step(storage, 20, root.run_id).state == "committed"
    assert len(root.names(SUPERSEDED)) == 2
