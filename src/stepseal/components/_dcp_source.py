"""The `.metadata` of a foreign DCP folder, as checked values of our own.

It is a pickle, and is read as inert nodes: whatever it says, nothing is imported or called. Every
field is checked before it means anything: exact types, bounds, safe paths, boxes that tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from stepseal.components._inert import Call, Name, Pairs, read_nodes
from stepseal.errors import Corrupt, UnsupportedState
from stepseal.layout import (
    ITEMSIZE,
    MAX_DCP_INDEX_BYTES,
    Box,
    coverage_problems,
    path_problem,
    path_set_problems,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ForeignBox",
    "ForeignIndex",
    "ForeignItem",
    "ForeignTensor",
    "read_dcp_index",
]

_META = "torch.distributed.checkpoint.metadata"
_STORAGE_INFO = ("torch.distributed.checkpoint.filesystem", "_StorageInfo")
_LAYOUT, _SIZE = ("torch.serialization", "_get_layout"), ("torch", "Size")
_CLASSES = (
    "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
    "TensorProperties", "MetadataIndex", "_MEM_FORMAT_ENCODING", "StorageMeta",
)  # fmt: skip
_ALLOWED = frozenset(
    {(_META, name) for name in _CLASSES}
    | {("torch", dtype) for dtype in ITEMSIZE}
    | {_STORAGE_INFO, _LAYOUT, _SIZE}
    | {(module, "PosixPath") for module in ("pathlib", "pathlib._local")}
    | {("builtins", "getattr")}  # how Python 3.11 names a member of an enum; never called
)
_MAX_ITEMS = 1_000_000
_MAX_TEXT = 4096
_MAX_DIMS = 64
_MAX_ELEMENTS = 1 << 60
_MAX_OFFSET = 1 << 62
_MIN_PATH_INT, _MAX_PATH_INT = -(1 << 63), (1 << 64) - 1
_Key = tuple[str, str]
"""FQN, and the offsets of a box as text: their own hash has no secret."""


@dataclass(frozen=True, slots=True)
class ForeignItem:
    """One record of a payload file, in bytes."""

    path: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ForeignBox:
    """One stored box of a tensor, in elements, and its record."""

    box: Box
    item: ForeignItem


@dataclass(frozen=True, slots=True)
class ForeignTensor:
    """A tensor of a foreign checkpoint; its boxes hold each element exactly once, none is empty."""

    fqn: str
    dtype: str
    shape: tuple[int, ...]
    boxes: tuple[ForeignBox, ...]


@dataclass(frozen=True, slots=True)
class ForeignIndex:
    """What a foreign DCP folder holds, by FQN."""

    tensors: dict[str, ForeignTensor]
    values: dict[str, ForeignItem]
    paths: dict[str, tuple[str | int, ...]]
    """FQN to its path in the nested state dict; all tensors and values have one."""

    def items(self) -> list[ForeignItem]:
        """Return every record, each as often as it is named."""
        boxes = [box.item for tensor in self.tensors.values() for box in tensor.boxes]
        return boxes + list(self.values.values())


def read_dcp_index(data: bytes, what: str) -> ForeignIndex:
    """Return the checked contents of a `.metadata` file.

    Args:
        data: all bytes of the file.
        what: the file's name, for messages.

    Raises:
        UnsupportedState: it names something else than DCP's own classes, a tensor that is not
            dense, or records that are encoded.
        Corrupt: it is not what DCP writes: types, bounds, paths or coverage are wrong.
    """
    if len(data) > MAX_DCP_INDEX_BYTES:
        raise Corrupt(
            f"{what}: expected at most {MAX_DCP_INDEX_BYTES} bytes, found {len(data)}. It is not "
            "loaded.",
            path=what,
        )
    return _IndexReader(what).read(read_nodes(data, _ALLOWED, what))


class _IndexReader:
    def __init__(self, what: str) -> None:
        self._what = what
        self._boxes_left = _MAX_ITEMS
        self._sound_paths: set[str] = set()

    def read(self, root: object) -> ForeignIndex:
        fields = self._fields(root, "Metadata", "the file")
        places = self._places(fields.get("storage_data"))
        tensors: dict[str, ForeignTensor] = {}
        values: dict[str, ForeignItem] = {}
        for fqn, node in self._pairs(fields.get("state_dict_metadata"), "state_dict_metadata"):
            key = self._text(fqn, "a name")
            if key in tensors or key in values:
                raise self._wrong(f"{key[:80]!r} once", "it again")
            if isinstance(node, Call) and node.callee.name == "BytesStorageMetadata":
                values[key] = self._place(places, _key(key, None))
            else:
                tensors[key] = self._tensor(key, node, places)
        index = ForeignIndex(tensors, values, self._paths(fields.get("planner_data"), tensors))
        for key in values:
            index.paths.setdefault(key, (key,))
        self._check_ranges(index)
        return index

    def _tensor(self, fqn: str, node: object, places: Mapping[_Key, ForeignItem]) -> ForeignTensor:
        fields = self._fields(node, "TensorStorageMetadata", fqn)
        dtype = self._dtype(fields.get("properties"), fqn)
        shape = self._size(fields.get("size"), fqn)
        chunks = fields.get("chunks")
        if type(chunks) is not list:
            raise self._wrong(f"{fqn[:80]!r}: a list of chunks", chunks)
        self._boxes_left -= len(chunks)
        if self._boxes_left < 0:
            raise self._wrong(f"at most {_MAX_ITEMS} chunks", "more")
        boxes: list[Box] = []
        held: dict[Box, ForeignBox] = {}
        for chunk in chunks:
            ends = self._fields(chunk, "ChunkStorageMetadata", fqn)
            box = Box(self._size(ends.get("offsets"), fqn), self._size(ends.get("sizes"), fqn))
            boxes.append(box)
            if box in held:
                raise self._wrong(f"{fqn[:80]!r}: each box once", "one twice")
            if box.num_elements:
                item = self._place(places, _key(fqn, box.offsets))
                if box.num_elements * ITEMSIZE[dtype] > item.length:
                    raise self._wrong(f"{fqn[:80]!r}: a record as long as its box", item.length)
                held[box] = ForeignBox(box, item)
        problems = coverage_problems(shape, boxes)
        if problems:
            raise self._wrong(f"{fqn[:80]!r}: boxes that hold each element once", problems[0])
        return ForeignTensor(fqn, dtype, shape, tuple(held.values()))

    def _dtype(self, node: object, fqn: str) -> str:
        if not isinstance(node, Call) or type(node.state) is not tuple or len(node.state) != 5:
            raise self._wrong(f"{fqn[:80]!r}: properties of a tensor", node)
        dtype, layout = node.state[:2]
        if (
            not isinstance(layout, Call)
            or (layout.callee.module, layout.callee.name) != _LAYOUT
            or layout.args != ("torch.strided",)
        ):
            raise UnsupportedState(
                f"{self._what}: {fqn[:80]!r}: expected a dense tensor, found another layout.",
                path=fqn,
            )
        if not isinstance(dtype, Name) or dtype.module != "torch" or dtype.name not in ITEMSIZE:
            raise self._wrong(f"{fqn[:80]!r}: a dtype", dtype)
        return dtype.name

    def _places(self, node: object) -> dict[_Key, ForeignItem]:
        found: dict[_Key, ForeignItem] = {}
        for key_node, info in self._pairs(node, "storage_data"):
            fields = self._fields(key_node, "MetadataIndex", "storage_data")
            fqn, offset = self._text(fields.get("fqn"), "a name"), fields.get("offset")
            key = _key(fqn, None if offset is None else self._size(offset, fqn))
            place = self._fields(info, "_StorageInfo", fqn)
            if place.get("transform_descriptors"):
                raise UnsupportedState(
                    f"{self._what}: {fqn[:80]!r}: expected plain records, found ones that an "
                    "extension of DCP encoded. Load it with DCP and save it as a step.",
                    path=fqn,
                )
            found[key] = self._item(place, fqn)
        return found

    def _item(self, place: Mapping[str, object], fqn: str) -> ForeignItem:
        path, offset, length = (place.get(n) for n in ("relative_path", "offset", "length"))
        if type(path) is not str or (
            path not in self._sound_paths and (problem := path_problem(path)) is not None
        ):
            problem = f"found {type(path).__name__}" if type(path) is not str else problem
            raise self._wrong(f"{fqn[:80]!r}: a path inside the folder", problem)
        self._sound_paths.add(path)
        for number in (offset, length):
            if type(number) is not int or not 0 <= number < _MAX_OFFSET:
                raise self._wrong(f"{fqn[:80]!r}: a range of a file", number)
        assert isinstance(offset, int)
        assert isinstance(length, int)
        return ForeignItem(path, offset, length)

    def _paths(
        self, node: object, tensors: Mapping[str, ForeignTensor]
    ) -> dict[str, tuple[str | int, ...]]:
        """Return the paths of the nested state dict; a planner of another kind has none."""
        found: dict[str, tuple[str | int, ...]] = {fqn: (fqn,) for fqn in tensors}
        for key, path in self._pairs(node, "planner_data") if node is not None else ():
            fqn = self._text(key, "a name")
            if (
                type(path) is not tuple
                or not 1 <= len(path) <= _MAX_DIMS
                or not all(map(_is_path_key, path))
            ):
                raise self._wrong(f"{fqn[:80]!r}: a path of texts and 64-bit numbers", path)
            found[fqn] = path
        return found

    def _check_ranges(self, index: ForeignIndex) -> None:
        """Refuse records that share bytes; values may share a whole record."""
        if problems := path_set_problems(sorted(self._sound_paths)):
            raise self._wrong("paths that can all exist", problems[0])
        records = [
            (box.item.path, box.item.offset, box.item.length, True)
            for tensor in index.tensors.values()
            for box in tensor.boxes
        ]
        records += [(i.path, i.offset, i.length, False) for i in index.values.values()]
        records.sort()  # and not hashed: see `_Key`
        for one, other in pairwise(records):
            if one[:3] == other[:3]:
                if one[3] or other[3]:
                    raise self._wrong("a record of its own for each box", "one record for two")
            elif one[0] == other[0] and other[1] < one[1] + one[2]:
                raise self._wrong(f"records that do not overlap in {one[0]}", f"byte {other[1]}")

    def _place(self, places: Mapping[_Key, ForeignItem], key: _Key) -> ForeignItem:
        if key not in places:
            raise self._wrong(f"{key[0][:80]!r}: a place in storage_data", "none")
        return places[key]

    def _fields(self, node: object, kind: str, where: str) -> dict[str, object]:
        """Return the fields of an object of one of DCP's dataclasses."""
        if not isinstance(node, Call) or node.callee.name != kind or node.args:
            raise self._wrong(f"{where[:80]!r}: {kind}", node)
        found: dict[str, object] = {}
        for name, value in self._pairs(node.state, kind) if node.state is not None else ():
            found[self._text(name, "a field")] = value
        return found

    def _pairs(self, node: object, where: str) -> list[tuple[object, object]]:
        if not isinstance(node, Pairs):
            raise self._wrong(f"{where[:80]!r}: a dict", node)
        if len(node.items) > 4 * _MAX_ITEMS:
            raise self._wrong(f"{where[:80]!r}: at most {4 * _MAX_ITEMS} items", len(node.items))
        return node.items

    def _size(self, node: object, fqn: str) -> tuple[int, ...]:
        args = node.args if isinstance(node, Call) and node.callee.name == "Size" else ()
        size = args[0] if len(args) == 1 else None
        if (
            type(size) is not tuple
            or len(size) > _MAX_DIMS
            or any(type(n) is not int or not 0 <= n < _MAX_ELEMENTS for n in size)
            or math.prod(max(n, 1) for n in size) >= _MAX_ELEMENTS
        ):
            raise self._wrong(f"{fqn[:80]!r}: a size below 2^60", size)
        return size

    def _text(self, node: object, what: str) -> str:
        if type(node) is not str or not 1 <= len(node) <= _MAX_TEXT or not _is_utf8(node):
            raise self._wrong(what, node)
        return node

    def _wrong(self, expected: str, found: object) -> Corrupt:
        shown = str(found) if isinstance(found, (str, int)) else type(found).__name__
        problem = (
            f"expected {expected}, found {shown if shown.isprintable() else ascii(shown):.120}"
        )
        return Corrupt(
            f"{self._what}: {problem}. It is not loaded.", path=self._what, problems=(problem,)
        )


def _key(fqn: str, offsets: tuple[int, ...] | None) -> _Key:
    return fqn, "" if offsets is None else repr(offsets)


def _is_path_key(key: object) -> bool:
    if type(key) is int:
        return _MIN_PATH_INT <= key <= _MAX_PATH_INT
    return type(key) is str and len(key) <= _MAX_TEXT and _is_utf8(key)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
