from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from stepseal.testing import Count, FileCount, ThreadCount

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=["thread", "file"])
def count(request: pytest.FixtureRequest, tmp_path: Path) -> Count:
    return ThreadCount() if request.param == "thread" else FileCount(tmp_path / "count")


def test_each_index_is_given_once_and_recorded(count: Count) -> None:
    assert count.operations() == ()
    assert [count.take("write", "a"), count.take("sync", 'b "\n é')] == [0, 1]
    found = [(item.index, item.name, item.key, item.process_id) for item in count.operations()]
    assert found == [(0, "write", "a", os.getpid()), (1, "sync", 'b "\n é', os.getpid())]


def test_threads_share_one_sequence(count: Count) -> None:
    taken: list[int] = []

    def take() -> None:
        taken.extend(count.take("write", "a") for _ in range(50))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(200))
    assert [operation.index for operation in count.operations()] == list(range(200))


def test_processes_share_one_sequence(tmp_path: Path) -> None:
    path = tmp_path / "count"
    FileCount(path).take("write", "parent")
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            own = FileCount(path)
            for _ in range(50):
                own.take("write", "child")
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    operations = FileCount(path).operations()
    assert [operation.index for operation in operations] == list(range(151))
    assert {operation.process_id for operation in operations} == {os.getpid(), *children}


def test_a_record_that_a_dying_process_left_half_written_is_ignored(tmp_path: Path) -> None:
    count = FileCount(tmp_path / "count")
    count.take("write", "a")
    with open(tmp_path / "count", "ab") as file:
        file.write(b'[1, "wri')
    assert len(count.operations()) == 1
    assert count.take("sync", "a") == 1
    assert [operation.name for operation in count.operations()] == ["write", "sync"]
