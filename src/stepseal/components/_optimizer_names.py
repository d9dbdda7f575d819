"""Names of an optimizer's parameters, by identity over all modules that were added."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepseal.components._modules import key_cleaner, parameter_names, unwrap
from stepseal.errors import UnsupportedState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch
    from torch import nn

__all__ = ["class_name", "is_nameless", "names_of", "tied_names", "whole_state"]

_NAMELESS = "bare."


def class_name(optimizer: torch.optim.Optimizer) -> str:
    """Return what a saved optimizer is compared by; a class may move to another file."""
    return type(optimizer).__qualname__.rpartition(".")[2]


def is_nameless(name: str) -> bool:
    """Return whether a parameter is named by its place, because no module has it."""
    return name.startswith(_NAMELESS)


def names_of(
    component: str, optimizer: torch.optim.Optimizer, modules: Mapping[str, nn.Module]
) -> dict[str, torch.Tensor]:
    """Return each parameter of an optimizer by its name, in the order of the groups.

    Args:
        component: name of the component, for messages.
        optimizer: whose parameters.
        modules: all modules of the run; `model` stands for bare names, others prefix theirs.

    Raises:
        UnsupportedState: two parameters of one name.
    """
    known = _known_names(modules)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if any(id(parameter) not in known for parameter in parameters):
        # FSDP2 shows gathered parameters after a forward pass; its state dict hooks put the
        # sharded ones back.
        for module in modules.values():
            unwrap(module).state_dict(keep_vars=True)
        known = _known_names(modules)
    names: dict[str, torch.Tensor] = {}
    for number, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            names[known.get(id(parameter), f"{_NAMELESS}{number}.{index}")] = parameter
    if len(names) != len(parameters):
        raise UnsupportedState(
            f"optimizer cannot be stored: component {component}: expected a name of its own for "
            f"each of {len(parameters)} parameters, found {len(names)} names. Rename the module "
            "that begins with another component's name, or `bare`.",
            component=component,
        )
    return names


def tied_names(
    names: Mapping[str, torch.Tensor], modules: Mapping[str, nn.Module]
) -> dict[str, str]:
    """Return the other names of parameters that have several, with the one that state is under."""
    own = {id(parameter): name for name, parameter in names.items()}
    places: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for component, module in modules.items():
        root, prefix = unwrap(module), "" if component == "model" else f"{component}."
        for raw, parameter in root.named_parameters(remove_duplicate=False):
            if id(parameter) in own:
                places.setdefault(id(parameter), []).append((prefix, root, raw))
    found = {}
    for identity, several in places.items():
        for prefix, root, raw in several if len(several) > 1 else ():
            other = prefix + key_cleaner(root)(raw)
            if other != own[identity]:
                found[other] = own[identity]
    return found


def whole_state(
    component: str, optimizer: torch.optim.Optimizer, names: Mapping[str, torch.Tensor]
) -> dict[str | int, object]:
    """Return the state of an optimizer as a whole: under keys that are no parameters.

    Raises:
        UnsupportedState: state of a tensor that is no parameter of the optimizer.
    """
    own = {id(parameter) for parameter in names.values()}
    found: dict[str | int, object] = {}
    items: Iterable[tuple[Any, object]] = optimizer.state.items()
    for key, value in items:
        if type(key) in (str, int):
            found[key] = value
        elif id(key) not in own:
            raise UnsupportedState(
                f"optimizer cannot be stored: component {component}: expected state of its own "
                f"parameters, or under str and int keys, found a key of {type(key).__name__}. "
                "Remove it from optimizer.state.",
                component=component,
            )
    return found


def _known_names(modules: Mapping[str, nn.Module]) -> dict[int, str]:
    known: dict[int, str] = {}
    for component, module in modules.items():
        prefix = "" if component == "model" else f"{component}."
        for identity, name in parameter_names(module).items():
            known.setdefault(identity, prefix + name)
    return known
