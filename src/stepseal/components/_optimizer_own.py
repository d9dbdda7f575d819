"""Optimizers with a `state_dict` of their own: stored as the tree that it gives, as torch users do.

Such an optimizer alone knows what its state means, so its own pair writes and reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from stepseal.components._advice import leave_out
from stepseal.components._codecs_registry import register
from stepseal.components._dtensors import is_dtensor
from stepseal.components._leaves import default_sharing
from stepseal.components._optimizer_groups import (
    GroupState,
    group_problems,
    options_of,
    order_problems,
)
from stepseal.components._optimizer_loading import check_own_load, own_pair, put_back_dtypes
from stepseal.components._optimizer_names import class_name, names_of
from stepseal.components._optimizer_state import local_part
from stepseal.components._optimizers import OptimizerComponent
from stepseal.components._trees import TreeComponent
from stepseal.components._types import AnySharing, Sharing
from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from stepseal.components._types import Topology

__all__ = ["OwnOptimizerComponent", "optimizer_component"]


def optimizer_component(
    name: str,
    optimizer: torch.optim.Optimizer,
    modules: Callable[[], Mapping[str, nn.Module]],
    *,
    sharing: AnySharing | None = None,
) -> OptimizerComponent | OwnOptimizerComponent:
    """Return the component of an optimizer; see the two classes.

    Raises:
        InvalidInput: an optimizer whose state cannot be saved exactly.
    """
    if own_pair(optimizer):
        check_own_load(name, optimizer)
        return OwnOptimizerComponent(name, optimizer, modules, sharing=sharing)
    return OptimizerComponent(name, optimizer, modules, sharing=sharing)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one rank holds of a DTensor in a tree."""

    local: torch.Tensor
    shape: list[int]
    """Global shape, in elements."""
    dims: list[int | None]
    """Per axis of the mesh, the dim that it shards; None where it replicates."""


register(_Part, name="stepseal.DTensorPart")


class OwnOptimizerComponent(TreeComponent):
    """An optimizer's own `state_dict` as a tree, with the names and shapes of its parameters.

    Args:
        name: name of the component.
        optimizer: whose class has a `state_dict`, or that has `state_dict` hooks.
        modules: returns all modules of the run by component name.
        sharing: declared sharing, None for the default.

    Raises:
        InvalidInput: sharded parameters, and the sharing is not PER_RANK.
    """

    def __init__(
        self,
        name: str,
        optimizer: torch.optim.Optimizer,
        modules: Callable[[], Mapping[str, nn.Module]],
        *,
        sharing: AnySharing | None = None,
    ) -> None:
        super().__init__(name, sharing)
        self.optimizer = optimizer
        self._modules = modules
        sharded = [p for group in optimizer.param_groups for p in group["params"] if is_dtensor(p)]
        self._mesh: Any = sharded[0].device_mesh if sharded else None
        if sharded and sharing is not Sharing.PER_RANK:
            raise InvalidInput(
                f"optimizer cannot be added: component {name}: expected plain parameters, because "
                f"{type(optimizer).__qualname__} has a state_dict of its own, found DTensors, "
                "whose state would have to be resharded. Store it per rank: "
                f"add({name!r}, optimizer, sharing=ss.PER_RANK).",
                component=name,
            )

    def sharing(self, topology: Topology) -> AnySharing:
        """Return the declared sharing or the default for `topology`."""
        return default_sharing(self.name, self._declared, (), topology)

    def read_state(self) -> object:
        """Return class, names, shapes and the optimizer's own state dict."""
        return {
            "class": class_name(self.optimizer),
            "groups": [group.as_value() for group in self._groups()],
            "own": _mapped(self.optimizer.state_dict(), self._taken_apart),
        }

    def write_state(self, value: object) -> None:
        """Hand the state dict to the optimizer; dtypes that its load casts are put back."""
        assert isinstance(value, dict), "checked while it was planned"
        own: Any = _mapped(value["own"], self._put_together)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = own.get("state") if isinstance(own, dict) else None
        saved = {
            parameters[number]: dict(entry)
            for number, entry in (state.items() if isinstance(state, dict) else ())
            if type(number) is int and number < len(parameters) and isinstance(entry, dict)
        }
        self.optimizer.load_state_dict(own)
        put_back_dtypes(self.optimizer, saved)

    def state_problems(self, value: object) -> list[str]:
        """Compare the class, and names and shapes of all parameters, in their order."""
        if not isinstance(value, dict) or not {"class", "groups", "own"} <= value.keys():
            return [
                "payload: expected an optimizer's own state dict, found another structure: "
                f"{leave_out(self.name)} leaves it as it is now"
            ]
        live, found = class_name(self.optimizer), value["class"]
        if live != found:
            return [
                f"class: expected (live) {live}, found {found}: build the {found} of the save, or "
                f"{leave_out(self.name)} leaves it as it is now"
            ]
        saved = [GroupState.from_value(group) for group in value["groups"]]
        groups, mine = [group for group in saved if group is not None], self._groups()
        return group_problems(mine, groups) or order_problems(mine, groups)

    def _groups(self) -> list[GroupState]:
        names = names_of(self.name, self.optimizer, self._modules())
        groups = options_of(self.optimizer, names)
        return [GroupState(group.params, group.shapes, {}) for group in groups]

    def _taken_apart(self, value: object) -> object:
        if not is_dtensor(value):
            return value
        tensor: Any = value
        dims = [getattr(placement, "dim", None) for placement in tensor.placements]
        return _Part(local_part(tensor), list(tensor.shape), dims)

    def _put_together(self, value: object) -> object:
        if not isinstance(value, _Part):
            return value
        from torch.distributed.tensor import DTensor, Replicate, Shard

        placements = [Replicate() if dim is None else Shard(dim) for dim in value.dims]
        shape = torch.Size(value.shape)
        strides = torch.empty(shape, device="meta").stride()
        local = value.local.to(self._mesh.device_type)
        return DTensor.from_local(
            local, self._mesh, placements, run_check=False, shape=shape, stride=strides
        )


def _mapped(value: Any, change: Callable[[object], object]) -> Any:  # noqa: ANN401 - same kind
    """Return a nested value with every leaf changed; dicts, lists and tuples are new."""
    if isinstance(value, dict):
        new = value.copy()
        new.update({key: _mapped(one, change) for key, one in value.items()})
        return new
    if type(value) in (list, tuple):
        return type(value)(_mapped(one, change) for one in value)
    return change(value)
