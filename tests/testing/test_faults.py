from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

import pytest

from stepseal.errors import InvalidInput, StorageUnavailable
from stepseal.storage import (
    KeyExists,
    KeyNotFound,
    LocalStorage,
    Storage,
    create_durable,
    read_bytes,
)
from stepseal.testing import (
    Delay,
    Fail,
    Fault,
    FaultyStorage,
    FileCount,
    Kill,
    Lose,
    MemoryStorage,
    StorageSuite,
    Tear,
)

if TYPE_CHECKING:
    from pathlib import Path

    from stepseal.testing._faults import Action


class TestFaultyStorageWithoutFaults(StorageSuite):
    def make_storage(self, tmp_path: Path) -> Storage:
        return FaultyStorage(LocalStorage.create(tmp_path / "root"))


class TestFaultyMemoryStorageWithoutFaults(StorageSuite):
    def make_storage(self, tmp_path: Path) -> Storage:
        return FaultyStorage(MemoryStorage(), count=FileCount(tmp_path / "count"))


def _recorded(storage: FaultyStorage) -> list[tuple[str, str]]:
    return [(operation.name, operation.key) for operation in storage.count.operations()]


def test_every_mutating_operation_is_recorded_and_no_other() -> None:
    storage = FaultyStorage(MemoryStorage())
    storage.make_dir("d")
    create_durable(storage, "d/a", b"1")
    storage.sync_dir("d")
    storage.link("d/a", "b")
    storage.rename("b", "c", replace=True)
    storage.exchange("c", "d/a")
    storage.remove_file("c")
    storage.remove_file("d/a")
    storage.remove_dir("d")
    storage.list_dir("")
    storage.stat("")
    storage.sync_support()
    assert _recorded(storage) == [
        ("make_dir", "d"),
        ("create_file", "d/a"),
        ("write", "d/a"),
        ("sync", "d/a"),
        ("close", "d/a"),
        ("sync_dir", "d"),
        ("link", "d/a -> b"),
        ("rename", "b -> c"),
        ("exchange", "c -> d/a"),
        ("remove_file", "c"),
        ("remove_file", "d/a"),
        ("remove_dir", "d"),
    ]


def test_a_fault_at_an_index_strikes_once_and_a_sticky_one_from_there_on() -> None:
    once = FaultyStorage(MemoryStorage(), [Fault(1, Fail(errno.EIO))])
    once.make_dir("a")
    with pytest.raises(StorageUnavailable) as caught:
        once.make_dir("b")
    assert (caught.value.errno, caught.value.path) == (errno.EIO, "b")
    once.make_dir("b")
    sticky = FaultyStorage(MemoryStorage(), [Fault(1, Fail(errno.EIO), sticky=True)])
    sticky.make_dir("a")
    for key in ("b", "c"):
        with pytest.raises(StorageUnavailable):
            sticky.make_dir(key)
    assert [entry.name for entry in sticky.list_dir("")] == ["a"]


@pytest.mark.parametrize("sticky", [False, True])
def test_a_predicate_sees_operation_and_key(sticky: bool) -> None:
    fault = Fault(lambda name, key: (name, key[:1]) == ("make_dir", "x"), Fail(5), sticky=sticky)
    storage = FaultyStorage(MemoryStorage(), [fault])
    storage.make_dir("a")
    with pytest.raises(StorageUnavailable):
        storage.make_dir("x1")
    if sticky:
        with pytest.raises(StorageUnavailable):
            storage.make_dir("x2")
    else:
        storage.make_dir("x2")


def test_errnos_of_presence_have_their_own_types() -> None:
    faults = [Fault(0, Fail(errno.EEXIST)), Fault(1, Fail(errno.ENOENT))]
    storage = FaultyStorage(MemoryStorage(), faults)
    with pytest.raises(KeyExists):
        storage.make_dir("a")
    with pytest.raises(KeyNotFound):
        storage.make_dir("a")


def test_a_lost_answer_has_been_carried_out() -> None:
    storage = FaultyStorage(MemoryStorage(), [Fault(0, Lose(errno.ETIMEDOUT))])
    with pytest.raises(StorageUnavailable):
        storage.make_dir("a")
    assert storage.stat("a").kind == "directory"


@pytest.mark.parametrize(("fraction", "stored"), [(0.0, b""), (0.5, b"12"), (1.0, b"1234")])
def test_a_torn_write_stores_a_prefix(fraction: float, stored: bytes) -> None:
    inner = MemoryStorage()
    storage = FaultyStorage(inner, [Fault(1, Tear(fraction, Fail(errno.ENOSPC)))])
    with pytest.raises(StorageUnavailable) as caught:
        create_durable(storage, "a", b"1234")
    assert caught.value.errno == errno.ENOSPC
    assert read_bytes(inner, "a", 10) == stored


