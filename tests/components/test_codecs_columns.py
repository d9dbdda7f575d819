"""Long sequences of items that are alike: by columns, exactly, and whatever a document claims."""

from __future__ import annotations

import random
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from tests.components._roundtrip import freeze, round_trip, same, saved, world

from stepseal.components._capture import capture, describe_tree
from stepseal.components._codecs import decode_tree, encode_tree, register
from stepseal.components._codecs_columns import ALIKE_FROM
from stepseal.components._codecs_words import MAX_DEPTH, max_made
from stepseal.components._stateful import ValueComponent
from stepseal.errors import Corrupt, StateMismatch, UnsupportedState
from stepseal.layout import TreeContents

if TYPE_CHECKING:
    from collections.abc import Callable

N = ALIKE_FROM


@register(name="columns.Transition")
class Transition(NamedTuple):
    obs: torch.Tensor
    reward: float


@register(name="columns.Episode")
@dataclass(slots=True)
class Episode:
    seed: int
    obs: Any = field(default_factory=lambda: torch.rand(2))


@register(name="columns.Loose")
@dataclass
class Loose:
    seed: int


def _record(i: int) -> dict[str, Any]:
    return {
        "obs": torch.rand(3, dtype=torch.bfloat16),
        "action": np.array([i, -i], dtype=np.int16),
        "reward": float(i) / 3,
        "done": i % 7 == 0,
        "extra": {"z": np.float32(i), "a": None, "text": f"step {i}"},
    }


