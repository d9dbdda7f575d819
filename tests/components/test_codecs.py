"""Every value that codecs know comes back bit for bit, and every other one is refused where it stands."""

from __future__ import annotations

import collections
import copy
import datetime
import enum
import functools
import math
import random
import struct
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.components._roundtrip import freeze, round_trip, same, stored

from stepseal.components import _codecs
from stepseal.components._codecs import decode_tree, encode_tree, register, register_codec
from stepseal.components._codecs_containers import LEAF_NUMBERS
from stepseal.components._codecs_core import MAX_DEPTH
from stepseal.errors import Corrupt, InvalidInput, StateMismatch, UnsupportedState
from stepseal.layout import ITEMSIZE

if TYPE_CHECKING:
    from collections.abc import Callable


@register
class Colour(enum.Enum):
    RED = 1
    SCARLET = 1
    BLUE = "b"


@register
class Mode(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


@register
class Point(NamedTuple):
    y: int
    x: Any


@register
@dataclass
class Config:
    rate: float
    name: str = "cfg"
    x: list[Any] = field(default_factory=list)


@register(name="frozen config")
@dataclass(frozen=True, slots=True)
class FrozenConfig:
    size: int


class Clock:
    def __init__(self, ticks: int) -> None:
        self.ticks = ticks

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Clock) and other.ticks == self.ticks

    def __hash__(self) -> int:
        return self.ticks


register_codec(
    Clock, encode=lambda clock: {"ticks": clock.ticks}, decode=lambda state: Clock(state["ticks"])
)

QUIET_NAN = struct.unpack("<d", struct.pack("<Q", 0xFFF8000000000123))[0]

VALUES: dict[str, Any] = {
    "none": None,
    "bools": [True, False],
    "ints": [0, -1, 2**63 - 1, -(2**63 - 1)],
    "huge ints": [2**63, -(2**63), 3**5000, -(10**1000)],
    "floats": [0.1, -0.0, 0.0, 5e-324, 1.7976931348623157e308, 1e22, 3.0],
    "special floats": [math.nan, math.inf, -math.inf, QUIET_NAN, -math.nan],
    "complex": [1 + 2j, complex(-0.0, math.nan), complex(math.inf, 1)],
    "str": ["", "text", "\u00e9\U0001f600\x00\n", "\ud800 alone"],
    "bytes": [b"", b"\x00\xff", bytes(range(256)) * 20],
    "bytearray": [bytearray(b"abc"), bytearray(5000)],
    "list": [1, [2, [3, []]], "x"],
    "long ints": list(range(-5, LEAF_NUMBERS)),
    "long floats": [math.nan, QUIET_NAN, -0.0, *map(float, range(LEAF_NUMBERS))],
    "long tuple": tuple(range(LEAF_NUMBERS)),
    "almost ints": [True, *range(LEAF_NUMBERS)],
    "tuple": ((), (1,), (1, (2, [3]))),
    "dict": {"b": 1, "a": {"z": [], "y": {}}},
    "dict order": [{"a": 1, "b": 2}, {"b": 2, "a": 1}],
    "dollar keys": [
        {"$tuple": [1]},
        {"$keys": ["a"], "a": 1},
        {"$dict": 1},
        {"a": {"$x": {"$y": 1}}},
    ],
    "mixed keys": {
        1: "a",
        "1": "b",
        None: "c",
        2.5: "d",
        (1, ("x",)): "e",
        -1: "f",
        b"k": "g",
        Colour.RED: 1,
    },
    "bool keys": {True: 1, False: 0},
    "surrogate keys": {"\ud800": 1, "a": 2},
    "dtype keys": {torch.float32: 1, np.float32(2): 2, frozenset({1}): 3, FrozenConfig(1): 4},
    "ordered": OrderedDict([("b", 1), ("a", OrderedDict([(2, 3)]))]),
    "defaultdict": [
        defaultdict(list, {"a": [1]}),
        defaultdict(None, {1: 2}),
        defaultdict(int, {"$a": 1}),
    ],
    "counter": Counter({"x": 3, 7: 1}),
    "set": [set(), {1, "a", (2, 3)}, {1, 2.5, None}],
    "frozenset": [frozenset(), frozenset({frozenset({1}), 2})],
    "deque": [deque([1, [2]], maxlen=3), deque(), deque([1])],
    "long deque": deque(range(LEAF_NUMBERS), maxlen=LEAF_NUMBERS),
    "size": torch.Size([2, 0, 3]),
    "dtype": [torch.bfloat16, torch.float32, torch.quint8],
    "device": [torch.device("cpu"), torch.device("cuda", 3), torch.device("meta")],
    "enum": [Colour.RED, Colour.SCARLET, Colour.BLUE],
    "flag": [Mode.READ, Mode.READ | Mode.WRITE, Mode(0)],
    "namedtuple": Point(1, Point(2, [torch.ones(2)])),
    "dataclass": [Config(0.1, x=[Config(1.0)]), FrozenConfig(3)],
    "custom": [Clock(3), {"a": Clock(4)}],
    "tensor": [torch.arange(6.0).view(2, 3), torch.tensor(3), torch.empty(0), torch.empty(2, 0, 3)],
    "grad": [torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True) * 2],
    "parameter": [
        torch.nn.Parameter(torch.ones(2)),
        torch.nn.Parameter(torch.ones(2), requires_grad=False),
    ],
    "views": [
        torch.arange(12).view(3, 4)[:, 1],
        torch.arange(3).expand(2, 3),
        torch.ones(2, 3).t(),
    ],
    "conj": [torch.tensor([1 + 2j, 3 - 1j]).conj(), torch.tensor([1 + 2j]).conj().imag],
    "bool tensor": torch.tensor([True, False]),
    "ndarray": [np.arange(6.0).reshape(2, 3), np.array(3), np.zeros((0, 2)), np.arange(9)[::-2]],
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "numpy order": [np.arange(3, dtype=">i4"), np.arange(3, dtype=">f8")],
    "numpy texts": [np.array(["a", "bc"]), np.array([b"x"]), np.array([""])],
    "numpy times": [
        np.array(["2020-01-01", "NaT"], "M8[s]"),
        np.array([5], "m8[ns]"),
        np.array([1], "m8"),
    ],
    "numpy records": np.array(
        [(1, (2.0, [3, 4]))], dtype=[("a", ">i2"), ("b", [("c", "f4"), ("d", "u1", (2,))])]
    ),
    "aligned records": np.zeros(2, dtype=np.dtype([("a", "u1"), ("b", "f8")], align=True)),
    "numpy bool": np.array([True, False]),
    "numpy long double": np.array([1, 2], dtype=np.longdouble) / 3,
    "numpy complex": np.array([1 + 2j], dtype=np.complex128),
    "scalars": [
        np.float64(0.1),
        np.float32(0.1),
        np.float16(-0.0),
        np.int8(-3),
        np.uint64(2**64 - 1),
    ],
    "odd scalars": [
        np.bool_(True),
        np.float32(math.nan),
        np.float64(math.inf),
        np.complex64(1 + 2j),
        np.str_("a\x00"),
        np.str_(""),
        np.bytes_(b"a"),
        np.datetime64("2020-01-01"),
        np.timedelta64(3, "s"),
        np.longdouble(1) / 3,
    ],
    "random": random.Random(3),
    "random state": random.Random(3).getstate(),
    "torch generator": torch.Generator().manual_seed(3),
    "numpy generators": [
        np.random.Generator(kind(3))
        for kind in (
            np.random.MT19937,
            np.random.PCG64,
            np.random.PCG64DXSM,
            np.random.Philox,
            np.random.SFC64,
        )
    ],
    "numpy random state": [np.random.RandomState(3), np.random.RandomState(np.random.Philox(4))],
}


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


