"""The verbs of the step store, each once: what is behind them has tests of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import FakeIndexer, Root, attempt_id

from stepseal.errors import RootNotFound
from stepseal.steps import PosixSteps

if TYPE_CHECKING:
    from stepseal.steps import RemoveSteps, StepStore
    from stepseal.storage import Storage


def store_of(storage: Storage) -> StepStore:
    return PosixSteps(storage)


def test_a_root_is_read(storage: Storage) -> None:
    steps = store_of(storage)
    with pytest.raises(RootNotFound):
        steps.run_id()
    root = Root(storage)
    root.commit(10)
    root.commit(20)
    storage.make_dir("checkpoint-500")
    assert steps.run_id() == root.run_id
    assert [entry.step for entry in steps.entries(root.run_id)] == [10, 20]
    assert steps.entry(10).ref().step == 10
    assert steps.foreign() == ("checkpoint-500",)
    assert steps.lineage_limits() == {1: None}
    assert steps.writable_problem() is None
    manifest = steps.entry(20).manifest
    assert manifest is not None
    with steps.reading(manifest):
        assert steps.removal().guards().leased.keys() == {20}
    assert not steps.removal().guards().leased


def test_pins_are_kept_by_hand(storage: Storage) -> None:
    root = Root(storage)
    root.commit(10)
    pins = store_of(storage).pins
    assert pins.add(10, root.run_id, reason="paper")
    assert not pins.add(10, root.run_id)
    assert pins.steps() == {10}
    assert pins.reason(10) == "paper"
    assert pins.remove(10)
    assert not pins.remove(10)


def test_an_attempt_is_found_by_its_nonce_and_its_outcome(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    steps = store_of(storage)
    staging, manifest = root.prepare(10)
    assert len(steps.find_nonce(staging) or "") == 32
    assert steps.find_nonce(f"{staging}0") is None
    assert steps.resolve(10, manifest.attempt, staging).state == "unknown"
    sha256 = root.publish(staging, manifest)
    found = steps.resolve(10, manifest.attempt, staging)
    assert (found.state, found.manifest_sha256) == ("committed", sha256)
    assert steps.resolve(10, attempt_id(9), f"{staging}0").state == "not committed"


def test_a_coordinator_owns_the_root(storage: Storage) -> None:
    owned = store_of(storage).own(FakeIndexer(), lease_s=60)
    assert owned.claim_unrestored() == 1
    begun = owned.begin(10, 1, attempt_id(1))
    assert store_of(storage).find_nonce(begun.key) == begun.nonce
    owned.discard(begun.key)
    assert store_of(storage).find_nonce(begun.key) is None
    assert owned.select(step=None, exclude=(), unverified=False).ref is None


def test_steps_are_removed_through_one_view(storage: Storage) -> None:
    root = Root(storage)
    root.commit(10)
    root.commit(20)
    removal: RemoveSteps = store_of(storage).removal()
    assert [entry.step for entry in removal.entries(root.run_id)] == [10, 20]
    assert [claim.incarnation for claim in removal.claims()] == [1]
    assert removal.trash() == removal.superseded() == ()
    assert removal.now_s() > 0
    work = removal.retirement(1, trash_grace_s=0.0, trashed=())
    work.attempt(work.remove_step, removal.entries(root.run_id)[0])
    assert work.report.removed == [10]
    removal.sweep(1)
    assert [entry.step for entry in removal.entries(root.run_id)] == [20]
