from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import Root, damage, exists, overwrite

from stepseal.layout import LATEST, MANIFEST
from stepseal.steps import _latest
from stepseal.steps._catalog import list_steps
from stepseal.steps._latest import newest_step, point_latest, repair_latest
from stepseal.storage import read_bytes, remove_tree
from stepseal.testing import FaultyStorage, MemoryStorage

if TYPE_CHECKING:
    from stepseal.steps import StepEntry
    from stepseal.storage import ReadHandle, Storage


def saved(storage: Storage, *steps: int) -> Root:
    """Return a root with these steps, of which `latest` names the last one."""
    root = Root(storage)
    for step in steps:
        root.commit(step)
        point_latest(storage, step)
    return root


def newest(storage: Storage, root: Root) -> int | None:
    found = newest_step(storage, root.run_id)
    return None if found is None else found.step


def test_the_newest_step_is_a_sound_one_of_the_lineage(storage: Storage) -> None:
    root = saved(storage, 10, 20)
    first = root.head
    root.commit(30)
    assert newest(storage, root) == 30
    damage(storage, 30)
    assert newest(storage, root) == 20
    assert first is not None
    root.commit(40)
    root.claim(first)  # 40 is outside the lineage now
    assert newest(storage, root) == 20
    assert newest_step(storage, "0" * 32) is None


def manifests_read(num_steps: int) -> int:
    storage = MemoryStorage()
    root = saved(storage, *range(1, num_steps + 1))
    counting = FaultyStorage(storage, reads=True)
    assert newest(counting, root) == num_steps
    made = counting.count.operations()
    return sum(one.name == "open_read" and one.key.endswith(MANIFEST) for one in made)


def test_only_the_newest_manifest_is_read() -> None:
    assert manifests_read(3) == manifests_read(30) == 1


def test_a_look_at_all_steps_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def eager(storage: Storage, run_id: str) -> StepEntry | None:
        return list_steps(storage, run_id)[-1]

    monkeypatch.setitem(globals(), "newest_step", eager)
    assert manifests_read(3) != manifests_read(30)


def test_a_step_that_vanishes_meanwhile_sends_to_the_one_that_it_was_removed_for() -> None:
    root = saved(MemoryStorage(), 10)

    class Pruned(FaultyStorage):
        done = False

        def open_read(self, key: str) -> ReadHandle:
            if key.startswith("step-10/") and not self.done:
                self.done = True
                root.commit(20)
                remove_tree(root.storage, "step-10")
            return super().open_read(key)

    assert newest(Pruned(root.storage), root) == 20


def named(storage: Storage) -> bytes:
    return read_bytes(storage, LATEST, 100)


def test_latest_names_the_newest_step_that_is_left(storage: Storage) -> None:
    root = saved(storage, 10, 20, 30)
    remove_tree(storage, "step-20")
    remove_tree(storage, "step-30")
    repair_latest(storage, root.run_id)
    assert named(storage) == b"step-10\n"


def test_without_a_step_there_is_no_latest(storage: Storage) -> None:
    root = saved(storage, 10)
    remove_tree(storage, "step-10")
    repair_latest(storage, root.run_id)
    assert not exists(storage, LATEST)
    repair_latest(storage, root.run_id)


@pytest.mark.parametrize("text", [b"mine\n", b"step-10\n", b"\xff"])
def test_what_names_a_step_that_is_there_or_none_at_all_is_left_alone(
    storage: Storage, text: bytes
) -> None:
    root = saved(storage, 10, 20)
    overwrite(storage, LATEST, text)
    repair_latest(storage, root.run_id)
    assert named(storage) == text


class Committing(FaultyStorage):
    """A save commits step 40, and moves `latest`, right before the repair does."""

    def __init__(self, root: Root) -> None:
        super().__init__(root.storage)
        self.root: Root | None = root

    def rename(self, source: str, target: str, *, replace: bool = False) -> None:
        if target == LATEST and self.root is not None:
            root, self.root = self.root, None
            root.commit(40)
            point_latest(root.storage, 40)
        super().rename(source, target, replace=replace)


def after_a_commit_meanwhile() -> bytes:
    root = saved(MemoryStorage(), 10, 20, 30)
    remove_tree(root.storage, "step-30")
    repair_latest(Committing(root), root.run_id)
    return named(root.storage)


def test_a_commit_meanwhile_is_what_latest_names() -> None:
    assert after_a_commit_meanwhile() == b"step-40\n"


def test_a_repair_without_another_look_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_latest, "_LOOKS", 1)
    assert after_a_commit_meanwhile() == b"step-20\n"
