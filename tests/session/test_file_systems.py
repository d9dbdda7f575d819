"""File systems that people meet: layers of images, quotas on copy-on-write, sandboxes."""

from __future__ import annotations

import errno
import json
import platform
import re
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from click.testing import CliRunner
from tests._mounts import btrfs_with_quota, ntfs_mount, overlay_over, read_only

import stepseal as ss
from stepseal.cli import main
from stepseal.errors import InvalidInput, ParticipantFailed, StorageUnavailable
from stepseal.steps import _attempts, _retire

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

_MIB = 1 << 20


class Job:
    """One life of a job of one rank, with state of any size."""

    def __init__(self, root: Path, *, keep: int | None = None) -> None:
        self.state = {"w": torch.zeros(8, dtype=torch.uint8)}
        self.checkpointer = ss.Checkpointer(
            root, mode="sync", keep=None if keep is None else ss.latest(keep)
        )
        pair = (lambda: dict(self.state), self.state.update)
        self.checkpointer.add("state", pair, sharing=ss.GLOBAL)

    def save(self, step: int, size_bytes: int = 8) -> None:
        self.state["w"] = torch.randint(0, 255, (size_bytes,), dtype=torch.uint8)
        self.checkpointer.save(step)


def live(
    root: Path, *steps: int, restore: int | None = None, keep: int | None = None
) -> int | None:
    """Run one life; return the step that it resumed from."""
    job = Job(root, keep=keep)
    with job.checkpointer as checkpointer:
        restored = checkpointer.restore(restore)
        for step in steps:
            job.save(step)
    return None if restored is None else restored.step


def _run(verb: str, root: Path, *arguments: str) -> int:
    """Run a verb of the command line; return its exit code."""
    return CliRunner().invoke(main, [verb, str(root), *arguments]).exit_code


# -- the lower layer of an overlay -----------------------------------------------------------


@pytest.fixture
def merged(tmp_path: Path) -> Iterator[Path]:
    """An overlay over an image whose folder `run` has steps 1 to 3."""
    live(tmp_path / "image" / "run", 1, 2, 3)
    (tmp_path / "layer").mkdir()
    with overlay_over(tmp_path / "image", tmp_path / "layer") as mountpoint:
        yield mountpoint


def test_steps_of_an_image_are_pruned_where_they_lie(merged: Path, tmp_path: Path) -> None:
    root = merged / "run"
    assert live(root, 4, 5, keep=1) == 3
    assert ss.open(root).steps() == (3, 5)  # the job resumed from step 3
    assert live(root, 6, keep=1) == 5
    assert ss.open(root).steps() == (5, 6)
    assert list((root / ".stepseal" / "trash").iterdir()) == []
    assert not (root / "step-1").exists()
    assert ss.open(tmp_path / "image" / "run").steps() == (1, 2, 3)


def test_a_pin_keeps_a_step_of_an_image(merged: Path) -> None:
    root = merged / "run"
    assert _run("pin", root, "2") == 0
    live(root, 4, keep=1)
    assert ss.open(root).steps() == (2, 3, 4)


def test_a_restore_says_at_once_what_of_an_image_cannot_be_superseded(merged: Path) -> None:
    root = merged / "run"
    with pytest.raises(StorageUnavailable, match=r"step-2, step-3.*redirect_dir=on") as caught:
        live(root, 2, restore=1)
    assert caught.value.errno == errno.EXDEV
    assert ss.open(root).steps() == (1, 2, 3)
    copy = merged / "copy"
    subprocess.run(["cp", "-a", root, copy], check=True)  # the advice, followed
    assert live(copy, 2, restore=1) == 1
    found = ss.open(copy).latest()
    assert found is not None
    assert found.step == 2


