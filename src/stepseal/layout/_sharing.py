"""How state relates across participants, and the sets of them that share one payload each.

A *division* gives each set a coordinate on named axes: `tp=1` for the ranks that are at position 1
of the mesh axis `tp`, `set=1` for the second of listed sets, `node=1` for the second node. All
participants compute the same division; the coordinator compares what they report.
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from stepseal.layout._digests import digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "AnySharing",
    "Division",
    "Sharing",
    "coordinate_at",
    "coordinates_on",
    "divided",
    "division_problems",
    "numbered_sets",
    "set_of_ranks",
]

_MAX_SHOWN = 60


class Sharing(str, enum.Enum):
    """How a component's state relates across participants; one payload per ..."""

    GLOBAL = "global"
    """... job: one participant owns it, the others have none or an equal copy."""
    REPLICATED = "replicated"
    """... job: every participant holds the same."""
    SHARDED = "sharded"
    """... box of a global tensor; with a `Division`, whose sets hold different keys, and of set."""
    PER_RANK = "per_rank"
    """... participant."""
    PER_GROUP = "per_group"
    """... set of participants that hold the same; used with a `Division` that names the sets."""
    PER_NODE = "per_node"
    """... node; all its participants hold the same."""


@dataclass(frozen=True, slots=True)
class Division:
    """A sharing with one payload per set of ranks, together with the sets; stands for a sharing."""

    sharing: Sharing
    """PER_GROUP, PER_NODE or SHARDED."""
    axes: tuple[tuple[str, int], ...]
    """Name and size of each axis along which sets differ, sorted by name."""
    sets: tuple[tuple[str, tuple[int, ...]], ...]
    """Coordinate of each set and its ranks, ascending; sets by lowest rank."""

    @property
    def value(self) -> str:
        """The sharing's word in documents."""
        return self.sharing.value

    @property
    def name(self) -> str:
        """The sharing's name in code."""
        return self.sharing.name

    def ranks_at(self, coordinate: str) -> tuple[int, ...]:
        """Return the ranks of a set; empty if there is none."""
        return next((ranks for name, ranks in self.sets if name == coordinate), ())

    def coordinates(self) -> dict[int, str]:
        """Return the coordinate of each rank."""
        return {rank: name for name, ranks in self.sets for rank in ranks}

    def shown(self) -> str:
        """Return the sets as a text of bounded length; different divisions differ in it."""
        text = "; ".join(f"{name or 'all'}: {' '.join(map(str, r))}" for name, r in self.sets)
        return _bounded(text)

    def shown_axes(self) -> str:
        """Return the axes as a text."""
        match self.axes:
            case ():
                return "one set of all ranks"
            case ((("set" | "node" | "rank") as name, size),):
                return f"{size} {name}{'' if size == 1 else 's'}"
        return f"the axes {', '.join(f'{name}={size}' for name, size in self.axes)}"


AnySharing: TypeAlias = Sharing | Division
"""A sharing, with its sets where it has some."""


def set_of_ranks(ranks: Sequence[int]) -> str:
    """Return a name of bounded length for the ranks that hold the same; others have another."""
    return f"ranks {_bounded(' '.join(map(str, ranks)))}"


def _bounded(text: str) -> str:
    if len(text) <= _MAX_SHOWN:
        return text
    return f"{text[:_MAX_SHOWN]}... (digest {digest(text.encode()).hex()[:8]})"


def coordinate_at(place: Mapping[str, int]) -> str:
    """Return the coordinate of positions on axes; the order of the axes has no meaning."""
    return ",".join(f"{name}={index}" for name, index in sorted(place.items()))


def coordinates_on(axes: Mapping[str, int]) -> frozenset[str]:
    """Return every coordinate on these axes."""
    names = sorted(axes)
    places = itertools.product(*(range(axes[name]) for name in names))
    return frozenset(coordinate_at(dict(zip(names, place, strict=True))) for place in places)


def divided(
    sharing: Sharing, axes: Mapping[str, int], sets: Mapping[str, Iterable[int]]
) -> Division:
    """Return a division in its one order.

    Args:
        sharing: PER_GROUP, PER_NODE or SHARDED.
        axes: name and size of each axis along which sets differ.
        sets: coordinate to the ranks that share the payload.
    """
    held = [(name, tuple(sorted(ranks))) for name, ranks in sets.items()]
    held.sort(key=lambda one: (one[1][:1] or (-1,), one[0]))
    return Division(sharing, tuple(sorted(axes.items())), tuple(held))


def numbered_sets(sharing: Sharing, axis: str, sets: Iterable[Sequence[int]]) -> Division:
    """Return the division whose coordinates are the numbers of the sets, by lowest rank."""
    ordered = sorted(sets, key=lambda ranks: min(ranks, default=-1))
    named = {coordinate_at({axis: number}): ranks for number, ranks in enumerate(ordered)}
    return divided(sharing, {axis: len(ordered)}, named)


def division_problems(division: Division, world_size: int | None = None) -> list[str]:
    """Return why sets are no division of the ranks; empty if each rank is in exactly one.

    Args:
        division: the sets.
        world_size: number of ranks; None where it is not known yet.
    """
    problems = [] if division.sets else ["expected at least one set of ranks, found none"]
    problems += [
        f"expected ranks in {name}, found none" for name, ranks in division.sets if not ranks
    ]
    seen: dict[int, int] = {}
    for _, ranks in division.sets:
        for rank in ranks:
            seen[rank] = seen.get(rank, 0) + 1
    twice = sorted(rank for rank, count in seen.items() if count > 1)
    if twice:
        problems.append(f"expected each rank in one set, found in several: {_listed(twice)}")
    if world_size is not None:
        outside = sorted(rank for rank in seen if not 0 <= rank < world_size)
        missing = [rank for rank in range(world_size) if rank not in seen]
        if outside:
            problems.append(f"expected ranks below {world_size}, found {_listed(outside)}")
        if missing:
            problems.append(
                f"expected each of {world_size} ranks in a set, found in none: "
                f"{_listed(missing)} (list all sets on every rank)"
            )
    return problems


def _listed(ranks: Sequence[int]) -> str:
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"{', '.join(map(str, ranks[:8]))}{more}"
