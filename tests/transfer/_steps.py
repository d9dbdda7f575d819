"""Small steps made by the wing itself, and a sink of plain bytes to read them back with."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal.layout import (
    ITEMSIZE,
    MANIFEST,
    ArraySource,
    Box,
    BufferData,
    BytesSource,
    ComponentEntry,
    Frame,
    Manifest,
    PartContents,
    PartRef,
    TensorSource,
    TreeSource,
    encode_manifest,
    intersect,
    linear_boxes,
    whole,
)
from stepseal.storage import create_durable, make_dirs, read_bytes
from stepseal.transfer import ReadRequest, StepReader, write_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stepseal.layout import Buffer, DataSource, DocumentRef
    from stepseal.storage import Storage

STEP = 7
ATTEMPT = "ab" * 16
KEY = f".stepseal/staging/step-{STEP}.1.{ATTEMPT}"
FRAME = Frame(b"H" * 1536, b"T" * 701)


def not_cancelled() -> None:
    """Never give up."""


def random_bytes(size_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


class Filled:
    """Data that can only be copied out, as that of a tensor on another device."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size_bytes = len(data)
        self.filled: list[tuple[int, int]] = []
        """Start and size of each range that was asked for."""

    def view(self) -> None:
        return None

    def fill(self, target: memoryview, start: int = 0) -> None:
        self.filled.append((start, target.nbytes))
        target[:] = self._data[start : start + target.nbytes]


def bytes_of(data: DataSource) -> bytes:
    """Return all bytes of an item, copied out."""
    found = bytearray(data.size_bytes)
    data.fill(memoryview(found))
    return bytes(found)


def tensor(
    key: str,
    data: Buffer,
    shape: Sequence[int],
    box: Box | None = None,
    *,
    dtype: str = "float32",
    component: str = "model",
    frame: Frame = FRAME,
) -> TensorSource:
    shape = tuple(shape)
    return TensorSource(component, key, dtype, shape, box or whole(shape), BufferData(data), frame)


def copy_of(key: str, data: bytes, component: str = "optimizer") -> BytesSource:
    return BytesSource(((component, key),), data)


def tree(
    component: str, owner: str, document: object, arrays: Iterable[ArraySource] = ()
) -> TreeSource:
    return TreeSource(component, owner, document, tuple(arrays))


def array(name: str, data: Buffer, shape: Sequence[int], dtype: str = "uint8") -> ArraySource:
    return ArraySource(name, dtype, tuple(shape), BufferData(data))


def contents(
    tensors: Iterable[TensorSource] = (),
    copies: Iterable[BytesSource] = (),
    trees: Iterable[TreeSource] = (),
) -> PartContents:
    return PartContents(tuple(tensors), tuple(copies), tuple(trees))


def write_one(
    storage: Storage, part: PartContents, participant: str = "trainer/0", ordinal: int = 0
) -> DocumentRef:
    return write_part(
        storage,
        KEY,
        step=STEP,
        attempt=ATTEMPT,
        participant=participant,
        ordinal=ordinal,
        contents=part,
        check_cancelled=not_cancelled,
    )


def manifest_of(
    references: Mapping[str, DocumentRef], parts: Mapping[str, PartContents]
) -> Manifest:
    """Return the manifest of parts that were written; its components are all that occur in them."""
    kinds: dict[str, str] = {}
    payloads: dict[str, dict[str, str]] = {}
    for participant, part in parts.items():
        for tree_source in part.trees:
            kinds.setdefault(tree_source.component, "tree")
            payloads.setdefault(tree_source.component, {})[participant] = participant
        names = {source.component for source in part.tensors}
        names |= {name for copy in part.bytes_copies for name, _ in copy.entries}
        kinds.update(dict.fromkeys(names, "tensors"))
    return Manifest(
        run_id="cd" * 16,
        step=STEP,
        incarnation=1,
        attempt=ATTEMPT,
        parent=None,
        kind="full",
        resumable=True,
        cut={},
        created_at="2026-01-01T00:00:00Z",
        metrics={},
        tags=(),
        participants=tuple(parts),
        topology={"world_size": len(parts)},
        components=tuple(
            ComponentEntry(
                name,
                "tree" if kind == "tree" else "tensors",
                "per_rank" if kind == "tree" else "sharded",
                payloads.get(name, {}),
                required=True,
                options={},
            )
            for name, kind in kinds.items()
        ),
        parts=tuple(PartRef(name, reference) for name, reference in references.items()),
        files=(),
        versions={},
        durability="fsync",
    )


