"""The zip archives that `torch.save` writes, of stored members only, read by exact ranges.

Nothing is unpacked: a member is a range of the record, and all members lie inside it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stepseal.components._inert import read_nodes
from stepseal.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Archive", "ReadRange"]

ReadRange = Callable[[int, int], memoryview]
"""Returns fresh bytes: offset inside the record, number of bytes."""

_END = struct.Struct("<4s4H2LH")
_END64_PLACE = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_DIRECTORY_BYTES = 4 << 20
_FULL32 = 0xFFFFFFFF
_Member = tuple[int, int]


class Archive:
    """One record.

    Args:
        read: reads ranges of the record.
        size: length of the record in bytes.
        what: the record's name, for messages.

    Raises:
        Corrupt: it is no archive that `torch.save` wrote, or a member is compressed.
    """

    def __init__(self, read: ReadRange, size: int, what: str) -> None:
        self.what = what
        self.size = size
        self._read = read
        try:
            self._members = self._directory()
        except (struct.error, ValueError, IndexError) as error:
            raise self.corrupt(f"expected a zip archive, found {error}") from error
        roots = [n.removesuffix("/data.pkl") for n in self._members if n.endswith("/data.pkl")]
        if len(roots) != 1:
            raise self.corrupt(f"expected one data.pkl, found {len(roots)}")
        self._root = roots[0]
        order = f"{self._root}/byteorder"
        if order in self._members and bytes(self._member(order, 16)) != b"little":
            raise self.corrupt("expected little-endian data")

    def nodes(self, allowed: Collection[tuple[str, str]], max_bytes: int) -> object:
        """Return the root node of the pickled structure; see `read_nodes`."""
        data = bytes(self._member(f"{self._root}/data.pkl", max_bytes))
        return read_nodes(data, allowed, self.what)

    def nodes_size(self) -> int:
        """Return the bytes of the pickled structure."""
        return self._members[f"{self._root}/data.pkl"][1]

    def storage_size(self, key: str) -> int:
        """Return the bytes of a storage.

        Raises:
            Corrupt: there is no such storage.
        """
        member = self._members.get(f"{self._root}/data/{key}")
        if member is None:
            raise self.corrupt(f"expected the storage {key[:40]!r}, found none")
        return member[1]

    def storage(self, key: str) -> memoryview:
        """Return the bytes of a storage in memory of their own."""
        return self._member(f"{self._root}/data/{key}", self.size)

    def corrupt(self, problem: str) -> Corrupt:
        """Return the error for a record that breaks the format."""
        return Corrupt(
            f"{self.what}: {problem}. It is not loaded.", path=self.what, problems=(problem,)
        )

    def _directory(self) -> dict[str, _Member]:
        count, length, offset = self._end()
        if length > min(_MAX_DIRECTORY_BYTES, self.size) or offset + length > self.size:
            raise ValueError(f"a directory of {length} bytes at {offset}")
        data = bytes(self._read(offset, length))
        members: dict[str, _Member] = {}
        at = 0
        for _ in range(count):
            fields: tuple[Any, ...] = _ENTRY.unpack_from(data, at)
            if fields[0] != b"PK\x01\x02":
                raise ValueError("a broken directory")
            name_size, extra_size, comment_size = fields[10:13]
            start = at + _ENTRY.size
            name = data[start : start + name_size].decode("ascii")
            extra = data[start + name_size : start + name_size + extra_size]
            at = start + name_size + extra_size + comment_size
            if at > length or name in members:
                raise ValueError("a directory with holes or twins")
            if fields[4] != 0:
                raise ValueError(f"the member {name[:80]!r} compressed")
            packed, unpacked, local = _wide(fields, extra)
            if packed != unpacked or local + packed > offset:
                raise ValueError(f"the member {name[:80]!r} outside its record")
            members[name] = (local, packed)
        if at != length:
            raise ValueError("a directory of another size")
        return members

    def _end(self) -> tuple[int, int, int]:
        """Return number of members, size and offset of the directory."""
        if self.size < _END.size:
            raise ValueError(f"{self.size} bytes")
        place = self.size - _END.size
        end: tuple[Any, ...] = _END.unpack(self._read(place, _END.size))
        if end[0] != b"PK\x05\x06" or end[7] or end[1] or end[2]:
            raise ValueError("no end of an archive")
        count, length, offset = end[4:7]
        if count != 0xFFFF and _FULL32 not in (length, offset):
            return count, length, offset
        locator = _END64_PLACE.unpack(self._read(place - _END64_PLACE.size, _END64_PLACE.size))
        if locator[0] != b"PK\x06\x07" or locator[2] + _END64.size > self.size:
            raise ValueError("no end of a large archive")
        wide: tuple[Any, ...] = _END64.unpack(self._read(locator[2], _END64.size))
        if wide[0] != b"PK\x06\x06":
            raise ValueError("no end of a large archive")
        return wide[7], wide[8], wide[9]

    def _member(self, name: str, max_bytes: int) -> memoryview:
        local, size = self._members[name]
        if size > max_bytes:
            raise self.corrupt(f"{name[:80]!r}: expected at most {max_bytes} bytes, found {size}")
        if local + _LOCAL.size > self.size:
            raise self.corrupt(f"{name[:80]!r}: expected a member inside its record")
        head: tuple[Any, ...] = _LOCAL.unpack(self._read(local, _LOCAL.size))
        start = local + _LOCAL.size + head[9] + head[10]
        if head[0] != b"PK\x03\x04" or head[3] != 0 or start + size > self.size:
            raise self.corrupt(f"{name[:80]!r}: expected a stored member, found another")
        return self._read(start, size)


def _wide(fields: tuple[Any, ...], extra: bytes) -> tuple[int, int, int]:
    """Return packed size, unpacked size and offset, from the 64-bit field where there is one."""
    packed, unpacked, local = fields[8], fields[9], fields[16]
    if _FULL32 not in (packed, unpacked, local):
        return packed, unpacked, local
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            rest = iter(struct.unpack(f"<{size // 8}Q", extra[at + 4 : at + 4 + size // 8 * 8]))
            unpacked = next(rest, -1) if unpacked == _FULL32 else unpacked
            packed = next(rest, -1) if packed == _FULL32 else packed
            local = next(rest, -1) if local == _FULL32 else local
            if min(packed, unpacked, local) < 0:
                break
            return packed, unpacked, local
        at += 4 + size
    raise ValueError("a large member without its sizes")
