"""A saved state under the keys and dtypes of the live one; touches neither."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch

from stepseal.components._conversion import matches
from stepseal.components._leaves import OpenedState
from stepseal.components._plans import mismatch
from stepseal.components._tensors import FlatState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from stepseal.components._conversion import Conversion

__all__ = ["converted"]

_T = TypeVar("_T")


def converted(
    opened: OpenedState, live: FlatState, conversion: Conversion | None
) -> tuple[OpenedState, FlatState]:
    """Return a saved state as live state takes it, and the live leaves that it is compared with.

    Args:
        opened: the saved state.
        live: all live leaves.
        conversion: None takes the state as it is.

    Raises:
        StateMismatch: two saved keys become one, an entry has no effect, or a live key is both kept
            and restored; `.problems` lists all.
    """
    if conversion is None:
        return opened, live
    saved_keys, live_keys = opened.keys(), (*live.tensors, *live.values)
    names = {
        key: name for key in sorted(saved_keys) if (name := conversion.live_key(key)) is not None
    }
    problems = [
        *_collisions(names),
        *conversion.without_effect(saved_keys, live_keys),
        *(
            f"{name}: it is in keep=, but the saved {key} would go there: add that to drop=, or "
            "take this out of keep="
            for key, name in names.items()
            if name in live_keys and matches(name, conversion.keep)
        ),
    ]
    if problems:
        raise mismatch(live.component, problems)
    kept = {key for key in live_keys if matches(key, conversion.keep)}
    target = FlatState(live.component)
    target.tensors = {key: one for key, one in live.tensors.items() if key not in kept}
    target.values = {key: one for key, one in live.values.items() if key not in kept}
    stored = _renamed(opened.tensors, names)
    cast = {
        key: str(live_dtype).removeprefix("torch.")
        for key, one in stored.items()
        if (live_dtype := conversion.cast.get(getattr(torch, one.dtype))) is not None
        and key in target.tensors
        and target.tensors[key].dtype == live_dtype
    }
    counts = {
        "renamed": sum(key != name for key, name in names.items()),
        "dropped": len(saved_keys) - len(names),
        "kept": len(kept),
        "cast": len(cast),
    }
    values = opened.value if isinstance(opened.value, dict) else {}
    missing = {*target.tensors, *target.values}.difference(names.values())
    taken = OpenedState(
        live.component,
        {key: replace(one, dtype=cast.get(key, one.dtype)) for key, one in stored.items()},
        None if opened.filled is None else _renamed(opened.filled, names),
        _renamed(values, names) or None,
        stored=stored,
        absent=_absent(conversion, saved_keys, missing),
        note=f"converted: {', '.join(f'{n} {what}' for what, n in counts.items() if n) or 'none'}",
    )
    return taken, target


def _absent(
    conversion: Conversion, saved: Iterable[str], missing: Collection[str]
) -> dict[str, str]:
    """Return why live keys get nothing: what would go there is dropped, or there is nothing."""
    found = dict.fromkeys(missing, ": if it is new in the module, add it to keep=")
    for key in sorted(saved):
        if (name := conversion.name_of(key)) in found and matches(key, conversion.drop):
            found[name] = (
                f", because drop= matches the saved {key}: add {name} to keep= if it stays as it "
                "is, or take the saved key out of drop="
            )
    return found


def _renamed(entries: Mapping[str, _T], names: Mapping[str, str]) -> dict[str, _T]:
    return {names[key]: one for key, one in entries.items() if key in names}


def _collisions(names: Mapping[str, str]) -> list[str]:
    """Return a text for each saved key whose live key another one has already."""
    first: dict[str, str] = {}
    return [
        f"{name}: two saved keys become it, {first[name]} and {key}"
        for key, name in names.items()
        if first.setdefault(name, key) != key
    ]
