"""Codecs of long sequences whose items are alike: a leaf of all of them, or a column per field.

A replay buffer is a list of some ten thousand dicts with the same keys. Item by item it would make
a node for each value and a leaf for each tensor; by columns it makes a few leaves.
"""

from __future__ import annotations

import sys
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

from stepseal.components._codecs_arrays import is_native
from stepseal.components._codecs_core import Codec, Decoder, Encoder
from stepseal.components._codecs_numpy import dtype_of_native, native_name, require_numpy
from stepseal.components._codecs_registry import record_fields, record_maker
from stepseal.components._codecs_scalars import is_plain_text
from stepseal.components._stacks import Stack
from stepseal.components._torch_in_use import class_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ALIKE_FROM", "COLUMNS", "encode_alike"]

ALIKE_FROM = 1000
"""Shortest sequence that is looked at as a whole."""

_MAX_ITEM_BYTES = 64 << 10
"""Larger items are leaves of their own; those of a stack are copied one by one at a restore."""

_contiguous = attrgetter("flags.c_contiguous")


def encode_alike(encoder: Encoder, value: Sequence[Any], levels: int) -> object | None:
    """Return the node of a long list whose items are alike, None where they are not.

    Args:
        encoder: the walk.
        value: at least `ALIKE_FROM` items.
        levels: how far below the present node the items of a plain list would stand.
    """
    kinds = set(map(type, value))
    if len(kinds) > 1:
        return None
    (kind,) = kinds
    items = list(value)
    stack = _stack_of(kind, items)
    if stack is not None:
        encoder.num_made += 0 if kind is bool else len(items)
        return {"$stack": {"leaf": encoder.add_leaf(stack), "of": stack.of}}
    found = _columns(kind, items)
    if found is None:
        return None
    node, names, columns = found
    encoder.num_made += len(items)
    node["columns"] = [
        encoder.child(column, ("[", name), levels + 2)
        for name, column in zip(names, columns, strict=True)
    ]
    return {"$records": node}


def _stack_of(kind: type, items: Sequence[Any]) -> Stack | None:
    """Return items of one type as a stack, or None where they are not alike or not small."""
    if kind is bool:
        return Stack("bool", items, "bool", ())
    if kind in class_of("torch", "Tensor"):
        from stepseal.components._codecs_tensors import stack_of_tensors

        return stack_of_tensors(items, _MAX_ITEM_BYTES)
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if kind is numpy.ndarray:
        return _arrays(items)
    if issubclass(kind, numpy.generic) and items[0].dtype.kind in "biufc":
        name = native_name(items[0])
        return None if name is None else Stack("scalar", items, name, ())
    return None


def _arrays(items: Sequence[Any]) -> Stack | None:
    first = items[0]
    name = native_name(first)
    if name is None or not 0 < first.nbytes <= _MAX_ITEM_BYTES or first.dtype.metadata:
        return None
    # The very same dtype: equal ones may differ in their metadata.
    same = len({id(item.dtype) for item in items}) == 1
    if same and len(set(map(attrgetter("shape"), items))) == 1 and all(map(_contiguous, items)):
        return Stack("ndarray", items, name, first.shape)
    return None


def _columns(
    kind: type, items: list[Any]
) -> tuple[dict[str, object], Sequence[object], list[list[Any]]] | None:
    """Return the node without its columns, the names of the columns, and what is in them."""
    first = items[0]
    if kind is dict:
        keys = tuple(first)
        if not keys or not all(type(key) is str and is_plain_text(key) for key in keys):
            return None
        if not all(map(keys.__eq__, map(tuple, items))):
            return None
        node: dict[str, object] = {"of": "dict", "keys": list(keys)}
        return node, keys, [list(map(itemgetter(key), items)) for key in keys]
    if kind in (tuple, list):
        if not first or len(set(map(len, items))) > 1:
            return None
        order = range(len(first))
        return {"of": kind.__name__}, order, [list(map(itemgetter(i), items)) for i in order]
    known = record_fields(kind)
    if known is None:
        return None
    label, names = known
    expected = dict.fromkeys(names).keys()
    try:
        if any(vars(item).keys() != expected for item in items if hasattr(item, "__dict__")):
            return None
        columns = [list(map(attrgetter(name), items)) for name in names]
    except AttributeError:
        return None  # a field is not set: the plain way says which
    return {"of": "object", "type": label, "keys": list(names)}, names, columns


def _decode_stack(decoder: Decoder, payload: object) -> list[Any]:
    fields = decoder.fields(payload, {"leaf": str, "of": str})
    name, shape, data = decoder.take_leaf(fields["leaf"])
    of, flat = fields["of"], len(shape) == 1
    if not shape or not data or not is_native(name):
        raise decoder.corrupt("a leaf of items with data", f"{name} of shape {shape}")
    if of == "bool" and flat and name == "bool":
        return list(map(bool, data))
    decoder.count_made(shape[0])
    if of == "tensor":
        from stepseal.components._codecs_tensors import tensor_from_bytes

        # Each owns its memory, so that one that is kept does not keep all of them.
        return [row.clone() for row in tensor_from_bytes(name, shape, data).unbind(0)]
    dtype = dtype_of_native(name)
    if of not in ("ndarray", "scalar") or dtype is None or (of == "scalar" and not flat):
        raise decoder.corrupt("a stack of tensors, arrays, scalars or bools", f"{of} of {name}")
    whole = require_numpy(decoder).ndarray(shape, dtype, buffer=bytearray(data))
    return list(whole) if of == "scalar" else [whole[i, ...].copy() for i in range(shape[0])]


def _decode_records(decoder: Decoder, payload: object) -> list[Any]:
    required = {"of": str, "columns": list}
    fields = decoder.fields(payload, required, {"keys": list, "type": str})
    of, keys, nodes = fields["of"], fields.get("keys"), fields["columns"]
    named = of in ("dict", "object")
    if (keys is None) is named or ("type" in fields) is not (of == "object"):
        raise decoder.corrupt("records with the fields of their kind", sorted(fields))
    if keys is None:
        keys = list(range(len(nodes)))
    elif any(type(key) is not str for key in keys) or len(set(keys)) != len(keys):
        raise decoder.corrupt("a list of different keys", keys)
    if not nodes or len(nodes) != len(keys):
        raise decoder.corrupt("a column for each key, and at least one", f"{len(nodes)} columns")
    columns = [decoder.child(node, ("[", key)) for key, node in zip(keys, nodes, strict=True)]
    if any(type(c) is not list or len(c) != len(columns[0]) for c in columns):  # type: ignore[arg-type]
        raise decoder.corrupt("columns that are lists of one length", of)
    decoder.count_made(len(columns[0]))  # type: ignore[arg-type]
    make = _maker(decoder, of, keys, fields.get("type"))
    return [make(row) for row in zip(*columns, strict=True)]


def _maker(
    decoder: Decoder, of: str, keys: list[Any], label: str | None
) -> Callable[[tuple[Any, ...]], object]:
    if of == "dict":
        return lambda row: dict(zip(keys, row, strict=True))
    if of == "object":
        return record_maker(decoder, label, keys)
    if of not in ("tuple", "list"):
        raise decoder.corrupt("records of a kind that this release knows", of)
    return tuple if of == "tuple" else list


COLUMNS: tuple[Codec, ...] = (
    Codec("$stack", (), lambda encoder, value: None, _decode_stack),
    Codec("$records", (), lambda encoder, value: None, _decode_records),
)
