"""Reads tensors and values of plain types from the records of a foreign checkpoint.

Tensors are made from their raw storages, values from inert nodes; nothing is unpickled.
"""

from __future__ import annotations

import collections
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from stepseal.components import tensor_over
from stepseal.foreign._metadata import is_size
from stepseal.foreign._pickles import Call, Name, Node, Pairs, Reference, corrupt
from stepseal.layout import ITEMSIZE

if TYPE_CHECKING:
    from stepseal.errors import Corrupt
    from stepseal.foreign._records import Record

__all__ = ["Budget", "Place", "place_of", "read_value"]

_STORAGES = {
    "torch.FloatStorage": "float32", "torch.DoubleStorage": "float64",
    "torch.HalfStorage": "float16", "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64", "torch.IntStorage": "int32", "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8", "torch.ByteStorage": "uint8", "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64", "torch.ComplexDoubleStorage": "complex128",
}  # fmt: skip
_UNTYPED = "torch.storage.UntypedStorage"
_TENSORS = {"torch._utils._rebuild_tensor_v2": 6, "torch._utils._rebuild_tensor_v3": 7}
"""Name of an allowed call to the arguments that it always has."""
_PARAMETER = "torch._utils._rebuild_parameter"
_ODICT, _COUNTER, _SIZE = "collections.OrderedDict", "collections.Counter", "torch.Size"
_SET, _COMPLEX, _ENCODE = "__builtin__.set", "__builtin__.complex", "_codecs.encode"
_TENSOR_NAMES = frozenset(
    {*_TENSORS, *_STORAGES, _ODICT, _UNTYPED, *(f"torch.{dtype}" for dtype in ITEMSIZE)}
)
_VALUE_NAMES = _TENSOR_NAMES | {_PARAMETER, _COUNTER, _SIZE, _SET, _COMPLEX, _ENCODE}
_COMPLEX_DTYPES = frozenset({"complex64", "complex128"})
_LAZY = {
    "conj": _COMPLEX_DTYPES,
    "neg": _COMPLEX_DTYPES | {"float16", "bfloat16", "float32", "float64"},
}
"""Lazy bit of a tensor to the dtypes on which torch sets and resolves it."""
_MAX_TENSOR_PICKLE, _MAX_VALUE_PICKLE = 64 << 10, 16 << 20
_MAX_NODES = 1_000_000
_MAX_DEPTH = 64
_NODE_COST = 8
_SPARE, _PER_BYTE = 4 << 20, 8


class Budget:
    """Memory budget for the values of one folder, in bytes.

    Values can refer to each other, so a few bytes can expand to many. Every reference is charged
    with the size of its target. Each record that is read raises the budget by a multiple of its
    size.
    """

    def __init__(self) -> None:
        self.spent = 0
        self._room = _SPARE

    def allow(self, size: int) -> None:
        """Raise the budget for a record of `size` bytes."""
        self._room += _PER_BYTE * size

    def spend(self, size: int, what: str) -> None:
        """Charge `size` bytes.

        Raises:
            Corrupt: the budget is exceeded.
        """
        self.spent += size
        if self.spent > self._room:
            problem = "expected values in proportion to the bytes of the folder, found more"
            raise corrupt(what, f"{problem}: they refer to each other too often")


def place_of(record: Record, dtype: str, shape: tuple[int, ...]) -> Place:
    """Return where the elements of a record's tensor lie; checks everything except the elements.

    Args:
        record: the record.
        dtype: expected dtype.
        shape: expected shape.

    Raises:
        UnsupportedState: the record names a class that a plain tensor does not need.
        Corrupt: the record does not hold such a tensor.
    """
    place = _place(record, record.root_node(_TENSOR_NAMES, _MAX_TENSOR_PICKLE))
    if (place.dtype, place.shape) != (dtype, shape):
        found = f"found {place.dtype} {list(place.shape)}"
        raise corrupt(record.what, f"expected {dtype} {list(shape)} as the index says, {found}")
    return place


