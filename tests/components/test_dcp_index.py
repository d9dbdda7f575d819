from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict_loader import load

from stepseal.components._dcp_index import build_dcp_index
from stepseal.components._frames import frame_for
from stepseal.components._live_data import byte_view
from stepseal.components._tensors import saved_copy
from stepseal.errors import InvalidInput
from stepseal.layout import (
    Box,
    PartIndex,
    StoredBytes,
    StoredTensor,
    chunk_digests,
    digest,
    payload_path,
    whole,
)

if TYPE_CHECKING:
    from pathlib import Path

WEIGHT = torch.arange(24.0).view(4, 6)
MOMENT = torch.arange(6, dtype=torch.bfloat16)


class Part:
    """Assembles one payload file and its index by hand."""

    def __init__(self, ordinal: int) -> None:
        self.path = payload_path(ordinal)
        self.payload = bytearray()
        self.tensors: list[StoredTensor] = []
        self.copies: list[StoredBytes] = []

    def add(self, component: str, key: str, tensor: torch.Tensor, box: Box | None = None) -> None:
        box = whole(tensor.shape) if box is None else box
        index = tuple(
            slice(start, start + size) for start, size in zip(box.offsets, box.sizes, strict=True)
        )
        chunk = tensor[index].contiguous() if box.sizes else tensor
        frame, data = frame_for(chunk.dtype, box.sizes), bytes(byte_view(chunk))
        padding = bytes(-len(self.payload) % 64)
        start = len(self.payload)
        self.payload += padding + frame.head + data + frame.tail
        size = len(self.payload) - start
        self.tensors.append(
            StoredTensor(
                component,
                key,
                str(tensor.dtype).removeprefix("torch."),
                tuple(tensor.shape),
                box,
                file=0,
                item_offset=start,
                item_size=size,
                record_offset=start + len(padding),
                record_size=size - len(padding),
                data_offset=start + len(padding) + len(frame.head),
                data_size=len(data),
                chunk_digests=chunk_digests(data),
                frame_digest=digest(padding + frame.head + frame.tail),
            )
        )

    def add_bytes(self, entries: tuple[tuple[str, str], ...], value: object) -> None:
        data = saved_copy(value)
        assert data is not None
        start, size = len(self.payload), len(data)
        self.payload += data
        self.copies.append(
            StoredBytes(
                entries,
                file=0,
                item_offset=start,
                item_size=size,
                record_offset=start,
                record_size=size,
                data_offset=start,
                data_size=size,
                chunk_digests=chunk_digests(data),
                frame_digest=digest(b""),
            )
        )

    def index(self) -> PartIndex:
        return PartIndex((self.path,), tuple(self.tensors), tuple(self.copies))


def parts() -> list[Part]:
    first, second = Part(0), Part(1)
    first.add("model", "layer.weight", WEIGHT, Box((0, 0), (4, 2)))
    first.add_bytes(
        (
            ("optimizer", "param_groups.layer.weight.lr"),
            ("optimizer", "param_groups.layer.bias.lr"),
        ),
        0.25,
    )
    first.add("optimizer", "state.layer.weight.step", torch.tensor(3.0))
    first.add("model", "empty", torch.empty(0, 2))
    second.add("model", "layer.weight", WEIGHT, Box((0, 2), (1, 4)))
    second.add("model", "layer.weight", WEIGHT, Box((1, 2), (3, 4)))
    second.add("optimizer", "state.layer.weight.exp_avg", MOMENT)
    first.add("optimizer", "state.layer.weight.exp_avg", MOMENT)  # an equal replica
    second.add_bytes((("model", "_extra_state"),), {"calls": 3})
    return [first, second]


def assemble(folder: Path) -> None:
    made = parts()
    for part in made:
        (folder / part.path).write_bytes(part.payload)
    (folder / ".metadata").write_bytes(build_dcp_index([part.index() for part in made]))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_dcp_load_reads_a_step_folder(tmp_path: Path) -> None:
    assemble(tmp_path)
    state: dict[str, Any] = {
        "layer.weight": torch.zeros(4, 6),
        "empty": torch.empty(0, 2),
        "_extra_state": 0,
        "optimizer": {
            "state.layer.weight.step": torch.tensor(0.0),
            "state.layer.weight.exp_avg": torch.zeros(6, dtype=torch.bfloat16),
            "param_groups.layer.weight.lr": 0.0,
            "param_groups.layer.bias.lr": 0.0,
        },
    }
    load(state, checkpoint_id=tmp_path, no_dist=True)
    assert torch.equal(state["layer.weight"], WEIGHT)
    assert state["_extra_state"] == {"calls": 3}
    optimizer = state["optimizer"]
    assert optimizer["state.layer.weight.step"].item() == 3.0
    assert torch.equal(optimizer["state.layer.weight.exp_avg"], MOMENT)
    assert optimizer["param_groups.layer.weight.lr"] == 0.25
    assert optimizer["param_groups.layer.bias.lr"] == 0.25


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_dcp_to_torch_nests_all_components_but_the_model(tmp_path: Path) -> None:
    assemble(tmp_path)
    dcp_to_torch_save(tmp_path, tmp_path / "all.pt")
    state = torch.load(tmp_path / "all.pt")
    assert torch.equal(state["layer.weight"], WEIGHT)
    assert state["empty"].shape == (0, 2)
    assert torch.equal(state["optimizer"]["state.layer.weight.exp_avg"], MOMENT)
    assert state["optimizer"]["param_groups.layer.bias.lr"] == 0.25


def test_the_stock_reader_sees_every_box_once(tmp_path: Path) -> None:
    assemble(tmp_path)
    metadata = FileSystemReader(tmp_path).read_metadata()
    found = {
        (tuple(chunk.offsets), tuple(chunk.sizes))
        for chunk in metadata.state_dict_metadata["layer.weight"].chunks  # type: ignore[union-attr]
    }
    assert found == {((0, 0), (4, 2)), ((0, 2), (1, 4)), ((1, 2), (3, 4))}
    moment = metadata.state_dict_metadata["optimizer.state.layer.weight.exp_avg"]
    assert len(moment.chunks) == 1  # type: ignore[union-attr]
    assert metadata.version == "1.0.0"
    paths = metadata.planner_data
    assert paths["layer.weight"] == ("layer.weight",)
    assert paths["optimizer.state.layer.weight.step"] == ("optimizer", "state.layer.weight.step")
    assert pickle.loads((tmp_path / ".metadata").read_bytes()).storage_meta is None


def test_equal_parts_give_equal_bytes() -> None:
    first, second = ([part.index() for part in parts()] for _ in range(2))
    assert build_dcp_index(first) == build_dcp_index(second)


def test_two_components_cannot_have_one_name() -> None:
    part = Part(0)
    part.add("model", "critic.weight", WEIGHT)
    part.add("critic", "weight", WEIGHT)
    with pytest.raises(InvalidInput, match=r"critic\.weight"):
        build_dcp_index([part.index()])


def test_parts_that_disagree_are_refused() -> None:
    first, second = Part(0), Part(1)
    first.add("model", "weight", WEIGHT)
    second.add("model", "weight", WEIGHT.double())
    with pytest.raises(InvalidInput, match="one kind, dtype and shape"):
        build_dcp_index([first.index(), second.index()])
    third = Part(0)
    third.add("model", "weight", WEIGHT)
    third.add_bytes((("model", "weight"),), 3)
    with pytest.raises(InvalidInput, match="expected one value"):
        build_dcp_index([third.index()])
