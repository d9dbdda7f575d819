"""Names and sizes of torch dtypes, and their names in safetensors files.

Tables only; nothing here imports torch. Quantized types are absent, because raw bytes do not hold
the quantizer of a tensor.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FROM_SAFETENSORS", "ITEMSIZE", "TO_SAFETENSORS"]

_TABLE: dict[str, tuple[int, str | None]] = {
    "bool": (1, "BOOL"),
    "uint8": (1, "U8"),
    "uint16": (2, "U16"),
    "uint32": (4, "U32"),
    "uint64": (8, "U64"),
    "int8": (1, "I8"),
    "int16": (2, "I16"),
    "int32": (4, "I32"),
    "int64": (8, "I64"),
    "float16": (2, "F16"),
    "bfloat16": (2, "BF16"),
    "float32": (4, "F32"),
    "float64": (8, "F64"),
    "complex32": (4, None),
    "complex64": (8, "C64"),
    "complex128": (16, None),
    "float8_e4m3fn": (1, "F8_E4M3"),
    "float8_e4m3fnuz": (1, "F8_E4M3FNUZ"),
    "float8_e5m2": (1, "F8_E5M2"),
    "float8_e5m2fnuz": (1, "F8_E5M2FNUZ"),
    "float8_e8m0fnu": (1, "F8_E8M0"),
    # safetensors counts the halves of an element (`F4`), torch the pairs; the shapes would differ.
    "float4_e2m1fn_x2": (1, None),
    "bits8": (1, None),
    "bits16": (2, None),
    "bits1x8": (1, None),
    "bits2x4": (1, None),
    "bits4x2": (1, None),
    **{f"{sign}int{bits}": (1, None) for sign in ("", "u") for bits in range(1, 8)},
}

ITEMSIZE: Mapping[str, int] = MappingProxyType({name: size for name, (size, _) in _TABLE.items()})
"""Bytes per element, by torch dtype name without the `torch.` prefix."""

TO_SAFETENSORS: Mapping[str, str | None] = MappingProxyType(
    {name: other for name, (_, other) in _TABLE.items()}
)
"""Torch dtype name to its name in a safetensors header; None if the format lacks the type."""

FROM_SAFETENSORS: Mapping[str, str] = MappingProxyType(
    {other: name for name, (_, other) in _TABLE.items() if other is not None}
)
"""Name in a safetensors header to the torch dtype name."""
