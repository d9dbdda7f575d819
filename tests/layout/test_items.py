from __future__ import annotations

from typing import Any

import pytest
from tests.layout._samples import index, stored_bytes, tensor

from stepseal.layout import Box, PartIndex, payload_sizes
from stepseal.layout._items import index_problems


def test_a_sound_index_has_no_problems() -> None:
    assert index_problems(index()) == []
    assert index_problems(PartIndex((), (), ())) == []
    assert index_problems(PartIndex(("__0_0.distcp",), (), ())) == []


def test_a_tensor_without_elements_is_sound() -> None:
    empty = tensor(box=Box((4, 0), (0, 3)), data_size=0, chunk_digests=b"")
    assert index_problems(index(tensors=(empty,))) == []


def test_files_end_with_their_last_item() -> None:
    assert payload_sizes(index()) == {"__1_0.distcp": 266}
    assert payload_sizes(index(tensors=())) == {"__1_0.distcp": 266}
    two = index(payloads=("__1_0.distcp", "__1_1.distcp"))
    assert payload_sizes(two) == {"__1_0.distcp": 266, "__1_1.distcp": 0}


TENSORS: list[tuple[dict[str, Any], str]] = [
    ({"component": "a/b"}, "tensors[0]: expected a component name"),
    ({"dtype": "float"}, "tensors[0]: 'layer.weight': expected a known dtype, found 'float'"),
    ({"shape": (4, -3)}, "expected sizes from 0"),
    ({"shape": (2**62, 2**62)}, "expected at most 9223372036854775807 bytes"),
    ({"shape": (0, 2**63 - 1)}, "expected at most 9223372036854775807 bytes"),
    ({"shape": (1,) * 65}, "expected at most 64 dims"),
    ({"shape": (4,)}, "expected a box of 1 dims"),
    ({"box": Box((2, 0), (2,))}, "expected a box of 2 dims"),
    ({"box": Box((3, 0), (2, 3))}, "expected a box inside the global shape"),
    ({"box": Box((-1, 0), (2, 3))}, "expected a box inside the global shape"),
    ({"box": Box((2, 0), (-2, -3))}, "expected a box inside the global shape"),
    ({"box": Box((2, 0), (1, 3))}, "expected 6 bytes of data, found 12"),
    ({"data_size": -12}, "expected item, record and data in this order"),
    ({"file": 1}, "tensors[0]: expected one of 1 payload files, found 1"),
    ({"file": -1}, "tensors[0]: expected one of 1 payload files, found -1"),
    ({"item_offset": -1}, "expected item, record and data in this order"),
    ({"item_size": 0, "record_size": -64}, "expected item, record and data in this order"),
    ({"record_offset": 129, "record_size": 127}, "expected item, record and data in this order"),
    ({"item_size": 2**63 - 1, "record_size": 2**63 - 65}, ""),
    ({"item_size": 2**63, "record_size": 2**63 - 64}, "expected item, record and data in this"),
    ({"record_size": 191}, "expected record and data to end with the item, at byte 256"),
    ({"data_offset": 245}, "expected record and data to end with the item, at byte 256"),
    ({"chunk_digests": b""}, "tensors[0]: expected 1 chunk digests"),
    ({"chunk_digests": bytes(32)}, "tensors[0]: expected 1 chunk digests"),
    ({"frame_digest": bytes(15)}, "tensors[0]: expected a frame digest of 16 bytes"),
    ({"item_offset": 1, "item_size": 255}, "__1_0.distcp: expected an item at byte 0, found the"),
    ({"item_size": 255, "record_size": 191}, "expected an item at byte 255, found the next at 256"),
]


@pytest.mark.parametrize(("changes", "expected"), TENSORS, ids=range(len(TENSORS)))
def test_each_broken_rule_is_named(changes: dict[str, Any], expected: str) -> None:
    problems = index_problems(index(tensors=(tensor(**changes),)))
    assert any(expected in problem for problem in problems)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"entries": ()}, "bytes_items[0]: expected at least one entry"),
        ({"entries": (("", "a"),)}, "bytes_items[0]: expected a component name"),
        ({"file": 3}, "bytes_items[0]: expected one of 1 payload files, found 3"),
        (
            {"item_offset": 200, "item_size": 66},
            "expected an item at byte 256, found the next at 200",
        ),
    ],
)
def test_each_broken_rule_of_bytes_is_named(changes: dict[str, Any], expected: str) -> None:
    problems = index_problems(index(bytes_items=(stored_bytes(**changes),)))
    assert any(expected in problem for problem in problems)


@pytest.mark.parametrize(
    ("payloads", "expected"),
    [
        (("x",), "payloads[0]: expected a payload file, found 'x'"),
        (("../__1_0.distcp",), "payloads[0]: expected a payload file"),
        (("__1_0.distcp", "__1_0.distcp"), "payloads: a payload file is listed twice"),
    ],
)
def test_payload_files_are_checked(payloads: tuple[str, ...], expected: str) -> None:
    assert any(expected in problem for problem in index_problems(index(payloads=payloads)))


def test_boxes_of_one_tensor_agree_on_it() -> None:
    first = tensor()
    second = tensor(item_offset=256, record_offset=320, data_offset=384)
    copies = (stored_bytes(item_offset=512, record_offset=512, data_offset=512),)
    assert index_problems(PartIndex(("__1_0.distcp",), (first, second), copies)) == []
    other = tensor(item_offset=256, record_offset=320, data_offset=384, dtype="float16")
    (problem,) = index_problems(PartIndex(("__1_0.distcp",), (first, other), copies))
    assert problem == "tensors[1]: 'layer.weight': two items differ in dtype or global shape"


def test_the_list_of_problems_stays_short() -> None:
    broken = tensor(dtype="x", frame_digest=b"")
    problems = index_problems(index(tensors=(broken,) * 1000))
    assert len(problems) == 101
