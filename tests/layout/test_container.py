# ruff: noqa: ANN401 - a change may be of any field's type

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from tests._work import traced_peak_bytes
from tests.layout._samples import flips, refusal_of, survivors

from stepseal.errors import Corrupt, InvalidInput
from stepseal.layout import (
    ITEMSIZE,
    TO_SAFETENSORS,
    build_header,
    parse_header,
)
from stepseal.layout._container import MAX_HEADER_BYTES, header_size

deserialize: Any = safetensors.deserialize
Entries = list[tuple[str, str, tuple[int, ...], int]]
NUMPY = [
    "bool",
    "uint8",
    "int8",
    "int16",
    "uint16",
    "float16",
    "int32",
    "uint32",
    "float32",
    "int64",
]


def wrap(header: object, size: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def refusal(data: bytes, file_size: int | None = None) -> str:
    """Return why a file is refused."""
    size = len(data) if file_size is None else file_size
    error = refusal_of(lambda found: parse_header(found, what="file", file_size=size), data)
    return error.problems[0]


@st.composite
def entry_lists(draw: st.DrawFn) -> Entries:
    names = draw(
        st.lists(st.text(st.characters(codec="utf-8"), max_size=5), unique=True, max_size=4)
    )
    found: Entries = []
    for name in names:
        dtype = draw(st.sampled_from(NUMPY))
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
        found.append((name, dtype, shape, int(np.prod(shape)) * ITEMSIZE[dtype]))
    return found


@pytest.mark.slow
@given(
    entry_lists(),
    st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))),
)
def test_headers_round_trip(entries: Entries, metadata: dict[str, str]) -> None:
    head = build_header(entries, metadata)
    size = sum(e[3] for e in entries)
    assert len(head) % 64 == 0
    assert header_size(head[:8], what="file", file_size=len(head) + size) == len(head)
    found = parse_header(head, what="file", file_size=len(head) + size)
    assert found.metadata == metadata
    assert found.size_bytes == len(head)
    assert sorted((e.name, e.dtype, e.shape, e.size_bytes) for e in found.entries) == sorted(
        entries
    )


@given(entry_lists())
def test_safetensors_reads_what_we_write(entries: Entries) -> None:
    rng = np.random.default_rng(0)
    blobs = [rng.integers(0, 2, e[3], dtype=np.uint8).tobytes() for e in entries]
    data = build_header(entries, {"a": "b"}) + b"".join(blobs)
    found = safetensors.numpy.load(data)
    expected = {
        name: np.frombuffer(blob, dtype).reshape(shape)
        for (name, dtype, shape, _), blob in zip(entries, blobs, strict=True)
    }
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@given(entry_lists(), st.dictionaries(st.text("ab"), st.text("cd")))
def test_we_read_what_safetensors_writes(entries: Entries, metadata: dict[str, str]) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        e[0]: rng.integers(0, 2, e[2]).astype(e[1]) for e in entries if e[0] != "__metadata__"
    }
    data = safetensors.numpy.save(arrays, metadata or None)
    header = parse_header(data, what="file", file_size=len(data))
    assert header.metadata == metadata
    assert {e.name for e in header.entries} == arrays.keys()
    for found in header.entries:
        assert (found.dtype, found.shape) == (
            str(arrays[found.name].dtype),
            arrays[found.name].shape,
        )
        blob = data[found.offset : found.offset + found.size_bytes]
        assert blob == arrays[found.name].tobytes()


def test_every_dtype_with_a_name_is_known_to_safetensors() -> None:
    for dtype, name in TO_SAFETENSORS.items():
        if name is not None:
            size = 2 * ITEMSIZE[dtype]
            data = build_header([("a", dtype, (2,), size)], {}) + bytes(size)
            ((_, found),) = deserialize(data)
            assert found["dtype"] == name


def test_golden_bytes() -> None:
    text = b'{"__metadata__":{"k":"v"},"a":{"dtype":"BF16","shape":[2,1],"data_offsets":[0,4]}}'
    padding = b" " * (128 - 8 - len(text))
    assert build_header([("a", "bfloat16", (2, 1), 4)], {"k": "v"}) == (
        (120).to_bytes(8, "little") + text + padding
    )


@pytest.mark.parametrize(
    ("entries", "metadata", "why"),
    [
        ([("a", "complex128", (1,), 16)], {}, "has no name in safetensors"),
        ([("a", "float", (1,), 4)], {}, "has no name in safetensors"),
        ([("a", "float32", (1,), 5)], {}, "expected 4 bytes, found 5"),
        ([("a", "float32", (-1,), -4)], {}, "sizes from 0"),
        ([("a", "float32", (True,), 4)], {}, "sizes from 0"),
        ([("a", "float32", (1,) * 65, 4)], {}, "at most 64 dims"),
        ([("a", "float32", (0, 2**62), 0)], {}, "bytes"),
        ([("a", "uint8", (1,), 1), ("a", "uint8", (1,), 1)], {}, "it is taken"),
        ([("__metadata__", "uint8", (1,), 1)], {}, "it is taken"),
        ([("__metadata__", "uint8", (1,), 1)], {"a": "b"}, "it is taken"),
        ([("\ud800", "uint8", (1,), 1)], {}, "surrogate"),
        ([], {"a": "b" * MAX_HEADER_BYTES}, "too large"),
    ],
    ids=range(12),
)  # fmt: skip
def test_what_the_format_cannot_hold_is_not_written(
    entries: Entries, metadata: dict[str, str], why: str
) -> None:
    with pytest.raises(InvalidInput, match=why):
        build_header(entries, metadata)


