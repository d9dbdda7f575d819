"""Which component an object becomes."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Literal

from stepseal.components._advice import check_no_snapshot, check_no_stand_in
from stepseal.components._dicts import DictComponent
from stepseal.components._external import External, ExternalComponent
from stepseal.components._loaders import LoaderComponent
from stepseal.components._prepared import is_prepared_loader
from stepseal.components._prepared_loaders import PreparedLoaderComponent
from stepseal.components._rng import RNG, RNGComponent
from stepseal.components._sampling import SamplerComponent, SharedPosition, check_no_loader_of
from stepseal.components._stateful import (
    LRSchedulerComponent,
    PairComponent,
    PairState,
    StatefulComponent,
    ValueComponent,
)
from stepseal.components._torch_in_use import class_of, torch_in_use
from stepseal.components._types import Component, HasStateDict
from stepseal.components._unchanged import Unchanged, UnchangedComponent
from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from stepseal.components._types import AnySharing

__all__ = ["Kind", "adapt"]

Kind = Literal["tensors", "tree"]
_OWN: dict[type, Callable[..., Component]] = {
    RNG: RNGComponent,
    Unchanged: UnchangedComponent,
    External: ExternalComponent,
    SharedPosition: SamplerComponent,
}
"""Our own classes to their components."""
_STATEFUL = (MutableMapping, HasStateDict)


def adapt(
    name: str,
    state: Any,  # noqa: ANN401 - told apart here
    sharing: AnySharing | None,
    kind: Kind | None,
    modules: Mapping[str, torch.nn.Module],
) -> Component:
    """Return the component that an object becomes; what is a component already, as it is.

    Args:
        name: component name.
        state: the live object.
        sharing: declared sharing, None for the default.
        kind: declared kind, None to decide by type.
        modules: those that are components already; filled later, too, and read when asked.

    Raises:
        InvalidInput: the object cannot be saved, or not as this kind.
    """
    check_no_snapshot(name, state, kind)
    check_no_loader_of(name, state)
    check_no_stand_in(name, state)
    pair = isinstance(state, tuple) and len(state) == 2 and all(callable(f) for f in state)
    _check_kind(name, state, kind, is_stateful=pair or isinstance(state, _STATEFUL))
    if isinstance(state, Component):
        return state
    for cls, component in _OWN.items():
        if isinstance(state, cls):
            return component(name, state, sharing)
    of_torch = _of_torch(name, state, sharing, modules) if torch_in_use() else None
    if of_torch is not None:
        return of_torch
    if kind == "tensors":
        from stepseal.components._tensors import TensorDictComponent

        held = PairState(state) if pair else state
        return TensorDictComponent(name, held, sharing=sharing)
    if isinstance(state, HasStateDict):
        if is_prepared_loader(state):
            return PreparedLoaderComponent(name, state, sharing)
        is_loader = callable(getattr(state, "__iter__", None))
        return (LoaderComponent if is_loader else StatefulComponent)(name, state, sharing)
    if pair:
        return PairComponent(name, state, sharing)
    if isinstance(state, dict) and kind is None:
        return DictComponent(name, state, sharing)
    return ValueComponent(name, state, sharing)


def _of_torch(
    name: str,
    state: object,
    sharing: AnySharing | None,
    modules: Mapping[str, torch.nn.Module],
) -> Component | None:
    """Return the component of an object of torch's own classes, None for others."""
    import torch

    if isinstance(state, torch.nn.Module):
        from stepseal.components._modules import ModuleComponent

        return ModuleComponent(name, state, sharing=sharing)
    if isinstance(state, torch.optim.Optimizer):
        from stepseal.components._optimizer_own import optimizer_component

        return optimizer_component(name, state, lambda: modules, sharing=sharing)
    # The base of all of torch's LR schedulers, ReduceLROnPlateau included.
    if isinstance(state, torch.optim.lr_scheduler.LRScheduler):
        return LRSchedulerComponent(name, state, sharing)
    return None


def _check_kind(name: str, state: object, kind: Kind | None, *, is_stateful: bool) -> None:
    tensors = (*class_of("torch.nn", "Module"), *class_of("torch.optim", "Optimizer"))
    if kind == "tree" and isinstance(state, tensors):
        raise InvalidInput(
            f"add({name!r}, kind='tree'): a module or optimizer is stored as tensors. Leave "
            "`kind` out, or add a (get, set) pair.",
            component=name,
        )
    if kind is not None and isinstance(state, External):
        raise InvalidInput(
            f"add({name!r}, kind={kind!r}): the files of an External are its own kind. Leave "
            "`kind` out.",
            component=name,
        )
    if kind == "tensors" and not is_stateful:
        raise InvalidInput(
            f"add({name!r}, kind='tensors'): expected a dict of tensors, a (get, set) "
            "pair, or an object with state_dict and load_state_dict, found "
            f"{type(state).__name__}. Leave `kind` out.",
            component=name,
        )
