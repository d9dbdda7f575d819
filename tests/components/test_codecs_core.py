"""What codecs refuse: values without a codec at a save, hostile documents at a restore."""

from __future__ import annotations

import contextlib
import copy
import datetime
import enum
import functools
import math
import random
import threading
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from tests.components._roundtrip import freeze, round_trip, same, stored

from stepseal.components._codecs import BY_TAG, decode_tree, encode_tree, register, register_codec
from stepseal.components._codecs_words import MAX_DEPTH
from stepseal.errors import Corrupt, InvalidInput, StateMismatch, UnsupportedState
from stepseal.layout import TreeContents

if TYPE_CHECKING:
    from collections.abc import Callable


from tests.components._values import VALUES, Config, Mode


class Opaque:
    pass


class Pair(NamedTuple):
    a: int
    b: int


class SubDict(dict[str, int]):
    pass


def _cycle() -> list[Any]:
    value: list[Any] = [1]
    value.append({"a": value})
    return value


def _extra() -> Config:
    config = Config(0.1)
    config.cache = 1  # type: ignore[attr-defined]
    return config


class Unregistered(enum.Enum):
    A = 1


@dataclass
class Plain:
    x: int = 0


UNSUPPORTED: dict[str, tuple[Callable[[], object], str, str]] = {
    "object": (
        lambda: {"optimizer": {"cfg": Config(0.1, x=[1, 2, 3, Opaque()])}},
        '["optimizer"]["cfg"].x[3]',
        "Opaque",
    ),
    "top level": (Opaque, "", "Opaque"),
    "function": (lambda: [len], "[0]", "builtin_function"),
    "lambda": (lambda: {"f": lambda: 0}, '["f"]', "function"),
    "partial": (lambda: {"f": functools.partial(int)}, '["f"]', "partial"),
    "class": (lambda: (int,), "[0]", "type"),
    "module": (lambda: {"m": math}, '["m"]', "module"),
    "lock": (lambda: {"l": threading.Lock()}, '["l"]', "lock"),
    "dict subclass": (lambda: {"d": SubDict()}, '["d"]', "SubDict"),
    "set member": (lambda: {"s": {Opaque()}}, '["s"]{*}', "Opaque"),
    "dict key": (lambda: {"d": {Opaque(): 1}}, '["d"][', "Opaque"),
    "tensor key": (lambda: {torch.ones(1): 1}, "[tensor([1.])]", "Tensor"),
    "tensor in key": (lambda: {(1, torch.ones(1)): 1}, "[(1, tensor([1.]))][1]", "Tensor"),
    "integer key": (lambda: {7: Opaque()}, "[7]", "Opaque"),
    "quoted key": (lambda: {'a"b': Opaque()}, r'["a\"b"]', "Opaque"),
    "enum": (lambda: [Unregistered.A], "[0]", "Unregistered"),
    "dataclass": (lambda: [Plain()], "[0]", "Plain"),
    "namedtuple": (lambda: [Pair(1, 2)], "[0]", "Pair"),
    "extra attribute": (lambda: {"c": _extra()}, '["c"]', "cache"),
    "factory": (lambda: {"d": defaultdict(lambda: 0)}, '["d"]', "lambda"),
    "cycle": (_cycle, '[1]["a"]', "cycle"),
    "huge int": (lambda: [1 << 20_000], "[0]", "bits"),
    "date": (lambda: {"t": datetime.date(2020, 1, 1)}, '["t"]', "date"),
    "range": (lambda: [range(3)], "[0]", "range"),
    "object array": (lambda: {"a": np.array([None])}, '["a"]', "object"),
    "object record": (lambda: {"a": np.zeros(1, [("o", "O")])}, '["a"]', "O"),
    "matrix": (lambda: {"a": np.ma.array([1])}, '["a"]', "MaskedArray"),
    "sparse": (lambda: {"t": torch.eye(2).to_sparse()}, '["t"]', "sparse"),
    "meta": (lambda: {"t": torch.empty(2, device="meta")}, '["t"]', "meta"),
    "module object": (lambda: {"m": torch.nn.Linear(1, 1)}, '["m"]', "Linear"),
    "numpy module": (lambda: {"g": np.random.PCG64(1)}, '["g"]', "PCG64"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_value_is_named_with_its_path(name: str) -> None:
    make, path, text = UNSUPPORTED[name]
    with pytest.raises(UnsupportedState) as caught:
        encode_tree(make(), component="trainer")
    assert caught.value.path is not None
    assert caught.value.path == path or (path.endswith("[") and caught.value.path.startswith(path))
    assert caught.value.component == "trainer"
    assert text in str(caught.value)
    assert "'trainer'" in str(caught.value)


def test_the_message_for_an_unknown_type_says_what_to_do() -> None:
    with pytest.raises(UnsupportedState, match=r"register_codec.*\(get, set\) pair"):
        encode_tree({"x": Opaque()}, component="c")


def test_an_object_met_twice_is_no_cycle() -> None:
    shared = [1, {"a": 2}]
    assert round_trip([shared, shared, {"k": shared}]) == [shared, shared, {"k": shared}]
    tensor = torch.ones(2)
    first, second = round_trip([tensor, tensor])
    first.add_(1)
    assert torch.equal(second, tensor)


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: (v,), lambda v: {"a": v}, lambda v: {1: v}]
)
def test_nesting_is_bounded_at_save_and_every_depth_below_can_be_stored(
    wrap: Callable[[Any], Any],
) -> None:
    value: Any = [
        deque(maxlen=1),
        torch.tensor(1, dtype=torch.complex128),
        np.float32(1),
        np.zeros(1, [("a", [("b", "u1", (2,))])]),
        defaultdict(int),
        Mode(3),
    ]
    num_levels = 0
    while _can_be_encoded(value):
        assert same(value, round_trip(value))
        value, num_levels = wrap(value), num_levels + 1
    assert 15 < num_levels <= MAX_DEPTH


