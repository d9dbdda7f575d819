from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

import pytest

from stepseal.errors import StorageUnavailable
from stepseal.storage import (
    KeyNotFound,
    LocalStorage,
    Storage,
    create_durable,
    exists,
    make_dirs,
    put_if_absent,
    read_bytes,
    remove_tree,
    replace_durable,
    walk_files,
)
from stepseal.testing import Fail, Fault, FaultyStorage, FileCount, Kill, Lose, MemoryStorage, Tear
from stepseal.testing._storage_helpers import ODD_NAMES, names, put, tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stepseal.testing._faults import Action

OLD, NEW = b"the old bytes", b"the new bytes, which are longer"


def _workload(storage: Storage) -> None:
    """Make, claim and replace; each step is finished before the next begins."""
    make_dirs(storage, "a/b")
    put_if_absent(storage, "a/claim", NEW)
    replace_durable(storage, "latest", NEW)
    remove_tree(storage, "litter")


def _prepare(storage: Storage) -> None:
    replace_durable(storage, "latest", OLD)
    make_dirs(storage, "litter/x/y")
    create_durable(storage, "litter/x/f", OLD)


def _num_operations() -> int:
    storage = FaultyStorage(_prepared())
    _workload(storage)
    return len(storage.count.operations())


def _prepared() -> MemoryStorage:
    storage = MemoryStorage()
    _prepare(storage)
    return storage


def _check_whole(storage: Storage) -> None:
    """Names hold all of the old or all of the new bytes, and the workload can be run again."""
    assert read_bytes(storage, "latest", 100) in {OLD, NEW}
    try:
        assert read_bytes(storage, "a/claim", 100) == NEW
    except KeyNotFound:
        assert _claim_again(storage)
    make_dirs(storage, "a/b")
    put_if_absent(storage, "a/claim", NEW)
    replace_durable(storage, "latest", NEW)
    assert read_bytes(storage, "a/claim", 100) == read_bytes(storage, "latest", 100) == NEW


def _claim_again(storage: Storage) -> bool:
    make_dirs(storage, "a")
    return put_if_absent(storage, "a/claim", NEW)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
@pytest.mark.parametrize("sticky", [False, True])
@pytest.mark.parametrize("kind", [Fail, Lose, Tear])
def test_an_errno_at_every_operation_leaves_old_or_new_bytes(
    number: int, sticky: bool, kind: type[Fail | Lose | Tear]
) -> None:
    action: Action = Tear(0.5, Fail(number)) if kind is Tear else Fail(number)
    if kind is Lose:
        action = Lose(number)
    for index in range(_num_operations()):
        inner = _prepared()
        storage = FaultyStorage(inner, [Fault(index, action, sticky=sticky)])
        tolerated = {"link", "remove_file"}  # resolved by looking; litter
        try:
            _workload(storage)
        except StorageUnavailable as error:
            surfaced = error.errno == number
        else:
            surfaced = storage.count.operations()[index].name in tolerated
        assert surfaced, f"operation {index} failed in silence"
        _check_whole(inner)


def test_a_claim_whose_temporary_cannot_be_removed_is_still_won() -> None:
    inner = MemoryStorage()
    storage = FaultyStorage(inner, [Fault(_is("remove_file"), Fail(errno.EIO))])
    assert put_if_absent(storage, "claim", NEW)
    (temporary, claim) = inner.list_dir("")
    assert (claim.name, temporary.name.startswith(".tmp-")) == ("claim", True)


@pytest.mark.parametrize("number", [errno.EIO, errno.EEXIST, errno.ETIMEDOUT])
def test_a_claim_whose_answer_was_lost_is_ours(number: int) -> None:
    storage = FaultyStorage(MemoryStorage(), [Fault(_is("link"), Lose(number))])
    assert put_if_absent(storage, "claim", NEW)
    assert [entry.name for entry in storage.list_dir("")] == ["claim"]


def test_a_claim_that_failed_for_another_reason_is_neither_won_nor_lost() -> None:
    inner = MemoryStorage()
    create_durable(inner, "claim", OLD)
    storage = FaultyStorage(inner, [Fault(_is("link"), Fail(errno.EIO))])
    with pytest.raises(StorageUnavailable) as caught:
        put_if_absent(storage, "claim", NEW)
    assert caught.value.errno == errno.EIO
    assert [entry.name for entry in inner.list_dir("")] == ["claim"]


def test_bytes_are_synced_before_they_are_named_and_names_after() -> None:
    storage = FaultyStorage(MemoryStorage())
    put_if_absent(storage, "claim", NEW)
    replace_durable(storage, "latest", NEW)
    found = [operation.name for operation in storage.count.operations()]
    written = ["create_file", "write", "sync", "close"]
    assert found == [*written, "link", "sync_dir", "remove_file", *written, "rename", "sync_dir"]


