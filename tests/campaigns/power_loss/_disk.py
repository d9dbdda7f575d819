"""A disk that loses power: every storage operation of a job on record, and what may be left of them
afterwards.

The model is what POSIX lets a file system do. `sync` makes the bytes of a file durable, and
`sync_dir` the names in one directory. Anything else survives or not, each change by itself and in
any order; bytes may survive as a prefix, or as zeros of the right length. A rename survives as a
whole or not at all, wherever its two directories are; only its removal is certain once the
directory that it left was synced.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tests.campaigns.harness._log import Event, Log

from stepseal.testing import MemoryStorage
from stepseal.testing._memory_nodes import Dir, File

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Buffer, Self

    from stepseal.storage import Storage, WriteHandle

__all__ = ["Disk", "Image", "Node", "Operation", "Pending", "RecordedLog", "Recorder"]

Kept = Literal["synced", "written", "prefix", "zeros", "hole"]
"""What survives of bytes that were not synced: none, all, a prefix, a prefix and zeros for
the rest, or all but some in the middle, which are zeros."""
_HOLE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Operation:
    """One change, as it was made, or one line of the job's log."""

    verb: str
    """A mutating verb, or `told`."""
    key: str
    target: str = ""
    handle: int = -1
    """Which open file, for create_file, write and sync."""
    offset: int = 0
    data: bytes = b""
    event: Event | None = None

    @property
    def text(self) -> str:
        """Verb and key, as `FaultyStorage` names them."""
        return f"{self.verb} {self.key}" + (f" -> {self.target}" if self.target else "")


class Recorder:
    """A storage that records each change in the order in which it took effect.

    Args:
        inner: where the changes are made.
    """

    def __init__(self, inner: Storage) -> None:
        self.operations: list[Operation] = []
        self.lock = threading.RLock()
        self._inner = inner
        self._num_handles = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the verbs that change nothing
        return getattr(self._inner, name)

    def note(self, run: Callable[[], object], operation: Operation) -> None:
        """Make a change and record it, unless it is refused."""
        with self.lock:
            run()
            self.operations.append(operation)

    def create_file(self, key: str) -> WriteHandle:
        """Create a file whose writes and syncs are recorded too."""
        with self.lock:
            inner = self._inner.create_file(key)
            handle, self._num_handles = self._num_handles, self._num_handles + 1
            self.operations.append(Operation("create_file", key, handle=handle))
        return _RecordedFile(self, inner, key, handle)

    def make_dir(self, key: str) -> None:
        """Record and pass on."""
        self.note(lambda: self._inner.make_dir(key), Operation("make_dir", key))

    def sync_dir(self, key: str) -> None:
        """Record and pass on."""
        self.note(lambda: self._inner.sync_dir(key), Operation("sync_dir", key))

    def link(self, source: str, target: str) -> None:
        """Record and pass on."""
        self.note(lambda: self._inner.link(source, target), Operation("link", source, target))

    def rename(self, source: str, target: str, *, replace: bool = False) -> None:
        """Record and pass on."""
        self.note(
            lambda: self._inner.rename(source, target, replace=replace),
            Operation("rename", source, target),
        )

    def exchange(self, first: str, second: str) -> None:
        """Record and pass on."""
        self.note(lambda: self._inner.exchange(first, second), Operation("exchange", first, second))

    def remove_file(self, key: str) -> None:
        """Record and pass on."""
        self.note(lambda: self._inner.remove_file(key), Operation("remove_file", key))

    def remove_dir(self, key: str) -> None:
        """Record and pass on."""
        self.note(lambda: self._inner.remove_dir(key), Operation("remove_dir", key))


