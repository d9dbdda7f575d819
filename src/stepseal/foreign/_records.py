"""One `torch.save` record: a zip archive of stored members, read by exact ranges.

`zipfile` reads only the archive's directory. Nothing is unpacked: a member is a range of bytes
inside the record.
"""

from __future__ import annotations

import encodings.cp437  # noqa: F401 - for `zipfile`: no import while hostile bytes are read
import struct
import zipfile
from typing import IO, TYPE_CHECKING, Any, cast

from stepseal.errors import CheckpointError
from stepseal.foreign._pickles import corrupt, parse_pickle

if TYPE_CHECKING:
    from collections.abc import Collection

    from stepseal.foreign._metadata import ForeignItem
    from stepseal.storage import ReadHandle

__all__ = ["Record"]

_BUFFERED_BYTES = 1 << 20
"""Records up to this size are read at once, larger ones range by range."""
_MAX_DIRECTORY_BYTES = 4 << 20
_LOCAL = struct.Struct("<4s22x2H")


class Record:
    """One record of an open file.

    Args:
        handle: the file.
        item: range of the record in the file.
        what: the record's name, for messages.

    Raises:
        Corrupt: `torch.save` never writes such an archive, or a member is compressed.
    """

    def __init__(self, handle: ReadHandle, item: ForeignItem, what: str) -> None:
        self.what = what
        self._ranges = _Ranges(handle, item.offset, item.length)
        self._members = self._directory()
        roots = [n.removesuffix("/data.pkl") for n in self._members if n.endswith("/data.pkl")]
        if len(roots) != 1:
            raise corrupt(what, f"expected one data.pkl, found {len(roots)}")
        self._root = roots[0]
        if "byteorder" in self and bytes(self._member("byteorder", 16)) != b"little":
            raise corrupt(what, "expected little-endian data")

    def __contains__(self, name: str) -> bool:
        """Return whether the archive has a member of this name."""
        return f"{self._root}/{name}" in self._members

    def root_node(self, allowed: Collection[str], max_bytes: int) -> Any:  # noqa: ANN401 - a node
        """Return the root node of the pickled structure; see `parse_pickle`."""
        return parse_pickle(bytes(self._member("data.pkl", max_bytes)), allowed, self.what)

    def storage_size(self, key: str) -> int:
        """Return the size of a storage in bytes.

        Raises:
            Corrupt: the record has no such storage.
        """
        if f"data/{key}" not in self:
            raise corrupt(self.what, f"expected the storage {key[:40]!r}, found none")
        return self._members[f"{self._root}/data/{key}"].file_size

    def storage(self, key: str) -> memoryview:
        """Return a new copy of the bytes of a storage."""
        return self._member(f"data/{key}", self._ranges.size)

    def _directory(self) -> dict[str, zipfile.ZipInfo]:
        try:
            found = zipfile.ZipFile(cast("IO[bytes]", self._ranges)).infolist()
        except CheckpointError:
            raise
        except (
            *(zipfile.BadZipFile, NotImplementedError, ValueError, LookupError, OverflowError),
            *(struct.error, Warning),
        ) as error:
            if isinstance(error.__context__, CheckpointError):  # the storage failed, not the bytes
                raise error.__context__ from None
            raise corrupt(self.what, "expected a zip archive, found none") from error
        members = {info.filename: info for info in found}
        if len(members) != len(found):
            raise corrupt(self.what, "expected distinct members, found a name twice")
        for name, info in members.items():
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise corrupt(self.what, f"expected stored members, found {name[:80]!r} compressed")
        return members

    def _member(self, name: str, max_bytes: int) -> memoryview:
        info = self._members[f"{self._root}/{name}"]
        if info.file_size > max_bytes:
            problem = f"{name[:80]!r}: expected at most {max_bytes} bytes, found {info.file_size}"
            raise corrupt(self.what, problem)
        try:
            head = self._ranges.fresh(info.header_offset, _LOCAL.size)
            magic, name_size, extra_size = _LOCAL.unpack(head)
            start = info.header_offset + _LOCAL.size + name_size + extra_size
            if magic == b"PK\x03\x04":
                return self._ranges.fresh(start, info.file_size)
        except ValueError:
            pass
        raise corrupt(self.what, f"{name[:80]!r}: expected a member inside its record, found none")


class _Ranges:
    """The bytes of one record as a file for `zipfile`; a small record is read once."""

    def __init__(self, handle: ReadHandle, offset: int, size: int) -> None:
        self.size = size
        self._handle = handle
        self._offset = offset
        self._at = 0
        self._whole: memoryview | None = None
        if size <= _BUFFERED_BYTES:
            self._whole = self.fresh(0, size)

    def fresh(self, offset: int, size: int) -> memoryview:
        """Return a copy of a range; raise ValueError if it is not inside the record."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"bytes {offset} to {offset + size} of {self.size}")
        if self._whole is not None:
            return memoryview(bytearray(self._whole[offset : offset + size]))
        data = memoryview(bytearray(size))
        if size:
            self._handle.read_into(data, self._offset + offset)
        return data

    def read(self, size: int = -1) -> bytes:
        left = self.size - self._at
        size = left if size < 0 else min(size, left)
        if size > _MAX_DIRECTORY_BYTES:
            raise ValueError(f"a directory of {size} bytes")
        data = bytes(self.fresh(self._at, size))
        self._at += size
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self.size)[whence]
        if not 0 <= self._at <= self.size:
            raise ValueError(f"byte {self._at} of {self.size}")
        return self._at

    def tell(self) -> int:
        return self._at
