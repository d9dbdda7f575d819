from __future__ import annotations

import errno
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from tests.transfer._steps import (
    ATTEMPT,
    FRAME,
    KEY,
    STEP,
    array,
    bytes_of,
    contents,
    copy_of,
    not_cancelled,
    random_bytes,
    read_file,
    small_parts,
    tensor,
    tree,
    write_one,
    write_step,
)

from stepseal.errors import InvalidInput, StorageUnavailable
from stepseal.layout import (
    ITEMSIZE,
    Frame,
    decode_index,
    decode_part,
    digest,
    payload_sizes,
    sha256_hex,
)
from stepseal.storage import KeyExists, make_dirs, walk_files
from stepseal.testing import Fail, Fault, FaultyStorage, MemoryStorage, Tear
from stepseal.transfer import write_part

if TYPE_CHECKING:
    from stepseal.layout import PartContents, PartIndex, StoredItem
    from stepseal.storage import Storage

FIRST = small_parts()["trainer/0"]
PAYLOAD = "__0_0.distcp"
INDEX = "parts/trainer/0.safetensors"
DOCUMENT = "parts/trainer/0.json"


def written_index(storage: Storage, part: PartContents) -> PartIndex:
    make_dirs(storage, KEY)
    write_one(storage, part)
    return decode_index(read_file(storage, INDEX))


def test_returns_reference_of_part_document(storage: Storage) -> None:
    make_dirs(storage, KEY)
    found = write_one(storage, FIRST)
    data = read_file(storage, DOCUMENT)
    assert (found.path, found.size_bytes, found.sha256) == (DOCUMENT, len(data), sha256_hex(data))
    part = decode_part(data)
    assert (part.step, part.attempt, part.participant) == (STEP, ATTEMPT, "trainer/0")
    assert part.index is not None
    assert part.index.sha256 == sha256_hex(read_file(storage, INDEX))


def test_writes_exactly_what_the_part_lists(storage: Storage) -> None:
    make_dirs(storage, KEY)
    write_one(storage, FIRST)
    part = decode_part(read_file(storage, DOCUMENT))
    listed = {entry.path: entry.size_bytes for entry in part.files}
    assert part.index is not None
    listed |= {
        INDEX: part.index.size_bytes,
        DOCUMENT: len(read_file(storage, DOCUMENT)),
    }
    assert {p: e.size_bytes for p, e in walk_files(storage, KEY)} == listed
    assert set(listed) == {
        PAYLOAD,
        INDEX,
        DOCUMENT,
        "components/rng/trainer/0.json",
        "components/rng/trainer/0.safetensors",
    }


@pytest.mark.parametrize("part", [contents(), contents(trees=[tree("rng", "trainer/0", {"a": 1})])])
def test_writes_no_payload_and_no_index_without_tensors(part: PartContents) -> None:
    storage = MemoryStorage()
    make_dirs(storage, KEY)
    write_one(storage, part)
    names = {path for path, _ in walk_files(storage, KEY)}
    assert not names & {PAYLOAD, INDEX}
    assert decode_part(read_file(storage, DOCUMENT)).index is None


def test_items_tile_the_payload_and_hold_the_records(storage: Storage) -> None:
    index = written_index(storage, FIRST)
    data = read_file(storage, PAYLOAD)
    assert payload_sizes(index) == {PAYLOAD: len(data)}
    for source, item in zip(FIRST.tensors, index.tensors, strict=True):
        end = item.item_offset + item.item_size
        record = FRAME.head + bytes_of(source.data) + FRAME.tail
        assert data[item.record_offset : item.record_offset + item.record_size] == record
        assert item.record_offset + item.record_size == end
        assert not any(data[item.item_offset : item.record_offset])
        assert data[item.data_offset : item.data_offset + item.data_size] == bytes_of(source.data)
        frame = data[item.item_offset : item.data_offset]
        frame += data[item.data_offset + item.data_size : end]
        assert item.frame_digest == digest(frame)
    for copy, stored in zip(FIRST.bytes_copies, index.bytes_items, strict=True):
        assert stored.entries == copy.entries
        assert data[stored.record_offset :][: stored.record_size] == copy.data


