"""Values of every type that has a codec, and the classes that stand in them."""

from __future__ import annotations

import enum
import math
import random
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from stepseal.components._codecs import register, register_codec
from stepseal.components._codecs_containers import LEAF_NUMBERS


@register
class Colour(enum.Enum):
    RED = 1
    SCARLET = 1  # noqa: PIE796 - an alias
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
