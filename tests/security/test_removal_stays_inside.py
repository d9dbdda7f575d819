"""What stepseal deletes lies in its own folders under names that it gave: no symlink is followed,
no mount entered, nothing outside the root touched, whatever was put in there.
"""

from __future__ import annotations

import os
import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from stepseal.errors import CheckpointError, InvalidInput, StorageUnavailable
from stepseal.steps._attempts import begin, discard, sweep
from stepseal.steps._roots import STAGING, TRASH, initialise_root
from stepseal.storage import LocalStorage, remove_tree
from stepseal.testing import MemoryStorage
from stepseal.testing._storage_helpers import ODD_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ATTEMPT = "ab" * 16


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def storage(root: Path) -> LocalStorage:
    storage = LocalStorage.create(root)
    initialise_root(storage)
    return storage


@pytest.fixture
def precious(tmp_path: Path) -> Iterator[Path]:
    """A folder outside, which must be as it was afterwards."""
    place = tmp_path / "precious"
    (place / "deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        (place / name).write_text("precious")
    yield place
    assert sorted(p.relative_to(place).as_posix() for p in place.rglob("*")) == [
        "a", "deep", "deep/b"
    ]  # fmt: skip
    assert (place / "deep" / "b").read_text() == "precious"


def abandoned(storage: LocalStorage, root: Path) -> Path:
    """Return the staging folder of an older incarnation."""
    return root / begin(storage, 5, 1, ATTEMPT).key


def by_sweep(storage: LocalStorage, folder: Path) -> None:
    sweep(storage, 9)


def by_discard(storage: LocalStorage, folder: Path) -> None:
    discard(storage, f"{STAGING}/{folder.name}")


REMOVALS: dict[str, Callable[[LocalStorage, Path], None]] = {
    "sweep": by_sweep,
    "discard": by_discard,
}


@pytest.mark.parametrize("removal", REMOVALS)
def test_symlinks_inside_are_removed_and_not_followed(
    removal: str, storage: LocalStorage, root: Path, precious: Path
) -> None:
    folder = abandoned(storage, root)
    (folder / "parts").mkdir()
    (folder / "parts" / "link").symlink_to(precious)
    (folder / "link").symlink_to(precious / "a")
    (folder / "root").symlink_to("/")
    (folder / "up").symlink_to("../../..")
    os.link(precious / "a", folder / "hard")
    os.mkfifo(folder / "fifo")
    REMOVALS[removal](storage, folder)
    assert not folder.exists()
    assert list((root / TRASH).iterdir()) == []


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_inside_are_removed_like_any_other(
    name: str, removal: str, storage: LocalStorage, root: Path
) -> None:
    folder = abandoned(storage, root)
    (folder / "parts" / name / name).mkdir(parents=True)
    (folder / name).write_text("")
    REMOVALS[removal](storage, folder)
    assert list((root / STAGING).iterdir()) == list((root / TRASH).iterdir()) == []


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_folder_that_is_a_symlink_itself_is_not_followed(
    removal: str, storage: LocalStorage, root: Path, precious: Path
) -> None:
    link = root / STAGING / f"step-5.1.{ATTEMPT}"
    link.symlink_to(precious)
    REMOVALS[removal](storage, link)
    trashed = root / TRASH / f"{link.name}.0123456789abcdef"
    trashed.symlink_to(precious)
    sweep(storage, 9)
    assert not trashed.is_symlink()


@pytest.mark.parametrize("area", [STAGING, TRASH, ".stepseal"])
def test_an_area_that_is_a_symlink_is_refused(
    area: str, storage: LocalStorage, root: Path, precious: Path
) -> None:
    folder = precious / "deep" / f"step-5.1.{ATTEMPT}"
    (root / area).rename(root / "aside")
    (root / area).symlink_to(precious / "deep")
    folder.mkdir()
    with pytest.raises(CheckpointError, match="symlink"):
        sweep(storage, 9)
    folder.rmdir()


@pytest.mark.parametrize(
    "name",
    [
        "step-5", "step-5.1", "step-05.1." + ATTEMPT, "step-5.1." + "AB" * 16, "precious",
        "step-5.1." + ATTEMPT + ".bak", "step-5.9." + ATTEMPT, "step-5.10." + ATTEMPT, ".hidden",
    ],
)  # fmt: skip
def test_names_that_stepseal_did_not_give_are_left(
    name: str, storage: LocalStorage, root: Path
) -> None:
    for area in (STAGING, TRASH):
        (root / area / name).mkdir()
        (root / area / name / "data").write_text("precious")
    sweep(storage, 9)
    for area in (STAGING, TRASH):
        assert (root / area / name / "data").read_text() == "precious"


def test_the_root_itself_is_never_removed(storage: LocalStorage, root: Path) -> None:
    for key in ("", "/", ".", "..", "../precious", "a/../..", "/etc"):
        with pytest.raises(InvalidInput):
            remove_tree(storage, key)
        with pytest.raises(InvalidInput):
            remove_tree(MemoryStorage(), key)
    assert (root / "stepseal.json").exists()


@pytest.mark.parametrize("path", ["/", "//", "/.", "/tmp/..", "/proc/self/root"])
def test_the_root_of_the_file_system_is_no_root_of_a_run(path: str) -> None:
    with pytest.raises(InvalidInput, match="root of the file system"):
        LocalStorage.create(path)


def test_a_root_behind_a_symlink_is_pinned_when_it_is_opened(
    tmp_path: Path, storage: LocalStorage, root: Path, precious: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(root)
    opened = LocalStorage.create(link)
    folder = abandoned(opened, root)
    link.unlink()
    link.symlink_to(precious)
    (precious / "deep" / "x").mkdir()
    sweep(opened, 9)
    (precious / "deep" / "x").rmdir()
    assert not folder.exists()


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("kind", ["bind", "tmpfs"])
def test_mounts_inside_are_not_entered(
    kind: str, removal: str, storage: LocalStorage, root: Path, precious: Path
) -> None:
    folder = abandoned(storage, root)
    place = folder / "mount"
    place.mkdir()
    command = ["mount", "--bind", str(precious), str(place)]
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting is not permitted here: {error}")
    try:
        with pytest.raises(StorageUnavailable, match="mount"):
            REMOVALS[removal](storage, folder)
    finally:
        for mounted in (root / TRASH).glob("*/mount"):
            subprocess.run(["umount", str(mounted)], check=True)
    sweep(storage, 9)
    assert list((root / TRASH).iterdir()) == []


@pytest.mark.slow
def test_directories_swapped_for_symlinks_meanwhile_lead_nowhere(
    storage: LocalStorage, root: Path, precious: Path
) -> None:
    folder = abandoned(storage, root)
    left = threading.Event()
    swaps: list[int] = []

    def swap() -> None:
        """Keep putting a symlink in the place of a directory that is being emptied."""
        while not left.is_set():
            with suppress(OSError):  # the removal was faster
                for trashed in (root / TRASH).glob("*/d*"):
                    trashed.rename(trashed.with_name("aside"))
                    trashed.symlink_to(precious)
                    swaps.append(1)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(15):
            for number in range(30):
                (folder / f"d{number}" / "deep").mkdir(parents=True, exist_ok=True)
                (folder / f"d{number}" / "deep" / "b").write_text("")
            with suppress(CheckpointError):  # refused is fine; followed is not: see below
                discard(storage, f"{STAGING}/{folder.name}")
            assert (precious / "deep" / "b").exists()
            folder.mkdir(exist_ok=True)
    finally:
        left.set()
        thread.join()
    assert swaps
