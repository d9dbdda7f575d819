"""Loading an optimizer through its own code: an override of `load_state_dict`, or load hooks.

The standard path never goes here: torch's `load_state_dict` casts state to the dtype of its
parameter, so fp32 moments of bf16 parameters would lose bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from stepseal.components._optimizer_groups import install_options, options_of
from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from stepseal.components._optimizer_groups import GroupState

__all__ = [
    "check_inner",
    "check_own_load",
    "install",
    "load_through",
    "own_code",
    "own_pair",
    "put_back_dtypes",
]


def own_pair(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer makes a state dict of its own, so that only it can read it."""
    if _hooks(optimizer, "state_dict_post"):
        return True
    return _own(optimizer, "state_dict") and not (
        _shares_state(optimizer) and optimizer.state_dict().keys() == {"state", "param_groups"}
    )


def check_own_load(name: str, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that writes a state dict of its own and leaves reading it to torch.

    Raises:
        InvalidInput: names the method that is missing.
    """
    if not _own(optimizer, "state_dict") or own_code(optimizer):
        return
    if optimizer.state_dict().keys() == {"state", "param_groups"}:
        return
    cls = type(optimizer).__qualname__
    raise InvalidInput(
        f"optimizer cannot be added: component {name}: expected {cls}.load_state_dict, because "
        f"{cls} has a state_dict of its own, found torch's, which cannot read that. Define "
        "load_state_dict, or add the state as a (get, set) pair.",
        component=name,
    )


def own_code(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Return the names of all code that wants to see a load, empty for torch's optimizers."""
    cls = type(optimizer).__qualname__
    names = [f"{cls}.{name}" for name in ("load_state_dict", "__setstate__")]
    found = [name for name in names if _own(optimizer, name.rpartition(".")[2])]
    hooks = (
        *_hooks(optimizer, "load_state_dict_pre"),
        *_hooks(optimizer, "load_state_dict_post"),
    )
    return (*found, *(f"load hook {getattr(hook, '__qualname__', hook)}" for hook in hooks))


def _shares_state(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer is a wrapper around one with the same state."""
    inner = list(_inner(optimizer))
    return bool(inner) and all(one.state is optimizer.state for _, one in inner)


def check_inner(name: str, optimizer: torch.optim.Optimizer) -> None:
    """Refuse a wrapper whose inner optimizer holds state that the wrapper would not save.

    Raises:
        InvalidInput: names the attribute, and what to add instead.
    """
    others = [(path, one) for path, one in _inner(optimizer) if one.state is not optimizer.state]
    if not others:
        return
    path, inner = others[0]
    more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
    raise InvalidInput(
        f"optimizer cannot be added: component {name}: expected all state in .state, found "
        f"{type(inner).__qualname__} with a state of its own in {type(optimizer).__qualname__}"
        f".{path}{more}. Add that one instead: add({name!r}, optimizer.{path})"
        f"{', and the others under names of their own' if more else ''}; what else the wrapper "
        "keeps, add as a (get, set) pair.",
        component=name,
        path=path,
    )


def load_through(
    optimizer: torch.optim.Optimizer,
    names: Mapping[str, torch.Tensor],
    states: Mapping[str, Mapping[Any, Any]],
    whole: Mapping[Any, Any],
    groups: Sequence[GroupState],
) -> None:
    """Hand private state to an optimizer's own code, as torch's state dict would hold it.

    State that comes out in another dtype was cast by torch's `load_state_dict`, and is put back.

    Args:
        optimizer: who loads.
        names: its parameters by name, in the order of its groups.
        states: new state by name of the parameter; the optimizer owns it afterwards.
        whole: new state of the optimizer as a whole.
        groups: saved options.
    """
    parameters, numbers = list(names.values()), {fqn: n for n, fqn in enumerate(names)}
    per_number: dict[Any, Any] = {numbers[fqn]: dict(state) for fqn, state in states.items()}
    options = []
    for group, saved in zip(options_of(optimizer, names), groups, strict=True):
        params = [numbers[fqn] for fqn in group.params]
        options.append({**group.options, **saved.options, "params": params})
    state_dict: dict[str, Any] = {"state": {**per_number, **whole}, "param_groups": options}
    if _own(optimizer, "load_state_dict"):
        optimizer.load_state_dict(state_dict)
        put_back_dtypes(optimizer, {parameters[n]: state for n, state in per_number.items()})
        return
    for before in _hooks(optimizer, "load_state_dict_pre"):
        changed = before(optimizer, state_dict)
        state_dict = state_dict if changed is None else changed
    taken, new = dict(state_dict["state"]), {}
    for number, parameter in enumerate(parameters):
        if number in taken:
            new[parameter] = taken.pop(number)
    install(optimizer, {**new, **taken}, [_options(group) for group in state_dict["param_groups"]])
    if _own(optimizer, "__setstate__"):
        optimizer.__setstate__({"state": optimizer.state, "param_groups": optimizer.param_groups})
    for after in _hooks(optimizer, "load_state_dict_post"):
        after(optimizer)


def put_back_dtypes(
    optimizer: torch.optim.Optimizer, saved: Mapping[torch.Tensor, Mapping[Any, Any]]
) -> None:
    """Put saved tensors back wherever the optimizer has them in another dtype."""
    for parameter, state in saved.items():
        live: dict[Any, Any] = optimizer.state.get(parameter) or {}
        for key, value in state.items():
            now = live.get(key)
            if (
                isinstance(value, torch.Tensor)
                and isinstance(now, torch.Tensor)
                and (now.shape == value.shape and now.dtype != value.dtype)
            ):
                live[key] = value.to(now.device)


def install(
    optimizer: torch.optim.Optimizer,
    states: Mapping[Any, Any],
    options: Sequence[Mapping[str, Any]],
) -> None:
    """Replace the content of an optimizer's state, and set its options; its dicts stay."""
    optimizer.state.clear()
    optimizer.state.update(states)
    install_options(optimizer, options)


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _hooks(optimizer: torch.optim.Optimizer, which: str) -> tuple[Any, ...]:
    """Return registered hooks; a class that skips `Optimizer.__init__` has room for none."""
    return tuple(getattr(optimizer, f"_optimizer_{which}_hooks", {}).values())


def _own(optimizer: torch.optim.Optimizer, name: str) -> bool:
    """Return whether a method is not that of an optimizer of `torch.optim`."""
    method: Callable[..., object] = getattr(optimizer, name)
    function = getattr(method, "__func__", method)
    return not str(getattr(function, "__module__", "")).startswith("torch.optim.")


def _inner(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.optim.Optimizer]]:
    """Yield the optimizers that one holds in attributes, lists, tuples or dicts, with the way."""
    for name, value in vars(optimizer).items():
        yield from _optimizers_in(name, value, optimizer)


def _optimizers_in(
    path: str, value: object, outer: torch.optim.Optimizer
) -> Iterator[tuple[str, torch.optim.Optimizer]]:
    if isinstance(value, torch.optim.Optimizer):
        if value is not outer:
            yield path, value
    elif isinstance(value, (list, tuple)):
        for number, one in enumerate(value):
            if isinstance(one, torch.optim.Optimizer) and one is not outer:
                yield f"{path}[{number}]", one
    elif isinstance(value, dict) and value is not outer.state:
        for key, one in value.items():
            if isinstance(one, torch.optim.Optimizer) and one is not outer:
                yield f"{path}[{key!r}]", one
