"""How large a save would be, found without copying anything."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.components._arena import slot_bytes
from stepseal.components._capture import share_of
from stepseal.components._rng import RNG, RNGComponent
from stepseal.components._stateful import StatefulComponent
from stepseal.layout import ITEMSIZE, Division, holds_own_keys, rule_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stepseal.components._replicas import ReplicaRule, Replicas
    from stepseal.components._types import CapturedComponent, Component, Topology

__all__ = ["StateSize", "measure"]

_log = logging.getLogger("stepseal")


@dataclass(frozen=True, slots=True)
class StateSize:
    """The size of a save of all components, as one participant sees it."""

    whole_bytes: int
    """What all participants write together: boxes and replicas count once. Where others hold state
    of their own, it is taken to be as large as here."""
    staged_bytes: int
    """What this participant copies for an asynchronous save."""
    unknown: tuple[str, ...]
    """Components that are not in it, or not with all that they will have, each with the reason."""


def measure(
    components: Iterable[Component],
    rules: Mapping[str, ReplicaRule],
    topology: Topology,
    *,
    under_way: bool,
) -> StateSize:
    """Describe all components, and add up.

    Every participant calls it, because a `state_dict()` of the user may need the others. It moves
    no random stream, and starts no iteration.

    Args:
        components: of this participant.
        rules: component to how it is compared.
        topology: who takes part.
        under_way: whether training began.
    """
    whole = staged = 0
    unknown: list[str] = []
    with RNGComponent("rng", RNG()).kept():
        for component in components:
            if why := _not_measured(component, under_way=under_way):
                unknown.append(f"{component.name} ({why})")
                continue
            try:
                found, replicas = share_of(component, topology, rules[component.name])
            except Exception as error:
                _log.debug("stepseal: %s cannot be read yet: %r", component.name, error)
                unknown.append(f"{component.name} (cannot be read yet)")
                continue
            whole += _whole_bytes(found, replicas, topology)
            copied = [tensor.data for tensor in found.tensors]
            copied += [array.data for tree in found.trees for array in tree.arrays]
            staged += sum(slot_bytes(data.size_bytes) for data in copied)
            if hasattr(component, "optimizer") and not component.optimizer.state:
                unknown.append(f"{component.name} (has no state yet)")
    return StateSize(whole, staged, tuple(unknown))


def _not_measured(component: Component, *, under_way: bool) -> str:
    """Return why a component is not asked; empty if it is."""
    if component.kind == "external":
        return "an engine writes it"
    may_start = isinstance(component, StatefulComponent) and component.may_start_iteration(
        under_way=under_way
    )
    return "not asked before its iteration" if may_start else ""


def _whole_bytes(found: CapturedComponent, replicas: Replicas | None, topology: Topology) -> int:
    """Return what all participants write of a component."""
    held = (*found.tensors, *(() if replicas is None else replicas.tensors))
    tensors = {one.key: math.prod(one.shape) * ITEMSIZE[one.dtype] for one in held}
    trees = sum(array.data.size_bytes for tree in found.trees for array in tree.arrays)
    num_sets = num_payloads = 1
    if isinstance(found.sharing, Division):
        num_payloads = len(found.sharing.sets)
        num_sets = num_payloads if holds_own_keys(found.sharing) else 1
    elif not rule_of(found.sharing).any_world:
        num_payloads = topology.world_size
    return num_sets * sum(tensors.values()) + num_payloads * trees
