"""Optimizers as components, through their own `state` and `param_groups`.

Neither `state_dict`, `load_state_dict` nor `step` is ever called, so no hook fires and no state
comes to life. A parameter is named by identity over all modules that were added.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from stepseal.components._capture import describe_leaves
from stepseal.components._dtensors import is_dtensor, leaf_of, owns_plain_tensors
from stepseal.components._leaves import (
    compare_leaf,
    default_sharing,
    kind_of,
    leaves_of,
    mismatch,
    open_saved,
)
from stepseal.components._modules import parameter_names, unwrap
from stepseal.components._optimizer_groups import (
    GroupState,
    group_copies,
    group_problems,
    install_options,
    on_cpu,
    options_of,
    to_device,
)
from stepseal.errors import InvalidInput, UnsupportedState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from stepseal.components._dtensors import Leaf
    from stepseal.components._leaves import LeafPlan, OpenedState
    from stepseal.components._types import (
        CapturedComponent,
        SavedComponent,
        Sharing,
        Topology,
    )

__all__ = ["OptimizerComponent"]


class OptimizerComponent:
    """An optimizer's state per parameter and its parameter groups.

    Args:
        name: name of the component.
        optimizer: any `torch.optim.Optimizer` that keeps its state in `state`.
        modules: returns all modules of the run by component name, when asked; `model` stands for
            bare names, other components prefix theirs. Parameters in no module are named by their
            place: `bare.<group>.<index>`.
        sharing: declared sharing, None for the default.

    Raises:
        InvalidInput: an optimizer whose state is elsewhere.
    """

    def __init__(
        self,
        name: str,
        optimizer: torch.optim.Optimizer,
        modules: Callable[[], Mapping[str, nn.Module]],
        *,
        sharing: Sharing | None = None,
    ) -> None:
        if any(cls.__name__ == "ZeroRedundancyOptimizer" for cls in type(optimizer).__mro__):
            raise InvalidInput(
                f"optimizer cannot be added: component {name}: expected state on every rank, or "
                "DTensor state, "
                "found ZeroRedundancyOptimizer, which spreads whole tensors over ranks. Use "
                "fully_shard (FSDP2).",
                component=name,
            )
        inner = getattr(optimizer, "optimizer", None)
        delegates = inner is not None and getattr(inner, "state", None) is optimizer.state
        own = type(optimizer).state_dict is not torch.optim.Optimizer.state_dict
        if own and not delegates:
            raise InvalidInput(
                f"optimizer cannot be added: component {name}: expected all state in .state and "
                f".param_groups, found {type(optimizer).__qualname__} with a state_dict of its "
                "own. Add the inner optimizer, and the rest as a (get, set) pair.",
                component=name,
            )
        self.name = name
        self.kind = kind_of(sharing)
        self.optimizer = optimizer
        self._modules = modules
        self._declared = sharing

    def sharing(self, topology: Topology) -> Sharing:
        """Return the declared sharing or the default for `topology`."""
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        return default_sharing(self._declared, parameters, topology)

    def describe(self, topology: Topology) -> CapturedComponent:
        """Describe the state on the caller's thread; see `Component`."""
        names, sharing = self._names(), self.sharing(topology)
        leaves: list[Leaf] = []
        state: dict[str, Any] = {}
        owners: dict[Any, bool] = {}  # by mesh: most parameters share one
        for fqn, parameter in names.items():
            live = self._live_state(fqn, parameter)
            if not live:
                continue
            tensors = {k: v for k, v in live.items() if isinstance(v, torch.Tensor)}
            scalars = {k: v for k, v in live.items() if k not in tensors}
            mesh = getattr(parameter, "device_mesh", None)
            if mesh not in owners:
                owners[mesh] = owns_plain_tensors(topology, [parameter])
            keyed = {f"state.{fqn}.{key}": tensor for key, tensor in tensors.items()}
            leaves += leaves_of(self.name, keyed, sharing, owns_plain=owners[mesh])
            state[fqn] = {"names": list(live), "values": scalars}
        self._check_distinct(leaves, state)
        groups = options_of(self.optimizer, names)
        value = {"groups": [group.as_value() for group in groups], "state": state}
        keys = [f"state.{fqn}.{key}" for fqn, entry in state.items() for key in entry["values"]] + [
            f"param_groups.{fqn}" for fqn in names
        ]
        copies = functools.partial(group_copies, self.name, groups, state)
        return describe_leaves(self.name, sharing, topology, leaves, value, keys, copies)

    def plan(self, saved: SavedComponent, topology: Topology) -> LeafPlan:
        """Check saved groups and state, strictly, and change nothing; see `Component`.

        State of parameters that have none yet is made as new tensors, which `apply` installs.
        """
        names, sharing = self._names(), self.sharing(topology)
        opened = open_saved(saved, sharing, topology)
        groups, state = _read_value(self.name, opened.value)
        live_groups = options_of(self.optimizer, names)
        problems = group_problems(live_groups, groups)
        if problems:
            raise mismatch(self.name, problems)
        options = {fqn: group.options for group in groups for fqn in group.params}
        builder = _StateBuilder(self.name, opened)
        for fqn, parameter in names.items():
            entry = state.get(fqn)
            if entry is not None:
                live = self._live_state(fqn, parameter)
                builder.add(fqn, parameter, live, entry, options[fqn])
        if problems := builder.all_problems():
            raise mismatch(self.name, problems)

        def finish() -> None:
            for parameter in names.values():
                self.optimizer.state.pop(parameter, None)
            for fqn, new in builder.states.items():
                self.optimizer.state[names[fqn]] = new
            install_options(self.optimizer, groups)

        return opened.plan(builder.leaves, finish)

    def _names(self) -> dict[str, torch.Tensor]:
        """Return each parameter of the optimizer by its name, in the order of the groups."""
        known = self._known_names()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if any(id(parameter) not in known for parameter in parameters):
            # FSDP2 shows gathered parameters after a forward pass; its state dict hooks put the
            # sharded ones back.
            for module in self._modules().values():
                unwrap(module).state_dict(keep_vars=True)
            known = self._known_names()
        names: dict[str, torch.Tensor] = {}
        for number, group in enumerate(self.optimizer.param_groups):
            for index, parameter in enumerate(group["params"]):
                names[known.get(id(parameter), f"bare.{number}.{index}")] = parameter
        if len(names) != len(parameters):
            raise UnsupportedState(
                f"optimizer cannot be stored: component {self.name}: expected a name of its own "
                "for each of "
                f"{len(parameters)} parameters, found {len(names)} names. Rename the module that "
                "begins with "
                "another component's name, or `bare`.",
                component=self.name,
            )
        own = {id(parameter) for parameter in parameters}
        strange = [key for key in self.optimizer.state if id(key) not in own]
        if strange:
            raise UnsupportedState(
                f"optimizer cannot be stored: component {self.name}: expected state of its own "
                "parameters only, "
                f"found {len(strange)} entries of {type(strange[0]).__name__}. Remove them from "
                "optimizer.state.",
                component=self.name,
            )
        return names

    def _known_names(self) -> dict[int, str]:
        known: dict[int, str] = {}
        for component, module in self._modules().items():
            prefix = "" if component == "model" else f"{component}."
            for identity, name in parameter_names(module).items():
                known.setdefault(identity, prefix + name)
        return known

    def _live_state(self, fqn: str, parameter: torch.Tensor) -> dict[str, Any]:
        """Return the state of a parameter, empty if it has none; indexing would make one."""
        live = self.optimizer.state.get(parameter) or {}
        for key in live:
            if not isinstance(key, str):
                raise UnsupportedState(
                    f"optimizer cannot be stored: component {self.name}, state of {fqn}: expected "
                    "str names, found "
                    f"{key!r}. Name the entry by a string.",
                    component=self.name,
                    path=fqn,
                )
        return live

    def _check_distinct(self, leaves: list[Leaf], state: Mapping[str, Any]) -> None:
        """Refuse names that mean two things when joined by '.'."""
        keys = [leaf.key for leaf in leaves]
        keys += [f"state.{fqn}.{key}" for fqn, entry in state.items() for key in entry["values"]]
        twice = sorted({key for key in keys if keys.count(key) > 1}) if _has_twins(keys) else []
        if twice:
            raise UnsupportedState(
                f"optimizer cannot be stored: component {self.name}, key {twice[0]}: expected one "
                "state of this name, "
                "found two. Rename the module or the state.",
                component=self.name,
                path=twice[0],
            )


