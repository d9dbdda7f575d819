"""Non-tensor state comes back by typed codecs alone: a document can name only what the running
program registered, every generator's state comes back exactly, and pickle has no way in.
"""

from __future__ import annotations

import dataclasses
import enum
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests._architecture import UNSAFE_MODULES
from tests.security.make_corpus import CORPUS

import stepseal as ss
from stepseal.components import decode_tree
from stepseal.components._codecs import BY_TAG, encode_tree
from stepseal.components._stacks import Stack
from stepseal.errors import CheckpointError, Corrupt, StateMismatch, UnsupportedState
from stepseal.layout import TreeContents, decode_document

NAMES = [
    "os.system", "os:system", "builtins.eval", "subprocess.Popen", "posix.system", "__main__.X",
    "collections.OrderedDict", "torch.nn.Linear", "numpy.ndarray", "..os", "", "\0", "type",
    "object", "functools.partial", "importlib.import_module", "operator.attrgetter", "Evil", "int",
]  # fmt: skip


def decode(document: object) -> object:
    return decode_tree(TreeContents(document, {}), component="c")


@pytest.mark.parametrize("name", NAMES)
def test_a_class_is_never_looked_up(name: str) -> None:
    before = set(sys.modules)
    for state in ([], {}, ["id"], {"cmd": "id"}, None):
        with pytest.raises(StateMismatch, match="no such name in this program"):
            decode({"$object": {"type": name, "state": state}})
    assert set(sys.modules) == before


@pytest.mark.parametrize("tag", ["$pickle", "$reduce", "$code", "$import", "$call", "$", "$keyz"])
def test_an_unknown_tag_is_refused(tag: str) -> None:
    assert tag not in BY_TAG
    with pytest.raises(Corrupt, match="tag that this release knows"):
        decode({tag: "b3M="})


@pytest.mark.parametrize("path", sorted(CORPUS.glob("tree--*")), ids=lambda path: path.name)
def test_every_hostile_tree_is_a_typed_error_or_a_plain_value(path: Path) -> None:
    try:
        value = decode(decode_document(path.read_bytes(), what=path.name))
    except CheckpointError:
        return
    assert encode_tree(value, component="c").document is not None


@dataclasses.dataclass
class Registered:
    x: int


class Colour(enum.Enum):
    RED = 1


def test_a_registered_class_runs_nothing_of_its_own_on_the_way_back() -> None:
    ran: list[str] = []

    class Watched:
        def __post_init__(self) -> None:
            ran.append("__post_init__")

        def __setstate__(self, state: object) -> None:
            ran.append("__setstate__")

    kind: Any = dataclasses.make_dataclass("Quiet", [("x", int)], bases=(Watched,))
    ss.register(kind, name="security-test.Quiet")
    found: Any = decode({"$object": {"type": "security-test.Quiet", "state": {"x": 3}}})
    assert found.x == 3
    assert ran == []
    wrong: list[Any] = [{"y": 1}, {}, {"x": 1, "__class__": "os"}, [], None]
    for state in wrong:
        with pytest.raises(CheckpointError):
            decode({"$object": {"type": "security-test.Quiet", "state": state}})


class Reduces:
    def __reduce__(self) -> tuple[Any, ...]:
        raise AssertionError("was pickled")


@pytest.mark.parametrize("value", [Reduces(), lambda: 0, Reduces, sys, object(), {1: Reduces()}])
def test_what_no_codec_knows_is_refused_and_not_pickled(value: object) -> None:
    with pytest.raises(UnsupportedState):
        encode_tree(value, component="c")


GENERATORS: dict[str, Any] = {
    "python": lambda: random.Random(7),
    "numpy legacy": lambda: np.random.RandomState(7),
    **{
        name: (lambda kind=kind: np.random.Generator(kind(7)))
        for name, kind in (
            ("MT19937", np.random.MT19937), ("PCG64", np.random.PCG64),
            ("PCG64DXSM", np.random.PCG64DXSM), ("Philox", np.random.Philox),
            ("SFC64", np.random.SFC64),
        )
    },
    "torch": lambda: torch.Generator().manual_seed(7),
}  # fmt: skip


def draw(generator: Any) -> list[float]:  # noqa: ANN401 - any kind
    if isinstance(generator, torch.Generator):
        drawn: list[float] = torch.rand(5, generator=generator).tolist()
        return drawn
    return [float(generator.random()) for _ in range(5)]


@pytest.mark.parametrize("kind", GENERATORS)
def test_every_random_stream_goes_on_exactly_where_it_was(kind: str) -> None:
    generator = GENERATORS[kind]()
    draw(generator)
    encoded = encode_tree(generator, component="rng")
    arrays = {}
    for name, leaf in encoded.arrays:
        assert not isinstance(leaf, Stack)
        array = np.asarray(leaf) if not isinstance(leaf, (bytes, bytearray)) else None
        data = bytes(leaf) if array is None else array.tobytes()
        dtype = "uint8" if array is None else str(array.dtype)
        shape = (len(data),) if array is None else array.shape
        arrays[name] = (dtype, shape, memoryview(bytearray(data)))
    again: Any = decode_tree(TreeContents(encoded.document, arrays), component="rng")
    assert draw(again) == draw(generator)


def test_the_library_that_loads_imports_no_pickle() -> None:
    """The same is checked of every file; here of what may read: only one file names the module."""
    source = Path(ss.__file__).parent
    users = {
        path.name
        for path in source.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.match(rf"\s*import ({'|'.join(UNSAFE_MODULES)})\b", line)
    }
    assert users <= {"_dcp_index.py", "_tensors.py", "__init__.py"}
