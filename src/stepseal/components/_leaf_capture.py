"""Capture of tensors by key: who writes which, and with which frames for stock readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.components._capture import describe_tree, describe_value, plain_set
from stepseal.components._dtensors import ranks_alike
from stepseal.components._frames import frame_for
from stepseal.components._live_data import TensorData
from stepseal.components._replicas import Replicas
from stepseal.components._types import CapturedComponent
from stepseal.layout import (
    TensorSource,
    digest,
    holds_own_keys,
    payload_report,
    rule_of,
    set_of_ranks,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from stepseal.components._dtensors import Leaf
    from stepseal.components._types import Topology
    from stepseal.layout import AnySharing, BytesSource

__all__ = ["describe_leaves"]


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
        name, size = plain_set(sharing, topology)
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


def _describe_leaf(component: str, leaf: Leaf) -> TensorSource:
    assert leaf.box is not None, "a leaf that is written has a box"
    frame, data = frame_for(leaf.local.dtype, leaf.box.sizes), TensorData(leaf.local)
    return TensorSource(component, leaf.key, leaf.dtype, leaf.shape, leaf.box, data, frame)


def _fingerprint(leaves: Iterable[Leaf], value_keys: Iterable[str]) -> str:
    lines = [f"{leaf.key}\t{leaf.dtype}\t{list(leaf.shape)}" for leaf in leaves]
    lines += [f"{key}\t-" for key in value_keys]
    return digest("\n".join(sorted(lines)).encode()).hex()
