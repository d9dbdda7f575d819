"""State of an optimizer as it will be: live tensors where they fit in place, else new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from stepseal.components._dtensors import is_dtensor, leaf_of
from stepseal.components._leaves import compare_leaf
from stepseal.components._optimizer_groups import on_cpu, to_device

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepseal.components._dtensors import Leaf
    from stepseal.components._leaves import OpenedState

__all__ = ["StateBuilder", "local_part"]


class StateBuilder:
    """Builds the state that the optimizer will have, out of live tensors where they exist.

    Args:
        component: name of the component.
        opened: the saved state.
    """

    def __init__(self, component: str, opened: OpenedState) -> None:
        self.leaves: list[Leaf] = []
        self.states: dict[str, dict[Any, Any]] = {}
        self._component = component
        self._opened = opened
        self.problems: list[str] = []

    def add(
        self,
        fqn: str,
        parameter: torch.Tensor,
        live: Mapping[Any, Any],
        entry: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        """Add the state of one parameter.

        Args:
            fqn: its name.
            parameter: the live one.
            live: its state now, empty for new tensors throughout.
            entry: all names, the values of non-tensors, and which tensors are plain ones.
            options: of its group.
        """
        state: dict[Any, Any] = {}
        for key in entry["names"]:
            if key in entry["values"]:
                state[key] = to_device(entry["values"][key], parameter.device)
                continue
            name = f"state.{fqn}.{key}"
            saved = self._opened.tensors.get(name)
            tensor = live.get(key)
            if saved is not None and not isinstance(tensor, torch.Tensor):
                dtype, cpu = getattr(torch, saved.dtype), on_cpu(key, saved.shape, options)
                tensor = self._new(
                    parameter, saved.shape, dtype, cpu=cpu, plain=key in entry.get("plain", ())
                )
            if tensor is None:
                self.problems.append(f"{name}: missing in the checkpoint")
                continue
            part = tensor if self._opened.filled is None else local_part(tensor)
            leaf = leaf_of(self._component, name, part, owns_plain=False)
            self.problems += compare_leaf(leaf, saved)
            self.leaves.append(leaf)
            state[key] = tensor
        self.states[fqn] = state

    def all_problems(self) -> list[str]:
        """Return all `problems`, and saved tensors that no state entry names."""
        named = {leaf.key for leaf in self.leaves}
        unnamed = [key for key in self._opened.tensors if key not in named]
        return [*self.problems, *(f"{key}: unexpected in the checkpoint" for key in unnamed)]

    def _new(
        self,
        parameter: torch.Tensor,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        cpu: bool,
        plain: bool,
    ) -> torch.Tensor:
        """Return a tensor as the optimizer would have made it at its first step."""
        if cpu:
            return torch.zeros(shape, dtype=dtype, device="cpu")
        with torch.no_grad():
            whole = parameter if self._opened.filled is None else local_part(parameter)
            if shape == tuple(whole.shape) and not (plain and is_dtensor(parameter)):
                return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
            if is_dtensor(parameter) and shape and not plain:  # replicated over its mesh
                return parameter.new_zeros(shape, dtype=dtype)
        return torch.zeros(shape, dtype=dtype, device=parameter.device)


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this rank holds of a tensor: a DTensor's local part, else the tensor itself."""
    if not is_dtensor(tensor):
        return tensor
    part: Any = tensor
    with torch.no_grad():  # else it would build a graph node
        local: torch.Tensor = part.to_local()
    return local