def _odd_float(i: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", 0x7FF0_0000_0000_0001 + i))[0])


ALIKE: dict[str, Callable[[int], Any]] = {
    "dicts": _record,
    "tuples": lambda i: (torch.tensor(i), i, f"{i}"),
    "lists": lambda i: [i % 2 == 0, [float(i)]],
    "namedtuples": lambda i: Transition(torch.rand(1), i / 2),
    "dataclasses": Episode,
    "0-d arrays": lambda i: np.array(i),
    "matrices": lambda i: np.full((2, 2), i, dtype=np.float32),
    "complex tensors": lambda i: torch.complex(torch.rand(2), torch.rand(2)).conj(),
    "strided rows": lambda i: torch.rand(4, 2)[:, 0],
    "scalars of odd bits": lambda i: np.array([0x7FA00000 + i], np.uint32).view(np.float32)[0],
    "NaNs": lambda i: (_odd_float(i), True),
    "bools": lambda i: i % 3 == 0,
    "texts": lambda i: f"{i}",
    "numpy bools": lambda i: np.bool_(i % 2),
    "empty dicts": lambda i: {},
    "keys like tags": lambda i: {"$tuple": i, "$keys": torch.ones(1)},
}
UNLIKE: dict[str, Callable[[int], Any]] = {
    "other shapes": lambda i: torch.rand(i % 3),
    "other dtypes": lambda i: torch.ones(1, dtype=torch.float64 if i == 5 else torch.float32),
    "other keys": lambda i: {"a": 1} if i else {"b": torch.ones(1)},
    "another order of keys": lambda i: {"a": 1, "b": 2} if i else {"b": 1, "a": 2},
    "other lengths": lambda i: (1,) * (i % 4),
    "one that learns": lambda i: torch.ones(1, requires_grad=i == 9),
    "big endian": lambda i: np.ones(1, ">f4"),
    "empty tensors": lambda i: torch.ones(0, 3),
    "permuted": lambda i: torch.rand(2, 3, 4).permute(2, 0, 1),
    "numbers and None": lambda i: None if i % 2 else i / 3,
    "int keys": lambda i: {i: torch.ones(1)},
}


@pytest.mark.parametrize("make", (ALIKE | UNLIKE).values(), ids=ALIKE | UNLIKE)
@pytest.mark.parametrize("container", [list, deque, tuple])
def test_every_sequence_comes_back_exactly(
    make: Callable[[int], Any], container: Callable[[Any], Any]
) -> None:
    value = {"it": container([make(i) for i in range(N)])}
    assert same(round_trip(value), value)


def test_a_buffer_makes_a_few_leaves_and_a_few_nodes() -> None:
    buffer = [_record(i) for i in range(N)]
    encoded = encode_tree(buffer, component="c")
    assert sorted(name for name, _ in encoded.arrays) == ["action", "done", "extra.z", "obs"]
    assert len(encode_tree(buffer[:-1], component="c").arrays) == 2 * (N - 1)


def test_values_are_those_of_the_call() -> None:
    buffer = [_record(i) for i in range(N)]
    expected = round_trip(buffer)
    captured = capture(ValueComponent("c", buffer), world(1), None)
    for one in buffer:
        one["obs"].fill_(7)
        one["action"][:] = 7
        one["extra"]["z"] = 7
        one.clear()
    buffer.clear()
    restored: list[Any] = []
    ValueComponent("c", restored).plan(saved(captured), world(1)).apply()
    assert same(restored, expected)


def test_describing_touches_no_bytes_and_ranges_can_be_filled() -> None:
    tensors = [torch.full((2,), float(i)) for i in range(N)]
    (array,) = describe_tree("c", "", tensors).arrays
    tensors[1].fill_(-1)
    assert array.data.view() is None
    part = memoryview(bytearray(8))
    array.data.fill(part, 8)
    assert bytes(part) == struct.pack("<2f", -1, -1)


def test_each_restored_tensor_and_array_owns_its_memory() -> None:
    restored = round_trip([(torch.ones(2), np.ones(2)) for _ in range(N)])
    tensor, array = restored[3]
    assert tensor.untyped_storage().nbytes() == 8
    assert array.base is None
    assert array.flags.writeable


def test_an_unknown_type_is_named_by_its_place() -> None:
    buffer: list[Any] = [{"outer": {"x": i, "bad": 1}} for i in range(N)]
    buffer[321]["outer"]["bad"] = {"deep": object()}
    with pytest.raises(UnsupportedState) as caught:
        encode_tree({"replay": buffer}, component="c")
    assert caught.value.path == '["replay"][321]["outer"]["bad"]["deep"]'


def test_a_cycle_through_records_is_refused() -> None:
    record: dict[str, Any] = {"x": 1}
    record["self"] = record
    with pytest.raises(UnsupportedState, match="cycle"):
        encode_tree([record] * N, component="c")


def test_fields_that_a_dataclass_does_not_declare_are_refused() -> None:
    episodes = [Loose(i) for i in range(N)]
    episodes[7].cache = 1  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedState, match="cache") as caught:
        encode_tree(episodes, component="c")
    assert caught.value.path == "[7]"


def test_what_columns_nest_too_deeply_stands_item_by_item() -> None:
    value: Any = [{"a": torch.ones(1)} for _ in range(N)]
    for _ in range(MAX_DEPTH - 2):
        value = [value]
    assert same(round_trip(value), value)


@pytest.mark.parametrize("item", [1, 0.5, "x", None])
def test_plain_items_below_the_deepest_list_are_refused_at_the_save(item: object) -> None:
    value: Any = [item]
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert round_trip(value) == value
    with pytest.raises(UnsupportedState, match="levels of nesting"):
        encode_tree([value], component="c")


def _leaf(dtype: str, shape: tuple[int, ...], data: bytes) -> dict[str, Any]:
    return {"x": (dtype, shape, memoryview(bytearray(data)))}


