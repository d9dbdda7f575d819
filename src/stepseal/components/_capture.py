"""Capture in parts: describe a component, then copy its bytes out, now or later.

A description holds every fact that a plan needs (keys, dtypes, shapes, boxes, sizes) and a way to
the bytes, and touches none of them; a tree's document is part of it. `capture` is the schedule of
today's saves: a component is described, and what must be private is staged at once.
"""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

from stepseal.components._arena import Arena, new_memory, slot_bytes
from stepseal.components._codecs import encode_tree
from stepseal.components._codecs_arrays import is_native, torch_name
from stepseal.components._codecs_numpy import native_name
from stepseal.components._headroom import find_headroom, out_of_memory
from stepseal.components._live_data import TensorData, data_of, wait_for
from stepseal.components._replicas import ReplicaDigests, Replicas, share_out
from stepseal.components._stacks import Stack
from stepseal.components._torch_in_use import is_tensor
from stepseal.components._tree_paths import without_devices
from stepseal.components._types import CapturedComponent
from stepseal.layout import (
    ArraySource,
    BufferData,
    Division,
    TensorSource,
    TreeContents,
    TreeSource,
    digest,
    encode_document,
    payload_report,
    rule_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from stepseal.components._codecs_core import Leaf as TreeLeaf
    from stepseal.components._replicas import ReplicaRule
    from stepseal.components._types import Component, StagingMemory, Topology
    from stepseal.layout import AnySharing, BytesSource, DataSource

__all__ = [
    "capture",
    "content_digest",
    "describe_tree",
    "describe_value",
    "share_of",
    "plain_set",
    "stage",
    "tree_of",
]


_NUMBERS = {"q": "int64", "d": "float64"}
"""Type code of numbers to the name of their dtype."""
_MAPPED_BYTES = 1 << 20
"""From this size on, new memory is mapped."""


def capture(
    component: Component,
    topology: Topology,
    memory: StagingMemory | None,
    rule: ReplicaRule | None = None,
    *,
    digests: bool = True,
) -> CapturedComponent:
    """Take the state of one component on the caller's thread.

    Args:
        component: whose state.
        topology: who takes part.
        memory: private memory to stage all bytes in. None leaves CPU tensors where they are, and
            the caller keeps them frozen until they are written; what another device holds is
            staged in new memory, and so are trees, because they may hold buffers that others fill.
        rule: how it is compared with what others hold; None compares nothing.
        digests: False captures the same, but digests nothing.

    Raises:
        UnsupportedState: a value that no codec knows; `.component` and `.path` lead to it.
    """
    found, replicas = share_of(component, topology, rule)
    found = _staged(found, memory)
    if rule is None or replicas is None or not digests:
        return found
    compared = ReplicaDigests(
        found.name, found.tensors, found.trees, replicas, rule, rule.level_of(found.sharing)
    )
    if not rule.required:
        compared.take_data(found.tensors)
    return replace(found, digests=compared)


def share_of(
    component: Component, topology: Topology, rule: ReplicaRule | None
) -> tuple[CapturedComponent, Replicas | None]:
    """Describe what this participant writes of a component, and what it compares with others.

    Touches no bytes of arrays; see `capture`.
    """
    described = component.describe(topology)
    find_replicas, found = described.replicas, replace(described, replicas=None)
    if rule is None:
        return found, None
    level = rule.level_of(found.sharing)
    found = replace(found, required=rule.required, validate=level)
    if level == "none" or find_replicas is None or topology.world_size == 1:
        return found, None
    replicas = find_replicas()
    if not replicas.sets:
        return found, None
    rank, world_size, proven = topology.rank, topology.world_size, level != "warn"
    mine, replicas = share_out(
        found.tensors, replicas, rule, rank=rank, world_size=world_size, proven=proven
    )
    return replace(found, tensors=mine), replicas


def _staged(found: CapturedComponent, memory: StagingMemory | None) -> CapturedComponent:
    """Return a described component whose bytes are private where they must be."""
    wanted = [s.data for s in found.tensors if memory is not None or not _on_cpu(s.data)]
    wanted += [array.data for tree in found.trees for array in tree.arrays]
    if not wanted:
        return found
    private = iter(stage(wanted, memory))
    tensors = tuple(
        TensorSource(s.component, s.key, s.dtype, s.shape, s.box, next(private), s.frame)
        if memory is not None or not _on_cpu(s.data)
        else s
        for s in found.tensors
    )
    trees = tuple(
        replace(
            tree,
            arrays=tuple(ArraySource(a.name, a.dtype, a.shape, next(private)) for a in tree.arrays),
        )
        for tree in found.trees
    )
    return replace(found, tensors=tensors, trees=trees)


def stage(sources: Sequence[DataSource], memory: StagingMemory | None) -> list[BufferData]:
    """Copy all bytes into private memory; blocks until the copies have landed.

    Args:
        sources: live data.
        memory: where to, None for new memory; an arena grows by one region at most, also for the
            first save.

    Raises:
        InvalidInput, StorageUnavailable: the memory is not there; see `Arena.reserve`.
    """
    if isinstance(memory, Arena):
        memory.reserve(sum(slot_bytes(source.size_bytes) for source in sources))
    elif memory is None:
        _check_new_memory(sum(source.size_bytes for source in sources))
    take = _new_memory if memory is None else memory.take
    copies: list[BufferData] = []
    busy: set[torch.device] = set()
    for source in sources:
        view = take(source.size_bytes) if source.size_bytes else memoryview(b"")
        if isinstance(source, TensorData):
            device = source.start_fill(view)
            if device is not None:
                busy.add(device)
        elif source.size_bytes:
            source.fill(view)
        copies.append(BufferData(view))
    for device in busy:
        wait_for(device)
    return copies


def plain_set(sharing: AnySharing, topology: Topology) -> tuple[str, int]:
    """Return name and size of the set of ranks that hold the same plain tensors and values.

    All ranks are the set of this name: an empty text.
    """
    if not isinstance(sharing, Division):
        return "", topology.world_size
    name = payload_report(sharing, topology.rank, topology.participants).coordinate
    return name, len(sharing.ranks_at(name))


def describe_value(
    component: str,
    sharing: AnySharing,
    topology: Topology,
    read: Callable[[], object],
    bytes_copies: Callable[[object], Sequence[BytesSource]],
    *,
    never: frozenset[str] = frozenset(),
) -> CapturedComponent:
    """Describe a component of kind `tree`; who writes no payload reads the state for its replicas.

    Args:
        component: its name.
        sharing: the sharing in use.
        topology: who takes part.
        read: returns the live state.
        bytes_copies: makes the write-only copies for stock readers; called on rank 0 only.
        never: paths that are never compared with those of others.
    """
    report = payload_report(sharing, topology.rank, topology.participants)
    name, size = plain_set(sharing, topology)
    sets = {name: size} if size > 1 else {}

    def find_replicas() -> Replicas:
        others = () if report.writes or not sets else (describe_tree(component, me, read()),)
        return Replicas(sets, {}, name if sets else None, trees=others, never=never)

    me = topology.me
    replicas = find_replicas if rule_of(sharing).has_replicas else None
    if not report.writes:
        return CapturedComponent(component, "tree", sharing, "", report, replicas=replicas)
    value = read()
    tree = describe_tree(component, me, value)
    copies = tuple(bytes_copies(value)) if topology.rank == 0 else ()
    return CapturedComponent(
        component,
        "tree",
        sharing,
        "",
        report,
        bytes_copies=copies,
        trees=(tree,),
        replicas=replicas,
    )


def describe_tree(component: str, owner: str, value: object) -> TreeSource:
    """Encode a value; its array leaves are neither copied nor touched.

    Raises:
        UnsupportedState: no codec knows a part of the value; `.path` leads to it.
    """
    encoded = encode_tree(value, component=component)
    arrays = tuple(_describe_array(name, leaf) for name, leaf in encoded.arrays)
    return TreeSource(component, owner, encoded.document, arrays)


def _check_new_memory(size_bytes: int) -> None:
    """Refuse a copy that the system would kill for; small ones are not worth the look."""
    if size_bytes < _MAPPED_BYTES:
        return
    found = find_headroom()
    if found is not None and found.left_bytes < size_bytes:
        advice = "Free memory, or raise the limit: trees and tensors of other devices are copied."
        raise out_of_memory(size_bytes, found, advice)


def _new_memory(size_bytes: int) -> memoryview:
    if size_bytes < _MAPPED_BYTES:
        return memoryview(bytearray(size_bytes))
    return memoryview(new_memory(size_bytes))  # not set to zero before it is filled


def _on_cpu(data: DataSource) -> bool:
    return isinstance(data, TensorData) and data.on_cpu


def _describe_array(name: str, leaf: TreeLeaf) -> ArraySource:
    if isinstance(leaf, Stack):
        return ArraySource(name, leaf.dtype, leaf.shape, leaf)
    data = data_of(leaf)
    if isinstance(leaf, array):
        return ArraySource(name, _NUMBERS[leaf.typecode], (len(leaf),), data)
    if isinstance(leaf, (bytes, bytearray)):
        native = None
    elif is_tensor(leaf):
        dtype = torch_name(leaf.dtype)
        native = dtype if is_native(dtype) else None
    else:
        native = native_name(leaf)
    if native is None or isinstance(leaf, (bytes, bytearray)):
        return ArraySource(name, "uint8", (data.size_bytes,), data)
    return ArraySource(name, native, tuple(leaf.shape), data)


def content_digest(component: str, value: object) -> str:
    """Return a digest of a whole value, bytes included; copies its arrays.

    Raises:
        UnsupportedState: no codec knows a part of the value.
    """
    tree = describe_tree(component, "", value)
    parts = [digest(encode_document(without_devices(tree.document)))]
    parts += [digest(stage([array.data], None)[0].view()) for array in tree.arrays]
    return digest(b"".join(parts)).hex()


def tree_of(value: object, component: str) -> TreeContents:
    """Return a value as a tree that was read back, for a restore from something else than a step.

    Raises:
        UnsupportedState: no codec knows a part of the value.
    """
    source = describe_tree(component, "", value)
    copies = stage([array.data for array in source.arrays], None)
    arrays = {
        array.name: (array.dtype, array.shape, copy.view())
        for array, copy in zip(source.arrays, copies, strict=True)
    }
    return TreeContents(source.document, arrays)
