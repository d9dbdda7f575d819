"""Which component an object becomes, and the set of components of a job."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Literal

import torch

from stepseal.components._modules import ModuleComponent
from stepseal.components._optimizer_own import optimizer_component
from stepseal.components._rng import RNG, RNGComponent
from stepseal.components._stateful import (
    LRSchedulerComponent,
    PairComponent,
    Scheduler,
    StatefulComponent,
    ValueComponent,
)
from stepseal.components._tensors import HasStateDict, TensorDictComponent
from stepseal.components._types import Component
from stepseal.errors import InvalidInput
from stepseal.layout import check_component_name

if TYPE_CHECKING:
    from stepseal.components._types import Sharing, Topology

__all__ = ["Registry"]

Kind = Literal["tensors", "tree"]


class Registry:
    """The components of one participant, in the order in which they were added."""

    def __init__(self) -> None:
        self._components: dict[str, Component] = {}
        self._modules: dict[str, torch.nn.Module] = {}

    def add(
        self,
        name: str,
        state: Any,  # noqa: ANN401 - told apart below
        *,
        sharing: Sharing | None,
        kind: Kind | None,
        topology: Topology,
    ) -> None:
        """Add one component: an object to adapt, or what is a `Component` of this name already.

        Raises:
            InvalidInput: the name is taken or not usable, the type is unknown, or the sharing
                must be declared.
        """
        check_component_name(name)
        if name in self._components:
            raise InvalidInput(
                f"add({name!r}): a component of that name is there already. Names are unique.",
                component=name,
            )
        folded = {other.casefold(): other for other in self._components}
        if name.casefold() in folded:
            raise InvalidInput(
                f"add({name!r}): differs from {folded[name.casefold()]!r} in case only, and would "
                "claim the same files on some file systems. Choose another name.",
                component=name,
            )
        component = self._adapt(name, state, sharing, kind)
        component.sharing(topology)
        self._components[name] = component
        if isinstance(component, ModuleComponent):
            self._modules[name] = component.module

    def names(self) -> tuple[str, ...]:
        """Return the names in the order of adding."""
        return tuple(self._components)

    def components(self) -> tuple[Component, ...]:
        """Return the components in the order of adding."""
        return tuple(self._components.values())

    def check_prefixes(self) -> None:
        """Refuse bare keys of `model` that another component's prefixed keys could collide with.

        Raises:
            InvalidInput: a key of `model` begins with the name of another component and a dot.
        """
        model = self._components.get("model")
        if not isinstance(model, ModuleComponent):
            return
        others = tuple(f"{name}." for name in self._components if name != "model")
        taken = next((key for key in model.keys() if key.startswith(others)), None)  # noqa: SIM118
        if others and taken is not None:
            raise InvalidInput(
                f"component model: the key {taken!r} begins with the name of another component: "
                "stock DCP readers could not tell them apart. Give that component another name.",
                component="model",
                path=taken,
            )

    def _adapt(
        self,
        name: str,
        state: Any,  # noqa: ANN401 - told apart here
        sharing: Sharing | None,
        kind: Kind | None,
    ) -> Component:
        stateful = isinstance(state, (MutableMapping, HasStateDict))
        if kind == "tree" and isinstance(state, (torch.nn.Module, torch.optim.Optimizer)):
            raise InvalidInput(
                f"add({name!r}, kind='tree'): a module or optimizer is stored as tensors. Leave "
                "`kind` out, or add a (get, set) pair.",
                component=name,
            )
        if kind == "tensors" and not stateful:
            raise InvalidInput(
                f"add({name!r}, kind='tensors'): expected a dict of tensors or an object with "
                f"state_dict and load_state_dict, found {type(state).__name__}. Leave `kind` out.",
                component=name,
            )
        if isinstance(state, Component):
            return state
        if isinstance(state, RNG):
            return RNGComponent(name, state, sharing)
        if isinstance(state, torch.nn.Module):
            return ModuleComponent(name, state, sharing=sharing)
        if isinstance(state, torch.optim.Optimizer):
            return optimizer_component(name, state, lambda: self._modules, sharing=sharing)
        if isinstance(state, Scheduler):
            return LRSchedulerComponent(name, state, sharing)
        if kind == "tensors" or (kind is None and _is_tensor_dict(state)):
            return TensorDictComponent(name, state, sharing=sharing)
        if isinstance(state, HasStateDict):
            return StatefulComponent(name, state, sharing)
        if isinstance(state, tuple) and len(state) == 2 and all(callable(f) for f in state):
            return PairComponent(name, state, sharing)
        return ValueComponent(name, state, sharing)


def _is_tensor_dict(state: object) -> bool:
    return (
        isinstance(state, MutableMapping)
        and bool(state)
        and all(isinstance(value, torch.Tensor) for value in state.values())
    )
