"""Codecs of torch's values.

A leaf is copied to the CPU in C order. A dense tensor with permuted dims (channels_last, Fortran
order) gets its memory order back; any other stride pattern comes back contiguous.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import torch

from stepseal.components._codecs_core import Codec, Decoder, Encoder
from stepseal.layout import ITEMSIZE, TO_SAFETENSORS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "TORCH_VALUES",
    "decode_device",
    "decode_order",
    "dense_order",
    "is_native",
    "own_memory",
    "tensor_from_bytes",
    "torch_name",
]

OWN_BELOW_BYTES = 1 << 20
"""Smaller leaves are copied out of the buffer that they were read into, so that it can go."""

_DEVICE = re.compile(r"[a-z]{1,16}(:[0-9]{1,4})?", re.ASCII)
_DTYPES = {
    name: dtype for name in ITEMSIZE if isinstance(dtype := getattr(torch, name, None), torch.dtype)
}
_ALL_DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
        address = torch.frombuffer(data, dtype=torch.uint8).data_ptr()
        if address % alignment == 0:
            return data
    return memoryview(bytearray(data))


def tensor_from_bytes(name: str, shape: Sequence[int], data: memoryview) -> torch.Tensor:
    """Return a contiguous CPU tensor with these bytes; the caller checked the size."""
    if not data:
        return torch.empty(tuple(shape), dtype=_DTYPES[name], device="cpu")
    flat = torch.frombuffer(own_memory(data, ITEMSIZE[name]), dtype=torch.uint8)
    return flat.view(_DTYPES[name]).view(tuple(shape))


def _encode_tensor(encoder: Encoder, value: torch.Tensor) -> object:
    name = torch_name(value.dtype)
    if name not in _DTYPES or value.layout is not torch.strided or value.is_nested or value.is_meta:
        raise encoder.refuse(
            "a dense tensor with data",
            f"{name}, {value.layout}, {value.device}{', nested' if value.is_nested else ''}",
            "Convert it in state_dict(), for example with to_dense() or dequantize()",
        )
    node: dict[str, object] = {"leaf": encoder.add_leaf(value)}
    if not is_native(name):
        node |= {"dtype": name, "shape": list(value.shape)}
    if value.device.type != "cpu":
        node["device"] = str(value.device)
    if value.requires_grad:
        node["requires_grad"] = True
    if type(value) is torch.nn.Parameter:
        node["parameter"] = True
    order = None if value.is_contiguous() else dense_order(value.shape, value.stride())
    if order is not None:
        node["order"] = order
    return {"$tensor": node}


_TENSOR_FIELDS: dict[str, type] = {
    "dtype": str,
    "shape": list,
    "device": str,
    "requires_grad": bool,
    "parameter": bool,
    "order": list,
}


def _decode_tensor(decoder: Decoder, payload: object) -> torch.Tensor:
    fields = decoder.fields(payload, {"leaf": str}, _TENSOR_FIELDS)
    name, shape, data = decoder.take_leaf(fields["leaf"])
    if "dtype" in fields or "shape" in fields:
        name, shape = _raw_kind(decoder, fields, (name, shape), len(data))
    if name not in _DTYPES:
        raise decoder.mismatch(
            "a dtype that this torch has", name, "Use the version of torch that saved it"
        )
    tensor = tensor_from_bytes(name, shape, data)
    if "order" in fields:
        order, inverse = decode_order(decoder, fields["order"], tensor.ndim)
        carrier = _SAME_SIZE.get(tensor.element_size(), tensor.dtype)
        dense = tensor.view(carrier).permute(order).contiguous()
        tensor = dense.view(tensor.dtype).permute(inverse)
    grad = fields.get("requires_grad", False)
    if grad and not (tensor.is_floating_point() or tensor.is_complex()):
        raise decoder.corrupt("a floating dtype where requires_grad is set", name)
    if fields.get("parameter", False):
        return torch.nn.Parameter(tensor, requires_grad=grad)
    return tensor.requires_grad_(grad)


def _raw_kind(
    decoder: Decoder, fields: dict[str, Any], stored: tuple[str, tuple[int, ...]], size_bytes: int
) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape of a tensor whose leaf is flat uint8."""
    name, sizes = fields.get("dtype", ""), decoder.sizes(fields.get("shape"))
    if name not in ITEMSIZE or is_native(name) or stored != ("uint8", (size_bytes,)):
        raise decoder.corrupt("a dtype over a flat leaf of uint8", f"{name} over {stored}")
    if math.prod(sizes) * ITEMSIZE[name] != size_bytes:
        raise decoder.corrupt(f"{size_bytes} bytes", f"{name} of shape {sizes}")
    return name, sizes


def _decode_dtype(decoder: Decoder, payload: object) -> torch.dtype:
    if isinstance(payload, str) and payload in _ALL_DTYPES:
        return _ALL_DTYPES[payload]
    raise decoder.corrupt("the name of a torch dtype", payload)


def decode_device(decoder: Decoder, payload: object) -> torch.device:
    """Return the device of this name, whether or not this machine has it."""
    if isinstance(payload, str) and _DEVICE.fullmatch(payload):
        try:
            return torch.device(payload)
        except RuntimeError:
            pass
    raise decoder.corrupt("the name of a device", payload)


TORCH_VALUES: tuple[Codec, ...] = (
    Codec("$tensor", (torch.Tensor, torch.nn.Parameter), _encode_tensor, _decode_tensor),
    Codec(
        "$size",
        (torch.Size,),
        lambda _, value: {"$size": list(map(int, value))},
        lambda decoder, node: torch.Size(decoder.sizes(node)),
        key=True,
    ),
    Codec(
        "$dtype", (torch.dtype,), lambda _, v: {"$dtype": torch_name(v)}, _decode_dtype, key=True
    ),
    Codec(
        "$device",
        (torch.device,),
        lambda _, value: {"$device": str(value)},
        decode_device,
        key=True,
    ),
)
