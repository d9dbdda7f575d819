"""The part index on disk: the items of a part as columns in a safetensors container.

One row per item, tensors first; strings are stored once, in a string table. Any safetensors reader
can load the columns. An index has exactly one encoding, and readers refuse any other.
"""

from __future__ import annotations

import re
import struct
from itertools import accumulate, chain, islice, pairwise
from typing import TYPE_CHECKING, Any

from stepseal.errors import InvalidInput
from stepseal.layout._boxes import Box
from stepseal.layout._container import build_header, parse_header
from stepseal.layout._digests import DIGEST_BYTES, num_chunks
from stepseal.layout._documents import refuse
from stepseal.layout._items import (
    MAX_ITEMS,
    PartIndex,
    StoredBytes,
    StoredItem,
    StoredTensor,
    index_problems,
)
from stepseal.layout._sealed import FORMAT_VERSION, refuse_newer_format

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stepseal.layout._digests import Buffer

__all__ = ["MAX_INDEX_BYTES", "decode_index", "encode_index"]

MAX_INDEX_BYTES = 1 << 30
"""Largest part index."""

_FORMAT = "stepseal-index"
_EXTENTS = (
    "item_offset",
    "item_size",
    "record_offset",
    "record_size",
    "data_offset",
    "data_size",
)
# Wide columns first, so that each is aligned to its element.
_COLUMNS: dict[str, str] = {
    **dict.fromkeys((*_EXTENTS, "tensor_dims", "string_end"), "int64"),
    **dict.fromkeys(
        (
            "payload",
            "file",
            "tensor_component",
            "tensor_key",
            "tensor_dtype",
            "bytes_num_entries",
            "bytes_component",
            "bytes_key",
        ),
        "uint32",
    ),
    **dict.fromkeys(("tensor_ndim", "frame_digest", "chunk_digests", "strings"), "uint8"),
}
_CODES = {"int64": ("q", 8), "uint32": ("I", 4)}


def encode_index(index: PartIndex) -> bytes:
    """Return the bytes of an index file; `decode_index` accepts them.

    Raises:
        InvalidInput: the index is not sound or is too large; `.problems` lists the reasons.
    """
    problems = index_problems(index)
    num_items = len(index.tensors) + len(index.bytes_items)
    num_entries = sum(len(item.entries) for item in index.bytes_items)
    if max(num_items, num_entries) > MAX_ITEMS:
        problems.append(f"expected at most {MAX_ITEMS} items")
    if problems:
        raise InvalidInput(f"part index is not writable: {problems[0]}", problems=problems)
    try:
        return _pack(index)
    except (UnicodeEncodeError, struct.error) as error:
        raise InvalidInput(f"part index is not writable: {error}") from error


def _pack(index: PartIndex) -> bytes:
    tensors, copies = index.tensors, index.bytes_items
    items: tuple[StoredItem, ...] = (*tensors, *copies)
    ids: dict[str, int] = {}

    def id_of(text: str) -> int:
        return ids.setdefault(text, len(ids))

    columns: dict[str, Any] = {
        "payload": [id_of(path) for path in index.payloads],
        "file": [item.file for item in items],
        "tensor_component": [id_of(item.component) for item in tensors],
        "tensor_dtype": [id_of(item.dtype) for item in tensors],
        "tensor_key": [id_of(item.key) for item in tensors],
        "tensor_ndim": bytes([len(item.shape) for item in tensors]),
        "tensor_dims": list(
            chain.from_iterable(
                (*item.shape, *item.box.offsets, *item.box.sizes) for item in tensors
            )
        ),
        "bytes_num_entries": [len(item.entries) for item in copies],
        "bytes_component": [id_of(entry[0]) for item in copies for entry in item.entries],
        "bytes_key": [id_of(entry[1]) for item in copies for entry in item.entries],
        "frame_digest": b"".join([item.frame_digest for item in items]),
        "chunk_digests": b"".join([item.chunk_digests for item in items]),
    }
    for name in _EXTENTS:
        columns[name] = [getattr(item, name) for item in items]
    texts = [text.encode() for text in ids]
    columns["strings"] = b"".join(texts)
    columns["string_end"] = list(accumulate(map(len, texts)))
    entries, data = [], []
    for name, dtype in _COLUMNS.items():
        packed = _pack_column(dtype, columns[name])
        entries.append((name, dtype, (len(columns[name]),), len(packed)))
        data.append(packed)
    metadata = {"format": _FORMAT, "format_version": str(FORMAT_VERSION)}
    return b"".join([build_header(entries, metadata), *data])


def _pack_column(dtype: str, values: Sequence[int] | bytes) -> bytes:
    if isinstance(values, bytes):
        return values
    return struct.pack(f"<{len(values)}{_CODES[dtype][0]}", *values)


def decode_index(data: Buffer, *, what: str = "part index") -> PartIndex:
    """Return the checked index of a file; safe on hostile bytes.

    The caller still has to compare the sizes of the payload files with `payload_sizes`.

    Args:
        data: all bytes of the file.
        what: names the file in errors.

    Raises:
        IncompatibleFormat: a newer release wrote it.
        Corrupt: anything else is wrong; `.problems` lists every finding.
    """
    view = memoryview(data).cast("B")
    if len(view) > MAX_INDEX_BYTES:
        raise refuse(what, [f"expected at most {MAX_INDEX_BYTES} bytes, found {len(view)}"])
    index = _Columns(view, what).read()
    if problems := index_problems(index):
        raise refuse(what, problems)
    if _pack(index) != view:
        raise refuse(what, ["expected the one canonical form of this index"])
    return index


