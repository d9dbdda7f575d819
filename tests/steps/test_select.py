from __future__ import annotations

import contextlib
import dataclasses
import errno
from typing import TYPE_CHECKING, Any

import pytest
from tests.steps._kit import FakeIndexer, Root, damage

from stepseal import errors
from stepseal.layout import MANIFEST
from stepseal.steps._publish import publish
from stepseal.steps._roots import TRASH
from stepseal.steps._select import Selection, select
from stepseal.storage import KeyNotFound, create_durable, make_dirs
from stepseal.testing import Fail, Fault, FaultyStorage, MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stepseal.layout import Manifest
    from stepseal.storage import Entry, LocalStorage, ReadHandle, Storage


def inspect(storage: Storage, key: str, manifest: Manifest) -> Sequence[str]:
    return FakeIndexer().inspect(storage, key, manifest, exact=False)


def choose(root: Root, step: int | None = None, **options: Any) -> Selection:  # noqa: ANN401
    values: dict[str, Any] = {"exclude": (), "inspect": inspect} | options
    return select(root.storage, root.run_id, step=step, **values)


def chosen(selection: Selection) -> int | None:
    return None if selection.entry is None else selection.entry.step


@pytest.fixture
def root(storage: Storage) -> Root:
    found = Root(storage)
    for step in (9, 10, 100):
        found.commit(step)
    return found


def test_newest_by_number_not_by_name(root: Root) -> None:
    found = choose(root)
    assert chosen(found) == 100
    assert found.reasons == {}
    assert found.has_commits


def test_excluded_steps_are_passed_over_without_a_reason(root: Root) -> None:
    assert chosen(choose(root, exclude=(100,))) == 10
    found = choose(root, exclude=(100, 10, 9))
    assert (chosen(found), found.has_commits) == (None, True)


def test_damage_is_passed_over_with_a_reason(root: Root) -> None:
    damage(root.storage, 100)
    root.storage.remove_file("step-10/parts/trainer/0.json")
    found = choose(root)
    assert chosen(found) == 9
    assert found.reasons["step-100"].startswith("damaged: ")
    assert "parts/trainer/0.json: missing" in found.reasons["step-10"]


def test_nothing_left_gives_all_reasons(root: Root) -> None:
    for step in (9, 10, 100):
        damage(root.storage, step)
    found = choose(root)
    assert (chosen(found), found.has_commits) == (None, True)
    assert set(found.reasons) == {"step-9", "step-10", "step-100"}


def test_step_outside_the_lineage_is_passed_over(root: Root) -> None:
    head = choose(root, step=10).entry
    assert head is not None
    root.claim(head.ref())
    found = choose(root)
    assert chosen(found) == 10
    assert "outside the lineage" in found.reasons["step-100"]
    assert chosen(choose(root, step=100)) == 100  # asked for by number


def test_fresh_start_leaves_older_steps_out(root: Root) -> None:
    root.claim()
    found = choose(root)
    assert (chosen(found), found.has_commits, len(found.reasons)) == (None, True, 3)


def test_what_is_not_resumable_is_no_resume_point(root: Root) -> None:
    staging, manifest = root.prepare(200)
    partial = dataclasses.replace(manifest, resumable=False)
    publish(root.storage, staging, partial, indexer=root.indexer, deadline_passed=lambda: False)
    found = choose(root)
    assert chosen(found) == 100
    assert found.reasons == {"step-200": "not resumable (kind full)"}
    with pytest.raises(errors.NoResumableStep) as caught:
        choose(root, step=200)
    assert caught.value.reasons == {"step-200": "not resumable (kind full)"}


def test_foreign_folders_are_never_chosen_and_are_no_commits(storage: Storage) -> None:
    root = Root(storage)
    for name in ("step-060", "my-step-1", "step-40.backup", "step-5"):
        make_dirs(storage, name)
    create_durable(storage, "step-5/.metadata", b"x")
    create_durable(storage, "step-7", b"a file")
    found = choose(root)
    assert (chosen(found), found.has_commits, found.reasons) == (None, False, {})


def test_symlink_is_never_chosen(local: LocalStorage, tmp_path: Path) -> None:
    root = Root(local)
    root.commit(6)
    (tmp_path / "root" / "step-8").symlink_to("step-6")
    found = choose(root)
    assert chosen(found) == 6
    assert "symlink" in found.reasons["step-8"]


