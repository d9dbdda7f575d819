from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import Root, damage, overwrite

from stepseal import errors
from stepseal.layout import MANIFEST, MARKER, encode_manifest, seal
from stepseal.steps import refuse_newer
from stepseal.steps._catalog import list_foreign, list_steps, read_step, step_numbers
from stepseal.storage import KeyNotFound, create_durable, make_dirs, read_bytes
from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path

    from stepseal.storage import Entry, LocalStorage, ReadHandle, Storage


def states(storage: Storage, run_id: str | None = None) -> dict[int, str]:
    return {entry.step: entry.state for entry in list_steps(storage, run_id)}


def test_committed_step_is_listed_with_its_manifest(storage: Storage) -> None:
    root = Root(storage)
    head = root.commit(10)
    (entry,) = list_steps(storage, root.run_id)
    assert (entry.step, entry.name, entry.state, entry.problem) == (10, "step-10", "committed", "")
    assert entry.ref() == head
    assert entry.is_commit


def test_steps_come_in_the_order_of_their_numbers(storage: Storage) -> None:
    root = Root(storage)
    for step in (100, 9, 20):
        root.commit(step)
    assert step_numbers(storage) == [9, 20, 100]
    assert list(states(storage)) == [9, 20, 100]


def test_names_that_are_no_step_are_not_listed(storage: Storage) -> None:
    root = Root(storage)
    strange = ["step-060", "my-step-1", "step-40.backup", "step-", "step--1", "step-1 ", "Step-2"]
    for name in [*strange, "step_12", "checkpoint-3", "global_step4", "iter_0000001", "data"]:
        make_dirs(storage, name)
    create_durable(storage, "latest", b"step-60\n")
    assert list_steps(storage, root.run_id) == ()
    foreign = [entry.name for entry in list_foreign(storage)]
    assert set(foreign) == {*strange, "step_12", "checkpoint-3", "global_step4", "iter_0000001"}
    assert MARKER not in foreign


def test_stock_dcp_folder_and_file_are_foreign(storage: Storage) -> None:
    make_dirs(storage, "step-5")
    create_durable(storage, "step-5/.metadata", b"pickle")
    create_durable(storage, "step-5/__0_0.distcp", b"data")
    create_durable(storage, "step-7", b"a file")
    five, seven = list_steps(storage)
    assert (five.state, seven.state) == ("foreign", "foreign")
    assert "found a file" in seven.problem
    assert not five.is_commit
    assert not seven.is_commit


def test_symlink_is_foreign_and_not_followed(local: LocalStorage, tmp_path: Path) -> None:
    root = Root(local)
    root.commit(6)
    (tmp_path / "root" / "step-8").symlink_to("step-6")
    assert states(local, root.run_id) == {6: "committed", 8: "foreign"}


def test_symlinked_manifest_is_damage(local: LocalStorage, tmp_path: Path) -> None:
    Root(local).commit(6)
    manifest = tmp_path / "root" / "step-6" / MANIFEST
    manifest.rename(tmp_path / "elsewhere")
    manifest.symlink_to(tmp_path / "elsewhere")
    (entry,) = list_steps(local)
    assert entry.state == "damaged"
    assert "symlink" in entry.problem


def test_step_of_another_run_is_foreign_but_a_commit(storage: Storage) -> None:
    root = Root(storage)
    root.commit(5)
    assert states(storage, root.run_id) == {5: "committed"}
    (entry,) = list_steps(storage, "f" * 32)
    assert (entry.state, entry.is_commit) == ("foreign", True)
    assert root.run_id in entry.problem


def test_missing_manifest_beside_parts_is_damage(storage: Storage) -> None:
    Root(storage).commit(5)
    storage.remove_file(f"step-5/{MANIFEST}")
    (entry,) = list_steps(storage)
    assert (entry.state, entry.is_commit) == ("damaged", True)
    assert "missing" in entry.problem


def test_damaged_manifest_is_damage(storage: Storage) -> None:
    Root(storage).commit(5)
    damage(storage, 5)
    assert states(storage) == {5: "damaged"}


