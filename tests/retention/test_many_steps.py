"""How much a prune reads does not grow with what a root keeps, and what it knows is never stale."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from tests.retention._kit import NOW_S, inspect_with, steps_of
from tests.steps._kit import Root, overwrite

from stepseal.layout import LATEST, MANIFEST
from stepseal.retention import Housekeeper, Retention, latest
from stepseal.steps import KnownStep, Removal, _remembered
from stepseal.steps._catalog import list_steps
from stepseal.steps._latest import point_latest
from stepseal.steps._pins import Pins
from stepseal.storage import LocalStorage, create_durable, read_bytes, remove_tree
from stepseal.testing import Fail, Fault, FaultyStorage, MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from pathlib import Path

    from stepseal.storage import Storage


class Job:
    """A job that keeps its newest steps, and counts what its prunes do."""

    def __init__(self, storage: Storage, num_kept: int, *plan: Fault) -> None:
        self.storage = storage
        self.root = Root(storage)
        self.counting = FaultyStorage(storage, plan, reads=True)
        removal = Removal(self.counting, lambda: NOW_S)
        retention = Retention(latest(num_kept))
        self._keep = Housekeeper(removal, retention, inspect_with(self.counting))
        self._step = 0

    def save(self, num_steps: int = 1) -> None:
        for _ in range(num_steps):
            self._step += 10
            self.root.commit(self._step)
            point_latest(self.storage, self._step)
        self.keep_house(True)

    def keep_house(self, committed: bool) -> None:
        self._keep(self.root.run_id, self.root.number, committed)

    def reads_of_a_save(self) -> tuple[int, int]:
        """Return how many reads a prune after one save makes, and how many are of manifests."""
        before = len(self.counting.count.operations())
        self.save()
        made = [one for one in self.counting.count.operations()[before:] if "read" in one.name]
        manifests = [one for one in made if one.key.endswith(f"/{MANIFEST}")]
        return len(made), len(manifests)


def reads_with(num_kept: int) -> tuple[int, int]:
    job = Job(MemoryStorage(), num_kept)
    job.save(num_kept)
    job.save()
    return job.reads_of_a_save()


def test_the_reads_of_a_save_and_its_prune_do_not_grow_with_the_steps_that_are_kept() -> None:
    assert reads_with(3) == reads_with(60)


def test_a_prune_that_remembers_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = _remembered.RememberedSteps.entries

    def forgetful(self: _remembered.RememberedSteps) -> tuple[KnownStep, ...]:
        self._known.clear()
        return real(self)

    monkeypatch.setattr(_remembered.RememberedSteps, "entries", forgetful)
    assert reads_with(3) < reads_with(60)


def cut_short(root: Storage, step: str) -> None:
    overwrite(root, f"{step}/{MANIFEST}", b"{}")


def flip_a_byte(root: Storage, step: str) -> None:
    """The size of the file stays as it was."""
    data = bytearray(read_bytes(root, f"{step}/{MANIFEST}", 1 << 20))
    data[len(data) // 2] ^= 1
    overwrite(root, f"{step}/{MANIFEST}", bytes(data))


def lose_the_manifest(root: Storage, step: str) -> None:
    root.remove_file(f"{step}/{MANIFEST}")


def replace_the_folder(root: Storage, step: str) -> None:
    """Another step is copied to its place."""
    data = read_bytes(root, f"step-50/{MANIFEST}", 1 << 20)
    remove_tree(root, step)
    root.make_dir(step)
    create_durable(root, f"{step}/{MANIFEST}", data)


def remove(root: Storage, step: str) -> None:
    remove_tree(root, step)


HARM = [cut_short, flip_a_byte, lose_the_manifest, replace_the_folder, remove]


def after_harm(storage: Storage, harm: Callable[[Storage, str], None]) -> list[str]:
    """Return the good steps of a job that keeps three, after one of them was harmed by hand."""
    job = Job(storage, 3)
    job.save(5)
    assert steps_of(storage) == ["step-30", "step-40", "step-50"]
    harm(storage, "step-40")
    job.save()
    entries = list_steps(storage, job.root.run_id)
    return [entry.name for entry in entries if entry.state == "committed"]


@pytest.mark.parametrize("harm", HARM)
def test_what_was_harmed_since_the_last_save_does_not_count_as_kept(
    storage: Storage, harm: Callable[[Storage, str], None]
) -> None:
    """Three good steps are kept, so an older one stays in the place of the harmed one."""
    assert after_harm(storage, harm) == ["step-30", "step-50", "step-60"]


@pytest.mark.parametrize("harm", HARM)
def test_a_prune_that_trusts_what_it_knows_is_found(
    monkeypatch: pytest.MonkeyPatch, harm: Callable[[Storage, str], None]
) -> None:
    """It lists the names, so a step that is gone is seen by any."""
    real = MemoryStorage.list_marks

    def blind(self: MemoryStorage, key: str, name: str) -> dict[str, Hashable | None]:
        return dict.fromkeys(real(self, key, name), "as always")

    monkeypatch.setattr(MemoryStorage, "list_marks", blind)
    if harm is remove:
        assert "step-30" in after_harm(MemoryStorage(), harm)
    else:
        assert "step-30" not in after_harm(MemoryStorage(), harm)


def test_what_is_pinned_or_put_back_between_two_saves_is_seen(storage: Storage) -> None:
    job = Job(storage, 2)
    job.save(3)
    Pins(storage).add(20, job.root.run_id)
    storage.rename("step-30", "elsewhere")
    job.save()
    storage.rename("elsewhere", "step-30")
    job.save(2)
    assert steps_of(storage) == ["step-20", "step-50", "step-60"]


def test_a_step_behind_a_link_is_no_step_any_more(tmp_path: Path) -> None:
    with LocalStorage.create(tmp_path / "root") as storage:
        job = Job(storage, 2)
        job.save(3)
        shutil.move(tmp_path / "root" / "step-30", tmp_path / "step-30")
        (tmp_path / "root" / "step-30").symlink_to(tmp_path / "step-30")
        job.save()
        assert steps_of(storage) == ["step-20", "step-30", "step-40"]


def test_a_write_in_place_is_seen_although_size_and_time_of_writing_are_as_before(
    tmp_path: Path,
) -> None:
    with LocalStorage.create(tmp_path / "root") as storage:
        job = Job(storage, 3)
        job.save(5)
        path = tmp_path / "root" / "step-40" / MANIFEST
        before, data = path.stat(), bytearray(path.read_bytes())
        data[-2] = 0
        while path.stat().st_ctime_ns == before.st_ctime_ns:  # until its clock has moved on
            with path.open("r+b") as file:
                file.write(data)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        job.save()
        assert steps_of(storage) == ["step-30", "step-40", "step-50", "step-60"]


def test_after_a_step_was_removed_by_hand_the_next_look_repairs_latest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = MemoryStorage()
    job = Job(
        storage, 3, Fault(lambda verb, key: verb == "rename" and LATEST in key, Fail(errno.EIO))
    )
    job.save(3)
    remove_tree(storage, "step-30")
    with caplog.at_level(logging.WARNING):
        job.keep_house(False)
    assert "housekeeping failed" in caplog.text
    assert read_bytes(storage, LATEST, 100) == b"step-30\n"
    job.keep_house(False)
    assert read_bytes(storage, LATEST, 100) == b"step-20\n"
