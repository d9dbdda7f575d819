"""Components that are nested dicts of tensors: dicts, and objects with such a `state_dict`."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, cast

import torch

from stepseal.components._dtensors import owns_plain_tensors
from stepseal.components._leaf_capture import describe_leaves
from stepseal.components._leaves import (
    compare_leaf,
    default_sharing,
    leaves_of,
    open_saved,
)
from stepseal.components._plans import kind_of, mismatch
from stepseal.components._types import HasStateDict
from stepseal.errors import InvalidInput, UnsupportedState
from stepseal.layout import BytesSource, holds_own_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from stepseal.components._leaves import OpenedState
    from stepseal.components._plans import LeafPlan
    from stepseal.components._types import (
        AnySharing,
        CapturedComponent,
        SavedComponent,
        Topology,
    )

__all__ = [
    "FlatState",
    "TensorDictComponent",
    "describe_flat",
    "narrowed",
    "plan_flat",
    "saved_copy",
    "value_copies",
]

_MAX_DEPTH = 60
_Path = tuple[Any, ...]


class FlatState:
    """Tensor leaves and other leaves of a component, by key.

    Args:
        component: name of the component, for messages.
    """

    __slots__ = ("component", "tensors", "values")

    def __init__(self, component: str) -> None:
        self.component = component
        self.tensors: dict[str, torch.Tensor] = {}
        self.values: dict[str, object] = {}

    def add(self, key: str, value: object) -> None:
        """Add a leaf.

        Raises:
            UnsupportedState: another leaf has this key.
        """
        if isinstance(value, torch.Tensor):
            self._check(key)
            self.tensors[key] = value
        else:
            self.add_value(key, value)

    def add_value(self, key: str, value: object) -> None:
        """Add a leaf that goes to the tree, also if it is a tensor; see `add`."""
        self._check(key)
        self.values[key] = value

    def has(self, key: str) -> bool:
        """Return whether there is a leaf of this key."""
        return key in self.tensors or key in self.values

    def _check(self, key: str) -> None:
        if self.has(key):
            raise UnsupportedState(
                f"state has two leaves of one name: component {self.component}, key {key}: "
                "expected "
                "keys that stay distinct when joined by '.'. Rename one of them.",
                component=self.component,
                path=key,
            )


def describe_flat(
    flat: FlatState,
    sharing: AnySharing,
    topology: Topology,
    tree: object = None,
    *,
    never: Collection[str] = (),
) -> CapturedComponent:
    """Describe a flat state, with one tree document of the first participant.

    Args:
        flat: the leaves.
        sharing: the sharing in use.
        topology: who takes part.
        tree: what the tree document holds; None for the leaves that are no tensors.
        never: keys of leaves that are never compared with those of other ranks.
    """
    owns_plain = owns_plain_tensors(topology, flat.tensors.values(), sharing)
    leaves = leaves_of(flat.component, flat.tensors, sharing, owns_plain=owns_plain)
    value = (flat.values or None) if tree is None else tree

    def copies() -> tuple[BytesSource, ...]:
        return value_copies(flat.component, flat.values)

    return describe_leaves(
        flat.component, sharing, topology, leaves, value, flat.values, copies, never=never
    )


def value_copies(component: str, values: Mapping[str, object]) -> tuple[BytesSource, ...]:
    """Return the copies of leaves that are no tensors, for stock DCP readers."""
    made = ((key, saved_copy(value)) for key, value in values.items())
    return tuple(BytesSource(((component, key),), data) for key, data in made if data)


def plan_flat(
    flat: FlatState,
    opened: OpenedState,
    sharing: AnySharing,
    finish: Callable[[Mapping[str, object]], None],
) -> LeafPlan:
    """Compare a flat state with a saved one, strictly, and plan to fill its tensors in place.

    Args:
        flat: live state.
        opened: the saved state.
        sharing: the sharing in use.
        finish: takes the decoded other leaves once the tensors were filled.

    Raises:
        StateMismatch: keys, shapes or dtypes differ; `.problems` lists all.
    """
    values = opened.value if isinstance(opened.value, dict) else {}
    leaves = leaves_of(flat.component, flat.tensors, sharing, owns_plain=False)
    problems: list[str] = []
    for leaf in leaves:
        saved = opened.tensors.get(leaf.key)
        problems += compare_leaf(leaf, saved) if saved else [opened.missing(leaf.key)]
    problems += _key_problems(flat, opened, values)
    if problems:
        raise mismatch(flat.component, problems)
    return opened.plan(leaves, lambda: finish(values))


def narrowed(opened: OpenedState, flat: FlatState, sharing: AnySharing) -> OpenedState:
    """Return what this rank holds of a saved state, where the ranks hold different keys."""
    if not holds_own_keys(sharing):
        return opened
    return opened.narrowed({*flat.tensors, *flat.values}, opened.keys())


def _key_problems(flat: FlatState, opened: OpenedState, values: Mapping[str, object]) -> list[str]:
    return [
        *(opened.missing(key) for key in flat.values if key not in values),
        *(
            f"{key}: unexpected in the checkpoint"
            for key in (*opened.tensors, *values)
            if key not in (flat.tensors if key in opened.tensors else flat.values)
        ),
    ]


def saved_copy(value: object) -> bytes | None:
    """Return what `torch.save` makes of a non-tensor leaf, as stock readers expect it.

    Returns:
        None for what a codec knows and pickle does not (a local class): no stock reader could have
        it either.
    """
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return buffer.getvalue()


class TensorDictComponent:
    """A dict of tensors, or an object whose `state_dict` is one; nested state is flattened by '.'.

    Lists and tuples are flattened, too, where a tensor is in them; else they are leaves. Tensors of
    a dict are restored in place, other leaves are put into it. An object gets its own state dict
    back, with every leaf filled, through `load_state_dict`.

    Args:
        name: name of the component.
        state: the dict or the object.
        sharing: declared sharing, None for the default.
    """

    def __init__(
        self,
        name: str,
        state: MutableMapping[str, Any] | HasStateDict,
        *,
        sharing: AnySharing | None = None,
    ) -> None:
        if not isinstance(state, (MutableMapping, HasStateDict)):
            raise InvalidInput(
                f"component cannot be added: {name}: expected a dict of tensors or an object with "
                "state_dict and "
                f"load_state_dict, found {type(state).__name__}. Add it as a (get, set) pair.",
                component=name,
            )
        self.name = name
        self.kind = kind_of(sharing)
        self._state = state
        self._declared: AnySharing | None = sharing

    def declare(self, sharing: AnySharing) -> None:
        """Go by another sharing from now on."""
        self.kind = kind_of(sharing)
        self._declared = sharing

    def sharing(self, topology: Topology) -> AnySharing:
        """Return the declared sharing or the default for `topology`."""
        _, flat = self._read()
        return default_sharing(self.name, self._declared, flat.tensors.values(), topology)

    def describe(self, topology: Topology) -> CapturedComponent:
        """Describe the state on the caller's thread; see `Component`."""
        _, flat = self._read()
        sharing = default_sharing(self.name, self._declared, flat.tensors.values(), topology)
        return describe_flat(flat, sharing, topology)

    def plan(self, saved: SavedComponent, topology: Topology) -> LeafPlan:
        """Check a saved state against live state, strictly, and change nothing; see `Component`."""
        state, flat = self._read()
        sharing = default_sharing(self.name, self._declared, flat.tensors.values(), topology)
        opened = open_saved(saved, sharing, topology)
        opened = narrowed(opened, flat, sharing)
        return plan_flat(flat, opened, sharing, lambda values: self._finish(state, values))

    def _read(self) -> tuple[Any, FlatState]:
        state = self._state if isinstance(self._state, MutableMapping) else self._state.state_dict()
        flat = FlatState(self.name)
        if not isinstance(state, Mapping):
            raise UnsupportedState(
                f"component is no tensor component: {self.name}: expected state_dict() to return a "
                "dict, found "
                f"{type(state).__name__}. Add it as a tree component.",
                component=self.name,
            )
        _flatten(flat, (), state)
        return state, flat

    def _finish(self, state: Any, values: Mapping[str, object]) -> None:  # noqa: ANN401 - foreign state
        if isinstance(self._state, MutableMapping):
            _assign(state, (), values)
        else:
            self._state.load_state_dict(_replaced(state, (), values))


