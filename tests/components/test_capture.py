"""Describe touches no bytes; a capture stages what must be private; a tree is taken in one way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.components._memory import ALONE, bytes_of, world
from tests.components._odd import odd_tensors

from stepseal.components import _live_data
from stepseal.components._arena import Arena
from stepseal.components._capture import capture, describe_tree, stage
from stepseal.components._dtensors import Leaf
from stepseal.components._frames import frame_for
from stepseal.components._leaf_capture import describe_leaves
from stepseal.components._live_data import TensorData, tensor_over
from stepseal.components._sinks import DenseSink
from stepseal.components._stateful import ValueComponent
from stepseal.components._tensors import TensorDictComponent
from stepseal.layout import Sharing, whole

if TYPE_CHECKING:
    from stepseal.components._types import CapturedComponent


def state() -> dict[str, Any]:
    tensors = {str(number): tensor for number, tensor in enumerate(odd_tensors())}
    return tensors | {"values": [1, b"x" * 5000]}


def facts_of(found: CapturedComponent) -> list[object]:
    """Return everything that a plan may need."""
    tensors = [(s.key, s.dtype, s.shape, s.box, s.frame, s.data.size_bytes) for s in found.tensors]
    arrays = [
        (tree.document, array.name, array.dtype, array.shape, array.data.size_bytes)
        for tree in found.trees
        for array in tree.arrays
    ]
    return [*tensors, *arrays, found.fingerprint, found.payload, found.bytes_copies]


@pytest.mark.parametrize("sharing", [Sharing.GLOBAL, Sharing.PER_RANK])
def test_a_description_has_all_facts_and_touches_no_byte(
    sharing: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a byte was touched")

    live = state()
    with monkeypatch.context() as patch:
        patch.setattr(_live_data, "byte_view", touched)
        patch.setattr(_live_data, "tensor_over", touched)
        patch.setattr(_live_data.TensorData, "view", touched)
        patch.setattr(_live_data.TensorData, "start_fill", touched)
        described = TensorDictComponent("model", live, sharing=sharing).describe(ALONE)
    staged = capture(TensorDictComponent("model", live, sharing=sharing), ALONE, Arena())
    assert facts_of(described) == facts_of(staged)


def test_what_is_staged_does_not_follow_live_state() -> None:
    live = {"a": torch.zeros(4), "b": torch.zeros(600_000), "c": torch.zeros(2, 2).t()}
    captured = capture(TensorDictComponent("model", live), ALONE, Arena())
    for tensor in live.values():
        tensor.fill_(1.0)
    assert all(set(bytes_of(source.data)) == {0} for source in captured.tensors)


def test_without_staging_cpu_tensors_are_left_in_place_and_trees_are_private() -> None:
    live = torch.zeros(4)
    tensors = capture(TensorDictComponent("model", {"a": live}), ALONE, None).tensors
    tree = capture(ValueComponent("loader", {"a": live}), ALONE, None).trees[0]
    live.fill_(1.0)
    assert tensors[0].data.view() == _live_data.byte_view(live)
    assert bytes_of(tree.arrays[0].data) == bytes(16)


def test_an_arena_grows_by_one_region_for_a_whole_component() -> None:
    arena = Arena()
    live = {str(number): torch.zeros(3 << 20) for number in range(4)}
    capture(TensorDictComponent("model", live), ALONE, arena)
    assert arena.held_bytes == 48 << 20


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("value", [None, {"lr": 0.1}])
def test_a_participant_reports_only_what_it_reads_and_writes(rank: int, value: object) -> None:
    leaf = Leaf("w", torch.zeros(2), (2,), whole((2,)), writes=rank == 0)
    found = describe_leaves("model", Sharing.REPLICATED, world(2)[rank], [leaf], value)
    assert len(found.tensors) == (rank == 0)
    assert len(found.trees) == (rank == 0 and value is not None)
    if value is None:
        assert found.payload is None
    else:
        assert found.payload is not None
        assert (found.payload.coordinate, found.payload.writes) == ("", rank == 0)


def test_a_tree_is_its_document_and_live_leaves() -> None:
    live = torch.zeros(2, dtype=torch.bfloat16)
    tree = describe_tree("loader", "trainer/0", {"a": live, "n": 1})
    live.fill_(1.0)
    (array,) = tree.arrays
    assert (array.dtype, array.shape) == ("bfloat16", (2,))
    assert bytes_of(array.data) == bytes_of(TensorData(live))


def test_a_default_device_does_not_matter() -> None:
    tensors = odd_tensors()
    with torch.device("meta"):
        staged = stage([TensorData(tensor) for tensor in tensors], Arena())
        private = stage([TensorData(tensor) for tensor in tensors], None)
        frame = frame_for(torch.float64, (31, 7))
        sink = DenseSink(torch.zeros(4, device="cpu"), whole((4,)), torch.float32)
        sink.write(whole((4,)), 0, memoryview(bytearray(16)))
    assert [bytes(one.view()) for one in staged] == [bytes(one.view()) for one in private]
    assert frame == frame_for(torch.float64, (31, 7))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_tensors_are_copied_through_pinned_memory() -> None:
    tensors = [tensor.detach().cuda() for tensor in odd_tensors()]
    staged = stage([TensorData(tensor) for tensor in tensors], Arena())
    assert tensor_over(staged[0].view(), torch.uint8).is_pinned()
    for tensor, copy in zip(tensors, staged, strict=True):
        assert torch.equal(tensor_over(copy.view(), tensor.dtype, tensor.shape), tensor.cpu())
        assert bytes_of(TensorData(tensor)) == bytes(copy.view())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_tensors_are_private_without_staging_too() -> None:
    live = torch.zeros(4, device="cuda")
    (source,) = capture(TensorDictComponent("model", {"a": live}), ALONE, None).tensors
    live.fill_(1.0)
    assert bytes_of(source.data) == bytes(16)