def _can_be_encoded(value: object) -> bool:
    try:
        encode_tree(value, component="c")
    except UnsupportedState as error:
        assert "levels of nesting" in str(error)  # noqa: PT017 - the loop ends with this error
        return False
    return True


def test_very_deep_nesting_is_a_typed_error() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(UnsupportedState, match="levels of nesting"):
        encode_tree(value, component="c")
    while value:  # a destructor that recurses this deep is not what is tested here
        value = value.pop()


def _nested(num_levels: int) -> list[object]:
    value: list[object] = []
    for _ in range(num_levels):
        value = [value]
    return value


HOSTILE: dict[str, object] = {
    "unknown tag": {"a": {"$pickle": "gASV"}},
    "unknown tag in list": [{"$eval": "1"}],
    "two tags": {"$tuple": [], "$set": []},
    "tag beside a key": {"$tuple": [], "a": 1},
    "plain tag": {"$numbers": [1]},
    "keys only": {"$keys": ["a"]},
    "keys twice": {"$keys": ["a", "a"], "a": 1},
    "keys missing": {"$keys": [], "a": 1},
    "keys of another type": {"$keys": "a", "a": 1},
    "keys unhashable": {"$keys": [["a"]], "a": 1},
    "pairs": {"$dict": [[1]]},
    "pairs twice": {"$dict": [[1, 2], [1, 3]]},
    "pairs equal": {"$dict": [[1, 2], [True, 3]]},
    "pairs unhashable": {"$dict": [[[1], 2]]},
    "tuple": {"$tuple": 3},
    "tuple of dict": {"$tuple": {"a": 1}},
    "set unhashable": {"$set": [{"a": 1}]},
    "set twice": {"$set": [1, 1]},
    "int": {"$int": "12x"},
    "small int": {"$int": "12"},
    "int as number": {"$int": 12},
    "int too long": {"$int": "9" * 100_000},
    "int unicode": {"$int": "\u0661" * 30},
    "float": {"$float": "1.5"},
    "float bits": {"$float": "0x3ff0000000000000"},
    "complex": {"$complex": [1.0]},
    "complex of ints": {"$complex": [1, 2]},
    "str": {"$str": "!"},
    "bytes": {"$bytes": "a"},
    "bytes of list": {"$bytes": [1]},
    "bytes leaf": {"$bytes": {"leaf": "nothing"}},
    "deque": {"$deque": {"items": [1, 2], "maxlen": 1}},
    "deque maxlen": {"$deque": {"items": [], "maxlen": -1}},
    "deque bool": {"$deque": {"items": [], "maxlen": True}},
    "deque field": {"$deque": {"items": [], "maxlen": 1, "x": 1}},
    "factory": {"$defaultdict": {"factory": "eval", "items": {}}},
    "factory path": {"$defaultdict": {"factory": "os.system", "items": {}}},
    "ordered": {"$odict": [1]},
    "size": {"$size": [-1]},
    "size of bool": {"$size": [True]},
    "dtype": {"$dtype": "load"},
    "device": {"$device": "cpu; rm"},
    "device kind": {"$device": "nonsense"},
    "tensor": {"$tensor": {"leaf": "nothing"}},
    "tensor name": {"$tensor": {"leaf": ["x"]}},
    "tensor no leaf": {"$tensor": {}},
    "ndarray dtype": {"$ndarray": {"leaf": "f", "dtype": "O"}},
    "ndarray object": {"$ndarray": {"leaf": "f", "dtype": "|O8"}},
    "ndarray empty": {"$ndarray": {"leaf": "f", "dtype": "<U0", "shape": [1 << 50]}},
    "ndarray names": {"$ndarray": {"leaf": "f", "dtype": [["a", "f4,f4"]]}},
    "ndarray deep": {"$ndarray": {"leaf": "f", "dtype": [["a", [["b", [["c", "<f4"]]]]]]}},
    "ndarray mismatch": {"$ndarray": {"leaf": "f", "dtype": "<i4"}},
    "ndarray sizes": {"$ndarray": {"leaf": "b", "dtype": "<f8", "shape": [2]}},
    "ndarray order": {"$ndarray": {"leaf": "f", "dtype": "<f4", "order": [1]}},
    "tensor order": {"$tensor": {"leaf": "f", "order": [0, 0]}},
    "tensor raw": {"$tensor": {"leaf": "f", "dtype": "complex128", "shape": [1]}},
    "tensor raw sizes": {"$tensor": {"leaf": "b", "dtype": "complex128", "shape": [1 << 62, 0]}},
    "tensor overflow": {
        "$tensor": {"leaf": "b", "dtype": "complex128", "shape": [1 << 32, 1 << 32]}
    },
    "tensor integer grad": {"$tensor": {"leaf": "b", "requires_grad": True}},
    "leaf twice": [{"$tensor": {"leaf": "f"}}, {"$tensor": {"leaf": "f"}}],
    "scalar": {"$scalar": {"dtype": "<f4", "value": "x"}},
    "scalar range": {"$scalar": {"dtype": "|i1", "value": 300}},
    "scalar hex": {"$scalar": {"dtype": "<c8", "hex": "00"}},
    "scalar object": {"$scalar": {"dtype": "|O8", "hex": "0000000000000000"}},
    "scalar huge": {"$scalar": {"dtype": "|V999999999", "hex": ""}},
    "generator": {"$numpy_generator": {"state": {"bit_generator": "os", "state": {}}}},
    "generator of list": {"$numpy_generator": {"state": []}},
    "random": {"$random": [3]},
    "random index": {"$random": {"$tuple": [3, {"$tuple": [0] * 624 + [10**6]}, None]}},
    "torch generator": {"$torch_generator": {"device": "cpu", "state": {"$tensor": {"leaf": "b"}}}},
    "torch generator state": {"$torch_generator": {"device": "cpu", "state": 3}},
    "deep": _nested(MAX_DEPTH + 2),
    "unused leaf": 3,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_document_is_corrupt_and_nothing_else(name: str) -> None:
    leaves = {
        "f": ("float32", (1,), memoryview(bytearray(4))),
        "b": ("uint8", (4,), memoryview(bytearray(4))),
    }
    contents = stored(HOSTILE[name])
    with pytest.raises(Corrupt) as caught:
        decode_tree(TreeContents(contents.document, leaves), component="c")
    assert caught.value.problems
    assert caught.value.path is not None


def test_a_corrupt_document_is_named_with_its_path() -> None:
    with pytest.raises(Corrupt, match=r"'c'.*\[\"a\"\]\[1\].*\$pickle") as caught:
        decode_tree(stored({"a": [1, {"$pickle": 1}]}), component="c")
    assert caught.value.path == '["a"][1]'


@pytest.mark.parametrize("node", [2**63, math.inf, object(), (1,), {1: 2}, {"a": float("nan")}])
def test_what_json_cannot_hold_is_corrupt(node: object) -> None:
    with pytest.raises(Corrupt):
        decode_tree(_contents(node))


def _contents(node: object, **leaves: tuple[str, tuple[int, ...], memoryview]) -> TreeContents:
    return TreeContents(node, leaves)


@pytest.mark.parametrize(
    ("dtype", "shape", "size_bytes"),
    [
        ("float32", (2,), 4),
        ("float32", (-1, -1), 4),
        ("nonsense", (1,), 4),
        ("float32", (1 << 62, 1 << 62, 0), 0),
        ("bool", (2,), 2),
    ],
)
def test_a_leaf_that_contradicts_its_header_is_corrupt(
    dtype: str, shape: tuple[int, ...], size_bytes: int
) -> None:
    leaf = (dtype, shape, memoryview(bytearray(b"\x02" * size_bytes)))
    with pytest.raises(Corrupt):
        decode_tree(_contents({"$tensor": {"leaf": "x"}}, x=leaf))


def test_a_name_that_is_not_registered_is_a_mismatch_and_is_not_imported() -> None:
    for name in ("os.system", "subprocess.Popen", "Opaque", "tests.components.test_codecs.Opaque"):
        with pytest.raises(StateMismatch, match="register"):
            decode_tree(stored({"$object": {"type": name, "state": {}}}))


@pytest.mark.parametrize(
    "state",
    [
        {"type": "Config", "state": {"rate": 0.1}},
        {"type": "Config", "state": 3},
        {"type": "Colour", "state": {"member": "__class__"}},
    ],
)
def test_fields_and_members_that_changed_are_a_mismatch(state: object) -> None:
    with pytest.raises(StateMismatch):
        decode_tree(stored({"$object": state}))


def test_a_name_belongs_to_one_class() -> None:
    @dataclass
    class Other:
        x: int

    with pytest.raises(InvalidInput, match="belongs to"):
        register(Other, name="Config")
    with pytest.raises(InvalidInput, match="register_codec"):
        register(Opaque)
    with pytest.raises(InvalidInput, match="has a codec"):
        register_codec(int, encode=str, decode=int)
    with pytest.raises(InvalidInput, match="printable"):
        register(Other, name="")


def test_a_class_defined_again_takes_over_its_name() -> None:
    def define() -> type:
        @register(name="again")
        @dataclass
        class Again:
            x: int

        return Again

    define()
    later = define()
    assert type(round_trip(later(3))) is later


def test_a_codec_that_cannot_take_a_state_is_a_mismatch_with_its_path() -> None:
    node = {"$object": {"type": "Clock", "state": [1]}}
    with pytest.raises(StateMismatch, match=r"Clock takes.*TypeError") as caught:
        decode_tree(stored({"a": node}), component="c")
    assert caught.value.path == '["a"]'


ATOMS: list[object] = [None, True, -1, 1.5, 2**62, "x", "cpu", "|O8", "complex128", [], {}, [[1]]]


def _places(node: object) -> list[tuple[Any, Any]]:
    """Return each place in a document as its container and key."""
    keys: list[Any] = list(node) if isinstance(node, dict) else []
    keys = list(range(len(node))) if isinstance(node, list) else keys
    inner: Any = node
    return [(inner, key) for key in keys] + [at for key in keys for at in _places(inner[key])]


def _damage(document: object, choices: random.Random) -> object:
    box = [copy.deepcopy(document)]
    for _ in range(choices.randint(1, 3)):
        holder, key = choices.choice(_places(box))
        action = choices.randrange(3)
        if action == 0:
            holder[key] = copy.deepcopy(choices.choice(ATOMS))
        elif action == 1 and isinstance(holder, dict):
            holder[choices.choice([*BY_TAG, "$keys", "leaf", "shape"])] = holder.pop(key)
        else:
            holder[key] = {choices.choice([*BY_TAG]): holder[key]}
    return box[0]


@pytest.mark.parametrize("name", [name for name in VALUES if name != "almost ints"])
def test_a_damaged_document_is_a_value_or_a_typed_error(name: str) -> None:
    frozen, choices = freeze(VALUES[name]), random.Random(name)
    for _ in range(60):
        leaves = {
            leaf: (dtype, shape, memoryview(bytearray(data)))
            for leaf, (dtype, shape, data) in frozen.arrays.items()
        }
        with contextlib.suppress(Corrupt, StateMismatch):
            decode_tree(TreeContents(_damage(frozen.document, choices), leaves))
