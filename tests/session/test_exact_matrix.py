"""Exact resumes: loader x workers x place in the epoch x world x warm-up, by the README's loop.

One process group per world runs all its cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.session._matrix import CELLS, Cell, inexact_cells

from stepseal.testing import run_ranks

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("torchdata")

WORLDS = ["alone", "ddp", "fsdp"]
FEW = {
    "alone": [Cell("shuffled", 2, "middle", True), Cell("shuffled", 0, "start", True)],
    "ddp": [Cell("generator", 0, "end", True), Cell("stateless", 0, "end", True)],
    "fsdp": [Cell("shuffled", 0, "second", True), Cell("by hand", 0, "middle", True)],
}
"""Six cells for every day."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # by torchdata
]


def check(root: Path, world: str, cells: list[Cell]) -> None:
    if world == "alone":
        assert inexact_cells(0, str(root), world, cells) == []
        return
    found = run_ranks(2, inexact_cells, str(root), world, cells, timeout_s=900)
    assert found == [[], []]


@pytest.mark.parametrize("world", WORLDS)
def test_resumes_are_bit_identical(tmp_path: Path, world: str) -> None:
    check(tmp_path, world, FEW[world])


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world", WORLDS)
def test_the_whole_matrix_is_bit_identical(tmp_path: Path, world: str) -> None:
    check(tmp_path, world, CELLS)