def test_records_are_aligned_and_large_data_begins_at_a_page() -> None:
    sizes = [4, 65_532, 65_536, 12, 300_000, 1 << 20, (9 << 20) + 4, 8]
    part = contents(
        [tensor(f"t{n}", bytes(size), (size // 4,)) for n, size in enumerate(sizes)],
        [copy_of("a", b"x" * 13), copy_of("b", b"y" * 70_001)],
    )
    index = written_index(MemoryStorage(), part)
    items: list[StoredItem] = [*index.tensors, *index.bytes_items]
    for item in items:
        assert item.record_offset % 64 == 0
        assert item.data_offset % (4096 if item.data_size >= 65_536 else 64) == 0


def test_payload_larger_than_the_buffer_arrives_whole(storage: Storage) -> None:
    sources = [random_bytes(size, seed=size) for size in (40, 900_000, 5_000_000, 900_004, 12)]
    part = contents([tensor(f"t{n}", data, (len(data) // 4,)) for n, data in enumerate(sources)])
    index = written_index(storage, part)
    data = read_file(storage, PAYLOAD)
    for item, source in zip(index.tensors, sources, strict=True):
        assert data[item.data_offset : item.data_offset + item.data_size] == source


def test_small_tensors_share_writes() -> None:
    storage = FaultyStorage(MemoryStorage())
    make_dirs(storage, KEY)
    write_one(storage, contents([tensor(f"t{n}", bytes(64), (16,)) for n in range(500)]))
    writes = [op for op in storage.count.operations() if op.name == "write"]
    assert len([op for op in writes if op.key.endswith(PAYLOAD)]) == 1


def test_syncs_files_before_directories_and_closes_each_before_the_next() -> None:
    storage = FaultyStorage(MemoryStorage())
    make_dirs(storage, KEY)
    first = len(storage.count.operations())
    write_one(storage, FIRST)
    operations = storage.count.operations()[first:]
    by_file: dict[str, list[str]] = defaultdict(list)
    for operation in operations:
        if operation.name in ("create_file", "write", "sync", "close"):
            by_file[operation.key.removeprefix(f"{KEY}/")].append(operation.name)
    assert list(by_file) == [
        PAYLOAD,
        "components/rng/trainer/0.json",
        "components/rng/trainer/0.safetensors",
        INDEX,
        DOCUMENT,
    ]
    for names in by_file.values():
        assert (names[0], names[-2:]) == ("create_file", ["sync", "close"])
    closes = [n for n, op in enumerate(operations) if op.name in ("close", "create_file")]
    names = [operations[n].name for n in closes]
    assert names == ["create_file", "close"] * 5
    last = [(op.name, op.key.removeprefix(KEY).strip("/")) for op in operations[closes[-1] + 1 :]]
    directories = ["components/rng/trainer", "components/rng", "parts/trainer", "components"]
    assert last == [("sync_dir", name) for name in [*directories, "parts", ""]]


def test_all_survives_power_loss_right_after_return() -> None:
    storage = MemoryStorage()
    manifest = write_step(storage, small_parts())
    storage.sync_dir(KEY)  # the manifest is not this wing's
    left = storage.after_power_loss(lambda _kind, _key: 0.0)
    assert manifest
    for path, _ in walk_files(storage, KEY):
        assert read_file(left, path) == read_file(storage, path)


def count_operations() -> int:
    storage = FaultyStorage(MemoryStorage())
    make_dirs(storage, KEY)
    first = len(storage.count.operations())
    write_one(storage, FIRST)
    return len(storage.count.operations()) - first


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_any_refusal_is_raised_with_errno_and_never_prepared(number: int) -> None:
    for index in range(count_operations()):
        inner = MemoryStorage()
        make_dirs(inner, KEY)
        storage = FaultyStorage(inner, [Fault(index, Fail(number))])
        with pytest.raises(StorageUnavailable) as caught:
            write_one(storage, FIRST)
        assert caught.value.errno == number


def test_full_disk_in_the_middle_of_a_write_is_raised() -> None:
    inner = MemoryStorage()
    make_dirs(inner, KEY)
    fault = Fault(lambda verb, _key: verb == "write", Tear(0.5, Fail(errno.ENOSPC)))
    with pytest.raises(StorageUnavailable) as caught:
        write_one(FaultyStorage(inner, [fault]), FIRST)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.path == f"{KEY}/{PAYLOAD}"


def test_never_overwrites(storage: Storage) -> None:
    make_dirs(storage, KEY)
    write_one(storage, FIRST)
    before = read_file(storage, PAYLOAD)
    with pytest.raises(KeyExists):
        write_one(storage, FIRST)
    assert read_file(storage, PAYLOAD) == before


class GivenUp(Exception):
    pass


def test_can_be_cancelled_between_pieces() -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise GivenUp

    storage = FaultyStorage(MemoryStorage())
    make_dirs(storage, KEY)
    part = contents([tensor("big", bytes(20 << 20), (5 << 20,))])
    with pytest.raises(GivenUp):
        write_part(
            storage,
            KEY,
            step=STEP,
            attempt=ATTEMPT,
            participant="trainer/0",
            ordinal=0,
            contents=part,
            check_cancelled=check,
        )
    names = [op.name for op in storage.count.operations()]
    assert names.count("write") == 2
    assert names[-1] == "close"


def test_refuses_trees_of_others() -> None:
    storage = MemoryStorage()
    make_dirs(storage, KEY)
    with pytest.raises(InvalidInput, match="expected owner trainer/0, found trainer/1"):
        write_one(storage, contents(trees=[tree("rng", "trainer/1", {})]))
    assert walk_files(storage, KEY) == []


@pytest.mark.parametrize(
    "part",
    [
        contents([tensor("a", bytes(4), (2,))]),
        contents([tensor("a", bytes(4), (1,), dtype="float33")]),
        contents([tensor("a", bytes(4), (1,), component="../x")]),
        contents([tensor("a", bytes(4), (1,), frame=Frame(b"odd", b""))]),
        contents([tensor("a", bytes(4), (1,), frame=Frame(bytes(1 << 20), b"x"))]),
        contents(trees=[tree("rng", "trainer/0", {1: 2})]),
        contents(trees=[tree("rng", "trainer/0", {}, [array("a", bytes(3), (2,))])]),
        contents(trees=[tree("rng", "trainer/0", {}, [array("a", bytes(3), (3,), "x")])]),
        contents(trees=[tree("rng", "trainer/0", {}, [array("a", b"", (0,))] * 2)]),
    ],
    ids=range(9),
)
def test_refuses_what_could_not_be_read_back(part: PartContents) -> None:
    storage = MemoryStorage()
    make_dirs(storage, KEY)
    with pytest.raises(InvalidInput):
        write_part(
            storage,
            KEY,
            step=STEP,
            attempt=ATTEMPT,
            participant="trainer/0",
            ordinal=0,
            contents=part,
            check_cancelled=not_cancelled,
        )
    assert DOCUMENT not in {path for path, _ in walk_files(storage, KEY)}


def test_every_dtype_can_be_stored() -> None:
    part = contents(
        [tensor(name, bytes(3 * ITEMSIZE[name]), (3,), dtype=name) for name in ITEMSIZE]
    )
    assert len(written_index(MemoryStorage(), part).tensors) == len(ITEMSIZE)
