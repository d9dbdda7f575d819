"""What one participant contributes to a step, and gets back, as values in memory.

`components` makes these from live state, `transfer` stores them, and neither knows the other.
No I/O and no torch: a buffer is anything that `memoryview` accepts, contiguous and of bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepseal.layout._boxes import Box

__all__ = [
    "ArraySource",
    "BytesSource",
    "Frame",
    "PartContents",
    "TensorSink",
    "TensorSource",
    "TreeContents",
    "TreeSource",
]


@dataclass(frozen=True, slots=True)
class Frame:
    """The bytes that turn raw tensor data into a genuine `torch.save` record: head, data, tail."""

    head: bytes
    """Everything before the data; its length is a multiple of 64."""
    tail: bytes
    """Everything after the data, to the end of the record."""


@dataclass(frozen=True, slots=True)
class TensorSource:
    """One box of a global tensor that this participant writes."""

    component: str
    key: str
    dtype: str
    """Name as in `layout.dtypes`, for example `bfloat16`."""
    shape: tuple[int, ...]
    """Global shape, in elements."""
    box: Box
    """Where the data lies inside the global tensor, in elements."""
    data: memoryview
    """The box's elements in C order; format `B`, one dimension, `size_bytes` of the box long."""
    frame: Frame


@dataclass(frozen=True, slots=True)
class BytesSource:
    """A copy of a non-tensor leaf for stock DCP readers; stepseal never reads it back."""

    entries: tuple[tuple[str, str], ...]
    """`(component, key)` of every leaf that has exactly this value."""
    data: bytes


@dataclass(frozen=True, slots=True)
class ArraySource:
    """One tensor or array leaf of a tree."""

    name: str
    """Unique inside the tree; the tree's JSON refers to it."""
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True, slots=True)
class TreeSource:
    """Structure and scalars of a component's non-tensor state, with its array leaves."""

    component: str
    owner: str
    """Participant whose payload this is."""
    document: object
    """JSON-able value made by the typed codecs."""
    arrays: tuple[ArraySource, ...]


@dataclass(frozen=True, slots=True)
class TreeContents:
    """A verified tree read back from storage."""

    document: object
    """The JSON value that was saved."""
    arrays: Mapping[str, tuple[str, tuple[int, ...], memoryview]]
    """Leaf name to (dtype, shape, verified bytes); the memory belongs to the receiver."""


@dataclass(frozen=True, slots=True)
class PartContents:
    """All that one participant writes into one step."""

    tensors: tuple[TensorSource, ...]
    bytes_copies: tuple[BytesSource, ...]
    trees: tuple[TreeSource, ...]


class TensorSink(Protocol):
    """Takes verified bytes of stored boxes into one live local tensor.

    Called by one thread at a time; every element of `wanted` arrives exactly once when the restore
    succeeds.
    """

    @property
    def wanted(self) -> Box:
        """The box of the global tensor that this participant holds."""
        ...

    def write(self, stored: Box, start: int, data: memoryview) -> None:
        """Copy the part of `data` that lies inside `wanted`.

        Args:
            stored: box of the stored item inside the global tensor.
            start: index of the first element of `data` in the C order of `stored`.
            data: verified bytes, whole elements.
        """
        ...