class _Columns:
    """The columns of one index file; their lengths are compared before any is unpacked."""

    def __init__(self, view: memoryview, what: str) -> None:
        self._what = what
        header = parse_header(view, what=what, file_size=len(view))
        _check_version(header.metadata, what)
        dtypes = {entry.name: entry.dtype for entry in header.entries}
        if dtypes != _COLUMNS or any(len(entry.shape) != 1 for entry in header.entries):
            raise refuse(what, ["expected exactly the columns of a part index"])
        self._data = {e.name: view[e.offset : e.offset + e.size_bytes] for e in header.entries}
        self._length = {entry.name: entry.shape[0] for entry in header.entries}

    def read(self) -> PartIndex:
        """Build the index; raise Corrupt if the columns contradict each other."""
        num_tensors, num_items = self._check_lengths()
        texts = self._texts()
        rows = self._rows()
        tensors = tuple(
            StoredTensor(component, key, dtype, shape, box, *row)
            for component, key, dtype, (shape, box), row in zip(
                self._named("tensor_component", texts),
                self._named("tensor_key", texts),
                self._named("tensor_dtype", texts),
                self._shapes(),
                rows[:num_tensors],
                strict=True,
            )
        )
        copies = tuple(
            StoredBytes(entries, *row)
            for entries, row in zip(self._entries(texts), rows[num_tensors:], strict=True)
        )
        assert len(rows) == num_items
        return PartIndex(tuple(self._named("payload", texts)), tensors, copies)

    def _check_lengths(self) -> tuple[int, int]:
        """Return the number of tensors and of items."""
        length = self._length
        num_tensors, num_entries = length["tensor_key"], length["bytes_key"]
        num_items = num_tensors + length["bytes_num_entries"]
        self._require(max(num_items, num_entries) <= MAX_ITEMS, f"at most {MAX_ITEMS} items")
        expected = {
            **dict.fromkeys(("file", *_EXTENTS), num_items),
            **dict.fromkeys(("tensor_component", "tensor_dtype", "tensor_ndim"), num_tensors),
            "bytes_component": num_entries,
            "frame_digest": DIGEST_BYTES * num_items,
            "tensor_dims": 3 * sum(self._data["tensor_ndim"]),
        }
        for name, number in expected.items():
            self._require(length[name] == number, f"{number} values in column {name}")
        num_texts = length["payload"] + 3 * num_tensors + 2 * num_entries
        self._require(length["string_end"] <= num_texts, "no text that is not used")
        return num_tensors, num_items

    def _require(self, holds: bool, expected: str) -> None:
        if not holds:
            raise refuse(self._what, [f"columns disagree: expected {expected}"])

    def _ints(self, name: str) -> tuple[int, ...]:
        code, _ = _CODES[_COLUMNS[name]]
        return struct.unpack(f"<{self._length[name]}{code}", self._data[name])

    def _texts(self) -> list[str]:
        ends = self._ints("string_end")
        blob = bytes(self._data["strings"])
        starts = (0, *ends[:-1])
        ordered = all(start <= end for start, end in zip(starts, ends, strict=False))
        self._require(ordered and (ends[-1] if ends else 0) == len(blob), "texts one by one")
        try:
            return [blob[a:b].decode() for a, b in zip(starts, ends, strict=False)]
        except UnicodeDecodeError as error:
            raise refuse(self._what, [f"expected UTF-8, found {error}"]) from error

    def _named(self, name: str, texts: list[str]) -> list[str]:
        ids = self._ints(name)
        self._require(max(ids, default=-1) < len(texts), f"known texts in column {name}")
        return [texts[i] for i in ids]

    def _shapes(self) -> Iterator[tuple[tuple[int, ...], Box]]:
        dims, position = self._data["tensor_dims"], 0
        for ndim in self._data["tensor_ndim"]:
            values = struct.unpack_from(f"<{3 * ndim}q", dims, position)
            position += 24 * ndim
            yield values[:ndim], Box(values[ndim : 2 * ndim], values[2 * ndim :])

    def _entries(self, texts: list[str]) -> Iterator[tuple[tuple[str, str], ...]]:
        counts = self._ints("bytes_num_entries")
        self._require(sum(counts) == self._length["bytes_key"], "as many names as counted")
        names = zip(
            self._named("bytes_component", texts), self._named("bytes_key", texts), strict=True
        )
        for count in counts:
            yield tuple(islice(names, count))

    def _rows(self) -> list[tuple[Any, ...]]:
        """Return the fields that all items share, in the order of their dataclasses."""
        extents = {name: self._ints(name) for name in _EXTENTS}
        sizes = extents["data_size"]
        self._require(min(sizes, default=0) >= 0, "no negative size")
        ends = [DIGEST_BYTES * end for end in accumulate(map(num_chunks, sizes), initial=0)]
        self._require(ends[-1] == self._length["chunk_digests"], "a digest per chunk")
        chunks = bytes(self._data["chunk_digests"])
        frames = bytes(self._data["frame_digest"])
        return list(
            zip(
                self._ints("file"),
                *extents.values(),
                [chunks[a:b] for a, b in pairwise(ends)],
                [frames[a : a + DIGEST_BYTES] for a in range(0, len(frames), DIGEST_BYTES)],
                strict=True,
            )
        )


def _check_version(metadata: dict[str, str], what: str) -> None:
    version = metadata.get("format_version", "")
    if metadata.get("format") != _FORMAT or not re.fullmatch("[1-9][0-9]{0,8}", version):
        raise refuse(what, ["expected the metadata of a part index"])
    refuse_newer_format(int(version), what)