def test_make_dirs_leaves_what_is_above_its_base_alone() -> None:
    storage = FaultyStorage(MemoryStorage())
    make_dirs(storage, "a/b")
    before = len(storage.count.operations())
    make_dirs(storage, "a/b/c", base="a/b")
    found = [(operation.name, operation.key) for operation in storage.count.operations()[before:]]
    assert found == [("make_dir", "a/b/c"), ("sync_dir", "a/b")]


def test_a_power_loss_before_every_operation_leaves_old_or_new_bytes() -> None:
    """Each image is of the moment before one operation; what was finished by then must be there."""

    def survives_none(what: str, key: str) -> float:
        return 0

    def survives_all(what: str, key: str) -> float:
        return 1

    def survives_names(what: str, key: str) -> float:
        return float(what == "entry")

    inner = _prepared()
    images: list[tuple[str, Storage]] = []

    def photograph(index: int, operation: str, key: str) -> None:
        images.extend(
            (key, inner.after_power_loss(survives))
            for survives in (survives_none, survives_all, survives_names)
        )

    _workload(FaultyStorage(inner, before=photograph))
    claimed = False
    for key, image in images:
        claimed = claimed or ("latest" not in key and key.startswith("litter"))
        if claimed:
            assert read_bytes(image, "latest", 100) == NEW
            assert read_bytes(image, "a/claim", 100) == NEW
        _check_whole(image)
    assert claimed
    assert len(images) == 3 * _num_operations()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_every_operation_leaves_old_or_new_bytes(tmp_path: Path, when: str) -> None:
    for index in range(_num_operations()):
        place = tmp_path / f"{when}-{index}"
        with LocalStorage.create(place / "root") as inner:
            _prepare(inner)
            count = FileCount(place / "count")
            kill = Kill("before") if when == "before" else Kill("after")
            faulty = FaultyStorage(inner, [Fault(index, kill)], count=count)
            child = os.fork()
            if child == 0:
                try:
                    _workload(faulty)
                finally:
                    os._exit(1)
            _, status = os.waitpid(child, 0)
            assert os.WTERMSIG(status) == signal.SIGKILL
            assert len(count.operations()) == index + 1
            _check_whole(inner)


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return LocalStorage.create(tmp_path) if request.param == "local" else MemoryStorage()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_what_a_listing_returned_is_walked_and_removed(storage: Storage, name: str) -> None:
    tree(storage)
    make_dirs(storage, f"full/{name}/{name}")
    put(storage, f"full/{name}/{name}/f", b"")
    assert [path for path, _ in walk_files(storage, "full")] == sorted([f"{name}/{name}/f", "x"])
    remove_tree(storage, "full")
    assert names(storage, "") == ["a", "empty", "file", "moving"]


def test_a_deep_tree_is_removed_and_not_walked(storage: Storage) -> None:
    make_dirs(storage, "/".join(["full", *["deep"] * 240]))
    (path, entry) = walk_files(storage, "full")[0]
    assert (len(path), entry.kind) == (1024 + 5, "directory")
    remove_tree(storage, "full")
    assert names(storage, "") == []


def test_a_deep_tree_is_removed_in_time_proportional_to_its_entries() -> None:
    inner = MemoryStorage()
    depth = 1000
    for level in range(depth):
        inner.make_dir("/".join(["d"] * (level + 1)))
        inner.create_file("/".join(["d"] * (level + 1) + ["f"])).close()
    storage = FaultyStorage(inner)
    remove_tree(storage, "d")
    assert inner.list_dir("") == ()
    found = [operation.key.count("/") for operation in storage.count.operations()]
    assert max(found) <= 34
    assert len(found) <= 2 * depth + depth // 30  # a file, a directory, and few moves


def _is(name: str) -> Callable[[str, str], bool]:
    return lambda operation, key: operation == name


def test_a_directory_whose_maker_died_before_syncing_it_is_synced_by_the_next() -> None:
    inner = MemoryStorage()
    with pytest.raises(StorageUnavailable):
        make_dirs(FaultyStorage(inner, [Fault(1, Fail(errno.EIO))]), "a/b")
    make_dirs(inner, "a/b")
    assert inner.after_power_loss(lambda what, key: 0).stat("a/b").kind == "directory"


def test_anything_with_a_key_exists() -> None:
    storage = MemoryStorage()
    assert exists(storage, "")
    assert not exists(storage, "a")
    storage.make_dir("a")
    create_durable(storage, "a/b", b"")
    assert exists(storage, "a")
    assert exists(storage, "a/b")
