"""Registered tensor classes that wrap other tensors, by torch's own `__tensor_flatten__` pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepseal.components._torch_in_use import class_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.components._codecs_core import Decoder, Encoder

__all__ = ["encode_wrapper", "is_wrapper", "wrapper_decoder"]


def is_wrapper(cls: type) -> bool:
    """Return whether a class is a tensor that torch can take apart and put together."""
    return issubclass(cls, class_of("torch", "Tensor")) and hasattr(cls, "__tensor_unflatten__")


def encode_wrapper(encoder: Encoder, value: Any) -> object:  # noqa: ANN401 - a tensor
    """Return the node of a wrapper: its inner tensors, and what else torch needs."""
    names, context = value.__tensor_flatten__()
    inner = {name: getattr(value, name) for name in names}
    state = [inner, context, list(value.shape), list(value.stride())]
    return encoder.child(state, (".", "state"), 2)


def wrapper_decoder(cls: Any) -> Callable[[Decoder, Any], object]:  # noqa: ANN401 - a tensor class
    """Return what makes a wrapper of a class out of its node."""

    def decode(decoder: Decoder, node: object) -> object:
        state: Any = decoder.child(node, (".", "state"))
        try:
            inner, context, shape, strides = state
            made: object = cls.__tensor_unflatten__(inner, context, tuple(shape), tuple(strides))
        except Exception as error:
            raise decoder.mismatch(
                f"what __tensor_flatten__ of {cls.__qualname__} gave",
                f"{type(error).__name__}: {error}",
                "Use the code that saved this step",
            ) from error
        return made

    return decode
