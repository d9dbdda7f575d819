"""A foreign state dict as components, laid out as stepseal's own would have stored it.

Entries of a top-level dict become a component of its name; bare tensors are the component `model`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stepseal.errors import InvalidInput, UnsupportedState
from stepseal.layout import check_component_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepseal.components._dcp_source import ForeignIndex, ForeignTensor

__all__ = ["ForeignComponent", "foreign_components", "optimizer_value"]

_MODEL, _EXTRA = "model", "extra"
_Path = tuple[str | int, ...]


@dataclass(slots=True)
class ForeignComponent:
    """What a foreign checkpoint holds for one component."""

    name: str
    tensors: dict[str, ForeignTensor] = field(default_factory=dict)
    """Key inside the component to the tensor."""
    values: dict[str, str] = field(default_factory=dict)
    """Key inside the component to the FQN of a value."""
    paths: dict[str, _Path] = field(default_factory=dict)
    """Key to its path below the component."""

    def nested(self, leaves: Mapping[str, object]) -> dict[str | int, Any]:
        """Return the nested state that leaves by key belong to.

        Raises:
            UnsupportedState: two paths contradict each other.
        """
        top = _Node()
        for key, leaf in leaves.items():
            path, node = self.paths[key], top
            for step in path[:-1]:
                child = node.setdefault(step, _Node())
                if type(child) is not _Node:
                    raise self._twice(step)
                node = child
            if path[-1] in node:
                raise self._twice(path[-1])
            node[path[-1]] = leaf
        return {key: _plain(child) for key, child in top.items()}

    def _twice(self, key: str | int) -> UnsupportedState:
        return UnsupportedState(
            f"component {self.name}: expected one entry at {key!r:.80}, found two.",
            component=self.name,
        )


class _Node(dict[str | int, Any]):
    """An entry that has entries of its own; no leaf is of this class."""


def _plain(child: object) -> object:
    """Return an entry as it was saved; what counts from 0 was a list."""
    if type(child) is not _Node:
        return child
    entries = {key: _plain(below) for key, below in child.items()}
    return list(entries.values()) if list(entries) == list(range(len(entries))) else entries


def foreign_components(index: ForeignIndex) -> dict[str, ForeignComponent]:
    """Return the components that a foreign checkpoint amounts to, by name.

    A nested entry belongs to the component of its top-level key. A bare tensor, and a module's
    `_extra_state`, belong to `model`; if there is a nested `model`, or it is another value, to
    `extra`.

    Raises:
        InvalidInput: a top-level key cannot name a component.
    """
    found: dict[str, ForeignComponent] = {}
    nested = {path[0] for path in index.paths.values() if len(path) > 1}
    for fqn in (*index.tensors, *index.values):
        path = index.paths[fqn]
        if len(path) > 1:
            name, rest = path[0], path[1:]
        else:
            rest = (fqn,)
            of_model = fqn in index.tensors or fqn.rpartition(".")[2] == "_extra_state"
            name = _MODEL if of_model and _MODEL not in nested else _EXTRA
        try:
            check_component_name(name)
        except InvalidInput as error:
            raise InvalidInput(
                f"top-level key of the foreign checkpoint: {error} Save it with dcp.save under "
                "another one.",
                component=str(name),
            ) from error
        component = found.setdefault(str(name), ForeignComponent(str(name)))
        key = ".".join(map(str, rest))
        if key in component.paths:
            raise UnsupportedState(
                f"component {name}: expected one entry of the key {key[:80]!r}, found two.",
                component=str(name),
            )
        component.paths[key] = rest
        if fqn in index.tensors:
            component.tensors[key] = index.tensors[fqn]
        else:
            component.values[key] = fqn
    return found


def optimizer_value(
    component: ForeignComponent,
    values: Mapping[str, object],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Any] | None:
    """Return groups and state as an optimizer component stores them, None if this is no such state.

    Understands what `get_optimizer_state_dict` makes, flattened (`state.<fqn>.exp_avg`,
    `param_groups.<fqn>.lr`) or not (`param_groups` is a list with FQNs). In the flattened form
    groups are not told: parameters with equal options form one group, in order of appearance.

    Args:
        component: tensors and values by key.
        values: the values themselves, by key.
        shapes: shapes of the model's tensors by FQN.
    """
    state: dict[str, dict[str, Any]] = {}
    options: dict[str, dict[str, Any]] = {}
    listed: dict[str, object] = {}
    for key in (*component.tensors, *component.values):
        kind, _, rest = key.partition(".")
        fqn, _, name = rest.rpartition(".")
        path = component.paths[key]
        if path[0] == "param_groups" and len(path) > 2 and type(path[1]) is int and key in values:
            listed[key] = values[key]
            continue
        if kind not in ("state", "param_groups") or fqn not in shapes or not name:
            return None
        if kind == "state":
            entry = state.setdefault(fqn, {"names": [], "values": {}})
            entry["names"].append(name)
            if key in values:
                entry["values"][name] = values[key]
        elif key in values:
            options.setdefault(fqn, {})[name] = values[key]
        else:
            return None  # an option that is a tensor has no place in this form
    if listed and not options:
        groups = _listed_groups(component.nested(listed)["param_groups"], shapes)
    else:
        groups = None if listed else _equal_groups(options, shapes)
    return None if groups is None else {"groups": groups, "state": state}


def _listed_groups(
    groups: object, shapes: Mapping[str, tuple[int, ...]]
) -> list[dict[str, Any]] | None:
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        return None
    found = []
    for group in groups:
        params = group.get("params")
        if not isinstance(params, list) or not all(
            isinstance(name, str) and name in shapes for name in params
        ):
            return None
        options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        found.append(_group(params, options, shapes))
    return found


def _equal_groups(
    options: Mapping[str, dict[str, Any]], shapes: Mapping[str, tuple[int, ...]]
) -> list[dict[str, Any]]:
    members: dict[str, list[str]] = {}
    for fqn, own in options.items():
        members.setdefault(repr(sorted(own.items(), key=lambda item: item[0])), []).append(fqn)
    return [_group(params, options[params[0]], shapes) for params in members.values()]


def _group(
    params: list[str], options: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    return {
        "params": params,
        "shapes": [list(shapes[name]) for name in params],
        "options": options,
    }
