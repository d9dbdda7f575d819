"""However tensors were split at a save, and however they are split now, every rank gets its own.

See `run` for what is drawn and who judges. The campaign must catch every mistake of `_variants`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.campaigns.placements import run as _placements
from tests.campaigns.placements._layouts import draw_layout, draw_tensors, kind_of

if TYPE_CHECKING:
    from tests.campaigns.harness._sizes import Row, Size

pytestmark = pytest.mark.slow


def check(size: Size, capsys: pytest.CaptureFixture[str]) -> Row:
    row = _placements.run(size)
    with capsys.disabled():
        print("\n" + "\n  ".join([row.text(), *row.notes]))
    assert row.good, "\n".join([*row.violations, *row.missed])
    return row


def test_every_split_restores_into_every_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("fast", capsys).cases >= 90


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_every_split_of_any_world_restores_in_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("nightly", capsys).cases >= 500


def test_a_seed_draws_the_same_again_and_every_kind_of_split() -> None:
    tensors = draw_tensors("1", 60)
    assert tensors == draw_tensors("1", 60)
    assert tensors != draw_tensors("2", 60)
    drawn = {key: draw_layout(f"1/{key}", 4, one) for key, one in tensors.items()}
    assert drawn == {key: draw_layout(f"1/{key}", 4, one) for key, one in tensors.items()}
    assert {kind_of(layout) for layout in drawn.values()} == {"1-D", "2-D", "strided", "plain"}
    assert any(0 in one.shape for one in tensors.values())
    assert any(one.shape == () for one in tensors.values())
