from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests._collisions import equal_tuples

from stepseal.errors import InvalidInput
from stepseal.layout import (
    Box,
    coverage_problems,
    hull,
    intersect,
    linear_boxes,
    whole,
)
from stepseal.layout._boxes import linear_range

Element = tuple[int, ...]


def elements(box: Box) -> list[Element]:
    """Return the coordinates of a box in C order."""
    return list(
        itertools.product(*(range(o, o + s) for o, s in zip(box.offsets, box.sizes, strict=True)))
    )


def box_inside(shape: tuple[int, ...], *, min_size: int = 0) -> st.SearchStrategy[Box]:
    def dim(extent: int) -> st.SearchStrategy[tuple[int, int]]:
        return st.integers(0, extent - min_size).flatmap(
            lambda offset: st.tuples(st.just(offset), st.integers(min_size, extent - offset))
        )

    dims = [dim(extent) for extent in shape]
    return st.tuples(*dims).map(
        lambda pairs: Box(tuple(p[0] for p in pairs), tuple(p[1] for p in pairs))
    )


shapes = st.lists(st.integers(1, 4), max_size=4).map(tuple)


def test_scalar_has_one_element() -> None:
    assert whole(()) == Box((), ())
    assert whole(()).num_elements == 1
    assert whole([2, 0]).num_elements == 0


@pytest.mark.slow
@given(shapes.flatmap(lambda s: st.tuples(box_inside(s), box_inside(s))))
def test_intersect_is_the_shared_elements(pair: tuple[Box, Box]) -> None:
    a, b = pair
    shared = set(elements(a)) & set(elements(b))
    found = intersect(a, b)
    assert set(elements(found) if found else ()) == shared
    assert found == intersect(b, a)


@pytest.mark.slow
@given(shapes.flatmap(lambda s: st.tuples(st.just(s), box_inside(s, min_size=1))))
def test_linear_range_is_tight(case: tuple[tuple[int, ...], Box]) -> None:
    shape, box = case
    order = elements(whole(shape))
    positions = [order.index(element) for element in elements(box)]
    assert linear_range(shape, box) == (min(positions), max(positions) + 1)


@pytest.mark.slow
@given(shapes.flatmap(lambda s: st.tuples(box_inside(s), box_inside(s))))
def test_hull_is_tight_inside_stored(pair: tuple[Box, Box]) -> None:
    stored, wanted = pair
    inside = set(elements(wanted))
    positions = [i for i, element in enumerate(elements(stored)) if element in inside]
    expected = (min(positions), max(positions) + 1) if positions else None
    assert hull(stored, wanted) == expected


@given(
    st.lists(st.integers(0, 4), max_size=4).flatmap(
        lambda s: st.tuples(st.just(s), *[st.integers(0, math.prod(s))] * 2)
    )
)
def test_linear_boxes_follow_each_other(case: tuple[list[int], int, int]) -> None:
    sizes, a, b = case
    start, stop = min(a, b), max(a, b)
    boxes = linear_boxes(sizes, start, stop)
    assert len(boxes) <= max(1, 2 * len(sizes) - 1)
    assert all(box.num_elements for box in boxes)
    order = elements(whole(sizes))
    assert [element for box in boxes for element in elements(box)] == order[start:stop]


def test_linear_boxes_take_whole_rows_together() -> None:
    assert linear_boxes((4, 5), 0, 20) == [whole((4, 5))]
    assert linear_boxes((4, 5), 5, 15) == [Box((1, 0), (2, 5))]
    assert linear_boxes((4, 5), 7, 13) == [Box((1, 2), (1, 3)), Box((2, 0), (1, 3))]
    assert linear_boxes((), 0, 1) == [Box((), ())]
    assert linear_boxes((2**40, 2**20), 1, 2**60 - 1)[1].num_elements == 2**60 - 2**21


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 7)])
def test_linear_boxes_refuse_what_lies_outside(start: int, stop: int) -> None:
    with pytest.raises(InvalidInput, match="element range"):
        linear_boxes((2, 3), start, stop)


def is_exact(shape: tuple[int, ...], boxes: list[Box]) -> bool:
    """Say the slow way whether equal boxes counted once hold each element exactly once."""
    held = [element for box in set(boxes) for element in elements(box)]
    return sorted(held) == sorted(elements(whole(shape)))


