"""What stands in the way leaves between the last look and the exchange: a prune was quicker."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import Root, damage, exists

from stepseal import errors
from stepseal.errors import OutcomeUnknown
from stepseal.steps._attempts import attempt_at
from stepseal.steps._catalog import read_step
from stepseal.steps._publish import publish
from stepseal.steps._roots import STAGING, SUPERSEDED
from stepseal.storage import KeyExists
from stepseal.testing import FaultyStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.layout import Manifest
    from stepseal.storage import ReadHandle, Storage


class Leaving(FaultyStorage):
    """Step 20 leaves right before the exchange; then something else may happen."""

    def __init__(self, inner: Storage, then: Callable[[], object] = bool) -> None:
        super().__init__(inner)
        self.then = then

    def exchange(self, first: str, second: str) -> None:
        if not exists(self._inner, "left"):
            self._inner.rename("step-20", "left")
            self.then()
        super().exchange(first, second)


def forked(storage: Storage) -> tuple[Root, str, Manifest]:
    """Return an attempt at step 20, which is outside the lineage: the job fell back to step 10."""
    root = Root(storage)
    head = root.commit(10)
    root.commit(20)
    root.claim(head)
    return root, *root.prepare(20)


def test_the_free_place_is_taken(storage: Storage) -> None:
    root, staging, manifest = forked(storage)
    root.storage = Leaving(storage)
    root.publish(staging, manifest)
    assert read_step(storage, 20, root.run_id).manifest == manifest
    assert root.names(STAGING) == root.names(SUPERSEDED) == []


def test_who_took_longer_is_judged_again(storage: Storage) -> None:
    root, staging, manifest = forked(storage)
    root.storage = Leaving(storage, Root(storage).claim)
    with pytest.raises(errors.NotCurrent):
        root.publish(staging, manifest)
    assert not exists(storage, "step-20")
    asked = iter([False, False, True])
    root, staging, manifest = forked(root.storage)
    storage.rename("left", "gone")
    with pytest.raises(errors.CommitTimeout):
        publish(
            Leaving(storage), staging, manifest,
            indexer=root.indexer, deadline_passed=lambda: next(asked),
        )  # fmt: skip


@pytest.mark.parametrize("what", ["good", "damaged"])
def test_what_appears_in_the_free_place_is_not_replaced(storage: Storage, what: str) -> None:
    root, staging, manifest = forked(storage)
    rival = Root(storage, number=root.number, num_attempts=5)

    class Appearing(Leaving):
        def rename(self, source: str, target: str, *, replace: bool = False) -> None:
            if target == "step-20" and exists(storage, "left"):
                rival.commit(20)
                if what == "damaged":
                    damage(storage, 20)
            super().rename(source, target, replace=replace)

    root.storage = Appearing(storage)
    with pytest.raises(errors.StepExists if what == "good" else KeyExists):
        root.publish(staging, manifest)
    assert attempt_at(storage, staging) == manifest.attempt
    assert attempt_at(storage, "step-20") != manifest.attempt


def test_staging_that_left_too_leaves_the_outcome_unknown(storage: Storage) -> None:
    root, staging, manifest = forked(storage)
    root.storage = Leaving(storage, lambda: storage.rename(staging, "swept"))
    with pytest.raises(OutcomeUnknown):
        root.publish(staging, manifest)
    assert not exists(storage, "step-20")


def test_what_cannot_be_looked_at_is_unconfirmed(storage: Storage) -> None:
    root, staging, manifest = forked(storage)

    class Blind(Leaving):
        def open_read(self, key: str) -> ReadHandle:
            if key.startswith(staging) and exists(storage, "left"):
                raise errors.StorageUnavailable("no", errno=errno.EIO)
            return super().open_read(key)

    root.storage = Blind(storage)
    with pytest.raises(OutcomeUnknown):
        root.publish(staging, manifest)
    assert attempt_at(storage, staging) == manifest.attempt
