"""Components whose state was read from a foreign checkpoint: stored once, never restored into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal.components._capture import describe_leaves, describe_tree, describe_value, stage
from stepseal.components._leaves import leaves_of
from stepseal.components._tensors import saved_copy
from stepseal.components._types import CapturedComponent, Sharing, TreeContents
from stepseal.errors import InvalidInput
from stepseal.layout import BytesSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from stepseal.components._types import RestorePlan, SavedComponent, Topology

__all__ = ["ImportedComponent", "ImportedState", "tree_of"]


@dataclass(frozen=True, slots=True)
class ImportedState:
    """One component as it is to be stored."""

    tensors: Mapping[str, torch.Tensor]
    """By key; without any, the component is a tree."""
    value: object
    """What the component's tree holds, None for nothing."""
    copies: Mapping[str, object] = field(default_factory=dict)
    """Key to the value that stock readers shall find under it."""


class ImportedComponent:
    """Stores an `ImportedState` as the component's own class would have done.

    Args:
        name: name of the component.
        state: tensors and value.
    """

    def __init__(self, name: str, state: ImportedState) -> None:
        self.name = name
        self.kind = "tensors" if state.tensors else "tree"
        self._state = state

    def sharing(self, topology: Topology) -> Sharing:
        """Return GLOBAL: one process holds it all."""
        return Sharing.GLOBAL

    def describe(self, topology: Topology) -> CapturedComponent:
        """Describe the state; see `Component`."""
        state, sharing = self._state, self.sharing(topology)
        if state.tensors:
            leaves = leaves_of(self.name, state.tensors, sharing, owns_plain=True)
            return describe_leaves(
                self.name, sharing, topology, leaves, state.value, state.copies, self._copies
            )
        return describe_value(
            self.name, sharing, topology, lambda: state.value, lambda _: self._copies()
        )

    def plan(self, saved: SavedComponent, topology: Topology) -> RestorePlan:
        """Refuse: there is no live object.

        Raises:
            InvalidInput: always.
        """
        raise InvalidInput(
            f"component {self.name} was imported: add the live object to restore it.",
            component=self.name,
        )

    def _copies(self) -> tuple[BytesSource, ...]:
        made = ((key, saved_copy(value)) for key, value in self._state.copies.items())
        return tuple(BytesSource(((self.name, key),), data) for key, data in made if data)


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
