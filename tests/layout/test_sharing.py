"""Sets of ranks: their one order, how they are shown, what is no division, and the way back."""

from __future__ import annotations

import pytest

from stepseal.layout import (
    Division,
    Sharing,
    divided,
    division_problems,
    numbered_sets,
    saved_sharing,
    sets_option,
)
from stepseal.layout._sharing import coordinates_on, set_of_ranks

MESH = divided(Sharing.PER_GROUP, {"tp": 2, "pp": 1}, {"pp=0,tp=1": [3, 1], "pp=0,tp=0": [0, 2]})
NAMES = tuple(f"trainer/{rank}" for rank in range(4))


def test_a_division_has_one_order() -> None:
    assert MESH.axes == (("pp", 1), ("tp", 2))
    assert MESH.sets == (("pp=0,tp=0", (0, 2)), ("pp=0,tp=1", (1, 3)))
    assert (MESH.name, MESH.value) == ("PER_GROUP", "per_group")
    assert MESH.ranks_at("pp=0,tp=1") == (1, 3)
    assert MESH.ranks_at("tp=1") == ()
    assert MESH.coordinates() == dict(enumerate(["pp=0,tp=0", "pp=0,tp=1"] * 2))
    assert coordinates_on({"tp": 2, "pp": 1}) == {"pp=0,tp=0", "pp=0,tp=1"}


@pytest.mark.parametrize(
    ("division", "sets", "axes"),
    [
        (MESH, "pp=0,tp=0: 0 2; pp=0,tp=1: 1 3", "the axes pp=1, tp=2"),
        (divided(Sharing.PER_GROUP, {}, {"": [0, 1]}), "all: 0 1", "one set of all ranks"),
        (numbered_sets(Sharing.PER_NODE, "node", [[1], [0]]), "node=0: 0; node=1: 1", "2 nodes"),
        (numbered_sets(Sharing.PER_GROUP, "set", [[0]]), "set=0: 0", "1 set"),
        (divided(Sharing.PER_GROUP, {"tp": 1}, {"tp=0": [0]}), "tp=0: 0", "the axes tp=1"),
    ],
)
def test_sets_and_axes_are_shown(division: Division, sets: str, axes: str) -> None:
    assert division.shown() == sets
    assert division.shown_axes() == axes


def test_many_sets_are_shown_in_bounded_length_and_still_told_apart() -> None:
    ranks = [[rank] for rank in range(1000)]
    crossed = [*ranks[:-2], [998, 999]]
    one, other = (numbered_sets(Sharing.PER_GROUP, "set", sets) for sets in (ranks, crossed))
    assert one.shown() != other.shown()
    assert one.shown()[:60] == other.shown()[:60]
    assert len(one.shown()) < 100


@pytest.mark.parametrize(
    ("sets", "world", "problems"),
    [
        ([[0, 1], [2, 3]], 4, []),
        ([[0, 1], [2, 3]], None, []),
        ([], None, ["expected at least one set of ranks, found none"]),
        ([[], [0]], 1, ["expected ranks in set=0, found none"]),
        ([[0, 1], [1]], None, ["expected each rank in one set, found in several: 1"]),
        ([[0, 4, -1], [1]], 2, ["expected ranks below 2, found -1, 4"]),
        (
            [[0]],
            10,
            [
                "expected each of 10 ranks in a set, found in none: 1, 2, 3, 4, 5, 6, 7, 8 and "
                "1 more (list all sets on every rank)"
            ],
        ),
    ],
)
def test_each_rank_must_be_in_exactly_one_set(
    sets: list[list[int]], world: int | None, problems: list[str]
) -> None:
    division = numbered_sets(Sharing.PER_GROUP, "set", sets)
    assert division_problems(division, world) == problems


def test_the_sets_of_a_manifest_are_those_that_were_declared() -> None:
    owner = {name: f"trainer/{ranks[0]}" for name, ranks in MESH.sets}
    payloads = {NAMES[rank]: owner[name] for rank, name in MESH.coordinates().items()}
    options = sets_option(dict(MESH.axes), {one: name for name, one in owner.items()})
    assert saved_sharing("per_group", payloads, options, NAMES) == MESH
    assert saved_sharing("replicated", {}, {}, NAMES) is Sharing.REPLICATED


def test_a_set_of_ranks_has_a_name_of_bounded_length_of_its_own() -> None:
    assert set_of_ranks([0, 2]) == "ranks 0 2"
    many = [set_of_ranks(range(first, 4096)) for first in range(3)]
    assert len(set(many)) == 3
    assert max(map(len, many)) < 200
