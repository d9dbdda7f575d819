"""What records of a foreign checkpoint hold: tensors, and values of plain types.

Tensors come from their raw storages, values from inert nodes; nothing is unpickled.
"""

from __future__ import annotations

import collections
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from stepseal.components._archives import Archive
from stepseal.components._inert import Call, Name, Pairs, Reference
from stepseal.components._live_data import tensor_over
from stepseal.layout import ITEMSIZE

if TYPE_CHECKING:
    from stepseal.components._archives import ReadRange
    from stepseal.errors import Corrupt

__all__ = ["ValueBudget", "check_tensor_record", "read_tensor_record", "read_value_record"]

_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_V2, _V3 = ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor_v3")
_PARAMETER = ("torch._utils", "_rebuild_parameter")
_ODICT = ("collections", "OrderedDict")
_UNTYPED = ("torch.storage", "UntypedStorage")
_TENSOR_NAMES = frozenset(
    {_V2, _V3, _ODICT, _UNTYPED}
    | {("torch", name) for name in _STORAGES}
    | {("torch", dtype) for dtype in ITEMSIZE}
)
_ENCODE = ("_codecs", "encode")
_SET, _COMPLEX = ("__builtin__", "set"), ("__builtin__", "complex")
_COUNTER, _SIZE = ("collections", "Counter"), ("torch", "Size")
_VALUE_NAMES = _TENSOR_NAMES | {_PARAMETER, _ENCODE, _SET, _COMPLEX, _COUNTER, _SIZE}
_LAZY = {
    "conj": frozenset({"complex64", "complex128"}),
    "neg": frozenset({"float16", "bfloat16", "float32", "float64", "complex64", "complex128"}),
}
"""Lazy bit of a tensor to the dtypes that torch sets it for, and can carry out."""
_MAX_TENSOR_PICKLE, _MAX_VALUE_PICKLE = 64 << 10, 16 << 20
_MAX_NODES = 1_000_000
_MAX_DEPTH = 64
_MAX_DIMS = 64
_MAX_ELEMENTS = 1 << 60
_NODE_COST = 8
_SPARE = 4 << 20
_PER_PICKLED_BYTE, _PER_STORED_BYTE = 16, 4


class ValueBudget:
    """What the values of one folder may grow to where they are shared, in bytes.

    Records refer to each other and to themselves, so that few bytes can stand for many. Every
    reference costs what it stands for; what was read gives room for some times as much. A value
    that is not shared takes half of its room at most.
    """

    def __init__(self) -> None:
        self.spent = 0
        self._room = _SPARE

    def allow(self, size: int) -> None:
        """Give room for more."""
        self._room += size

    def spend(self, size: int) -> bool:
        """Take room; return False if there was not so much."""
        self.spent += size
        return self.spent <= self._room


def read_tensor_record(
    read: ReadRange, size: int, what: str, *, dtype: str, shape: tuple[int, ...]
) -> torch.Tensor:
    """Return the tensor of one record, contiguous, in CPU memory of its own.

    Args:
        read: reads ranges of the record.
        size: length of the record in bytes.
        what: the tensor's name, for messages.
        dtype: what the tensor must be.
        shape: what its shape must be.

    Raises:
        UnsupportedState: the record names something else than a plain tensor.
        Corrupt: it is no record of such a tensor.
    """
    archive = Archive(read, size, what)
    builder = _Builder(archive, ValueBudget())
    found = builder.tensor(archive.nodes(_TENSOR_NAMES, _MAX_TENSOR_PICKLE), (dtype, shape))
    return found.contiguous().resolve_conj().resolve_neg()


def check_tensor_record(
    read: ReadRange, size: int, what: str, *, dtype: str, shape: tuple[int, ...]
) -> None:
    """Check everything that `read_tensor_record` checks, without reading the elements.

    Raises:
        UnsupportedState, Corrupt: as `read_tensor_record`.
    """
    archive = Archive(read, size, what)
    _Builder(archive, ValueBudget()).place(
        archive.nodes(_TENSOR_NAMES, _MAX_TENSOR_PICKLE), (dtype, shape)
    )


