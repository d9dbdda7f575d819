from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import to_builtins
from tests.layout._samples import GOLDEN, flips, part, refusal_of, survivors

from stepseal.errors import Corrupt, IncompatibleFormat, InvalidInput
from stepseal.layout import (
    DocumentRef,
    FileEntry,
    decode_part,
    encode_part,
    num_chunks,
    part_bytes,
    part_index_path,
    seal,
)

sizes = st.integers(0, 5 << 20)
names = st.text("abcXYZ019_", min_size=1, max_size=4)


@st.composite
def files(draw: st.DrawFn) -> tuple[FileEntry, ...]:
    found = [
        FileEntry(f"__3_{number}.distcp", draw(st.integers(0, 2**63 - 1)), "payload", ())
        for number in range(draw(st.integers(0, 2)))
    ]
    for name in draw(st.lists(names, max_size=3, unique_by=str.casefold)):
        size = draw(sizes)
        digests = ("ab" * 16,) * num_chunks(size)
        found.append(FileEntry(f"components/{name}/a.json", size, "tree", digests))
        found.append(FileEntry(f"external/{name}/.metadata", size, "external", digests))
    return tuple(found)


@pytest.mark.slow
@given(files(), st.integers(0, 2**53 - 1))
def test_parts_round_trip(entries: tuple[FileEntry, ...], step: int) -> None:
    value = part(files=entries, step=step)
    data = encode_part(value)
    assert decode_part(data) == value
    assert encode_part(decode_part(data)) == data


def test_a_part_without_payload_needs_no_index() -> None:
    value = part(files=(), index=None)
    assert decode_part(encode_part(value)) == value


def test_the_sizes_of_a_part_are_told_alone() -> None:
    assert part_bytes(encode_part(part())) == (1 << 21) + 12 + (1 << 20) + 1 + 99
    assert part_bytes(encode_part(part(files=(), index=None))) == 0


def test_sizes_of_what_is_no_part_document_are_refused() -> None:
    for text in (b"", b"{}", b'{"body": {"files": [{"size_bytes": -1}], "index": null}}'):
        with pytest.raises(Corrupt, match="part document"):
            part_bytes(text)


def test_golden_bytes() -> None:
    assert encode_part(part()) == (GOLDEN / "part.json").read_bytes()


def test_every_flipped_bit_and_cut_is_refused() -> None:
    data = encode_part(part(files=()))
    assert survivors(flips(data), decode_part) == []
    assert survivors((data[:end] for end in range(len(data))), decode_part) == []


def payload(path: str, size: int = 5) -> FileEntry:
    return FileEntry(path, size, "payload", ())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"step": 2**53}, "<= 9007199254740991 - at `$.step`"),
    ({"attempt": "x"}, "- at `$.attempt`"),
    ({"participant": "a.b"}, "participant: expected a participant"),
    ({"files": (payload("../x"),)}, "files[0]: expected no segment that begins with a dot"),
    ({"files": (payload("x"),)}, "files[0]: a file of role payload cannot have the path 'x'"),
    ({"files": (payload("__0_0.distcp", -1),)}, ">= 0 - at `$.files[0].size_bytes`"),
    (
        {"files": (payload("__0_0.distcp"), payload("__1_0.distcp"))},
        "files: payload of participants [0, 1] in one part",
    ),
    (
        {"files": (payload("__0_0.distcp"), payload("__0_0.distcp"))},
        "files: '__0_0.distcp' and '__0_0.distcp' are the same file",
    ),
    (
        {"files": (FileEntry(".metadata", 0, "dcp-index", ()),)},
        "files[0].role: a dcp-index file is not listed in a part",
    ),
    ({"index": None}, "index: expected an index, because there is payload"),
    (
        {"index": DocumentRef(part_index_path("trainer/0"), 9, "ab" * 32)},
        "index.path: expected parts/trainer/1.safetensors, found 'parts/trainer/0.safetensors'",
    ),
    ({"index": DocumentRef(part_index_path("trainer/1"), 9, "ab")}, "- at `$.index.sha256`"),
]


@pytest.mark.parametrize(("changes", "expected"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_neither_written_nor_read(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        encode_part(part(**changes))
    assert any(expected in problem for problem in caught.value.problems)
    error = refusal_of(decode_part, seal(to_builtins(part(**changes))))
    assert error.problems == caught.value.problems


def test_the_file_is_named() -> None:
    error = refusal_of(lambda data: decode_part(data, what="parts/trainer/1.json"), b"x")
    assert error.path == "parts/trainer/1.json"


def test_a_newer_format_is_named() -> None:
    with pytest.raises(IncompatibleFormat):
        decode_part(seal({"format_version": 2}))
