"""Tree payloads as files: a JSON document, and safetensors segments with its arrays.

A segment has at most 4 GiB of arrays (or one larger array) and a bounded header. Within a tree,
arrays are sorted by decreasing element size, so that each is aligned. A dtype that safetensors
lacks is stored as bytes, and the header's metadata names it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from stepseal.errors import InvalidInput
from stepseal.layout import (
    ITEMSIZE,
    TO_SAFETENSORS,
    build_header,
    decode_document,
    encode_document,
    parse_header,
    refuse,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stepseal.layout import ArraySource, ContainerEntry, TreeSource

__all__ = [
    "MAX_SEGMENT_BYTES",
    "MAX_TREE_DOCUMENT_BYTES",
    "arrays_of_segment",
    "decode_tree_document",
    "encode_tree_document",
    "segment_header",
    "segments_of",
]

MAX_SEGMENT_BYTES = 4 << 30
"""Most bytes of arrays in one segment; a larger array has its own segment."""
MAX_TREE_DOCUMENT_BYTES = 256 << 20
"""Largest tree document."""

_MAX_HEADER_COST = 16 << 20
_DTYPES = "stepseal.dtypes"


def encode_tree_document(source: TreeSource) -> bytes:
    """Return the bytes of a tree's document.

    Raises:
        InvalidInput: the document could not be read back.
    """
    data = encode_document(source.document)
    if len(data) > MAX_TREE_DOCUMENT_BYTES:
        raise InvalidInput(
            f"tree of component {source.component!r} is not writable: expected a document of at "
            "most "
            f"{MAX_TREE_DOCUMENT_BYTES} bytes, found {len(data)}. Keep large values in arrays.",
            component=source.component,
            participant=source.owner,
        )
    return data


def decode_tree_document(data: memoryview, *, what: str) -> object:
    """Return the value of a tree's document; raise `Corrupt` if it is malformed."""
    return decode_document(data, what=what, max_bytes=MAX_TREE_DOCUMENT_BYTES)


def segments_of(source: TreeSource) -> Iterator[list[ArraySource]]:
    """Yield the arrays of each segment, none for a tree without arrays.

    Raises:
        InvalidInput: an array has an unknown dtype.
    """
    for array in source.arrays:
        if array.dtype not in ITEMSIZE:
            raise InvalidInput(
                f"array {array.name!r} of component {source.component!r} is not writable: "
                "expected a torch "
                f"dtype name, found {array.dtype!r}",
                component=source.component,
                participant=source.owner,
            )
    segment: list[ArraySource] = []
    size = cost = 0
    for array in sorted(source.arrays, key=lambda array: -ITEMSIZE[array.dtype]):
        entry_cost = 6 * len(array.name) + 20 * len(array.shape) + 128
        full = size + array.data.size_bytes > MAX_SEGMENT_BYTES
        if segment and (full or cost + entry_cost > _MAX_HEADER_COST):
            yield segment
            segment, size, cost = [], 0, 0
        segment.append(array)
        size += array.data.size_bytes
        cost += entry_cost
    if segment:
        yield segment


def segment_header(arrays: Sequence[ArraySource]) -> bytes:
    """Return the header of a segment, which precedes the arrays' data.

    Raises:
        InvalidInput: data and shape of an array differ in size, or two arrays have the same name.
    """
    foreign = {a.name: a.dtype for a in arrays if TO_SAFETENSORS[a.dtype] is None}
    entries = [
        (a.name, "uint8", (*a.shape, ITEMSIZE[a.dtype]), a.data.size_bytes)
        if a.name in foreign
        else (a.name, a.dtype, a.shape, a.data.size_bytes)
        for a in arrays
    ]
    return build_header(entries, {_DTYPES: encode_document(foreign).decode()} if foreign else {})


def arrays_of_segment(
    data: memoryview, *, what: str
) -> dict[str, tuple[str, tuple[int, ...], memoryview]]:
    """Return the arrays of a verified segment as views; raise `Corrupt` if it is malformed."""
    header = parse_header(data, what=what, file_size=data.nbytes)
    foreign = _foreign_dtypes(header.metadata, what)
    found: dict[str, tuple[str, tuple[int, ...], memoryview]] = {}
    for entry in header.entries:
        dtype, shape = entry.dtype, entry.shape
        if (name := foreign.pop(entry.name, None)) is not None:
            dtype, shape = name, _foreign_shape(entry, name, what)
        found[entry.name] = (dtype, shape, data[entry.offset : entry.offset + entry.size_bytes])
    if foreign:
        raise refuse(what, [f"{_DTYPES}: no array {name!r:.80}" for name in foreign])
    return found


def _foreign_dtypes(metadata: dict[str, str], what: str) -> dict[str, str]:
    if _DTYPES not in metadata:
        return {}
    named = decode_document(metadata[_DTYPES].encode(), what=what)
    if not isinstance(named, dict) or any(
        not isinstance(dtype, str) or dtype not in ITEMSIZE for dtype in named.values()
    ):
        raise refuse(what, [f"{_DTYPES}: expected an object of dtype names"])
    return named


def _foreign_shape(entry: ContainerEntry, dtype: str, what: str) -> tuple[int, ...]:
    shape = entry.shape[:-1]
    fits = entry.dtype == "uint8" and entry.shape[-1:] == (ITEMSIZE[dtype],)
    if not fits or math.prod(shape) * ITEMSIZE[dtype] != entry.size_bytes:
        raise refuse(what, [f"{entry.name!r:.80}: expected bytes of {dtype} elements"])
    return shape
