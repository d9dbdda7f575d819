"""Small sound values for the tests of this wing, and a check of refusals."""
# ruff: noqa: ANN401 - a change may be of any field's type

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests._work import traced_peak_bytes

from stepseal.errors import Corrupt, IncompatibleFormat
from stepseal.layout import (
    Box,
    ComponentEntry,
    DocumentRef,
    FileEntry,
    Manifest,
    Part,
    PartIndex,
    PartRef,
    StepRef,
    StoredBytes,
    StoredTensor,
    part_document_path,
    part_index_path,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PARTICIPANTS = ("trainer/0", "trainer/1")


def manifest(**changes: Any) -> Manifest:
    """Return a manifest of two trainers."""
    sound = Manifest(
        run_id="00112233445566778899aabbccddeeff",
        step=200,
        incarnation=2,
        attempt="ffeeddccbbaa99887766554433221100",
        parent=StepRef(100, "ab" * 32, 1),
        kind="full",
        resumable=True,
        cut={"policy_version": 7, "epoch": 0.5, "shard": "a", "last": None, "done": False},
        created_at="2026-01-02T03:04:05.678901+00:00",
        metrics={"loss": 1.25, "worst": float("inf")},
        tags=("release",),
        participants=PARTICIPANTS,
        topology={"world_size": 2, "mesh": {"axes": ["dp"], "sizes": [2]}},
        components=(
            ComponentEntry("model", "tensors", "sharded", {}, True, {}, "trainer"),
            ComponentEntry(
                "rng", "tree", "per_rank", {p: p for p in PARTICIPANTS}, False, {}, "trainer"
            ),
        ),
        parts=tuple(
            PartRef(p, DocumentRef(part_document_path(p), 10, "cd" * 32)) for p in PARTICIPANTS
        ),
        files=(FileEntry(".metadata", 3, "dcp-index", ("ef" * 16,)),),
        versions={"torch": "2.9.0"},
        durability="fsync",
        left_out={"callbacks": "trainer/1: it raised"},
    )
    return replace(sound, **changes)


def part(**changes: Any) -> Part:
    """Return the part of one trainer."""
    sound = Part(
        step=200,
        attempt="ffeeddccbbaa99887766554433221100",
        participant="trainer/1",
        files=(
            FileEntry("__1_0.distcp", 1 << 21, "payload", ()),
            FileEntry("components/rng/trainer/1.json", 12, "tree", ("ab" * 16,)),
            FileEntry("external/engine/.metadata", (1 << 20) + 1, "external", ("cd" * 16,) * 2),
        ),
        index=DocumentRef(part_index_path("trainer/1"), 99, "cd" * 32),
    )
    return replace(sound, **changes)


def tensor(**changes: Any) -> StoredTensor:
    """Return the first item of `index()`."""
    sound = StoredTensor(
        component="model",
        key="layer.weight",
        dtype="bfloat16",
        shape=(4, 3),
        box=Box((2, 0), (2, 3)),
        file=0,
        item_offset=0,
        item_size=256,
        record_offset=64,
        record_size=192,
        data_offset=128,
        data_size=12,
        chunk_digests=bytes(range(16)),
        frame_digest=bytes(range(16, 32)),
    )
    return replace(sound, **changes)


def stored_bytes(**changes: Any) -> StoredBytes:
    """Return the last item of `index()`."""
    sound = StoredBytes(
        entries=(("optimizer", "param_groups.a.lr"), ("optimizer", "param_groups.b.lr")),
        file=0,
        item_offset=256,
        item_size=10,
        record_offset=256,
        record_size=10,
        data_offset=256,
        data_size=10,
        chunk_digests=bytes(range(32, 48)),
        frame_digest=bytes(range(48, 64)),
    )
    return replace(sound, **changes)


def index(**changes: Any) -> PartIndex:
    """Return the index of one payload file of 266 bytes."""
    sound = PartIndex(("__1_0.distcp",), (tensor(),), (stored_bytes(),))
    return replace(sound, **changes)


GOLDEN = Path(__file__).parent / "golden"
"""Files of format version 1; whoever must change them changes the format, and its version."""


def refusal_of(decode: Callable[[bytes], object], data: bytes) -> Corrupt:
    """Return the error that refuses some bytes, after checking that it is short and cheap."""
    caught: list[Corrupt] = []

    def attempt() -> None:
        with pytest.raises(Corrupt) as info:
            decode(data)
        caught.append(info.value)

    if len(data) < 1 << 16:
        attempt()
    else:
        assert traced_peak_bytes(attempt) < 2 * len(data) + (200 << 20)
    assert len(str(caught[0])) < 500
    assert caught[0].problems
    return caught[0]


def flips(data: bytes) -> Iterator[bytes]:
    """Yield `data` with each of its bits flipped, one at a time."""
    for position in range(8 * len(data)):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        yield bytes(changed)


def survivors(variants: Iterator[bytes], decode: Callable[[bytes], object]) -> list[bytes]:
    """Return the variants that are not refused with a typed error."""
    accepted = []
    for data in variants:
        try:
            decode(data)
        except (Corrupt, IncompatibleFormat):
            continue
        accepted.append(data)
    return accepted
