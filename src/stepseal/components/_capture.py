"""Capture in parts: describe a component, then copy its bytes out, now or later.

A description holds every fact that a plan needs (keys, dtypes, shapes, boxes, sizes) and a way to
the bytes, and touches none of them; a tree's document is part of it. `capture` is the schedule of
today's saves: a component is described, and what must be private is staged at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from stepseal.components._arena import Arena, slot_bytes
from stepseal.components._codecs import encode_tree
from stepseal.components._codecs_arrays import is_native, torch_name
from stepseal.components._codecs_numpy import native_name
from stepseal.components._dtensors import ranks_alike
from stepseal.components._frames import frame_for
from stepseal.components._live_data import TensorData, byte_view, data_of
from stepseal.components._replicas import ReplicaDigests, Replicas, share_out
from stepseal.components._stacks import Stack
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
    holds_own_keys,
    payload_report,
    rule_of,
    set_of_ranks,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from stepseal.components._codecs_core import Leaf as TreeLeaf
    from stepseal.components._dtensors import Leaf
    from stepseal.components._replicas import ReplicaRule
    from stepseal.components._types import Component, StagingMemory, Topology
    from stepseal.layout import AnySharing, BytesSource, DataSource

__all__ = [
    "capture",
    "content_digest",
    "describe_leaves",
    "describe_tree",
    "describe_value",
    "stage",
    "tree_of",
]


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
    described = component.describe(topology)
    find_replicas, found = described.replicas, replace(described, replicas=None)
    if rule is None:
        return _staged(found, memory)
    level = rule.level_of(found.sharing)
    found = replace(found, required=rule.required, validate=level)
    if level == "none" or find_replicas is None or topology.world_size == 1:
        return _staged(found, memory)
    replicas = find_replicas()
    if not replicas.sets:
        return _staged(found, memory)
    rank, world_size, proven = topology.rank, topology.world_size, level != "warn"
    mine, replicas = share_out(
        found.tensors, replicas, rule, rank=rank, world_size=world_size, proven=proven
    )
    found = _staged(replace(found, tensors=mine), memory)
    if not digests:
        return found
    compared = ReplicaDigests(found.name, found.tensors, found.trees, replicas, rule, level)
    if not rule.required:
        compared.take_data(found.tensors)
    return replace(found, digests=compared)


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
    """
    if isinstance(memory, Arena):
        memory.reserve(sum(slot_bytes(source.size_bytes) for source in sources))
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
        torch.cuda.current_stream(device).synchronize()
    return copies


def describe_leaves(
    component: str,
    sharing: AnySharing,
    topology: Topology,
    leaves: Sequence[Leaf],
    value: object,
    value_keys: Iterable[str] = (),
    bytes_copies: Callable[[], Sequence[BytesSource]] = tuple,
    *,
    content: str = "",
    never: Collection[str] = (),
) -> CapturedComponent:
    """Describe a component of tensor leaves by key, and one value for the typed codecs.

    Args:
        component: its name.
        sharing: the sharing in use.
        topology: who takes part.
        leaves: all leaves, written here or not.
        value: non-tensor state, None if there is none on any participant, or none here where each
            set of ranks has its own.
        value_keys: names of the non-tensor leaves, which belong to the fingerprint.
        bytes_copies: makes the write-only copies for stock readers; called where the value is
            written and shared, after the codecs accepted it.
        content: what else must agree, in words and digests.
        never: keys of leaves that are never compared with those of others.
    """
    fingerprint, me = _fingerprint(leaves, value_keys) + content, topology.me
    if not rule_of(sharing).tensors_are_global:
        held = {"tensors": {leaf.key: leaf.local for leaf in leaves}, "value": value}
        paths = frozenset(f"{part}.{key}" for key in never for part in held)
        return describe_value(component, sharing, topology, lambda: held, lambda _: (), never=paths)
    report = payload_report(sharing, topology.rank, topology.participants)
    if value is None and holds_own_keys(sharing):
        value = {}
    writes_value = value is not None and report.writes
    trees = (describe_tree(component, me, value),) if writes_value else ()

    def find_replicas() -> Replicas:
        name, size = _plain_set(sharing, topology)
        sets, set_of = _sets_of(leaves, (name, size), never)
        others = [leaf for leaf in leaves if leaf.key in set_of and not leaf.writes]
        tree_set = name if value is not None and size > 1 else None
        if tree_set is not None:
            sets[name] = size
        return Replicas(
            sets,
            set_of,
            tree_set,
            tuple(_describe_leaf(component, leaf) for leaf in others),
            (describe_tree(component, me, value),) if value is not None and not trees else (),
            frozenset(never),
        )

    return CapturedComponent(
        component,
        "tensors",
        sharing,
        fingerprint,
        report if value is not None else None,
        tuple(_describe_leaf(component, leaf) for leaf in leaves if leaf.writes),
        tuple(bytes_copies()) if writes_value else (),
        trees,
        find_replicas,
    )