def test_the_doctor_names_the_steps_of_an_image(merged: Path) -> None:
    live(merged / "run", 4)
    done = CliRunner().invoke(main, ["doctor", str(merged / "run"), "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert found["immovable_steps"] == [1, 2, 3]
    assert "step-1, step-2, step-3 (3 in all)" in done.stdout
    assert ss.open(merged / "run").steps() == (1, 2, 3, 4)
    subprocess.run(["cp", "-a", merged / "run", merged / "copy"], check=True)
    assert _run("doctor", merged / "copy") == 0


# -- a quota on a copy-on-write file system --------------------------------------------------


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    with btrfs_with_quota(tmp_path, 40 * _MIB) as mountpoint:
        yield mountpoint


def _save_too_much(root: Path) -> Job:
    """Save steps 1 and 2, and fail with step 3, which exceeds the quota."""
    job = Job(root)
    job.checkpointer.restore()
    job.save(1)
    job.save(2)
    with pytest.raises(ParticipantFailed, match="EDQUOT"):
        job.save(3, 64 * _MIB)
    return job


def test_at_its_quota_a_job_goes_on_after_an_aborted_save(volume: Path) -> None:
    job = _save_too_much(volume / "run")
    job.save(4)
    job.checkpointer.close()
    assert live(volume / "run", 5) == 4


@pytest.fixture
def stuck(volume: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root that fills its quota, as the naive variant leaves it, which only renames."""
    with monkeypatch.context() as patch:
        patch.setattr(_attempts, "cannot_move", lambda _: False)
        job = _save_too_much(volume / "run")
        with pytest.raises(StorageUnavailable, match="EDQUOT"):
            job.save(4)
        job.checkpointer.close()
        with pytest.raises(StorageUnavailable, match="EDQUOT"):
            live(volume / "run")
    return volume / "run"


def test_a_restore_is_not_refused_while_aborted_saves_fill_the_quota(stuck: Path) -> None:
    assert live(stuck, 4) == 2
    assert ss.open(stuck).steps() == (1, 2, 4)
    assert list((stuck / ".stepseal" / "staging").iterdir()) == []


def test_a_prune_gets_through_at_the_quota(stuck: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_retire, "cannot_move", lambda _: False)
        assert _run("prune", stuck, "--keep-latest", "1") != 0
    assert ss.open(stuck).steps() == (1, 2)
    assert _run("prune", stuck, "--keep-latest", "1") == 0
    assert ss.open(stuck).steps() == (2,)
    assert not (stuck / "step-1").exists()


def test_others_that_fill_the_quota_are_told_of(volume: Path) -> None:
    live(volume / "run", 1, 2)
    other = torch.randint(0, 255, (64 * _MIB,), dtype=torch.uint8).numpy()
    with pytest.raises(OSError, match="quota"):
        (volume / "other").write_bytes(other.tobytes())
    with pytest.raises(StorageUnavailable, match="stepseal prune"):
        live(volume / "run")
    assert _run("prune", volume / "run", "--keep-latest", "1") == 0  # the advice works
    (volume / "other").unlink()
    assert live(volume / "run", 3) == 2


# -- a root that cannot be written -----------------------------------------------------------


def test_a_restore_on_a_read_only_root_says_how_to_read_it(tmp_path: Path) -> None:
    live(tmp_path / "run", 1)
    with read_only(tmp_path / "run"):
        with pytest.raises(StorageUnavailable, match=r"ss\.load\(root.*ss\.open\(root\)") as caught:
            live(tmp_path / "run")
        assert caught.value.errno == errno.EROFS
        state = {"w": torch.zeros(8, dtype=torch.uint8)}
        ss.load(tmp_path / "run", state=(lambda: dict(state), state.update))  # the advice works
        assert ss.open(tmp_path / "run").steps() == (1,)


# -- limits of the process -------------------------------------------------------------------


def test_a_limit_of_the_size_of_a_file_is_named(tmp_path: Path) -> None:
    job = Job(tmp_path / "run")
    job.checkpointer.restore()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * _MIB, before[1]))
    try:
        with pytest.raises(ParticipantFailed, match=r"EFBIG.*ulimit -f"):
            job.save(1, 8 * _MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    job.save(2, 8 * _MIB)
    job.checkpointer.close()


# -- modes that come from the options of the mount -------------------------------------------


def test_where_chmod_changes_nothing_the_advice_works(tmp_path: Path) -> None:
    with ntfs_mount(tmp_path) as served:
        with pytest.raises(InvalidInput, match="chmod and chown change nothing") as caught:
            live(served.mountpoint / "run", 1)
        options = re.search(r"mount it with (uid=\d+,umask=077)", str(caught.value))
        assert options is not None
        served.come_back(options[1])
        live(served.mountpoint / "run", 1)
        assert live(served.mountpoint / "run", 2) == 1


# -- a sandbox that does not know renameat2 --------------------------------------------------

_FILTER = """
import ctypes, struct, sys
number = {"x86_64": 316, "aarch64": 276}[sys.argv.pop(1)]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x00050001), (6, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
filter_ = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(program))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filter_, 0, 0):
    sys.exit(77)
"""
"""Installs a seccomp filter under which renameat2 returns EPERM."""
_JOB = """
from pathlib import Path
from tests.session.test_file_systems import live
root = Path(sys.argv[1])
live(root, 1, 2, keep=1)
live(root, 3, 4)
assert live(root, 4, restore=3) == 3  # supersedes step 4
assert live(root) == 4
"""


def test_a_sandbox_without_renameat2_is_no_lack_of_permissions(tmp_path: Path) -> None:
    machine = platform.machine()
    if machine not in ("x86_64", "aarch64"):
        pytest.skip(f"the number of renameat2 on {machine} is not known here")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FILTER + _JOB, machine, str(tmp_path / "root")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("seccomp filters are not allowed here")
    assert done.returncode == 0, done.stderr[-2000:]
    assert ss.open(tmp_path / "root").steps() == (2, 3, 4)
