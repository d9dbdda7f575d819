"""Codecs of torch's values. Loads torch, and is loaded where a tensor or a tag of one is met.

A leaf is copied to the CPU in C order. A dense tensor with permuted dims (channels_last, Fortran
order) gets its memory order back; any other stride pattern comes back contiguous.
"""

from __future__ import annotations

import math
import re
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch

from stepseal.components._codecs_arrays import (
    decode_order,
    dense_order,
    is_native,
    own_memory,
    torch_name,
)
from stepseal.components._codecs_core import Codec, Decoder, Encoder
from stepseal.components._codecs_random import set_or_corrupt
from stepseal.components._live_data import carriers
from stepseal.components._stacks import Stack
from stepseal.layout import ITEMSIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TORCH_CODECS", "stack_of_tensors", "tensor_from_bytes"]

_DEVICE = re.compile(r"[a-z]{1,16}(:[0-9]{1,4})?", re.ASCII)
_DTYPES = {
    name: dtype for name in ITEMSIZE if isinstance(dtype := getattr(torch, name, None), torch.dtype)
}
_ALL_DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}


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
        carrier = carriers().get(tensor.element_size(), tensor.dtype)
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


def _decode_device(decoder: Decoder, payload: object) -> torch.device:
    """Return the device of this name, whether or not this machine has it."""
    if isinstance(payload, str) and _DEVICE.fullmatch(payload):
        try:
            return torch.device(payload)
        except RuntimeError:
            pass
    raise decoder.corrupt("the name of a device", payload)


def _encode_torch_generator(encoder: Encoder, value: torch.Generator) -> object:
    state = encoder.child(value.get_state(), (".", "state"), 2)
    return {"$torch_generator": {"device": str(value.device), "state": state}}


def _decode_torch_generator(decoder: Decoder, payload: object) -> torch.Generator:
    fields = decoder.fields(payload, {"device": str, "state": object})
    device = _decode_device(decoder, fields["device"])
    state = decoder.child(fields["state"], (".", "state"))
    try:
        generator = torch.Generator(device)
    except (RuntimeError, AssertionError):
        raise decoder.mismatch(
            f"a device {device} for a generator",
            "none on this machine",
            "Restore on such a machine",
        ) from None
    return set_or_corrupt(decoder, generator, generator.set_state, state)


def stack_of_tensors(items: Sequence[torch.Tensor], max_bytes: int) -> Stack | None:
    """Return tensors as a stack, or None where they are not alike or larger than a bound."""
    first = items[0]
    name = torch_name(first.dtype)
    if not is_native(name) or not 0 < first.nbytes <= max_bytes or first.is_meta:
        return None
    device = "is_cpu" if first.is_cpu else "device"
    for fact in ("dtype", "shape", device, "layout", "requires_grad"):
        if len(set(map(attrgetter(fact), items))) > 1:
            return None
    alike = (
        first.layout is torch.strided
        and not first.requires_grad
        and first.device.type in ("cpu", "cuda")
        # Tensors of two dims or more come back in their own memory order.
        and (first.ndim < 2 or all(map(torch.Tensor.is_contiguous, items)))
    )
    return Stack("tensor", items, name, first.shape) if alike else None


TORCH_CODECS: tuple[Codec, ...] = (
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
        _decode_device,
        key=True,
    ),
    Codec("$torch_generator", (torch.Generator,), _encode_torch_generator, _decode_torch_generator),
)
