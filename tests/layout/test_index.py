# ruff: noqa: ANN401 - a change may be of any field's type

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from tests._work import num_calls
from tests.layout._samples import (
    GOLDEN,
    flips,
    index,
    refusal_of,
    stored_bytes,
    survivors,
    tensor,
)

from stepseal.errors import Corrupt, IncompatibleFormat, InvalidInput
from stepseal.layout import (
    ITEMSIZE,
    Box,
    PartIndex,
    StoredBytes,
    StoredTensor,
    build_header,
    decode_index,
    encode_index,
    num_chunks,
    parse_header,
)
from stepseal.layout._items import index_problems

EMPTY = PartIndex((), (), ())

names = st.text("ab_", min_size=1, max_size=3)
keys = st.text(st.characters(codec="utf-8"), max_size=5)


@st.composite
def indexes(draw: st.DrawFn) -> PartIndex:
    """Draw an index whose items lie in a random order over up to three files."""
    payloads = tuple(f"__2_{number}.distcp" for number in range(draw(st.integers(1, 3))))
    ends = [0] * len(payloads)
    facts: dict[tuple[str, str], tuple[str, tuple[int, ...]]] = {}

    def place(data_size: int) -> tuple[Any, ...]:
        file = draw(st.integers(0, len(payloads) - 1))
        padding, head, tail = (draw(st.integers(0, 99)) for _ in range(3))
        head += data_size == 0
        begin = ends[file]
        record_size = head + data_size + tail
        ends[file] += padding + record_size
        record = begin + padding
        digests = draw(st.binary(min_size=16, max_size=16)) * num_chunks(data_size)
        frame = draw(st.binary(min_size=16, max_size=16))
        span = (file, begin, padding + record_size, record, record_size)
        return (*span, record + head, data_size, digests, frame)

    tensors = []
    for _ in range(draw(st.integers(0, 4))):
        name = (draw(names), draw(keys))
        drawn = (
            draw(st.sampled_from(sorted(ITEMSIZE))),
            tuple(draw(st.lists(st.integers(0, 1000), max_size=3))),
        )
        dtype, shape = facts.setdefault(name, drawn)
        offsets = tuple(draw(st.integers(0, extent)) for extent in shape)
        box = Box(
            offsets,
            tuple(draw(st.integers(0, e - o)) for e, o in zip(shape, offsets, strict=True)),
        )
        stored = place(box.num_elements * ITEMSIZE[dtype])
        tensors.append(StoredTensor(*name, dtype, shape, box, *stored))
    copies = [
        StoredBytes(entries, *place(draw(st.integers(0, 3 << 20))))
        for entries in draw(
            st.lists(st.lists(st.tuples(names, keys), min_size=1).map(tuple), max_size=3)
        )
    ]
    return PartIndex(payloads, tuple(tensors), tuple(copies))


@pytest.mark.slow
@given(indexes())
def test_indexes_round_trip(value: PartIndex) -> None:
    data = encode_index(value)
    assert decode_index(data) == value
    assert encode_index(decode_index(data)) == data


@pytest.mark.parametrize(
    "value", [EMPTY, index(), index(bytes_items=()), index(tensors=(), bytes_items=())]
)
def test_small_indexes_round_trip(value: PartIndex) -> None:
    if index_problems(value):
        value = EMPTY
    assert decode_index(memoryview(encode_index(value))) == value


def test_any_safetensors_reader_loads_the_columns() -> None:
    columns = safetensors.numpy.load(encode_index(index()))
    assert columns["tensor_dims"].tolist() == [4, 3, 2, 0, 2, 3]
    assert columns["data_offset"].tolist() == [128, 256]
    assert columns["chunk_digests"].tobytes() == bytes(range(16)) + bytes(range(32, 48))
    ends = [0, *columns["string_end"].tolist()]
    blob = columns["strings"].tobytes()
    texts = [blob[a:b].decode() for a, b in zip(ends, ends[1:])]  # noqa: B905, RUF007 - pairs
    assert [texts[i] for i in columns["tensor_key"]] == ["layer.weight"]
    assert [texts[i] for i in columns["payload"]] == ["__1_0.distcp"]


