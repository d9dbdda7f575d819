"""Files are 0600 and directories 0700 by default, whatever the umask; nothing is made where other
users could change names, unless that was asked for.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner

import stepseal as ss
from stepseal.cli import main
from stepseal.errors import CheckpointError, InvalidInput
from stepseal.storage import Access, LocalStorage, _access, make_dirs, put_if_absent
from stepseal.testing import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOBODY = 65534


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a"


def save_once(root: Path, access: Access | None = None) -> None:
    world = World(1, lambda _: LocalStorage.create(root, access=access or Access()))
    with world.checkpointer(0, mode="sync") as checkpointer:
        checkpointer.add("model", {"w": torch.arange(3.0)})
        checkpointer.add("counters", {"seen": 1}, sharing=ss.REPLICATED)
        checkpointer.restore()
        checkpointer.save(1)


def modes(root: Path) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {"file": set(), "dir": {stat.S_IMODE(root.stat().st_mode)}}
    for path in root.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        found["dir" if path.is_dir() else "file"].add(mode)
    return found


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o177, 0o027])
def test_only_the_owner_reads_and_writes_by_default(mask: int, root: Path) -> None:
    with umask(mask):
        save_once(root)
    assert modes(root) == {"file": {0o600}, "dir": {0o700}}
    assert stat.S_IMODE(root.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_group_may_be_let_in_to_read_whatever_the_umask(mask: int, root: Path) -> None:
    with umask(mask):
        save_once(root, Access(file_mode=0o640, dir_mode=0o750))
    assert modes(root) == {"file": {0o640}, "dir": {0o750}}


def test_the_group_of_a_setgid_directory_is_kept(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o2755)
    save_once(tmp_path / "a", Access(file_mode=0o640, dir_mode=0o2750))
    assert modes(tmp_path / "a") == {"file": {0o640}, "dir": {0o2750}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"file_mode": 0o666}, {"file_mode": 0o660}, {"file_mode": 0o400}, {"file_mode": 0o755},
        {"file_mode": -1}, {"file_mode": "0600"}, {"file_mode": True}, {"dir_mode": 0o777},
        {"dir_mode": 0o770}, {"dir_mode": 0o600}, {"dir_mode": 0o1777},
        {"dir_mode": 0o777, "allow_shared": True}, {"file_mode": 0o666, "allow_shared": True},
    ],
)  # fmt: skip
def test_modes_that_give_too_much_or_too_little_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="access refused"):
        Access(**wrong)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o772, 0o707, 0o2775])
def test_a_root_that_others_can_write_is_refused(
    mode: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_access, "_is_private", lambda gid, uid: False)
    root.mkdir(parents=True)
    os.chmod(root, mode)
    with pytest.raises(InvalidInput, match=f"mode {mode:#o}") as caught:
        ss.Checkpointer(root)
    assert caught.value.path == str(root)
    assert list(root.iterdir()) == []
    save_once(root, Access(allow_shared=True))
    with pytest.raises(InvalidInput):  # not by joining a root that is there, either
        put_if_absent(LocalStorage.open(root), "latest", b"1")
    assert ss.open(root).steps() == (1,)  # anybody may read


def test_a_sticky_root_and_a_private_group_pass(root: Path) -> None:
    root.mkdir(parents=True)
    os.chmod(root, 0o1777)
    LocalStorage.create(root)
    os.chmod(root, 0o775)
    if _access._is_private(root.stat().st_gid, root.stat().st_uid):
        LocalStorage.create(root)


def test_a_group_is_private_when_it_is_the_users_own_and_holds_nobody_else() -> None:
    assert not _access._is_private(NOBODY - 7, 0)
    assert not _access._is_private(0, NOBODY - 7)


def test_a_root_of_another_user_is_refused(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a directory away")
    save_once(root)
    os.chown(root, NOBODY, NOBODY)
    with pytest.raises(InvalidInput, match=f"user {NOBODY}.*`chown 0`.*bind mount"):
        LocalStorage.create(root)
    with pytest.raises(InvalidInput, match=f"user {NOBODY}"):
        put_if_absent(LocalStorage.open(root), "x", b"")
    LocalStorage.create(root, access=Access(allow_shared=True))


@pytest.mark.parametrize("area", [".stepseal", ".stepseal/staging", ".stepseal/incarnations"])
@pytest.mark.parametrize("how", ["mode", "owner"])
def test_control_folders_that_were_there_before_are_not_trusted(
    how: str, area: str, root: Path
) -> None:
    """As an unpacked archive could bring them: the root is ours, what is inside is not."""
    (root / area).mkdir(parents=True)
    if how == "owner":
        if os.geteuid() != 0:
            pytest.skip("needs root, to give a directory away")
        os.chown(root / area, NOBODY, NOBODY)
    else:
        os.chmod(root / area, 0o777)
    with pytest.raises(CheckpointError, match="in which only this user can write"):
        save_once(root)
    assert not (root / "step-1").exists()


def test_staging_names_cannot_be_guessed_and_are_never_taken_over(root: Path) -> None:
    storage = LocalStorage.create(root)
    make_dirs(storage, "d")
    seen: list[str] = []

    class Watching(LocalStorage):
        def create_file(self, key: str) -> Any:  # noqa: ANN401 - the handle
            seen.append(key)
            return super().create_file(key)

    watching = Watching.create(root)
    for number in range(50):
        put_if_absent(watching, f"d/{number}", b"x")
    assert len(set(seen)) == 50
    assert all(re.fullmatch(r"d/\.tmp-[0-9a-f]{32}", key) for key in seen)
    with pytest.raises(CheckpointError):
        storage.create_file("d/0")  # exclusive
    (root / "link").symlink_to(root / "elsewhere")
    with pytest.raises(CheckpointError):
        storage.create_file("link")  # also where a symlink leads nowhere
    assert not (root / "elsewhere").exists()


def test_the_command_line_warns_of_a_root_that_others_can_write(root: Path) -> None:
    save_once(root)
    quiet = CliRunner().invoke(main, ["ls", str(root)])
    os.chmod(root, 0o777)
    warned = CliRunner().invoke(main, ["ls", str(root)])
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert warned.exit_code == 0
    assert "warning" in warned.stderr
    assert warned.stdout == quiet.stdout


def test_a_checkpointer_takes_the_access_to_give(root: Path) -> None:
    root.mkdir(parents=True)
    os.chmod(root, 0o777)
    access = ss.Access(file_mode=0o640, dir_mode=0o750, allow_shared=True)
    with ss.Checkpointer(root, access=access) as checkpointer:
        checkpointer.add("model", {"w": torch.arange(3.0)})
        checkpointer.restore()
        checkpointer.save(1)
    assert modes(root / "step-1") == {"file": {0o640}, "dir": {0o750}}
