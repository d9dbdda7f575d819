from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import Root, overwrite

from stepseal.steps._claims import INCARNATIONS
from stepseal.steps._guards import Guards, read_guards
from stepseal.steps._leases import LEASES, release_lease, take_lease
from stepseal.steps._pins import PINS, pin
from stepseal.testing import FaultyStorage

if TYPE_CHECKING:
    from stepseal.storage import Entry, Storage


def test_nothing_protects_a_step_by_default(storage: Storage) -> None:
    assert read_guards(storage, 0) == Guards()
    root = Root(storage)
    root.commit(10)
    assert read_guards(storage, 0).reasons(10) == ()


def test_every_guard_is_a_reason(storage: Storage) -> None:
    root = Root(storage)
    parent = root.commit(10)
    root.claim(parent)
    pin(storage, 10, root.run_id)
    take_lease(storage, 10, ttl_s=10, now_s=1000)
    guards = read_guards(storage, 1000)
    assert guards == Guards(frozenset({10}), {10: 1011}, 10)
    assert len(guards.reasons(10)) == 3
    assert guards.reasons(20) == ()


def test_a_damaged_claim_hides_what_it_resumed_from(storage: Storage) -> None:
    root = Root(storage)
    root.claim(root.commit(10))
    overwrite(storage, ".stepseal/incarnations/2.json", b"{}")
    assert read_guards(storage, 0).parent is None


@pytest.mark.parametrize("reading", [LEASES, PINS, INCARNATIONS])
def test_a_step_that_is_restored_meanwhile_is_protected(storage: Storage, reading: str) -> None:
    """A restore leases its step, claims, and releases the lease: one of the two is always seen."""
    root = Root(storage)
    parent = root.commit(10)
    root.commit(20)
    lease = take_lease(storage, 10, ttl_s=10, now_s=1000)

    class Restoring(FaultyStorage):
        def list_dir(self, key: str) -> tuple[Entry, ...]:
            if key == reading:
                root.claim(parent)
                release_lease(storage, lease)
            return super().list_dir(key)

    assert read_guards(Restoring(storage), 1000).reasons(10)