def read_value_record(read: ReadRange, size: int, what: str, budget: ValueBudget) -> object:
    """Return the value of one record, of plain types and tensors.

    Args:
        read: reads ranges of the record.
        size: length of the record in bytes.
        what: the value's name, for messages.
        budget: of the folder.

    Raises:
        UnsupportedState: the record names a class that is not among the plain ones.
        Corrupt: it is no such record, or it is deeper or larger than fits its bytes.
    """
    archive = Archive(read, size, what)
    root = archive.nodes(_VALUE_NAMES, _MAX_VALUE_PICKLE)
    budget.allow(_PER_PICKLED_BYTE * archive.nodes_size())
    return _Builder(archive, budget).value(root, 0)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the elements of a tensor lie."""

    key: str
    """Name of the storage."""
    dtype: str
    shape: tuple[int, ...]
    steps: tuple[int, ...]
    """Strides, in elements."""
    first: int
    """Offset inside the storage, in elements."""
    flags: frozenset[str]


class _Builder:
    """Builds values out of the nodes of one record."""

    def __init__(self, archive: Archive, budget: ValueBudget) -> None:
        self._archive = archive
        self._nodes_left = _MAX_NODES
        self._budget = budget
        self._storages: set[str] = set()

    def tensor(
        self, node: object, expected: tuple[str, tuple[int, ...]] | None = None
    ) -> torch.Tensor:
        """Return the tensor of a node, over memory of its own."""
        place = self.place(node, expected)
        size = self._archive.storage_size(place.key)
        if place.key not in self._storages:
            self._storages.add(place.key)
            self._budget.allow(_PER_STORED_BYTE * size)
        self._spend(size)
        flat = tensor_over(self._archive.storage(place.key), getattr(torch, place.dtype))
        tensor = flat.as_strided(place.shape, place.steps, place.first)
        tensor = torch.conj(tensor) if "conj" in place.flags else tensor
        return torch._neg_view(tensor) if "neg" in place.flags else tensor

    def place(self, node: object, expected: tuple[str, tuple[int, ...]] | None = None) -> _Place:
        """Return where the elements of a tensor node lie, after checking all of it."""
        if not isinstance(node, Call) or node.state is not None or node.pairs.items:
            raise self._wrong("a tensor", node)
        callee = (node.callee.module, node.callee.name)
        if callee == _PARAMETER and 2 <= len(node.args) <= 3:
            node = node.args[0]
            if not isinstance(node, Call) or node.state is not None or node.pairs.items:
                raise self._wrong("a tensor", node)
            callee = (node.callee.module, node.callee.name)
        fixed = {_V2: 6, _V3: 7}.get(callee)
        if fixed is None or not fixed <= len(node.args) <= fixed + 1:
            raise self._wrong("a plain tensor", node)
        storage, offset, sizes, strides = node.args[:4]
        key, dtype, num_elements = self._storage(storage, node.args[6] if fixed == 7 else None)
        shape, steps = self._sizes(sizes), self._sizes(strides)
        first = self._check_inside(shape, steps, offset, num_elements)
        if expected is not None and (dtype, shape) != expected:
            raise self._archive.corrupt(
                f"expected {expected[0]} {list(expected[1])} as the index says, found {dtype} "
                f"{list(shape)}"
            )
        return _Place(key, dtype, shape, steps, first, self._flags(node.args[fixed:], dtype))

    def _storage(self, node: object, dtype_node: object) -> tuple[str, str, int]:
        """Return key, dtype and number of elements."""
        target = node.target if isinstance(node, Reference) else None
        if type(target) is not tuple or len(target) != 5 or target[0] != "storage":
            raise self._wrong("a storage", node)
        _, kind, key, _, count = target
        if not isinstance(kind, Name) or type(key) is not str or type(count) is not int:
            raise self._wrong("a storage", node)
        dtype = _STORAGES.get(kind.name)
        if dtype_node is not None:
            if not isinstance(dtype_node, Name) or (kind.module, kind.name) != _UNTYPED:
                raise self._wrong("an untyped storage with its dtype", dtype_node)
            dtype = dtype_node.name
        if dtype not in ITEMSIZE:
            raise self._wrong("a known dtype", node)
        assert dtype is not None
        size = self._archive.storage_size(key)
        stated = count if dtype_node is not None else count * ITEMSIZE[dtype]
        if stated != size or size % ITEMSIZE[dtype]:
            raise self._archive.corrupt(f"expected a storage of {stated} bytes, found {size}")
        return key, dtype, size // ITEMSIZE[dtype]

    def _check_inside(
        self, shape: tuple[int, ...], steps: tuple[int, ...], offset: object, num_elements: int
    ) -> int:
        """Return the offset if sizes and strides stay inside the storage, without repeats."""
        if type(offset) is not int or offset < 0 or len(shape) != len(steps):
            raise self._wrong("an offset, sizes and strides", offset)
        if math.prod(shape) > num_elements:
            raise self._archive.corrupt(f"expected at most {num_elements} elements, found {shape}")
        last = sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
        if math.prod(shape) and offset + last >= num_elements:
            raise self._archive.corrupt("expected strides inside the storage, found others")
        if offset > num_elements:
            raise self._archive.corrupt("expected an offset inside the storage")
        return offset

    def _sizes(self, node: object) -> tuple[int, ...]:
        if isinstance(node, Call) and (node.callee.module, node.callee.name) == _SIZE:
            node = node.args[0] if len(node.args) == 1 else None
        if (
            type(node) is not tuple
            or len(node) > _MAX_DIMS
            or any(type(n) is not int or not 0 <= n < _MAX_ELEMENTS for n in node)
            or math.prod(max(n, 1) for n in node) >= _MAX_ELEMENTS
        ):
            raise self._wrong("sizes", node)
        return node

    def _flags(self, rest: tuple[object, ...], dtype: str) -> frozenset[str]:
        """Return the lazy bits that the last argument sets."""
        for extra in rest:
            if extra is not None and not isinstance(extra, Pairs):
                raise self._wrong("a plain tensor", extra)
        flags = [pair for extra in rest if isinstance(extra, Pairs) for pair in extra.items]
        for key, flag in flags:
            if type(key) is not str or key not in _LAZY or type(flag) is not bool:
                raise self._wrong("a plain tensor", key)
            if flag and dtype not in _LAZY[key]:
                raise self._archive.corrupt(f"expected no {key} bit on {dtype}, found one")
        return frozenset(str(key) for key, flag in flags if flag)

    def value(self, node: object, depth: int) -> Any:  # noqa: ANN401 - any plain value
        """Return the value of a node."""
        self._nodes_left -= 1
        self._spend(_NODE_COST)
        if self._nodes_left < 0 or depth > _MAX_DEPTH:
            raise self._archive.corrupt(
                f"expected at most {_MAX_NODES} values nested {_MAX_DEPTH} deep, found more"
            )
        if node is None or type(node) in (bool, float):
            return node
        if type(node) is int:
            self._spend(node.bit_length() // 8)
            return node
        if type(node) is str or type(node) is bytes:
            self._spend(len(node))
            return node
        if type(node) is list:
            return [self.value(item, depth + 1) for item in node]
        if type(node) is tuple:
            return tuple(self.value(item, depth + 1) for item in node)
        if isinstance(node, Pairs):
            return self._dict(node, depth)
        if isinstance(node, Name) and node.module == "torch" and node.name in ITEMSIZE:
            return getattr(torch, node.name)
        if isinstance(node, Call) and node.state is None:
            return self._made(node, depth)
        raise self._wrong("a plain value", node)

    def _dict(self, pairs: Pairs, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key, item in pairs.items:
            short = type(key) is int and -(1 << 63) <= key < 1 << 64
            if not short and key is not None and type(key) not in (str, bool):
                raise self._wrong("a key that is a str or int", key)
            self._spend(_NODE_COST + (len(key) if type(key) is str else 0))
            found[key] = self.value(item, depth + 1)
        return found

    def _made(self, node: Call, depth: int) -> Any:  # noqa: ANN401 - any plain value
        """Return what a call of one of the few known names stands for."""
        callee, args = (node.callee.module, node.callee.name), node.args
        if callee in (_V2, _V3, _PARAMETER):
            return self.tensor(node)
        if callee == _ODICT and not args:
            return collections.OrderedDict(self._dict(node.pairs, depth))
        if callee == _COUNTER and len(args) == 1 and isinstance(args[0], Pairs):
            return collections.Counter(self._dict(args[0], depth))
        if callee == _SET and len(args) == 1 and type(args[0]) is list:
            return set(self._dict(Pairs([(item, None) for item in args[0]]), depth))
        if callee == _SIZE:
            sizes = torch.Size(self._sizes(node))
            self._spend(_NODE_COST * len(sizes))
            return sizes
        if callee == _COMPLEX and len(args) == 2:
            real, imaginary = args
            if isinstance(real, float) and isinstance(imaginary, float):
                return complex(real, imaginary)
        if callee == _ENCODE and len(args) == 2 and type(args[0]) is str and args[1] == "latin1":
            return self._latin1(args[0])
        raise self._wrong("a plain value", node)

    def _latin1(self, text: str) -> bytes:
        self._spend(len(text))
        try:
            return text.encode("latin1")
        except UnicodeEncodeError as error:
            raise self._wrong("bytes", text) from error

    def _spend(self, size: int) -> None:
        if not self._budget.spend(size):
            raise self._archive.corrupt(
                "expected values in proportion to the bytes of the folder, found more: they refer "
                "to each other too often"
            )

    def _wrong(self, expected: str, found: object) -> Corrupt:
        kind = f"{found.callee.module}.{found.callee.name}" if isinstance(found, Call) else None
        return self._archive.corrupt(f"expected {expected}, found {kind or type(found).__name__}")
