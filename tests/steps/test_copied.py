"""A step folder outside its root: the store of one step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stepseal.errors import StepNotFound
from stepseal.layout import MARKER, seal
from stepseal.steps import CopiedStep, is_step_folder, open_step_folder, open_store

ROOT = Path(__file__).parent.parent / "compat" / "v1"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of step 7, under a name that is no step's."""
    return Path(shutil.copytree(ROOT / "step-7", tmp_path / "best"))


def test_a_copy_is_a_store_of_its_one_step(copy: Path) -> None:
    store, manifest, key = open_step_folder(copy)
    assert isinstance(store, CopiedStep)
    assert (manifest.step, key) == (7, "")
    assert store.run_id() == manifest.run_id
    assert store.lineage_limits() == {manifest.incarnation: None}
    (entry,) = store.entries()
    assert store.entry(7) is entry
    with pytest.raises(StepNotFound, match="folder of step-7 alone"):
        store.entry(8)


def test_a_copy_is_read_without_a_lease(copy: Path) -> None:
    store, manifest, _ = open_step_folder(copy)
    before = sorted(copy.rglob("*"))
    with store.reading(manifest) as reading:
        assert not reading.is_leased
        reading.require_standing()
    assert sorted(copy.rglob("*")) == before


def test_a_step_in_its_own_root_is_read_there(tmp_path: Path) -> None:
    root = Path(shutil.copytree(ROOT, tmp_path / "root"))
    store, manifest, key = open_step_folder(root / "step-7")
    assert not isinstance(store, CopiedStep)
    assert (manifest.step, key) == (7, "step-7")


def test_a_step_in_a_damaged_root_is_a_copy(tmp_path: Path) -> None:
    root = Path(shutil.copytree(ROOT, tmp_path / "root"))
    (root / MARKER).write_text("{}")
    store, _, key = open_step_folder(root / "step-7")
    assert isinstance(store, CopiedStep)
    assert key == ""


def test_a_step_in_a_root_of_another_run_is_a_copy(tmp_path: Path) -> None:
    root = Path(shutil.copytree(ROOT, tmp_path / "root"))
    (root / MARKER).write_bytes(seal({"format_version": 1, "run_id": "f" * 32}))
    assert open_store(root).run_id() == "f" * 32
    store, _, key = open_step_folder(root / "step-7")
    assert isinstance(store, CopiedStep)
    assert key == ""


def test_what_is_no_step_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(StepNotFound, match="no such folder"):
        open_step_folder(tmp_path / "nowhere")
    with pytest.raises(StepNotFound, match=r"found no manifest\.json"):
        open_step_folder(tmp_path)


def test_a_step_folder_is_told_from_a_root(copy: Path, tmp_path: Path) -> None:
    assert is_step_folder(copy)
    assert not is_step_folder(ROOT)
    assert not is_step_folder(tmp_path)
