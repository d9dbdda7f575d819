"""What was saved of an optimizer: one payload, or one for each set of ranks that held its own keys.

Across several payloads, groups and state are found again by the names of parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepseal.components._optimizer_groups import GroupState
from stepseal.components._plans import mismatch
from stepseal.components._stages import disputed, united

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = ["SavedOptimizer", "read_saved"]


@dataclass(frozen=True, slots=True)
class SavedOptimizer:
    """The trees of an optimizer, as one."""

    component: str
    classes: tuple[str | None, ...]
    """Names of the classes that were saved, each once; None in what others wrote."""
    parts: tuple[list[GroupState], ...]
    """Groups of each payload."""
    state: dict[str, dict[str, Any]]
    """Entry by name of the parameter."""
    whole: dict[str | int, object]
    """State of the optimizer as a whole."""
    tied: dict[str, str]
    """Other names of parameters, with the one that their state is under."""

    def params(self) -> set[str]:
        """Return the names of all parameters."""
        return {name for groups in self.parts for group in groups for name in group.params}

    def options_of(self, name: str) -> object:
        """Return the options of a parameter, of each set of ranks that saved it."""
        return [g.options for groups in self.parts for g in groups if name in g.params]

    def state_names(self) -> set[object]:
        """Return the names of all state."""
        return {name for entry in self.state.values() for name in entry["names"]}

    def regrouped(
        self, live: Sequence[GroupState], *, others_take_rest: bool
    ) -> tuple[list[GroupState], list[str]]:
        """Return what was saved of the parameters of each live group, and what is wrong.

        The parameters of a live group may come from several saved groups, if the options of these
        are equal. A group without parameters takes the options of the saved group of its number.

        Args:
            live: groups now.
            others_take_rest: whether other ranks hold the parameters that this one does not.
        """
        where: dict[str, list[tuple[tuple[int, ...], dict[str, Any]]]] = {}
        for group in (group for groups in self.parts for group in groups):
            for name, shape in zip(group.params, group.shapes, strict=True):
                where.setdefault(name, []).append((shape, group.options))
        found, problems = [], []
        for number, mine in enumerate(live):
            names = tuple(name for name in mine.params if name in where)
            options = self._distinct(one for name in names for _, one in where[name])
            if len(options) > 1:
                differ = self._differing(*options[:2])
                problems.append(
                    f"param_groups[{number}]: expected parameters whose saved options are equal, "
                    f"found options that differ in {differ[:8]}: divide the parameters into groups "
                    "as at the save"
                )
            if not options:
                options = [groups[number].options for groups in self.parts if number < len(groups)]
            shapes = tuple(where[name][0][0] for name in names)
            found.append(GroupState(names, shapes, options[0] if options else {}))
        if not others_take_rest:
            expected = {name for mine in live for name in mine.params}
            left = [name for name in where if name not in expected]
            problems += [f"param_groups: {name}: unexpected in the checkpoint" for name in left]
        return found, problems

    def entries(self, tensors: Collection[str]) -> set[str]:
        """Return what ranks take together: each parameter, and each tensor of its state."""
        return {*(f"param_groups.{name}" for name in self.params()), *tensors}

    def entries_of(self, names: Collection[str]) -> set[str]:
        """Return what a rank takes that holds these parameters."""
        state = {
            f"state.{name}.{key}"
            for name in names
            if name in self.state
            for key in self.state[name]["names"]
            if key not in self.state[name]["values"]
        }
        return {*(f"param_groups.{name}" for name in names), *state}

    def _distinct(self, options: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - an iterable of dicts
        found: list[dict[str, Any]] = []
        for one in {id(one): one for one in options}.values():
            if all(disputed(self.component, [one, other]) for other in found):
                found.append(one)
        return found

    def _differing(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
        keys = sorted({**one, **other})
        return [key for key in keys if disputed(self.component, [one.get(key), other.get(key)])]


def read_saved(component: str, value: object) -> SavedOptimizer:
    """Return what one decoded tree holds, or a list of them.

    Raises:
        StateMismatch: it holds something else, or sets of ranks saved different state of one
            parameter.
    """
    read = [_read(component, one) for one in (value if isinstance(value, list) else [value])]
    state, problems = united(component, (one.state for one in read))
    whole, more = united(component, (one.whole for one in read))
    if problems or more:
        raise mismatch(component, [f"state.{problem}" for problem in (*problems, *more)])
    classes = tuple(dict.fromkeys(cls for one in read for cls in one.classes))
    parts = tuple(groups for one in read for groups in one.parts)
    tied, _ = united(component, (one.tied for one in read))
    return SavedOptimizer(component, classes, parts, state, whole, tied)


def _read(component: str, value: object) -> SavedOptimizer:
    problem = mismatch(component, ["payload: expected groups and state, found another structure"])
    if not isinstance(value, dict) or not {"groups", "state"} <= value.keys():
        raise problem
    groups, state, whole = value["groups"], value["state"], value.get("whole", {})
    tied = value.get("tied", {})
    if not all(map(isinstance, (groups, state, whole, tied), (list, dict, dict, dict))):
        raise problem
    for entry in state.values():
        if not (
            isinstance(entry, dict)
            and isinstance(entry.get("names"), list)
            and isinstance(entry.get("values"), dict)
            and isinstance(entry.get("plain", []), list)
        ):
            raise problem
    read = [GroupState.from_value(group) for group in groups]
    if None in read:
        raise problem
    held = [group for group in read if group is not None]
    return SavedOptimizer(component, (value.get("class"),), (held,), state, whole, tied)
