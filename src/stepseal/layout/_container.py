"""The header of a safetensors file: names, dtypes, shapes and offsets of its arrays.

Only headers; the caller reads and writes the data. Arrays follow each other without gaps and fill
the file. Array names are never used as paths.
Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from stepseal.errors import InvalidInput
from stepseal.layout._documents import MAX_INT, DocumentLimits, outline, refuse
from stepseal.layout._dtypes import FROM_SAFETENSORS, ITEMSIZE, TO_SAFETENSORS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stepseal.layout._digests import Buffer

__all__ = [
    "MAX_HEADER_BYTES",
    "MAX_NDIM",
    "ContainerEntry",
    "ContainerHeader",
    "build_header",
    "header_size",
    "parse_header",
    "shape_problem",
]

MAX_HEADER_BYTES = 100_000_000
"""Largest header that safetensors readers accept, without the length in front of it."""
MAX_NDIM = 64
"""Most dims of an array."""

_LENGTH_BYTES = 8
_ALIGNMENT = 64
_METADATA = "__metadata__"
_LIMITS = DocumentLimits(max_depth=3, max_values=3_000_000)


@dataclass(frozen=True, slots=True)
class ContainerEntry:
    """One array of a container."""

    name: str
    dtype: str
    """Torch dtype name."""
    shape: tuple[int, ...]
    offset: int
    """First byte of the data, counted from the start of the file."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ContainerHeader:
    """The parsed header of a container."""

    entries: tuple[ContainerEntry, ...]
    """In the order of their data."""
    metadata: dict[str, str]
    size_bytes: int
    """Bytes before the data of the first array."""


def shape_problem(shape: Sequence[object], itemsize: int) -> str | None:
    """Return why no array can have this shape, or None; checks all sizes even if one is 0."""
    if len(shape) > MAX_NDIM:
        return f"expected at most {MAX_NDIM} dims, found {len(shape)}"
    if not all(type(size) is int and 0 <= size <= MAX_INT for size in shape):
        return f"expected sizes from 0 to {MAX_INT}"
    if math.prod(max(size, 1) for size in shape if isinstance(size, int)) * itemsize > MAX_INT:
        return f"expected at most {MAX_INT} bytes"
    return None


