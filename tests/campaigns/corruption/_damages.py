"""Ways to harm a root, each a line of text that says it and can be given on a command line.

A damage is one or more operations joined by `; `. Paths are relative to the root; `../other` is the
root of another run of the same job.
"""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["KINDS", "Pristine", "harm", "touched"]


def harm(root: Path, damage: str) -> None:
    """Carry out a damage."""
    for operation in damage.split("; "):
        verb, path, *arguments = operation.split()
        _OPERATIONS[verb](root / path, *arguments)


def touched(damage: str) -> set[str]:
    """Return the names in the root below which a damage changes something."""
    found = set()
    for operation in damage.split("; "):
        verb, *paths = operation.split()
        changed = {"copy": paths[1:], "exchange": paths}.get(verb, paths[:1])
        found |= {path.split("/")[0] for path in changed}
    return found


def _flip(path: Path, bit: str) -> None:
    number = int(bit)
    with path.open("r+b", buffering=0) as file:
        file.seek(number // 8)
        value = file.read(1)[0] ^ (1 << number % 8)
        file.seek(number // 8)
        file.write(bytes([value]))


def _alter(path: Path, old: str, new: str) -> None:
    """A text stands in the place of the first other of its length, wherever in the file that is."""
    data = path.read_bytes()
    if old.encode() not in data or len(old) != len(new):
        raise ValueError(f"{path}: expected {old!r} in it, and {new!r} of the same length")
    path.write_bytes(data.replace(old.encode(), new.encode(), 1))


def _truncate(path: Path, size_bytes: str) -> None:
    """Also larger: the new end has no blocks."""
    os.truncate(path, int(size_bytes))


def _extend(path: Path, num_bytes: str) -> None:
    with path.open("ab") as file:
        file.write(b"\x5a" * int(num_bytes))


def _zero(path: Path, start: str, stop: str) -> None:
    data = bytearray(path.read_bytes())
    data[int(start) : int(stop)] = bytes(int(stop) - int(start))
    path.write_bytes(data)


def _swap(path: Path, start: str, middle: str, stop: str) -> None:
    """Two neighbours change places."""
    data, (a, b, c) = path.read_bytes(), (int(start), int(middle), int(stop))
    path.write_bytes(data[:a] + data[b:c] + data[a:b] + data[c:])


def _double(path: Path, start: str, middle: str, stop: str) -> None:
    """A neighbour is overwritten by a copy, as far as it reaches; the size stays."""
    data, (a, b, c) = path.read_bytes(), (int(start), int(middle), int(stop))
    path.write_bytes(data[:b] + data[a:b][: c - b] + data[b + min(b - a, c - b) :])


def _repeat(path: Path, start: str, stop: str) -> None:
    """A piece is there twice; what follows moves."""
    data, (a, b) = path.read_bytes(), (int(start), int(stop))
    path.write_bytes(data[:b] + data[a:b] + data[b:])


def _cut(path: Path, start: str, stop: str) -> None:
    """A piece is missing; what follows moves."""
    data = path.read_bytes()
    path.write_bytes(data[: int(start)] + data[int(stop) :])


def _exchange(first: Path, second: str) -> None:
    other = _root_of(first, second)
    aside = first.with_name("aside")
    first.rename(aside)
    other.rename(first)
    aside.rename(other)


def _copy(source: Path, target: str) -> None:
    """Put a file or folder in the place of another."""
    place = _root_of(source, target)
    if source.is_dir():
        _remove(place)
        shutil.copytree(source, place)
    else:
        place.write_bytes(source.read_bytes())


def _root_of(path: Path, relative: str) -> Path:
    """Return another path of the root that a path is in."""
    root = next(parent for parent in path.parents if parent.name in ("root", "other"))
    return root.parent / "root" / relative


def _become(path: Path, kind: str) -> None:
    _remove(path) if kind != "moved-symlink" else None
    KINDS[kind](path)


def _symlink_to_the_same(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name(f"{path.name}.moved")))


def _bind_socket(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # the name of a socket has a short limit
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


KINDS: dict[str, Callable[[Path], None]] = {
    "nothing": lambda _: None,
    "empty": Path.touch,
    "fifo": os.mkfifo,
    "socket": _bind_socket,
    "directory": Path.mkdir,
    "moved-symlink": _symlink_to_the_same,
    "dangling-symlink": lambda path: path.symlink_to("nowhere"),
    "symlink-loop": lambda path: path.symlink_to(path.name),
}
"""What can stand in the place of a file."""

_OPERATIONS: dict[str, Callable[..., None]] = {
    "flip": _flip,
    "alter": _alter,
    "truncate": _truncate,
    "extend": _extend,
    "zero": _zero,
    "swap": _swap,
    "double": _double,
    "repeat": _repeat,
    "cut": _cut,
    "exchange": _exchange,
    "copy": _copy,
    "become": _become,
}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Pristine:
    """All files of a root before it was harmed."""

    root: Path
    files: dict[str, bytes]

    @classmethod
    def of(cls, root: Path) -> Pristine:
        """Remember a root."""
        return cls(root, {path: found for path, found in _contents(root, "") if found is not None})

    def changed(self, names: set[str]) -> set[str]:
        """Return every path below some names that is not what it was, extra ones included."""
        found = {path: data for name in names for path, data in _contents(self.root, name)}
        before = {path: data for path, data in self.files.items() if path.split("/")[0] in names}
        everywhere = found.keys() | before.keys()
        return {path for path in everywhere if found.get(path) != before.get(path)}

    def put_back(self, names: set[str]) -> None:
        """Undo whatever happened below some names; without names, everywhere."""
        for name in names or {path.name for path in self.root.iterdir()}:
            _remove(self.root / name)
        for path, data in self.files.items():
            if not names or path.split("/")[0] in names:
                (self.root / path).parent.mkdir(parents=True, exist_ok=True)
                (self.root / path).write_bytes(data)


def _contents(root: Path, name: str) -> Iterator[tuple[str, bytes | None]]:
    """Yield path and bytes of all that is no directory; None for what is no regular file."""
    top = root / name
    if not top.is_dir() or top.is_symlink():
        paths = [top] if os.path.lexists(top) else []
    else:
        paths = [Path(at) / file for at, dirs, files in os.walk(top) for file in [*dirs, *files]]
    for path in paths:
        if path.is_symlink() or not path.is_dir():
            regular = path.is_file() and not path.is_symlink()
            whole = regular and path.stat().st_size < 1 << 30
            yield str(path.relative_to(root)), path.read_bytes() if whole else None