def test_golden_bytes() -> None:
    data = encode_index(index())
    assert data == (GOLDEN / "index.safetensors").read_bytes()
    header = parse_header(data, what="index", file_size=len(data))
    assert header.metadata == {"format": "stepseal-index", "format_version": "1"}


@pytest.mark.slow
def test_no_flipped_bit_escapes_as_another_error() -> None:
    data = encode_index(index())
    for found in survivors(flips(data), decode_index):
        assert encode_index(decode_index(found)) == found


def test_every_cut_is_refused() -> None:
    data = encode_index(index())
    assert survivors((data[:end] for end in range(len(data))), decode_index) == []
    assert survivors(iter([data + b"\0", data + data]), decode_index) == []


def columns_of(value: PartIndex) -> dict[str, np.ndarray[Any, Any]]:
    data = encode_index(value)
    return {
        entry.name: np.frombuffer(data, entry.dtype, entry.shape[0], entry.offset)
        for entry in parse_header(data, what="index", file_size=len(data)).entries
    }


def pack(columns: dict[str, np.ndarray[Any, Any]], **metadata: str) -> bytes:
    entries = [(n, str(c.dtype), c.shape, c.nbytes) for n, c in columns.items()]
    head = build_header(entries, metadata or {"format": "stepseal-index", "format_version": "1"})
    return head + b"".join(column.tobytes() for column in columns.values())


def test_packing_columns_by_hand_is_faithful() -> None:
    assert pack(columns_of(index())) == encode_index(index())


def changed(name: str, values: Any) -> bytes:
    columns = columns_of(index())
    return pack({**columns, name: np.asarray(values, columns[name].dtype)})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (changed("file", [0]), "2 values in column file"),
        (changed("item_size", [256, 10, 1]), "2 values in column item_size"),
        (changed("tensor_component", []), "1 values in column tensor_component"),
        (changed("tensor_ndim", [3]), "9 values in column tensor_dims"),
        (changed("tensor_ndim", [255]), "765 values in column tensor_dims"),
        (changed("tensor_dims", [4, 3, 2, 0, 2]), "6 values in column tensor_dims"),
        (changed("bytes_component", [1]), "2 values in column bytes_component"),
        (changed("bytes_num_entries", [3]), "as many names as counted"),
        (changed("bytes_num_entries", [2**32 - 1]), "as many names as counted"),
        (changed("bytes_num_entries", []), "1 values in column file"),
        (changed("frame_digest", [0] * 31), "32 values in column frame_digest"),
        (changed("chunk_digests", [0] * 31), "a digest per chunk"),
        (changed("data_size", [12, 2**62]), "a digest per chunk"),
        (changed("data_size", [-(2**63), 10]), "no negative size"),
        (changed("data_size", [11, 10]), "expected 12 bytes of data, found 11"),
        (changed("data_offset", [-1, 256]), "expected item, record and data in this order"),
        (changed("tensor_key", [99]), "known texts in column tensor_key"),
        (changed("payload", [2**32 - 1]), "known texts in column payload"),
        (changed("payload", [0, 0]), "a payload file is listed twice"),
        (changed("tensor_dims", [2**62, 2**62, 0, 0, 2, 3]), "expected at most"),
        (changed("tensor_dims", [-4, 3, 2, 0, 2, 3]), "expected sizes from 0"),
        (changed("string_end", [1] * 99), "no text that is not used"),
        (changed("string_end", [12, 11, 20, 30, 40, 50, 60]), "texts one by one"),
        (changed("string_end", []), "texts one by one"),
        (changed("strings", [255] * len(columns_of(index())["strings"])), "UTF-8"),
        (changed("strings", []), "texts one by one"),
        (changed("tensor_component", [0]), "one canonical form"),
        (pack({**columns_of(index()), "more": np.zeros(1, "int64")}), "exactly the columns"),
        (pack({**columns_of(index()), "file": np.zeros(2, "int64")}), "exactly the columns"),
        (pack({**columns_of(index()), "file": np.zeros((2, 1), "uint32")}), "exactly the columns"),
        (pack({n: c for n, c in columns_of(index()).items() if n != "file"}),
        "exactly the columns"),
        (pack(dict(reversed(columns_of(index()).items()))), "one canonical form"),
        (pack(columns_of(index()), format="x", format_version="1"), "metadata of a part index"),
        (pack(columns_of(index()), format="stepseal-index"), "metadata of a part index"),
        (pack(columns_of(index()), format="stepseal-index", format_version="0"),
        "metadata of a part"),
        (pack(columns_of(index()), format="stepseal-index", format_version="\u0661"),
        "metadata of a"),
        (pack(columns_of(index()), format="stepseal-index", format_version="1", x=""),
        "one canonical"),
    ],
    ids=range(37),
)  # fmt: skip
def test_columns_that_do_not_fit_are_refused(data: bytes, expected: str) -> None:
    assert expected in refusal_of(decode_index, data).problems[0]


