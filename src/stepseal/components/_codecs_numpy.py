"""Codecs of NumPy's arrays and scalars; NumPy is imported only where one is met.

Arrays with a dtype that segments know keep it; all others (other byte order, datetimes, texts,
structured types) are flat uint8 leaves beside their dtype. Object arrays are refused, because their
bytes are addresses.
"""

from __future__ import annotations

import math
import re
import warnings
from typing import TYPE_CHECKING, Any, cast

from stepseal.components._codecs_arrays import decode_order, dense_order, own_memory
from stepseal.components._codecs_core import Codec, Decoder, Encoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np

__all__ = ["NDARRAY", "SCALAR", "dtype_of_native", "native_name", "require_numpy"]

_NATIVE: Mapping[str, str] = {
    "|b1": "bool",
    "|u1": "uint8",
    "<u2": "uint16",
    "<u4": "uint32",
    "<u8": "uint64",
    "|i1": "int8",
    "<i2": "int16",
    "<i4": "int32",
    "<i8": "int64",
    "<f2": "float16",
    "<f4": "float32",
    "<f8": "float64",
    "<c8": "complex64",
}
_BY_NATIVE = {name: text for text, name in _NATIVE.items()}
_DTYPE = re.compile(r"[<>|][biufcSUV][0-9]{1,9}|[<>][mM]8(\[[0-9]{0,9}[a-zA-Z]{1,7}\])?", re.ASCII)
_MAX_DTYPE_DEPTH = 1
"""Records inside records, so that a document stays within its depth below `MAX_DEPTH`."""


def require_numpy(decoder: Decoder) -> Any:  # noqa: ANN401 - a module
    """Return NumPy, or raise StateMismatch where it is not installed."""
    try:
        import numpy as np
    except ImportError:
        raise decoder.mismatch("numpy to be installed", "no numpy", "Install numpy") from None
    return np


def native_name(array: np.ndarray[Any, Any]) -> str | None:
    """Return the torch name of an array's dtype, None where its bytes are stored as flat uint8."""
    return _NATIVE.get(array.dtype.str)


def dtype_of_native(name: str) -> str | None:
    """Return NumPy's text for the dtype with this torch name, None where it has none."""
    return _BY_NATIVE.get(name)


def _encode_dtype(encoder: Encoder, dtype: np.dtype[Any]) -> object:
    import numpy as np

    if not dtype.hasobject and dtype.itemsize:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dtype metadata: compared below
            descr = np.lib.format.dtype_to_descr(dtype)
        try:
            same = np.lib.format.descr_to_dtype(descr) == dtype and not dtype.metadata
        except (TypeError, ValueError):
            same = False
        parts = list(_simple_parts(descr, 0))
        if same and all(
            depth <= _MAX_DTYPE_DEPTH + 1 and _DTYPE.fullmatch(text) for text, depth in parts
        ):
            return _listed(descr)
    raise encoder.refuse(
        "an array of plain numbers, times, texts or records of these",
        f"dtype {dtype}",
        "Convert it in state_dict(), for example with tolist()",
    )


def _simple_parts(descr: str | list[tuple[Any, ...]], depth: int) -> Iterator[tuple[str, int]]:
    """Yield each simple type of a dtype, with the number of records around it."""
    if isinstance(descr, str):
        yield descr, depth
    else:
        for _, inner, *_ in descr:
            yield from _simple_parts(inner, depth + 1)


def _listed(descr: Any) -> object:  # noqa: ANN401 - numpy's own nested form
    return [_listed(part) for part in descr] if isinstance(descr, (list, tuple)) else descr


def _decode_dtype(decoder: Decoder, node: object) -> np.dtype[Any]:
    np = require_numpy(decoder)
    descr = _checked_descr(decoder, node, 0)
    try:
        dtype = np.lib.format.descr_to_dtype(descr)
    except (TypeError, ValueError) as error:
        raise decoder.corrupt("a dtype that this numpy knows", f"{node}: {error}") from None
    if dtype.hasobject or not dtype.itemsize:
        raise decoder.corrupt("a plain dtype", node)
    return dtype  # type: ignore[no-any-return]


