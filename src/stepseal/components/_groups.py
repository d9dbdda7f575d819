"""Which ranks hold equal state or the same keys: `per_group`, `sharded`, and the sets of a job.

Everything is computed on each rank alone, from its mesh, its process group or the list that it was
given; the coordinator compares what the ranks found.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from stepseal.components._torch_in_use import class_of
from stepseal.components._types import Sharing
from stepseal.errors import InvalidInput
from stepseal.layout import (
    AnySharing,
    Division,
    coordinate_at,
    divided,
    division_problems,
    numbered_sets,
)

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from stepseal.components._types import Topology

__all__ = ["DeclaredSharing", "check_sharing", "per_group", "resolved", "sharded"]

DeclaredSharing: TypeAlias = AnySharing | Callable[[], AnySharing]
"""What `add` takes as sharing: a sharing, or what returns one at each save."""

_EXPECTED = (
    "expected one of ss.GLOBAL, ss.REPLICATED, ss.SHARDED, ss.PER_RANK, ss.PER_NODE, "
    "ss.per_group(same_on=...) and ss.sharded(same_on=...), or a function that returns one"
)


def per_group(*, same_on: object) -> Division:
    """Return the sharing of state that is equal on the ranks of a set, and differs between sets.

    The lowest rank of each set writes. A restore finds a rank's payload by its coordinate: its
    position on the other axes of the mesh, so that the axes of `same_on` may change their size; or
    else the number of its set, sets being numbered by their lowest rank.

    Args:
        same_on: the ranks along which the state is equal: a part of a named device mesh
            (`mesh["dp"]`), this rank's process group, or the list of all sets (`[[0, 1], [2, 3]]`).
            A process group must be spaced evenly, as along an axis of a mesh, and all groups alike.

    Raises:
        InvalidInput: it is none of these, or the sets are empty, overlap, or lack this rank.
    """
    if _is_mesh(same_on):
        division = _of_mesh(same_on)
    elif isinstance(same_on, class_of("torch.distributed", "ProcessGroup")):
        division = _of_process_group(same_on)
    else:
        division = numbered_sets(Sharing.PER_GROUP, "set", _listed_sets(same_on))
    if problems := division_problems(division):
        raise InvalidInput(f"same_on: {'; '.join(problems)}.", problems=problems)
    return division


def sharded(*, same_on: object) -> Division:
    """Return the sharing of tensors whose keys differ between sets of ranks: stages of a pipeline.

    Keys are names in the whole model. The ranks of a set hold the same keys: DTensors in parts,
    plain tensors whole, and the lowest rank writes these for all. A key may be in several sets,
    such as a tied embedding; each set writes it, and a save of unequal values is refused. A restore
    goes by key, so that ranks may be divided otherwise, and every saved key must be taken by a
    rank. `sharing=ss.SHARDED` is the same with sets of one rank each.

    Args:
        same_on: the ranks that hold the same keys, such as `mesh["dp"]`; as in `per_group`.

    Raises:
        InvalidInput: as in `per_group`.
    """
    return replace(per_group(same_on=same_on), sharing=Sharing.SHARDED)


def check_sharing(name: str, sharing: object) -> None:
    """Refuse what is no sharing, and PER_GROUP without its sets.

    Raises:
        InvalidInput: what is wrong, and what to declare.
    """
    if sharing is Sharing.PER_GROUP:
        raise InvalidInput(
            f"component {name!r}: sharing: expected the sets of ranks that hold equal state, found "
            "PER_GROUP without them. Declare sharing=ss.per_group(same_on=...) with a mesh axis, a "
            "process group or a list of sets.",
            component=name,
        )
    if not isinstance(sharing, (Sharing, Division)):
        raise InvalidInput(
            f"component {name!r}: sharing: {_EXPECTED}, found {sharing!r:.80}", component=name
        )


def resolved(name: str, declared: AnySharing, topology: Topology) -> AnySharing:
    """Return a declared sharing, with sets that hold each rank of the job once where it has some.

    Raises:
        InvalidInput: the sets do not fit the ranks of the job, or it is not known which node a rank
            is on.
    """
    world_size = topology.world_size
    if declared is Sharing.PER_NODE:
        nodes = topology.nodes or (0,) * (world_size == 1)
        if len(nodes) != world_size:
            raise InvalidInput(
                f"component {name!r}: sharing PER_NODE: expected every rank to know its node, in "
                "one way for all, found that they do not. Pass Checkpointer(node=...) on each.",
                component=name,
            )
        members: dict[int, list[int]] = {}
        for rank, node in enumerate(nodes):
            members.setdefault(node, []).append(rank)
        return numbered_sets(Sharing.PER_NODE, "node", members.values())
    if declared is Sharing.SHARDED:  # whoever holds a key writes it
        return numbered_sets(Sharing.SHARDED, "rank", [[rank] for rank in range(world_size)])
    if isinstance(declared, Division):
        problems = division_problems(declared, world_size)
        if problems:
            raise InvalidInput(
                f"component {name!r}: sharing {declared.name}: sets of {world_size} "
                f"ranks: {'; '.join(problems)}. Put each rank of the job into exactly one set.",
                component=name,
                problems=problems,
            )
    return declared


def _is_mesh(value: object) -> bool:
    """Tell whether it is a device mesh; imports nothing, as no mesh precedes its module."""
    return isinstance(value, class_of("torch.distributed.device_mesh", "DeviceMesh"))


def _of_mesh(part: Any) -> Division:  # noqa: ANN401 - a DeviceMesh, whose types are not exported
    import torch.distributed as dist

    root = _root_of(part)
    names, me = root.mesh_dim_names or (), dist.get_rank()
    place = (root.mesh == me).nonzero().flatten().tolist()
    own = part.mesh.flatten().tolist()
    if me not in own or not place:
        raise InvalidInput(
            f"same_on: expected a mesh that holds this rank {me}, found ranks "
            f"{own!s:.80}. Build the mesh from all ranks of the job."
        )
    same = _axes_of(part, root, place)
    others = [axis for axis in range(root.ndim) if axis not in same]
    positions = itertools.product(*map(range, root.mesh.shape))
    sets: dict[str, list[int]] = {}
    for position, rank in zip(positions, root.mesh.flatten().tolist(), strict=True):
        at = coordinate_at({names[axis]: position[axis] for axis in others})
        sets.setdefault(at, []).append(rank)
    sizes = {names[axis]: int(root.mesh.shape[axis]) for axis in others}
    division = divided(Sharing.PER_GROUP, sizes, sets)
    assert division.ranks_at(division.coordinates()[me]) == tuple(sorted(own)), "the part's ranks"
    return division


def _root_of(part: Any) -> DeviceMesh:  # noqa: ANN401 - see above
    find = getattr(part, "_get_root_mesh", None)
    if find is None:  # torch 2.9
        from torch.distributed.device_mesh import _mesh_resources

        found: DeviceMesh = _mesh_resources.get_root_mesh(part)
        return found
    root: DeviceMesh = find()
    return root


def _axes_of(part: Any, root: Any, place: Sequence[int]) -> set[int]:  # noqa: ANN401 - see above
    """Return the axes of the root that a part of it runs along; those of size 1 by name alone."""
    own, names = set(part.mesh.flatten().tolist()), part.mesh_dim_names or ()
    same = set()
    for axis in range(root.ndim):
        line = list(place)
        line[axis] = (place[axis] + 1) % int(root.mesh.shape[axis])
        named = part is root or (bool(root.mesh_dim_names) and root.mesh_dim_names[axis] in names)
        if named or (line[axis] != place[axis] and int(root.mesh[tuple(line)]) in own):
            same.add(axis)
    return same


def _of_process_group(group: Any) -> Division:  # noqa: ANN401 - a ProcessGroup
    import torch.distributed as dist

    me, world = dist.get_rank(), dist.get_world_size()
    try:
        ranks = sorted(dist.get_process_group_ranks(group))
    except (ValueError, KeyError, RuntimeError) as error:
        raise InvalidInput(
            f"same_on: expected a process group of this job, found one that torch does "
            f"not know ({error!s:.80}). Build it with dist.new_group or init_device_mesh."
        ) from error
    if me not in ranks:
        raise InvalidInput(
            f"same_on: expected the process group of this rank {me}, found one of ranks "
            f"{ranks!s:.80}. Pass each rank the group that it is in."
        )
    stride, size = (ranks[1] - ranks[0] if len(ranks) > 1 else 1), len(ranks)
    span = stride * size
    start = [at + below for at in range(0, world, span) for below in range(stride)]
    sets = [list(range(first, first + span, stride)) for first in start]
    if world % span or ranks not in sets:
        raise InvalidInput(
            f"same_on: expected a process group whose ranks are spaced evenly, found "
            f"{ranks!s:.80} of {world}: the sets of other ranks do not follow from it. Pass a mesh "
            "axis, or the list of all sets."
        )
    return numbered_sets(Sharing.PER_GROUP, "set", sets)


def _listed_sets(value: object) -> list[list[int]]:
    wrong = (
        'expected a part of a device mesh such as mesh["dp"], the process group of this rank, or a '
        "list of lists of ranks"
    )
    no_group = (one.NON_GROUP_MEMBER for one in class_of("torch.distributed", "GroupMember"))
    if type(value) is int and value in no_group:
        raise InvalidInput(
            f"same_on: {wrong}, found that this rank is in no group. Put each rank into a group."
        )
    sets: list[list[int]] = []
    for one in value if isinstance(value, (list, tuple)) else [None]:
        ranks: list[int] = list(one) if isinstance(one, (list, tuple, range)) else [-1]
        if not all(type(rank) is int and rank >= 0 for rank in ranks):
            raise InvalidInput(f"same_on: {wrong}, found {value!r:.80}")
        sets.append(ranks)
    return sets