def test_a_newer_format_is_named() -> None:
    data = pack(columns_of(index()), format="stepseal-index", format_version="2")
    with pytest.raises(IncompatibleFormat, match="format version 1, found 2"):
        decode_index(data)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (index(payloads=("x",)), "expected a payload file"),
        (index(tensors=(tensor(key="\ud800"),)), "surrogates"),
        (index(tensors=(tensor(item_size=1.0, record_size=1.0),)), "not writable"),
        (index(tensors=(tensor(frame_digest=b""),)), "frame digest"),
    ],
    ids=range(4),
)
def test_what_is_wrong_is_not_written(value: PartIndex, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        encode_index(value)


def test_numbers_that_are_not_ints_are_not_written() -> None:
    copy = stored_bytes(item_offset=0, record_offset=0, data_offset=0.0)
    with pytest.raises(InvalidInput, match="part index is not writable"):
        encode_index(PartIndex(("__1_0.distcp",), (), (copy,)))


def test_the_number_of_items_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_index(index())
    monkeypatch.setattr("stepseal.layout._index.MAX_ITEMS", 1)
    assert "at most 1 items" in refusal_of(decode_index, data).problems[0]
    with pytest.raises(InvalidInput, match="at most 1 items"):
        encode_index(index())


def test_the_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepseal.layout._index.MAX_INDEX_BYTES", 99)
    assert "at most 99 bytes" in refusal_of(decode_index, bytes(100)).problems[0]


def many(number: int) -> PartIndex:
    first = tensor()
    step = first.item_size
    return PartIndex(
        ("__1_0.distcp",),
        tuple(
            replace(
                first, key=f"layers.{i}.weight", item_offset=step * i,
                record_offset=step * i + 64, data_offset=step * i + 128,
            )
            for i in range(number)
        ),
        (),
    )  # fmt: skip


def test_the_work_on_an_index_grows_with_its_tensors() -> None:
    value, twice = many(200), many(400)
    few = num_calls(lambda: decode_index(encode_index(value)))
    assert few < 200 * 200
    assert num_calls(lambda: decode_index(encode_index(twice))) < 2.1 * few
    assert decode_index(encode_index(twice)) == twice


@pytest.mark.slow
def test_hostile_columns_are_refused_cheaply() -> None:
    columns = columns_of(EMPTY)
    zeros = np.zeros(10_000_000, "uint8")
    assert refusal_of(decode_index, pack({**columns, "tensor_ndim": zeros}))
    assert refusal_of(decode_index, pack({**columns, "strings": zeros}))
    assert refusal_of(decode_index, pack({**columns, "string_end": zeros.view("int64")}))
    assert refusal_of(decode_index, pack({**columns, "bytes_key": zeros.view("uint32")}))
    assert refusal_of(decode_index, pack({**columns, "payload": zeros.view("uint32")}))
    assert refusal_of(decode_index, struct.pack("<Q", 90_000_000) + b"[" * 90_000_000)


@given(st.binary(max_size=80))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_index(data)