def _flatten(flat: FlatState, path: _Path, state: object) -> None:
    """Add every leaf of a nested state to `flat`."""
    for key, value in _items(state):
        if type(key) not in (str, int) or len(path) == _MAX_DEPTH:
            where = _joined((*path, key))
            raise UnsupportedState(
                f"state cannot be flattened: component {flat.component}, key {where}: expected str "
                f"or int keys, nested at most {_MAX_DEPTH} deep, found {type(key).__name__} at "
                f"depth {len(path)}. Flatten the state, or add it as a tree component.",
                component=flat.component,
                path=where,
            )
        if _is_branch(value):
            _flatten(flat, (*path, key), value)
        else:
            flat.add(_joined((*path, key)), value)


def _is_branch(value: object, depth: int = 0) -> bool:
    """Return whether a value is flattened: a dict, or a list or tuple with a tensor inside."""
    if isinstance(value, (list, tuple)) and depth < _MAX_DEPTH:
        return any(isinstance(one, torch.Tensor) or _holds(one, depth + 1) for one in value)
    return isinstance(value, Mapping)


def _holds(value: object, depth: int) -> bool:
    if isinstance(value, Mapping):
        found = value.values()
        return depth < _MAX_DEPTH and any(
            isinstance(one, torch.Tensor) or _holds(one, depth + 1) for one in found
        )
    return _is_branch(value, depth)


def _items(state: object) -> Iterable[tuple[Any, Any]]:
    return state.items() if isinstance(state, Mapping) else enumerate(cast("Any", state))


def _assign(state: Any, path: _Path, values: Mapping[str, object]) -> None:  # noqa: ANN401
    """Put decoded leaves into a live nested dict or list, in place."""
    for key, value in tuple(_items(state)):
        here = (*path, key)
        if isinstance(value, (MutableMapping, list)) and _is_branch(value):
            _assign(value, here, values)
        elif _is_branch(value):  # a tuple; its tensors were filled in place
            state[key] = _replaced(value, here, values)
        elif _joined(here) in values:
            state[key] = values[_joined(here)]


def _replaced(state: Any, path: _Path, values: Mapping[str, object]) -> Any:  # noqa: ANN401
    """Return a copy of a nested state, of the same types, with decoded leaves in their places."""
    new = {}
    for key, value in _items(state):
        here = (*path, key)
        new[key] = (
            _replaced(value, here, values)
            if _is_branch(value)
            else values.get(_joined(here), value)
        )
    if isinstance(state, tuple):
        return state._make(new.values()) if hasattr(state, "_make") else type(state)(new.values())
    target = copy.copy(state)
    for key, value in new.items():
        target[key] = value
    return target


def _joined(path: _Path) -> str:
    return ".".join(map(str, path))
