"""Codecs of Python's scalars, bit for bit: None, numbers, str, bytes and bytearray."""

from __future__ import annotations

import base64
import math
import re
import struct
from typing import TYPE_CHECKING, Any

from stepseal.components._codecs_core import Codec, Decoder, Encoder
from stepseal.components._codecs_words import MAX_PLAIN_INT

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["INLINE_BYTES", "SCALARS", "is_plain_text"]

INLINE_BYTES = 4096
"""Longest bytes value that stands in the document as base64; longer ones are array leaves."""

_MAX_DIGITS = 4096
_DECIMAL = re.compile(r"-?[1-9][0-9]*", re.ASCII)
_NAN_BITS = re.compile(r"0x[0-9a-f]{16}", re.ASCII)
_NAMED = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_NAME_OF_BITS = {struct.pack(">d", value): name for name, value in _NAMED.items()}


def _encode_int(encoder: Encoder, value: int) -> object:
    if -MAX_PLAIN_INT <= value <= MAX_PLAIN_INT:
        return value
    if value.bit_length() <= _MAX_DIGITS * 3:  # 3 bits make less than a digit
        return {"$int": str(value)}
    raise encoder.refuse(
        f"an int of at most {_MAX_DIGITS * 3} bits",
        f"{value.bit_length()} bits",
        "Store it as bytes",
    )


def _decode_int(decoder: Decoder, payload: object) -> int:
    if type(payload) is not str or len(payload) > _MAX_DIGITS or not _DECIMAL.fullmatch(payload):
        raise decoder.corrupt(f"at most {_MAX_DIGITS} decimal digits under $int", payload)
    value = int(payload)
    if -MAX_PLAIN_INT <= value <= MAX_PLAIN_INT:
        raise decoder.corrupt("an int beyond 63 bits under $int", payload)
    return value


def _encode_float(encoder: Encoder, value: float) -> object:
    if math.isfinite(value):
        return value
    bits = struct.pack(">d", value)  # a NaN may have a payload or a sign
    return {"$float": _NAME_OF_BITS.get(bits) or f"0x{bits.hex()}"}


def _decode_float(decoder: Decoder, payload: object) -> float:
    if isinstance(payload, str) and payload in _NAMED:
        return _NAMED[payload]
    if isinstance(payload, str) and _NAN_BITS.fullmatch(payload):
        (value,) = struct.unpack(">d", bytes.fromhex(payload[2:]))
        if math.isnan(value):
            return float(value)
    raise decoder.corrupt("nan, inf, -inf or the bits of a NaN under $float", payload)


def _encode_complex(encoder: Encoder, value: complex) -> object:
    return {"$complex": [_encode_float(encoder, value.real), _encode_float(encoder, value.imag)]}


def _decode_complex(decoder: Decoder, payload: object) -> complex:
    if type(payload) is list and len(payload) == 2:
        real, imag = (decoder.child(part, ("[", index)) for index, part in enumerate(payload))
        if type(real) is float and type(imag) is float:
            return complex(real, imag)
    raise decoder.corrupt("two floats under $complex", payload)


def is_plain_text(value: str) -> bool:
    """Return whether a str can stand in JSON as it is: it has no lone surrogates."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encode_str(encoder: Encoder, value: str) -> object:
    if is_plain_text(value):
        return value
    return {"$str": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}


def _decode_str(decoder: Decoder, payload: Any) -> str:  # noqa: ANN401 - any JSON
    try:
        return base64.b64decode(payload, validate=True).decode("utf-8", "surrogatepass")
    except (ValueError, TypeError):
        raise decoder.corrupt("base64 of UTF-8 under $str", payload) from None


def _encode_bytes(tag: str) -> Callable[[Encoder, bytes | bytearray], object]:
    def encode(encoder: Encoder, value: bytes | bytearray) -> object:
        if len(value) <= INLINE_BYTES or encoder.in_key:
            return {tag: base64.b64encode(value).decode()}
        # A bytearray may change after the capture, and the leaf is copied only at its end.
        return {tag: {"leaf": encoder.add_leaf(bytes(value))}}

    return encode


def _decode_bytes(make: type[Any]) -> Callable[[Decoder, Any], object]:
    def decode(decoder: Decoder, payload: Any) -> object:  # noqa: ANN401 - any JSON
        if type(payload) is dict:
            return make(decoder.flat_leaf(decoder.fields(payload, {"leaf": str})["leaf"], "uint8"))
        try:
            return make(base64.b64decode(payload, validate=True))
        except (ValueError, TypeError):
            raise decoder.corrupt("base64 or a leaf", payload) from None

    return decode


SCALARS: tuple[Codec, ...] = (
    Codec(None, (type(None), bool), lambda _, value: value, key=True),
    Codec("$int", (int,), _encode_int, _decode_int, key=True),
    Codec("$float", (float,), _encode_float, _decode_float, key=True),
    Codec("$complex", (complex,), _encode_complex, _decode_complex, key=True),
    Codec("$str", (str,), _encode_str, _decode_str, key=True),
    Codec("$bytes", (bytes,), _encode_bytes("$bytes"), _decode_bytes(bytes), key=True),
    Codec("$bytearray", (bytearray,), _encode_bytes("$bytearray"), _decode_bytes(bytearray)),
)