@given(st.lists(st.tuples(st.text("ab$", max_size=2), st.integers()), max_size=6))
def test_the_order_of_a_dict_comes_back(items: list[tuple[str, int]]) -> None:
    assert list(round_trip(dict(items)).items()) == list(dict(items).items())


@pytest.mark.parametrize(
    "cls", [*_codecs.BY_TYPE, np.ndarray, np.float32, Colour, Point, Config, Clock]
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


class Opaque:
    pass


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
    "namedtuple": (lambda: [collections.namedtuple("P", "x")(1)], "[0]", "P"),  # noqa: PYI024 - the old kind too
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
    inner: list[object] = [
        deque(maxlen=1),
        torch.tensor(1, dtype=torch.complex128),
        np.float32(1),
    ]
    value: Any = [*inner, np.zeros(1, [("a", [("b", "u1", (2,))])]), defaultdict(int), Mode(3)]
    with pytest.raises(UnsupportedState, match="levels of nesting"):
        for _ in range(MAX_DEPTH + 1):
            assert same(value, round_trip(value))
            value = wrap(value)


def test_very_deep_nesting_is_a_typed_error() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(UnsupportedState, match="levels of nesting"):
        encode_tree(value, component="c")
    while value:  # a destructor that recurses this deep is not what is tested here
        value = value.pop()


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
    "deep": functools.reduce(lambda inner, _: [inner], range(MAX_DEPTH + 2), 1),
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
        decode_tree(type(contents)(contents.document, leaves), component="c")
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


def _contents(node: object, **leaves: tuple[str, tuple[int, ...], memoryview]) -> Any:
    return type(stored(None))(node, leaves)


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
