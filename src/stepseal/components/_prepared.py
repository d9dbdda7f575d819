"""What Accelerate's `prepare` returns, told by the classes that it defines; imports nothing of it.

Its optimizer and LR scheduler are thin wrappers without state of their own, so what is saved is the
object inside. Its data loaders have state of their own: see `_prepared_loaders`.
"""

from __future__ import annotations

from typing import Any

from stepseal.components._torch_in_use import class_of
from stepseal.errors import InvalidInput

__all__ = ["inner_loader", "is_prepared_loader", "scaler_of", "unwrapped"]


def unwrapped(name: str, state: Any) -> Any:  # noqa: ANN401 - whatever was added
    """Return the optimizer or LR scheduler that Accelerate wrapped; all else as it is.

    Raises:
        InvalidInput: the optimizer of an engine, whose state is elsewhere.
    """
    wrapper = class_of("accelerate.optimizer", "AcceleratedOptimizer")
    if isinstance(state, wrapper):
        inner: Any = state.optimizer
        known = class_of("torch.optim", "Optimizer")
        if type(state) not in wrapper or not isinstance(inner, known):
            raise InvalidInput(
                f"add({name!r}): expected an optimizer that Accelerate steps itself, found "
                f"{type(state).__qualname__}, whose engine holds the state. Let the engine write "
                "its own files.",
                component=name,
                found=type(state).__qualname__,
            )
        return inner
    if isinstance(state, class_of("accelerate.scheduler", "AcceleratedScheduler")):
        inner, known = state.scheduler, class_of("torch.optim.lr_scheduler", "LRScheduler")
        return inner if isinstance(inner, known) else state
    return state


def scaler_of(state: object) -> object:
    """Return the gradient scaler that a prepared optimizer steps with, None if there is none."""
    if not isinstance(state, class_of("accelerate.optimizer", "AcceleratedOptimizer")):
        return None
    scaler: Any = getattr(state, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def is_prepared_loader(loader: object) -> bool:
    """Tell whether a loader is one of Accelerate's, around a loader of torch or torchdata."""
    return isinstance(loader, class_of("accelerate.data_loader", "DataLoaderAdapter"))


def inner_loader(loader: Any) -> Any:  # noqa: ANN401 - whatever is iterated
    """Return the loader that knows the position: the one inside, if Accelerate prepared it."""
    return loader.base_dataloader if is_prepared_loader(loader) else loader
