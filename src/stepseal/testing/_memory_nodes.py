"""Files and directories in memory that know what of them was synced, and what a power loss leaves.

Invariant: what had a durable name and was only moved since keeps at least one of its names; a
power loss may leave both. Anything else that was not synced survives or not, each by itself.
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
    """Bytes, and those of them that were synced."""

    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    inode: int = field(default_factory=lambda: next(_inodes))
    had_durable_name: bool = False


@dataclass(eq=False, slots=True)
class Dir:
    """Names, and those of them that were synced."""

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
    """Return what would be found; the given tree stays as it is.

    Args:
        root: of the tree.
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
        """Inode of a file to what is left of it; names of one file share it."""
        self._dirs: dict[int, Dir] = {}

    def left_of(self, node: Dir, key: str, above: tuple[int, ...]) -> Dir:
        """Return what is left of a directory; `above` stops cycles of torn moves."""
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
        """Add, under their present names, what lost the old ones and would have none."""
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