HOSTILE: dict[str, tuple[object, dict[str, Any]]] = {
    "kind": ({"$stack": {"leaf": "x", "of": "set"}}, _leaf("float32", (2,), bytes(8))),
    "no items": ({"$stack": {"leaf": "x", "of": "tensor"}}, _leaf("float32", (0, 2), b"")),
    "empty items": ({"$stack": {"leaf": "x", "of": "tensor"}}, _leaf("float32", (2**40, 0), b"")),
    "0 dims": ({"$stack": {"leaf": "x", "of": "tensor"}}, _leaf("float32", (), bytes(4))),
    "flat bools": ({"$stack": {"leaf": "x", "of": "bool"}}, _leaf("bool", (1, 1), b"\1")),
    "bool 2": ({"$stack": {"leaf": "x", "of": "bool"}}, _leaf("bool", (1,), b"\2")),
    "bools of int8": ({"$stack": {"leaf": "x", "of": "bool"}}, _leaf("int8", (1,), b"\1")),
    "arrays of bfloat16": (
        {"$stack": {"leaf": "x", "of": "ndarray"}},
        _leaf("bfloat16", (1,), bytes(2)),
    ),
    "scalars of 2 dims": ({"$stack": {"leaf": "x", "of": "scalar"}}, _leaf("int8", (1, 1), b"1")),
    "no columns": ({"$records": {"of": "tuple", "columns": []}}, {}),
    "no keys": ({"$records": {"of": "dict", "columns": [[1]]}}, {}),
    "keys of a tuple": ({"$records": {"of": "tuple", "columns": [[1]], "keys": ["a"]}}, {}),
    "a key twice": ({"$records": {"of": "dict", "columns": [[1]] * 2, "keys": ["a", "a"]}}, {}),
    "a key too many": ({"$records": {"of": "dict", "columns": [[1]], "keys": ["a", "b"]}}, {}),
    "a key of another type": ({"$records": {"of": "dict", "columns": [[1]], "keys": [1]}}, {}),
    "lengths": ({"$records": {"of": "tuple", "columns": [[1], [1, 2]]}}, {}),
    "no list": ({"$records": {"of": "tuple", "columns": ["ab"]}}, {}),
    "another kind": ({"$records": {"of": "set", "columns": [[1]]}}, {}),
    "a type of a dict": (
        {"$records": {"of": "dict", "columns": [[1]], "keys": ["a"], "type": "x"}},
        {},
    ),
    "more than leaves pay for": (
        {"$stack": {"leaf": "x", "of": "tensor"}},
        _leaf("bool", (1_200_000,), bytes(1_200_000)),
    ),
}


@pytest.mark.parametrize(("document", "arrays"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_columns_are_corrupt(document: object, arrays: dict[str, Any]) -> None:
    with pytest.raises(Corrupt):
        decode_tree(TreeContents(document, arrays))


def test_nested_records_count_each_level() -> None:
    node: Any = {"$stack": {"leaf": "x", "of": "bool"}}
    for _ in range(12):
        node = {"$records": {"of": "tuple", "columns": [node]}}
    with pytest.raises(Corrupt, match="as many objects"):
        decode_tree(TreeContents(node, _leaf("bool", (100_000,), bytes(100_000))))


def test_a_class_with_other_fields_or_none_is_a_mismatch() -> None:
    columns = {"columns": [[1], [2]], "keys": ["seed", "other"]}
    for label in ("columns.Episode", "columns.Gone"):
        with pytest.raises(StateMismatch, match=r"columns\.Gone|the fields"):
            decode_tree(TreeContents({"$records": {"of": "object", "type": label, **columns}}, {}))


def test_a_save_never_makes_more_than_a_restore_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepseal.components._codecs.max_made", lambda size: N - 1)
    value = [torch.ones(1) for _ in range(N)]
    assert len(encode_tree(value, component="c").arrays) == N
    assert same(decode_tree(freeze(value)), value)
    assert max_made(800) == 1_000_100


def test_random_mixes_come_back_exactly() -> None:
    chance = random.Random(0)
    makers = list((ALIKE | UNLIKE).values())
    for _ in range(2):
        chosen = [chance.choice(makers) for _ in range(3)]
        value = [{f"k{k}": make(i) for k, make in enumerate(chosen)} for i in range(N)]
        assert same(round_trip(value), value)
