from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from tests.transfer._steps import (
    KEY,
    STEP,
    array,
    bytes_of,
    contents,
    flip,
    manifest_of,
    random_bytes,
    read_file,
    read_tensor,
    replace_file,
    small_parts,
    tensor,
    tree,
    write_step,
)

from stepseal.errors import Corrupt, InvalidInput
from stepseal.layout import (
    Box,
    DocumentRef,
    PartIndex,
    PartRef,
    encode_part,
    sha256_hex,
    whole,
)
from stepseal.testing import MemoryStorage
from stepseal.transfer import StepReader

if TYPE_CHECKING:
    from stepseal.storage import Storage

DOCUMENT = "parts/trainer/0.json"
INDEX = "parts/trainer/0.safetensors"
TREE = "components/rng/trainer/0.json"
SEGMENT = "components/rng/trainer/0.safetensors"


def test_round_trip_of_everything(storage: Storage) -> None:
    parts = small_parts()
    reader = StepReader(storage, KEY, write_step(storage, parts))
    rows = b"".join(bytes_of(part.tensors[0].data) for part in parts.values())
    assert read_tensor(reader, "weight", whole((64, 16))).data == rows
    for source in parts["trainer/0"].tensors[1:]:
        found = read_tensor(reader, source.key, source.box, dtype=source.dtype)
        assert found.data == bytes_of(source.data)
    for participant, part in parts.items():
        source_tree = part.trees[0]
        assert reader.has_tree("rng", participant)
        found_tree = reader.read_tree("rng", participant)
        assert found_tree.document == source_tree.document
        assert found_tree.arrays == {
            a.name: (a.dtype, a.shape, a.data.view()) for a in source_tree.arrays
        }
    assert not reader.has_tree("model", "trainer/0")


def test_arrays_of_a_tree_are_writable_and_aligned() -> None:
    storage = MemoryStorage()
    arrays = [
        array("a", bytes(3), (3,)),
        array("b", bytes(16), (2,), "float64"),
        array("c", b"", (0, 4), "int16"),
    ]
    parts = {"a": contents(trees=[tree("t", "a", None, arrays)])}
    found = StepReader(storage, KEY, write_step(storage, parts)).read_tree("t", "a")
    for name, (_, _, data) in found.arrays.items():
        assert not data.readonly
        assert name != "c" or data.nbytes == 0
    assert found.arrays["b"][2].cast("d").tolist() == [0.0, 0.0]


def test_stored_lists_boxes_in_the_order_of_participants(storage: Storage) -> None:
    reader = StepReader(storage, KEY, write_step(storage, small_parts()))
    boxes = reader.stored("model")["weight"]
    assert [(b.participant, b.path, b.tensor.box.offsets) for b in boxes] == [
        ("trainer/0", "__0_0.distcp", (0, 0)),
        ("trainer/1", "__1_0.distcp", (32, 0)),
    ]
    assert reader.stored("nothing") == {}


def test_part_without_payload_has_an_empty_index() -> None:
    storage = MemoryStorage()
    parts = {"a": contents(trees=[tree("rng", "a", [1])])}
    reader = StepReader(storage, KEY, write_step(storage, parts))
    assert reader.index("a") == PartIndex((), (), ())


def test_documents_are_read_once() -> None:
    storage = MemoryStorage()
    reader = StepReader(storage, KEY, write_step(storage, small_parts()))
    part, index = reader.part("trainer/0"), reader.index("trainer/0")
    storage.remove_file(f"{KEY}/{DOCUMENT}")
    storage.remove_file(f"{KEY}/{INDEX}")
    assert reader.part("trainer/0") is part
    assert reader.index("trainer/0") is index


def test_unknown_participant_is_refused(storage: Storage) -> None:
    reader = StepReader(storage, KEY, write_step(storage, small_parts()))
    with pytest.raises(InvalidInput, match="trainer/9"):
        reader.part("trainer/9")


def test_missing_tree_is_named(storage: Storage) -> None:
    reader = StepReader(storage, KEY, write_step(storage, small_parts()))
    with pytest.raises(Corrupt, match=r"components/nothing/trainer/1\.json"):
        reader.read_tree("nothing", "trainer/1")


def test_boxes_that_disagree_are_refused() -> None:
    storage = MemoryStorage()
    parts = {
        "a": contents([tensor("w", bytes(8), (4,), Box((0,), (2,)))]),
        "b": contents([tensor("w", bytes(4), (4,), Box((2,), (2,)), dtype="float16")]),
    }
    reader = StepReader(storage, KEY, write_step(storage, parts))
    with pytest.raises(
        Corrupt, match=r"expected float32 \[4\] as a has it, found float16"
    ) as caught:
        reader.stored("model")
    assert caught.value.participant == "b"


def use_all(reader: StepReader) -> None:
    for participant in ("trainer/0", "trainer/1"):
        reader.index(participant)
        reader.read_tree("rng", participant)


