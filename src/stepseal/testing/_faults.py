"""Storage that fails on purpose, around any backend.

`FaultyStorage` numbers every mutating operation, and a plan decides the fault of each: an errno, a
delay, a torn write, a lost answer, or the death of the process. Reads are numbered and disturbed
only on request. With an empty plan it behaves exactly like the wrapped storage.
"""

from __future__ import annotations

import errno as errno_module
import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar, Union

from stepseal.errors import InternalError, InvalidInput, StorageUnavailable
from stepseal.storage import (
    Entry,
    FreeSpace,
    KeyExists,
    KeyNotFound,
    ReadHandle,
    Storage,
    SyncReport,
    WriteHandle,
)
from stepseal.testing._counters import Count, ThreadCount

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from types import TracebackType

    from typing_extensions import Buffer, Self

__all__ = ["Action", "Delay", "Fail", "Fault", "FaultyStorage", "Kill", "Lose", "Tear"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fail:
    """The operation is not carried out, and fails with an errno."""

    errno: int


@dataclass(frozen=True, slots=True)
class Lose:
    """The operation is carried out, and yet fails with an errno, like a lost reply."""

    errno: int


@dataclass(frozen=True, slots=True)
class Delay:
    """The operation is carried out later."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Kill:
    """The process dies by SIGKILL."""

    when: Literal["before", "after"] = "before"
    """Whether the process dies before or after the operation is carried out."""


@dataclass(frozen=True, slots=True)
class Tear:
    """A write stores a prefix, followed by the fault `then`; other operations only get `then`."""

    fraction: float
    """Fraction of the bytes that is stored, 0 to 1."""
    then: Union[Fail, Kill]  # noqa: UP007 - evaluated by dataclass tools on Python 3.10


Action = Union[Fail, Lose, Delay, Kill, Tear]  # noqa: UP007 - evaluated on Python 3.10


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a plan: where it happens, and what it does."""

    at: int | Callable[[str, str], bool]
    """Index of the operation, from 0; or a predicate of operation and key."""
    action: Action
    sticky: bool = False
    """Whether the fault repeats: from the index on, or at every match."""


class FaultyStorage:
    """Any storage, with a plan of faults.

    Thread-safe if `inner` is. The first fault of the plan that matches is used, once per process
    unless it is sticky.

    Args:
        inner: the storage that carries out the operations.
        plan: faults in order of precedence.
        count: numbers the operations; pass one `FileCount` per process for a common sequence.
        before: called with index, operation and key before the plan is applied; if it raises, the
            operation is not carried out.
        sleep: waits for `Delay`; tests pass their own.
        reads: also number and disturb open_read, read, stat, list_dir and list_marks.
    """

    def __init__(
        self,
        inner: Storage,
        plan: Iterable[Fault] = (),
        *,
        count: Count | None = None,
        before: Callable[[int, str, str], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        reads: bool = False,
    ) -> None:
        self._inner = inner
        self._plan = tuple(plan)
        self._spent: set[int] = set()
        self._lock = threading.Lock()
        self._count = ThreadCount() if count is None else count
        self._before = before
        self._sleep = sleep
        self._reads = reads
        for fault in self._plan:
            _check(fault)

    @property
    def count(self) -> Count:
        """The sequence of operations; `count.operations()` lists them."""
        return self._count

    def open_read(self, key: str) -> ReadHandle:
        """Forward the call; with `reads`, number it and each read of the handle."""
        if not self._reads:
            return self._inner.open_read(key)
        handle = self._look("open_read", key, lambda: self._inner.open_read(key))
        return _FaultyReader(handle, key, self)

    def stat(self, key: str) -> Entry:
        """Forward the call; with `reads`, number it."""
        return self._look("stat", key, lambda: self._inner.stat(key))

    def list_dir(self, key: str) -> tuple[Entry, ...]:
        """Forward the call; with `reads`, number it."""
        return self._look("list_dir", key, lambda: self._inner.list_dir(key))

    def list_marks(self, key: str, name: str) -> dict[str, Hashable | None]:
        """Forward the call; with `reads`, number it."""
        return self._look("list_marks", key, lambda: self._inner.list_marks(key, name))

    def local_path(self, key: str) -> str | None:
        """Forward the call without a fault; what other programs do there is not numbered."""
        return self._inner.local_path(key)

    def adopt(self, key: str) -> Entry:
        """Number the call, apply the fault of the plan, and forward the call."""
        found: list[Entry] = []
        self.perform("adopt", key, lambda: found.append(self._inner.adopt(key)))
        return found[0]

    def sync_support(self) -> SyncReport:
        """Forward the call without a fault."""
        return self._inner.sync_support()

    def free_space(self) -> FreeSpace | None:
        """Forward the call without a fault."""
        return self._inner.free_space()

    def create_file(self, key: str) -> WriteHandle:
        """Create a file whose writes, syncs and close are numbered too."""
        opened: list[WriteHandle] = []
        try:
            self.perform("create_file", key, lambda: opened.append(self._inner.create_file(key)))
        except BaseException:
            for handle in opened:
                handle.close()  # created, but the answer was lost
            raise
        return _FaultyWriter(opened[0], key, self)

    def make_dir(self, key: str) -> None:
        """Number the call, apply the fault of the plan, and forward the call."""
        self.perform("make_dir", key, lambda: self._inner.make_dir(key))

    def sync_dir(self, key: str) -> None:
        """Number the call, apply the fault of the plan, and forward the call."""
        self.perform("sync_dir", key, lambda: self._inner.sync_dir(key))

    def link(self, source: str, target: str) -> None:
        """Number the call, apply the fault of the plan, and forward the call."""
        self.perform("link", f"{source} -> {target}", lambda: self._inner.link(source, target))

    def rename(self, source: str, target: str, *, replace: bool = False) -> None:
        """Number the call, apply the fault of the plan, and forward the call."""
        self.perform(
            "rename",
            f"{source} -> {target}",
            lambda: self._inner.rename(source, target, replace=replace),
        )

    def exchange(self, first: str, second: str) -> None:
        """Number the call, apply the fault of the plan, and forward the call."""
        self.perform(
            "exchange", f"{first} -> {second}", lambda: self._inner.exchange(first, second)
        )

    def remove_file(self, key: str) -> None:
        """Number the call, apply the fault of the plan, and forward the call."""
        self.perform("remove_file", key, lambda: self._inner.remove_file(key))

    def remove_dir(self, key: str) -> None:
        """Number the call, apply the fault of the plan, and forward the call."""
        self.perform("remove_dir", key, lambda: self._inner.remove_dir(key))

    def perform(
        self,
        operation: str,
        key: str,
        run: Callable[[], object],
        tear: Callable[[float], object] | None = None,
    ) -> None:
        """Number one operation, and carry it out with the fault that the plan has for it.

        Args:
            operation: name of the operation.
            key: its key, for the record and for predicates.
            run: carries out the operation.
            tear: carries out the given fraction of the operation.
        """
        index = self._count.take(operation, key)
        if self._before is not None:
            self._before(index, operation, key)
        action = self._action(index, operation, key)
        if isinstance(action, Delay):
            self._sleep(action.seconds)
        if isinstance(action, Tear):
            if tear is not None:
                tear(action.fraction)
            action = action.then
        if isinstance(action, Kill) and action.when == "before":
            _kill()
        if not isinstance(action, Fail):
            run()
        if isinstance(action, Kill):
            _kill()
        if isinstance(action, (Fail, Lose)):
            raise _failure(index, operation, key, action.errno)

    def _look(self, operation: str, key: str, run: Callable[[], T]) -> T:
        if not self._reads:
            return run()
        found: list[T] = []
        self.perform(operation, key, lambda: found.append(run()))
        return found[0]

    def _action(self, index: int, operation: str, key: str) -> Action | None:
        for number, fault in enumerate(self._plan):
            if callable(fault.at):
                fits = fault.at(operation, key)
            else:
                fits = index >= fault.at if fault.sticky else index == fault.at
            with self._lock:
                if fits and (fault.sticky or number not in self._spent):
                    self._spent.add(number)
                    return fault.action
        return None


class _FaultyReader:
    """An open file whose reads are numbered."""

    def __init__(self, inner: ReadHandle, key: str, storage: FaultyStorage) -> None:
        self._inner = inner
        self._key = key
        self._storage = storage

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    def read_into(self, buffer: Buffer, offset: int) -> None:
        self._storage.perform("read", self._key, lambda: self._inner.read_into(buffer, offset))

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _FaultyWriter:
    """A file whose operations are numbered; after one failure, all later operations fail, too."""

    def __init__(self, inner: WriteHandle, key: str, storage: FaultyStorage) -> None:
        self._inner = inner
        self._key = key
        self._storage = storage
        self._closed = False
        self._failed: int | None = None

    def write(self, data: Buffer, offset: int) -> None:
        def write_part(fraction: float) -> None:
            stored = memoryview(data).tobytes()
            self._inner.write(stored[: int(len(stored) * fraction)], offset)

        self._perform("write", lambda: self._inner.write(data, offset), write_part)

    def sync(self) -> None:
        self._perform("sync", self._inner.sync)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._storage.perform("close", self._key, self._inner.close)
        finally:
            self._inner.close()  # a failed close has still released the descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except StorageUnavailable:
            if exc is None:
                raise

    def _perform(
        self,
        operation: str,
        run: Callable[[], object],
        tear: Callable[[float], object] | None = None,
    ) -> None:
        if self._failed is not None:
            raise _failure(-1, operation, self._key, self._failed)
        try:
            self._storage.perform(operation, self._key, run, tear)
        except StorageUnavailable as error:
            self._failed = error.errno or errno_module.EIO
            raise


def _check(fault: Fault) -> None:
    action = fault.action
    if isinstance(action, Tear) and not 0 <= action.fraction <= 1:
        raise InvalidInput(
            f"fault refused: expected a fraction from 0 to 1, found {action.fraction}. "
            "Pass the fraction of the write that is stored."
        )


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    raise InternalError(
        "the process survived SIGKILL: expected it to be dead, found it alive. Please report this."
    )


def _failure(index: int, operation: str, key: str, number: int) -> StorageUnavailable:
    error = StorageUnavailable
    if number == errno_module.ENOENT:
        error = KeyNotFound
    elif number == errno_module.EEXIST:
        error = KeyExists
    code = errno_module.errorcode.get(number, str(number))
    return error(
        f"cannot {operation} {key!r}: operation {index} failed on purpose [{code}]. "
        "Check the plan of faults.",
        path=key,
        errno=number,
    )