def build_header(
    entries: Sequence[tuple[str, str, Sequence[int], int]], metadata: Mapping[str, str]
) -> bytes:
    """Return the first bytes of a container; the arrays' data follows in the order of `entries`.

    Args:
        entries: `(name, dtype, shape, size_bytes)` per array, dtype as torch spells it.
        metadata: free text pairs.

    Returns:
        A multiple of 64 bytes, padded with spaces.

    Raises:
        InvalidInput: the format cannot hold an array, a name is used twice, or the header is too
            large.
    """
    header: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape, size_bytes in entries:
        if problem := _entry_problem(dtype, shape, size_bytes):
            raise InvalidInput(f"array {name!r:.80} does not fit a container: {problem}")
        if name in header or name == _METADATA:
            raise InvalidInput(f"array name {name!r:.80} is not usable: it is taken")
        header[name] = {
            "dtype": TO_SAFETENSORS[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size_bytes],
        }
        offset += size_bytes
    try:
        text = msgspec.json.encode(header)
    except UnicodeEncodeError as error:
        raise InvalidInput(f"container header is not writable: {error}") from error
    text += b" " * (-(_LENGTH_BYTES + len(text)) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES or outline(text, _LIMITS).num_values > _LIMITS.max_values:
        raise InvalidInput(
            f"container header is too large: {len(text)} bytes for {len(entries)} arrays"
        )
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _entry_problem(dtype: str, shape: Sequence[int], size_bytes: int) -> str | None:
    if TO_SAFETENSORS.get(dtype) is None:
        return f"dtype {dtype!r:.80} has no name in safetensors"
    if problem := shape_problem(shape, ITEMSIZE[dtype]):
        return problem
    expected = math.prod(shape) * ITEMSIZE[dtype]
    return None if size_bytes == expected else f"expected {expected} bytes, found {size_bytes}"


def header_size(prefix: Buffer, *, what: str, file_size: int) -> int:
    """Return how many bytes from the start of a file `parse_header` needs.

    Args:
        prefix: the first 8 bytes of the file, or more.
        what: names the file in errors.
        file_size: size of the whole file in bytes.

    Raises:
        Corrupt: the bytes are not the start of a container.
    """
    length = int.from_bytes(bytes(prefix[:_LENGTH_BYTES]), "little")
    limit = min(MAX_HEADER_BYTES, file_size - _LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES or not 2 <= length <= limit:
        raise refuse(what, [f"expected a header of 2 to {limit} bytes, found {length}"])
    return _LENGTH_BYTES + length


def parse_header(prefix: Buffer, *, what: str, file_size: int) -> ContainerHeader:
    """Return the checked header of a container; safe on hostile bytes.

    Args:
        prefix: the file's first bytes, at least `header_size` of them.
        what: names the file in errors.
        file_size: size of the whole file in bytes.

    Raises:
        Corrupt: the file is not a container, or its arrays do not fill it exactly; see `.problems`.
    """
    size_bytes = header_size(prefix, what=what, file_size=file_size)
    if len(prefix) < size_bytes:
        raise refuse(what, [f"expected {size_bytes} bytes of header, found {len(prefix)}"])
    header = _decode(bytes(prefix[_LENGTH_BYTES:size_bytes]), what)
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise refuse(what, ["__metadata__: expected an object of strings"])
    problems: list[str] = []
    entries: list[ContainerEntry] = []
    for name, value in header.items():
        found = _parse_entry(name, value, size_bytes)
        if isinstance(found, str):
            problems.append(f"{name!r:.80}: {found}")
        else:
            entries.append(found)
    if problems:
        raise refuse(what, problems)
    entries.sort(key=lambda entry: (entry.offset, entry.size_bytes))
    end = size_bytes
    for entry in entries:
        if entry.offset != end:
            raise refuse(
                what, [f"{entry.name!r:.80}: expected data at byte {end}, found {entry.offset}"]
            )
        end += entry.size_bytes
    if end != file_size:
        raise refuse(what, [f"expected a file of {end} bytes, found {file_size}"])
    return ContainerHeader(tuple(entries), metadata, size_bytes)


def _decode(text: bytes, what: str) -> dict[str, object]:
    found = outline(text, _LIMITS)
    if found.num_values > _LIMITS.max_values or found.depth > _LIMITS.max_depth:
        raise refuse(what, ["header: expected fewer values and less nesting"])
    try:
        header = msgspec.json.decode(text)
    except ValueError as error:
        raise refuse(what, [f"header: expected JSON, found {error}"]) from error
    if not isinstance(header, dict):
        raise refuse(what, ["header: expected an object"])
    num_pairs = len(header) + sum(len(v) for v in header.values() if isinstance(v, dict))
    if text[:1] != b"{" or found.num_pairs != num_pairs:
        raise refuse(what, ["header: expected unique keys and nothing in front"])
    return header


def _parse_entry(name: str, value: object, base: int) -> ContainerEntry | str:
    """Return the entry, or a text that says what is wrong with it."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        return "expected exactly the keys `dtype`, `shape` and `data_offsets`"
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    torch_name = FROM_SAFETENSORS.get(dtype) if isinstance(dtype, str) else None
    if torch_name is None:
        return f"expected a known dtype, found {dtype!r:.80}"
    if not isinstance(shape, list):
        return "expected a list of sizes"
    if problem := shape_problem(shape, ITEMSIZE[torch_name]):
        return problem
    if not isinstance(offsets, list) or [type(offset) for offset in offsets] != [int, int]:
        return "expected two data offsets"
    begin, end = offsets
    size_bytes = math.prod(shape) * ITEMSIZE[torch_name]
    if not 0 <= begin <= MAX_INT or end - begin != size_bytes:
        return f"expected {size_bytes} bytes of data, found offsets {begin!r:.40}, {end!r:.40}"
    return ContainerEntry(name, torch_name, tuple(shape), base + begin, size_bytes)