def write_step(storage: Storage, parts: Mapping[str, PartContents]) -> Manifest:
    """Write a whole step at `KEY`, with its manifest."""
    make_dirs(storage, KEY)
    references = {
        participant: write_one(storage, part, participant, ordinal)
        for ordinal, (participant, part) in enumerate(parts.items())
    }
    manifest = manifest_of(references, parts)
    create_durable(storage, f"{KEY}/{MANIFEST}", encode_manifest(manifest))
    return manifest


def small_parts() -> dict[str, PartContents]:
    """Return parts with one of everything: small, large, empty and odd tensors, copies, trees."""
    rows = random_bytes(4 * 64 * 16, seed=1)
    numbers = array("numbers", random_bytes(48, seed=2), (3, 2), "float64")
    wide = array("wide", random_bytes(32, seed=3), (2,), "complex128")
    return {
        "trainer/0": contents(
            [
                tensor("weight", rows[:2048], (64, 16), Box((0, 0), (32, 16))),
                tensor("empty", b"", (0, 5)),
                tensor("scalar", random_bytes(8), (), dtype="int64"),
                tensor("paged", random_bytes(70_000, seed=4), (17_500,)),
            ],
            [copy_of("lr", b"pickled"), copy_of("nothing", b"")],
            [tree("rng", "trainer/0", {"state": [1, "a", None]}, [numbers, wide])],
        ),
        "trainer/1": contents(
            [tensor("weight", rows[2048:], (64, 16), Box((32, 0), (32, 16)))],
            [],
            [tree("rng", "trainer/1", {"state": []})],
        ),
    }


@dataclass(eq=False)
class ByteSink:
    """Holds one box of a tensor as bytes, and counts how often each element arrived."""

    wanted: Box
    dtype: str = "float32"
    data: bytearray = field(init=False)
    counts: list[int] = field(init=False)
    num_writes: int = 0

    def __post_init__(self) -> None:
        self.data = bytearray(self.wanted.num_elements * ITEMSIZE[self.dtype])
        self.counts = [0] * min(self.wanted.num_elements, 100_000)

    def write(self, stored: Box, start: int, data: memoryview) -> None:
        self.num_writes += 1
        size = ITEMSIZE[self.dtype]
        assert data.nbytes % size == 0
        position = 0
        for piece in linear_boxes(stored.sizes, start, start + data.nbytes // size):
            placed = Box(tuple(map(int.__add__, stored.offsets, piece.offsets)), piece.sizes)
            self._copy(placed, data[position * size : (position + piece.num_elements) * size])
            position += piece.num_elements

    def _copy(self, placed: Box, data: memoryview) -> None:
        shared = intersect(placed, self.wanted)
        if shared is None:
            return
        size = ITEMSIZE[self.dtype]
        for row in _rows(shared):
            count = row.num_elements
            source, target = _position(placed, row), _position(self.wanted, row)
            self.data[target * size : (target + count) * size] = data[
                source * size : (source + count) * size
            ]
            for number in range(target, min(target + count, len(self.counts))):
                self.counts[number] += 1


def _rows(box: Box) -> Iterable[Box]:
    """Cut a box into runs along its last dim."""
    if len(box.sizes) < 2:
        yield box
        return
    for index in range(box.sizes[0]):
        for rest in _rows(Box(box.offsets[1:], box.sizes[1:])):
            yield Box((box.offsets[0] + index, *rest.offsets), (1, *rest.sizes))


def _position(holder: Box, part: Box) -> int:
    position = 0
    for base, extent, offset in zip(holder.offsets, holder.sizes, part.offsets, strict=True):
        position = position * extent + offset - base
    return position


def read_tensor(
    reader: StepReader, key: str, wanted: Box, *, dtype: str = "float32", component: str = "model"
) -> ByteSink:
    sink = ByteSink(wanted, dtype)
    requests = [ReadRequest(stored, sink) for stored in reader.stored(component)[key]]
    reader.stream(requests, check_cancelled=not_cancelled)
    return sink


def read_file(storage: Storage, path: str) -> bytes:
    return read_bytes(storage, f"{KEY}/{path}", 1 << 40)


def replace_file(storage: Storage, path: str, data: bytes) -> None:
    storage.remove_file(f"{KEY}/{path}")
    create_durable(storage, f"{KEY}/{path}", data)


def flip(data: bytes, position: int, mask: int = 1) -> bytes:
    return data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]