def read_value(record: Record, budget: Budget) -> object:
    """Return the value of one record, made of plain types and tensors.

    Raises:
        UnsupportedState: the record names a class that is not one of the plain types.
        Corrupt: the record is malformed, or its value is too deep or too large for its bytes.
    """
    return _Builder(record, budget).value(record.root_node(_VALUE_NAMES, _MAX_VALUE_PICKLE), 0)


@dataclass(frozen=True, slots=True)
class Place:
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

    def tensor(self, record: Record) -> torch.Tensor:
        """Return a contiguous copy of the tensor."""
        flat = tensor_over(record.storage(self.key), getattr(torch, self.dtype))
        tensor = flat.as_strided(self.shape, self.steps, self.first)
        tensor = torch.conj(tensor) if "conj" in self.flags else tensor
        tensor = torch._neg_view(tensor) if "neg" in self.flags else tensor
        return tensor.contiguous().resolve_conj().resolve_neg()


def _place(record: Record, node: Node) -> Place:
    """Return where the elements of a tensor node lie, after checking all of it."""
    if _is_call(node, _PARAMETER) and 2 <= len(node.args) <= 3:
        node = node.args[0]
    fixed = _TENSORS.get(node.callee) if _is_call(node) else None
    if fixed is None or not fixed <= len(node.args) <= fixed + 1:
        raise _wrong(record, "a plain tensor", node)
    storage, first = node.args[:2]
    shape, steps = map(_unwrapped, node.args[2:4])
    if not is_size(shape) or not is_size(steps) or len(shape) != len(steps):
        raise _wrong(record, "sizes and strides", node)
    key, dtype, count = _storage(record, storage, node.args[6] if fixed == 7 else None)
    last = sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if (
        type(first) is not int
        or not 0 <= first <= count
        or math.prod(shape) > count
        or (math.prod(shape) and first + last >= count)
    ):
        raise corrupt(record.what, f"expected a tensor inside {count} elements, found {shape}")
    return Place(key, dtype, shape, steps, first, _flags(record, node.args[fixed:], dtype))


def _storage(record: Record, node: Node, dtype_node: Node) -> tuple[str, str, int]:
    """Return key, dtype and number of elements."""
    target = node.target if isinstance(node, Reference) else None
    if type(target) is not tuple or len(target) != 5 or target[0] != "storage":
        raise _wrong(record, "a storage", node)
    _, kind, key, _, count = target
    if not isinstance(kind, Name) or type(key) is not str or type(count) is not int:
        raise _wrong(record, "a storage", node)
    dtype, unit = _STORAGES.get(kind), 0
    if dtype_node is not None and kind == _UNTYPED and isinstance(dtype_node, Name):
        dtype, unit = dtype_node.removeprefix("torch."), 1
    if dtype not in ITEMSIZE or (unit == 0) != (dtype_node is None):
        raise _wrong(record, "a storage of a known dtype", node)
    assert dtype is not None
    size = record.storage_size(key)
    if count * (unit or ITEMSIZE[dtype]) != size or size % ITEMSIZE[dtype]:
        raise corrupt(record.what, f"expected a storage of its stated size, found {size} bytes")
    return key, dtype, size // ITEMSIZE[dtype]


def _flags(record: Record, extras: tuple[Node, ...], dtype: str) -> frozenset[str]:
    """Return the lazy bits that the last argument sets."""
    found = set()
    for extra in extras:
        if extra is not None and type(extra) is not Pairs:
            raise _wrong(record, "a plain tensor", extra)
        for key, flag in extra.pairs() if extra is not None else ():
            if type(key) is not str or key not in _LAZY or type(flag) is not bool:
                raise _wrong(record, "a plain tensor", key)
            if flag and dtype not in _LAZY[key]:
                raise corrupt(record.what, f"expected no {key} bit on {dtype}, found one")
            found |= {key} if flag else set()
    return frozenset(found)


