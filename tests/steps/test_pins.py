from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import Root, damage, exists, overwrite

from stepseal.errors import StepNotFound
from stepseal.layout import seal
from stepseal.steps._pins import PINS, pin, read_pin_reason, read_pins, unpin
from stepseal.testing import FaultyStorage

if TYPE_CHECKING:
    from stepseal.storage import Storage


def test_a_pin_is_there_until_it_is_taken_back(storage: Storage) -> None:
    root = Root(storage)
    root.commit(10)
    assert read_pins(storage) == frozenset()
    assert pin(storage, 10, root.run_id, reason="release")
    assert not pin(storage, 10, root.run_id)
    assert read_pins(storage) == {10}
    assert unpin(storage, 10)
    assert not unpin(storage, 10)
    assert read_pins(storage) == frozenset()


@pytest.mark.parametrize("body", [b"no JSON", seal([]), seal({"reason": 5})])
def test_the_first_reason_stays_and_a_pin_without_one_is_a_pin(
    storage: Storage, body: bytes
) -> None:
    root = Root(storage)
    root.commit(10)
    assert read_pin_reason(storage, 10) is None
    pin(storage, 10, root.run_id, reason="release")
    pin(storage, 10, root.run_id, reason="paper")
    assert read_pin_reason(storage, 10) == "release"
    overwrite(storage, f"{PINS}/step-10.json", body)
    assert read_pin_reason(storage, 10) is None
    assert read_pins(storage) == {10}


@pytest.mark.parametrize("what", ["absent", "damaged", "of another run"])
def test_only_committed_steps_of_the_run_are_pinned(storage: Storage, what: str) -> None:
    root = Root(storage)
    root.commit(10)
    if what == "damaged":
        damage(storage, 10)
    run_id = "0" * 32 if what == "of another run" else root.run_id
    with pytest.raises(StepNotFound, match="Nothing was pinned"):
        pin(storage, 11 if what == "absent" else 10, run_id)
    assert read_pins(storage) == frozenset()


@pytest.mark.parametrize("before", [False, True])
def test_a_step_that_is_pruned_meanwhile_is_not_found_and_the_pin_stays(
    storage: Storage, before: bool
) -> None:
    """Somebody else may have been told that it is pinned already."""
    root = Root(storage)
    root.commit(10)
    if before:
        pin(storage, 10, root.run_id)

    class Pruned(FaultyStorage):
        def link(self, source: str, target: str) -> None:
            storage.rename("step-10", ".stepseal/trash/gone")
            super().link(source, target)

    with pytest.raises(StepNotFound, match="stepseal unpin ROOT 10"):
        pin(Pruned(storage), 10, root.run_id)
    assert read_pins(storage) == {10}


def test_other_names_are_no_pins(storage: Storage) -> None:
    root = Root(storage)
    root.commit(10)
    for name in ("step-010.json", "step-10", "note.json", ".tmp-1.json"):
        storage.make_dir(f"{PINS}/{name}")
    assert read_pins(storage) == frozenset()
    assert exists(storage, f"{PINS}/note.json")
