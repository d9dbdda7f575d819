"""Values that codecs know come back bit for bit, whatever holds them."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.components._roundtrip import freeze, round_trip, same
from tests.components._values import VALUES, Clock, Colour, Config, Mode, Point

from stepseal.components import _codecs
from stepseal.components._codecs import decode_tree, encode_tree
from stepseal.components._codecs_containers import LEAF_NUMBERS
from stepseal.components._codecs_tensors import TORCH_CODECS
from stepseal.errors import UnsupportedState
from stepseal.layout import ITEMSIZE

OF_TORCH = [cls for codec in TORCH_CODECS for cls in codec.types]


@pytest.mark.parametrize("name", VALUES)
def test_every_known_value_comes_back_exactly(name: str) -> None:
    assert same(VALUES[name], round_trip(VALUES[name]))


@pytest.mark.parametrize("name", VALUES)
def test_every_known_value_comes_back_from_inside_containers(name: str) -> None:
    value = {"a": [(VALUES[name], {"k": VALUES[name]})]}
    assert same(value, round_trip(value))


@pytest.mark.parametrize("name", VALUES)
def test_encoding_a_value_does_not_change_it_and_is_repeatable(name: str) -> None:
    assert freeze(VALUES[name]).document == freeze(VALUES[name]).document


@pytest.mark.parametrize(
    "name",
    [name for name in ITEMSIZE if hasattr(torch, name) and name != "complex32"],
)
def test_every_dtype_comes_back_bit_for_bit(name: str) -> None:
    data = bytearray(range(6 * ITEMSIZE[name])) if name != "bool" else bytearray([0, 1, 1, 0, 1, 0])
    tensor = torch.frombuffer(data, dtype=torch.uint8).view(getattr(torch, name)).view(2, 3)
    for view in (tensor, tensor.t(), tensor[1:, 1], tensor[1, 1]):
        found = round_trip(view)
        assert found.dtype == view.dtype
        assert found.shape == view.shape
    found = round_trip(tensor).reshape(-1).view(torch.uint8)
    assert bytes(found.tolist()) == bytes(data)


def test_the_memory_order_of_dense_tensors_and_arrays_comes_back() -> None:
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert round_trip(image).stride() == image.stride()
    array = np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)
    assert round_trip(array).strides == array.strides


def test_arrays_come_back_writable_whatever_their_size() -> None:
    small, large = round_trip([np.zeros(3), np.zeros(1 << 18)])
    small += 1
    large += 1
    tensor = round_trip(torch.zeros(1 << 19))
    tensor.add_(1)
    assert float(tensor[0]) == small[0] == large[0] == 1


def test_a_spawned_numpy_generator_goes_on_spawning_where_it_was() -> None:
    generator = np.random.default_rng(3)
    generator.spawn(2)
    found = round_trip(generator)
    assert found.spawn(1)[0].random() == generator.spawn(1)[0].random()
    assert found.normal() == generator.normal()


JSON_KEYS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(max_size=8),
)
LEAVES = st.one_of(
    JSON_KEYS,
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters(codec=None, exclude_categories=())),
    st.sampled_from([Colour.RED, Mode.READ, torch.float16, np.float32(3), torch.Size([1])]),
)
TREES = st.recursive(
    LEAVES,
    lambda children: st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.lists(children, max_size=3).map(deque),
        st.dictionaries(JSON_KEYS, children, max_size=4),
        st.dictionaries(st.text("ab$", max_size=3), children, max_size=4),
        st.dictionaries(st.text(max_size=3), children, max_size=4).map(OrderedDict),
        st.builds(Point, st.integers(), children),
        st.sets(st.tuples(JSON_KEYS), max_size=3),
    ),
    max_leaves=12,
)


@given(TREES)
def test_any_tree_comes_back_exactly(value: object) -> None:
    assert same(value, round_trip(value))


def test_each_codec_of_torch_has_a_tag_that_is_known_without_torch() -> None:
    assert {codec.tag for codec in TORCH_CODECS} == set(_codecs.TORCH_TAGS)


@given(st.lists(st.tuples(st.text("ab$", max_size=2), st.integers()), max_size=6))
def test_the_order_of_a_dict_comes_back(items: list[tuple[str, int]]) -> None:
    assert list(round_trip(dict(items)).items()) == list(dict(items).items())


@pytest.mark.parametrize(
    "cls",
    dict.fromkeys(
        (*_codecs.BY_TYPE, *OF_TORCH, np.ndarray, np.float32, Colour, Point, Config, Clock)
    ),
)
def test_a_type_is_refused_once_its_codec_is_gone(
    cls: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = {type(one): one for value in VALUES.values() for one in [value, *_flat(value)]}
    find = _codecs.find_codec
    assert encode_tree(samples[cls], component="c")
    monkeypatch.setattr(_codecs, "find_codec", lambda found: None if found is cls else find(found))
    with pytest.raises(UnsupportedState):
        encode_tree(samples[cls], component="c")


def _flat(value: object) -> list[object]:
    return list(value) if isinstance(value, (list, tuple)) else []


def test_json_stays_readable() -> None:
    state = {"epoch": 3, "lr": [0.1], "shape": (2, 3), "last": None}
    assert encode_tree(state, component="c").document == {
        "$keys": ["epoch", "lr", "shape", "last"],
        "epoch": 3,
        "lr": [0.1],
        "shape": {"$tuple": [2, 3]},
        "last": None,
    }
    assert encode_tree({"a": 1, "b": {"c": "x"}}, component="c").document == {
        "a": 1,
        "b": {"c": "x"},
    }


def test_leaf_names_say_where_the_leaf_stands_and_are_unique() -> None:
    state = {
        "replay": {"obs": [torch.ones(1)]},
        "replay.obs": [torch.ones(1)],
        "__metadata__": torch.ones(1),
    }
    names = [name for name, _ in encode_tree(state, component="c").arrays]
    assert names[:2] == ["replay.obs.0", "replay.obs.0~2"]
    assert not names[2].startswith("__")


def test_a_capture_is_isolated_from_later_changes() -> None:
    state = {
        "tensor": torch.zeros(3),
        "array": np.zeros(3),
        "bytes": bytearray(5000),
        "numbers": [0] * LEAF_NUMBERS,
        "list": [1],
        "generator": np.random.default_rng(1),
    }
    before = copy.deepcopy(state)
    frozen = freeze(state)
    state["tensor"].add_(1)  # type: ignore[attr-defined]
    state["array"] += 1  # type: ignore[operator]
    state["bytes"][:] = b"\x01" * 5000  # type: ignore[index]
    state["numbers"][0] = 7  # type: ignore[index]
    state["list"].append(2)  # type: ignore[attr-defined]
    state["generator"].random()  # type: ignore[attr-defined]
    assert same(decode_tree(frozen), before)
