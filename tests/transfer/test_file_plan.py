"""What is planned from a description alone is where the writer puts the bytes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tests.transfer._steps import (
    KEY,
    Filled,
    array,
    bytes_of,
    contents,
    copy_of,
    random_bytes,
    read_file,
    tensor,
    tree,
    write_one,
)

from stepseal.errors import InvalidInput
from stepseal.layout import (
    Frame,
    PartContents,
    TensorSource,
    decode_index,
    parse_header,
    part_index_path,
    payload_path,
    tree_segment_path,
)
from stepseal.storage import make_dirs
from stepseal.testing import MemoryStorage
from stepseal.transfer._file_plan import Place, plan_payload, plan_segment


class Facts:
    """A size, and no way to the bytes."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    def view(self) -> memoryview | None:
        raise AssertionError("a plan touches no bytes")

    def fill(self, target: memoryview, start: int = 0) -> None:
        raise AssertionError("a plan touches no bytes")


def facts_of(source: TensorSource) -> TensorSource:
    return replace(source, data=Facts(source.data.size_bytes))


def drawn(seed: int) -> PartContents:
    draw = random.Random(seed)
    sizes = [
        draw.choice([0, 4, 60, 65_532, 65_536, 1 << 20, draw.randrange(0, 99_996, 4)])
        for _ in range(draw.randrange(1, 12))
    ]
    tensors = [
        tensor(f"t{n}", random_bytes(size, n), (size // 4,), frame=Frame(bytes(64 * n), bytes(n)))
        for n, size in enumerate(sizes)
    ]
    copies = [copy_of(f"c{n}", random_bytes(draw.randrange(200), n)) for n in range(3)]
    return contents(tensors, copies)


@pytest.mark.parametrize("seed", range(12))
def test_items_lie_where_the_plan_says(seed: int) -> None:
    part = drawn(seed)
    places = plan_payload([facts_of(source) for source in part.tensors], part.bytes_copies)
    storage = MemoryStorage()
    make_dirs(storage, KEY)
    write_one(storage, part)
    index = decode_index(read_file(storage, part_index_path("trainer/0")), what="index")
    items = (*index.tensors, *index.bytes_items)
    assert places == [Place(*(getattr(item, name) for name in Place._fields)) for item in items]
    data = read_file(storage, payload_path(0))
    assert len(data) == places[-1].item_offset + places[-1].item_size
    for source, place in zip(part.tensors, places, strict=False):
        assert data[place.data_offset :][: place.data_size] == bytes_of(source.data)


def test_data_that_can_only_be_copied_out_makes_the_same_file() -> None:
    part = drawn(3)
    big = tensor("big", random_bytes(9 << 20), ((9 << 20) // 4,))
    files = []
    for lazy in (False, True):
        tensors = [
            replace(source, data=Filled(bytes_of(source.data))) if lazy else source
            for source in (*part.tensors, big)
        ]
        storage = MemoryStorage()
        make_dirs(storage, KEY)
        write_one(storage, contents(tensors, part.bytes_copies))
        paths = (payload_path(0), part_index_path("trainer/0"))
        files.append([read_file(storage, path) for path in paths])
    assert files[0] == files[1]


@pytest.mark.parametrize("frame", [Frame(b"H" * 63, b""), Frame(b"H" * 64, bytes(1 << 20))])
def test_frames_that_no_reader_takes_are_refused(frame: Frame) -> None:
    with pytest.raises(InvalidInput, match="frame is not usable"):
        plan_payload([tensor("t", b"1234", (1,), frame=frame)], [])


def test_arrays_of_a_segment_lie_where_the_plan_says() -> None:
    arrays = [array("b", random_bytes(24), (6,), "float32"), array("a", b"abc", (3,))]
    found = plan_segment([replace(one, data=Facts(one.data.size_bytes)) for one in arrays])
    storage = MemoryStorage()
    make_dirs(storage, KEY)
    write_one(storage, contents(trees=[tree("t", "trainer/0", {}, arrays)]))
    data = read_file(storage, tree_segment_path("t", "trainer/0", 0))
    assert (data[: len(found.header)], len(data)) == (found.header, found.size_bytes)
    header = parse_header(memoryview(data), what="segment", file_size=len(data))
    assert [entry.offset for entry in header.entries] == list(found.offsets)
    for one, offset in zip(arrays, found.offsets, strict=True):
        assert data[offset:][: one.data.size_bytes] == bytes_of(one.data)
