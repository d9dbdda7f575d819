"""Mistakes about who holds what of a tensor: what the campaign must catch.

All ranks of a world make the mistake, at the save and at the restore: between other placements it
must show.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from tests.campaigns.kill._variants import replace
from torch.distributed.tensor import Partial, Shard

from stepseal.components import _dtensors, _leaves, _sinks, _tensors
from stepseal.components._sinks import DenseSink
from stepseal.layout import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stepseal.components._dtensors import Leaf

__all__ = ["VARIANTS", "Variant", "broken"]

_DIFFERS = "it differs"
_SizesOffsets = tuple[tuple[int, ...], tuple[int, ...]]
_torch_box = _dtensors._torch_box
_cut_in_order = _dtensors._cut_in_order
_leaf_of = _dtensors.leaf_of
_compare_leaf = _leaves.compare_leaf


@dataclass(frozen=True, slots=True)
class Variant:
    """A mistake, and as what it must be seen."""

    patch: Callable[[], None]
    """Break this process."""
    told: str = _DIFFERS
    """What one of the violations must say."""


class _Mirrored:
    """A mesh on which this rank has the coordinates in the wrong order."""

    def __init__(self, mesh: Any) -> None:  # noqa: ANN401 - DeviceMesh
        self._mesh = mesh

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - its own
        return getattr(self._mesh, name)

    def get_coordinate(self) -> list[int]:
        """Return the coordinates from the last axis to the first."""
        found: list[int] = self._mesh.get_coordinate()
        return found[::-1]


def _swap_axes() -> None:
    """The coordinate on the second axis of the mesh counts for the first."""

    def box(shape: tuple[int, ...], mesh: Any, placements: tuple[Any, ...]) -> _SizesOffsets:  # noqa: ANN401 - DeviceMesh
        sizes, offsets = _torch_box(shape, mesh, placements)
        if mesh.ndim == 1 or any(map(_dtensors._split_factor, placements)):
            return sizes, offsets
        found = _cut_in_order(shape, _Mirrored(mesh), placements)
        assert found is not None
        return sizes, found[1]  # those of the local tensor, or it would be refused

    replace(_dtensors, "_torch_box", box)


def _ignore_strides() -> None:
    """A strided shard counts as cut before those right of it, like any other.

    Nor are the local sizes compared, which would refuse some of these tensors.
    """
    factor = _dtensors._split_factor

    def box(shape: tuple[int, ...], mesh: Any, placements: tuple[Any, ...]) -> _SizesOffsets:  # noqa: ANN401 - DeviceMesh
        found = _torch_box(shape, mesh, tuple(_plain(one, factor(one)) for one in placements))
        cut = _cut_in_order(shape, mesh, placements)
        return found if cut is None or not any(map(factor, placements)) else (cut[0], found[1])

    replace(_dtensors, "_torch_box", box)
    replace(_dtensors, "_split_factor", lambda _: 0)


def _plain(placement: Any, factor: int) -> Any:  # noqa: ANN401 - Placement
    return Shard(placement.dim) if factor else placement


def _forget_placements() -> None:
    """The kept boxes are looked up by shape alone."""
    kept: dict[tuple[int, ...], _SizesOffsets] = {}

    def box(shape: tuple[int, ...], mesh: Any, placements: tuple[Any, ...]) -> _SizesOffsets:  # noqa: ANN401 - DeviceMesh
        return kept.setdefault(shape, _torch_box(shape, mesh, placements))

    replace(_dtensors, "_torch_box", box)


def _changed_leaves(change: Callable[[Leaf], dict[str, Any]]) -> None:
    def leaf_of(*args: Any, **options: Any) -> Leaf:  # noqa: ANN401 - as patched
        leaf = _leaf_of(*args, **options)
        return dataclasses.replace(leaf, **change(leaf))

    replace(_leaves, "leaf_of", leaf_of)


def _write_every_replica() -> None:
    """Each rank writes what it holds."""
    _changed_leaves(lambda leaf: {"writes": leaf.box is not None})


def _write_replicas_that_differ() -> None:
    """Each rank writes what it holds, and these are not equal."""

    def changed(leaf: Leaf) -> dict[str, Any]:
        local = leaf.local.clone()
        if local.numel():
            local.view(-1).view(torch.uint8)[0] ^= dist.get_rank() == 1
        return {"local": local, "writes": leaf.box is not None}

    _changed_leaves(changed)


def _write_first_replica() -> None:
    """Only ranks that are first on every axis write what has a replica."""

    def is_writer(_key: str, mesh: Any, replicas: tuple[int, ...]) -> bool:  # noqa: ANN401 - DeviceMesh
        return not replicas or not any(mesh.get_coordinate())

    replace(_dtensors, "_is_writer", is_writer)


def _write_no_empty_tensor() -> None:
    """A tensor without elements has no writer."""
    _changed_leaves(lambda leaf: {"writes": leaf.writes and math.prod(leaf.shape) > 0})


def _miss_empty_shards() -> None:
    """A rank that holds nothing of a tensor finds that the step lacks it."""

    def compare(leaf: Leaf, saved: Any) -> list[str]:  # noqa: ANN401 - SavedTensor or None
        return _compare_leaf(leaf, None if leaf.box is None else saved)

    replace(_tensors, "compare_leaf", compare)


def _refuse_empty_shards() -> None:
    """A local part without elements must have the sizes that its placements give it."""

    def box(*args: Any) -> Box | None:  # noqa: ANN401 - as patched
        dtensor, local_shape = args[2], args[3]
        sizes, _ = _torch_box(tuple(dtensor.shape), dtensor.device_mesh, dtensor.placements)
        if 0 in sizes and sizes != local_shape:
            raise ValueError(f"expected the local shape {sizes}, found {local_shape}")
        return real(*args)

    real = _dtensors._box
    replace(_dtensors, "_box", box)


def _ignore_stored_offsets() -> None:
    """Stored elements go to where the box would lie at the origin."""
    scatter = DenseSink._scatter

    def at_origin(self: DenseSink, stored: Box, start: int, chunk: Any) -> None:  # noqa: ANN401 - Tensor
        scatter(self, Box((0,) * len(stored.sizes), stored.sizes), start, chunk)

    replace(DenseSink, "_scatter", at_origin)


def _ignore_start() -> None:
    """Each chunk of a box is taken for its first."""
    scatter = DenseSink._scatter
    replace(DenseSink, "_scatter", lambda self, box, _start, chunk: scatter(self, box, 0, chunk))


def _save_partial() -> None:
    """What awaits a reduction is saved as it is."""
    replace(Partial, "is_partial", lambda *_: False)


VARIANTS = {
    "axes-swapped": Variant(_swap_axes, "expected a box inside the global shape"),
    "strides-ignored": Variant(_ignore_strides),
    "placements-forgotten": Variant(_forget_placements, "is not the"),
    "every-replica-writes": Variant(_write_every_replica, "expected it stored once"),
    "replicas-differ": Variant(_write_replicas_that_differ, "must hold equal state"),
    "first-replica-writes": Variant(_write_first_replica, "no box holds"),
    "empty-tensor-without-writer": Variant(_write_no_empty_tensor, "missing in the checkpoint"),
    "empty-shard-is-missing": Variant(_miss_empty_shards, "missing in the checkpoint"),
    "empty-shard-is-refused": Variant(_refuse_empty_shards, "expected the local shape"),
    "stored-offsets-ignored": Variant(_ignore_stored_offsets),
    "chunk-start-ignored": Variant(_ignore_start),
    "partial-is-saved": Variant(_save_partial, "a pending reduction was saved"),
}
_PATCHED = (_dtensors, _leaves, _sinks, _tensors, DenseSink, Partial)


@contextlib.contextmanager
def broken(name: str) -> Iterator[None]:
    """Break this process for a while."""
    before = [dict(vars(owner)) for owner in _PATCHED]
    _dtensors._boxes.clear()
    VARIANTS[name].patch()
    try:
        yield
    finally:
        _dtensors._boxes.clear()
        for owner, names in zip(_PATCHED, before, strict=True):
            for each in [one for one in vars(owner) if one not in names]:
                delattr(owner, each)
            for each, value in names.items():
                if vars(owner)[each] is not value:
                    setattr(owner, each, value)
