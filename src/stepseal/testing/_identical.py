"""Compares two states bit for bit, and finds the first difference."""

from __future__ import annotations

import copy
import dataclasses
import struct
import sys
from collections import deque
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Difference", "assert_identical", "find_difference", "snapshot"]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place at which two states differ."""

    path: str
    """Keys and indexes of the place; in a job's state, the first is the component."""
    element: tuple[int, ...] | None
    """Index of the element inside a tensor or array, None for other values."""
    expected: str
    found: str

    def __str__(self) -> str:
        """Return a one-line description."""
        element = "" if self.element is None else f", element {list(self.element)}"
        return f"{self.path or 'top level'}{element}: expected {self.expected}, found {self.found}"


def assert_identical(expected: object, found: object) -> None:
    """Compare two states bit for bit.

    Raises:
        AssertionError: they differ; the message names the first path and element.
    """
    difference = find_difference(expected, found)
    if difference is not None:
        raise AssertionError(str(difference))


def find_difference(expected: object, found: object, path: str = "") -> Difference | None:
    """Return the first difference of two states, None if there is none.

    Tensors and arrays are equal if dtype, shape and all bits are equal, on any device; for a
    DTensor, the local part is compared. The order of dicts is ignored.

    Args:
        expected: nested containers, dataclasses, tensors, arrays, plain values.
        found: state to compare with `expected`.
        path: path of both states, for the result.
    """
    expected, found = _local(expected), _local(found)
    if type(expected) is not type(found) and not _are_tensors(expected, found):
        return _differ(path, type(expected).__name__, type(found).__name__)
    if isinstance(expected, torch.Tensor):
        return _tensor_difference(path, expected, found)
    if _is_array(expected):
        return _array_difference(path, expected, found)
    mine, theirs = _children(expected), _children(found)
    if mine is None or theirs is None:
        same = _bits(expected) == _bits(found)
        return None if same else _differ(path, repr(expected), repr(found))
    if mine.keys() != theirs.keys():
        missing = [key for key in mine if key not in theirs]
        extra = [key for key in theirs if key not in mine]
        return _differ(path, f"{len(mine)} entries", f"missing {missing[:3]}, extra {extra[:3]}")
    children = (
        find_difference(child, theirs[key], f"{path}{key}" if path else key.lstrip("."))
        for key, child in mine.items()
    )
    return next((one for one in children if one is not None), None)


def snapshot(value: Any) -> Any:  # noqa: ANN401 - the same kind of value
    """Return a copy that no training step can change; for a DTensor, copy the local part."""
    value = _local(value)
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: snapshot(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(snapshot(item) for item in value)
    if isinstance(value, deque):
        return deque((snapshot(item) for item in value), value.maxlen)
    return copy.deepcopy(value)


def _local(value: object) -> object:
    module = sys.modules.get("torch.distributed.tensor")
    if module is not None and isinstance(value, module.DTensor):
        with torch.no_grad():
            return value.to_local()
    return value


def _are_tensors(*values: object) -> bool:
    """Return whether all values are tensors; a parameter and its copy have different types."""
    return all(isinstance(value, torch.Tensor) for value in values)


def _is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray) and not value.dtype.hasobject


def _children(value: object) -> dict[str, Any] | None:
    """Return the parts of a container by path, None for anything else."""
    if isinstance(value, Mapping):
        return {_step(key): item for key, item in value.items()}
    if isinstance(value, deque):
        return {".maxlen": value.maxlen, **_numbered(value)}
    if isinstance(value, (list, tuple)) or _is_object_array(value):
        return _numbered(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f".{f.name}": getattr(value, f.name) for f in dataclasses.fields(value)}
    return None


def _is_object_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray) and value.ndim > 0


def _numbered(values: Any) -> dict[str, Any]:  # noqa: ANN401 - any sequence
    return {f"[{index}]": item for index, item in enumerate(values)}


def _step(key: object) -> str:
    return f".{key}" if isinstance(key, str) else f"[{key!r}]"


def _bits(value: object) -> object:
    """Return a key that distinguishes plain values that compare equal, such as 0.0 and -0.0."""
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, complex):
        return struct.pack("<dd", value.real, value.imag)
    if isinstance(value, AbstractSet):
        return frozenset((type(item), item) for item in value)
    return value


def _tensor_difference(path: str, expected: torch.Tensor, found: Any) -> Difference | None:  # noqa: ANN401
    described = [f"{list(one.shape)} of {one.dtype}" for one in (expected, found)]
    if described[0] != described[1]:
        return _differ(path, *described)
    flat = [
        one.detach().cpu().resolve_conj().resolve_neg().reshape(-1) for one in (expected, found)
    ]
    size = expected.element_size()
    mine, theirs = (one.view(torch.uint8).reshape(-1, size) for one in flat)
    if torch.equal(mine, theirs):
        return None
    index = int((mine != theirs).any(dim=1).nonzero()[0])
    element = _unravel(index, tuple(expected.shape))
    shown = [repr(one[index].item()) for one in flat]
    return Difference(path, element, *shown)


def _array_difference(path: str, expected: Any, found: Any) -> Difference | None:  # noqa: ANN401
    described = [f"{list(one.shape)} of {one.dtype}" for one in (expected, found)]
    if described[0] != described[1]:
        return _differ(path, *described)
    mine, theirs = (one.tobytes() for one in (expected, found))
    if mine == theirs:
        return None
    size = expected.dtype.itemsize
    index = next(
        i for i in range(expected.size) if mine[i * size :][:size] != theirs[i * size :][:size]
    )
    shown = [repr(one.reshape(-1)[index].item()) for one in (expected, found)]
    return Difference(path, _unravel(index, expected.shape), *shown)


def _unravel(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    element: list[int] = []
    for size in reversed(shape):
        index, position = divmod(index, size)
        element.append(position)
    return tuple(reversed(element))


def _differ(path: str, expected: str, found: str) -> Difference:
    return Difference(path, None, expected, found)
