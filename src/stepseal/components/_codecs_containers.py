"""Codecs of Python's containers. The order of a dict is kept; the order of a set is not.

A dict whose keys are plain strings stands as a JSON object. Stored documents have sorted keys, so
any other order is kept under `$keys`; all other dicts are lists of pairs under `$dict`. Long
sequences of numbers are array leaves.
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING, Any

from stepseal.components._codecs_columns import ALIKE_FROM, encode_alike
from stepseal.components._codecs_core import Codec, Decoder, Encoder
from stepseal.components._codecs_scalars import is_plain_text
from stepseal.components._codecs_words import MAX_PLAIN_INT, qualified

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    _Encode: TypeAlias = Callable[[Encoder, Any], object]
    _Decode: TypeAlias = Callable[[Decoder, Any], object]
    _Sequence: TypeAlias = list[Any] | tuple[Any, ...] | deque[Any]

__all__ = ["CONTAINERS", "encode_items"]

_FACTORIES: Mapping[str, type] = {
    cls.__name__: cls
    for cls in (int, float, complex, bool, str, bytes, list, tuple, dict, set, frozenset)
}
_LIST_TAGS = {"$numbers", "$records", "$stack"}
_TYPECODES = {"int": "q", "float": "d"}

LEAF_NUMBERS = 10_000
"""Shortest sequence of only ints or only floats that is stored as an array leaf."""


def _encode_sequence(encoder: Encoder, value: _Sequence, levels: int = 1) -> object:
    if not encoder.has_room(levels):  # says so, unless it is empty
        return [encoder.child(item, ("[", index), levels) for index, item in enumerate(value)]
    kind = _number_kind(value)
    if kind in _TYPECODES and len(value) >= LEAF_NUMBERS and not encoder.in_key:
        leaf = encoder.add_leaf(array(_TYPECODES[kind], value))
        return {"$numbers": {"leaf": leaf}}
    if kind == "int" or (kind == "float" and all(map(math.isfinite, value))):
        return list(value)
    if all(map(_is_plain, value)):
        return list(value)
    if len(value) >= ALIKE_FROM and encoder.by_columns and not encoder.in_key:
        node = encoder.attempt(lambda: encode_alike(encoder, value, levels))
        if node is not None:
            return node
    return [encoder.child(item, ("[", index), levels) for index, item in enumerate(value)]


def _number_kind(value: _Sequence) -> str | None:
    """Return `int` or `float` where all items are that and fit 63 bits; keeps long lists cheap."""
    kinds = set(map(type, value))
    if kinds == {int} and min(value) >= -MAX_PLAIN_INT and max(value) <= MAX_PLAIN_INT:
        return "int"
    return "float" if kinds == {float} else None


def _is_plain(value: object) -> bool:
    """Return whether a value of its exact type stands for itself in a document."""
    kind = type(value)
    if kind is str:
        return is_plain_text(value)  # type: ignore[arg-type]
    if kind is float:
        return math.isfinite(value)  # type: ignore[arg-type]
    if kind is int:
        return -MAX_PLAIN_INT <= value <= MAX_PLAIN_INT  # type: ignore[operator]
    return value is None


def _decode_numbers(decoder: Decoder, payload: object) -> list[Any]:
    dtype, shape, data = decoder.take_leaf(decoder.fields(payload, {"leaf": str})["leaf"])
    code = "q" if dtype == "int64" else "d"
    if dtype not in ("int64", "float64") or len(shape) != 1:
        raise decoder.corrupt("a flat leaf of int64 or float64", f"{dtype} of shape {shape}")
    numbers = array(code)
    numbers.frombytes(data)
    return numbers.tolist()


def _decode_list(decoder: Decoder, payload: object) -> list[Any]:
    if type(payload) is list or (type(payload) is dict and set(payload) <= _LIST_TAGS):
        value = decoder.decode(payload)
        if type(value) is list:
            return value
    raise decoder.corrupt("a list", payload)


def encode_items(
    encoder: Encoder, value: Mapping[Any, object], levels: int = 0
) -> dict[str, object]:
    """Return the dict node of a mapping; the node itself stands `levels` below the present one."""
    keys = list(value)
    if not all(type(key) is str and not key.startswith("$") and is_plain_text(key) for key in keys):
        encoder.check_hashes(keys)
        pairs = [
            [
                encoder.key(key, ("[", key), levels + 3),
                encoder.child(item, ("[", key), levels + 3),
            ]
            for key, item in value.items()
        ]
        return {"$dict": pairs}
    node = {key: encoder.child(item, ("[", key), levels + 1) for key, item in value.items()}
    if keys != sorted(keys):
        node["$keys"] = keys
    return node


def _tagged_items(tag: str) -> _Encode:
    return lambda encoder, value: {tag: encode_items(encoder, value, 1)}


def _encode_defaultdict(encoder: Encoder, value: defaultdict[Any, object]) -> object:
    factory = value.default_factory
    name = None if factory is None else getattr(factory, "__name__", "")
    if name is not None and _FACTORIES.get(name) is not factory:
        raise encoder.refuse(
            f"a defaultdict with a factory of {sorted(_FACTORIES)}",
            qualified(factory) if isinstance(factory, type) else repr(factory),
            "Use one of these, or save dict(value)",
        )
    return {"$defaultdict": {"factory": name, "items": encode_items(encoder, value, 2)}}


def _decode_defaultdict(decoder: Decoder, payload: object) -> defaultdict[Any, Any]:
    fields = decoder.fields(payload, {"factory": object, "items": dict})
    name = fields["factory"]
    if name is not None and (not isinstance(name, str) or name not in _FACTORIES):
        raise decoder.corrupt(f"a factory of {sorted(_FACTORIES)}", name)
    return defaultdict(None if name is None else _FACTORIES[name], decoder.items(fields["items"]))


def _encode_set(tag: str) -> _Encode:
    def encode(encoder: Encoder, value: set[object] | frozenset[object]) -> object:
        encoder.check_hashes(value)
        nodes = [encoder.key(item, ("*", None), 2) for item in value]
        # Iteration order differs between processes; equal sets make equal documents.
        return {tag: sorted(nodes, key=lambda node: json.dumps(node, sort_keys=True))}

    return encode


def _decode_set(make: type[Any]) -> _Decode:
    return lambda decoder, nodes: make(decoder.hashables(nodes))


def _encode_deque(encoder: Encoder, value: deque[object]) -> object:
    return {"$deque": {"items": _encode_sequence(encoder, value, 3), "maxlen": value.maxlen}}


def _decode_deque(decoder: Decoder, payload: object) -> deque[Any]:
    fields = decoder.fields(payload, {"items": object, "maxlen": object})
    maxlen, items = fields["maxlen"], _decode_list(decoder, fields["items"])
    if maxlen is None:
        return deque(items)
    if type(maxlen) is not int or not len(items) <= maxlen <= MAX_PLAIN_INT:
        raise decoder.corrupt(f"a maxlen of at least {len(items)}", maxlen)
    return deque(items, maxlen)


def _from_items(make: Callable[[Any], object]) -> _Decode:
    return lambda decoder, node: make(decoder.items(node))


def _encode_tuple(encoder: Encoder, value: tuple[object, ...]) -> object:
    return {"$tuple": _encode_sequence(encoder, value, 2)}


_TABLE: tuple[tuple[str, type, _Encode, _Decode], ...] = (
    ("$numbers", list, _encode_sequence, _decode_numbers),
    ("$tuple", tuple, _encode_tuple, lambda decoder, node: tuple(_decode_list(decoder, node))),
    ("$dict", dict, encode_items, lambda decoder, node: dict(decoder.items({"$dict": node}))),
    ("$odict", OrderedDict, _tagged_items("$odict"), _from_items(OrderedDict)),
    ("$counter", Counter, _tagged_items("$counter"), _from_items(lambda i: Counter(dict(i)))),
    ("$defaultdict", defaultdict, _encode_defaultdict, _decode_defaultdict),
    ("$set", set, _encode_set("$set"), _decode_set(set)),
    ("$frozenset", frozenset, _encode_set("$frozenset"), _decode_set(frozenset)),
    ("$deque", deque, _encode_deque, _decode_deque),
)
CONTAINERS: tuple[Codec, ...] = tuple(
    Codec(tag, (cls,), encode, decode, nested=True, key=cls in (tuple, frozenset))
    for tag, cls, encode, decode in _TABLE
)
