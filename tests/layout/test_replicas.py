"""What several participants stored of one entry is compared without reading a byte."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.layout._samples import stored_bytes, tensor

from stepseal.layout import Box, PartIndex, replica_problems

FIRST, SECOND = "trainer/0", "trainer/1"


def part(*tensors: Any, copies: tuple[Any, ...] = ()) -> PartIndex:  # noqa: ANN401
    return PartIndex(("__0_0.distcp",), tensors, copies)


def test_equal_replicas_and_other_boxes_and_other_keys_are_sound() -> None:
    whole, copy = tensor(), stored_bytes()
    other_box = replace(whole, box=Box((0, 0), (0, 0)), chunk_digests=b"x" * 16)
    other_key = replace(whole, key="other", dtype="int8", chunk_digests=b"y" * 16)
    assert replica_problems({}) == []
    parts = {FIRST: part(whole, copies=(copy,)), SECOND: part(whole, other_box, other_key)}
    assert replica_problems(parts) == []
    assert replica_problems({FIRST: parts[FIRST], SECOND: parts[FIRST]}) == []


def test_each_entry_that_differs_is_named_once_with_both_participants() -> None:
    one, copy = tensor(), stored_bytes()
    elements = replace(one, chunk_digests=b"x" * 16)
    found = replica_problems({FIRST: part(one), SECOND: part(elements, elements)})
    name = f"component {one.component}: {one.key}"
    assert found == [f"{name}: other elements on {SECOND} than on {FIRST}"]
    (found_dtype,) = replica_problems({FIRST: part(one), SECOND: part(replace(one, dtype="int8"))})
    assert found_dtype.startswith(f"{name}: {one.dtype} {list(one.shape)} on {FIRST}, int8 ")
    changed = replace(copy, chunk_digests=b"x" * 16)
    values = replica_problems({FIRST: part(copies=(copy,)), SECOND: part(copies=(changed,))})
    assert values == [
        f"component {component}: {key}: another value on {SECOND} than on {FIRST}"
        for component, key in copy.entries
    ]
