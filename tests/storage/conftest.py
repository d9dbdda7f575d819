from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from stepseal.storage import (
    LocalStorage,
)
from stepseal.storage._syscalls import Syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Buffer


class FakeCalls(Syscalls):
    """Answers for the kernel where a field says so."""

    def __init__(self) -> None:
        self.write_results: list[int | OSError] = []
        self.read_results: list[int | OSError] = []
        self.fsync_error: OSError | None = None
        self.fsync_dir_error: OSError | None = None
        self.close_error: OSError | None = None
        self.rename_errors: list[OSError] = []
        self.link_error: OSError | None = None
        self.num_fsyncs = 0
        self.uncached_error: OSError | None = None
        self.num_uncached = 0
        self.closed: list[int] = []

    @staticmethod
    def error(number: int) -> OSError:
        return OSError(number, os.strerror(number))

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        result = self.write_results.pop(0) if self.write_results else len(memoryview(data))
        if isinstance(result, OSError):
            raise result
        return super().pwrite(fd, memoryview(data)[:result], offset) if result else 0

    def pwrite_uncached(self, fd: int, data: Buffer, offset: int) -> int:
        if self.uncached_error:
            raise self.uncached_error
        self.num_uncached += 1
        return super().pwrite_uncached(fd, data, offset)

    def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        result = self.read_results.pop(0) if self.read_results else len(buffer)
        if isinstance(result, OSError):
            raise result
        return super().pread_into(fd, buffer[:result], offset)

    def fsync(self, fd: int) -> None:
        self.num_fsyncs += 1
        if self.fsync_error:
            raise self.fsync_error
        super().fsync(fd)

    def fsync_dir(self, fd: int) -> None:
        if self.fsync_dir_error:
            raise self.fsync_dir_error
        super().fsync_dir(fd)

    def close(self, fd: int) -> None:
        super().close(fd)
        self.closed.append(fd)
        if self.close_error:
            raise self.close_error

    def link(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        super().link(source, source_fd, target, target_fd)
        if self.link_error:
            raise self.link_error

    def renameat2(
        self, source: str, source_fd: int, target: str, target_fd: int, flags: int
    ) -> None:
        if self.rename_errors:
            raise self.rename_errors.pop(0)
        super().renameat2(source, source_fd, target, target_fd, flags)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def storage(root: Path) -> Iterator[LocalStorage]:
    with LocalStorage.open(root) as storage:
        yield storage


@pytest.fixture
def calls() -> FakeCalls:
    return FakeCalls()


@pytest.fixture
def faked(root: Path, calls: FakeCalls) -> Iterator[LocalStorage]:
    with LocalStorage.open(root, calls=calls) as storage:
        yield storage