def test_a_tear_outside_0_to_1_is_refused() -> None:
    with pytest.raises(InvalidInput):
        FaultyStorage(MemoryStorage(), [Fault(0, Tear(1.5, Kill()))])


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_file_that_failed_keeps_failing(operation: str) -> None:
    fault = Fault(lambda name, key: name == operation, Fail(errno.EIO))
    storage = FaultyStorage(MemoryStorage(), [fault])
    handle = storage.create_file("a")
    if operation == "sync":
        handle.write(b"1", 0)
    with pytest.raises(StorageUnavailable):
        handle.write(b"1", 0) if operation == "write" else handle.sync()
    before = len(storage.count.operations())
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            handle.sync()
    assert len(storage.count.operations()) == before
    handle.close()


@pytest.mark.parametrize("action", [Fail(errno.EIO), Lose(errno.EIO)])
def test_a_file_whose_create_or_close_failed_leaks_no_descriptor(
    tmp_path: Path, action: Action
) -> None:
    with LocalStorage.create(tmp_path / "root") as inner:
        before = os.listdir("/proc/self/fd")
        for index in (0, 2):
            storage = FaultyStorage(inner, [Fault(index, action)])
            with pytest.raises(StorageUnavailable), storage.create_file(f"a{index}") as handle:
                handle.write(b"1", 0)
        assert os.listdir("/proc/self/fd") == before


def test_the_error_of_the_block_wins_over_a_failing_close() -> None:
    storage = FaultyStorage(MemoryStorage(), [Fault(1, Fail(errno.EIO))])
    with pytest.raises(ZeroDivisionError), storage.create_file("a"):
        raise ZeroDivisionError


def test_a_delay_waits_and_carries_out() -> None:
    waited: list[float] = []
    storage = FaultyStorage(MemoryStorage(), [Fault(0, Delay(2.5))], sleep=waited.append)
    storage.make_dir("a")
    assert (waited, storage.stat("a").kind) == ([2.5], "directory")


def test_before_is_called_first_and_its_error_takes_the_place() -> None:
    called: list[tuple[int, str, str]] = []

    def before(index: int, operation: str, key: str) -> None:
        called.append((index, operation, key))
        if key == "stop":
            raise KeyboardInterrupt

    storage = FaultyStorage(MemoryStorage(), [Fault(2, Fail(5))], before=before)
    storage.make_dir("a")
    with pytest.raises(KeyboardInterrupt):
        storage.make_dir("stop")
    with pytest.raises(StorageUnavailable):
        storage.make_dir("b")
    assert called == [(0, "make_dir", "a"), (1, "make_dir", "stop"), (2, "make_dir", "b")]
    assert [entry.name for entry in storage.list_dir("")] == ["a"]


@pytest.mark.parametrize(
    ("action", "stored"),
    [(Kill(), b""), (Kill("after"), b"1234"), (Tear(0.5, Kill()), b"12")],
)
def test_a_kill_ends_the_process_at_its_place(
    tmp_path: Path, action: Action, stored: bytes
) -> None:
    with LocalStorage.create(tmp_path / "root") as inner:
        child = os.fork()
        if child == 0:
            try:
                create_durable(FaultyStorage(inner, [Fault(1, action)]), "a", b"1234")
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert read_bytes(inner, "a", 10) == stored


def test_two_processes_count_one_sequence_and_only_one_is_struck(tmp_path: Path) -> None:
    with LocalStorage.create(tmp_path / "root") as inner:
        children = []
        for number in range(2):
            child = os.fork()
            if child == 0:
                count = FileCount(tmp_path / "count")
                storage = FaultyStorage(inner, [Fault(5, Kill())], count=count)
                for index in range(10):
                    storage.make_dir(f"{number}-{index}")
                os._exit(0)
            children.append(child)
        statuses = sorted(os.waitpid(child, 0)[1] for child in children)
    assert statuses == [0, signal.SIGKILL]
    operations = FileCount(tmp_path / "count").operations()
    assert [operation.index for operation in operations] == list(range(len(operations)))
    assert len(os.listdir(tmp_path / "root")) == len(operations) - 1


def test_reading_is_numbered_and_fails_only_on_request() -> None:
    inner = MemoryStorage()
    create_durable(inner, "a", b"1")
    undisturbed = FaultyStorage(inner, [Fault(lambda *_: True, Fail(errno.EIO), sticky=True)])
    assert read_bytes(undisturbed, "a", 1) == b"1"
    assert _recorded(undisturbed) == []
    for number, verb in enumerate(["open_read", "read", "stat", "list_dir"]):
        storage = FaultyStorage(inner, [Fault(number, Fail(errno.ESTALE))], reads=True)
        with pytest.raises(StorageUnavailable) as caught:
            _look_at(storage)
        assert caught.value.errno == errno.ESTALE
        assert _recorded(storage)[-1] == (verb, "" if verb == "list_dir" else "a")


def _look_at(storage: FaultyStorage) -> None:
    read_bytes(storage, "a", 1)
    storage.stat("a")
    storage.list_dir("")
