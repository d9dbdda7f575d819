"""Committing where a step stands that does not count: by an exchange, and what fails around it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import FakeIndexer, Root, damage, exists
from tests.steps._publishing import forked, verb, with_faults

from stepseal import errors
from stepseal.errors import OutcomeUnknown
from stepseal.layout import MANIFEST, encode_manifest
from stepseal.steps._attempts import attempt_at
from stepseal.steps._catalog import read_step
from stepseal.steps._publish import publish
from stepseal.steps._roots import STAGING, SUPERSEDED, TRASH
from stepseal.storage import create_durable
from stepseal.testing import Fail, Fault, FaultyStorage, Lose, MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage import ReadHandle, Storage


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
    assert kept.startswith(staging.rpartition("/")[2])
    assert exists(storage, f"{SUPERSEDED}/{kept}/parts")
    assert attempt_at(storage, f"{SUPERSEDED}/{kept}") == (old if what == "outside" else None)
    assert root.names(STAGING) == []


def test_newer_claim_and_deadline_are_judged_before_the_exchange_too(storage: Storage) -> None:
    root = forked(storage)
    staging, manifest = root.prepare(20)
    asked = iter([False, True])
    with pytest.raises(errors.CommitTimeout):
        publish(
            storage, staging, manifest, indexer=FakeIndexer(), deadline_passed=lambda: next(asked)
        )
    assert attempt_at(storage, "step-20") != manifest.attempt


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT, errno.ENOSPC])
def test_lost_answer_of_the_exchange_is_a_commit(storage: Storage, number: int) -> None:
    root = forked(storage)
    staging, manifest = root.prepare(20)
    with_faults(root, Fault(verb("exchange"), Lose(number)))
    root.publish(staging, manifest)
    assert read_step(storage, 20, root.run_id).manifest == manifest
    assert len(root.names(SUPERSEDED)) == 1


def test_failed_exchange_leaves_the_old_step(storage: Storage) -> None:
    for number in (errno.EIO, errno.ENOSPC):
        root = forked(MemoryStorage())
        old = attempt_at(root.storage, "step-20")
        staging, manifest = root.prepare(20)
        with_faults(root, Fault(verb("exchange"), Fail(number)))
        with pytest.raises(errors.StorageUnavailable) as caught:
            root.publish(staging, manifest)
        assert not isinstance(caught.value, OutcomeUnknown)
        assert attempt_at(root.storage, "step-20") == old


def test_exchange_that_happens_late_is_unconfirmed_and_keeps_both(storage: Storage) -> None:
    class Late(FaultyStorage):
        def rename(self, source: str, target: str, *, replace: bool = False) -> None:
            if TRASH in target:
                storage.exchange(staging, "step-20")
            super().rename(source, target, replace=replace)

    root = forked(storage)
    old = attempt_at(storage, "step-20")
    staging, manifest = root.prepare(20)
    root.storage = Late(storage, [Fault(verb("exchange"), Fail(errno.EIO))])
    with pytest.raises(OutcomeUnknown):
        root.publish(staging, manifest)
    assert attempt_at(storage, "step-20") == manifest.attempt
    (kept,) = root.names(TRASH)
    assert attempt_at(storage, f"{TRASH}/{kept}") == old


def swap_in(storage: Storage, root: Root, hide: str) -> Callable[[str, str], bool]:
    """Commit another good step 20 right before the exchange, as a rival of this incarnation."""
    staging, manifest = root.prepare(20)
    create_durable(storage, f"{staging}/{MANIFEST}", encode_manifest(manifest))
    storage.remove_file(f"{staging}/.nonce")

    def strike(operation: str, key: str) -> bool:
        if operation == "exchange" and not exists(storage, hide):
            storage.rename("step-20", hide)
            storage.rename(staging, "step-20")
        return False

    return strike


def test_exchange_that_takes_out_a_good_step_is_undone(storage: Storage) -> None:
    root = forked(storage)
    strike = swap_in(storage, root, "moved")
    staging, manifest = root.prepare(20)
    with_faults(root, Fault(strike, Fail(errno.EIO)))
    with pytest.raises(errors.StepExists):
        root.publish(staging, manifest)
    good = attempt_at(storage, "step-20")
    assert good not in (None, manifest.attempt)
    assert attempt_at(storage, staging) == manifest.attempt


def test_undoing_that_fails_is_unconfirmed_and_deletes_nothing(storage: Storage) -> None:
    root = forked(storage)
    strike = swap_in(storage, root, "moved")
    staging, manifest = root.prepare(20)
    once: list[int] = []

    def second_exchange(operation: str, key: str) -> bool:
        strike(operation, key)
        once.extend([1] * (operation == "exchange"))
        return operation == "exchange" and len(once) > 1

    with_faults(root, Fault(second_exchange, Fail(errno.EIO), sticky=True))
    with pytest.raises(OutcomeUnknown):
        root.publish(staging, manifest)
    assert attempt_at(storage, "step-20") == manifest.attempt
    assert attempt_at(storage, staging) is not None


def test_displaced_step_that_cannot_be_judged_is_unconfirmed() -> None:
    class Blind(FaultyStorage):
        exchanged = False

        def exchange(self, first: str, second: str) -> None:
            super().exchange(first, second)
            self.exchanged = True

        def open_read(self, key: str) -> ReadHandle:
            if self.exchanged and key.startswith(STAGING):
                raise errors.StorageUnavailable("no", errno=errno.EIO)
            return super().open_read(key)

    root = forked(MemoryStorage())
    staging, manifest = root.prepare(20)
    root.storage = Blind(root.storage)
    with pytest.raises(OutcomeUnknown):
        root.publish(staging, manifest)


def test_failure_to_put_aside_does_not_fail_the_commit(storage: Storage) -> None:
    root = forked(storage)
    old = attempt_at(storage, "step-20")
    staging, manifest = root.prepare(20)
    with_faults(root, Fault(verb("rename", SUPERSEDED), Fail(errno.EIO)))
    root.publish(staging, manifest)
    assert attempt_at(storage, "step-20") == manifest.attempt
    assert attempt_at(storage, staging) == old