class _RecordedFile:
    def __init__(self, storage: Recorder, inner: WriteHandle, key: str, handle: int) -> None:
        self._storage = storage
        self._inner = inner
        self._key = key
        self._handle = handle

    def write(self, data: Buffer, offset: int) -> None:
        stored = memoryview(data).tobytes()
        self._storage.note(
            lambda: self._inner.write(stored, offset),
            Operation("write", self._key, handle=self._handle, offset=offset, data=stored),
        )

    def sync(self) -> None:
        operation = Operation("sync", self._key, handle=self._handle)
        self._storage.note(self._inner.sync, operation)

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


class RecordedLog(Log):
    """What the job was told, in the one sequence with what it did.

    Args:
        recorder: holds that sequence.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def add(self, event: Event) -> None:
        """Append one event."""
        self._recorder.note(lambda: None, Operation("told", event.kind, event=event))

    def events(self) -> list[Event]:
        """Return all events, oldest first."""
        operations = self._recorder.operations
        return [found.event for found in operations if found.event is not None]


@dataclass(eq=False, slots=True)
class Node:
    """A file or a directory."""

    is_dir: bool
    entries: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    dirty: bool = False
    """A file with bytes that are not synced."""


@dataclass(eq=False, slots=True)
class Pending:
    """A change of names that is not wholly durable."""

    changes: tuple[tuple[Node, str, Node | None], ...]
    """Directory, name, and what has it afterwards."""
    is_durable: bool = False
    left: bool = False
    """Its removals are durable."""


@dataclass(frozen=True, slots=True)
class Image:
    """What is found after one power loss."""

    storage: MemoryStorage
    signature: int
    """Equal for equal content."""
    signatures: dict[str, int]
    """Of every entry of the root, and of every entry of its control folders."""


class Disk:
    """Carries recorded operations out, and knows what of them is durable."""

    def __init__(self) -> None:
        self.root = Node(is_dir=True)
        self.pending: list[Pending] = []
        self.dirty: dict[Node, None] = {}
        self._handles: dict[int, Node] = {}

    @classmethod
    def holding(cls, storage: MemoryStorage) -> Disk:
        """Return a disk on which all of `storage` is durable."""
        disk = cls()
        disk.root = _settled(storage._root, {})
        return disk

    def apply(self, operation: Operation) -> None:
        """Carry out one operation."""
        match operation.verb:
            case "told":
                return
            case "write":
                self._write(operation)
            case "sync":
                node = self._handles[operation.handle]
                node.synced, node.dirty = bytes(node.data), False
                self.dirty.pop(node, None)
            case "sync_dir":
                self._sync_dir(self._find(operation.key))
            case _:
                self._change(operation)

    def _write(self, operation: Operation) -> None:
        node = self._handles[operation.handle]
        end = operation.offset + len(operation.data)
        if len(node.data) < end:
            node.data.extend(bytes(end - len(node.data)))
        node.data[operation.offset : end] = operation.data
        node.dirty = True
        self.dirty[node] = None

    def _change(self, operation: Operation) -> None:
        parent, name = self._place(operation.key)
        old = parent.entries.get(name)
        changes: tuple[tuple[Node, str, Node | None], ...]
        match operation.verb:
            case "create_file":
                self._handles[operation.handle] = new = Node(is_dir=False)
                changes = ((parent, name, new),)
            case "make_dir":
                changes = ((parent, name, Node(is_dir=True)),)
            case "remove_file" | "remove_dir":
                changes = ((parent, name, None),)
            case "link":
                changes = ((*self._place(operation.target), old),)
            case "rename":
                changes = ((parent, name, None), (*self._place(operation.target), old))
            case "exchange":
                directory, other = self._place(operation.target)
                changes = ((parent, name, directory.entries[other]), (directory, other, old))
            case _:
                raise AssertionError(f"unknown verb: {operation.verb}")
        for change in changes:
            _make(change[0].entries, change[1], change[2])
        self.pending.append(Pending(changes))

    def _sync_dir(self, directory: Node) -> None:
        for pending in self.pending:
            touched = [new for parent, _, new in pending.changes if parent is directory]
            adds = any(new is not None for _, _, new in pending.changes)
            if any(new is not None for new in touched) or (touched and not adds):
                pending.is_durable = True
            elif touched:
                pending.left = True
        while self.pending and self.pending[0].is_durable:
            for parent, name, new in self.pending.pop(0).changes:
                _make(parent.durable, name, new)

    def image(
        self, keeps_names: Callable[[int], bool], keeps_bytes: Callable[[Node], tuple[Kept, float]]
    ) -> Image:
        """Return what one power loss may leave.

        Args:
            keeps_names: whether the pending change of this number survives, if it is not durable.
            keeps_bytes: what survives of a file's bytes that were not synced, and how much of it.
        """
        names: dict[Node, dict[str, Node]] = {}
        for number, pending in enumerate(self.pending):
            survives = pending.is_durable or keeps_names(number)
            for parent, name, new in pending.changes:
                if survives or (pending.left and new is None):
                    _make(names.setdefault(parent, dict(parent.durable)), name, new)
        builder = _Builder(names, keeps_bytes)
        root, signature = builder.build(self.root, 0, "")
        storage = MemoryStorage()
        storage._root = root
        return Image(storage, signature, builder.signatures)

    def _find(self, key: str) -> Node:
        node = self.root
        for name in key.split("/") if key else ():
            node = node.entries[name]
        return node

    def _place(self, key: str) -> tuple[Node, str]:
        parent, _, name = key.rpartition("/")
        return self._find(parent), name


class _Builder:
    """Makes the tree of one image."""

    def __init__(
        self,
        names: dict[Node, dict[str, Node]],
        keeps_bytes: Callable[[Node], tuple[Kept, float]],
    ) -> None:
        self._names = names
        self._keeps = keeps_bytes
        self._files: dict[Node, tuple[File, int]] = {}
        self._above: set[Node] = set()
        self.signatures: dict[str, int] = {}

    def build(self, node: Node, depth: int, key: str) -> tuple[Dir, int]:
        """Return a directory with all below it, and its signature."""
        entries: dict[str, File | Dir] = {}
        found = []
        self._above.add(node)
        for name, child in sorted(self._names.get(node, node.durable).items()):
            path = f"{key}/{name}" if key else name
            if not child.is_dir:
                entries[name], signature = self._file(child)
            elif child in self._above:
                continue  # a torn move into itself
            else:
                entries[name], signature = self.build(child, depth + 1, path)
            found.append((name, signature))
            if depth < 3:
                self.signatures[path] = signature
        self._above.discard(node)
        left = Dir(entries=entries)
        left.sync()
        return left, hash((True, *found))

    def _file(self, node: Node) -> tuple[File, int]:
        if node not in self._files:
            data = _surviving(node, *self._keeps(node)) if node.dirty else node.synced
            self._files[node] = File(data=bytearray(data), synced=data), hash(data)
        return self._files[node]


def _surviving(node: Node, kept: Kept, fraction: float) -> bytes:
    written = bytes(node.data)
    size = int(len(written) * fraction)
    match kept:
        case "synced":
            return node.synced
        case "prefix":
            return written[:size]
        case "zeros":
            return written[:size] + bytes(len(written) - size)
        case "hole":
            rest = written[size + _HOLE_BYTES :]
            return written[:size] + bytes(len(written) - size - len(rest)) + rest
    return written


def _make(entries: dict[str, Node], name: str, new: Node | None) -> None:
    if new is None:
        entries.pop(name, None)
    else:
        entries[name] = new


def _settled(found: Dir | File, known: dict[int, Node]) -> Node:
    """Return a durable copy; hard links stay links."""
    if isinstance(found, File):
        if found.inode not in known:
            data = bytes(found.data)
            known[found.inode] = Node(is_dir=False, data=bytearray(data), synced=data)
        return known[found.inode]
    entries = {name: _settled(child, known) for name, child in found.entries.items()}
    return Node(is_dir=True, entries=entries, durable=dict(entries))
