"""The sets of a component as a manifest records them, and back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from stepseal.layout._sharing import Sharing, coordinates_on, divided

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from stepseal.layout._sharing import AnySharing

__all__ = ["saved_sharing", "sets_option", "sets_problems"]

_OPTION = "sets"
_DIVIDED = frozenset({Sharing.PER_GROUP.value, Sharing.PER_NODE.value})
_MAY_BE_DIVIDED = _DIVIDED | {Sharing.SHARDED.value}


class _Sets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The value of the option."""

    axes: dict[str, int]
    """Name and size of each axis along which sets differ."""
    coordinates: dict[str, str]
    """Owner of each payload to its coordinate."""


def sets_option(axes: Mapping[str, int], coordinates: Mapping[str, str]) -> dict[str, object]:
    """Return the option that a manifest has for a component whose payloads belong to sets.

    Args:
        axes: name and size of each axis along which sets differ.
        coordinates: owner of each payload to its coordinate.
    """
    return {_OPTION: {"axes": dict(axes), "coordinates": dict(coordinates)}}


def sets_problems(
    sharing: str,
    payloads: Mapping[str, str],
    options: Mapping[str, Any],
    participants: Collection[str],
) -> list[str]:
    """Return what is wrong with the recorded sets of a component; empty if each rank is in one."""
    if sharing not in _DIVIDED and _OPTION not in options:
        return []
    if sharing not in _MAY_BE_DIVIDED:
        return ["expected no sets of this sharing"]
    try:
        sets = msgspec.convert(options.get(_OPTION), _Sets)
    except msgspec.ValidationError as error:
        return [f"sets: {error}"]
    problems = []
    if payloads.keys() != set(participants):
        problems.append("expected a payload for each participant")
    owners = set(payloads.values())
    if sets.coordinates.keys() != owners or any(payloads.get(one) != one for one in owners):
        problems.append("sets: expected a coordinate for each owner, which reads its own payload")
    known = math.prod(sets.axes.values()) == len(sets.coordinates)  # else there may be too many
    if not known or set(sets.coordinates.values()) != coordinates_on(sets.axes):
        problems.append("sets: expected one owner for each coordinate of the axes")
    return problems


def saved_sharing(
    sharing: str,
    payloads: Mapping[str, str],
    options: Mapping[str, Any],
    participants: Sequence[str],
) -> AnySharing:
    """Return the sharing that a component of a checked manifest was saved with, with its sets."""
    if _OPTION not in options:
        return Sharing(sharing)
    sets: dict[str, list[int]] = {}
    for rank, participant in enumerate(participants):
        coordinate = options[_OPTION]["coordinates"][payloads[participant]]
        sets.setdefault(coordinate, []).append(rank)
    return divided(Sharing(sharing), options[_OPTION]["axes"], sets)
