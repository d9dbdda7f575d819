"""Damage to whole files of the newest step, of every kind of file: found, explained, fallen back.

Sizes and kinds are checked for all files before a step is chosen, so that here every damage leads
to the older step, whether a restore would have read the file or not.
"""

from __future__ import annotations

import os
import shutil
import socket
from typing import TYPE_CHECKING

import pytest
from tests.campaigns._small_job import NEWEST, STEPS, new_folder, save_small_job

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.campaigns._small_job import SavedRoot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

FILES = (
    "manifest.json",
    ".metadata",
    "__0_0.distcp",
    "parts/trainer/0.json",
    "parts/trainer/0.safetensors",
    "parts/trainer/1.json",
    "components/counters/trainer/0.json",
    "components/loader/trainer/1.json",
    "components/loader/trainer/1.safetensors",
)


def _truncate_by_one(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _extend_by_one(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def _extend_without_blocks(path: Path) -> None:
    os.truncate(path, 1 << 40)


def _remove(path: Path) -> None:
    path.unlink()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _socket(path: Path) -> None:
    path.unlink()
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # the name of a socket has a short limit
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _symlink_to_the_same_bytes(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name(f"{path.name}.moved")))


def _dangling_symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _symlink_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


DAMAGES: tuple[Callable[[Path], None], ...] = (
    _truncate_by_one, _empty, _extend_by_one, _extend_without_blocks, _remove, _fifo, _socket,
    _directory, _symlink_to_the_same_bytes, _dangling_symlink, _symlink_loop,
)  # fmt: skip


def _check_falls_back(root: SavedRoot, to_step: int, *names: str) -> None:
    """Expect `verify` and the reason of a fall-back to name each of `names`."""
    damage = "; ".join(root.damage(STEPS[-1]))
    assert all(name in damage for name in names), damage
    life = root.life()
    life.scramble()
    restored = life.restore()
    assert restored.step == to_step
    reason = restored.skipped[NEWEST]
    assert any(name in reason for name in names), reason
    assert root.wrong_values(life, to_step) is None
    life.close()


def _check_restores(root: SavedRoot, step: int = STEPS[-1]) -> None:
    life = root.life()
    life.scramble()
    assert life.restore().step == step
    assert root.wrong_values(life, step) is None
    life.close()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_damage_to_any_file_falls_back_with_its_name(
    saved_root: SavedRoot, damage: Callable[[Path], None]
) -> None:
    with new_folder() as intact:
        shutil.copytree(saved_root.path / NEWEST, intact / NEWEST)
        for name in FILES:
            damage(saved_root.path / NEWEST / name)
            _check_falls_back(saved_root, 20, name)
            shutil.rmtree(saved_root.path / NEWEST)
            shutil.copytree(intact / NEWEST, saved_root.path / NEWEST)
            saved_root.forget_claims()
    _check_restores(saved_root)
    print(f"\nfile damage, {damage.__name__.strip('_')}: {len(FILES)} cases, 0 violations")


@pytest.mark.parametrize("name", FILES)
def test_zeros_in_a_file_never_reach_live_state(saved_root: SavedRoot, name: str) -> None:
    path = saved_root.path / NEWEST / name
    path.write_bytes(bytes(path.stat().st_size))
    if name != ".metadata":
        _check_falls_back(saved_root, 20, name)
        return
    assert any(name in line for line in saved_root.damage(STEPS[-1]))
    _check_restores(saved_root)  # written for stock readers only, never read


@pytest.mark.parametrize("other", ["step-20", "another run"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_step_or_run_does_not_pass_for_ours(
    saved_root: SavedRoot, name: str, other: str
) -> None:
    path = saved_root.path / NEWEST / name
    with new_folder() as folder:
        source = saved_root.path / other
        if other == "another run":
            source = save_small_job(folder / "root").path / NEWEST
        before = path.read_bytes()
        shutil.copyfile(source / name, path)
    if path.read_bytes() == before:
        _check_restores(saved_root)
    elif name == "manifest.json" and other == "another run":
        _check_falls_back(saved_root, 20, "belongs to run")
    elif name == ".metadata" and path.stat().st_size == len(before):
        _check_restores(saved_root)  # written for stock readers only, never read
        assert any(name in line for line in saved_root.damage(STEPS[-1]))
    else:
        _check_falls_back(saved_root, 20, name)


def test_two_files_of_one_size_that_changed_places_are_found(saved_root: SavedRoot) -> None:
    folder = saved_root.path / NEWEST
    sizes = saved_root.files()
    found = 0
    for first in sizes:
        for second in sizes:
            if first < second and sizes[first] == sizes[second]:
                _exchange(folder / first, folder / second)
                _check_falls_back(saved_root, 20, first)
                _exchange(folder / first, folder / second)
                saved_root.forget_claims()
                found += 1
    assert found > 0


def test_part_indexes_and_payloads_exchanged_between_steps_damage_both(
    saved_root: SavedRoot,
) -> None:
    name = "parts/trainer/0.safetensors"
    newest, older = saved_root.path / NEWEST, saved_root.path / "step-20"
    _exchange(newest / name, older / name)
    _check_falls_back(saved_root, 10, name)
    saved_root.forget_claims()
    _exchange(newest / "__0_0.distcp", older / "__0_0.distcp")
    _check_falls_back(saved_root, 10, name)


def test_whole_folders_that_changed_places_are_no_steps(saved_root: SavedRoot) -> None:
    _exchange(saved_root.path / NEWEST, saved_root.path / "step-20")
    _check_falls_back(saved_root, 10, "manifest.json")


def test_a_copy_of_a_step_under_another_number_is_no_step(saved_root: SavedRoot) -> None:
    shutil.copytree(saved_root.path / NEWEST, saved_root.path / "step-31")
    life = saved_root.life()
    restored = life.restore()
    assert restored.step == STEPS[-1]
    assert "is of step 30" in restored.skipped["step-31"]
    assert saved_root.wrong_values(life, restored.step) is None
    life.close()


def test_extra_files_are_reported_and_never_read(saved_root: SavedRoot) -> None:
    folder = saved_root.path / NEWEST
    (folder / "notes.txt").write_text("mine")
    (folder / "__1_0.distcp").write_bytes(b"x" * 100)
    (folder / "components" / "loader" / "trainer" / "2.json").write_text("{}")
    (folder / "parts" / "trainer" / "2.json").symlink_to("0.json")
    (folder / "empty folder").mkdir()
    os.mkfifo(folder / "pipe")
    assert saved_root.damage(STEPS[-1]) == []
    extra = saved_root.findings(STEPS[-1], "extra")
    for name in ("notes.txt", "__1_0.distcp", "loader/trainer/2.json", "parts/trainer/2", "pipe"):
        assert any(name in line for line in extra), extra
    _check_restores(saved_root)


def test_a_folder_that_became_a_symlink_is_not_followed(saved_root: SavedRoot) -> None:
    for name in ("parts", "components"):
        folder = saved_root.path / NEWEST / name
        moved = folder.rename(folder.with_name(f"{name}-moved"))
        folder.symlink_to(moved)
        _check_falls_back(saved_root, 20, name)
        folder.unlink()
        moved.rename(folder)
        saved_root.forget_claims()
    _check_restores(saved_root)


def _exchange(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
