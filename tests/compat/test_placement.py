"""Where `docs/format.md` says that bytes lie, on a step that this release writes."""

from __future__ import annotations

import io
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.compat.independent_reader import EXTENTS, Step, container

import stepseal as ss

PAGED_FROM_BYTES = 64 << 10


class Written:
    """A step with small and large tensors, an optimizer, and trees."""

    def __init__(self, root: Path) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(200, 200))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        leaves = {"a": np.zeros(3, "u1"), "b": torch.zeros(2), "c": np.zeros(1, "<f8")}
        self.model = model
        with ss.Checkpointer(root, mode="sync") as checkpointer:
            checkpointer.add("model", model)
            checkpointer.add("optimizer", optimizer)
            checkpointer.add("leaves", {"tree": leaves})
            self.folder = Path(checkpointer.save(1).wait().path)
        self.payload = (self.folder / "__0_0.distcp").read_bytes()
        self.index = (self.folder / "parts" / "trainer" / "0.safetensors").read_bytes()
        self.columns = container(self.index)[0]

    def items(self) -> list[dict[str, int]]:
        return [
            {name: int(self.columns[name][row]) for name in EXTENTS}
            for row in range(len(self.columns["file"]))
        ]

    @property
    def num_tensors(self) -> int:
        return len(self.columns["tensor_key"])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(tmp_path_factory.mktemp("root"))


def header_of(data: bytes) -> tuple[bytes, dict[str, Any]]:
    (size,) = struct.unpack_from("<Q", data)
    return data[8 : 8 + size], json.loads(data[8 : 8 + size])


def test_records_are_aligned_behind_zeros(written: Written) -> None:
    for item in written.items():
        assert item["record_offset"] % 64 == 0
        padding = written.payload[item["item_offset"] : item["record_offset"]]
        assert padding == bytes(len(padding))


def test_large_data_begins_at_a_page(written: Written) -> None:
    large = [item for item in written.items() if item["data_size"] >= PAGED_FROM_BYTES]
    assert [item["data_offset"] % 4096 for item in large] == [0]


def test_tensor_records_are_what_torch_save_writes(written: Written) -> None:
    state = written.model.state_dict()
    ends = [0, *written.columns["string_end"].tolist()]
    texts = [written.columns["strings"].tobytes()[a:b] for a, b in itertools.pairwise(ends)]
    for row, item in enumerate(written.items()[: written.num_tensors]):
        record = written.payload[item["record_offset"] :][: item["record_size"]]
        found = torch.load(io.BytesIO(record), weights_only=True)
        assert torch.equal(found, state[texts[written.columns["tensor_key"][row]].decode()])
        assert (item["data_offset"] - item["record_offset"]) % 64 == 0


def test_copies_are_whole_records(written: Written) -> None:
    copies = written.items()[written.num_tensors :]
    assert copies
    for item in copies:
        assert item["record_offset"] == item["data_offset"]
        assert item["record_size"] == item["data_size"]
        torch.load(
            io.BytesIO(written.payload[item["data_offset"] :][: item["data_size"]]),
            weights_only=True,
        )


def test_index_has_its_columns_in_order_in_a_compact_header(written: Written) -> None:
    text, header = header_of(written.index)
    assert text.rstrip(b" ") == json.dumps(header, separators=(",", ":")).encode()
    specification = Path(__file__).parents[2] / "docs" / "format.md"
    table = specification.read_text("utf-8").split("### Part index")[1].split("###")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name.strip(" `") for row in rows for name in row.split(",")]
    assert list(header) == ["__metadata__", *named]


def test_texts_are_numbered_by_first_use_column_by_column(written: Written) -> None:
    columns = (
        "payload",
        "tensor_component",
        "tensor_dtype",
        "tensor_key",
        "bytes_component",
        "bytes_key",
    )
    used = [number for name in columns for number in written.columns[name].tolist()]
    assert list(dict.fromkeys(used)) == list(range(len(written.columns["string_end"])))


def test_arrays_of_a_tree_fall_in_element_size(written: Written) -> None:
    path = written.folder / "components" / "leaves" / "trainer" / "0.safetensors"
    assert [array.itemsize for array in container(path.read_bytes())[0].values()] == [8, 4, 1]


def test_only_the_owner_may_look(written: Written) -> None:
    for path in written.folder.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


def test_the_root_holds_nothing_else(written: Written) -> None:
    root = written.folder.parent
    assert {path.name for path in root.iterdir()} == {
        "stepseal.json",
        "latest",
        "step-1",
        ".stepseal",
    }
    assert {path.name for path in (root / ".stepseal").iterdir()} == {
        "incarnations",
        "leases",
        "pins",
        "staging",
        "superseded",
        "trash",
    }
    assert (root / "latest").read_text() == "step-1\n"


def test_components_without_a_tree_name_no_owner(written: Written) -> None:
    components = {c["name"]: c for c in Step(written.folder).manifest["components"]}
    assert list(components) == sorted(components)
    assert components["model"]["payloads"] == {}
    assert components["optimizer"]["payloads"] == {"trainer/0": "trainer/0"}
    assert {c["required"] for c in components.values()} == {True}
    assert [c["options"] for c in components.values()] == [{}, {}, {}]
