"""A plain dict whose kind nobody declared: what it holds decides once, and a saved step after that.

A dict of tensors is stored as tensors, any other as a tree. A dict that was empty at one start and
filled at the next would change its kind; so a restore goes by the kind that was saved, and the name
keeps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepseal.components._plans import LeafPlan, mismatch
from stepseal.components._stateful import ValueComponent
from stepseal.components._torch_in_use import class_of
from stepseal.layout import rule_of

if TYPE_CHECKING:
    import torch

    from stepseal.components._tensors import TensorDictComponent
    from stepseal.components._types import (
        AnySharing,
        CapturedComponent,
        RestorePlan,
        SavedComponent,
        Topology,
    )

__all__ = ["DictComponent"]


class DictComponent:
    """A dict that is stored as tensors or as a tree; see `TensorDictComponent`, `ValueComponent`.

    Args:
        name: name of the component.
        state: the live dict.
        declared: sharing that the user declared, None for the default of the kind.
    """

    def __init__(
        self, name: str, state: dict[Any, Any], declared: AnySharing | None = None
    ) -> None:
        self.name = name
        self._state = state
        self._declared = declared
        self._wanted = "tensors" if _is_tensor_dict(state) else "tree"
        self._way: TensorDictComponent | ValueComponent = self._as(self._wanted)
        self.kind = self._way.kind

    def declare(self, sharing: AnySharing) -> None:
        """Go by another sharing from now on."""
        if sharing != self._declared:
            self._declared = sharing
            self._way = self._as(self._wanted)
            self.kind = self._way.kind

    def sharing(self, topology: Topology) -> AnySharing:
        """Return the declared sharing or the default for `topology`."""
        return self._way.sharing(topology)

    def describe(self, topology: Topology) -> CapturedComponent:
        """Describe the state on the caller's thread; see `Component`."""
        return self._way.describe(topology)

    def plan(self, saved: SavedComponent, topology: Topology) -> RestorePlan:
        """Check a saved state of either kind, and change nothing; see `Component`."""
        if saved.kind == self.kind:
            return self._way.plan(saved, topology)
        way = self._as(saved.kind)
        if saved.kind == "tensors" and not self._state:
            plan, fresh = self._plan_tensors(saved, topology)
        else:
            plan, fresh = way.plan(saved, topology), {}

        def finish() -> None:
            plan.apply()
            self._state.update(fresh)
            self._way, self.kind = way, way.kind

        return LeafPlan(plan.sinks, finish, scans=plan.scans)

    def _as(self, kind: str) -> TensorDictComponent | ValueComponent:
        shared = self._declared is None or rule_of(self._declared).tensors_are_global
        only_tensors = self._declared is not None and not rule_of(self._declared).is_for_trees
        if only_tensors or (shared and kind == "tensors"):
            from stepseal.components._tensors import TensorDictComponent

            return TensorDictComponent(self.name, self._state, sharing=self._declared)
        return ValueComponent(self.name, self._state, self._declared)

    def _plan_tensors(
        self, saved: SavedComponent, topology: Topology
    ) -> tuple[RestorePlan, dict[str, torch.Tensor]]:
        """Return the plan that fills new tensors, and these, for a live dict that is empty."""
        if saved.tree is not None or any("." in key for key in saved.tensors):
            raise mismatch(
                self.name,
                [
                    "saved with kind 'tensors', and the live dict is empty: put tensors under the "
                    f"keys {sorted(saved.tensors)[:3]}... into it before restore(); a dict that "
                    "starts empty is better added with kind='tree', in a new run"
                ],
            )
        import torch

        from stepseal.components._tensors import TensorDictComponent

        with torch.inference_mode(False):
            fresh = {
                key: torch.empty(one.shape, dtype=getattr(torch, one.dtype))
                for key, one in saved.tensors.items()
            }
        way = TensorDictComponent(self.name, fresh, sharing=self._declared)
        return way.plan(saved, topology), fresh


def _is_tensor_dict(state: dict[Any, Any]) -> bool:
    tensor = class_of("torch", "Tensor")
    return bool(state) and all(
        type(key) is str and isinstance(value, tensor) for key, value in state.items()
    )
