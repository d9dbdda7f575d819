from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from stepseal.errors import StorageUnavailable
from stepseal.storage import (
    KeyNotFound,
    LocalStorage,
    create_durable,
    make_dirs,
    put_if_absent,
    remove_tree,
    replace_durable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.queues import SimpleQueue
    from multiprocessing.synchronize import Barrier
    from pathlib import Path


def _claim(root: str, number: int, barrier: Barrier, won: SimpleQueue[int]) -> None:
    with LocalStorage.open(root) as storage:
        for round_number in range(4):
            barrier.wait(30)
            if put_if_absent(storage, f"claim-{round_number}", b"same for all"):
                won.put(round_number)


def test_put_if_absent_has_one_winner_among_processes(root: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, won = context.Barrier(8), context.SimpleQueue()
    processes = [
        context.Process(target=_claim, args=(str(root), number, barrier, won))
        for number in range(8)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 8
    winners = []
    while not won.empty():
        winners.append(won.get())
    assert sorted(winners) == [0, 1, 2, 3]
    assert sorted(os.listdir(root)) == [f"claim-{number}" for number in range(4)]


@pytest.fixture
def mount(root: Path) -> Iterator[Path]:
    """A file system of 64 KiB and 16 inodes inside the root."""
    place = root / "mount"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=16", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a tmpfs is not permitted here: {error}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_surfaces_and_frees_again(mount: Path) -> None:
    with LocalStorage.open(mount) as storage:
        assert put_if_absent(storage, "good", b"1")
        for change in (put_if_absent, replace_durable, create_durable):
            with pytest.raises(StorageUnavailable, match="Free space, then try again") as caught:
                change(storage, "big", bytes(1 << 20))
            assert caught.value.errno == errno.ENOSPC
        storage.remove_file("big")
        assert [entry.name for entry in storage.list_dir("")] == ["good"]
        with pytest.raises(StorageUnavailable) as caught:
            make_dirs(storage, "/".join("d" * 32))
        assert caught.value.errno == errno.ENOSPC


def test_verbs_across_file_systems_are_refused_with_advice(
    storage: LocalStorage, mount: Path
) -> None:
    create_durable(storage, "a", b"1")
    create_durable(storage, "mount/b", b"2")
    verbs: list[Callable[[], None]] = [
        lambda: storage.rename("a", "mount/c"),
        lambda: storage.rename("a", "mount/c", replace=True),
        lambda: storage.exchange("a", "mount/b"),
        lambda: storage.link("a", "mount/c"),
    ]
    for verb in verbs:
        with pytest.raises(StorageUnavailable, match="remove mounts inside") as caught:
            verb()
        assert caught.value.errno == errno.EXDEV


def test_remove_tree_does_not_enter_a_mount(storage: LocalStorage, mount: Path, root: Path) -> None:
    (mount / "precious").write_bytes(b"1")
    storage.make_dir("step-1")
    assert storage.stat("mount").device != storage.stat("").device
    outer = LocalStorage.open(root.parent)
    with outer, pytest.raises(StorageUnavailable, match="mount"):
        remove_tree(outer, "root")
    assert (mount / "precious").read_bytes() == b"1"


def test_a_root_without_permission_says_so(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else in a child process")
    (root / "d").mkdir(mode=0o700)
    os.chmod(root, 0o755)
    script = (
        "import os, sys; from stepseal.storage import LocalStorage\n"
        "from stepseal.errors import StorageUnavailable\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "storage = LocalStorage('/root', fd); os.setuid(65534)\n"
        "try: storage.list_dir('d')\n"
        "except StorageUnavailable as error: print(error.errno, error.path)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(root)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.split() == [str(errno.EACCES), "d"]


def test_an_absent_key_says_which(storage: LocalStorage, root: Path) -> None:
    with pytest.raises(KeyNotFound) as caught:
        storage.open_read("a/b")
    assert caught.value.path == "a/b"
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.kind == "key_not_found"
