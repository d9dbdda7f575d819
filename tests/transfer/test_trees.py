from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.transfer._steps import (
    KEY,
    array,
    bytes_of,
    contents,
    random_bytes,
    read_file,
    tree,
    write_step,
)

from stepseal.errors import Corrupt
from stepseal.layout import ITEMSIZE, build_header
from stepseal.testing import MemoryStorage
from stepseal.transfer import StepReader, _trees

if TYPE_CHECKING:
    from pathlib import Path


def test_segments_end_before_they_grow_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trees, "MAX_SEGMENT_BYTES", 1000)
    arrays = [array(f"a{n}", random_bytes(400, n), (400,)) for n in range(5)]
    arrays.append(array("big", random_bytes(3000), (3000,)))
    storage = MemoryStorage()
    parts = {"a/0": contents(trees=[tree("t", "a/0", {}, arrays)])}
    reader = StepReader(storage, KEY, write_step(storage, parts))
    names = [entry.path for entry in reader.tree_files("t", "a/0")]
    stem = "components/t/a/0"
    assert names == [
        f"{stem}.json",
        f"{stem}.safetensors",
        f"{stem}.1.safetensors",
        f"{stem}.2.safetensors",
        f"{stem}.3.safetensors",
    ]
    found = reader.read_tree("t", "a/0").arrays
    assert {name: value[2] for name, value in found.items()} == {
        one.name: bytes_of(one.data) for one in arrays
    }


def test_segments_end_before_their_header_grows_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trees, "_MAX_HEADER_COST", 1000)
    arrays = [array(f"a{n}", b"x", (1,)) for n in range(20)]
    segments = list(_trees.segments_of(tree("t", "a", {}, arrays)))
    assert [a.name for segment in segments for a in segment] == [a.name for a in arrays]
    assert len(segments) > 1


@pytest.mark.parametrize("dtype", sorted(ITEMSIZE))
def test_every_dtype_comes_back(dtype: str) -> None:
    source = array("x", random_bytes(6 * ITEMSIZE[dtype]), (3, 2), dtype)
    header = _trees.segment_header([source])
    found = _trees.arrays_of_segment(memoryview(header + bytes_of(source.data)), what="segment")
    assert found == {"x": (dtype, (3, 2), source.data.view())}


@pytest.mark.parametrize(
    "metadata",
    ["[]\n", '{\n "x": "float33"\n}\n', '{\n "y": "complex128"\n}\n', '{"x":"complex128"}', "{"],
)
def test_wrong_names_of_foreign_dtypes_are_refused(metadata: str) -> None:
    entries = [("x", "uint8", (1, 15), 15)]
    header = build_header(entries, {"stepseal.dtypes": metadata})
    with pytest.raises(Corrupt, match="segment"):
        _trees.arrays_of_segment(memoryview(header + bytes(15)), what="segment")


def test_foreign_dtype_must_fit_its_bytes() -> None:
    header = build_header(
        [("x", "uint8", (1, 15), 15)], {"stepseal.dtypes": '{\n "x": "complex128"\n}\n'}
    )
    with pytest.raises(Corrupt, match="expected bytes of complex128"):
        _trees.arrays_of_segment(memoryview(header + bytes(15)), what="segment")


def test_segments_are_plain_safetensors(tmp_path: Path) -> None:
    numpy_io = pytest.importorskip("safetensors.numpy")
    storage = MemoryStorage()
    data = random_bytes(24)
    arrays = [array("a", b"abc", (3,)), array("b", data, (2, 3), "float32")]
    write_step(storage, {"a": contents(trees=[tree("t", "a", {}, arrays)])})
    path = tmp_path / "segment.safetensors"
    path.write_bytes(read_file(storage, "components/t/a.safetensors"))
    found = numpy_io.load_file(path)
    assert found["b"].shape == (2, 3)
    assert found["b"].tobytes() == data
