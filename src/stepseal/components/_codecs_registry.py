"""Classes of the user that may stand in a state, each under a name given by the program.

A document holds such names only. A name that the running program has not registered is never looked
up anywhere else.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any, TypeVar, overload

from stepseal.components._codecs_core import Codec, Decoder, Encoder
from stepseal.components._codecs_words import describe, qualified
from stepseal.components._codecs_wrappers import encode_wrapper, is_wrapper, wrapper_decoder
from stepseal.errors import CheckpointError, InvalidInput, StateMismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "OBJECT",
    "find_registered",
    "record_fields",
    "record_maker",
    "register",
    "register_codec",
]

T = TypeVar("T")

_MAX_NAME = 200
_BUILTIN_DATA = (int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """One registered class."""

    cls: type
    name: str
    encode: Callable[[Encoder, Any], object]
    """Value to the node under `state`."""
    decode: Callable[[Decoder, Any], object]
    """Node under `state` to value."""
    key: bool
    fields: tuple[str, ...] = ()
    """Names of the fields of a dataclass or namedtuple, in order."""
    make: Callable[[Sequence[Any]], object] | None = None
    """Values of the fields to a value, for a dataclass or namedtuple."""


_BY_NAME: dict[str, _Entry] = {}
_BY_TYPE: dict[type, _Entry] = {}


@overload
def register(cls: type[T], *, name: str | None = None) -> type[T]: ...
@overload
def register(cls: None = None, *, name: str | None = None) -> Callable[[type[T]], type[T]]: ...
def register(
    cls: type[T] | None = None, *, name: str | None = None
) -> type[T] | Callable[[type[T]], type[T]]:
    """Let values of a dataclass, enum or namedtuple stand in a saved state; also a class decorator.

    A dataclass is restored field by field without `__init__` or `__post_init__`. A tensor class
    that wraps other tensors goes by `__tensor_flatten__` and `__tensor_unflatten__`.

    Args:
        cls: the class; its subclasses are not included.
        name: what documents call it, by default the class name; it must not change while
            checkpoints are in use.

    Raises:
        InvalidInput: another kind of class, or the name belongs to another class.
    """
    if cls is None:
        return lambda decorated: register(decorated, name=name)
    label = _checked_name(cls, name)
    if issubclass(cls, enum.Enum):
        entry = _Entry(cls, label, _encode_enum, _enum_decoder(cls), key=True)
    elif dataclasses.is_dataclass(cls) and not issubclass(cls, _BUILTIN_DATA):
        names = tuple(field.name for field in dataclasses.fields(cls))
        make = _dataclass_maker(cls, names)
        decode = _fields_decoder(cls, names, make)
        entry = _Entry(cls, label, _encode_dataclass, decode, True, names, make)
    elif issubclass(cls, tuple) and hasattr(cls, "_fields") and hasattr(cls, "_make"):
        named: Any = cls
        names, make = tuple(named._fields), named._make
        decode = _fields_decoder(cls, names, make)
        entry = _Entry(cls, label, _encode_namedtuple, decode, True, names, make)
    elif is_wrapper(cls):
        entry = _Entry(cls, label, encode_wrapper, wrapper_decoder(cls), key=False)
    else:
        raise InvalidInput(
            f"cannot register {qualified(cls)}: expected a dataclass, enum or namedtuple. "
            "Use stepseal.register_codec(...) for other classes.",
            found=qualified(cls),
        )
    _add(entry)
    return cls


def register_codec(
    cls: type[T],
    *,
    encode: Callable[[T], object],
    decode: Callable[[Any], T],
    name: str | None = None,
) -> None:
    """Let values of any class stand in a saved state.

    Args:
        cls: the class; its subclasses are not included.
        encode: value to a value that codecs know; must not change it.
        decode: what `encode` returned to a new value; gets what a checkpoint holds, so it checks
            what it relies on.
        name: what documents call it, by default the class name; it must not change while
            checkpoints are in use.

    Raises:
        InvalidInput: the name belongs to another class.
    """

    def encode_node(encoder: Encoder, value: T) -> object:
        return encoder.child(encode(value), (".", "state"), 2)

    def decode_node(decoder: Decoder, node: object) -> T:
        state = decoder.child(node, (".", "state"))
        try:
            return decode(state)
        except CheckpointError:
            raise
        except Exception as error:
            raise decoder.mismatch(
                f"a state that the codec of {qualified(cls)} takes",
                f"{type(error).__name__}: {error}",
                "Use the code that saved this step",
            ) from error

    _add(_Entry(cls, _checked_name(cls, name), encode_node, decode_node, key=False))


def find_registered(cls: type) -> Codec | None:
    """Return the codec of a registered class."""
    entry = _BY_TYPE.get(cls)
    if entry is None:
        return None

    def encode(encoder: Encoder, value: object) -> object:
        return {"$object": {"type": entry.name, "state": entry.encode(encoder, value)}}

    return Codec("$object", (cls,), encode, None, nested=True, key=entry.key)


def _checked_name(cls: type, name: str | None) -> str:
    label = cls.__name__ if name is None else name
    if cls in _BUILTIN_DATA:
        raise InvalidInput(
            f"cannot register {qualified(cls)}: it has a codec already.", found=qualified(cls)
        )
    if not label or len(label) > _MAX_NAME or not label.isprintable():
        raise InvalidInput(
            f"cannot register {qualified(cls)}: expected a printable name of 1 to {_MAX_NAME} "
            f"characters, found {describe(label)}.",
            found=label,
        )
    return label


def _add(entry: _Entry) -> None:
    other = _BY_NAME.get(entry.name)
    # The same class defined again (a notebook cell, a reloaded module) takes over its name.
    if other is not None and qualified(other.cls) != qualified(entry.cls):
        raise InvalidInput(
            f"cannot register {qualified(entry.cls)} as {entry.name!r}: the name belongs to "
            f"{qualified(other.cls)}. Pass another name=.",
            found=entry.name,
        )
    before = _BY_TYPE.pop(entry.cls, None)
    if before is not None and _BY_NAME.get(before.name) is before:
        del _BY_NAME[before.name]
    _BY_NAME[entry.name] = entry
    _BY_TYPE[entry.cls] = entry


def record_fields(cls: type) -> tuple[str, tuple[str, ...]] | None:
    """Return the name and the fields of a registered dataclass or namedtuple, None for others."""
    entry = _BY_TYPE.get(cls)
    return None if entry is None or not entry.fields else (entry.name, entry.fields)


def record_maker(
    decoder: Decoder, name: object, fields: Sequence[str]
) -> Callable[[Sequence[Any]], object]:
    """Return what makes a value of a registered dataclass or namedtuple from its fields in order.

    Raises:
        StateMismatch: no such class is registered, or it has other fields.
    """
    entry = _entry(decoder, name)
    if entry.make is None or list(entry.fields) != list(fields):
        raise _other_fields(decoder, entry.cls, entry.fields, fields)
    return entry.make


def _entry(decoder: Decoder, name: object) -> _Entry:
    entry = _BY_NAME.get(name) if isinstance(name, str) else None
    if entry is None:
        raise decoder.mismatch(
            f"a class registered as {describe(name)}",
            "no such name in this program",
            "Call stepseal.register(...) or stepseal.register_codec(...) before restore()",
        )
    return entry


def _other_fields(
    decoder: Decoder, cls: type, names: Sequence[str], found: object
) -> StateMismatch:
    return decoder.mismatch(
        f"the fields {sorted(names)} of {qualified(cls)}",
        sorted(map(str, found)) if isinstance(found, (dict, list, tuple)) else found,
        "Use the code that saved this step",
    )


def _decode_object(decoder: Decoder, payload: object) -> object:
    fields = decoder.fields(payload, {"type": str, "state": object})
    return _entry(decoder, fields["type"]).decode(decoder, fields["state"])


def _encode_enum(encoder: Encoder, value: enum.Enum) -> object:
    name = value.name
    if type(value).__members__.get(name or "") is value:
        return {"member": name}
    return {"value": encoder.child(value.value, (".", "value"), 3)}  # a combination of flags


def _enum_decoder(cls: type[enum.Enum]) -> Callable[[Decoder, Any], object]:
    def decode(decoder: Decoder, node: object) -> object:
        fields = decoder.fields(node, {}, {"member": str, "value": object})
        if set(fields) == {"member"} and fields["member"] in cls.__members__:
            return cls.__members__[fields["member"]]
        if set(fields) == {"value"} and issubclass(cls, enum.Flag):
            value = decoder.child(fields["value"], (".", "value"))
            try:
                return cls(value)
            except (TypeError, ValueError):
                pass
        raise decoder.mismatch(
            f"a member of {qualified(cls)}", node, "Keep enum members while checkpoints use them"
        )

    return decode


def _encode_dataclass(encoder: Encoder, value: Any) -> object:  # noqa: ANN401 - any dataclass
    names = [field.name for field in dataclasses.fields(value)]
    extra = sorted(set(getattr(value, "__dict__", ())) - set(names))
    missing = [name for name in names if not hasattr(value, name)]
    if extra or missing:
        raise encoder.refuse(
            "a dataclass that holds exactly its fields",
            f"extra attributes {extra}, unset fields {missing}",
            "Declare them as fields, or use stepseal.register_codec(...)",
        )
    return {name: encoder.child(getattr(value, name), (".", name), 3) for name in names}


def _field_values(
    decoder: Decoder, cls: type, names: Sequence[str], node: object
) -> dict[str, object]:
    if type(node) is not dict or set(node) != set(names):
        raise _other_fields(decoder, cls, names, node)
    return {name: decoder.child(node[name], (".", name)) for name in names}


def _dataclass_maker(cls: type, names: Sequence[str]) -> Callable[[Sequence[Any]], object]:
    def make(values: Sequence[Any]) -> object:
        instance: object = object.__new__(cls)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(instance, name, value)  # also where the dataclass is frozen
        return instance

    return make


def _fields_decoder(
    cls: type, names: Sequence[str], make: Callable[[Sequence[Any]], object]
) -> Callable[[Decoder, Any], object]:
    def decode(decoder: Decoder, node: object) -> object:
        return make(list(_field_values(decoder, cls, names, node).values()))

    return decode


def _encode_namedtuple(encoder: Encoder, value: Any) -> object:  # noqa: ANN401 - any namedtuple
    return {
        name: encoder.child(item, (".", name), 3)
        for name, item in zip(value._fields, value, strict=True)
    }


OBJECT = Codec("$object", (), lambda encoder, value: None, _decode_object)