def _plain_set(sharing: AnySharing, topology: Topology) -> tuple[str, int]:
    """Return name and size of the set of ranks that hold the same plain tensors and values.

    All ranks are the set of this name: an empty text.
    """
    if not isinstance(sharing, Division):
        return "", topology.world_size
    name = payload_report(sharing, topology.rank, topology.participants).coordinate
    return name, len(sharing.ranks_at(name))


def _sets_of(
    leaves: Iterable[Leaf], plain: tuple[str, int], never: Collection[str]
) -> tuple[dict[str, int], dict[str, str]]:
    """Return the size of each set of ranks that hold the same leaves, and the set of each leaf."""
    sets: dict[str, int] = {}
    set_of: dict[str, str] = {}
    known: dict[tuple[int, tuple[int, ...]], tuple[str, int]] = {}
    for leaf in leaves:
        if leaf.key in never or leaf.box is None:
            continue
        name, size = plain
        if leaf.mesh is not None:
            place = (id(leaf.mesh), leaf.replicated)
            if place not in known:
                ranks = ranks_alike(leaf)
                known[place] = (set_of_ranks(ranks), len(ranks))
            name, size = known[place]
        if size > 1:
            sets[name], set_of[leaf.key] = size, name
    return sets, set_of


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
    name, size = _plain_set(sharing, topology)
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


def _new_memory(size_bytes: int) -> memoryview:
    return byte_view(torch.empty(size_bytes, dtype=torch.uint8, device="cpu"))


def _on_cpu(data: DataSource) -> bool:
    return isinstance(data, TensorData) and data.on_cpu


def _describe_array(name: str, leaf: TreeLeaf) -> ArraySource:
    if isinstance(leaf, Stack):
        return ArraySource(name, leaf.dtype, leaf.shape, leaf)
    data = data_of(leaf)
    if isinstance(leaf, torch.Tensor):
        dtype: str | None = torch_name(leaf.dtype)
        native = dtype if dtype is not None and is_native(dtype) else None
    else:
        native = None if isinstance(leaf, (bytes, bytearray)) else native_name(leaf)
    if native is None or isinstance(leaf, (bytes, bytearray)):
        return ArraySource(name, "uint8", (data.size_bytes,), data)
    return ArraySource(name, native, tuple(leaf.shape), data)


def _describe_leaf(component: str, leaf: Leaf) -> TensorSource:
    assert leaf.box is not None, "a leaf that is written has a box"
    frame, data = frame_for(leaf.local.dtype, leaf.box.sizes), TensorData(leaf.local)
    return TensorSource(component, leaf.key, leaf.dtype, leaf.shape, leaf.box, data, frame)


def _fingerprint(leaves: Iterable[Leaf], value_keys: Iterable[str]) -> str:
    lines = [f"{leaf.key}\t{leaf.dtype}\t{list(leaf.shape)}" for leaf in leaves]
    lines += [f"{key}\t-" for key in value_keys]
    return digest("\n".join(sorted(lines)).encode()).hex()


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
