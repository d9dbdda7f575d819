"""A job of real processes that are killed, stopped, frozen, doubled and robbed of their disk, with
readers, pins and prunes beside it, round after round: nothing acknowledged is lost but by the keep
rule, nothing half is seen, nobody hangs, and the next life goes on.

See `_soak_round` for the troubles. The same soak must catch deliberately broken protocols.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from tests.campaigns import _soak
from tests.campaigns._soak_round import TROUBLES

if TYPE_CHECKING:
    from tests.campaigns._sizes import Size

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


def check(size: Size, capsys: pytest.CaptureFixture[str]) -> None:
    row = _soak.run(size)
    with capsys.disabled():
        print("\n" + "\n  ".join([row.text(), *row.notes]))
    assert row.good, "\n".join([*row.violations, *row.missed])


def test_a_short_soak(capsys: pytest.CaptureFixture[str]) -> None:
    check("fast", capsys)


@pytest.mark.nightly
def test_half_an_hour_of_soak(capsys: pytest.CaptureFixture[str]) -> None:
    check("nightly", capsys)


def test_a_soak_in_which_too_little_happened_is_not_clean() -> None:
    enough = Counter({f"life with {trouble}": 1 for trouble in TROUBLES})
    enough.update({"acknowledged": 90, "read": 45, "verified": 45, "pinned": 3, "pruned": 3})
    assert _soak.too_little(enough, 9) == []
    for what in enough:
        (told,) = _soak.too_little(enough - Counter({what: 1}), 9)
        assert f" {what} " in told
    assert len(_soak.too_little(Counter(), 1)) == len(enough)
