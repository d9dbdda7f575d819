"""Parameter groups of an optimizer: what is stored, how they compare, how they are set again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from stepseal.components._advice import leave_out
from stepseal.components._optimizer_names import is_nameless
from stepseal.components._tensors import saved_copy
from stepseal.layout import BytesSource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

__all__ = [
    "GroupState",
    "class_problems",
    "group_copies",
    "group_problems",
    "install_options",
    "on_cpu",
    "options_of",
    "order_problems",
    "to_device",
]

# Structure, not options: `params` are the tensors themselves, `param_names` follow the live code.
_STRUCTURE = frozenset({"params", "param_names"})
_SCALAR_TYPES = (bool, int, float, str, type(None))
# What torch's optimizers keep on the CPU unless they run inside a CUDA graph or a fused kernel.
_CPU_STATE = frozenset({"step", "mu_product"})


# What schedulers write into groups.
_OF_SCHEDULERS = frozenset(
    {"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr"}
)
_ADAM_STATE = frozenset({"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"})


@dataclass(frozen=True, slots=True)
class GroupState:
    """One parameter group by names."""

    params: tuple[str, ...]
    """Names of the parameters."""
    shapes: tuple[tuple[int, ...], ...]
    """Their global shapes, in elements."""
    options: dict[str, Any]
    """Everything else: lr, betas, weight_decay, ..."""

    def as_value(self) -> dict[str, Any]:
        """Return the group as a value for the typed codecs."""
        return {
            "params": list(self.params),
            "shapes": [list(shape) for shape in self.shapes],
            "options": self.options,
        }

    @classmethod
    def from_value(cls, value: object) -> GroupState | None:
        """Return the group that `as_value` described, None if `value` is something else."""
        if not isinstance(value, dict) or not isinstance(value.get("options"), dict):
            return None
        params, shapes = value.get("params"), value.get("shapes")
        if not isinstance(params, list) or not isinstance(shapes, list):
            return None
        if len(params) != len(shapes) or not all(isinstance(shape, list) for shape in shapes):
            return None
        return cls(tuple(params), tuple(map(tuple, shapes)), value["options"])


def options_of(
    optimizer: torch.optim.Optimizer, names: Mapping[str, torch.Tensor]
) -> list[GroupState]:
    """Return the parameter groups by name."""
    name_of = {id(parameter): name for name, parameter in names.items()}
    return [
        GroupState(
            tuple(name_of[id(parameter)] for parameter in group["params"]),
            tuple(tuple(parameter.shape) for parameter in group["params"]),
            {key: value for key, value in group.items() if key not in _STRUCTURE},
        )
        for group in optimizer.param_groups
    ]


def group_problems(live: Sequence[GroupState], saved: Sequence[GroupState]) -> list[str]:
    """Return how groups differ in number, membership and shapes; order inside a group is free."""
    if len(live) != len(saved):
        return [f"param_groups: expected (live) {len(live)} groups, found {len(saved)}"]
    if problems := _no_module(live, saved):
        return problems
    for number, (mine, other) in enumerate(zip(live, saved, strict=True)):
        where = f"param_groups[{number}]"
        found = dict(zip(other.params, other.shapes, strict=True))
        for name, shape in zip(mine.params, mine.shapes, strict=True):
            if name not in found:
                problems.append(f"{where}: {name}: missing in the checkpoint")
            elif found[name] != shape:
                problems.append(
                    f"{where}: {name}: shape: expected (live) {list(shape)}, found "
                    f"{list(found[name])}"
                )
        expected = set(mine.params)
        problems += [
            f"{where}: {name}: unexpected in the checkpoint"
            for name in found
            if name not in expected
        ]
    return problems


def _no_module(live: Sequence[GroupState], saved: Sequence[GroupState]) -> list[str]:
    """Return the likely cause where parameters have names on one side only."""
    here, there = ({name for group in groups for name in group.params} for groups in (live, saved))
    nameless = [any(map(is_nameless, names)) for names in (here, there)]
    if nameless == [True, False]:
        return [
            "param_groups: the parameters belong to no module that was given, and did at the save: "
            "add their module, or pass it to load, too, such as load(root, model=model, "
            "optimizer=optimizer)"
        ]
    if nameless == [False, True]:
        return [
            "param_groups: the optimizer was saved without its module: restore it without one, too"
        ]
    return []


def order_problems(live: Sequence[GroupState], saved: Sequence[GroupState]) -> list[str]:
    """Return where the order inside a group differs, which matters for state by number."""
    return [
        f"param_groups[{number}]: expected the parameters in the order of the save, found another"
        for number, (mine, other) in enumerate(zip(live, saved, strict=True))
        if mine.params != other.params
    ]


def class_problems(
    component: str,
    optimizer: torch.optim.Optimizer,
    saved: str | None,
    groups: Sequence[GroupState],
    state_names: AbstractSet[object],
) -> list[str]:
    """Return why state of another class cannot go on in this one; empty if it can.

    It can where all saved options and all names of saved state are those of the live class.

    Args:
        component: name of the component.
        optimizer: the live one.
        saved: name of the saved class, None where nobody wrote it down.
        groups: saved groups.
        state_names: names of all saved state.
    """
    live = type(optimizer).__name__
    if saved in (None, live):
        return []
    found = {name for group in groups for name in group.options} - _OF_SCHEDULERS
    options = set(optimizer.defaults)
    names: set[object] = {name for state in optimizer.state.values() for name in state}
    if not names and any(cls is torch.optim.Adam for cls in type(optimizer).__mro__):
        names = set(_ADAM_STATE)
    if found == options and state_names <= names:
        return []
    differ = sorted(map(str, (found ^ options) or state_names - names))
    return [
        f"class: expected (live) {live}, found {saved}, which differs in {differ[:8]}: build the "
        f"{saved} of the save, or {leave_out(component)} leaves it as it is now"
    ]


def install_options(optimizer: torch.optim.Optimizer, saved: Sequence[Mapping[str, Any]]) -> None:
    """Set the saved options in the live groups; live options that the checkpoint lacks stay.

    A tensor (lr) that a live group holds is filled in place, because CUDA graphs and schedulers
    refer to it. Where two groups hold one tensor and the saved values differ, the second gets its
    own.
    """
    filled: dict[int, torch.Tensor] = {}
    for group, options in zip(optimizer.param_groups, saved, strict=True):
        for key, value in options.items():
            live = group.get(key)
            if not isinstance(live, torch.Tensor) or not isinstance(
                value, (torch.Tensor, int, float)
            ):
                group[key] = value
                continue
            new = torch.as_tensor(value, device=live.device).to(live.dtype)
            if not torch.equal(filled.setdefault(id(live), new), new):
                group[key] = live = live.detach().clone()
            with torch.no_grad():
                live.detach().copy_(new)


def group_copies(
    component: str, groups: Sequence[GroupState], state: Mapping[str, Mapping[str, Any]]
) -> list[BytesSource]:
    """Return options and scalar state as stock readers expect them, a record per value."""
    entries: dict[bytes, list[tuple[str, str]]] = {}
    made: dict[str, bytes | None] = {}
    for group in groups:
        for option, value in group.options.items():
            data = _saved(value, made)
            if data:
                keys = [(component, f"param_groups.{name}.{option}") for name in group.params]
                entries.setdefault(data, []).extend(keys)
    for name, entry in state.items():
        for key, value in entry["values"].items():
            data = _saved(value, made) if isinstance(value, _SCALAR_TYPES) else None
            if data:
                entries.setdefault(data, []).append((component, f"state.{name}.{key}"))
    return [BytesSource(tuple(keys), data) for data, keys in entries.items() if keys]


def _saved(value: object, made: dict[str, bytes | None]) -> bytes | None:
    """Return the record of a value, made once per spelling of plain values."""
    if not _is_plain(value):
        return saved_copy(value)
    spelling = f"{type(value).__name__} {value!r}"
    if spelling not in made:
        made[spelling] = saved_copy(value)
    return made[spelling]


def _is_plain(value: object) -> bool:
    """Return whether type and repr together say all of a value."""
    if type(value) is tuple:
        return all(map(_is_plain, value))
    return type(value) in _SCALAR_TYPES


def on_cpu(key: str, shape: tuple[int, ...], options: Mapping[str, Any]) -> bool:
    """Return whether torch keeps this state on the CPU whatever the parameter's device."""
    device_only = options.get("capturable") or options.get("fused")
    return key in _CPU_STATE and shape == () and not device_only


def to_device(value: object, device: torch.device) -> Any:  # noqa: ANN401 - the same kind of value
    """Return a decoded value with the tensors in it on `device`."""
    if isinstance(value, torch.Tensor):  # a wrapper of tensors may know no `to`
        return value if value.device == device else value.to(device)
    if type(value) is list:
        return [to_device(item, device) for item in value]
    if type(value) is tuple:
        return tuple(to_device(item, device) for item in value)
    if type(value) is dict:
        return {key: to_device(item, device) for key, item in value.items()}
    return value
