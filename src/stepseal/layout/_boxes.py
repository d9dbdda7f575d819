"""Boxes: rectangular parts of arrays, and the arithmetic that reading and resharding need.

Pure integer arithmetic over C-order (row-major) arrays; all ranges are half-open and count
elements. Costs grow with the number of boxes and dims, never with the number of elements.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Box",
    "coverage_problems",
    "hull",
    "intersect",
    "linear_boxes",
    "linear_range",
    "whole",
]

_MAX_PROBLEMS = 8
_MIN_BUDGET = 10_000
_PRIME = 2**127 - 1


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangular part of an array; a box without dims is a scalar and has one element."""

    offsets: tuple[int, ...]
    """First element per dim, inside the array."""
    sizes: tuple[int, ...]
    """Number of elements per dim."""

    def __hash__(self) -> int:
        """Hash the box as text: hostile documents cannot make text hashes collide."""
        return hash(",".join(map(str, (*self.offsets, *self.sizes))))

    @property
    def num_elements(self) -> int:
        """Number of elements, 0 when any size is 0."""
        return math.prod(self.sizes)


def whole(shape: Sequence[int]) -> Box:
    """Return the box that holds all of an array of `shape`."""
    return Box((0,) * len(shape), tuple(shape))


def intersect(a: Box, b: Box) -> Box | None:
    """Return the elements that two boxes of the same array share, or None if they share none."""
    starts = tuple(map(max, a.offsets, b.offsets))
    sizes = tuple(
        min(a_start + a_size, b_start + b_size) - start
        for start, a_start, a_size, b_start, b_size in zip(
            starts, a.offsets, a.sizes, b.offsets, b.sizes, strict=True
        )
    )
    return Box(starts, sizes) if all(size > 0 for size in sizes) else None


def linear_range(sizes: Sequence[int], box: Box) -> tuple[int, int]:
    """Return the smallest C-order element range of an array of `sizes` that contains `box`.

    Args:
        sizes: shape of the array.
        box: a non-empty box inside it, offsets counted from the array's first element.
    """
    first = last = 0
    for extent, offset, size in zip(sizes, box.offsets, box.sizes, strict=True):
        first = first * extent + offset
        last = last * extent + offset + size - 1
    return first, last + 1


def hull(stored: Box, wanted: Box) -> tuple[int, int] | None:
    """Return the smallest C-order element range of `stored` that holds its overlap with `wanted`.

    Returns:
        Half-open range counted from the first element of `stored`, or None if the boxes do not
        overlap.
    """
    shared = intersect(stored, wanted)
    if shared is None:
        return None
    local = tuple(start - base for start, base in zip(shared.offsets, stored.offsets, strict=True))
    return linear_range(stored.sizes, Box(local, shared.sizes))


def linear_boxes(sizes: Sequence[int], start: int, stop: int) -> list[Box]:
    """Cut a C-order element range of an array into boxes that follow each other in that order.

    Args:
        sizes: shape of the array.
        start: first element of the range.
        stop: end of the range, at most the number of elements.

    Returns:
        At most `2 * ndim - 1` boxes (one for a scalar), none for an empty range.

    Raises:
        InvalidInput: the range does not lie inside the array.
    """
    if not 0 <= start <= stop <= math.prod(sizes):
        raise InvalidInput(
            f"element range is not usable: expected 0 <= start <= stop <= {math.prod(sizes)}, "
            f"found {start}..{stop}"
        )
    boxes: list[Box] = []
    if start < stop:
        _append_range(boxes, (), tuple(sizes), start, stop)
    return boxes


def _append_range(
    boxes: list[Box], prefix: tuple[int, ...], sizes: tuple[int, ...], start: int, stop: int
) -> None:
    """Append the boxes of a non-empty range inside the sub-array that `prefix` selects."""
    ones = (1,) * len(prefix)
    if not sizes:
        boxes.append(Box(prefix, ones))
        return
    row = math.prod(sizes[1:])
    first, head = divmod(start, row)
    end, tail = divmod(stop, row)
    if first == end:
        _append_range(boxes, (*prefix, first), sizes[1:], head, tail)
        return
    if head:
        _append_range(boxes, (*prefix, first), sizes[1:], head, row)
        first += 1
    if first < end:
        zeros = (0,) * (len(sizes) - 1)
        boxes.append(Box((*prefix, first, *zeros), (*ones, end - first, *sizes[1:])))
    if tail:
        _append_range(boxes, (*prefix, end), sizes[1:], 0, tail)