def test_manifest_of_another_step_is_damage(storage: Storage) -> None:
    Root(storage).commit(5)
    storage.rename("step-5", "step-6")
    (entry,) = list_steps(storage)
    assert entry.state == "damaged"
    assert "of step 5" in entry.problem


def test_oversized_manifest_is_damage(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    Root(storage).commit(5)
    monkeypatch.setattr("stepseal.steps._catalog.MAX_MANIFEST_BYTES", 100)
    assert states(storage) == {5: "damaged"}


def test_each_flipped_bit_of_a_manifest_is_noticed() -> None:
    storage = MemoryStorage()
    root = Root(storage)
    head = root.commit(5)
    key = f"step-5/{MANIFEST}"
    data = read_bytes(storage, key, 1 << 20)
    for bit in range(0, 8 * len(data), 13):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        overwrite(storage, key, bytes(flipped))
        assert read_step(storage, 5, root.run_id).state != "committed"
    overwrite(storage, key, data)
    assert read_step(storage, 5, root.run_id).ref() == head


def test_absent_step(storage: Storage) -> None:
    with pytest.raises(errors.StepNotFound) as caught:
        read_step(storage, 5, None)
    assert (caught.value.step, caught.value.path) == (5, "step-5")


class Vanishing(MemoryStorage):
    """Loses a folder at the first look into it, as when another process moves it away."""

    def open_read(self, key: str) -> ReadHandle:  # type: ignore[override]
        self.rename("step-5", "elsewhere")
        return super().open_read(key)


def test_step_that_vanishes_between_listing_and_look_is_not_listed() -> None:
    storage = Vanishing()
    make_dirs(storage, "step-5/parts")
    assert list_steps(storage) == ()


def test_listing_does_not_run_after_vanishing_steps_for_ever() -> None:
    class Restless(MemoryStorage):
        """No folder that is listed is there when it is looked at."""

        def stat(self, key: str) -> Entry:
            raise KeyNotFound(key)

    storage = Restless()
    storage.make_dir("step-5")
    with pytest.raises(errors.StorageUnavailable, match="vanished"):
        list_steps(storage)


def test_folder_that_is_swapped_while_it_is_looked_at_is_foreign(
    local: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dirs(local, "step-5")

    def swap(*_: object) -> bytes:
        (tmp_path / "root" / "step-5").rmdir()
        (tmp_path / "root" / "step-5").symlink_to(tmp_path)
        raise KeyNotFound("gone")

    monkeypatch.setattr("stepseal.steps._catalog.read_bytes", swap)
    (entry,) = list_steps(local)
    assert entry.state == "foreign"


def test_a_step_that_leaves_and_is_put_back_while_it_is_looked_at_is_whole() -> None:
    class Away(MemoryStorage):
        """A step is away for the first look at its manifest."""

        away = True

        def open_read(self, key: str) -> ReadHandle:  # type: ignore[override]
            if self.away and key == f"step-10/{MANIFEST}":
                self.away = False
                raise KeyNotFound(key)
            return super().open_read(key)

    storage = Away()
    root = Root(storage)
    root.commit(10)
    storage.away = True
    assert read_step(storage, 10, root.run_id).state == "committed"


def test_refusal_to_read_is_not_taken_for_absence() -> None:
    class Refusing(MemoryStorage):
        def open_read(self, key: str) -> ReadHandle:  # type: ignore[override]
            raise errors.StorageUnavailable("no", errno=errno.EACCES)

    storage = Refusing()
    make_dirs(storage, "step-5")
    with pytest.raises(errors.StorageUnavailable):
        list_steps(storage)


def test_manifest_of_the_kit_is_whole() -> None:
    root = Root(MemoryStorage())
    root.claim()
    _, manifest = root.prepare(3, metrics={"loss": float("nan")}, tags=["release"], cut={"a": 1})
    assert encode_manifest(manifest)


def test_a_step_of_a_newer_format_is_never_passed_over(storage: Storage) -> None:
    root = Root(storage)
    root.commit(10)
    body = {"format_version": 2, "surprise": True}
    overwrite(storage, f"step-10/{MANIFEST}", seal(body))
    entry = read_step(storage, 10, root.run_id)
    assert entry.state == "newer"
    with pytest.raises(errors.IncompatibleFormat, match="step-10"):
        refuse_newer(entry)
