"""What all components of kind `tensors` share: capture of leaves and values, and strict plans.

A component is a set of tensor leaves by key, plus one value (scalars and structure) for the typed
codecs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stepseal.components._codecs import decode_tree, encode_tree, freeze_leaf, new_memory
from stepseal.components._dtensors import is_dtensor, leaf_of
from stepseal.components._frames import frame_for
from stepseal.components._sinks import sinks_for
from stepseal.components._staging import copy_out
from stepseal.components._types import CapturedComponent, SavedTensor, Sharing
from stepseal.errors import StateMismatch, UnsupportedState
from stepseal.layout import TensorSource, TreeSource, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from stepseal.components._dtensors import Leaf
    from stepseal.components._types import SavedComponent, Staging, Topology
    from stepseal.layout import BytesSource, TensorSink

__all__ = [
    "LeafCapture",
    "LeafPlan",
    "OpenedState",
    "compare_leaf",
    "default_sharing",
    "kind_of",
    "leaves_of",
    "mismatch",
    "open_saved",
]

_SHOWN = 3


def kind_of(sharing: Sharing | None) -> str:
    """Return the kind of a component with this declared sharing.

    Tensors that differ per participant have no place in the payload that stock readers see: they
    become a tree.
    """
    return "tree" if sharing is Sharing.PER_RANK else "tensors"


def default_sharing(
    declared: Sharing | None, tensors: Iterable[object], topology: Topology
) -> Sharing:
    """Return the declared sharing, or what the tensors and the number of participants suggest."""
    if declared is not None:
        return declared
    if any(is_dtensor(tensor) for tensor in tensors):
        return Sharing.SHARDED
    return Sharing.GLOBAL if topology.world_size == 1 else Sharing.REPLICATED


def leaves_of(
    component: str, tensors: Mapping[str, torch.Tensor], sharing: Sharing, *, owns_plain: bool
) -> list[Leaf]:
    """Return what this participant holds of each tensor.

    Raises:
        UnsupportedState: a tensor that cannot be stored; `.path` is its key.
    """
    if sharing is Sharing.PER_RANK:
        for key, tensor in tensors.items():
            if is_dtensor(tensor):
                raise UnsupportedState(
                    f"component cannot be stored per rank: {component}, key {key}: expected plain "
                    "tensors, found a DTensor, which is part of one global tensor. Leave the "
                    "sharing to its default.",
                    component=component,
                    path=key,
                )
    return [
        leaf_of(component, key, tensor, owns_plain=owns_plain) for key, tensor in tensors.items()
    ]


class LeafCapture:
    """Turns leaves and a value into the captured form of a component.

    Args:
        component: its name.
        sharing: the sharing in use.
        topology: who takes part.
        staging: private memory to copy into, or None for views of live memory.
    """

    def __init__(
        self, component: str, sharing: Sharing, topology: Topology, staging: Staging | None
    ) -> None:
        self._component = component
        self._sharing = sharing
        self._topology = topology
        self._staging = staging

    def capture(
        self,
        leaves: Sequence[Leaf],
        value: object,
        value_keys: Iterable[str] = (),
        bytes_copies: Callable[[], Sequence[BytesSource]] = tuple,
    ) -> CapturedComponent:
        """Copy the leaves that this participant writes, and encode the value if it owns it.

        Args:
            leaves: all leaves, written here or not.
            value: non-tensor state, None if there is none on any participant.
            value_keys: names of the non-tensor leaves, which belong to the fingerprint.
            bytes_copies: makes the write-only copies for stock readers; called where the value is
                owned and shared, after the codecs accepted it.
        """
        fingerprint = _fingerprint(leaves, value_keys)
        participants, me = self._topology.participants, self._topology.me
        if self._sharing is Sharing.PER_RANK:
            held = {leaf.key: leaf.local for leaf in leaves}
            tree = self._tree(me, {"tensors": held, "value": value})
            owners = {participant: participant for participant in participants}
            return CapturedComponent(
                self._component, "tree", self._sharing, fingerprint, owners, trees=(tree,)
            )
        has_value = value is not None
        owns_value = has_value and self._topology.rank == 0
        trees = (self._tree(me, value),) if owns_value else ()
        return CapturedComponent(
            self._component,
            "tensors",
            self._sharing,
            fingerprint,
            dict.fromkeys(participants, participants[0]) if has_value else {},
            self._sources([leaf for leaf in leaves if leaf.writes]),
            tuple(bytes_copies()) if owns_value else (),
            trees,
        )

    def _sources(self, leaves: Sequence[Leaf]) -> tuple[TensorSource, ...]:
        views = copy_out([leaf.local for leaf in leaves], self._staging)
        sources = []
        for leaf, view in zip(leaves, views, strict=True):
            assert leaf.box is not None, "a leaf that is written has a box"
            frame = frame_for(leaf.local.dtype, leaf.box.sizes)
            sources.append(
                TensorSource(
                    self._component, leaf.key, leaf.dtype, leaf.shape, leaf.box, view, frame
                )
            )
        return tuple(sources)

    def _tree(self, owner: str, value: object) -> TreeSource:
        encoded = encode_tree(value, component=self._component)
        take = new_memory if self._staging is None else self._staging.take
        arrays = tuple(freeze_leaf(name, leaf, take) for name, leaf in encoded.arrays)
        return TreeSource(self._component, owner, encoded.document, arrays)


class OpenedState:
    """A saved component after its kind, sharing and world were found to fit.

    Args:
        tensors: what is stored, by key.
        filled: the tensors themselves where they came with the tree (PER_RANK), else None.
        value: the decoded non-tensor state, None if there is none.
    """

    __slots__ = ("filled", "tensors", "value")

    def __init__(
        self,
        tensors: Mapping[str, SavedTensor],
        filled: Mapping[str, torch.Tensor] | None,
        value: object,
    ) -> None:
        self.tensors = tensors
        self.filled = filled
        self.value = value

    def plan(self, leaves: list[Leaf], finish: Callable[[], None]) -> LeafPlan:
        """Return the plan that fills `leaves`, then calls `finish`."""
        if self.filled is None:
            return LeafPlan(sinks_for(leaves), finish)
        filled = self.filled

        def copy_then_finish() -> None:
            with torch.no_grad():
                for leaf in leaves:
                    leaf.local.copy_(filled[leaf.key])
            finish()

        return LeafPlan({}, copy_then_finish)


class LeafPlan:
    """Sinks of the leaves, and what is left to do after they were filled; see `RestorePlan`."""

    __slots__ = ("_finish", "sinks")

    def __init__(self, sinks: Mapping[str, TensorSink], finish: Callable[[], None]) -> None:
        self.sinks = sinks
        self._finish = finish

    def apply(self) -> None:
        """Install everything that sinks cannot take; changes live state."""
        self._finish()


def open_saved(saved: SavedComponent, sharing: Sharing, topology: Topology) -> OpenedState:
    """Check that a saved component fits in kind, sharing and world, and decode its value.

    GLOBAL, REPLICATED and SHARDED tensors are stored alike, so each restores as any of them.

    Raises:
        StateMismatch: it does not fit; `.problems` lists why.
        Corrupt: the tree is not what a tensor component stores.
    """
    kind, problems = kind_of(sharing), []
    per_rank = sharing is Sharing.PER_RANK
    if (saved.sharing is Sharing.PER_RANK) != per_rank:
        problems.append(f"sharing: expected (live) {sharing.value}, found {saved.sharing.value}")
    elif saved.kind != kind:
        problems.append(f"kind: expected (live) {kind}, found {saved.kind}")
    elif per_rank and saved.num_participants != topology.world_size:
        problems.append(
            "number of participants of a per_rank component: expected (live) "
            f"{topology.world_size}, "
            f"found {saved.num_participants}"
        )
    elif per_rank and saved.tree is None:
        problems.append(f"payload of {topology.me}: expected one, found none")
    if problems:
        raise mismatch(saved.name, problems)
    value = None if saved.tree is None else decode_tree(saved.tree, component=saved.name)
    if not per_rank:
        return OpenedState(saved.tensors, None, value)
    return _open_per_rank(saved.name, value)


def _open_per_rank(name: str, value: object) -> OpenedState:
    if not isinstance(value, dict) or not isinstance(value.get("tensors"), dict):
        raise mismatch(name, ["payload: expected tensors and a value, found another structure"])
    filled: dict[str, torch.Tensor] = {
        key: tensor for key, tensor in value["tensors"].items() if isinstance(tensor, torch.Tensor)
    }
    tensors = {
        key: SavedTensor(key, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for key, tensor in filled.items()
    }
    return OpenedState(tensors, filled, value.get("value"))


def compare_leaf(leaf: Leaf, saved: SavedTensor | None) -> list[str]:
    """Return how a live leaf and its saved tensor differ; empty if the bytes can go straight in."""
    if saved is None:
        return [f"{leaf.key}: missing in the checkpoint"]
    problems = []
    if leaf.shape != saved.shape:
        problems.append(
            f"{leaf.key}: shape: expected (live) {list(leaf.shape)}, found {list(saved.shape)}"
        )
    if leaf.dtype != saved.dtype:
        problems.append(f"{leaf.key}: dtype: expected (live) {leaf.dtype}, found {saved.dtype}")
    strides = zip(leaf.local.stride(), leaf.local.shape, strict=True)
    if any(stride == 0 and size > 1 for stride, size in strides):
        problems.append(
            f"{leaf.key}: expected (live) memory of its own for each element, found an expanded "
            "tensor, which cannot be filled in place: clone() it"
        )
    return problems


def mismatch(component: str, problems: Sequence[str]) -> StateMismatch:
    """Return the error that lists every difference; its text shows the first few."""
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return StateMismatch(
        f"saved state does not fit: component {component}: {'; '.join(problems[:_SHOWN])}{more}. "
        "Restore into objects built as they were at the save.",
        component=component,
        problems=tuple(problems),
    )


def _fingerprint(leaves: Iterable[Leaf], value_keys: Iterable[str]) -> str:
    lines = [f"{leaf.key}\t{leaf.dtype}\t{list(leaf.shape)}" for leaf in leaves]
    lines += [f"{key}\t-" for key in value_keys]
    return digest("\n".join(sorted(lines)).encode()).hex()