def test_steps_of_another_run_keep_a_root_from_counting_as_empty(root: Root) -> None:
    root.run_id = "f" * 32
    found = choose(root)
    assert (chosen(found), found.has_commits) == (None, True)
    assert "belongs to run" in found.reasons["step-100"]


def test_step_that_cannot_be_read_is_passed_over_with_a_reason(root: Root) -> None:
    class Refusing(FaultyStorage):
        def open_read(self, key: str) -> ReadHandle:
            if key == f"step-100/{MANIFEST}":
                raise errors.StorageUnavailable("bad sector", errno=errno.EIO)
            return super().open_read(key)

    root.storage = Refusing(root.storage)
    found = choose(root)
    assert chosen(found) == 10
    assert "bad sector" in found.reasons["step-100"]
    with pytest.raises(errors.StorageUnavailable):
        choose(root, step=100)


def test_a_refusal_that_passes_costs_no_step(root: Root) -> None:
    passing = Fault(lambda verb, key: key == f"step-100/{MANIFEST}", Fail(errno.ESTALE))
    root.storage = FaultyStorage(root.storage, [passing], reads=True)
    found = choose(root)
    assert (chosen(found), found.reasons) == (100, {})


def test_inspection_that_fails_is_a_reason(root: Root) -> None:
    def fail(storage: Storage, key: str, manifest: Manifest) -> Sequence[str]:
        if manifest.step == 100:
            raise errors.Corrupt("bad part")
        return ()

    found = choose(root, inspect=fail)
    assert chosen(found) == 10
    assert "bad part" in found.reasons["step-100"]


class Pruned(FaultyStorage):
    """The step of the first look is pruned for a newer one before it can be read."""

    def __init__(self, root: Root) -> None:
        super().__init__(root.storage)
        self.root: Root | None = root

    def open_read(self, key: str) -> ReadHandle:
        if key.startswith("step-10/") and self.root is not None:
            root, self.root = self.root, None
            root.commit(20)
            root.storage.rename("step-10", "gone")
        return super().open_read(key)


def test_step_that_is_pruned_while_choosing_sends_to_the_newer_one() -> None:
    root = Root(MemoryStorage())
    root.commit(10)
    found = select(Pruned(root), root.run_id, step=None, exclude=(), inspect=inspect)
    assert chosen(found) == 20


def test_step_that_vanishes_while_choosing_is_skipped() -> None:
    storage = MemoryStorage()
    root = Root(storage)
    root.commit(9)
    root.commit(10)

    class Vanishing(FaultyStorage):
        def list_dir(self, key: str):  # type: ignore[no-untyped-def] # noqa: ANN202
            found = super().list_dir(key)
            if key == "":
                with contextlib.suppress(KeyNotFound):
                    storage.rename("step-10", "elsewhere")
            return found

    root.storage = Vanishing(storage)
    found = choose(root)
    assert chosen(found) == 9
    assert found.reasons == {}


def test_choosing_does_not_run_after_vanishing_steps_for_ever() -> None:
    root = Root(MemoryStorage())
    root.commit(1)

    class AlwaysPruned(FaultyStorage):
        """The newest step of each look is pruned for a newer one before it can be read."""

        def list_dir(self, key: str) -> tuple[Entry, ...]:
            found = super().list_dir(key)
            if key == "":
                assert root.head is not None
                step = root.head.step
                root.commit(step + 1)
                root.storage.rename(f"step-{step}", f"{TRASH}/{step}")
            return found

    with pytest.raises(errors.StorageUnavailable, match="vanished before it could be read"):
        select(AlwaysPruned(root.storage), root.run_id, step=None, exclude=(), inspect=inspect)


def test_step_that_was_asked_for_is_never_replaced(root: Root) -> None:
    assert chosen(choose(root, step=10)) == 10
    with pytest.raises(errors.StepNotFound):
        choose(root, step=11)
    damage(root.storage, 100)
    with pytest.raises(errors.Corrupt, match="never restores another") as caught:
        choose(root, step=100)
    assert caught.value.problems
    root.storage.remove_file("step-10/parts/trainer/0.json")
    with pytest.raises(errors.Corrupt, match=r"trainer/0\.json"):
        choose(root, step=10)


def test_foreign_step_that_was_asked_for_is_not_found(root: Root) -> None:
    make_dirs(root.storage, "step-11")
    with pytest.raises(errors.StepNotFound, match="foreign"):
        choose(root, step=11)