def _checked_descr(decoder: Decoder, node: object, depth: int) -> object:
    """Return numpy's form of a dtype node; every simple type matches a fixed pattern."""
    if isinstance(node, str) and _DTYPE.fullmatch(node):
        return node
    if type(node) is not list or not node or depth > _MAX_DTYPE_DEPTH:
        raise decoder.corrupt("a plain dtype", node)
    fields = []
    for field in node:
        if type(field) is not list or not 2 <= len(field) <= 3 or type(field[0]) is not str:
            raise decoder.corrupt("a field of a dtype", field)
        shape = (decoder.sizes(field[2]),) if len(field) == 3 else ()
        fields.append((field[0], _checked_descr(decoder, field[1], depth + 1), *shape))
    return fields


def _encode_ndarray(encoder: Encoder, value: np.ndarray[Any, Any]) -> object:
    dtype = _encode_dtype(encoder, value.dtype)
    node: dict[str, object] = {"leaf": encoder.add_leaf(value), "dtype": dtype}
    if native_name(value) is None:
        node["shape"] = list(value.shape)
    order = None
    if (
        value.size
        and not value.flags.c_contiguous
        and all(step % value.itemsize == 0 for step in value.strides)
    ):
        order = dense_order(value.shape, [step // value.itemsize for step in value.strides])
    if order is not None:
        node["order"] = order
    return {"$ndarray": node}


def _decode_ndarray(decoder: Decoder, payload: object) -> np.ndarray[Any, Any]:
    fields = decoder.fields(payload, {"leaf": str, "dtype": object}, {"shape": list, "order": list})
    name, shape, data = decoder.take_leaf(fields["leaf"])
    np, dtype = require_numpy(decoder), _decode_dtype(decoder, fields["dtype"])
    if "shape" in fields:
        if name != "uint8" or len(shape) != 1:
            raise decoder.corrupt("a flat leaf of uint8", f"{name} of shape {shape}")
        shape = decoder.sizes(fields["shape"])
        if math.prod(shape) * dtype.itemsize != len(data):
            raise decoder.corrupt(f"{len(data)} bytes", f"{dtype} of shape {shape}")
    elif _NATIVE.get(dtype.str) != name:
        raise decoder.corrupt(f"a leaf of {dtype}", name)
    array = (
        np.ndarray(shape, dtype, buffer=own_memory(data, 16)) if data else np.zeros(shape, dtype)
    )
    if "order" in fields:
        order, inverse = decode_order(decoder, fields["order"], array.ndim)
        array = np.array(array.transpose(order), order="C").transpose(inverse)
    return array  # type: ignore[no-any-return]


def _encode_scalar(encoder: Encoder, value: np.generic[Any]) -> object:
    if value.dtype.kind in "SU":
        # NumPy's own conversions to str and bytes strip trailing zeros.
        is_text = isinstance(value, str)
        text = str.__str__(value) if is_text else bytes.__add__(b"", cast("bytes", value))
        return {"$scalar": {"dtype": value.dtype.kind, "value": encoder.encode(text)}}
    dtype = _encode_dtype(encoder, value.dtype)
    if value.dtype.kind in "biu" or (
        value.dtype.str in ("<f2", "<f4", "<f8") and math.isfinite(float(value))
    ):
        return {"$scalar": {"dtype": dtype, "value": encoder.encode(value.item())}}
    return {"$scalar": {"dtype": dtype, "hex": value.tobytes().hex()}}


def _decode_scalar(decoder: Decoder, payload: object) -> object:
    fields = decoder.fields(payload, {"dtype": object}, {"value": object, "hex": str})
    np, text = require_numpy(decoder), fields["dtype"] in ("S", "U")
    dtype = np.dtype(fields["dtype"]) if text else _decode_dtype(decoder, fields["dtype"])
    if not text and "hex" in fields and "value" not in fields:
        try:
            data = bytes.fromhex(fields["hex"])
        except ValueError:
            raise decoder.corrupt("hexadecimal digits", fields["hex"]) from None
        if len(data) != dtype.itemsize:
            raise decoder.corrupt(f"{dtype.itemsize} bytes", f"{len(data)}")
        return np.ndarray((), dtype, buffer=bytearray(data))[()]
    plain = decoder.decode(fields.get("value"))
    wanted = {"b": bool, "i": int, "u": int, "f": float, "U": str, "S": bytes}.get(dtype.kind)
    if wanted is None or type(plain) is not wanted:
        raise decoder.corrupt(f"a value of {dtype}", plain)
    try:
        return dtype.type(plain)
    except (OverflowError, ValueError):
        raise decoder.corrupt(f"a value of {dtype}", plain) from None


NDARRAY = Codec("$ndarray", (), _encode_ndarray, _decode_ndarray)
SCALAR = Codec("$scalar", (), _encode_scalar, _decode_scalar, key=True)
