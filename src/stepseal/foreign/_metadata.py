"""Reads the `.metadata` of a foreign DCP folder into checked values of our own.

The file is a pickle. It is parsed into inert nodes; nothing is ever imported or called. Every
field is checked before it is used: exact types, bounds, safe paths, boxes that tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from stepseal.errors import UnsupportedState
from stepseal.foreign._pickles import Call, Name, Node, Pairs, corrupt, parse_pickle
from stepseal.layout import (
    ITEMSIZE,
    MAX_DCP_INDEX_BYTES,
    Box,
    coverage_problems,
    path_problem,
    path_set_problems,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ForeignIndex", "ForeignItem", "ForeignTensor", "is_size", "read_metadata"]

_META = "torch.distributed.checkpoint.metadata"
_INFO = "torch.distributed.checkpoint.filesystem._StorageInfo"
_STRIDED = ("torch.serialization._get_layout", ("torch.strided",))
_CLASSES = (
    "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
    "TensorProperties", "MetadataIndex", "_MEM_FORMAT_ENCODING", "StorageMeta",
)  # fmt: skip
_ALLOWED = frozenset(
    {f"{_META}.{name}" for name in _CLASSES}
    | {f"torch.{dtype}" for dtype in ITEMSIZE}
    | {_INFO, _STRIDED[0], "torch.Size", "pathlib.PosixPath", "pathlib._local.PosixPath"}
    | {"builtins.getattr"}  # how Python 3.11 names a member of an enum; never called
)
_MAX_ITEMS = 1_000_000
_MAX_FIELDS = 64
_MAX_TEXT = 4096
_MAX_DIMS = 64
_MAX_ELEMENTS = 1 << 60
_MAX_OFFSET = 1 << 62


@dataclass(frozen=True, slots=True)
class ForeignItem:
    """One record of a payload file, in bytes."""

    path: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ForeignTensor:
    """A tensor of a foreign checkpoint; its non-empty boxes hold each element exactly once."""

    fqn: str
    dtype: str
    shape: tuple[int, ...]
    boxes: tuple[tuple[Box, ForeignItem], ...]
    """Each stored box, in elements, and its record."""


@dataclass(frozen=True, slots=True)
class ForeignIndex:
    """The contents of a foreign DCP folder, by FQN."""

    tensors: dict[str, ForeignTensor]
    values: dict[str, ForeignItem]
    paths: dict[str, tuple[str | int, ...]]
    """FQN to its path in the nested state dict; all tensors and values have one."""
    sizes: dict[str, int]
    """Payload file to its minimum size in bytes."""


def read_metadata(data: bytes, what: str) -> ForeignIndex:
    """Return the checked contents of a `.metadata` file.

    Args:
        data: all bytes of the file.
        what: the file's name, for messages.

    Raises:
        UnsupportedState: the file names a class that is not DCP's own, a tensor that is not dense,
            or encoded records.
        Corrupt: DCP never writes such a file: types, bounds, paths or coverage are wrong.
    """
    if len(data) > MAX_DCP_INDEX_BYTES:
        problem = f"expected at most {MAX_DCP_INDEX_BYTES} bytes, found {len(data)}"
        raise corrupt(what, problem)
    return _Reader(what).index(parse_pickle(data, _ALLOWED, what))


class _Reader:
    def __init__(self, what: str) -> None:
        self._what = what
        self._boxes_left = _MAX_ITEMS
        self._files: set[str] = set()
        self._places: dict[tuple[str, str], ForeignItem] = {}
        """Records by FQN and offsets as text; attackers can make hashes of ints collide."""

    def index(self, root: Node) -> ForeignIndex:
        fields = ("storage_data", "state_dict_metadata", "planner_data")
        places, entries, planner = self._fields(root, f"{_META}.Metadata", *fields)
        for key, info in self._pairs(places):
            self._add_place(key, info)
        index = ForeignIndex({}, {}, {}, {})
        for fqn, node in self._pairs(entries):
            self._expect(_is_text(fqn), "a name", fqn)
            self._expect(fqn not in index.paths, f"{fqn[:80]!r} once", "it again")
            index.paths[fqn] = (fqn,)
            if isinstance(node, Call) and node.callee == f"{_META}.BytesStorageMetadata":
                index.values[fqn] = self._place(fqn)
            else:
                index.tensors[fqn] = self._tensor(fqn, node)
        for fqn, path in self._pairs(planner) if planner is not None else ():
            good = _is_text(fqn) and type(path) is tuple and 1 <= len(path) <= _MAX_DIMS
            good = good and all(map(_is_path_key, path))
            self._expect(good, "a path of texts and 64-bit numbers", path)
            if fqn in index.paths:
                index.paths[fqn] = path
        self._check_ranges(index)
        return index

    def _tensor(self, fqn: str, node: Node) -> ForeignTensor:
        kind, shown = f"{_META}.TensorStorageMetadata", f"{fqn[:80]!r}"
        properties, size, chunks = self._fields(node, kind, "properties", "size", "chunks")
        dtype, shape = self._dtype(properties, fqn), self._size(size)
        self._expect(type(chunks) is list, f"{shown}: a list of chunks", chunks)
        self._boxes_left -= len(chunks)
        self._expect(self._boxes_left >= 0, f"at most {_MAX_ITEMS} chunks", "more")
        boxes = []
        for chunk in chunks:
            ends = self._fields(chunk, f"{_META}.ChunkStorageMetadata", "offsets", "sizes")
            boxes.append(Box(*map(self._size, ends)))
        self._expect(len(set(boxes)) == len(boxes), f"{shown}: each box once", "one twice")
        problems = coverage_problems(shape, boxes)
        self._expect(not problems, f"{shown}: boxes that hold each element once", problems)
        stored = [(box, self._place(fqn, box.offsets)) for box in boxes if box.num_elements]
        for box, item in stored:
            fits = box.num_elements * ITEMSIZE[dtype] <= item.length
            self._expect(fits, f"{shown}: a record as long as its box", item.length)
        return ForeignTensor(fqn, dtype, shape, tuple(stored))

    def _dtype(self, node: Node, fqn: str) -> str:
        state: Node = node.state if isinstance(node, Call) else None
        good = type(state) is tuple and len(state) == 5 and isinstance(state[0], Name)
        self._expect(good, f"{fqn[:80]!r}: properties of a tensor", node)
        layout, dtype = state[1], str(state[0].removeprefix("torch."))
        self._expect(dtype in ITEMSIZE, f"{fqn[:80]!r}: a dtype", state[0])
        if not isinstance(layout, Call) or (layout.callee, layout.args) != _STRIDED:
            text = f"{self._what}: {fqn[:80]!r}: expected a dense tensor, found another layout."
            raise UnsupportedState(text, path=fqn)
        return dtype

    def _add_place(self, key: Node, info: Node) -> None:
        fqn, offset = self._fields(key, f"{_META}.MetadataIndex", "fqn", "offset")
        fields = ("relative_path", "offset", "length", "transform_descriptors")
        path, start, length, transforms = self._fields(info, _INFO, *fields)
        self._expect(_is_text(fqn), "a name", fqn)
        if transforms:
            raise UnsupportedState(
                f"{self._what}: {fqn[:80]!r}: expected plain records, found ones that an "
                "extension of DCP encoded. Load it with DCP and save it as a step.",
                path=fqn,
            )
        self._expect(type(path) is str, f"{fqn[:80]!r}: a path inside the folder", path)
        self._files.add(path)
        for number in (start, length):
            good = type(number) is int and 0 <= number < _MAX_OFFSET
            self._expect(good, f"{fqn[:80]!r}: a range of a file", number)
        offsets = None if offset is None else self._size(offset)
        self._places[fqn, repr(offsets)] = ForeignItem(path, start, length)

    def _place(self, fqn: str, offsets: tuple[int, ...] | None = None) -> ForeignItem:
        found = (fqn, repr(offsets)) in self._places
        self._expect(found, f"{fqn[:80]!r}: a place in storage_data", "none")
        return self._places[fqn, repr(offsets)]

    def _check_ranges(self, index: ForeignIndex) -> None:
        """Refuse paths outside the folder, and records that overlap.

        Values may share one whole record. Fills in the sizes of files.
        """
        problems = [problem for path in sorted(self._files) if (problem := path_problem(path))]
        problems = problems or path_set_problems(sorted(self._files))
        self._expect(not problems, "paths inside the folder that can all exist", problems)
        of_boxes = [item for tensor in index.tensors.values() for _, item in tensor.boxes]
        records = [(i.path, i.offset, i.length, True) for i in of_boxes]
        records += [(i.path, i.offset, i.length, False) for i in index.values.values()]
        records.sort()  # and not hashed: see `_places`
        index.sizes.update({path: offset + length for path, offset, length, _ in records})
        for one, other in pairwise(records):
            if one[:3] == other[:3]:
                alone = not one[3] and not other[3]
                self._expect(alone, "a separate record for each box", "one record for two")
            else:
                apart = one[0] != other[0] or other[1] >= one[1] + one[2]
                self._expect(apart, f"records that do not overlap in {one[0]}", other[1])

    def _fields(self, node: Node, kind: str, *names: str) -> list[Node]:
        """Return the named fields of a node of a DCP dataclass; None for a missing field."""
        good = isinstance(node, Call) and node.callee == kind and not node.args
        self._expect(good, kind.rpartition(".")[2], node)
        found = list(self._pairs(node.state)) if node.state is not None else []
        good = len(found) <= _MAX_FIELDS and all(type(name) is str for name, _ in found)
        self._expect(good, f"fields of {kind.rpartition('.')[2]}", "others")
        return list(map(dict(found).get, names))

    def _pairs(self, node: Node) -> Iterable[tuple[Node, Node]]:
        self._expect(type(node) is Pairs, "a dict", node)
        pairs: Pairs = node
        return pairs.pairs()

    def _size(self, node: Node) -> tuple[int, ...]:
        good = isinstance(node, Call) and node.callee == "torch.Size" and len(node.args) == 1
        self._expect(good and is_size(node.args[0]), "a size below 2^60", node)
        size: tuple[int, ...] = node.args[0]
        return size

    def _expect(self, holds: bool, expected: str, found: Node) -> None:
        if not holds:
            found = found[0] if type(found) is list and found else found
            shown = str(found) if isinstance(found, (str, int)) else type(found).__name__
            shown = shown if shown.isprintable() else ascii(shown)
            raise corrupt(self._what, f"expected {expected}, found {shown:.120}")


def is_size(node: Node) -> bool:
    """Return whether a node is a short tuple of sizes with a product below the limit."""
    return (
        type(node) is tuple
        and len(node) <= _MAX_DIMS
        and all(type(n) is int and 0 <= n < _MAX_ELEMENTS for n in node)
        and math.prod(max(n, 1) for n in node) < _MAX_ELEMENTS
    )


def _is_text(node: Node) -> bool:
    return type(node) is str and 1 <= len(node) <= _MAX_TEXT and _is_utf8(node)


def _is_path_key(key: Node) -> bool:
    return -(1 << 63) <= key < 1 << 64 if type(key) is int else key == "" or _is_text(key)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