def test_header_may_be_read_in_two_steps() -> None:
    data = wrap({"a": entry()}, 8)
    end = header_size(data[:8], what="file", file_size=len(data))
    assert parse_header(data[:end], what="file", file_size=len(data)).size_bytes == end
    assert "bytes of header" in refusal(data[: end - 1], len(data))
    assert "expected a file of" in refusal(data[:end], len(data) + 1)


@pytest.mark.parametrize("length", [0, 1, 57, 2**63, 2**64 - 1, MAX_HEADER_BYTES + 1])
def test_length_is_bounded(length: int) -> None:
    assert "expected a header of 2 to" in refusal(struct.pack("<Q", length) + b"{}" + bytes(54))
    with pytest.raises(Corrupt):
        header_size(b"", what="file", file_size=0)


@pytest.mark.parametrize(
    "header",
    [
        [], 1, "x", {"a": 1}, {"a": []}, {"a": {}}, {"__metadata__": 1}, {"__metadata__": {"a": 1}},
        {"__metadata__": {"a": ["b"]}}, {"a": entry(more=1)}, {"a": entry(dtype="F31")},
        {"a": entry(dtype=4)},
        {"a": entry(dtype=["F32"])}, {"a": entry(shape=2)}, {"a": entry(shape=[2.0])},
        {"a": entry(shape=["2"])},
        {"a": entry(shape=[True, 2])}, {"a": entry(shape=[-2])}, {"a": entry(shape=[[2]])},
        {"a": entry(shape={})},
        {"a": entry(shape=[3])}, {"a": entry(shape=[2**62, 4])}, {"a": entry(shape=[2**62] * 60)},
        {"a": entry(shape=[0, 2**62], data_offsets=[0, 0])}, {"a": entry(shape=[1] * 65)},
        {"a": entry(data_offsets=[0])}, {"a": entry(data_offsets=[0, 8, 8])},
        {"a": entry(data_offsets=8)},
        {"a": entry(data_offsets=[0.0, 8])}, {"a": entry(data_offsets=[False, 8])},
        {"a": entry(data_offsets=[8, 0])},
        {"a": entry(data_offsets=[-8, 0])}, {"a": entry(data_offsets=[1, 9])},
        {"a": entry(data_offsets=[0, 7])},
        {"a": entry(data_offsets=[2**64, 2**64 + 8])}, {"a": entry(data_offsets=[8, 16])},
        {"a": entry(), "b": entry()}, {"a": entry(), "b": entry(data_offsets=[4, 12])},
        {"a": entry(), "b": entry(data_offsets=[9, 17])}, {"a": entry(shape=[0], data_offsets=[4,
        4])},
        b'{"a":1,"a":1}', b'{"__metadata__":{"a":"b","a":"b"}}', b' {"a":1}', b"{", b"{}}", b"{}x",
        b"\xff\xff",
        b'{"\\ud800":1}', b'{"a":NaN}', b"nu", b'{"a":' + b"9" * 1_000_000 + b"}",
        b'{"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}',
    ],
    ids=range(52),
)  # fmt: skip
def test_bad_headers_are_refused(header: object) -> None:
    assert refusal(wrap(header, 8))


def test_every_bad_entry_is_listed() -> None:
    data = wrap({"a": entry(dtype="X"), "b": entry(), "c": entry(shape=[9])}, 8)
    with pytest.raises(Corrupt) as caught:
        parse_header(data, what="file", file_size=len(data))
    assert [problem[:3] for problem in caught.value.problems] == ["'a'", "'c'"]


HOSTILE = {
    "deep": b"[" * 300_000,
    "deep dicts": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "many lists": b'{"a":[' + b"[]," * 3_000_000 + b"[]]}",
    "same names": b"{"
    + b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},' * 100_000
    + b'"b":1}',
    "long shape": b'{"a":{"dtype":"F32","shape":['
    + b"1," * 1_000_000
    + b'1],"data_offsets":[0,4]}}',
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_cheaply(name: str) -> None:
    assert refusal(wrap(HOSTILE[name], 8))


@pytest.mark.slow
def test_header_of_many_entries_is_refused_or_read_cheaply() -> None:
    count = 20_000
    entries = {str(i): entry(data_offsets=[8 * i, 8 * i + 8]) for i in range(count)}
    data = wrap(entries)
    size = len(data) + 8 * count
    peak_bytes = traced_peak_bytes(lambda: parse_header(data, what="file", file_size=size))
    assert peak_bytes < len(data) + (40 << 20)
    assert refusal(data, size - 1)
    overlapping = {str(i): entry() for i in range(count)}
    assert refusal(wrap(overlapping), 8 * count)


def test_flipped_bits_never_escape_as_other_errors() -> None:
    data = build_header([("ab", "int16", (2, 3), 12), ("c", "uint8", (), 1)], {"k": "v"}) + bytes(
        13
    )
    for found in survivors(
        flips(data[:-13]), lambda d: parse_header(d, what="f", file_size=len(data))
    ):
        assert len(found) == len(data) - 13
    cuts = (data[:end] for end in range(len(data)))
    assert survivors(cuts, lambda d: parse_header(d, what="f", file_size=len(d))) == []


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for found in survivors(
        iter([wrap(data), data]), lambda d: parse_header(d, what="f", file_size=len(d))
    ):
        assert deserialize(found) is not None
