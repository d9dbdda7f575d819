"""Round trips of components through memory: what the other wings do, without storage."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from stepseal.components._types import (
    CapturedComponent,
    Component,
    SavedComponent,
    SavedTensor,
    Sharing,
    Topology,
)
from stepseal.layout import TreeContents, payload_owner, payload_owners

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.layout import DataSource

ALONE = Topology(0, ("trainer/0",))


def world(size: int) -> list[Topology]:
    """Return the topology of each rank of a job."""
    participants = tuple(f"trainer/{rank}" for rank in range(size))
    return [Topology(rank, participants) for rank in range(size)]


def saved_of(captures: Sequence[CapturedComponent], topology: Topology) -> SavedComponent:
    """Return what a committed step would hold for one participant."""
    first = captures[0]
    owners = payload_owners({f"trainer/{n}": one.payload for n, one in enumerate(captures)})
    owner = payload_owner(first.sharing, owners, topology.me)
    trees = {tree.owner: tree for capture in captures for tree in capture.trees}
    tree = trees.get(owner) if owner is not None else None
    contents = None
    if tree is not None:
        arrays = {
            array.name: (array.dtype, array.shape, memoryview(bytearray(bytes_of(array.data))))
            for array in tree.arrays
        }
        contents = TreeContents(json.loads(json.dumps(tree.document)), arrays)
    tensors = {
        source.key: SavedTensor(source.key, source.dtype, source.shape)
        for capture in captures
        for source in capture.tensors
    }
    kind, sharing = first.kind, first.sharing
    return SavedComponent(first.name, kind, sharing, tensors, contents, len(captures))


def restore(
    component: Component,
    captures: Sequence[CapturedComponent],
    topology: Topology = ALONE,
    *,
    num_elements: int = 7,
) -> None:
    """Restore a component from captures of all participants, `num_elements` at a time."""
    plan = component.plan(saved_of(captures, topology), topology)
    for capture in captures:
        for source in capture.tensors:
            sink = plan.sinks.get(source.key)
            if sink is None:
                continue
            data = bytes_of(source.data)
            itemsize = len(data) // max(source.box.num_elements, 1)
            for start in range(0, source.box.num_elements, num_elements):
                piece = data[start * itemsize : (start + num_elements) * itemsize]
                sink.write(source.box, start, memoryview(bytearray(piece)))
    plan.apply()


def bytes_of(source: DataSource) -> bytes:
    """Return all bytes of a source, copied out."""
    data = bytearray(source.size_bytes)
    source.fill(memoryview(data))
    return bytes(data)


def keys_of(capture: CapturedComponent) -> list[str]:
    """Return the keys that a capture writes, in order."""
    return [source.key for source in capture.tensors]


__all__ = ["ALONE", "Sharing", "bytes_of", "keys_of", "restore", "saved_of", "world"]
