"""What can be asked of torch without importing it: no object precedes the module of its class.

A process that owns only trees never loads torch. Where it is not loaded, no value is a tensor.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from typing_extensions import TypeIs

__all__ = ["class_of", "is_tensor", "outside_inference_mode", "torch_in_use"]


def torch_in_use() -> bool:
    """Return whether torch is loaded in this process."""
    return sys.modules.get("torch") is not None


def class_of(module: str, name: str) -> tuple[Any, ...]:
    """Return a class to look for with `isinstance`; none if its module was never imported."""
    found = getattr(sys.modules.get(module), name, None)
    return (found,) if isinstance(found, type) else ()


def is_tensor(value: object) -> TypeIs[torch.Tensor]:
    """Return whether a value is a tensor."""
    return isinstance(value, class_of("torch", "Tensor"))


def outside_inference_mode() -> AbstractContextManager[object]:
    """Return a context in which new tensors are ordinary ones, whatever the caller's mode is."""
    if torch_in_use():
        import torch

        if torch.is_inference_mode_enabled():
            return torch.inference_mode(mode=False)
    return contextlib.nullcontext()
