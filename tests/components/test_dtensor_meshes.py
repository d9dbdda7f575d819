"""DTensor leaves on every rank of a mesh, in one process with torch's fake process group."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist
from tests.components._memory import ALONE, Sharing, world
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from stepseal.components._capture import capture
from stepseal.components._dtensors import Leaf, leaf_of, owns_plain_tensors
from stepseal.components._tensors import TensorDictComponent
from stepseal.errors import UnsupportedState
from stepseal.layout import Box, coverage_problems, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def rank_of(world_size: int, rank: int) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def on_all_ranks(world_size: int, make: Callable[[], Leaf]) -> list[Leaf]:
    leaves = []
    for rank in range(world_size):
        with rank_of(world_size, rank):
            leaves.append(make())
    return leaves


def part_of(tensor: torch.Tensor, box: Box) -> torch.Tensor:
    for dim, (offset, size) in enumerate(zip(box.offsets, box.sizes, strict=True)):
        tensor = tensor.narrow(dim, offset, size)
    return tensor


def check(full: torch.Tensor, leaves: list[Leaf]) -> None:
    """Check that every element is written by exactly one rank, and holds what its box says."""
    for leaf in leaves:
        assert leaf.shape == tuple(full.shape)
        assert leaf.local.numel() == (0 if leaf.box is None else leaf.box.num_elements)
        if leaf.box is not None:
            assert torch.equal(leaf.local, part_of(full, leaf.box))
    written = [leaf.box for leaf in leaves if leaf.writes and leaf.box is not None]
    assert len(written) == len(set(written))
    assert coverage_problems(full.shape, written) == []


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(float(torch.Size(shape).numel())).view(shape)


def local_part(tensor: torch.Tensor, mesh: DeviceMesh, placements: list[Placement]) -> torch.Tensor:
    """Split as torch.chunk does, from left to right."""
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    for axis, placement in enumerate(placements):
        if isinstance(placement, Shard):
            chunk = -(-tensor.shape[placement.dim] // mesh.size(axis))
            start = min(chunk * coordinate[axis], tensor.shape[placement.dim])
            stop = min(start + chunk, tensor.shape[placement.dim])
            tensor = tensor.narrow(placement.dim, start, stop - start)
    return tensor.contiguous()


def distributed(
    full: torch.Tensor, mesh: DeviceMesh, placements: list[Placement], local: torch.Tensor
) -> DTensor:
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=full.shape, stride=full.stride()
    )


@pytest.mark.parametrize(
    ("sizes", "placements", "shape"),
    [
        ((4,), [Shard(0)], (8, 3)),
        ((4,), [Shard(0)], (5, 3)),
        ((4,), [Shard(0)], (3,)),
        ((4,), [Shard(1)], (2, 6)),
        ((4,), [Replicate()], (3, 2)),
        ((2, 2), [Replicate(), Shard(0)], (5, 2)),
        ((2, 2), [Shard(0), Shard(1)], (3, 5)),
        ((2, 2), [Shard(0), Shard(0)], (7, 2)),
        ((2, 2), [Shard(1), Replicate()], (2, 3)),
        ((2, 2), [Replicate(), Replicate()], ()),
        ((4,), [Shard(0)], (0, 3)),
        ((2, 2), [Replicate(), Shard(1)], (4, 0)),
    ],
    ids=str,
)
def test_every_element_is_written_once(
    sizes: tuple[int, ...], placements: list[Placement], shape: tuple[int, ...]
) -> None:
    full = numbered(*shape)

    def make() -> Leaf:
        mesh = init_device_mesh("cpu", sizes)
        tensor = distributed(full, mesh, placements, local_part(full, mesh, placements))
        return leaf_of("model", "weight", tensor, owns_plain=False)

    leaves = on_all_ranks(4, make)
    check(full, leaves)
    assert any(leaf.writes for leaf in leaves)


@pytest.mark.parametrize("rows", [8, 7, 5, 2, 13, 6, 25])
@pytest.mark.parametrize(("dp", "tp"), [(2, 2), (3, 2), (2, 3), (4, 2)])
def test_fsdp2_over_tensor_parallelism(rows: int, dp: int, tp: int) -> None:
    """The mesh lists dp first, but tp has split first; see test_multi_rank for the real thing."""
    full = numbered(rows, 3)

    def make() -> Leaf:
        mesh = init_device_mesh("cpu", (dp, tp), mesh_dim_names=("dp", "tp"))
        local = local_part(local_part(full, mesh["tp"], [Shard(0)]), mesh["dp"], [Shard(0)])
        placements = [_StridedShard(0, split_factor=tp), Shard(0)]
        return leaf_of(
            "model", "weight", distributed(full, mesh, placements, local), owns_plain=False
        )

    check(full, on_all_ranks(dp * tp, make))


def test_replicas_share_the_writing() -> None:
    writers: dict[str, list[int]] = {}
    for rank in range(4):
        with rank_of(4, rank):
            mesh = init_device_mesh("cpu", (4,))
            for number in range(32):
                key = f"layers.{number}.weight"
                tensor = distributed(torch.ones(2), mesh, [Replicate()], torch.ones(2))
                if leaf_of("model", key, tensor, owns_plain=False).writes:
                    writers.setdefault(key, []).append(rank)
    assert {len(ranks) for ranks in writers.values()} == {1}
    assert len(writers) == 32
    shares = [sum(ranks == [rank] for ranks in writers.values()) for rank in range(4)]
    assert min(shares) >= 3


def test_a_pending_reduction_is_refused() -> None:
    with rank_of(2, 0):
        mesh = init_device_mesh("cpu", (2,))
        tensor = distributed(torch.ones(2), mesh, [Partial()], torch.ones(2))
        with pytest.raises(UnsupportedState, match="Redistribute"):
            leaf_of("model", "weight", tensor, owns_plain=False)


def test_a_local_part_that_is_no_box_is_refused() -> None:
    with rank_of(2, 0):
        mesh = init_device_mesh("cpu", (2,))
        placement = _StridedShard(0, split_factor=2)
        tensor = distributed(numbered(8), mesh, [placement], torch.tensor([0.0, 1.0, 4.0, 5.0]))
        with pytest.raises(UnsupportedState, match="not one box"):
            leaf_of("model", "weight", tensor, owns_plain=False)


def test_a_local_shape_that_contradicts_its_placements_is_refused() -> None:
    with rank_of(2, 0):
        mesh = init_device_mesh("cpu", (2,))
        tensor = distributed(numbered(5), mesh, [Shard(0)], torch.zeros(2))
        with pytest.raises(UnsupportedState, match="local shape"):
            leaf_of("model", "weight", tensor, owns_plain=False)


def test_an_empty_part_may_have_the_sizes_that_fsdp2_gives_it() -> None:
    """Where tensor parallelism leaves no columns to a rank, FSDP2 leaves it no rows either."""
    with rank_of(4, 3):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        tensor = distributed(numbered(4, 1), mesh, [Shard(0), Shard(1)], torch.zeros(0, 0))
        leaf = leaf_of("model", "weight", tensor, owns_plain=False)
    assert (leaf.box, leaf.writes) == (None, False)


def test_a_rank_outside_the_mesh_holds_nothing() -> None:
    with rank_of(4, 3):
        mesh = DeviceMesh("cpu", [0, 1])
        tensor = distributed(numbered(4), mesh, [Shard(0)], torch.zeros(0))
        leaf = leaf_of("model", "weight", tensor, owns_plain=False)
    assert (leaf.box, leaf.writes) == (None, False)


@pytest.mark.parametrize("rank", range(4))
def test_the_lowest_rank_of_the_neighbours_meshes_owns_plain_tensors(rank: int) -> None:
    with rank_of(4, rank):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))["dp"]
        tensor = distributed(numbered(4), mesh, [Shard(0)], torch.zeros(2))
        owns = owns_plain_tensors(world(4)[rank], [tensor, torch.zeros(1)], Sharing.SHARDED)
    assert owns == (rank in (0, 2))


def test_a_component_with_dtensors_is_sharded_and_cannot_be_per_rank() -> None:
    with rank_of(2, 1):
        mesh = init_device_mesh("cpu", (2,))
        weight = distributed(numbered(5, 2), mesh, [Shard(0)], numbered(5, 2)[3:])
        state = {"weight": weight, "scale": torch.ones(2)}
        component = TensorDictComponent("model", state)
        captured = capture(component, world(2)[1], None)
        assert captured.sharing is Sharing.SHARDED
        (source,) = captured.tensors
        assert (source.shape, source.box) == ((5, 2), Box((3, 0), (2, 2)))
        per_rank = TensorDictComponent("model", state, sharing=Sharing.PER_RANK)
        with pytest.raises(UnsupportedState, match="per rank"):
            capture(per_rank, world(2)[1], None)
    plain = {"weight": numbered(5, 2), "scale": torch.ones(2)}
    alone = capture(TensorDictComponent("model", plain), ALONE, None)
    assert alone.fingerprint == captured.fingerprint
    assert alone.tensors[0].box == whole((5, 2))
