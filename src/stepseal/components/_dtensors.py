"""Which box of a global tensor this participant holds, and whether it is the one that writes it.

Everything is computed from the tensor's own mesh and placements: no collective, the same answer on
all ranks.
"""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from stepseal.errors import UnsupportedState
from stepseal.layout import (
    ITEMSIZE,
    Box,
    holds_own_keys,
    payload_report,
    whole,
    writes_plain,
    writes_replica,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepseal.components._types import AnySharing, Topology

__all__ = ["Leaf", "is_dtensor", "leaf_of", "owns_plain_tensors", "ranks_alike"]

_SizesOffsets: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]

# Torch counts every coordinate of a split dim, so its answers are kept from save to save.
_MAX_BOXES = 4096
_boxes: dict[Any, _SizesOffsets] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """One live tensor as this participant holds it."""

    key: str
    """Name inside the component."""
    local: torch.Tensor
    """The elements of `box`, detached, sharing memory with the live tensor."""
    shape: tuple[int, ...]
    """Global shape, in elements."""
    box: Box | None
    """Where `local` lies inside the global tensor; None where this participant holds no element."""
    writes: bool
    """Whether this participant writes the box; among equal replicas exactly one does."""
    mesh: Any = None
    """Mesh of a DTensor; None for a plain tensor."""
    replicated: tuple[int, ...] = ()
    """Axes of the mesh along which ranks hold the same box."""

    @property
    def dtype(self) -> str:
        """Name of the element type, as in `layout`."""
        return _dtype_name(self.local.dtype)


def is_dtensor(value: object) -> bool:
    """Return whether `value` is a DTensor; imports nothing, as no DTensor precedes its module."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def owns_plain_tensors(
    topology: Topology, neighbours: Iterable[torch.Tensor], sharing: AnySharing
) -> bool:
    """Return whether this participant writes tensors that are no DTensors.

    Where sets of ranks hold different keys, that is the lowest rank of each set. Else it is the
    lowest rank of all meshes that `neighbours` lie on, and without meshes the first participant.

    Args:
        topology: who takes part.
        neighbours: the tensors that the plain ones belong to, for example the module's parameters.
        sharing: the sharing in use.
    """
    if holds_own_keys(sharing):
        return payload_report(sharing, topology.rank, topology.participants).writes
    meshes = {id(mesh): mesh for mesh in map(_mesh_of, neighbours) if mesh is not None}
    if not meshes:
        return writes_plain(topology.rank)
    lowest = min(int(mesh.mesh.min()) for mesh in meshes.values())
    return writes_plain(torch.distributed.get_rank(), lowest)


def leaf_of(component: str, key: str, tensor: torch.Tensor, *, owns_plain: bool) -> Leaf:
    """Return what this participant holds of a live tensor.

    Args:
        component: name of the component, for messages.
        key: name of the tensor inside it.
        tensor: plain tensor or DTensor.
        owns_plain: whether this participant writes `tensor` if it is a plain one.

    Raises:
        UnsupportedState: a kind of tensor whose bytes alone do not say what it holds; `.path` is
            the key.
    """
    if not is_dtensor(tensor):
        local = _plain_local(component, key, tensor)
        shape = tuple(local.shape)
        return Leaf(key, local, shape, whole(shape), owns_plain)
    dtensor: Any = tensor
    with torch.no_grad():  # else it would build a graph node
        local = _plain_local(component, key, dtensor.to_local())
    shape, mesh, placements = tuple(dtensor.shape), dtensor.device_mesh, tuple(dtensor.placements)
    for placement in placements:
        if placement.is_partial():
            raise _unsupported(
                component,
                key,
                f"a DTensor with a pending reduction ({placement})",
                "Redistribute it to Replicate() or Shard(dim) before saving",
            )
    if mesh.get_coordinate() is None:
        return Leaf(key, local, shape, None, writes=False)
    if math.prod(shape) == 0:  # nobody holds an element, but somebody must store the key
        everyone = tuple(range(mesh.ndim))
        writes = _is_writer(key, mesh, everyone)
        return Leaf(key, local.view(shape), shape, whole(shape), writes, mesh, everyone)
    box = _box(component, key, dtensor, tuple(local.shape))
    replicas = tuple(axis for axis, placement in enumerate(placements) if placement.is_replicate())
    writes = box is not None and _is_writer(key, mesh, replicas)
    return Leaf(key, local, shape, box, writes, mesh, replicas)


def ranks_alike(leaf: Leaf) -> tuple[int, ...]:
    """Return the ranks that hold the same box of a DTensor, ascending."""
    coordinate = leaf.mesh.get_coordinate()
    place = tuple(
        slice(None) if axis in leaf.replicated else at for axis, at in enumerate(coordinate)
    )
    return tuple(sorted(leaf.mesh.mesh[place].flatten().tolist()))


def _mesh_of(tensor: torch.Tensor) -> Any:  # noqa: ANN401 - DeviceMesh, or None for a plain tensor
    return getattr(tensor, "device_mesh", None) if is_dtensor(tensor) else None


def _is_writer(key: str, mesh: Any, replicas: tuple[int, ...]) -> bool:  # noqa: ANN401 - DeviceMesh
    """Return whether this rank writes for all ranks that differ only on the axes `replicas`."""
    coordinate = mesh.get_coordinate()
    sizes = [mesh.size(axis) for axis in replicas]
    return writes_replica(key, [coordinate[axis] for axis in replicas], sizes)


def _box(
    component: str,
    key: str,
    dtensor: Any,  # noqa: ANN401 - DTensor
    local_shape: tuple[int, ...],
) -> Box | None:
    """Return the box of this rank's local tensor, None if it is empty."""
    mesh, placements = dtensor.device_mesh, tuple(dtensor.placements)
    found = _torch_box(tuple(dtensor.shape), mesh, placements)
    if any(_split_factor(placement) for placement in placements):
        # FSDP2 x TP. Torch counts the axes from left to right, but a strided axis was cut after
        # those right of it: for uneven sizes torch's answer can differ from the local tensor, and
        # the order of the cuts decides.
        cut = _cut_in_order(tuple(dtensor.shape), mesh, placements)
        if cut is None or (found[0] == cut[0] == local_shape and found != cut and 0 not in cut[0]):
            raise _unsupported(
                component,
                key,
                f"a DTensor whose local part is not one box ({placements} on {tuple(mesh.shape)})",
                "Shard the dim evenly, or make tensor parallelism the last axis of the mesh",
            )
        found = cut
    sizes, offsets = found
    if not math.prod(sizes) and not math.prod(local_shape):
        return None  # FSDP2 gives an empty part other sizes where tensor parallelism left nothing
    if sizes != local_shape:
        raise _unsupported(
            component,
            key,
            f"a DTensor whose local shape {list(local_shape)} is not the {list(sizes)} of its "
            "placements",
            "Build it with distribute_tensor or fully_shard, which split as torch.chunk does",
        )
    return Box(offsets, sizes)


