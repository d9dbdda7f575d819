"""Parameters with several names: tied at the save and not here, or here and not at the save.

Stages hold tied weights on several ranks, each under a name of its own; one process that holds them
all has one parameter, whose state is under its first name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stepseal.components._optimizer_groups import GroupState
from stepseal.components._stages import disputed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from stepseal.components._optimizer_stages import SavedOptimizer
    from stepseal.components._types import SavedTensor

__all__ = ["Retied", "retied"]


@dataclass(frozen=True, slots=True)
class Retied:
    """A saved optimizer under the names of this rank."""

    saved: SavedOptimizer
    tensors: dict[str, SavedTensor]
    """Saved tensors by live key; each knows its own key in the step."""
    taken: frozenset[str]
    """What this rank takes besides, under its names in the step."""
    problems: list[str]


def retied(
    saved: SavedOptimizer,
    names: Collection[str],
    tied: Mapping[str, str],
    tensors: Mapping[str, SavedTensor],
) -> Retied:
    """Return saved state under the names of this rank, and what is wrong.

    A name that is tied to another here must have been saved with equal state. A name that was tied
    at the save takes the state of the other, which no parameter here has.

    Args:
        saved: what was saved.
        names: of the parameters here.
        tied: other names of these parameters, with the one in `names`.
        tensors: what is stored, by key.
    """
    found = Retied(saved, dict(tensors), frozenset(), [])
    for other, name in tied.items():
        params = found.saved.params()
        if other in params and name in params:
            found = _dropped(found, other, name)
        elif other in params:
            found = _renamed(found, other, name)
    for other, name in saved.tied.items():
        params = found.saved.params()
        if other in names and other not in params and name in params and name not in names:
            found = _renamed(found, name, other)
    return found


def _dropped(found: Retied, other: str, name: str) -> Retied:
    saved, problems = found.saved, []
    state = [saved.state.get(one) for one in (other, name)]
    options = [saved.options_of(one) for one in (other, name)]
    keys = saved.entries_of([other])
    same = not disputed(saved.component, state) and not disputed(saved.component, options)
    for key in keys & found.tensors.keys():
        twin = found.tensors.get(f"state.{name}.{key.removeprefix(f'state.{other}.')}")
        mine = found.tensors[key]
        same = same and twin is not None and bool(mine.digests) and mine.digests == twin.digests
    if not same:
        problems = [f"state.{other}: tied (live) to {name}, and their saved state differs"]
    return Retied(
        _with(saved, {other: None}),
        {key: one for key, one in found.tensors.items() if key not in keys},
        found.taken | keys,
        [*found.problems, *problems],
    )


def _renamed(found: Retied, old: str, new: str) -> Retied:
    keys, start = found.saved.entries_of([old]), f"state.{old}."
    tensors = {
        f"state.{new}.{key.removeprefix(start)}" if key in keys else key: one
        for key, one in found.tensors.items()
    }
    saved = _with(found.saved, {old: new})
    return Retied(saved, tensors, found.taken | keys, found.problems)


def _with(saved: SavedOptimizer, names: Mapping[str, str | None]) -> SavedOptimizer:
    """Return a saved optimizer with a parameter under another name, or without it."""
    parts = []
    for groups in saved.parts:
        made = []
        for group in groups:
            held = [
                (names.get(name, name), shape)
                for name, shape in zip(group.params, group.shapes, strict=True)
            ]
            kept = [(name, shape) for name, shape in held if name is not None]
            made.append(
                GroupState(tuple(n for n, _ in kept), tuple(s for _, s in kept), group.options)
            )
        parts.append(made)
    state = {
        new: entry
        for name, entry in saved.state.items()
        if (new := names.get(name, name)) is not None
    }
    return replace(saved, parts=tuple(parts), state=state)
