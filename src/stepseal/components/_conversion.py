"""Conversions: how the keys and dtypes of a saved state become those of the live one; pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from stepseal.errors import InvalidInput
from stepseal.layout import digest

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

__all__ = ["Conversion", "matches"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """How saved keys and dtypes become those of live state.

    A saved key that matches `drop` goes nowhere. One in `rename` gets its new name. Of any other,
    the longest beginning that `prefix` knows is replaced. The result must fit as strictly as
    without a conversion, and every entry but a cast must have an effect.

    Args:
        prefix: saved beginning of keys to the live one, for example `{"module.": ""}`; the empty
            saved beginning takes all keys that have no other.
        rename: saved key to live key.
        drop: shell patterns of saved keys that are left out, for example `["head.*"]`.
        keep: shell patterns of live keys that stay as they are, because the step has nothing for
            them.
        cast: saved dtype to live dtype, both floating point, both complex or both integer. Values
            are rounded; one outside the range of the live dtype makes the restore refuse.

    Raises:
        InvalidInput: an argument has another type, or a cast changes the kind of number;
            `.problems` lists all.
    """

    prefix: Mapping[str, str] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    drop: Collection[str] = ()
    keep: Collection[str] = ()
    cast: Mapping[torch.dtype, torch.dtype] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch

        problems = [
            *_map_problems("prefix", self.prefix, str),
            *_map_problems("rename", self.rename, str),
            *_list_problems("drop", self.drop),
            *_list_problems("keep", self.keep),
            *(_map_problems("cast", self.cast, torch.dtype) or _cast_problems(self.cast)),
        ]
        if problems:
            raise InvalidInput(f"Conversion: {'; '.join(problems)}.", problems=tuple(problems))

    def fingerprint(self) -> str:
        """Return a short digest; equal for equal conversions, whatever the order of entries."""
        facts = []
        for one in fields(self):
            value = getattr(self, one.name)
            entries = value.items() if isinstance(value, Mapping) else value
            facts.append((one.name, sorted(map(repr, entries))))
        return digest(repr(facts).encode()).hex()[:16]

    def live_key(self, saved: str) -> str | None:
        """Return what a saved key is called in live state, or None if it is dropped."""
        return None if matches(saved, self.drop) else self.name_of(saved)

    def name_of(self, saved: str) -> str:
        """Return what a saved key is called in live state if nothing is dropped."""
        if saved in self.rename:
            return self.rename[saved]
        old = self._prefix_of(saved)
        return saved if old is None else self.prefix[old] + saved[len(old) :]

    def without_effect(self, saved: Collection[str], live: Collection[str]) -> list[str]:
        """Return a text for each entry that has no effect on these saved and live keys."""
        left = {key for key in saved if not matches(key, self.drop)}
        used = {self._prefix_of(key) for key in left.difference(self.rename)}
        renames = {*self.prefix, *self.rename}
        if renames and not renames & {*used, *left} and set(saved) == set(live):
            return ["the step has the keys of the live module already: leave the conversion out"]
        return [
            *(f"drop: no saved key matches {one!r}" for one in _idle(self.drop, saved)),
            *(f"rename: no saved key is {key!r}" for key in self.rename if key not in left),
            *(
                f"prefix: no saved key begins with {old!r}"
                for old in self.prefix
                if old not in used
            ),
            *(f"keep: no live key matches {one!r}" for one in _idle(self.keep, live)),
        ]

    def _prefix_of(self, saved: str) -> str | None:
        return max((old for old in self.prefix if saved.startswith(old)), key=len, default=None)


def matches(key: str, patterns: Iterable[str]) -> bool:
    """Return whether a key matches one of some shell patterns, case and all."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def _idle(patterns: Iterable[str], keys: Collection[str]) -> list[str]:
    return [one for one in patterns if not any(matches(key, (one,)) for key in keys)]


def _map_problems(name: str, value: object, of: type) -> list[str]:
    if isinstance(value, Mapping) and all(
        isinstance(one, of) for pair in value.items() for one in pair
    ):
        return []
    return [f"{name}: expected a dict of {of.__name__} to {of.__name__}, found {value!r:.80}"]


def _list_problems(name: str, value: object) -> list[str]:
    if isinstance(value, str):
        return [f"{name}: expected a list of patterns, found one string: {name}=[{value!r:.80}]"]
    if isinstance(value, Collection) and all(isinstance(one, str) for one in value):
        return []
    return [f"{name}: expected a list of patterns, found {value!r:.80}"]


def _cast_problems(cast: Mapping[Any, Any]) -> list[str]:
    return [
        f"cast: expected two floating point, two complex or two integer dtypes, found {old} to "
        f"{new}"
        for old, new in cast.items()
        if _kind(old) != _kind(new) or _kind(old) is None
    ]


def _kind(dtype: torch.dtype) -> str | None:
    """Return the kind of number of a dtype, None for packed ones and for bool."""
    import torch

    kinds = {
        "floating point": (
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
            *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
        ),
        "complex": (torch.complex128, torch.complex64, torch.complex32),
        "integer": (
            *(torch.int64, torch.int32, torch.int16, torch.int8),
            *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
        ),
    }
    return next((kind for kind, dtypes in kinds.items() if dtype in dtypes), None)