def _torch_box(
    shape: tuple[int, ...],
    mesh: Any,  # noqa: ANN401 - DeviceMesh
    placements: tuple[Any, ...],
) -> _SizesOffsets:
    """Return torch's own sizes and offsets of this rank's local tensor."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    # Everything that the answer depends on, and not the mesh: meshes of other ranks compare equal.
    key = (shape, tuple(mesh.shape), tuple(mesh.get_coordinate()), placements)
    found = _boxes.get(key)
    if found is None:
        sizes, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
        if len(_boxes) >= _MAX_BOXES:
            _boxes.clear()
        found = _boxes[key] = (tuple(map(int, sizes)), tuple(map(int, offsets)))
    return found


def _cut_in_order(
    shape: tuple[int, ...],
    mesh: Any,  # noqa: ANN401 - DeviceMesh
    placements: tuple[Any, ...],
) -> _SizesOffsets | None:
    """Return sizes and offsets if ordinary splits come first, then strided ones, right to left.

    Returns:
        None when a split factor is not the product of the splits that came before, so that the part
        is no box.
    """
    sizes, offsets, num_splits = list(shape), [0] * len(shape), [1] * len(shape)
    splits = [axis for axis, placement in enumerate(placements) if not placement.is_replicate()]
    ordinary = [axis for axis in splits if not _split_factor(placements[axis])]
    strided = [axis for axis in reversed(splits) if _split_factor(placements[axis])]
    coordinate = mesh.get_coordinate()
    for axis in (*ordinary, *strided):
        dim = placements[axis].dim
        if _split_factor(placements[axis]) not in (0, num_splits[dim]):
            return None
        chunk = -(-sizes[dim] // mesh.size(axis))
        start = min(chunk * coordinate[axis], sizes[dim])
        offsets[dim] += start
        sizes[dim] = min(chunk, sizes[dim] - start)
        num_splits[dim] *= mesh.size(axis)
    return tuple(sizes), tuple(offsets)


def _split_factor(placement: Any) -> int:  # noqa: ANN401 - Placement
    """Return the split factor of a `_StridedShard`, 0 for any other placement."""
    return int(getattr(placement, "split_factor", 0))


def _plain_local(component: str, key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor detached and plain, or say why its bytes are not its state."""
    found, advice = _refusal(tensor)
    if found:
        raise _unsupported(component, key, found, advice)
    if _dtype_name(tensor.dtype) not in ITEMSIZE:
        raise _unsupported(component, key, f"a tensor of {tensor.dtype}", "Convert it first")
    return tensor.detach().as_subclass(torch.Tensor)


def _refusal(tensor: torch.Tensor) -> tuple[str, str]:
    """Return what unsupported kind of tensor this is and what to do; empty for a good one."""
    if torch.nn.parameter.is_lazy(tensor):
        return "an uninitialized lazy parameter", "Run one forward pass before saving or restoring"
    if tensor.is_nested:
        return "a nested tensor", "Store its values and offsets as two tensors"
    if type(tensor).__name__ == "ShardedTensor":
        return "a ShardedTensor", "Use fully_shard (FSDP2) or DTensor"
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return (
            f"a {type(tensor).__module__}.{type(tensor).__qualname__}, which wraps other tensors",
            f"In the state of an optimizer, stepseal.register({type(tensor).__qualname__}), or "
            "register_codec if it has no __tensor_flatten__, lets it be stored; elsewhere, give "
            "the component a state_dict of its inner tensors, or convert it",
        )
    if tensor.layout is not torch.strided:
        return f"a sparse tensor ({tensor.layout})", "Store its indices and values as two tensors"
    if tensor.is_quantized:
        return "a quantized tensor", "Store int_repr(), scale and zero point as plain values"
    if tensor.is_meta:
        return "a tensor on the meta device, without data", "Materialize it with to_empty() first"
    return "", ""


def _unsupported(component: str, key: str, found: str, advice: str) -> UnsupportedState:
    return UnsupportedState(
        f"tensor cannot be stored: component {component}, key {key}: expected a dense tensor or "
        "DTensor, "
        f"found {found}. {advice}.",
        component=component,
        path=key,
        found=found,
    )


@functools.cache  # there are few, and torch spells them slowly
def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
