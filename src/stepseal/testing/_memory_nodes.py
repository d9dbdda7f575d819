"""Files and directories in memory that remember their synced state, and simulate a power loss.

Invariant: an entry with a durable name that was only moved since keeps its old name, its new name,
or both. Every other unsynced change survives or is lost independently.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    Survives = Callable[[Literal["entry", "data"], str], float]

__all__ = ["Dir", "File", "after_power_loss"]

_inodes = count(1)


@dataclass(eq=False, slots=True)
class File:
    """Written bytes and synced bytes."""

    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    inode: int = field(default_factory=lambda: next(_inodes))
    had_durable_name: bool = False

    def sync(self) -> None:
        """Make the bytes durable."""
        self.synced = bytes(self.data)


@dataclass(eq=False, slots=True)
class Dir:
    """Current names and synced names."""

    entries: dict[str, File | Dir] = field(default_factory=dict)
    synced: dict[str, File | Dir] = field(default_factory=dict)
    inode: int = field(default_factory=lambda: next(_inodes))
    had_durable_name: bool = False

    def sync(self) -> None:
        """Make the names durable."""
        self.synced = dict(self.entries)
        for node in self.entries.values():
            node.had_durable_name = True


def after_power_loss(root: Dir, survives: Survives) -> Dir:
    """Return the tree after a power loss; the given tree does not change.

    Args:
        root: root of the tree.
        survives: see `MemoryStorage.after_power_loss`.
    """
    loss = _Loss(survives)
    image = loss.left_of(root, "", ())
    loss.keep_moved(root, "")
    return image


class _Loss:
    def __init__(self, survives: Survives) -> None:
        self._survives = survives
        self._files: dict[int, File] = {}
        """Inode to the surviving file; all names of a file share it."""
        self._dirs: dict[int, Dir] = {}

    def left_of(self, node: Dir, key: str, above: tuple[int, ...]) -> Dir:
        """Return the surviving part of a directory; `above` stops cycles of torn moves."""
        left = self._dirs[node.inode] = Dir()
        for name in sorted({*node.entries, *node.synced}):
            path = _join(key, name)
            new, old = node.entries.get(name), node.synced.get(name)
            child = new if new is old or self._survives("entry", path) >= 0.5 else old
            if child is not None and child.inode not in above:
                left.entries[name] = self._left_of_child(child, path, (*above, child.inode))
        left.sync()
        return left

    def keep_moved(self, node: Dir, key: str) -> None:
        """Restore moved entries that would have lost all names, under their current names."""
        left = self._dirs.get(node.inode)
        if left is None:
            return
        for name, child in node.entries.items():
            path = _join(key, name)
            known = self._files if isinstance(child, File) else self._dirs
            if child.had_durable_name and child.inode not in known:
                left.entries[name] = self._left_of_child(child, path, (child.inode,))
            if isinstance(child, Dir):
                self.keep_moved(child, path)
        left.sync()

    def _left_of_child(self, child: File | Dir, path: str, above: tuple[int, ...]) -> File | Dir:
        if isinstance(child, Dir):
            return self.left_of(child, path, above)
        if child.inode not in self._files:
            self._files[child.inode] = self._left_of_file(child, path)
        return self._files[child.inode]

    def _left_of_file(self, node: File, key: str) -> File:
        data = bytes(node.data)
        if data != node.synced:
            fraction = self._survives("data", key)
            kept = int(len(data) * fraction)
            data = node.synced if fraction <= 0 else data[:kept] + bytes(len(data) - kept)
        return File(data=bytearray(data), synced=data)


def _join(key: str, name: str) -> str:
    return f"{key}/{name}" if key else name
