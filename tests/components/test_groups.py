"""What the ranks of a set capture: each a digest of the whole state, and one of them the bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from tests.components._memory import world
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from stepseal.components._arena import Arena
from stepseal.components._capture import capture
from stepseal.components._groups import per_group
from stepseal.components._replicas import ReplicaRule
from stepseal.components._stateful import ValueComponent
from stepseal.components._tensors import TensorDictComponent

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARING = per_group(same_on=[[0, 1], [2]])


def component(kind: type, value: float = 1.0) -> Any:  # noqa: ANN401 - of either class
    state = {"a": torch.full((3, 2), value).T, "empty": torch.zeros(0)}
    if kind is ValueComponent:
        return ValueComponent("x", state, SHARING)
    return TensorDictComponent("x", state, sharing=SHARING)


@pytest.mark.parametrize("kind", [ValueComponent, TensorDictComponent])
@pytest.mark.parametrize("arena", [True, False])
def test_each_rank_of_a_set_digests_its_state_and_the_lowest_writes_it(
    kind: type, arena: bool
) -> None:
    captured = [
        capture(component(kind), topology, Arena() if arena else None, ReplicaRule())
        for topology in world(3)
    ]
    assert [len(one.trees) for one in captured] == [1, 0, 1]
    first, second, alone = captured
    assert alone.digests is None
    assert first.digests is not None
    assert second.digests is not None
    first.digests.take_written(None)
    assert first.digests.of_sets() == second.digests.of_sets()
    assert dict(first.digests.sets) == {"set=0": 2}
    assert all(one.kind == "tree" for one in captured)


def test_a_description_holds_no_digest_because_it_touches_no_bytes() -> None:
    assert [component(ValueComponent).describe(one).fingerprint for one in world(3)] == [""] * 3


def test_another_value_has_another_digest() -> None:
    first, second = (
        capture(component(ValueComponent, value), world(3)[1], None, ReplicaRule()).digests
        for value in (1.0, 2.0)
    )
    assert first is not None
    assert second is not None
    assert first.of_sets() != second.of_sets()


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Return a mesh of 2 x 2 x 2 ranks, seen from rank 5; nobody is behind the other ranks."""
    dist.init_process_group("fake", store=FakeStore(), rank=5, world_size=8)
    yield init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("pp", "dp", "tp"))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("axes", "shown", "mine", "ranks"),
    [
        (("dp",), "the axes pp=2, tp=2", "pp=1,tp=1", (5, 7)),
        (("pp",), "the axes dp=2, tp=2", "dp=0,tp=1", (1, 5)),
        (("pp", "dp"), "the axes tp=2", "tp=1", (1, 3, 5, 7)),
        (("pp", "dp", "tp"), "one set of all ranks", "", tuple(range(8))),
    ],
)
def test_the_place_on_the_other_axes_of_a_mesh_is_the_coordinate(
    mesh: DeviceMesh, axes: tuple[str, ...], shown: str, mine: str, ranks: tuple[int, ...]
) -> None:
    part = mesh[axes]
    parts = [part, part._flatten("flat")] if len(axes) == 2 else [part]
    for one in parts:
        division = per_group(same_on=one)
        assert division.shown_axes() == shown
        assert division.coordinates()[5] == mine
        assert division.ranks_at(mine) == ranks
        assert sorted(division.coordinates()) == list(range(8))


def test_the_groups_of_other_ranks_follow_from_one_that_is_spaced_evenly(mesh: DeviceMesh) -> None:
    found = {axis: per_group(same_on=mesh[axis].get_group()).sets for axis in ("pp", "dp", "tp")}
    assert [ranks for _, ranks in found["pp"]] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert [ranks for _, ranks in found["dp"]] == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert [ranks for _, ranks in found["tp"]] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [ranks for _, ranks in per_group(same_on=dist.group.WORLD).sets] == [tuple(range(8))]
