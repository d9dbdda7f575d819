"""Whatever a document claims, it is refused or read with little processor time and 200 MB beyond
its own size, each time that it is read: nesting, digits, counts, shapes and offsets are bounded
before memory is taken.

The 2 s that are promised stand for 60 times a fixed piece of work, `yardstick_s`, so that no test
depends on how fast the machine is.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from tests._work import yardstick_s
from tests.security._cost import Cost, cost_of
from tests.security._forge import NEWEST, OWNER, Forgery, header, sealed
from tests.security.make_corpus import CORPUS, large, largest, plant

import stepseal as ss
from stepseal.cli import main
from stepseal.components import decode_tree
from stepseal.layout import (
    Box,
    PartIndex,
    StoredTensor,
    TreeContents,
    chunk_digests,
    decode_document,
    decode_index,
    decode_manifest,
    decode_part,
    encode_index,
    parse_header,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.slow

MAX_WORK, MAX_WORK_SMALL, MAX_EXTRA_BYTES = 60.0, 6.0, 200_000_000
TYPED = {
    "Corrupt", "IncompatibleFormat", "InvalidInput", "StateMismatch", "StepNotFound",
    "StorageUnavailable",
}  # fmt: skip


LARGE = large()


def decode(name: str, data: bytes) -> object:
    """Decode an item of the corpus with the decoder that it is for."""
    target = name.split("--")[0]
    if target == "header":
        return parse_header(data, what=name, file_size=len(data))
    if target == "tree":
        return decode_tree(TreeContents(decode_document(data, what=name), {}))
    return decode_manifest(data) if target == "manifest" else decode_part(data)


def check(cost: Cost, size_bytes: int, *, num_readings: int = 1) -> None:
    assert cost.came_to in TYPED | {"value"}, cost
    assert cost.work <= MAX_WORK * num_readings, cost
    assert cost.extra_bytes <= size_bytes + MAX_EXTRA_BYTES, cost


@pytest.mark.parametrize("name", LARGE)
def test_a_large_item_is_decoded_or_refused_cheaply(name: str) -> None:
    data = LARGE[name]()
    check(cost_of(lambda: decode(name, data), enough=MAX_WORK), len(data))


@pytest.mark.parametrize("name", largest())
def test_the_largest_documents_are_decoded_or_refused_cheaply(name: str) -> None:
    data = largest()[name]()
    cost = cost_of(lambda: decode(name, data), enough=MAX_WORK)
    check(cost, len(data))
    if name.endswith("beyond"):
        assert "values and keys" in cost.message
    else:
        assert "values and keys" not in cost.message


@pytest.mark.parametrize(
    "name", [p.name for p in sorted(CORPUS.glob("*--*")) if not p.name.startswith("pickle")]
)
def test_a_small_item_is_decoded_or_refused_at_once(name: str) -> None:
    data = (CORPUS / name).read_bytes()
    cost = cost_of(lambda: decode(name, data), enough=MAX_WORK_SMALL)
    check(cost, len(data))
    assert cost.work <= MAX_WORK_SMALL, cost


def test_an_index_of_100000_columns_is_refused_cheaply() -> None:
    data = LARGE["header--100000-arrays"]()
    cost = cost_of(lambda: decode_index(data), enough=MAX_WORK)
    check(cost, len(data))
    assert cost.came_to == "Corrupt"


def command(*arguments: str) -> None:
    with suppress(SystemExit):
        main.main(list(arguments), standalone_mode=False)


LOADS: dict[str, Callable[[Path], object]] = {
    "tensors": lambda root: ss.open(root).step(NEWEST).tensors(),
    "giant": lambda root: ss.open(root).step(NEWEST).tensors("giant"),
    "verify": lambda root: ss.open(root).step(NEWEST).verify(),
    "value": lambda root: ss.open(root).step(NEWEST).value("loader", OWNER),
    "show": lambda root: command("show", str(root), "--tensors"),
}
NUM_READINGS = 2
"""A step that seems damaged is looked at once more, as a prune may have taken it away and put it
back; the second look trusts nothing of the first."""


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("name", ["header--100000-arrays", "tree--wide", "part--100000-files"])
def test_a_large_item_inside_a_step_is_read_cheaply(name: str, load: str, tmp_path: Path) -> None:
    forgery = Forgery(tmp_path / "root")
    data = LARGE[name]()
    plant(forgery, name, data)
    cost = cost_of(lambda: LOADS[load](forgery.root), enough=MAX_WORK * NUM_READINGS)
    check(cost, len(data), num_readings=NUM_READINGS)


def giant(forgery: Forgery, *, box: int, on_disk: int | None) -> None:
    """Let the index claim one float32 tensor of a terabyte, of which it holds `box` elements."""
    size = 1 << 40
    data_size = 4 * box
    item = StoredTensor(
        component="model",
        key="giant",
        dtype="float32",
        shape=(size // 4,),
        box=Box((0,), (box,)),
        file=0,
        item_offset=0,
        item_size=data_size + 64,
        record_offset=0,
        record_size=data_size + 64,
        data_offset=64,
        data_size=data_size,
        chunk_digests=bytes(16) * -(-data_size // (1 << 20)),
        frame_digest=bytes(16),
    )
    forgery.index(encode_index(PartIndex(("__0_0.distcp",), (item,), ())))

    def resize(body: dict[str, object]) -> None:
        files = body["files"]
        assert isinstance(files, list)
        for entry in files:
            if entry["role"] == "payload":
                entry["size_bytes"] = data_size + 64

    forgery.change_part(resize)
    if on_disk is not None:
        os.truncate(forgery.folder / "__0_0.distcp", on_disk)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(
    ("box", "on_disk"), [(2, 72), ((1 << 38), None)], ids=["declared-hole", "declared-file"]
)
def test_a_declared_terabyte_takes_no_memory(
    box: int, on_disk: int | None, load: str, tmp_path: Path
) -> None:
    forgery = Forgery(tmp_path / "root")
    giant(forgery, box=box, on_disk=on_disk)
    cost = cost_of(lambda: LOADS[load](forgery.root), enough=MAX_WORK)
    check(cost, 100_000_000)
    if load == "giant":
        assert cost.came_to == "Corrupt"
        assert ("no box holds" if box == 2 else "expected 1099511627840 bytes") in cost.message


def test_a_sparse_terabyte_says_that_there_is_not_so_much_memory(tmp_path: Path) -> None:
    forgery = Forgery(tmp_path / "root")
    giant(forgery, box=1 << 38, on_disk=(1 << 40) + 64)
    cost = cost_of(lambda: LOADS["giant"](forgery.root), enough=MAX_WORK)
    check(cost, 100_000_000)
    assert cost.came_to == "StorageUnavailable", cost
    assert "memory" in cost.message


def test_a_sparse_tree_segment_says_so_too(tmp_path: Path) -> None:
    forgery = Forgery(tmp_path / "root")
    size = 1 << 39
    entry = {"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    path = f"components/loader/{OWNER}.safetensors"
    forgery.file(path, header(entry))
    os.truncate(forgery.folder / path, size)
    digests = [chunk_digests(bytes(1 << 20)).hex()] * (size >> 20)

    def resize(body: dict[str, object]) -> None:
        files = body["files"]
        assert isinstance(files, list)
        for found in files:
            if found["path"] == path:
                found.update(size_bytes=size, digests=digests)

    forgery.change_part(resize)
    value = ss.open(forgery.root).step(NEWEST).value
    cost = cost_of(lambda: value("loader", OWNER), enough=2 * MAX_WORK)
    assert cost.came_to == "StorageUnavailable", cost
    assert cost.work <= 2 * MAX_WORK  # a part document of half a million digests is read before


def burn() -> None:
    for _ in range(2 * int(MAX_WORK)):
        yardstick_s()


def test_the_meter_notices_time_and_memory() -> None:
    assert cost_of(lambda: bytearray(300_000_000)).extra_bytes > MAX_EXTRA_BYTES
    assert cost_of(burn).work > MAX_WORK
    assert cost_of(lambda: bytearray(8 << 30)).came_to == "MemoryError"
    assert sealed({}) != header({})
