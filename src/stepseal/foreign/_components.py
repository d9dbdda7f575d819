"""Turns a foreign state dict into components, in the layout that stepseal itself would store.

Each top-level dict becomes a component of that name; bare tensors form the component `model`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stepseal.components import FlatState, Sharing, TreeComponent, describe_flat, value_copies
from stepseal.errors import InvalidInput, UnsupportedState
from stepseal.layout import check_component_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from stepseal.components import CapturedComponent, Topology
    from stepseal.foreign._metadata import ForeignIndex, ForeignTensor
    from stepseal.layout import BytesSource

__all__ = ["ForeignComponent", "ImportedComponent", "components_of", "optimizer_tree"]

_MODEL, _EXTRA = "model", "extra"


@dataclass(slots=True)
class ForeignComponent:
    """What a foreign checkpoint holds for one component."""

    name: str
    tensors: dict[str, ForeignTensor] = field(default_factory=dict)
    """Key inside the component to the tensor."""
    values: dict[str, str] = field(default_factory=dict)
    """Key inside the component to the FQN of a value."""
    paths: dict[str, tuple[str | int, ...]] = field(default_factory=dict)
    """Key to its path below the component."""

    def nested(self, leaves: Mapping[str, object]) -> dict[str | int, Any]:
        """Put leaves, given by key, into the nested state that they came from.

        Raises:
            UnsupportedState: two paths contradict each other.
        """
        top = _Node()
        for key, leaf in leaves.items():
            *above, last = self.paths[key]
            node = top
            for step in above:
                node = node.setdefault(step, _Node()) if type(node) is _Node else node
            if type(node) is not _Node or last in node:
                text = f"component {self.name}: expected one entry at {last!r:.80}, found two."
                raise UnsupportedState(text, component=self.name)
            node[last] = leaf
        return {key: _plain(child) for key, child in top.items()}


class _Node(dict[str | int, Any]):
    """An entry with entries below it; a leaf never has this class."""


def _plain(child: object) -> object:
    """Return an entry as it was saved; an entry with the keys 0, 1, 2, ... was a list."""
    if type(child) is not _Node:
        return child
    entries = {key: _plain(below) for key, below in child.items()}
    return list(entries.values()) if list(entries) == list(range(len(entries))) else entries


def components_of(index: ForeignIndex) -> dict[str, ForeignComponent]:
    """Return the components of a foreign checkpoint, by name.

    A nested entry belongs to the component named by its top-level key. A bare tensor and a
    module's `_extra_state` belong to `model`, or to `extra` if a nested `model` exists. Other bare
    values belong to `extra`.

    Raises:
        InvalidInput: a top-level key cannot name a component.
        UnsupportedState: two entries of a component have the same key.
    """
    found: dict[str, ForeignComponent] = {}
    nested = {path[0] for path in index.paths.values() if len(path) > 1}
    for fqn, path in index.paths.items():
        of_model = fqn in index.tensors or fqn.rpartition(".")[2] == "_extra_state"
        top = _MODEL if of_model and _MODEL not in nested else _EXTRA
        name, rest = (path[0], path[1:]) if len(path) > 1 else (top, (fqn,))
        try:
            check_component_name(name)
        except InvalidInput as error:
            raise InvalidInput(
                f"top-level key of the foreign checkpoint: {error} Save the checkpoint again with "
                "dcp.save under another key.",
                component=str(name),
            ) from error
        component = found.setdefault(str(name), ForeignComponent(str(name)))
        key = ".".join(map(str, rest))
        if key in component.paths:
            text = f"component {name}: expected one entry of the key {key[:80]!r}, found two."
            raise UnsupportedState(text, component=str(name))
        component.paths[key] = rest
        if fqn in index.tensors:
            component.tensors[key] = index.tensors[fqn]
        else:
            component.values[key] = fqn
    return found


def optimizer_tree(
    component: ForeignComponent, values: Mapping[str, object], model: ForeignComponent
) -> dict[str, Any] | None:
    """Return groups and state as an optimizer component stores them; None for other state.

    Reads the output of `get_optimizer_state_dict`, flattened (`state.<fqn>.exp_avg`,
    `param_groups.<fqn>.lr`) or not (`param_groups` is a list with FQNs). The flattened form does
    not store groups: parameters with equal options form one group, in order of appearance.

    Args:
        component: tensors and values by key.
        values: the values themselves, by key.
        model: the component whose parameters the optimizer updates.
    """
    shapes = {key: tensor.shape for key, tensor in model.tensors.items()}
    state: dict[str, dict[str, Any]] = {}
    options: dict[str, dict[str, Any]] = {}
    listed: dict[str, object] = {}
    for key in (*component.tensors, *component.values):
        kind, _, rest = key.partition(".")
        fqn, _, name = rest.rpartition(".")
        path = component.paths[key]
        if path[0] == "param_groups" and len(path) > 2 and type(path[1]) is int and key in values:
            listed[key] = values[key]
        elif fqn not in shapes or not name:
            return None
        elif kind == "state":
            entry = state.setdefault(fqn, {"names": [], "values": {}})
            entry["names"].append(name)
            entry["values"] |= {name: values[key]} if key in values else {}
        elif kind == "param_groups" and key in values:
            options.setdefault(fqn, {})[name] = values[key]
        else:
            return None  # an option that is a tensor has no place in this form
    if listed and options:
        return None
    groups = _listed(component.nested(listed)["param_groups"]) if listed else _equal(options)
    if groups is None or any(name not in shapes for params, _ in groups for name in params):
        return None
    return {
        "groups": [
            {"params": params, "shapes": [list(shapes[p]) for p in params], "options": own}
            for params, own in groups
        ],
        "state": state,
    }


_Groups = list[tuple[list[str], dict[str, Any]]]
"""The parameters of each group, and its options."""


def _listed(groups: object) -> _Groups | None:
    found: _Groups = []
    for group in groups if isinstance(groups, list) else [None]:
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            return None
        params = group["params"]
        if not all(isinstance(name, str) for name in params):
            return None
        own = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        found.append((params, own))
    return found


def _equal(options: Mapping[str, dict[str, Any]]) -> _Groups:
    members: dict[str, list[str]] = {}
    for fqn, own in options.items():
        members.setdefault(repr(sorted(own.items(), key=lambda item: item[0])), []).append(fqn)
    return [(params, options[params[0]]) for params in members.values()]


class ImportedComponent(TreeComponent):
    """Stores a component of a foreign folder like the matching live component; cannot be restored.

    Args:
        name: name of the component.
        tensors: tensors by key; if empty, the component is a tree.
        values: values by key, as stock DCP readers see them.
        tree: content of the component's tree; with tensors, None stands for `values`.
    """

    def __init__(
        self,
        name: str,
        tensors: Mapping[str, torch.Tensor],
        values: Mapping[str, object],
        tree: object,
    ) -> None:
        super().__init__(name, Sharing.GLOBAL)
        self.kind = "tensors" if tensors else "tree"
        self._flat = FlatState(name)
        self._flat.tensors.update(tensors)
        self._flat.values.update(values)
        self._tree = tree

    def read_state(self) -> object:
        """Return the tree."""
        return self._tree

    def bytes_copies(self, value: object) -> tuple[BytesSource, ...]:
        """Return the copies of the values for stock DCP readers."""
        return value_copies(self.name, self._flat.values)

    def describe(self, topology: Topology) -> CapturedComponent:
        """Describe the state; see `Component`."""
        if self.kind == "tree":
            return super().describe(topology)
        return describe_flat(self._flat, Sharing.GLOBAL, topology, self._tree)
