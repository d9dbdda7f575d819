"""The way of a value into a stored document and back, and an equality stricter than `==`."""

from __future__ import annotations

import dataclasses
import enum
import random
import struct
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stepseal.components._capture import describe_tree, stage
from stepseal.components._codecs import decode_tree
from stepseal.components._types import (
    CapturedComponent,
    SavedComponent,
    Topology,
)
from stepseal.layout import ArraySource, TreeContents, decode_document, encode_document


def stored(document: object, arrays: tuple[ArraySource, ...] = ()) -> TreeContents:
    """Return what a reader gets of a document and its leaves."""
    data = encode_document(document)
    found = decode_document(data, what="tree", max_bytes=1 << 28)
    copies = stage([one.data for one in arrays], None)
    leaves = {
        one.name: (one.dtype, one.shape, copy.view())
        for one, copy in zip(arrays, copies, strict=True)
    }
    return TreeContents(found, leaves)


def freeze(value: object) -> TreeContents:
    tree = describe_tree("c", "trainer/0", value)
    return stored(tree.document, tree.arrays)


def round_trip(value: object) -> Any:  # noqa: ANN401 - of the type of the value
    return decode_tree(freeze(value))


def world(size: int, rank: int = 0) -> Topology:
    return Topology(rank, tuple(f"trainer/{index}" for index in range(size)))


def saved(captured: CapturedComponent, num_participants: int = 1) -> SavedComponent:
    """Return what a restore finds of a captured tree."""
    tree = captured.trees[0] if captured.trees else None
    contents = None if tree is None else stored(tree.document, tree.arrays)
    return SavedComponent(
        captured.name, captured.kind, captured.sharing, {}, contents, num_participants
    )


def same(left: Any, right: Any) -> bool:  # noqa: ANN401 - narrowed by type
    """Return whether two values are equal bit for bit, with equal types and equal order."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return _same_tensors(left, right)
    if isinstance(left, (np.ndarray, np.generic)):
        alike = left.dtype == right.dtype and left.shape == right.shape
        return bool(alike and left.tobytes() == right.tobytes())
    if isinstance(left, float):
        return struct.pack("<d", left) == struct.pack("<d", right)
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, Mapping):
        factories = (
            not isinstance(left, defaultdict) or left.default_factory is right.default_factory
        )
        return factories and _same_items(list(left.items()), list(right.items()))
    if isinstance(left, (list, tuple)):
        return _same_items(list(left), list(right))
    if isinstance(left, deque):
        return left.maxlen == right.maxlen and _same_items(list(left), list(right))
    if isinstance(left, (set, frozenset)):
        return left == right and {type(one) for one in left} == {type(one) for one in right}
    return _same_objects(left, right)


def _same_items(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(same(*pair) for pair in zip(left, right, strict=True))


def _same_tensors(left: torch.Tensor, right: torch.Tensor) -> bool:
    facts = [(one.dtype, one.shape, one.requires_grad) for one in (left, right)]
    return facts[0] == facts[1] and _bytes(left) == _bytes(right)


def _bytes(tensor: torch.Tensor) -> list[int]:
    plain = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    return [
        int(one) for one in plain.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    ]


def _same_objects(left: Any, right: Any) -> bool:  # noqa: ANN401 - narrowed by type
    if isinstance(left, torch.Generator):
        return same([left.device, left.get_state()], [right.device, right.get_state()])
    if isinstance(left, np.random.Generator):
        return same(left.bit_generator.state, right.bit_generator.state)
    if isinstance(left, np.random.RandomState):
        return same(left.get_state(legacy=False), right.get_state(legacy=False))
    if isinstance(left, random.Random):
        return bool(left.getstate() == right.getstate())
    if dataclasses.is_dataclass(left) and not isinstance(left, enum.Enum):
        return all(
            same(getattr(left, field.name), getattr(right, field.name))
            for field in dataclasses.fields(left)
        )
    return bool(left == right)
