"""Random streams go on exactly, and a capture moves none of them."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.components._memory import bytes_of
from tests.components._roundtrip import freeze, saved, world

from stepseal.components._capture import capture
from stepseal.components._codecs import decode_tree
from stepseal.components._rng import RNG, RNGComponent
from stepseal.components._types import SavedComponent, Sharing
from stepseal.errors import Corrupt, InvalidInput, StateMismatch
from stepseal.layout import TreeContents

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _streams() -> Iterator[None]:
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(python)
    np.random.set_state(legacy)
    torch.set_rng_state(cpu)


def _draw(rng: RNG) -> list[Any]:
    drawn: list[Any] = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]
    drawn += torch.rand(3).tolist() + torch.randn(1).tolist()
    drawn += [float(one.normal()) for one in rng.numpy]
    drawn += [float(torch.rand(1, generator=one)) for one in rng.torch]
    return drawn


def _rng() -> RNG:
    kinds = (
        np.random.MT19937,
        np.random.PCG64,
        np.random.PCG64DXSM,
        np.random.Philox,
        np.random.SFC64,
    )
    return RNG(
        numpy=[*(np.random.Generator(kind()) for kind in kinds), np.random.RandomState()],
        torch=[torch.Generator(), torch.Generator().manual_seed(3)],
    )


def test_all_streams_go_on_exactly() -> None:
    old = _rng()
    _draw(old)
    found = saved(capture(RNGComponent("rng", old), world(2, 1), None), 2)
    expected = [_draw(old), _draw(old)]
    new = _rng()
    plan = RNGComponent("rng", new).plan(found, world(2, 1))
    plan.apply()
    assert [_draw(new), _draw(new)] == expected


def test_a_capture_and_a_plan_move_no_stream() -> None:
    rng = RNG(numpy=[np.random.default_rng(1)], torch=[torch.Generator().manual_seed(2)])
    component = RNGComponent("rng", rng)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = freeze(component.read_state()).document
    found = saved(capture(component, world(1), None))
    component.plan(found, world(1))
    assert freeze(component.read_state()).document == before
    one = _draw(rng)
    component.plan(found, world(1)).apply()
    capture(component, world(1), None)
    assert _draw(rng) == one


def test_an_array_of_a_captured_state_does_not_follow_the_live_stream() -> None:
    captured = capture(RNGComponent("rng", RNG()), world(1), None)
    before = [bytes_of(one.data) for one in captured.trees[0].arrays]
    np.random.rand(700)
    torch.rand(700)
    assert [bytes_of(one.data) for one in captured.trees[0].arrays] == before


def test_spawning_goes_on_where_it_was_from_the_same_seed() -> None:
    old = np.random.default_rng(5)
    old.spawn(2)
    found = saved(capture(RNGComponent("rng", RNG(numpy=[old])), world(1), None))
    new = np.random.default_rng(5)
    RNGComponent("rng", RNG(numpy=[new])).plan(found, world(1)).apply()
    assert new.spawn(1)[0].random() == old.spawn(1)[0].random()


def test_streams_are_per_rank_in_every_world_unless_declared() -> None:
    assert RNGComponent("rng", RNG()).sharing(world(1)) is Sharing.PER_RANK
    assert RNGComponent("rng", RNG()).sharing(world(8)) is Sharing.PER_RANK
    assert RNGComponent("rng", RNG(), Sharing.GLOBAL).sharing(world(8)) is Sharing.GLOBAL


@pytest.mark.slow
def test_numpy_is_neither_imported_nor_saved_before_it_is_in_use() -> None:
    # A fresh interpreter, because this one imported numpy long ago; torch may import it by itself.
    code = (
        "import sys, torch\n"
        "used = 'numpy.random' in sys.modules\n"
        "from stepseal.components._rng import RNG, RNGComponent\n"
        "state = RNGComponent('rng', RNG()).read_state()\n"
        "assert ('numpy' in state) == used == ('numpy.random' in sys.modules), used\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def _changed(**changes: object) -> SavedComponent:
    state: Any = RNGComponent("rng", RNG()).read_state()
    state.update(changes)
    return SavedComponent("rng", "tree", Sharing.PER_RANK, {}, freeze(state), 1)


def _mt(**changes: object) -> dict[str, Any]:
    state: Any = np.random.RandomState(1).get_state(legacy=False)
    state["state"] = {**state["state"], **changes}
    return dict(state)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 2},
            "cuda: saved streams of 2 devices, here 0",
        ),
        ({"cuda": 3}, "cuda: expected a list"),
        ({"numpy_generators": [np.random.default_rng(1)]}, "numpy generators: expected 0, found 1"),
        ({"torch_generators": [{"device": "cpu"}]}, "torch generators: expected 0, found 1"),
        ({"torch": torch.zeros(3, dtype=torch.uint8)}, "torch: the saved state does not fit"),
        ({"python": (3, (1,), None)}, "python: the saved state does not fit"),
        ({"numpy": _mt(pos=10_000)}, r"numpy: expected pos in \[0, 625\)"),
        ({"numpy": _mt(pos=-1)}, r"numpy: expected pos in \[0, 625\)"),
        ({"numpy": _mt(key=np.zeros(3, np.uint32))}, "numpy: expected key to be 624"),
        ({"numpy": 3}, "numpy: expected the state"),
        (
            {"numpy": np.random.RandomState(np.random.PCG64(1)).get_state(legacy=False)},
            "numpy: expected the bit generator MT19937, found PCG64",
        ),
        ({"mps": 3}, "expected the streams"),
    ],
)
def test_what_cannot_be_restored_is_said_before_anything_is_touched(
    changes: dict[str, object], text: str
) -> None:
    before = freeze(RNGComponent("rng", RNG()).read_state()).document
    with pytest.raises(StateMismatch, match=text):
        RNGComponent("rng", RNG()).plan(_changed(**changes), world(1))
    assert freeze(RNGComponent("rng", RNG()).read_state()).document == before


def test_all_problems_are_listed_together() -> None:
    found = _changed(cuda=[torch.zeros(16)], numpy=3, torch=3)
    with pytest.raises(StateMismatch) as caught:
        RNGComponent("rng", RNG(torch=[torch.Generator()])).plan(found, world(1))
    assert len(caught.value.problems) == 4


def test_generators_of_another_kind_are_refused() -> None:
    old = RNG(numpy=[np.random.default_rng(1)], torch=[torch.Generator()])
    found = saved(capture(RNGComponent("rng", old), world(1), None))
    new = RNG(numpy=[np.random.Generator(np.random.Philox(1))], torch=[torch.Generator()])
    with pytest.raises(
        StateMismatch, match=r"expected Generator\(Philox\), found Generator\(PCG64\)"
    ):
        RNGComponent("rng", new).plan(found, world(1))


def test_what_is_no_generator_is_refused_at_once() -> None:
    for rng in (RNG(numpy=[3]), RNG(torch=[np.random.default_rng(1)])):  # type: ignore[list-item]
        with pytest.raises(InvalidInput, match="expected numpy generators"):
            RNGComponent("rng", rng)


@pytest.mark.parametrize(
    ("bits", "changes"),
    [
        ("MT19937", {"pos": 10_000}),
        ("PCG64", {"inc": 2**128}),
        ("PCG64", {"state": -1}),
    ],
)
def test_a_hostile_generator_state_is_corrupt(bits: str, changes: dict[str, int]) -> None:
    generator = np.random.Generator(getattr(np.random, bits)(1))
    state = dict(generator.bit_generator.state)
    state["state"] = {**state["state"], **changes}
    frozen = freeze({"state": state})
    node: Any = frozen.document
    hostile = {"$numpy_generator": {"state": node["state"]}}
    with pytest.raises(Corrupt):
        decode_tree(TreeContents(hostile, frozen.arrays))


def test_a_hostile_buffer_position_of_philox_is_corrupt() -> None:
    state: Any = dict(np.random.Philox(1).state)
    for position in (-1, 5, True):
        frozen = freeze({**state, "buffer_pos": position})
        with pytest.raises(Corrupt):
            decode_tree(
                TreeContents({"$numpy_generator": {"state": frozen.document}}, frozen.arrays)
            )


@pytest.mark.parametrize(
    "seed",
    [
        {"entropy": 1, "spawn_key": {"$tuple": []}, "pool_size": 10**9, "n_children_spawned": 0},
        {"entropy": 1, "spawn_key": [], "pool_size": 4, "n_children_spawned": 0},
        {"entropy": "x", "spawn_key": {"$tuple": []}, "pool_size": 4, "n_children_spawned": 0},
        {"entropy": 1, "spawn_key": {"$tuple": ["a"]}, "pool_size": 4, "n_children_spawned": 0},
        {"entropy": 1},
        3,
    ],
)
def test_a_hostile_seed_is_corrupt(seed: object) -> None:
    frozen = freeze(np.random.PCG64(1).state)
    hostile = {"$numpy_generator": {"state": frozen.document, "seed": seed}}
    with pytest.raises(Corrupt):
        decode_tree(TreeContents(hostile, frozen.arrays))
