"""Turns plain JSON into frozen dataclasses by their type hints, and collects every problem.

Knows nothing about checkpoints. Strict: unknown and missing fields are problems, numbers are not
converted, and a bool is not an int. Hints it understands: `int`, `bool`, `str`, `float`, `object`
(any JSON), `Literal`, `X | None`, `tuple[X, ...]`, `dict[str, X]`, dataclasses, and `Annotated[X,
check]`, where a check returns what is wrong with a value of type X, or None.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache
from typing import Any, TypeVar

__all__ = [
    "Check",
    "Problems",
    "bounded_int",
    "bounded_text",
    "read_value",
    "show",
    "show_key",
    "to_plain",
]

Check = Callable[[Any], "str | None"]
"""Says what is wrong with a value, or None."""

_T = TypeVar("_T")
_MAX_LISTED = 100
_MAX_SHOWN = 80
_NON_FINITE = frozenset({"nan", "inf", "-inf"})


@dataclass(slots=True)
class Problems:
    """A list of findings that stays short, however many there are."""

    listed: list[str] = field(default_factory=list)
    """The first hundred findings, each with its path."""
    num_more: int = 0
    """Number of findings that are not listed."""

    def add(self, path: str, text: str) -> None:
        """Add one finding about the value at `path`."""
        if len(self.listed) < _MAX_LISTED:
            self.listed.append(f"{path}: {text}" if path else text)
        else:
            self.num_more += 1

    def extend(self, path: str, texts: typing.Iterable[str]) -> None:
        """Add several findings about the value at `path`."""
        for text in texts:
            self.add(path, text)

    def all(self) -> list[str]:
        """Return the findings, and how many more there are."""
        return [*self.listed, f"and {self.num_more} more"] if self.num_more else list(self.listed)


_Reader = Callable[[object, str, Problems], Any]


def show(value: object) -> str:
    """Return a short form of any value for an error message; never fails and never grows."""
    if isinstance(value, (dict, list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 1 << 256:
        return "a huge int"
    text = repr(value[: _MAX_SHOWN + 1] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def show_key(key: str) -> str:
    """Return a short form of a key for the path to a value, quoted where it is not plain text."""
    start = key[:_MAX_SHOWN]
    return start if start.isprintable() else show(key)


def bounded_int(low: int, high: int) -> Check:
    """Return a check for an int from `low` to `high`, both included."""

    def check(value: int) -> str | None:
        return None if low <= value <= high else f"expected {low} to {high}, found {show(value)}"

    return check


def bounded_text(max_chars: int) -> Check:
    """Return a check for a text of 1 to `max_chars` characters."""

    def check(value: str) -> str | None:
        fits = 1 <= len(value) <= max_chars
        return None if fits else f"expected 1 to {max_chars} characters, found {len(value)}"

    return check


def to_plain(value: object) -> object:
    """Return a value as JSON holds it: dataclasses as dicts, tuples as lists, leaves unchanged."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {key: to_plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(child) for child in value]
    return value


def read_value(cls: type[_T], value: object, problems: Problems) -> _T:
    """Build a dataclass from plain JSON.

    Returns:
        The instance; it must not be used when `problems` is not empty afterwards, for its fields
        may be wrong.
    """
    hint: Any = cls
    built: _T = _reader(hint)(value, "", problems)
    return built


@lru_cache(maxsize=256)
def _reader(hint: Any) -> _Reader:  # noqa: ANN401 - a type hint is any object
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _annotated_reader(args[0], args[1:])
    if origin is typing.Literal:
        return _literal_reader(args)
    if origin in (typing.Union, types.UnionType):
        assert len(args) == 2, hint
        assert args[1] is type(None), hint
        return _optional_reader(args[0])
    if origin is tuple:
        return _tuple_reader(args[0])
    if origin is dict:
        return _dict_reader(args[1])
    if is_dataclass(hint):
        return _dataclass_reader(hint)
    if hint is object:
        return lambda value, _path, _problems: value
    return _float_reader if hint is float else _plain_reader(hint)


def _plain_reader(kind: type) -> _Reader:
    def read(value: object, path: str, problems: Problems) -> object:
        if type(value) is not kind:
            problems.add(path, f"expected {kind.__name__}, found {show(value)}")
        return value

    return read


def _float_reader(value: object, path: str, problems: Problems) -> object:
    if isinstance(value, str) and value in _NON_FINITE:
        return float(value)
    if type(value) is not float:
        problems.add(path, f"expected float, found {show(value)}")
    return value


def _annotated_reader(hint: object, checks: tuple[Check, ...]) -> _Reader:
    inner = _reader(hint)

    def read(value: object, path: str, problems: Problems) -> object:
        before = len(problems.listed) + problems.num_more
        result = inner(value, path, problems)
        if len(problems.listed) + problems.num_more == before:
            for check in checks:
                if problem := check(result):
                    problems.add(path, problem)
        return result

    return read


def _literal_reader(choices: tuple[object, ...]) -> _Reader:
    known = {(type(choice), choice) for choice in choices}
    kinds = frozenset(map(type, choices))

    def read(value: object, path: str, problems: Problems) -> object:
        if type(value) not in kinds or (type(value), value) not in known:
            expected = ", ".join(map(repr, choices))
            problems.add(path, f"expected one of {expected}, found {show(value)}")
        return value

    return read


def _optional_reader(hint: object) -> _Reader:
    inner = _reader(hint)
    return lambda value, path, problems: None if value is None else inner(value, path, problems)


def _tuple_reader(hint: object) -> _Reader:
    inner = _reader(hint)

    def read(value: object, path: str, problems: Problems) -> object:
        if type(value) is not list:
            problems.add(path, f"expected list, found {show(value)}")
            return ()
        return tuple([inner(child, f"{path}[{i}]", problems) for i, child in enumerate(value)])

    return read


def _dict_reader(hint: object) -> _Reader:
    inner = _reader(hint)

    def read(value: object, path: str, problems: Problems) -> object:
        if type(value) is not dict:
            problems.add(path, f"expected dict, found {show(value)}")
            return {}
        return {
            key: inner(child, f"{path}.{show_key(key)}", problems) for key, child in value.items()
        }

    return read


def _dataclass_reader(cls: Any) -> _Reader:  # noqa: ANN401 - any dataclass
    hints = typing.get_type_hints(cls, include_extras=True)
    readers = {f.name: _reader(hints[f.name]) for f in fields(cls)}

    def read(value: object, path: str, problems: Problems) -> object:
        if type(value) is not dict:
            problems.add(path, f"expected {cls.__name__}, found {show(value)}")
            return None
        dot = f"{path}." if path else ""
        for name in value.keys() - readers.keys():
            problems.add(f"{dot}{show_key(name)}", "unknown field")
        found = {}
        for name, reader in readers.items():
            if name in value:
                found[name] = reader(value[name], dot + name, problems)
            else:
                problems.add(dot + name, "missing field")
        return cls(**found) if len(found) == len(readers) else None

    return read
