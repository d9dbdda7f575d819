"""What codecs of tensors and of NumPy's arrays share: memory order, and memory of their own."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from stepseal.layout import TO_SAFETENSORS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from stepseal.components._codecs_core import Decoder

__all__ = ["decode_order", "dense_order", "is_native", "own_memory", "torch_name"]

OWN_BELOW_BYTES = 1 << 20
"""Smaller leaves are copied out of the buffer that they were read into, so that it can go."""


def torch_name(dtype: torch.dtype) -> str:
    """Return the name of a torch dtype without its module."""
    return str(dtype).removeprefix("torch.")


def is_native(name: str) -> bool:
    """Return whether segments have this dtype; others are stored as flat uint8."""
    return TO_SAFETENSORS.get(name) is not None


def dense_order(shape: Sequence[int], strides: Sequence[int]) -> list[int] | None:
    """Return the dims from outermost to innermost in memory; None for C order or holes.

    Args:
        shape: size per dim, in elements.
        strides: distance per dim, in elements.
    """
    order = sorted(range(len(shape)), key=lambda dim: (-strides[dim], dim))
    expected = 1
    for dim in reversed(order):
        if shape[dim] != 1 and strides[dim] != expected:
            return None
        expected *= shape[dim]
    return None if order == sorted(order) or expected == 0 else order


def decode_order(decoder: Decoder, order: object, ndim: int) -> tuple[list[int], list[int]]:
    """Return a checked memory order and its inverse."""
    if (
        type(order) is not list
        or any(type(dim) is not int for dim in order)
        or sorted(order) != list(range(ndim))
    ):
        raise decoder.corrupt(f"an order of {ndim} dims", order)
    return order, sorted(range(ndim), key=order.__getitem__)


def own_memory(data: memoryview, alignment: int) -> memoryview:
    """Return writable memory with these bytes for an array: `data` itself where it is large."""
    if not data.readonly and len(data) >= OWN_BELOW_BYTES:
        address = ctypes.addressof(ctypes.c_ubyte.from_buffer(data))
        if address % alignment == 0:
            return data
    return memoryview(bytearray(data))
