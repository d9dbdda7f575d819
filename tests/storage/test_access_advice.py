"""What is advised for a directory that others can change, by the file system it is on."""

from __future__ import annotations

import os

import pytest

from stepseal.storage import Mount
from stepseal.storage._access import refuse_shared

MODE = "a directory of mode 0o777, in which all users can write"
OWNER = "a directory that belongs to user 7"


def advice(problem: str, fs_type: str) -> str:
    return str(refuse_shared("root", "/r", problem, Mount(fs_type, "/", "none", ())))


@pytest.mark.parametrize(
    ("fs_type", "problem", "words"),
    [
        ("ext4", MODE, "Run `chmod go-w` on it, take another root, or pass Access"),
        ("ext4", OWNER, f"Run `chown {os.geteuid()}` on it"),
        ("fuse.sshfs", MODE, "if that changes nothing, mount it with umask=077"),
        ("fuse", OWNER, f"Run `chown {os.geteuid()}` on it"),
        ("fuseblk", MODE, f"mount it with uid={os.geteuid()},umask=077"),
        ("ntfs3", OWNER, f"mount it with uid={os.geteuid()},umask=077"),
        ("cifs", MODE, "file_mode=0600,dir_mode=0700"),
        ("exfat", MODE, "exfat has neither modes nor hard links"),
        ("vfat", OWNER, "Take a root on another file system"),
    ],
)
def test_the_advice_can_work_there(fs_type: str, problem: str, words: str) -> None:
    text = advice(problem, fs_type)
    assert words in text
    assert text.endswith("if you trust that user." if problem == OWNER else "can write there.")
    if fs_type in ("exfat", "vfat", "fuseblk", "ntfs3", "cifs"):
        assert "Run `ch" not in text


def test_an_unknown_mount_gets_the_usual_advice() -> None:
    assert "chmod go-w" in str(refuse_shared("root", "/r", MODE, None))