class _StateBuilder:
    """Builds the state that the optimizer will have, out of live tensors where they exist.

    Args:
        component: name of the component.
        opened: the saved state.
    """

    def __init__(self, component: str, opened: OpenedState) -> None:
        self.leaves: list[Leaf] = []
        self.states: dict[str, dict[str, Any]] = {}
        self._component = component
        self._opened = opened
        self._problems: list[str] = []

    def add(
        self,
        fqn: str,
        parameter: torch.Tensor,
        live: Mapping[str, Any],
        entry: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        """Add the state of one parameter; `entry` has all names, and the values of non-tensors."""
        state: dict[str, Any] = {}
        for key in entry["names"]:
            if key in entry["values"]:
                state[key] = to_device(entry["values"][key], parameter.device)
                continue
            name = f"state.{fqn}.{key}"
            saved = self._opened.tensors.get(name)
            tensor = live.get(key)
            if saved is not None and not isinstance(tensor, torch.Tensor):
                device = on_cpu(key, saved.shape, options)
                dtype = getattr(torch, saved.dtype)
                tensor = _new_state(parameter, saved.shape, dtype, cpu=device)
            if tensor is None:
                self._problems.append(f"{name}: missing in the checkpoint")
                continue
            leaf = leaf_of(self._component, name, tensor, owns_plain=False)
            self._problems += compare_leaf(leaf, saved)
            self.leaves.append(leaf)
            state[key] = tensor
        self.states[fqn] = state

    def all_problems(self) -> list[str]:
        """Return every difference, also saved tensors that no state entry names."""
        named = {leaf.key for leaf in self.leaves}
        unnamed = [key for key in self._opened.tensors if key not in named]
        return [*self._problems, *(f"{key}: unexpected in the checkpoint" for key in unnamed)]


def _new_state(
    parameter: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, *, cpu: bool
) -> torch.Tensor:
    """Return a tensor as the optimizer would have made it at its first step."""
    if cpu:
        return torch.zeros(shape, dtype=dtype, device="cpu")
    with torch.no_grad():
        if shape == tuple(parameter.shape):
            return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        if is_dtensor(parameter) and shape:  # replicated over the parameter's mesh
            return parameter.new_zeros(shape, dtype=dtype)
    return torch.zeros(shape, dtype=dtype, device=parameter.device)


def _read_value(
    component: str, value: object
) -> tuple[list[GroupState], dict[str, dict[str, Any]]]:
    """Return groups and state of a decoded tree document."""
    problem = mismatch(component, ["payload: expected groups and state, found another structure"])
    if not isinstance(value, dict) or not {"groups", "state"} <= value.keys():
        raise problem
    groups, state = value["groups"], value["state"]
    if not isinstance(groups, list) or not isinstance(state, dict):
        raise problem
    for entry in state.values():
        if not (
            isinstance(entry, dict)
            and isinstance(entry.get("names"), list)
            and isinstance(entry.get("values"), dict)
        ):
            raise problem
    read = [GroupState.from_value(group) for group in groups]
    if None in read:
        raise problem
    return [group for group in read if group is not None], state


def _has_twins(keys: list[str]) -> bool:
    return len(set(keys)) != len(keys)