@pytest.mark.parametrize("path", [DOCUMENT, INDEX, TREE, SEGMENT])
def test_each_flipped_byte_of_a_document_is_refused(path: str) -> None:
    storage = MemoryStorage()
    manifest = write_step(storage, small_parts())
    data = read_file(storage, path)
    for position in range(0, len(data), 37):
        replace_file(storage, path, flip(data, position, 1 << position % 8))
        with pytest.raises(Corrupt) as caught:
            use_all(StepReader(storage, KEY, manifest))
        assert (caught.value.step, caught.value.path) == (STEP, f"{KEY}/{path}")
    replace_file(storage, path, data)
    use_all(StepReader(storage, KEY, manifest))


@pytest.mark.parametrize("path", [DOCUMENT, INDEX, TREE, SEGMENT])
@pytest.mark.parametrize("change", ["shorter", "longer", "empty", "missing"])
def test_wrong_size_and_missing_are_refused(storage: Storage, path: str, change: str) -> None:
    manifest = write_step(storage, small_parts())
    data = read_file(storage, path)
    changed = {"shorter": data[:-1], "longer": data + b"\n", "empty": b"", "missing": b""}[change]
    replace_file(storage, path, changed)
    if change == "missing":
        storage.remove_file(f"{KEY}/{path}")
    expected = "found nothing" if change == "missing" else f"expected {len(data)} bytes"
    with pytest.raises(Corrupt, match=expected):
        use_all(StepReader(storage, KEY, manifest))


def test_documents_of_equal_size_cannot_be_swapped(storage: Storage) -> None:
    parts = {name: contents(trees=[tree("rng", name, {"of": name})]) for name in ("a", "b")}
    manifest = write_step(storage, parts)
    storage.exchange(f"{KEY}/components/rng/a.json", f"{KEY}/components/rng/b.json")
    with pytest.raises(Corrupt, match="expected digest"):
        StepReader(storage, KEY, manifest).read_tree("rng", "a")
    storage.exchange(f"{KEY}/parts/a.json", f"{KEY}/parts/b.json")
    with pytest.raises(Corrupt, match="expected sha256"):
        StepReader(storage, KEY, manifest).part("a")


def test_part_of_another_attempt_is_refused() -> None:
    storage = MemoryStorage()
    manifest = dataclasses.replace(write_step(storage, small_parts()), attempt="00" * 16)
    with pytest.raises(Corrupt, match="expected the part of"):
        StepReader(storage, KEY, manifest).part("trainer/0")


def test_part_that_claims_files_of_others_is_refused() -> None:
    storage = MemoryStorage()
    parts = {"a": contents([tensor("w", bytes(4), (1,))]), "b": contents()}
    manifest = write_step(storage, parts)
    references = {part.participant: part.document for part in manifest.parts}
    swapped = manifest_of(references, {"b": parts["b"], "a": parts["a"]})
    with pytest.raises(Corrupt, match="expected files of a, found __0_0"):
        StepReader(storage, KEY, swapped).part("a")


@pytest.mark.parametrize("change", ["longer", "shorter", "missing"])
def test_index_that_does_not_fill_the_listed_payload_is_refused(change: str) -> None:
    storage = MemoryStorage()
    manifest = write_step(storage, {"a": contents([tensor("w", bytes(4), (1,))])})
    part = StepReader(storage, KEY, manifest).part("a")
    (entry,) = part.files
    size_bytes = entry.size_bytes + (1 if change == "longer" else -1)
    files = () if change == "missing" else (dataclasses.replace(entry, size_bytes=size_bytes),)
    data = encode_part(dataclasses.replace(part, files=files))
    replace_file(storage, "parts/a.json", data)
    document = DocumentRef("parts/a.json", len(data), sha256_hex(data))
    changed = dataclasses.replace(manifest, parts=(PartRef("a", document),))
    with pytest.raises(Corrupt, match="expected items that fill"):
        StepReader(storage, KEY, changed).index("a")


def test_listed_size_bounds_the_memory_of_a_document() -> None:
    storage = MemoryStorage()
    manifest = write_step(storage, small_parts())
    huge = dataclasses.replace(manifest.parts[0].document, size_bytes=1 << 50)
    part = dataclasses.replace(manifest.parts[0], document=huge)
    reader = StepReader(storage, KEY, dataclasses.replace(manifest, parts=(part,)))
    with pytest.raises(Corrupt, match="expected at most"):
        reader.part("trainer/0")


def test_large_tree_is_digested_from_the_start_of_each_file(storage: Storage) -> None:
    sizes = (3, 2_500_000, 7, 1_100_000)
    data = [random_bytes(size, seed=size) for size in sizes]
    arrays = [array(f"a{n}", buffer, (len(buffer),)) for n, buffer in enumerate(data)]
    parts = {"a": contents(trees=[tree("buffer", "a", {}, arrays)])}
    manifest = write_step(storage, parts)
    found = StepReader(storage, KEY, manifest).read_tree("buffer", "a")
    assert [bytes(found.arrays[f"a{n}"][2]) for n in range(4)] == data
