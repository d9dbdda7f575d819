"""Optimizers as components, through their own `state` and `param_groups`.

Neither `state_dict` nor `step` is ever called, so no such hook fires and no state comes to life; a
load of their own, and load hooks, run at a restore. A parameter is named by identity over all
modules that were added.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from stepseal.components._capture import content_digest
from stepseal.components._codecs_registry import find_registered
from stepseal.components._dtensors import is_dtensor, owns_plain_tensors
from stepseal.components._leaf_capture import describe_leaves
from stepseal.components._leaves import default_sharing, leaves_of, open_saved
from stepseal.components._optimizer_groups import (
    class_problems,
    group_copies,
    group_problems,
    options_of,
)
from stepseal.components._optimizer_loading import check_inner, install, load_through, own_code
from stepseal.components._optimizer_names import class_name, names_of, tied_names, whole_state
from stepseal.components._optimizer_stages import read_saved
from stepseal.components._optimizer_state import StateBuilder, local_part
from stepseal.components._optimizer_ties import retied
from stepseal.components._plans import kind_of, mismatch
from stepseal.errors import InvalidInput, UnsupportedState
from stepseal.layout import holds_own_keys, rule_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from stepseal.components._dtensors import Leaf
    from stepseal.components._optimizer_groups import GroupState
    from stepseal.components._plans import LeafPlan
    from stepseal.components._types import (
        AnySharing,
        CapturedComponent,
        SavedComponent,
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
        sharing: AnySharing | None = None,
    ) -> None:
        if any(cls.__name__ == "ZeroRedundancyOptimizer" for cls in type(optimizer).__mro__):
            raise InvalidInput(
                f"optimizer cannot be added: component {name}: expected state on every rank, or "
                "DTensor state, "
                "found ZeroRedundancyOptimizer, which spreads whole tensors over ranks. Use "
                "fully_shard (FSDP2).",
                component=name,
            )
        check_inner(name, optimizer)
        self.name = name
        self.kind = kind_of(sharing)
        self.optimizer = optimizer
        self._modules = modules
        self._declared: AnySharing | None = sharing

    def declare(self, sharing: AnySharing) -> None:
        """Go by another sharing from now on."""
        self.kind = kind_of(sharing)
        self._declared = sharing

    def sharing(self, topology: Topology) -> AnySharing:
        """Return the declared sharing or the default for `topology`."""
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        return default_sharing(self.name, self._declared, parameters, topology)

    def describe(self, topology: Topology) -> CapturedComponent:
        """Describe the state on the caller's thread; see `Component`.

        Plain state beside DTensor parameters is digested: one rank writes it for all.
        """
        names, sharing = self._names(), self.sharing(topology)
        is_global = rule_of(sharing).tensors_are_global
        leaves: list[Leaf] = []
        state: dict[str, Any] = {}
        beside: dict[str, Any] = {}
        owners: dict[Any, bool] = {}  # by mesh: most parameters share one
        for fqn, parameter in names.items():
            live = self._live_state(fqn, parameter)
            if not live:
                continue
            tensors = {key: value for key, value in live.items() if _is_leaf(value)}
            scalars = {key: value for key, value in live.items() if key not in tensors}
            state[fqn] = {"names": list(live), "values": scalars}
            if is_dtensor(parameter):
                plain = [k for k, t in tensors.items() if t.ndim and not is_dtensor(t)]
                state[fqn]["plain"] = plain
                if plain or scalars:
                    beside[fqn] = [scalars, {key: tensors[key] for key in plain}]
            mesh = getattr(parameter, "device_mesh", None)
            if mesh not in owners:
                owners[mesh] = owns_plain_tensors(topology, [parameter], sharing)
            parts = tensors.items() if is_global else _local_parts(tensors)
            keyed = {f"state.{fqn}.{key}": tensor for key, tensor in parts}
            leaves += leaves_of(self.name, keyed, sharing, owns_plain=owners[mesh])
        self._check_distinct(leaves, state)
        groups = options_of(self.optimizer, names)
        value = {
            "class": class_name(self.optimizer),
            "groups": [group.as_value() for group in groups],
            "state": state,
            "whole": whole_state(self.name, self.optimizer, names),
        }
        if tied := tied_names(names, self._modules()):
            value["tied"] = tied
        keys = [f"state.{fqn}.{key}" for fqn, entry in state.items() for key in entry["values"]] + [
            f"param_groups.{fqn}" for fqn in names
        ]
        copies = functools.partial(group_copies, self.name, groups, state)
        content = self._content(beside) if beside and is_global else ""
        return describe_leaves(
            self.name, sharing, topology, leaves, value, keys, copies, content=content
        )

    def plan(self, saved: SavedComponent, topology: Topology) -> LeafPlan:
        """Check saved groups and state, strictly, and change nothing; see `Component`.

        State of parameters that have none yet is made as new tensors, which `apply` installs. An
        optimizer with load code of its own gets new tensors throughout, through that code.
        """
        names, sharing = self._names(), self.sharing(topology)
        opened = open_saved(saved, sharing, topology, unite=list)
        value, live_groups = read_saved(self.name, opened.value), options_of(self.optimizer, names)
        own_keys, groups = holds_own_keys(sharing), value.parts[0]
        problems: list[str] = []
        if own_keys or saved.parts:
            entries, tied = value.entries(opened.tensors), tied_names(names, self._modules())
            found = retied(value, names, tied, opened.tensors)
            value, opened = found.saved, opened.named(found.tensors)
            groups, problems = value.regrouped(live_groups, others_take_rest=own_keys)
            if own_keys:
                opened = opened.narrowed(value.entries_of(names) | found.taken, entries)
            problems += found.problems
        problems += group_problems(live_groups, groups)
        of_class: list[str] = []
        for cls in value.classes if not problems else ():
            of_class += class_problems(self.name, self.optimizer, cls, groups, value.state_names())
        if of_class:
            raise mismatch(self.name, of_class)
        options = {fqn: group.options for group in groups for fqn in group.params}
        shapes, live_shapes = _shapes(groups), _shapes(live_groups)
        builder, code = StateBuilder(self.name, opened), own_code(self.optimizer)
        for fqn, parameter in names.items():
            entry = value.state.get(fqn)
            if entry is not None and shapes.get(fqn) == live_shapes[fqn]:
                live = {} if code else self._live_state(fqn, parameter)
                builder.add(fqn, parameter, live, entry, options[fqn])
        # State of parameters that are not on both sides is no difference of its own.
        problems += builder.problems if problems else builder.all_problems()
        if problems:
            raise mismatch(self.name, problems)

        def finish() -> None:
            if code:
                load_through(self.optimizer, names, builder.states, value.whole, groups)
                return
            states = {names[fqn]: new for fqn, new in builder.states.items()}
            install(self.optimizer, {**states, **value.whole}, [one.options for one in groups])

        note = f"through {', '.join(code)}, by way of one private copy" if code else ""
        return opened.plan(builder.leaves, finish, note=note)

    def _names(self) -> dict[str, torch.Tensor]:
        return names_of(self.name, self.optimizer, self._modules())

    def _content(self, beside: Mapping[str, object]) -> str:
        return (
            f", and plain state beside DTensors {content_digest(self.name, beside)} (where each "
            f"rank has its own, add({self.name!r}, ..., sharing=ss.PER_RANK))"
        )

    def _live_state(self, fqn: str, parameter: torch.Tensor) -> Mapping[Any, Any]:
        """Return the state of a parameter, empty if it has none; indexing would make one."""
        live: Mapping[Any, Any] = self.optimizer.state.get(parameter, {})
        names: list[object] = list(live) if isinstance(live, Mapping) else [live]
        strange = next((name for name in names if type(name) not in (str, int)), None)
        if strange is not None:
            raise UnsupportedState(
                f"optimizer cannot be stored: component {self.name}, state of {fqn}: expected "
                f"a dict under str or int names, found a {type(strange).__qualname__}. Add the "
                "optimizer as a pair that turns its state into such dicts and back.",
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


def _shapes(groups: Iterable[GroupState]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter by its name."""
    return {fqn: s for group in groups for fqn, s in zip(group.params, group.shapes, strict=True)}


def _is_leaf(value: object) -> bool:
    """Return whether a value is stored as a tensor; a wrapper with a codec is none."""
    return isinstance(value, torch.Tensor) and find_registered(type(value)) is None


def _local_parts(tensors: Mapping[Any, torch.Tensor]) -> list[tuple[Any, torch.Tensor]]:
    return [(key, local_part(tensor)) for key, tensor in tensors.items()]


def _has_twins(keys: list[str]) -> bool:
    return len(set(keys)) != len(keys)
