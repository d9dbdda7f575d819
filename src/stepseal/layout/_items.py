"""Items: the layout of a participant's payload files, and the checks of a set of items.

The items of a payload file follow each other without gaps, so that every byte of the file belongs
to one item and is covered by that item's digests:

    | padding | head | data | tail |
    ^ item    ^ record               (item and record end together; head, data and tail are the
    record)

All offsets and sizes count bytes, offsets from the start of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

from stepseal.layout._container import shape_problem
from stepseal.layout._digests import DIGEST_BYTES, num_chunks
from stepseal.layout._documents import MAX_INT
from stepseal.layout._dtypes import ITEMSIZE
from stepseal.layout._names import component_problem, parse_payload_path
from stepseal.layout._validate import Problems, show

if TYPE_CHECKING:
    from stepseal.layout._boxes import Box

__all__ = [
    "MAX_ITEMS",
    "PartIndex",
    "StoredBytes",
    "StoredItem",
    "StoredTensor",
    "index_problems",
    "payload_sizes",
]

MAX_ITEMS = 1_000_000
"""Most items, and most names of bytes items, in one index."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One box of a global tensor, stored as a genuine `torch.save` record."""

    component: str
    key: str
    dtype: str
    """Torch dtype name."""
    shape: tuple[int, ...]
    """Global shape, in elements."""
    box: Box
    """Position of the data inside the global tensor, in elements."""
    file: int
    """Position in the index's `payloads`."""
    item_offset: int
    item_size: int
    record_offset: int
    """First byte of the record, after the padding."""
    record_size: int
    data_offset: int
    """First byte of the box's elements, which lie in C order."""
    data_size: int
    chunk_digests: bytes
    """One digest per started MiB of the data."""
    frame_digest: bytes
    """Digest of all bytes of the item outside the data: padding, head and tail, joined."""


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """A write-only copy of a non-tensor leaf for stock DCP readers; stepseal never reads it."""

    entries: tuple[tuple[str, str], ...]
    """`(component, key)` of every leaf that has exactly this value."""
    file: int
    """Position in the index's `payloads`."""
    item_offset: int
    item_size: int
    record_offset: int
    """First byte of the record, after the padding."""
    record_size: int
    data_offset: int
    data_size: int
    chunk_digests: bytes
    """One digest per started MiB of the data."""
    frame_digest: bytes
    """Digest of all bytes of the item outside the data."""


StoredItem: TypeAlias = StoredTensor | StoredBytes
"""Any item of a payload file."""


@dataclass(frozen=True, slots=True)
class PartIndex:
    """All items of a part."""

    payloads: tuple[str, ...]
    """Paths of the payload files, relative to the step folder."""
    tensors: tuple[StoredTensor, ...]
    bytes_items: tuple[StoredBytes, ...]


def payload_sizes(index: PartIndex) -> dict[str, int]:
    """Return the size in bytes that a sound index requires of each payload file, by path."""
    ends = dict.fromkeys(index.payloads, 0)
    for item in chain[StoredItem](index.tensors, index.bytes_items):
        path = index.payloads[item.file]
        ends[path] = max(ends[path], item.item_offset + item.item_size)
    return ends


def index_problems(index: PartIndex) -> list[str]:
    """Return why an index is not sound; empty if its items are consistent and tile the files.

    The caller compares the actual file sizes with `payload_sizes`.

    Args:
        index: a decoded index, or one to be written.

    Returns:
        At most a hundred findings, each with its path.
    """
    problems = Problems()
    for number, path in enumerate(index.payloads):
        if parse_payload_path(path) is None:
            problems.add(f"payloads[{number}]", f"expected a payload file, found {show(path)}")
    if len(set(index.payloads)) != len(index.payloads):
        problems.add("payloads", "a payload file is listed twice")
    _check_tensors(index, problems)
    for number, item in enumerate(index.bytes_items):
        _check_item(f"bytes_items[{number}]", item, len(index.payloads), problems)
        if not item.entries:
            problems.add(f"bytes_items[{number}]", "expected at least one entry")
        for component, _ in item.entries:
            if problem := component_problem(component):
                problems.add(f"bytes_items[{number}]", problem)
    if not problems.listed:
        _check_tiling(index, problems)
    return problems.all()


def _check_tensors(index: PartIndex, problems: Problems) -> None:
    globals_: dict[tuple[str, str], tuple[str, tuple[int, ...]]] = {}
    sound_components: set[str] = set()
    for number, item in enumerate(index.tensors):
        path = f"tensors[{number}]"
        if item.component not in sound_components:
            if problem := component_problem(item.component):
                problems.add(path, problem)
            sound_components.add(item.component)
        if problem := _tensor_problem(item):
            problems.add(path, f"{show(item.key)}: {problem}")
        fact = (item.dtype, item.shape)
        if globals_.setdefault((item.component, item.key), fact) != fact:
            problems.add(path, f"{show(item.key)}: two items differ in dtype or global shape")
        _check_item(path, item, len(index.payloads), problems)


def _tensor_problem(item: StoredTensor) -> str | None:
    itemsize = ITEMSIZE.get(item.dtype)
    if itemsize is None:
        return f"expected a known dtype, found {show(item.dtype)}"
    if problem := shape_problem(item.shape, itemsize):
        return problem
    box = item.box
    if not len(box.offsets) == len(box.sizes) == len(item.shape):
        return f"expected a box of {len(item.shape)} dims"
    size_bytes = itemsize
    for extent, offset, size in zip(item.shape, box.offsets, box.sizes, strict=True):
        if offset < 0 or size < 0 or offset + size > extent:
            return "expected a box inside the global shape"
        size_bytes *= size
    if item.data_size != size_bytes:
        return f"expected {size_bytes} bytes of data, found {item.data_size}"
    return None


def _check_item(path: str, item: StoredItem, num_payloads: int, problems: Problems) -> None:
    if not 0 <= item.file < num_payloads:
        problems.add(path, f"expected one of {num_payloads} payload files, found {item.file}")
    end = item.item_offset + item.item_size
    ordered = 0 <= item.item_offset <= item.record_offset <= item.data_offset
    if not ordered or item.item_size < 1 or item.data_size < 0 or end > MAX_INT:
        problems.add(path, "expected item, record and data in this order")
    elif item.record_offset + item.record_size != end or item.data_offset + item.data_size > end:
        problems.add(path, f"expected record and data to end with the item, at byte {end}")
    if len(item.chunk_digests) != DIGEST_BYTES * num_chunks(item.data_size):
        problems.add(path, f"expected {num_chunks(item.data_size)} chunk digests")
    if len(item.frame_digest) != DIGEST_BYTES:
        problems.add(path, f"expected a frame digest of {DIGEST_BYTES} bytes")


def _check_tiling(index: PartIndex, problems: Problems) -> None:
    """Report gaps and overlaps between items that are sound by themselves."""
    spans: list[list[tuple[int, int]]] = [[] for _ in index.payloads]
    for item in chain[StoredItem](index.tensors, index.bytes_items):
        spans[item.file].append((item.item_offset, item.item_size))
    for path, items in zip(index.payloads, spans, strict=True):
        end = 0
        for offset, size in sorted(items):
            if offset != end:
                problems.add(path, f"expected an item at byte {end}, found the next at {offset}")
            end = offset + size
