"""What all components of kind `tensors` share: which leaves there are, and strict plans.

A component is a set of tensor leaves by key, plus one value (scalars and structure) for the typed
codecs.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from stepseal.components._codecs import decode_tree
from stepseal.components._dtensors import is_dtensor, leaf_of
from stepseal.components._fitting import range_problem, sharing_problem
from stepseal.components._groups import resolved
from stepseal.components._live_data import TensorData
from stepseal.components._plans import LeafPlan, kind_of, mismatch
from stepseal.components._ranges import lost_in_cast
from stepseal.components._sinks import scans_for, sinks_for
from stepseal.components._stages import Taken, united
from stepseal.components._types import AnySharing, SavedTensor, Sharing
from stepseal.errors import UnsupportedState
from stepseal.layout import digest, rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from stepseal.components._dtensors import Leaf
    from stepseal.components._types import SavedComponent, Topology

__all__ = [
    "OpenedState",
    "compare_leaf",
    "default_sharing",
    "leaves_of",
    "open_saved",
    "tie_problems",
]


def default_sharing(
    name: str, declared: AnySharing | None, tensors: Iterable[object], topology: Topology
) -> AnySharing:
    """Return the declared sharing, or what the tensors and the number of participants suggest.

    Raises:
        InvalidInput: the sets of a declared sharing do not fit the ranks of the job.
    """
    if declared is not None:
        return resolved(name, declared, topology)
    if any(is_dtensor(tensor) for tensor in tensors):
        return Sharing.SHARDED
    return Sharing.GLOBAL if topology.world_size == 1 else Sharing.REPLICATED


def leaves_of(
    component: str, tensors: Mapping[str, torch.Tensor], sharing: AnySharing, *, owns_plain: bool
) -> list[Leaf]:
    """Return what this participant holds of each tensor.

    Raises:
        UnsupportedState: a tensor that cannot be stored; `.path` is its key.
    """
    if not rule_of(sharing).tensors_are_global:
        for key, tensor in tensors.items():
            if is_dtensor(tensor):
                raise UnsupportedState(
                    f"component cannot be stored per rank or set of ranks: {component}, key "
                    f"{key}: expected plain tensors, found a DTensor, which is part of one global "
                    "tensor. Leave the sharing to its default.",
                    component=component,
                    path=key,
                )
    return [
        leaf_of(component, key, tensor, owns_plain=owns_plain) for key, tensor in tensors.items()
    ]


class OpenedState:
    """A saved component after its kind, sharing and world were found to fit.

    Args:
        component: its name, for messages.
        tensors: what is stored, by live key, with the dtypes that live state takes it in.
        filled: the tensors themselves where they came with the tree, else None.
        value: the decoded non-tensor state, None if there is none.
        stored: `tensors` as they are in the step; None if these are the same.
        note: how they were converted, for the report.
        absent: live key to why a conversion leaves nothing for it.
        taken: which saved entries this rank takes, where ranks hold different keys.
    """

    __slots__ = (
        "_absent",
        "_component",
        "_note",
        "_stored",
        "_taken",
        "filled",
        "tensors",
        "value",
    )

    def __init__(
        self,
        component: str,
        tensors: Mapping[str, SavedTensor],
        filled: Mapping[str, torch.Tensor] | None,
        value: object,
        *,
        stored: Mapping[str, SavedTensor] | None = None,
        note: str = "",
        absent: Mapping[str, str] | None = None,
        taken: Taken | None = None,
    ) -> None:
        self._absent = absent or {}
        self._component = component
        self._taken = taken
        self.tensors = tensors
        self.filled = filled
        self.value = value
        self._stored = tensors if stored is None else stored
        self._note = note

    def keys(self) -> frozenset[str]:
        """Return the keys of all tensors and of all other leaves."""
        return frozenset((*self.tensors, *(self.value if isinstance(self.value, dict) else ())))

    def missing(self, key: str) -> str:
        """Return the text about a live key for which the step has nothing."""
        return f"{key}: missing in the checkpoint{self._absent.get(key, '')}"

    def named(self, tensors: Mapping[str, SavedTensor]) -> OpenedState:
        """Return the same with tensors under other live keys; each knows its key in the step."""
        return OpenedState(self._component, tensors, self.filled, self.value, note=self._note)

    def narrowed(self, keys: Collection[str], entries: Iterable[str]) -> OpenedState:
        """Return only what this rank holds, where other ranks hold the rest.

        Args:
            keys: what this rank takes, of tensors and other leaves.
            entries: all that some rank must take.
        """
        value = self.value
        if isinstance(value, dict):
            value = {key: one for key, one in value.items() if key in keys} or None
        tensors = {key: one for key, one in self.tensors.items() if key in keys}
        return OpenedState(
            self._component,
            tensors,
            self.filled,
            value,
            stored={key: self._stored[key] for key in tensors},
            note=self._note,
            absent=self._absent,
            taken=Taken(tuple(sorted(entries)), frozenset(keys)),
        )

    def plan(self, leaves: list[Leaf], finish: Callable[[], None], *, note: str = "") -> LeafPlan:
        """Return the plan that fills `leaves`, then calls `finish`; `note` is for the report.

        Raises:
            StateMismatch: leaves that share memory have different saved elements, or an element is
                outside the range of the dtype that it is cast to.
        """
        note = ", ".join(filter(None, (self._note, note)))
        problems = self.tie_problems(leaves)
        if self.filled is not None:
            for leaf in leaves:
                found = lost_in_cast(self.filled[leaf.key], leaf.local.dtype)
                problems += range_problem(leaf.key, leaf.dtype, found)
        if problems:
            raise mismatch(self._component, problems)
        if self.filled is None:
            sinks, scans = sinks_for(leaves, self._stored), scans_for(leaves, self._stored)
            return LeafPlan(sinks, finish, note, scans, self._taken)
        filled = self.filled

        def copy_then_finish() -> None:
            with torch.no_grad():
                for leaf in leaves:
                    leaf.local.copy_(filled[leaf.key])
            finish()

        return LeafPlan({}, copy_then_finish, note)

    def tie_problems(self, leaves: Iterable[Leaf]) -> list[str]:
        """Return leaves that share live memory and would take different elements."""
        return tie_problems(
            (leaf.key, leaf.local, functools.partial(self._content, leaf.key))
            for leaf in leaves
            if leaf.key in self.tensors
        )

    def _content(self, key: str) -> object:
        if self.filled is None:
            return self.tensors[key].digests
        data = TensorData(self.filled[key])
        content = bytearray(data.size_bytes)
        data.fill(memoryview(content))
        return digest(content)


def tie_problems(places: Iterable[tuple[str, torch.Tensor, Callable[[], object]]]) -> list[str]:
    """Return live tensors that share memory and would take different elements.

    Args:
        places: key, live local tensor, and what returns something that is equal for equal saved
            elements, or something empty where that is unknown.
    """
    first: dict[object, tuple[str, Callable[[], object]]] = {}
    problems = []
    for key, tensor, content in places:
        if not tensor.numel():
            continue
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        other, expected = first.setdefault(memory, (key, content))
        if other != key and content() != expected():
            problems.append(
                f"{key}: shares memory (live) with {other}, and their saved values differ: tie "
                "or untie them as at the save"
            )
    return problems


def open_saved(
    saved: SavedComponent,
    sharing: AnySharing,
    topology: Topology,
    unite: Callable[[list[Any]], object] | None = None,
) -> OpenedState:
    """Check that a saved component fits in kind, sharing and world, and decode its value.

    Args:
        saved: what the step holds.
        sharing: the sharing in use.
        topology: who takes part.
        unite: makes one value of those that the sets of ranks saved; None takes dicts as one.

    Raises:
        StateMismatch: it does not fit; `.problems` lists why.
        Corrupt: the tree is not what a tensor component stores.
    """
    kind, rule = kind_of(sharing), rule_of(sharing)
    problems: list[str] = []
    if problem := sharing_problem(saved, sharing, kind, topology):
        problems.append(problem)
    elif saved.kind != kind:
        problems.append(f"kind: expected (live) {kind}, found {saved.kind}")
    elif not rule.tensors_are_global and saved.tree is None:
        problems.append(f"payload of {topology.me}: expected one, found none")
    if problems:
        raise mismatch(saved.name, problems)
    value = None if saved.tree is None else decode_tree(saved.tree, component=saved.name)
    if saved.parts:
        decoded: list[Any] = [decode_tree(part, component=saved.name) for part in saved.parts]
        value = unite(decoded) if unite else _one_dict(saved.name, decoded)
    if rule.tensors_are_global:
        return OpenedState(saved.name, saved.tensors, None, value)
    return _open_per_rank(saved.name, value)


def _one_dict(name: str, parts: list[Any]) -> object:
    if not all(isinstance(part, dict) for part in parts):
        raise mismatch(name, ["payload: expected leaves by key, found another structure"])
    value, problems = united(name, parts)
    if problems:
        raise mismatch(name, problems)
    return value or None


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
    return OpenedState(name, tensors, filled, value.get("value"))


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
