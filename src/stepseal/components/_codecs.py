"""Typed codecs: any nested value of known types to JSON and array leaves, and back, exactly.

No pickle, ever: a document names no code, and a class comes back only where the running program
registered it. Shared references are not kept: an object that is met twice is stored twice, and a
cycle is refused.
"""

from __future__ import annotations

import functools
import sys
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepseal.components._codecs_columns import COLUMNS
from stepseal.components._codecs_containers import CONTAINERS
from stepseal.components._codecs_core import Codec, Decoder, Encoder
from stepseal.components._codecs_numpy import NDARRAY, SCALAR
from stepseal.components._codecs_random import GENERATORS, NUMPY_GENERATOR, NUMPY_RANDOM_STATE
from stepseal.components._codecs_registry import OBJECT, find_registered, register, register_codec
from stepseal.components._codecs_scalars import SCALARS
from stepseal.components._codecs_words import max_made
from stepseal.components._stacks import Stack
from stepseal.components._torch_in_use import torch_in_use

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.components._codecs_core import Leaf
    from stepseal.layout import TreeContents

__all__ = [
    "EncodedTree",
    "decode_tree",
    "encode_tree",
    "register",
    "register_codec",
]

_PLAIN = (*SCALARS, *CONTAINERS, *COLUMNS, *GENERATORS)
_NUMPY = (NDARRAY, SCALAR, NUMPY_GENERATOR, NUMPY_RANDOM_STATE)
TORCH_TAGS = ("$tensor", "$size", "$dtype", "$device", "$torch_generator")


def _decode_torch(tag: str) -> Callable[[Decoder, Any], object]:
    """Return what decodes a tag of torch's, once torch is needed for it."""

    def decode(decoder: Decoder, payload: object) -> object:
        _take_up_torch()
        found = BY_TAG[tag].decode
        assert found is not None
        return found(decoder, payload)

    return decode


BY_TYPE: dict[type, Codec] = {cls: codec for codec in _PLAIN for cls in codec.types}
"""Exact type to codec, without NumPy's types and registered classes; torch's once one is met."""
BY_TAG: dict[str, Codec] = {
    codec.tag: codec for codec in (*_PLAIN, *_NUMPY, OBJECT) if codec.tag is not None
} | {tag: Codec(tag, (), lambda _, value: None, _decode_torch(tag)) for tag in TORCH_TAGS}
"""Tag in a document to codec."""


@dataclass(frozen=True, slots=True)
class EncodedTree:
    """A value as JSON and leaves; the leaves are still the live objects."""

    document: object
    """JSON-able; depth, ints and texts are within what documents can hold."""
    arrays: tuple[tuple[str, Leaf], ...]
    """Leaf name to live tensor, array or bytes, in the order of the walk."""


def encode_tree(value: object, *, component: str) -> EncodedTree:
    """Return a value as JSON and array leaves, without changing or copying it.

    Args:
        value: nested value of known types.
        component: name for error messages.

    Raises:
        UnsupportedState: a type without codec, a cycle or too deep a nesting; `.path` leads to it.
    """
    encoder = Encoder(find_codec, component)
    document = encoder.encode(value)
    if encoder.num_made > max_made(sum(map(_leaf_bytes, encoder.arrays.values()))):
        encoder = Encoder(find_codec, component, by_columns=False)
        document = encoder.encode(value)
    return EncodedTree(document, tuple(encoder.arrays.items()))


def decode_tree(contents: TreeContents, *, component: str | None = None) -> object:
    """Return a new value equal to the one that was saved; all tensors are on the CPU.

    Safe on hostile documents: it imports and calls nothing that a document names. Large leaves keep
    living in the memory of `contents`.

    Args:
        contents: a tree read back; not to be used again.
        component: name for error messages.

    Raises:
        Corrupt: the document breaks the format; `.path` leads to the place.
        StateMismatch: it names a class, device or dtype that this program does not have.
    """
    decoder = Decoder(BY_TAG, contents, component)
    value = decoder.decode(contents.document)
    decoder.check_all_taken()
    return value


def _leaf_bytes(leaf: Leaf) -> int:
    if isinstance(leaf, (bytes, bytearray)):
        return len(leaf)
    if isinstance(leaf, array):
        return len(leaf) * leaf.itemsize
    return leaf.size_bytes if isinstance(leaf, Stack) else leaf.nbytes


def find_codec(cls: type) -> Codec | None:
    """Return the codec of an exact type."""
    return BY_TYPE.get(cls) or _find_torch(cls) or find_registered(cls) or _find_numpy(cls)


def _find_torch(cls: type) -> Codec | None:
    if not torch_in_use():
        return None
    _take_up_torch()
    return BY_TYPE.get(cls)


@functools.cache
def _take_up_torch() -> None:
    """Put torch's codecs into the tables, once; loads torch."""
    from stepseal.components._codecs_tensors import TORCH_CODECS

    BY_TAG.update({codec.tag: codec for codec in TORCH_CODECS if codec.tag is not None})
    BY_TYPE.update({cls: codec for codec in TORCH_CODECS for cls in codec.types})


def _find_numpy(cls: type) -> Codec | None:
    numpy = sys.modules.get("numpy")  # a value of a NumPy type exists only where NumPy was imported
    if numpy is None:
        return None
    if cls is numpy.ndarray:
        return NDARRAY
    if issubclass(cls, numpy.generic):
        return SCALAR
    numpy_random = sys.modules.get("numpy.random")
    if cls is getattr(numpy_random, "Generator", None):
        return NUMPY_GENERATOR
    return NUMPY_RANDOM_STATE if cls is getattr(numpy_random, "RandomState", None) else None
