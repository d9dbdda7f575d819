"""A symlink, FIFO, socket, device or directory in the place of any file or folder of a step is
refused without following it and without blocking, also when it is put there during a load.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import threading
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from tests.security._forge import NEWEST, OLDER, OWNER, Forgery
from tests.security._loader import restore
from typing_extensions import Self

import stepseal as ss
from stepseal.cli import main
from stepseal.errors import CheckpointError, Corrupt
from stepseal.steps._claims import INCARNATIONS, read_claims
from stepseal.storage import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CANARY = "canary-5b1f9c"
FILES = (
    "manifest.json",
    ".metadata",
    "__0_0.distcp",
    f"parts/{OWNER}.json",
    f"parts/{OWNER}.safetensors",
    f"components/loader/{OWNER}.json",
    f"components/loader/{OWNER}.safetensors",
)
FOLDERS = ("parts", "parts/trainer", "components", "components/loader", "components/loader/trainer")


@pytest.fixture
def forgery(tmp_path: Path) -> Forgery:
    return Forgery(tmp_path / "root")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    (place / "secret").write_text(CANARY)
    return place


def symlink(path: Path, outside: Path) -> None:
    """Point to the very bytes that were here, so that only the link itself is wrong."""
    path.rename(outside / "moved")
    path.symlink_to(outside / "moved")


def symlink_to_secret(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(outside / "secret")


def fifo(path: Path, outside: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def unix_socket(path: Path, outside: Path) -> None:
    path.unlink()
    home = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(home)


def device(path: Path, outside: Path) -> None:
    path.unlink()
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero: never ends
    except PermissionError:
        pytest.skip("needs root, to make a device node")


def directory(path: Path, outside: Path) -> None:
    path.unlink()
    path.mkdir()


KINDS: dict[str, Callable[[Path, Path], None]] = {
    "symlink": symlink,
    "symlink to a secret": symlink_to_secret,
    "FIFO": fifo,
    "socket": unix_socket,
    "device": device,
    "directory": directory,
}


def everything_refuses(forgery: Forgery) -> str:
    """Load in every way; return all that was said."""
    said: list[str] = []
    run = ss.open(forgery.root)
    try:
        findings = run.step(NEWEST).verify()
    except CheckpointError as error:
        said.append(str(error))
    else:
        assert findings
        said += [finding.message for finding in findings]
    done = CliRunner().invoke(main, ["verify", str(forgery.root), str(NEWEST)])
    assert done.exit_code == 3, done.output
    said.append(done.output)
    return "\n".join(said)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", FILES)
def test_no_file_of_a_step_may_be_anything_else(
    path: str, kind: str, forgery: Forgery, outside: Path
) -> None:
    KINDS[kind](forgery.folder / path, outside)
    said = everything_refuses(forgery)
    assert CANARY not in said
    assert restore(forgery.root) == [OLDER] * 2


@pytest.mark.parametrize("path", FOLDERS)
def test_no_folder_of_a_step_may_be_a_symlink(path: str, forgery: Forgery, outside: Path) -> None:
    symlink(forgery.folder / path, outside)
    assert "symlink" in everything_refuses(forgery)
    assert restore(forgery.root) == [OLDER] * 2


@pytest.mark.parametrize("kind", ["symlink", "file"])
def test_a_step_that_is_no_folder_itself_is_no_step(
    kind: str, forgery: Forgery, outside: Path
) -> None:
    if kind == "symlink":
        symlink(forgery.folder, outside)
    else:
        shutil.rmtree(forgery.folder)
        forgery.folder.write_text("")
    run = ss.open(forgery.root)
    assert run.steps() == (OLDER,)
    assert restore(forgery.root) == [OLDER] * 2
    assert forgery.folder.is_symlink() == (kind == "symlink")


def test_marker_and_claims_are_not_followed(forgery: Forgery, outside: Path) -> None:
    claim = forgery.root / INCARNATIONS / "2.json"
    symlink(claim, outside)
    assert read_claims(LocalStorage.open(forgery.root))[1].damaged
    (outside / "moved").unlink()
    symlink(forgery.root / "stepseal.json", outside)
    with pytest.raises(Corrupt, match="symlink"):
        ss.open(forgery.root)


def test_the_control_folder_is_not_followed(forgery: Forgery, outside: Path) -> None:
    symlink(forgery.root / ".stepseal", outside)
    with pytest.raises(CheckpointError, match="symlink"):
        restore(forgery.root)


def test_parents_of_the_root_are_the_users_and_followed(forgery: Forgery, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert restore(tmp_path / "link" / "root") == [NEWEST] * 2
    (tmp_path / "other").symlink_to(forgery.root)
    assert ss.open(tmp_path / "other").steps() == (OLDER, NEWEST)


def test_hard_links_are_files_like_any_other(forgery: Forgery, outside: Path) -> None:
    """Copies by `cp -al` and deduplicated ones are whole; only the bytes count."""
    for path in FILES:
        os.link(forgery.folder / path, outside / path.replace("/", "_"))
    assert not ss.open(forgery.root).step(NEWEST).verify()
    assert restore(forgery.root) == [NEWEST] * 2


@pytest.mark.parametrize("path", FILES)
def test_a_hard_link_to_something_else_tells_nothing_of_it(
    path: str, forgery: Forgery, outside: Path
) -> None:
    size = (forgery.folder / path).stat().st_size
    (outside / "secret").write_text((CANARY * size)[:size])
    (forgery.folder / path).unlink()
    os.link(outside / "secret", forgery.folder / path)
    assert CANARY not in everything_refuses(forgery)


class Swapper(threading.Thread):
    """Keeps swapping an entry with a symlink to something else, until it is left."""

    def __init__(self, path: Path, other: Path) -> None:
        super().__init__()
        self._path, self._other = path, other
        self._left = threading.Event()
        self.num_swaps = 0

    def run(self) -> None:
        aside = self._path.with_name(".aside")
        link = self._path.with_name(".link")
        while not self._left.is_set():
            link.symlink_to(self._other)
            self._path.rename(aside)
            link.rename(self._path)
            self._left.wait(0.001 * 2 ** (self.num_swaps % 7))  # for some to meet nothing else
            self._path.unlink()
            aside.rename(self._path)
            self.num_swaps += 1
            self._left.wait(0.001 * 2 ** (self.num_swaps % 10))  # for some loads to succeed

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self.join()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["__0_0.distcp", "parts", f"parts/{OWNER}.json", ""])
def test_swapped_during_a_load_brings_right_bytes_or_an_error(
    path: str, forgery: Forgery, outside: Path
) -> None:
    step = ss.open(forgery.root).step(NEWEST)
    expected = {name: value.clone() for name, value in step.tensors("w*").items()}
    target = forgery.folder / path if path else forgery.folder
    if target.is_dir():
        shutil.copytree(target, outside / "evil")
        for file in (outside / "evil").rglob("*"):
            if file.is_file():
                file.write_bytes(b"\xff" * file.stat().st_size)
    else:
        (outside / "evil").write_bytes(b"\xff" * target.stat().st_size)
    num_good = num_refused = 0
    with Swapper(target, outside / "evil") as swapper:
        while (num_good < 5 or num_refused < 5) and num_good + num_refused < 400:
            try:
                found = step.tensors("w*")
            except CheckpointError:
                num_refused += 1
            else:
                num_good += 1
                assert found.keys() == expected.keys()
                assert all(found[name].equal(expected[name]) for name in found)
    assert swapper.num_swaps > 0
    assert num_refused > 0
    assert num_good > 0