def coverage_problems(shape: Sequence[int], boxes: Sequence[Box]) -> list[str]:
    """Return where `boxes` do not hold each element of an array exactly once; empty if they do.

    Equal boxes are replicas and count once. Boxes without elements are ignored.

    Returns:
        Boxes outside the array; if there are none, the places that no box or more than one box
        holds. At most eight findings.
    """
    if outside := [box for box in boxes if not _is_inside(box, shape)]:
        return [
            f"box {_show(box)} lies outside shape {list(shape)}" for box in outside[:_MAX_PROBLEMS]
        ]
    distinct = list(dict.fromkeys(box for box in boxes if box.num_elements))
    return _defects(whole(shape), distinct)


def _is_inside(box: Box, shape: Sequence[int]) -> bool:
    return len(box.offsets) == len(box.sizes) == len(shape) and all(
        offset >= 0 and size >= 0 and offset + size <= extent
        for offset, size, extent in zip(box.offsets, box.sizes, shape, strict=True)
    )


def _defects(array: Box, boxes: list[Box]) -> list[str]:
    """Return where boxes fail to tile an array; repeatedly halves each place that is not tiled."""
    problems: list[str] = []
    budget = _MIN_BUDGET + 6 * len(boxes)
    pending = [(array, boxes)]
    while pending and budget > 0 and len(problems) < _MAX_PROBLEMS:
        place, near = pending.pop()
        shared = [(box, piece) for box in near if (piece := intersect(box, place))]
        budget -= len(near)
        if _is_tiling(place, [piece for _, piece in shared]):
            continue
        held_by = [box for box, _ in shared]
        if halves := _halves(place, [piece for _, piece in shared]):
            pending += [(half, held_by) for half in reversed(halves)]
        elif not held_by:
            problems.append(f"no box holds {_show(place)}")
        else:
            first, second = map(_show, held_by[:2])
            problems.append(f"boxes {first} and {second} both hold {_show(place)}")
    if pending and not problems:
        problems.append(f"boxes overlap or leave holes in {_show(array)}")
    return problems


def _halves(place: Box, pieces: Sequence[Box]) -> tuple[Box, Box] | None:
    """Cut a place at the middle border of the pieces; None if no border is inside the place."""
    best: list[int] = []
    best_dim = 0
    for dim, (start, size) in enumerate(zip(place.offsets, place.sizes, strict=True)):
        borders = {piece.offsets[dim] for piece in pieces}
        borders |= {piece.offsets[dim] + piece.sizes[dim] for piece in pieces}
        inside = borders - {start, start + size}
        if len(inside) > len(best):
            best, best_dim = sorted(inside), dim
    if not best:
        return None
    cut = best[len(best) // 2]
    start, size = place.offsets[best_dim], place.sizes[best_dim]
    return (
        Box(place.offsets, _with(place.sizes, best_dim, cut - start)),
        Box(
            _with(place.offsets, best_dim, cut),
            _with(place.sizes, best_dim, start + size - cut),
        ),
    )


def _with(values: tuple[int, ...], dim: int, value: int) -> tuple[int, ...]:
    return (*values[:dim], value, *values[dim + 1 :])


def _is_tiling(place: Box, pieces: Sequence[Box]) -> bool:
    """Return whether pieces partition a place, in time linear in their number.

    Every coordinate of every dim gets a random weight. The weight of an element is the product of
    its coordinates' weights. The function compares the sum over all pieces with the sum over the
    place; this needs only running sums at the borders. For a wrong partition, the sums are equal
    with probability ndim / 2**127 (Schwartz-Zippel). The weights come from a hash of the pieces, so
    an attacker cannot choose pieces that fit the weights.
    """
    if sum(piece.num_elements for piece in pieces) != place.num_elements:
        return False
    seed = hashlib.sha256(repr([(piece.offsets, piece.sizes) for piece in pieces]).encode())
    sums: dict[tuple[int, int], int] = {}

    def running_sum(dim: int, coordinate: int) -> int:
        """Return the summed weights of all coordinates of `dim` before `coordinate`."""
        found = sums.get((dim, coordinate))
        if found is None:
            own = seed.copy()
            own.update(b"%d,%d" % (dim, coordinate))
            sums[dim, coordinate] = found = int.from_bytes(own.digest(), "little") % _PRIME
        return found

    def weight(box: Box) -> int:
        product = 1
        for dim, (offset, size) in enumerate(zip(box.offsets, box.sizes, strict=True)):
            product *= running_sum(dim, offset + size) - running_sum(dim, offset)
            product %= _PRIME
        return product

    return (sum(map(weight, pieces)) - weight(place)) % _PRIME == 0


def _show(box: Box) -> str:
    return f"{list(box.offsets)}+{list(box.sizes)}"
