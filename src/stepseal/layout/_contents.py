"""What one participant contributes to a step: a description of each item, and a data source.

`components` makes these values from live state, and `transfer` plans and stores them; neither
imports the other. Descriptions are complete before any byte is read; the bytes are copied later,
at any time before thaw. No I/O and no torch: a buffer is any contiguous object that `memoryview`
accepts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepseal.layout._boxes import Box
    from stepseal.layout._digests import Buffer

__all__ = [
    "ArraySource",
    "BufferData",
    "BytesSource",
    "DataSource",
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


class DataSource(Protocol):
    """The bytes of one item; used between freeze and thaw, by one thread at a time."""

    @property
    def size_bytes(self) -> int:
        """Number of bytes; known without reading them."""
        ...

    def view(self) -> memoryview | None:
        """Return a view of all bytes in place, format `B`; None if they are not in memory."""
        ...

    def fill(self, target: memoryview, start: int = 0) -> None:
        """Copy bytes into `target`; returns when the copy is complete.

        Args:
            target: writable, format `B`; its length is the number of bytes to copy.
            start: first byte to copy.
        """
        ...


class BufferData:
    """Bytes in private or live memory; see `DataSource`.

    Args:
        buffer: the bytes; viewed only on demand, so that a live bytearray may grow until then.
    """

    __slots__ = ("_buffer", "size_bytes")

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self.size_bytes = buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)

    def view(self) -> memoryview:
        """Return the bytes in place."""
        return memoryview(self._buffer)

    def fill(self, target: memoryview, start: int = 0) -> None:
        """Copy bytes out."""
        target[:] = memoryview(self._buffer)[start : start + target.nbytes]


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
    """Position of the data inside the global tensor, in elements."""
    data: DataSource
    """The box's elements in C order."""
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
    data: DataSource
    """The elements in C order."""


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
    """Leaf name to (dtype, shape, verified bytes); the receiver owns the memory."""


@dataclass(frozen=True, slots=True)
class PartContents:
    """Everything that one participant writes into one step."""

    tensors: tuple[TensorSource, ...]
    bytes_copies: tuple[BytesSource, ...]
    trees: tuple[TreeSource, ...]


class TensorSink(Protocol):
    """Copies verified bytes of stored boxes into one live local tensor.

    Called by one thread at a time. In a successful restore, every element of `wanted` arrives
    exactly once.
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
