"""The words that all components share: sharing, topology, what is captured and planned.

A component turns one object of the user into buffers (`capture`) and back (`plan`, then sinks, then
`apply`). It knows no storage and no commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from stepseal.layout import AnySharing, Sharing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from stepseal.components._conversion import Conversion
    from stepseal.components._ranges import RangeScan
    from stepseal.components._replicas import ReplicaDigests, Replicas
    from stepseal.layout import (
        Box,
        BytesSource,
        PayloadReport,
        TensorSink,
        TensorSource,
        TreeContents,
        TreeSource,
    )

__all__ = [
    "AnySharing",
    "CapturedComponent",
    "Component",
    "HasStateDict",
    "OfModule",
    "RestorePlan",
    "SavedComponent",
    "SavedTensor",
    "Sharing",
    "StagingMemory",
    "Topology",
    "can_convert",
    "unsaved_buffers",
]


@dataclass(frozen=True, slots=True)
class Topology:
    """Who takes part, seen from one participant."""

    rank: int
    """Position of this participant in `participants`."""
    participants: tuple[str, ...]
    """All participants in the order that gives payload ordinals."""
    nodes: tuple[int, ...] = ()
    """Number of the node that each participant is on; empty where it is not known of all."""

    @property
    def me(self) -> str:
        """Id of this participant."""
        return self.participants[self.rank]

    @property
    def world_size(self) -> int:
        """Number of participants."""
        return len(self.participants)

    @property
    def num_on_node(self) -> int:
        """Number of participants on this one's node; all where nodes are not known."""
        return self.nodes.count(self.nodes[self.rank]) if self.nodes else self.world_size

    @property
    def is_lowest_on_node(self) -> bool:
        """Whether no participant of this one's node comes before it."""
        return (self.nodes.index(self.nodes[self.rank]) if self.nodes else 0) == self.rank


class StagingMemory(Protocol):
    """Private memory that captured bytes are copied into; reused from save to save."""

    def take(self, size_bytes: int) -> memoryview:
        """Return the next `size_bytes` of private memory, 64-byte aligned, writable, format `B`."""
        ...


@dataclass(frozen=True, slots=True)
class CapturedComponent:
    """One component as this participant holds it at the cut: all facts, and ways to its bytes."""

    name: str
    kind: str
    """`tensors`, `tree` or `external`."""
    sharing: AnySharing
    """The sharing that was used, after defaults, with its sets where it has some."""
    fingerprint: str
    """Digest of keys, global shapes and dtypes, for sharings whose participants must agree."""
    payload: PayloadReport | None
    """Which non-tensor payload this participant reads and writes, None where there is none."""
    tensors: tuple[TensorSource, ...] = ()
    bytes_copies: tuple[BytesSource, ...] = ()
    trees: tuple[TreeSource, ...] = ()
    replicas: Callable[[], Replicas] | None = None
    """Returns what others hold, too, while state is frozen; None where nobody does."""
    digests: ReplicaDigests | None = None
    """Of what is compared with others, once it was captured; None where nothing is."""
    required: bool = True
    """Whether a save fails with the component."""
    validate: str = "none"
    """How it is compared with what others hold."""
    failed: str = ""
    """Why an optional component could not be captured."""


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A global tensor of a committed step, as its index describes it."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    digests: frozenset[tuple[Box, bytes]] = frozenset()
    """Digests of its chunks, by box; equal for equal elements in equal boxes, empty if unknown."""


@dataclass(frozen=True, slots=True)
class SavedComponent:
    """What a committed step holds for one component, for this participant."""

    name: str
    kind: str
    sharing: AnySharing
    """With the sets of the save where it has some."""
    tensors: Mapping[str, SavedTensor]
    tree: TreeContents | None
    """This participant's payload, or None where the component has only tensors, or `parts`."""
    num_participants: int
    """Number of participants at the save."""
    parts: tuple[TreeContents, ...] = ()
    """Payloads of all sets, where the sets hold different keys."""
    conversion: Conversion | None = None
    """How its keys and dtypes become those of live state; None takes them as they are."""
    folder: str = ""
    """Path of the folder with the files of an engine; empty for other kinds."""


@runtime_checkable
class HasStateDict(Protocol):
    """An object whose state is a dict that it gives and takes."""

    def state_dict(self) -> Any:  # noqa: ANN401 - foreign objects
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: Any, /) -> Any:  # noqa: ANN401 - foreign objects
        """Take the state."""
        ...


class RestorePlan(Protocol):
    """How one component takes a saved state; making it changed nothing."""

    @property
    def sinks(self) -> Mapping[str, TensorSink]:
        """Saved key to the sink of each tensor that is needed here; empty boxes have none."""
        ...

    @property
    def scans(self) -> Mapping[str, RangeScan]:
        """Saved key to what looks at its elements, before any sink gets one."""
        ...

    def apply(self) -> None:
        """Finish after all sinks were filled: install scalars, trees and new optimizer state."""
        ...


@runtime_checkable
class Component(Protocol):
    """One named piece of a job's state."""

    name: str
    kind: str

    def sharing(self, topology: Topology) -> AnySharing:
        """Return the declared sharing or the default; InvalidInput when it must be declared."""
        ...

    def describe(self, topology: Topology) -> CapturedComponent:
        """Describe the state on the caller's thread, and copy and touch no bytes of arrays.

        The bytes are copied out later, while the caller keeps the state frozen; see `capture`.

        Raises:
            UnsupportedState: a value that no codec knows; `.component` and `.path` lead to it.
        """
        ...

    def plan(self, saved: SavedComponent, topology: Topology) -> RestorePlan:
        """Check a saved state against live state, strictly, and change nothing.

        Raises:
            StateMismatch: keys, shapes, dtypes, sharing or world differ; `.problems` lists all.
        """
        ...


class OfModule:
    """A component of an `nn.Module`, by what others ask of it without torch."""

    module: torch.nn.Module

    def keys(self) -> tuple[str, ...]:
        """Return every key that the component stores, in order."""
        raise NotImplementedError

    def buffers(self) -> tuple[str, ...]:
        """Return the keys of all buffers, saved or not."""
        raise NotImplementedError

    def unsaved_buffers(self) -> tuple[str, ...]:
        """Return the buffers that no state dict lists."""
        raise NotImplementedError

    def in_ddp(self) -> bool:
        """Return whether DDP keeps the parameters equal on all ranks."""
        raise NotImplementedError


def can_convert(component: Component) -> bool:
    """Return whether a component takes a `Conversion`."""
    return isinstance(component, OfModule)


def unsaved_buffers(component: Component) -> tuple[str, ...]:
    """Return the buffers of a module that no state dict lists; empty for other components."""
    return component.unsaved_buffers() if isinstance(component, OfModule) else ()
