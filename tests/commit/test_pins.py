from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.commit._kit import Root, damage, exists

from stepseal.commit._pins import PINS, pin, read_pins, unpin
from stepseal.errors import StepNotFound
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