class _Builder:
    """Builds the value of one record out of its nodes."""

    def __init__(self, record: Record, budget: Budget) -> None:
        self._record = record
        self._nodes_left = _MAX_NODES
        self._budget = budget

    def value(self, node: Node, depth: int) -> Any:  # noqa: ANN401 - any plain value
        """Return the value of a node."""
        self._nodes_left -= 1
        if self._nodes_left < 0 or depth > _MAX_DEPTH:
            problem = f"expected at most {_MAX_NODES} values nested {_MAX_DEPTH} deep, found more"
            raise corrupt(self._record.what, problem)
        self._spend(_NODE_COST + _own_bytes(node))
        if node is None or type(node) in (bool, int, float, str, bytes):
            return node
        if type(node) in (list, tuple):
            return type(node)([self.value(item, depth + 1) for item in node])
        if type(node) is Pairs:
            return self._dict(node.pairs(), depth)
        if isinstance(node, Name) and node.removeprefix("torch.") in ITEMSIZE:
            return getattr(torch, node.removeprefix("torch."))
        if not isinstance(node, Call) or node.state is not None:
            raise _wrong(self._record, "a plain value", node)
        if node.callee in _TENSORS or node.callee == _PARAMETER:
            place = _place(self._record, node)
            self._spend(self._record.storage_size(place.key))
            return place.tensor(self._record)
        return self._made(node, depth)

    def _made(self, node: Call, depth: int) -> Any:  # noqa: ANN401 - any plain value
        """Return the value of a call of one of the few known names."""
        match node.callee, *node.args:
            case (str(callee),) if callee == _ODICT:
                return collections.OrderedDict(self._dict(node.pairs.pairs(), depth))
            case str(callee), Pairs() as counts if callee == _COUNTER:
                return collections.Counter(self._dict(counts.pairs(), depth))
            case str(callee), list() as items if callee == _SET:
                return set(self._dict(((item, None) for item in items), depth))
            case str(callee), sizes if callee == _SIZE and is_size(sizes):
                self._spend(_NODE_COST * len(sizes))
                return torch.Size(sizes)
            case str(callee), float() as real, float() as imaginary if callee == _COMPLEX:
                return complex(real, imaginary)
            case str(callee), str() as text, "latin1" if callee == _ENCODE and _is_latin1(text):
                self._spend(len(text))
                return text.encode("latin1")
        raise _wrong(self._record, "a plain value", node)

    def _dict(self, pairs: Any, depth: int) -> dict[Any, Any]:  # noqa: ANN401
        found: dict[Any, Any] = {}
        for key, item in pairs:
            short = type(key) is int and -(1 << 63) <= key < 1 << 64
            if not short and key is not None and type(key) not in (str, bool):
                raise _wrong(self._record, "a key that is a str or int", key)
            self._spend(_NODE_COST + _own_bytes(key))
            found[key] = self.value(item, depth + 1)
        return found

    def _spend(self, size: int) -> None:
        self._budget.spend(size, self._record.what)


def _own_bytes(node: Node) -> int:
    if type(node) is int:
        return node.bit_length() // 8
    return len(node) if type(node) in (str, bytes) else 0


def _is_call(node: Node, callee: str | None = None) -> bool:
    """Return whether a node is a call without items or state set afterwards."""
    plain = isinstance(node, Call) and node.state is None and not node.pairs
    return plain and callee in (None, node.callee)


def _unwrapped(node: Node) -> Node:
    """Return the tuple inside a `torch.Size`."""
    return node.args[0] if _is_call(node, _SIZE) and len(node.args) == 1 else node


def _is_latin1(text: str) -> bool:
    return max(text, default="") <= "\xff"


def _wrong(record: Record, expected: str, found: Node) -> Corrupt:
    kind = found.callee[:80] if isinstance(found, Call) else type(found).__name__
    return corrupt(record.what, f"expected {expected}, found {kind}")