@pytest.mark.slow
@given(shapes.flatmap(lambda s: st.tuples(st.just(s), st.lists(box_inside(s), max_size=4))))
def test_coverage_agrees_with_counting(case: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, boxes = case
    problems = coverage_problems(shape, boxes)
    assert (problems == []) == is_exact(shape, boxes)
    for problem in problems:
        check_finding(problem, boxes)


def check_finding(problem: str, boxes: list[Box]) -> None:
    """Check that a named place is held by no box, or by both named boxes."""
    named = [
        Box(
            tuple(map(int, filter(None, o.split(",")))), tuple(map(int, filter(None, s.split(","))))
        )
        for o, s in re.findall(r"\[([\d, ]*)\]\+\[([\d, ]*)\]", problem)
    ]
    place = set(elements(named[-1]))
    assert place
    if problem.startswith("no box"):
        assert all(place.isdisjoint(elements(box)) for box in boxes)
    else:
        first, second, _ = named
        assert {first, second} <= set(boxes)
        assert first != second
        assert place <= set(elements(first)) & set(elements(second))


def cuts(draw: st.DrawFn, box: Box, depth: int) -> list[Box]:
    """Cut a box at random, again and again."""
    dims = [dim for dim, size in enumerate(box.sizes) if size > 1]
    if depth == 0 or not dims:
        return [box]
    dim = draw(st.sampled_from(dims))
    at = draw(st.integers(1, box.sizes[dim] - 1))
    low, high = list(box.sizes), list(box.sizes)
    low[dim], high[dim] = at, box.sizes[dim] - at
    offsets = list(box.offsets)
    offsets[dim] += at
    halves = (Box(box.offsets, tuple(low)), Box(tuple(offsets), tuple(high)))
    return [piece for half in halves for piece in cuts(draw, half, depth - 1)]


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple))
    return shape, draw(st.permutations(cuts(draw, whole(shape), 3)))


@given(tilings(), st.data())
def test_coverage_accepts_any_tiling_with_replicas(
    tiling: tuple[tuple[int, ...], list[Box]], data: st.DataObject
) -> None:
    shape, boxes = tiling
    replicas = data.draw(st.lists(st.sampled_from(boxes), max_size=3))
    empty = Box((0,) * len(shape), (0,) * len(shape))
    assert coverage_problems(shape, [*boxes, empty, *replicas]) == []


@pytest.mark.slow
@given(tilings(), st.data())
def test_coverage_finds_one_lost_or_moved_box(
    tiling: tuple[tuple[int, ...], list[Box]], data: st.DataObject
) -> None:
    shape, boxes = tiling
    lost = data.draw(st.sampled_from(boxes))
    rest = [box for box in boxes if box != lost]
    assert coverage_problems(shape, rest)
    moved = data.draw(box_inside(shape))
    assert bool(coverage_problems(shape, [*rest, moved])) == (moved != lost)


@pytest.mark.parametrize(
    "box",
    [
        Box((0,), (2,)), Box((0, 0, 0), (1, 1, 1)), Box((0, 0), (2,)), Box((-1, 0), (2, 3)),
        Box((0, 0), (3, 3)), Box((2, 0), (1, 3)), Box((0, 0), (-1, 3)), Box((0, 2**62), (1, 2**62)),
    ],
)  # fmt: skip
def test_boxes_outside_are_named(box: Box) -> None:
    (problem,) = coverage_problems((2, 3), [box])
    assert "lies outside shape [2, 3]" in problem


def test_findings_are_few() -> None:
    scattered = [Box((2 * i,), (1,)) for i in range(100)]
    assert len(coverage_problems((200,), scattered)) == 8
    assert len(coverage_problems((1,), scattered)) == 8


def test_array_without_elements_needs_no_box() -> None:
    assert coverage_problems((0, 2**60), []) == []
    assert coverage_problems((), []) == ["no box holds []+[]"]


def test_scalar_held_once() -> None:
    assert coverage_problems((), [whole(()), whole(())]) == []


def test_huge_arrays_cost_nothing() -> None:
    size = 2**31
    halves = [Box((0, 0), (size, 1)), Box((0, 1), (size, size - 1))]
    assert coverage_problems((size, size), halves) == []
    assert coverage_problems((size, size), halves[:1]) == [
        f"no box holds [0, 1]+[{size}, {size - 1}]"
    ]


def test_nobody_can_choose_boxes_of_one_hash() -> None:
    boxes = [Box(offsets, (1,) * 33) for offsets in equal_tuples(500)]
    assert len(set(map(hash, boxes))) == 500
    assert hash(Box((1, 2), (3, 4))) == hash(Box((1, 2), (3, 4)))


def test_search_for_a_defect_is_bounded() -> None:
    nested = [Box((i, j), (600, 600)) for i in range(40) for j in range(40)]
    problems = coverage_problems((1240, 1240), nested)
    assert 1 <= len(problems) <= 8


def test_unfound_defect_is_still_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepseal.layout._boxes._MIN_BUDGET", -5)
    assert coverage_problems((4,), [Box((0,), (1,))]) == ["boxes overlap or leave holes in [0]+[4]"]
